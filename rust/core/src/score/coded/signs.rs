//! Signs against signs: exclusive or and population count.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::Words;
use crate::score::quantised::Totals;
use crate::score::{COLUMNS, LINE, ROWS};
use crate::simd::{Level, SimdPath};

/// Minus the number of differing bits.
pub fn sums(simd: SimdPath, queries: &[u32], lines: &[Words], totals: &mut Totals) {
    match simd.level() {
        Level::Portable => portable(queries, lines, totals),
        // SAFETY: the processor has the instructions, and there are ROWS words of queries to two lines of the panel.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 if is_x86_feature_detected!("avx512vpopcntdq") => unsafe { avx512(queries, lines, totals) },
        // SAFETY: as above; processors with AVX-512 have AVX2.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::Avx512 => unsafe { avx2(queries, lines, totals) },
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        Level::Neon => unsafe { neon(queries, lines, totals) },
    }
}

/// The path without instructions of its own; also the definition that the others are tested against.
fn portable(queries: &[u32], lines: &[Words], totals: &mut Totals) {
    *totals = Totals::ZERO;
    for (queries, lines) in queries.as_chunks::<ROWS>().0.iter().zip(lines.as_chunks::<2>().0) {
        for (query, totals) in queries.iter().zip(&mut totals.0) {
            for (item, total) in lines.iter().flat_map(|line| &line.0).zip(totals) {
                *total -= (query ^ item).count_ones() as i32;
            }
        }
    }
}

/// # Safety
/// ROWS words of `queries` belong to two of `lines`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vpopcntdq")]
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
            for (&item, sum) in items.iter().zip(sums) {
                *sum = _mm512_sub_epi32(*sum, _mm512_popcnt_epi32(_mm512_xor_si512(query, item)));
            }
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

/// Words whose counts a byte holds, eight each at most.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const FULL: usize = 31;

/// Bits of a byte are those of its halves, looked up in a table.
///
/// # Safety
/// As above.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2(queries: &[u32], lines: &[Words], totals: &mut Totals) {
    const TALL: usize = 4;
    const LANES: usize = 8;
    let table = _mm256_setr_epi8(
        0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
    );
    let low = _mm256_set1_epi8(15);
    let (bytes, pairs) = (_mm256_set1_epi8(1), _mm256_set1_epi16(1));
    *totals = Totals::ZERO;
    for (queries, lines) in queries.chunks(FULL * ROWS).zip(lines.chunks(FULL * 2)) {
        for top in (0..ROWS).step_by(TALL) {
            for half in 0..COLUMNS / LINE {
                let mut counts = [[_mm256_setzero_si256(); 2]; TALL];
                for (queries, lines) in queries.as_chunks::<ROWS>().0.iter().zip(lines.as_chunks::<2>().0) {
                    let line = lines[half].0.as_ptr();
                    // SAFETY: a line is two vectors, aligned.
                    let items = unsafe {
                        [
                            _mm256_load_si256(line.cast()),
                            _mm256_load_si256(line.add(LANES).cast()),
                        ]
                    };
                    for (&query, counts) in queries[top..].iter().zip(&mut counts) {
                        let query = _mm256_set1_epi32(query as i32);
                        for (&item, count) in items.iter().zip(counts) {
                            let differ = _mm256_xor_si256(query, item);
                            let lows = _mm256_shuffle_epi8(table, _mm256_and_si256(differ, low));
                            let highs = _mm256_and_si256(_mm256_srli_epi16::<4>(differ), low);
                            let both = _mm256_add_epi8(lows, _mm256_shuffle_epi8(table, highs));
                            *count = _mm256_add_epi8(*count, both);
                        }
                    }
                }
                for (row, counts) in totals.0[top..].iter_mut().zip(&counts) {
                    for (place, &counts) in counts.iter().enumerate() {
                        let counts = _mm256_madd_epi16(_mm256_maddubs_epi16(counts, bytes), pairs);
                        // SAFETY: half a row is 16 integers, two vectors; rows are aligned to 64 bytes.
                        unsafe {
                            let out = row.as_mut_ptr().add(half * LINE + place * LANES).cast();
                            _mm256_store_si256(out, _mm256_sub_epi32(_mm256_load_si256(out), counts));
                        }
                    }
                }
            }
        }
    }
}

/// # Safety
/// As above.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon(queries: &[u32], lines: &[Words], totals: &mut Totals) {
    const TALL: usize = 6;
    const LANES: usize = 4;
    *totals = Totals::ZERO;
    for (queries, lines) in queries.chunks(FULL * ROWS).zip(lines.chunks(FULL * 2)) {
        for top in (0..ROWS).step_by(TALL) {
            for left in (0..COLUMNS).step_by(2 * LANES) {
                let mut counts = [[vdupq_n_u8(0); 2]; TALL];
                for (queries, lines) in queries.as_chunks::<ROWS>().0.iter().zip(lines.as_chunks::<2>().0) {
                    let line = lines[left / LINE].0[left % LINE..].as_ptr();
                    // SAFETY: eight words from here on belong to the line.
                    let items = unsafe { [vld1q_u32(line), vld1q_u32(line.add(LANES))] };
                    for (&query, counts) in queries[top..].iter().zip(&mut counts) {
                        for (&item, count) in items.iter().zip(counts) {
                            let differ = vreinterpretq_u8_u32(veorq_u32(item, vdupq_n_u32(query)));
                            *count = vaddq_u8(*count, vcntq_u8(differ));
                        }
                    }
                }
                for (row, counts) in totals.0[top..].iter_mut().zip(&counts) {
                    for (place, &counts) in counts.iter().enumerate() {
                        let counts = vreinterpretq_s32_u32(vpaddlq_u16(vpaddlq_u8(counts)));
                        // SAFETY: eight integers from `left` on belong to the row.
                        unsafe {
                            let out = row.as_mut_ptr().add(left + place * LANES);
                            vst1q_s32(out, vsubq_s32(vld1q_s32(out), counts));
                        }
                    }
                }
            }
        }
    }
}
