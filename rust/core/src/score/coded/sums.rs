//! Sums over the lanes of a tile of queries and a panel.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::{signs, CodePanels, CodeTile, Lane, Words};
use crate::score::quantised::Totals;
use crate::score::{COLUMNS, LINE, ROWS};
use crate::simd::{Level, SimdPath};

impl SimdPath {
    /// Sums of products of a tile of queries and an opened panel: of unsigned bytes and signed ones, or minus the differing signs.
    #[inline]
    pub fn code_sums(self, queries: &CodeTile, panels: &CodePanels, lines: &[Words], totals: &mut Totals) {
        assert_eq!(queries.lanes.len(), panels.count * ROWS, "tile and panels have one dim");
        let lines = &lines[..panels.count * 2];
        match panels.lanes {
            Lane::Signs => signs::sums(self, &queries.lanes, lines, totals),
            Lane::Bytes => self.byte_sums(&queries.lanes, lines, panels.shift == 0, totals),
        }
    }

    /// The same of bytes; `whole` if those of items may pass 15.
    fn byte_sums(self, queries: &[u32], lines: &[Words], whole: bool, totals: &mut Totals) {
        #[cfg(target_arch = "x86_64")]
        if self.has_bytes() {
            // SAFETY: the processor has the instructions, and there are ROWS lanes of queries to two lines of the panel.
            return unsafe { avx512(queries, lines, totals) };
        }
        match (self.level(), whole) {
            (Level::Portable, _) => portable(queries, lines, totals),
            // SAFETY: a path of this level exists only if the processor has its instructions, as those with AVX-512 have AVX2; the sizes
            // are as above.
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2 | Level::Avx512, false) => unsafe { avx2::<false>(queries, lines, totals) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2 | Level::Avx512, true) => unsafe { avx2::<true>(queries, lines, totals) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            (Level::Neon, false) => unsafe { neon::<false>(queries, lines, totals) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            (Level::Neon, true) => unsafe { neon::<true>(queries, lines, totals) },
        }
    }
}

/// The path without instructions of its own; also the definition that the others are tested against.
fn portable(queries: &[u32], lines: &[Words], totals: &mut Totals) {
    *totals = Totals::ZERO;
    for (queries, lines) in queries.as_chunks::<ROWS>().0.iter().zip(lines.as_chunks::<2>().0) {
        for (query, totals) in queries.iter().zip(&mut totals.0) {
            let query = query.to_le_bytes().map(|byte| i32::from(byte as i8));
            for (&item, total) in lines.iter().flat_map(|line| &line.0).zip(totals) {
                let item = item.to_le_bytes().map(i32::from);
                *total += query.iter().zip(item).map(|(query, item)| query * item).sum::<i32>();
            }
        }
    }
}

/// # Safety
/// ROWS lanes of `queries` belong to two of `lines`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn avx512(queries: &[u32], lines: &[Words], totals: &mut Totals) {
    let mut sums = [[_mm512_setzero_si512(); 2]; ROWS];
    for (queries, lines) in queries.as_chunks::<ROWS>().0.iter().zip(lines.as_chunks::<2>().0) {
        // SAFETY: lines are 64 bytes, aligned.
        let items = unsafe {
            [
                _mm512_load_si512(lines[0].0.as_ptr().cast()),
                _mm512_load_si512(lines[1].0.as_ptr().cast()),
            ]
        };
        for (&query, sums) in queries.iter().zip(&mut sums) {
            let query = _mm512_set1_epi32(query as i32);
            sums[0] = _mm512_dpbusd_epi32(sums[0], items[0], query);
            sums[1] = _mm512_dpbusd_epi32(sums[1], items[1], query);
        }
    }
    for (row, sums) in totals.0.iter_mut().zip(&sums) {
        // SAFETY: a row is 32 integers, two vectors, aligned to 64 bytes.
        unsafe {
            _mm512_store_si512(row.as_mut_ptr().cast(), sums[0]);
            _mm512_store_si512(row.as_mut_ptr().add(LINE).cast(), sums[1]);
        }
    }
}

/// Pairs of products are summed in 16 bits, which holds 2 * 15 * 127: bytes past 15 are taken in two halves.
///
/// # Safety
/// As above.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2<const WHOLE: bool>(queries: &[u32], lines: &[Words], totals: &mut Totals) {
    const TALL: usize = 4;
    const LANES: usize = 8;
    let (ones, sixteens, low) = (_mm256_set1_epi16(1), _mm256_set1_epi16(16), _mm256_set1_epi8(15));
    for top in (0..ROWS).step_by(TALL) {
        for half in 0..COLUMNS / LINE {
            let mut sums = [[_mm256_setzero_si256(); 2]; TALL];
            for (queries, lines) in queries.as_chunks::<ROWS>().0.iter().zip(lines.as_chunks::<2>().0) {
                let line = lines[half].0.as_ptr();
                // SAFETY: a line is two vectors, aligned.
                let items = unsafe {
                    [
                        _mm256_load_si256(line.cast()),
                        _mm256_load_si256(line.add(LANES).cast()),
                    ]
                };
                for (&query, sums) in queries[top..].iter().zip(&mut sums) {
                    let query = _mm256_set1_epi32(query as i32);
                    for (&item, sum) in items.iter().zip(sums) {
                        if WHOLE {
                            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(item), low);
                            let high = _mm256_madd_epi16(_mm256_maddubs_epi16(high, query), sixteens);
                            *sum = _mm256_add_epi32(*sum, high);
                        }
                        let item = if WHOLE { _mm256_and_si256(item, low) } else { item };
                        let pairs = _mm256_maddubs_epi16(item, query);
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
                    }
                }
            }
            for (row, sums) in totals.0[top..].iter_mut().zip(&sums) {
                for (place, &sums) in sums.iter().enumerate() {
                    // SAFETY: half a row is 16 integers, two vectors; rows are aligned to 64 bytes.
                    unsafe { _mm256_store_si256(row.as_mut_ptr().add(half * LINE + place * LANES).cast(), sums) };
                }
            }
        }
    }
}

/// Signed by signed: bytes past 15 are taken in two halves, so that none is past 127.
///
/// # Safety
/// As above.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon<const WHOLE: bool>(queries: &[u32], lines: &[Words], totals: &mut Totals) {
    const TALL: usize = 6;
    const LANES: usize = 4;
    /// Sums of four products each.
    #[inline]
    #[target_feature(enable = "neon")]
    fn fours(item: int8x16_t, query: int8x16_t) -> int32x4_t {
        let low = vpaddlq_s16(vmull_s8(vget_low_s8(item), vget_low_s8(query)));
        let high = vpaddlq_s16(vmull_high_s8(item, query));
        vpaddq_s32(low, high)
    }
    for top in (0..ROWS).step_by(TALL) {
        for left in (0..COLUMNS).step_by(2 * LANES) {
            let mut sums = [[vdupq_n_s32(0); 2]; TALL];
            for (queries, lines) in queries.as_chunks::<ROWS>().0.iter().zip(lines.as_chunks::<2>().0) {
                let line = lines[left / LINE].0[left % LINE..].as_ptr();
                // SAFETY: eight lanes from here on belong to the line.
                let items = unsafe {
                    [
                        vreinterpretq_u8_u32(vld1q_u32(line)),
                        vreinterpretq_u8_u32(vld1q_u32(line.add(LANES))),
                    ]
                };
                for (&query, sums) in queries[top..].iter().zip(&mut sums) {
                    let query = vreinterpretq_s8_u32(vdupq_n_u32(query));
                    for (&item, sum) in items.iter().zip(sums) {
                        if WHOLE {
                            let high = fours(vreinterpretq_s8_u8(vshrq_n_u8::<4>(item)), query);
                            *sum = vaddq_s32(*sum, vshlq_n_s32::<4>(high));
                        }
                        let item = if WHOLE { vandq_u8(item, vdupq_n_u8(15)) } else { item };
                        *sum = vaddq_s32(*sum, fours(vreinterpretq_s8_u8(item), query));
                    }
                }
            }
            for (row, sums) in totals.0[top..].iter_mut().zip(&sums) {
                for (place, &sums) in sums.iter().enumerate() {
                    // SAFETY: eight integers from `left` on belong to the row.
                    unsafe { vst1q_s32(row.as_mut_ptr().add(left + place * LANES), sums) };
                }
            }
        }
    }
}
