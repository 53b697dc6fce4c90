//! One query against the panels: scores are exact.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::{score, CodePanels, CodeTile, Lane, Words};
use crate::codes::Codes;
use crate::score::{COLUMNS, LINE};
use crate::simd::{compiled, Level, SimdPath};

/// Panels whose sums are taken together: as many chains as an addition takes steps.
const FEW_PANELS: usize = 4;

/// A query for panels of [`Lane::Bytes`].
pub struct CodeQuery {
    scale: f32,
    /// A sum of levels is the sum of codes times 2^shift, less this.
    offset: i32,
    /// Four signed bytes each.
    lanes: Vec<[i8; 4]>,
}

impl CodeQuery {
    pub fn new(simd: SimdPath, queries: Codes, query: usize, panels: &CodePanels) -> Self {
        assert_eq!(panels.lanes, Lane::Bytes);
        let mut tile = CodeTile::default();
        tile.pack(simd, queries, std::iter::once(query), panels);
        let own = tile.lanes.iter().step_by(crate::score::ROWS);
        CodeQuery {
            scale: tile.scales[0],
            offset: tile.offsets[0],
            lanes: own.map(|lane| lane.to_le_bytes().map(|byte| byte as i8)).collect(),
        }
    }
}

/// Sums, then scores, of one query and some panels.
#[repr(C, align(64))]
struct Sums([[i32; COLUMNS]; FEW_PANELS]);

/// A pass of one query over panels.
pub struct OneScan {
    room: Vec<Words>,
    sums: Sums,
}

impl Default for OneScan {
    fn default() -> Self {
        OneScan {
            room: Vec::new(),
            sums: Sums([[0; COLUMNS]; FEW_PANELS]),
        }
    }
}

impl OneScan {
    /// The scores of `count` panels from `first` on, -infinity past the last item, into as many times [`COLUMNS`] places.
    pub fn scores(&mut self, simd: SimdPath, query: &CodeQuery, panels: &CodePanels, first: usize, out: &mut [f32]) {
        let (out, rest) = out.as_chunks_mut::<COLUMNS>();
        assert!(rest.is_empty() && first + out.len() <= panels.panels());
        assert!(panels.lanes == Lane::Bytes && query.lanes.len() == panels.count);
        let mut panel = first;
        for out in out.chunks_mut(FEW_PANELS) {
            let lines = panels.open(simd, panel, out.len(), &mut self.room);
            simd.code_sums_of_one(&query.lanes, panels, lines, out.len(), &mut self.sums);
            for (sums, out) in self.sums.0.iter().zip(out) {
                simd.code_scores_of_one(query, panels, panel, sums, out);
                panel += 1;
            }
        }
    }
}

compiled! {
    fn code_scores_of_one(
        query: &CodeQuery,
        panels: &CodePanels,
        panel: usize,
        sums: &[i32; COLUMNS],
        out: &mut [f32; COLUMNS],
    ) = code_scores_of_one;
    fn plain_code_sums(query: &[[i8; 4]], lines: &[Words], sums: &mut [i32; COLUMNS]) = plain_code_sums;
}

#[inline(always)]
fn code_scores_of_one(
    query: &CodeQuery,
    panels: &CodePanels,
    panel: usize,
    sums: &[i32; COLUMNS],
    out: &mut [f32; COLUMNS],
) {
    let (scales, bias) = panels.of_panel(panel);
    let halves = sums.as_chunks::<LINE>().0.iter().zip(out.as_chunks_mut::<LINE>().0);
    for ((sums, out), (scales, bias)) in halves.zip(scales.iter().zip(bias)) {
        for column in 0..LINE {
            let sum = (sums[column] << panels.shift) - query.offset;
            out[column] = score(sum, query.scale, scales.0[column], bias.0[column]);
        }
    }
}

#[inline(always)]
fn plain_code_sums(query: &[[i8; 4]], lines: &[Words], sums: &mut [i32; COLUMNS]) {
    *sums = [0; COLUMNS];
    for (query, pair) in query.iter().zip(lines.as_chunks::<2>().0) {
        let query = query.map(i32::from);
        for (line, sums) in pair.iter().zip(sums.as_chunks_mut::<LINE>().0) {
            for (&item, sum) in line.0.iter().zip(sums) {
                let item = item.to_le_bytes();
                *sum += (0..4).map(|d| query[d] * i32::from(item[d])).sum::<i32>();
            }
        }
    }
}

impl SimdPath {
    /// Sums of products of a query and `count` opened panels.
    fn code_sums_of_one(self, query: &[[i8; 4]], panels: &CodePanels, lines: &[Words], count: usize, sums: &mut Sums) {
        let per_panel = panels.opened();
        assert!(query.len() * 2 <= per_panel && lines.len() == count * per_panel && (1..=FEW_PANELS).contains(&count));
        #[cfg(target_arch = "x86_64")]
        if self.has_bytes() {
            // SAFETY: the processor has the instructions, and each panel has two lines to a lane of the query or more.
            return unsafe {
                match count {
                    FEW_PANELS => avx512::<FEW_PANELS>(query, lines, per_panel, sums),
                    3 => avx512::<3>(query, lines, per_panel, sums),
                    2 => avx512::<2>(query, lines, per_panel, sums),
                    _ => avx512::<1>(query, lines, per_panel, sums),
                }
            };
        }
        for (place, sums) in sums.0.iter_mut().enumerate().take(count) {
            let lines = &lines[place * per_panel..(place + 1) * per_panel];
            match (self.level(), panels.shift == 0) {
                // SAFETY: a path of this level exists only if the processor has its instructions, as those with AVX-512 have AVX2; sizes
                // are as above.
                #[cfg(target_arch = "x86_64")]
                (Level::Avx2 | Level::Avx512, false) => unsafe { avx2::<false>(query, lines, sums) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                (Level::Avx2 | Level::Avx512, true) => unsafe { avx2::<true>(query, lines, sums) },
                _ => self.plain_code_sums(query, lines, sums),
            }
        }
    }
}

/// # Safety
/// The processor has the features; `lines` are `per_panel` of each of COUNT panels, two or more to a lane of the query.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn avx512<const COUNT: usize>(query: &[[i8; 4]], lines: &[Words], per_panel: usize, out: &mut Sums) {
    let mut sums = [[_mm512_setzero_si512(); 2]; COUNT];
    let base = lines.as_ptr();
    for (lane, &bytes) in query.iter().enumerate() {
        let own = _mm512_set1_epi32(i32::from_le_bytes(bytes.map(|byte| byte as u8)));
        for (panel, sums) in sums.iter_mut().enumerate() {
            // SAFETY: lines are 64 bytes, aligned, and these two belong to the panel.
            unsafe {
                let line = base.add(panel * per_panel + 2 * lane);
                sums[0] = _mm512_dpbusd_epi32(sums[0], _mm512_load_si512(line.cast()), own);
                sums[1] = _mm512_dpbusd_epi32(sums[1], _mm512_load_si512(line.add(1).cast()), own);
            }
        }
    }
    for (sums, out) in sums.iter().zip(&mut out.0) {
        // SAFETY: a row is 32 integers, two vectors, aligned to 64 bytes.
        unsafe {
            _mm512_store_si512(out.as_mut_ptr().cast(), sums[0]);
            _mm512_store_si512(out.as_mut_ptr().add(LINE).cast(), sums[1]);
        }
    }
}

/// Pairs of products are summed in 16 bits, which holds 2 * 15 * 127: bytes past 15 are taken in two halves.
///
/// # Safety
/// The processor has the features; there are two of `lines` to a lane of the query.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2<const WHOLE: bool>(query: &[[i8; 4]], lines: &[Words], out: &mut [i32; COLUMNS]) {
    const LANES: usize = 8;
    let (ones, sixteens, low) = (_mm256_set1_epi16(1), _mm256_set1_epi16(16), _mm256_set1_epi8(15));
    let mut sums = [_mm256_setzero_si256(); COLUMNS / LANES];
    for (&bytes, pair) in query.iter().zip(lines.as_chunks::<2>().0) {
        let own = _mm256_set1_epi32(i32::from_le_bytes(bytes.map(|byte| byte as u8)));
        let from = pair.as_ptr().cast::<__m256i>();
        for (part, sum) in sums.iter_mut().enumerate() {
            // SAFETY: two lines are four vectors, aligned.
            let mut items = unsafe { _mm256_load_si256(from.add(part)) };
            if WHOLE {
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(items), low);
                let high = _mm256_madd_epi16(_mm256_maddubs_epi16(high, own), sixteens);
                *sum = _mm256_add_epi32(*sum, high);
                items = _mm256_and_si256(items, low);
            }
            let pairs = _mm256_maddubs_epi16(items, own);
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
        }
    }
    for (part, &sum) in sums.iter().enumerate() {
        // SAFETY: eight integers from there on belong to the row.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(part * LANES).cast(), sum) };
    }
}
