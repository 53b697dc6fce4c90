//! A tile of queries against many panels: only what matters leaves the registers.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::tile::sums;
use super::{Form, Panels, Tile, COLUMNS, LINE, ROWS};
use crate::simd::SimdPath;
#[cfg(target_arch = "x86_64")]
use crate::simd::{lanes::Avx512, Level};

/// What a row of a tile must beat, and what bounds its scores.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Goals {
    /// Scores at or above it survive; +infinity for a row without query.
    pub thresholds: [f32; LINE],
    /// Lengths of the queries, inflated so that `length * panel length + offset` bounds every computed score; +infinity
    /// where nothing is to be inferred.
    pub lengths: [f32; LINE],
}

impl Goals {
    /// By Cauchy and Schwarz, whether no score of the panel reaches its row's threshold.
    #[inline(always)]
    pub(super) fn hopeless(&self, length: f32, offset: f32) -> bool {
        (0..LINE).all(|row| self.lengths[row].mul_add(length, offset) < self.thresholds[row])
    }
}

/// Takes in the scores that matter: row of the tile, position of the item, score; returns the row's threshold from then
/// on.
pub trait Sink {
    fn take(&mut self, row: usize, position: usize, score: f32) -> f32;
}

impl SimdPath {
    /// Scores the tile against panels `range`; what reaches its row's threshold goes to `sink`.
    #[inline]
    pub fn scan(
        self,
        form: Form,
        queries: &[f32],
        panels: &Panels,
        range: Range<usize>,
        goals: &mut Goals,
        sink: &mut impl Sink,
    ) {
        assert_eq!(queries.len(), panels.dim * ROWS, "tile and panels have one dim");
        assert!(range.end <= panels.count());
        #[cfg(target_arch = "x86_64")]
        if self.level() == Level::Avx512 {
            // SAFETY: a path of this level exists only if the processor has its instructions, and the sizes agree as asserted.
            unsafe { scan_avx512(form, queries, panels, range, goals, sink) };
            return;
        }
        let mut tile = Tile::default();
        for panel in range {
            if goals.hopeless(panels.lengths[panel], panels.offsets[panel]) {
                continue;
            }
            let (lines, bias) = panels.panel(panel);
            self.tile(form, queries, lines, bias, &mut tile);
            for (row, scores) in tile.0.iter().enumerate() {
                let threshold = goals.thresholds[row];
                if scores.iter().fold(0, |any, &s| any | u32::from(s >= threshold)) == 0 {
                    continue;
                }
                for (column, &score) in scores.iter().enumerate() {
                    if score >= goals.thresholds[row] {
                        goals.thresholds[row] = sink.take(row, panel * COLUMNS + column, score);
                    }
                }
            }
        }
    }
}

/// [`SimdPath::scan`].
///
/// # Safety
/// The processor has the features; `queries` holds panels.dim x ROWS floats and `range` lies within the panels.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
pub unsafe fn scan_avx512(
    form: Form,
    queries: &[f32],
    panels: &Panels,
    range: Range<usize>,
    goals: &mut Goals,
    sink: &mut impl Sink,
) {
    match form {
        Form::Dot => scan512::<false>(queries, panels, range, goals, sink),
        Form::Distance => scan512::<true>(queries, panels, range, goals, sink),
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
fn scan512<const DISTANCE: bool>(
    queries: &[f32],
    panels: &Panels,
    range: Range<usize>,
    goals: &mut Goals,
    sink: &mut impl Sink,
) {
    let mut tile = Tile::default();
    // SAFETY: both arrays are 16 floats, aligned to 64 bytes by Goals.
    let (mut thresholds, lengths) = unsafe {
        (
            _mm512_load_ps(goals.thresholds.as_ptr()),
            _mm512_load_ps(goals.lengths.as_ptr()),
        )
    };
    for panel in range {
        let (length, offset) = (
            _mm512_set1_ps(panels.lengths[panel]),
            _mm512_set1_ps(panels.offsets[panel]),
        );
        let bound = _mm512_fmadd_ps(lengths, length, offset);
        if _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(bound, thresholds) == 0 {
            continue;
        }
        let (lines, bias) = panels.panel(panel);
        // SAFETY: the processor has AVX-512; a panel is as deep as the queries are, as asserted.
        let sums = unsafe { sums::<Avx512, DISTANCE, ROWS, 2>(queries, lines, bias, 0, 0) };
        // A bit for each pair of columns (c, c + 16) of four rows a word: which of them reaches its threshold.
        let mut words = [0u64; ROWS / 4];
        for (row, sums) in sums.iter().enumerate() {
            let pair = _mm512_max_ps(sums[0], sums[1]);
            let reached = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(pair, _mm512_set1_ps(goals.thresholds[row]));
            words[row / 4] |= u64::from(reached) << (16 * (row % 4));
        }
        if words[0] | words[1] | words[2] == 0 {
            continue;
        }
        for (row, sums) in tile.0.iter_mut().zip(&sums) {
            // SAFETY: a row of the tile is 32 floats, two vectors; Tile is aligned to 64 bytes and so is each row.
            unsafe {
                _mm512_store_ps(row.as_mut_ptr(), sums[0]);
                _mm512_store_ps(row.as_mut_ptr().add(LINE), sums[1]);
            }
        }
        for (part, mut word) in words.into_iter().enumerate() {
            while word != 0 {
                let bit = word.trailing_zeros() as usize;
                word &= word - 1;
                let (row, column) = (4 * part + bit / LINE, bit % LINE);
                for column in [column, column + LINE] {
                    let score = tile.0[row][column];
                    if score >= goals.thresholds[row] {
                        goals.thresholds[row] = sink.take(row, panel * COLUMNS + column, score);
                    }
                }
            }
        }
        // SAFETY: as above.
        thresholds = unsafe { _mm512_load_ps(goals.thresholds.as_ptr()) };
    }
}
