//! AVX-512.

use std::arch::x86_64::*;

use super::{Goals, Share, LANES};
use crate::matrix::Matrix;

/// Sixteen rows side by side, a vector of partial sums each; these are transposed and added up together.
///
/// # Safety
/// The processor has the features; every id is a row of the table; `own` is as long as a row.
#[target_feature(enable = "avx512f,avx512dq,avx512vl,fma")]
pub unsafe fn products_avx512(own: &[f32], table: Matrix, ids: &[i64], out: &mut [f32]) {
    let dim = own.len();
    let whole = dim / LANES * LANES;
    let rest: __mmask16 = (1 << (dim - whole)) - 1;
    for (ids, out) in ids.chunks(LANES).zip(out.chunks_mut(LANES)) {
        let mut rows = [table.data.as_ptr(); LANES];
        for (row, &id) in rows.iter_mut().zip(ids) {
            // SAFETY: the id is a row of the table; lanes past the last id read row 0, which exists since an id does.
            *row = unsafe { table.data.as_ptr().add(id as usize * dim) };
        }
        let mut sums = [_mm512_setzero_ps(); LANES];
        let mut d = 0;
        while d < whole {
            // SAFETY: sixteen of the dim values of the vector and of each row.
            unsafe {
                let q = _mm512_loadu_ps(own.as_ptr().add(d));
                for (sum, row) in sums.iter_mut().zip(rows) {
                    *sum = _mm512_fmadd_ps(q, _mm512_loadu_ps(row.add(d)), *sum);
                }
            }
            d += LANES;
        }
        if rest != 0 {
            // SAFETY: masked loads touch only the values that are left of the vector and of each row.
            unsafe {
                let q = _mm512_maskz_loadu_ps(rest, own.as_ptr().add(d));
                for (sum, row) in sums.iter_mut().zip(rows) {
                    *sum = _mm512_fmadd_ps(q, _mm512_maskz_loadu_ps(rest, row.add(d)), *sum);
                }
            }
        }
        let filled = ((1u32 << out.len()) - 1) as __mmask16;
        // SAFETY: the mask has as many lanes as `out`.
        unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), filled, folded(&sums)) };
    }
}

/// The sums of sixteen vectors as one vector.
#[inline]
#[target_feature(enable = "avx512f")]
fn folded(sums: &[__m512; LANES]) -> __m512 {
    let pairs: [__m512; 8] = std::array::from_fn(|n| {
        let (a, b) = (sums[2 * n], sums[2 * n + 1]);
        _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b))
    });
    let quads: [__m512; 4] = std::array::from_fn(|n| {
        let (a, b) = (_mm512_castps_pd(pairs[2 * n]), _mm512_castps_pd(pairs[2 * n + 1]));
        let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
        _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
    });
    let halves: [__m512; 2] = std::array::from_fn(|n| {
        let (a, b) = (quads[2 * n], quads[2 * n + 1]);
        _mm512_add_ps(
            _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
            _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
        )
    });
    _mm512_add_ps(
        _mm512_shuffle_f32x4::<0b10_00_10_00>(halves[0], halves[1]),
        _mm512_shuffle_f32x4::<0b11_01_11_01>(halves[0], halves[1]),
    )
}

/// A sum stays in registers, up to 128 dimensions at a time.
///
/// # Safety
/// The processor has the features; every row of a share within the bounds, which ascend, is one of the matrix.
#[target_feature(enable = "avx512f,avx512dq,avx512vl,fma")]
pub unsafe fn weighted_sums_avx512(shares: &[Share], bounds: &[u32], matrix: Matrix, goals: Goals, out: &mut [f32]) {
    let mut d = 0;
    while d < matrix.dim {
        // SAFETY: each call sums as many vectors as hold the dimensions that are left, eight at most.
        d += unsafe {
            match (matrix.dim - d).div_ceil(LANES) {
                1 => part::<1>(shares, bounds, matrix, d, goals, out),
                2 => part::<2>(shares, bounds, matrix, d, goals, out),
                3 => part::<3>(shares, bounds, matrix, d, goals, out),
                4..=7 => part::<4>(shares, bounds, matrix, d, goals, out),
                _ => part::<8>(shares, bounds, matrix, d, goals, out),
            }
        };
    }
}

/// Dimensions from `d` on in `N` vectors, the last of which may be short; how many that were.
///
/// # Safety
/// As above, and more than `16 (N - 1)` dimensions are left.
#[inline]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,fma")]
unsafe fn part<const N: usize>(
    shares: &[Share],
    bounds: &[u32],
    matrix: Matrix,
    d: usize,
    goals: Goals,
    out: &mut [f32],
) -> usize {
    let dim = matrix.dim;
    let last = (dim - d - (N - 1) * LANES).min(LANES);
    let rest = ((1u32 << last) - 1) as __mmask16;
    for (place, bounds) in bounds.windows(2).enumerate() {
        let row = goals.map_or(place, |(rows, first)| rows[place] as usize - first);
        let out = &mut out[row * dim..][..dim];
        let mut sums = [_mm512_setzero_ps(); N];
        for share in &shares[bounds[0] as usize..bounds[1] as usize] {
            let weight = _mm512_set1_ps(share.weight);
            // SAFETY: N - 1 whole vectors and the masked one lie within the row.
            unsafe {
                let row = matrix.data.as_ptr().add(share.row as usize * dim + d);
                for (n, sum) in sums.iter_mut().enumerate().take(N - 1) {
                    *sum = _mm512_fmadd_ps(weight, _mm512_loadu_ps(row.add(n * LANES)), *sum);
                }
                let x = _mm512_maskz_loadu_ps(rest, row.add((N - 1) * LANES));
                sums[N - 1] = _mm512_fmadd_ps(weight, x, sums[N - 1]);
            }
        }
        for (n, sum) in sums.into_iter().enumerate() {
            let mask = if n == N - 1 { rest } else { !0 };
            // SAFETY: as above, of `out`.
            unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr().add(d + n * LANES), mask, sum) };
        }
    }
    (N - 1) * LANES + last
}
