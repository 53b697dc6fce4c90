//! Tiles of queries against the panels: what may reach its threshold is caught.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
use super::amx;
#[cfg(target_arch = "x86_64")]
use super::sums::{sums, Totals, BATCH};
use super::{BytePanels, ByteTile, Catch};
use crate::score::{Goals, ROWS};
#[cfg(target_arch = "x86_64")]
use crate::score::{COLUMNS, LINE};
use crate::simd::SimdPath;

/// Makes room in the full catch of a query; returns the query's threshold from then on.
pub trait Net {
    fn relieve(&mut self, place: usize, threshold: f32, catch: &mut Catch) -> f32;
}

impl SimdPath {
    /// Catches every item whose score may reach its query's threshold, tile by tile; only with
    /// [`SimdPath::has_bytes`].
    pub fn scan_bytes(
        self,
        queries: &[ByteTile],
        panels: &BytePanels,
        goals: &mut [Goals],
        catches: &mut [Catch],
        net: &mut impl Net,
    ) {
        queries.iter().for_each(|queries| self.check_bytes(queries, panels));
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the instructions, and sizes and layout agree, as checked.
        unsafe {
            if panels.chunk > 0 {
                scan_bytes::<true>(queries, panels, goals, catches, net);
            } else {
                scan_bytes::<false>(queries, panels, goals, catches, net);
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = (goals, catches, net);
        }
    }

    pub(super) fn check_bytes(self, queries: &ByteTile, panels: &BytePanels) {
        assert_eq!(
            queries.bytes.len(),
            panels.groups * ROWS,
            "tile and panels have one dim"
        );
        assert!(self.has_bytes());
        assert!(panels.chunk == 0 || self.has_tiles() && panels.groups.is_multiple_of(panels.chunk));
    }
}

/// [`SimdPath::scan_bytes`].
///
/// # Safety
/// The processor has the features, and with `TILES` those of [`amx`]; each of `queries` holds panels.groups x ROWS
/// lanes, laid out as `TILES` says.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,popcnt,bmi1,bmi2")]
pub unsafe fn scan_bytes<const TILES: bool>(
    queries: &[ByteTile],
    panels: &BytePanels,
    goals: &mut [Goals],
    catches: &mut [Catch],
    net: &mut impl Net,
) {
    // SAFETY: the caller's word.
    let _tiles = TILES.then(|| unsafe { amx::configured(panels.chunk) });
    let mut totals = [Totals::ZERO; BATCH];
    for first in (0..panels.count()).step_by(BATCH) {
        let range = first..panels.count().min(first + BATCH);
        // A batch stays in L1 while all queries pass over it.
        for (tile, (queries, goals)) in queries.iter().zip(&mut *goals).enumerate() {
            // SAFETY: 16 floats each, aligned to 64 bytes by their structure.
            let (lengths, thresholds) = unsafe {
                (
                    _mm512_load_ps(goals.lengths.as_ptr()),
                    _mm512_load_ps(goals.thresholds.as_ptr()),
                )
            };
            let (mut batch, mut len) = ([0; BATCH], 0);
            for panel in range.clone() {
                let length = _mm512_set1_ps(panels.bounds[panel].length);
                let bound = _mm512_fmadd_ps(lengths, length, _mm512_set1_ps(f32::MIN_POSITIVE));
                batch[len] = panel;
                len += usize::from(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(bound, thresholds) != 0);
            }
            let batch = &batch[..len];
            // SAFETY: the panels exist, and the rest is the caller's word.
            unsafe { sums::<TILES>(queries, panels, batch, &mut totals) };
            for (&panel, totals) in batch.iter().zip(&totals) {
                sift(queries, panels, panel, totals, goals, catches, tile * ROWS, net);
            }
        }
    }
}

/// Catches the items of a panel whose scores may reach their row's threshold; the tile's catches begin at `first`.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::too_many_arguments)]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,popcnt,bmi1,bmi2")]
fn sift(
    queries: &ByteTile,
    panels: &BytePanels,
    panel: usize,
    totals: &Totals,
    goals: &mut Goals,
    catches: &mut [Catch],
    first: usize,
    net: &mut impl Net,
) {
    #[repr(C, align(64))]
    struct Ints([i32; LINE]);
    #[repr(C, align(64))]
    struct Floats([f32; LINE]);

    let bounds = &panels.bounds[panel];
    // SAFETY: arrays of 16 floats, aligned to 64 bytes by their structures.
    let (inverse_scales, scales, per_length, per_error, thresholds) = unsafe {
        (
            _mm512_load_ps(queries.inverse_scales.as_ptr()),
            _mm512_load_ps(queries.scales.as_ptr()),
            _mm512_load_ps(queries.per_length.as_ptr()),
            _mm512_load_ps(queries.per_error.as_ptr()),
            _mm512_load_ps(goals.thresholds.as_ptr()),
        )
    };
    // The least integer sum whose score can reach the threshold: (threshold - error) / scales, less what computing
    // this in float32 can be off by, less 1 since the comparison is strict.
    let error = _mm512_fmadd_ps(
        per_length,
        _mm512_set1_ps(bounds.length),
        _mm512_fmadd_ps(
            per_error,
            _mm512_set1_ps(bounds.error),
            _mm512_set1_ps(f32::MIN_POSITIVE),
        ),
    );
    let inverse = _mm512_mul_ps(inverse_scales, _mm512_set1_ps(bounds.inverse_scale));
    let limit = _mm512_mul_ps(_mm512_sub_ps(thresholds, error), inverse);
    let size = _mm512_mul_ps(_mm512_add_ps(_mm512_abs_ps(thresholds), error), inverse);
    let slack = _mm512_fmadd_ps(size, _mm512_set1_ps(1e-6), _mm512_set1_ps(1.5));
    let limit = _mm512_min_ps(_mm512_sub_ps(limit, slack), _mm512_set1_ps(2e9));
    let limit = _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(limit);
    let mut limits = Ints([0; LINE]);
    // SAFETY: 16 integers, aligned to 64 bytes.
    unsafe { _mm512_store_si512(limits.0.as_mut_ptr().cast(), limit) };
    // Without the barrier the limits are taken apart in registers, on the port that comparisons need.
    let limits = std::hint::black_box(&limits);
    // A bit for each pair of columns (c, c + 16), four rows a word.
    let mut words = [0u64; ROWS / 4];
    for (row, sums) in totals.0.iter().enumerate() {
        // SAFETY: 32 integers, aligned to 64 bytes.
        let pair = unsafe {
            _mm512_max_epi32(
                _mm512_load_si512(sums.as_ptr().cast()),
                _mm512_load_si512(sums.as_ptr().add(LINE).cast()),
            )
        };
        let reached = _mm512_cmpgt_epi32_mask(pair, _mm512_set1_epi32(limits.0[row]));
        words[row / 4] |= u64::from(reached) << (16 * (row % 4));
    }
    if words[0] | words[1] | words[2] == 0 {
        return;
    }
    // A bit a row: the top bit of each of a word's parts that is not 0, put together.
    const LOW: u64 = 0x7FFF_7FFF_7FFF_7FFF;
    let mut rows = words.iter().enumerate().fold(0, |rows, (part, word)| {
        rows | _pext_u64(((word & LOW) + LOW) | word, !LOW) << (4 * part)
    });
    let (mut row_errors, mut row_scales) = (Floats([0.0; LINE]), Floats([0.0; LINE]));
    // SAFETY: 16 floats each, aligned to 64 bytes.
    unsafe {
        _mm512_store_ps(row_errors.0.as_mut_ptr(), error);
        let scales = _mm512_mul_ps(scales, _mm512_set1_ps(bounds.scale));
        _mm512_store_ps(row_scales.0.as_mut_ptr(), scales);
    }
    let (row_errors, row_scales) = (std::hint::black_box(&row_errors), std::hint::black_box(&row_scales));
    let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    while rows != 0 {
        let row = rows.trailing_zeros() as usize;
        rows &= rows - 1;
        let catch = &mut catches[first + row];
        assert!(catch.has_room());
        let limit = _mm512_set1_epi32(limits.0[row]);
        let (error, scale) = (_mm512_set1_ps(row_errors.0[row]), _mm512_set1_ps(row_scales.0[row]));
        for half in 0..2 {
            // SAFETY: the vector lies within the tile's row. The catch has room for two vectors and 16 entries more.
            unsafe {
                let sums = _mm512_load_si512(totals.0[row].as_ptr().add(half * LINE).cast());
                let mask = _mm512_cmpgt_epi32_mask(sums, limit);
                let start = _mm512_set1_epi32((panel * COLUMNS + half * LINE) as i32);
                let positions = _mm512_maskz_compress_epi32(mask, _mm512_add_epi32(start, lanes));
                _mm512_storeu_si512(catch.positions.as_mut_ptr().add(catch.len).cast(), positions);
                let scores = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_maskz_compress_epi32(mask, sums)), scale);
                _mm512_storeu_ps(catch.lows.as_mut_ptr().add(catch.len), _mm512_sub_ps(scores, error));
                _mm512_storeu_ps(catch.ups.as_mut_ptr().add(catch.len), _mm512_add_ps(scores, error));
                catch.len += mask.count_ones() as usize;
            }
        }
        if catch.len > catch.full {
            goals.thresholds[row] = net.relieve(first + row, goals.thresholds[row], catch);
        }
    }
}
