//! Tiles of queries against the panels: what reaches its threshold is caught, with its score.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::{score, CodePanels, CodeTile, Words};
use crate::score::quantised::{Catch, Lanes, Net, Totals};
use crate::score::{Goals, Tile, COLUMNS, LINE, ROWS};
use crate::simd::{compiled, SimdPath};

/// Panels that are opened together and stay in L1 while all queries pass over them.
const BATCH: usize = 4;

/// What a pass works with.
pub struct CodeScan {
    room: Vec<Words>,
    totals: Totals,
    tile: Tile,
}

impl Default for CodeScan {
    fn default() -> Self {
        CodeScan {
            room: Vec::new(),
            totals: Totals::ZERO,
            tile: Tile::default(),
        }
    }
}

impl CodeScan {
    /// Catches every item whose score reaches its query's threshold, tile by tile; both bounds of a catch are the score.
    pub fn scan(
        &mut self,
        simd: SimdPath,
        queries: &[CodeTile],
        panels: &CodePanels,
        goals: &mut [Goals],
        catches: &mut [Catch],
        net: &mut impl Net,
    ) {
        for first in (0..panels.panels()).step_by(BATCH) {
            let count = BATCH.min(panels.panels() - first);
            let lines = panels.open(simd, first, count, &mut self.room);
            for (tile, (queries, goals)) in queries.iter().zip(&mut *goals).enumerate() {
                let catches = &mut catches[tile * ROWS..];
                for place in 0..count {
                    let lines = &lines[place * panels.opened()..];
                    let panel = first + place;
                    if goals.hopeless(panels.lengths[panel], panels.offsets[panel]) {
                        continue;
                    }
                    simd.code_sums(queries, panels, lines, &mut self.totals);
                    let mut full =
                        simd.catch_codes(queries, panels, panel, &self.totals, goals, catches, &mut self.tile);
                    while full != 0 {
                        let row = full.trailing_zeros() as usize;
                        full &= full - 1;
                        goals.thresholds[row] =
                            net.relieve(tile * ROWS + row, goals.thresholds[row], &mut catches[row]);
                    }
                }
            }
        }
    }

    /// Takes the scores of the first `count` panels into the lanes of each tile, but for those `seen`: position x 16 + row each,
    /// ascending.
    pub fn sample(
        &mut self,
        simd: SimdPath,
        queries: &[CodeTile],
        panels: &CodePanels,
        count: usize,
        seen: &[Vec<u64>],
        lanes: &mut [Lanes],
    ) {
        let mut passed = vec![0; queries.len()];
        for first in (0..count).step_by(BATCH) {
            let count = BATCH.min(count - first);
            let lines = panels.open(simd, first, count, &mut self.room);
            for (((queries, seen), passed), lanes) in queries.iter().zip(seen).zip(&mut passed).zip(&mut *lanes) {
                for place in 0..count {
                    let lines = &lines[place * panels.opened()..];
                    let panel = first + place;
                    simd.code_sums(queries, panels, lines, &mut self.totals);
                    simd.code_scores(queries, panels, panel, &self.totals, &mut self.tile);
                    while let Some(&gone) = seen
                        .get(*passed)
                        .filter(|&&gone| gone as usize / LINE < (panel + 1) * COLUMNS)
                    {
                        self.tile.0[gone as usize % LINE][gone as usize / LINE % COLUMNS] = f32::NEG_INFINITY;
                        *passed += 1;
                    }
                    simd.take_best(&self.tile, panel, lanes);
                }
            }
        }
    }
}

impl SimdPath {
    /// Catches the items of a panel whose scores reach their row's threshold; gives the rows, a bit each, whose catches are full.
    #[allow(clippy::too_many_arguments)]
    #[inline]
    fn catch_codes(
        self,
        queries: &CodeTile,
        panels: &CodePanels,
        panel: usize,
        totals: &Totals,
        goals: &Goals,
        catches: &mut [Catch],
        tile: &mut Tile,
    ) -> u32 {
        #[cfg(target_arch = "x86_64")]
        if self.level() == crate::simd::Level::Avx512 {
            // SAFETY: a path of this level exists only if the processor has its instructions.
            return unsafe { catch_avx512(queries, panels, panel, totals, goals, catches) };
        }
        self.code_scores(queries, panels, panel, totals, tile);
        let mut full = 0;
        for (row, (scores, &threshold)) in tile.0.iter().zip(&goals.thresholds).enumerate() {
            if scores.iter().fold(0, |any, &s| any | u32::from(s >= threshold)) == 0 {
                continue;
            }
            let catch = &mut catches[row];
            assert!(catch.has_room());
            for (column, &score) in scores.iter().enumerate().filter(|(_, &score)| score >= threshold) {
                catch.positions[catch.len] = (panel * COLUMNS + column) as u32;
                catch.lows[catch.len] = score;
                catch.ups[catch.len] = score;
                catch.len += 1;
            }
            full |= u32::from(catch.len > catch.full) << row;
        }
        full
    }
}

compiled! {
    /// The scores of sums; -infinity past the last item.
    pub(super) fn code_scores(
        queries: &CodeTile,
        panels: &CodePanels,
        panel: usize,
        totals: &Totals,
        out: &mut Tile,
    ) = code_scores;
    /// The largest of each lane.
    fn take_best(tile: &Tile, panel: usize, lanes: &mut Lanes) = take_best;
}

#[inline(always)]
fn code_scores(queries: &CodeTile, panels: &CodePanels, panel: usize, totals: &Totals, out: &mut Tile) {
    let (scales, bias) = panels.of_panel(panel);
    for (row, (totals, out)) in totals.0.iter().zip(&mut out.0).enumerate() {
        let (scale, offset) = (queries.scales[row], queries.offsets[row]);
        let halves = totals.as_chunks::<LINE>().0.iter().zip(out.as_chunks_mut::<LINE>().0);
        for ((totals, out), (scales, bias)) in halves.zip(scales.iter().zip(bias)) {
            for column in 0..LINE {
                let sum = (totals[column] << panels.shift) - offset;
                out[column] = score(sum, scale, scales.0[column], bias.0[column]);
            }
        }
    }
}

#[inline(always)]
fn take_best(tile: &Tile, panel: usize, lanes: &mut Lanes) {
    let stride = lanes.stride();
    for (scores, lines) in tile.0.iter().zip(lanes.of_panel(panel).chunks_mut(stride)) {
        for (scores, line) in scores.as_chunks::<LINE>().0.iter().zip(lines) {
            for (best, &score) in line.0.iter_mut().zip(scores) {
                *best = if score > *best { score } else { *best };
            }
        }
    }
}

/// Sums past this, either way, do not occur, nor with an offset do they leave 32 bits.
#[cfg(target_arch = "x86_64")]
const LARGEST: f32 = (1u32 << 30) as f32;
/// Below it, what products of scales below the normal numbers are off by may matter.
#[cfg(target_arch = "x86_64")]
const SMALL: f32 = 1e-25;

/// [`SimdPath::catch_codes`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,popcnt,bmi1,bmi2")]
fn catch_avx512(
    queries: &CodeTile,
    panels: &CodePanels,
    panel: usize,
    totals: &Totals,
    goals: &Goals,
    catches: &mut [Catch],
) -> u32 {
    #[repr(C, align(64))]
    struct Ints([i32; LINE]);

    let (scales, bias) = panels.of_panel(panel);
    let shift = _mm_cvtsi32_si128(panels.shift as i32);
    // SAFETY: arrays of 16 numbers, aligned to 64 bytes by their structures.
    let (scales, bias) = unsafe {
        (
            [
                _mm512_load_ps(scales[0].0.as_ptr()),
                _mm512_load_ps(scales[1].0.as_ptr()),
            ],
            [_mm512_load_ps(bias[0].0.as_ptr()), _mm512_load_ps(bias[1].0.as_ptr())],
        )
    };
    // The score of one half of a row, as on all paths.
    let scored = |row: usize, half: usize| {
        // SAFETY: half a row is 16 integers, aligned to 64 bytes.
        let totals = unsafe { _mm512_load_si512(totals.0[row].as_ptr().add(half * LINE).cast()) };
        let sums = _mm512_sub_epi32(_mm512_sll_epi32(totals, shift), _mm512_set1_epi32(queries.offsets[row]));
        let scale = _mm512_mul_ps(_mm512_set1_ps(queries.scales[row]), scales[half]);
        _mm512_add_ps(_mm512_mul_ps(scale, _mm512_cvtepi32_ps(sums)), bias[half])
    };
    let mut rows = 0u32;
    if panels.biased {
        for row in 0..ROWS {
            let best = _mm512_max_ps(scored(row, 0), scored(row, 1));
            let threshold = _mm512_set1_ps(goals.thresholds[row]);
            rows |= u32::from(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(best, threshold) != 0) << row;
        }
    } else {
        // The least sum with which the largest scale of the panel can reach the threshold, less what computing it in float32 can be off
        // by: most rows are ruled out by integers alone.
        // SAFETY: arrays of 16 numbers, aligned to 64 bytes by their structures.
        let (thresholds, inverse, offsets) = unsafe {
            (
                _mm512_load_ps(goals.thresholds.as_ptr()),
                _mm512_load_ps(queries.inverse_scales.as_ptr()),
                _mm512_load_si512(queries.offsets.as_ptr().cast()),
            )
        };
        let inverse = _mm512_mul_ps(inverse, _mm512_set1_ps(panels.inverse_scales[panel]));
        let least = _mm512_fmsub_ps(
            _mm512_mul_ps(thresholds, inverse),
            _mm512_set1_ps(1.0 - 1e-6),
            _mm512_set1_ps(1.5),
        );
        // Where scales are 0 or too large to be inverted, 0 times infinity is not a number, and the second operand is taken.
        let least = _mm512_max_ps(least, _mm512_set1_ps(-LARGEST));
        let least = _mm512_min_ps(least, _mm512_set1_ps(LARGEST));
        let certain = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(thresholds, _mm512_set1_ps(SMALL));
        let least = _mm512_mask_blend_ps(certain, _mm512_set1_ps(-LARGEST), least);
        let least = _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(least);
        let limit = _mm512_sra_epi32(_mm512_add_epi32(least, offsets), shift);
        let mut limits = Ints([0; LINE]);
        // SAFETY: 16 integers, aligned to 64 bytes.
        unsafe { _mm512_store_si512(limits.0.as_mut_ptr().cast(), limit) };
        // Without the barrier the limits are taken apart in registers, on the port that comparisons need.
        let limits = std::hint::black_box(&limits);
        // A bit for each pair of columns (c, c + 16), four rows a word.
        let mut words = [0u64; ROWS / 4];
        for (row, totals) in totals.0.iter().enumerate() {
            // SAFETY: 32 integers, aligned to 64 bytes.
            let pair = unsafe {
                _mm512_max_epi32(
                    _mm512_load_si512(totals.as_ptr().cast()),
                    _mm512_load_si512(totals.as_ptr().add(LINE).cast()),
                )
            };
            let reached = _mm512_cmpgt_epi32_mask(pair, _mm512_set1_epi32(limits.0[row]));
            words[row / 4] |= u64::from(reached) << (16 * (row % 4));
        }
        if words[0] | words[1] | words[2] == 0 {
            return 0;
        }
        // A bit a row: the top bit of each of a word's parts that is not 0, put together.
        const LOW: u64 = 0x7FFF_7FFF_7FFF_7FFF;
        for (part, word) in words.iter().enumerate() {
            rows |= (_pext_u64(((word & LOW) + LOW) | word, !LOW) as u32) << (4 * part);
        }
    }
    let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let mut full = 0;
    while rows != 0 {
        let row = rows.trailing_zeros() as usize;
        rows &= rows - 1;
        let threshold = _mm512_set1_ps(goals.thresholds[row]);
        let scores = [scored(row, 0), scored(row, 1)];
        let masks = scores.map(|scores| _mm512_cmp_ps_mask::<_CMP_GE_OQ>(scores, threshold));
        if masks[0] | masks[1] == 0 {
            continue;
        }
        let catch = &mut catches[row];
        assert!(catch.has_room());
        for (half, (scores, mask)) in scores.into_iter().zip(masks).enumerate() {
            let start = _mm512_set1_epi32((panel * COLUMNS + half * LINE) as i32);
            let positions = _mm512_maskz_compress_epi32(mask, _mm512_add_epi32(start, lanes));
            let scores = _mm512_maskz_compress_ps(mask, scores);
            // SAFETY: the catch has room for two vectors and 16 entries more.
            unsafe {
                _mm512_storeu_si512(catch.positions.as_mut_ptr().add(catch.len).cast(), positions);
                _mm512_storeu_ps(catch.lows.as_mut_ptr().add(catch.len), scores);
                _mm512_storeu_ps(catch.ups.as_mut_ptr().add(catch.len), scores);
            }
            catch.len += mask.count_ones() as usize;
        }
        full |= u32::from(catch.len > catch.full) << row;
    }
    full
}
