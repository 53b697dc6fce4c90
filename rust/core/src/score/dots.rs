//! Scores of one query and a few items, wherever they stand.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
use super::LINE;
use crate::matrix::Matrix;
use crate::simd::{compiled, Level, SimdPath};

impl SimdPath {
    /// Scores of one query and the items `ids`, each of which must be a row of `items` (and have a bias, if there are
    /// any).
    pub fn dots(self, query: &[f32], items: Matrix, bias: Option<&[f32]>, ids: &[i32], out: &mut [f32]) {
        assert!(query.len() == items.dim && ids.len() == out.len());
        assert!(bias.is_none_or(|bias| bias.len() == items.rows));
        assert!(self.within(ids, items.rows.max(1)));
        match self.level() {
            // SAFETY: a path of this level exists only if the processor has its instructions, and ids are rows of the matrix, as
            // asserted.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { dots_avx512(query, items, bias, ids, out) },
            _ => self.plain_dots(query, items, bias, ids, out),
        }
    }
}

compiled! {
    fn plain_dots(query: &[f32], items: Matrix, bias: Option<&[f32]>, ids: &[i32], out: &mut [f32]) = dots;
    /// Whether all ids are those of items.
    pub(crate) fn within(ids: &[i32], items: usize) -> bool = within;
}

/// Whether all ids are those of items.
#[inline(always)]
fn within(ids: &[i32], items: usize) -> bool {
    ids.iter().fold(0, |largest, &id| largest.max(id as u32)) < items as u32 || ids.is_empty()
}

/// Eight items at a time, so that eight chains run side by side.
#[inline(always)]
fn dots(query: &[f32], items: Matrix, bias: Option<&[f32]>, ids: &[i32], out: &mut [f32]) {
    const LANES: usize = 8;
    let start = |id: i32| bias.map_or(0.0, |bias| bias[id as usize]);
    let whole = ids.len() / LANES * LANES;
    for (ids, out) in ids.chunks_exact(LANES).zip(out.chunks_exact_mut(LANES)) {
        let rows: [&[f32]; LANES] = std::array::from_fn(|lane| &items.row(ids[lane] as usize)[..query.len()]);
        let mut sums: [f32; LANES] = std::array::from_fn(|lane| start(ids[lane]));
        for (d, &q) in query.iter().enumerate() {
            for lane in 0..LANES {
                sums[lane] = q.mul_add(rows[lane][d], sums[lane]);
            }
        }
        out.copy_from_slice(&sums);
    }
    for (&id, out) in ids[whole..].iter().zip(&mut out[whole..]) {
        let row = items.row(id as usize);
        *out = query.iter().zip(row).fold(start(id), |sum, (&q, &x)| q.mul_add(x, sum));
    }
}

/// Sixteen items at a time: four dimensions of each are loaded and transposed, so that a vector holds one dimension of
/// all sixteen.
///
/// # Safety
/// The processor has the features; every id is a row of `items`, and of `bias`; `query` is as long as a row.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,fma")]
pub unsafe fn dots_avx512(query: &[f32], items: Matrix, bias: Option<&[f32]>, ids: &[i32], out: &mut [f32]) {
    let dim = query.len();
    // Short rows are found sooner without: the processor looks far enough ahead by itself.
    let mut ahead = if dim < 4 * LINE {
        [].chunks(LINE)
    } else {
        ids.chunks(LINE)
    };
    ahead.next();
    for (ids, out) in ids.chunks(LINE).zip(out.chunks_mut(LINE)) {
        let ahead = ahead.next().unwrap_or_default();
        let mut rows = [items.data.as_ptr(); LINE];
        let mut start = [0.0f32; LINE];
        for (lane, &id) in ids.iter().enumerate() {
            // SAFETY: the id is a row of items; lanes past the last id read row 0, which exists if any id does.
            rows[lane] = unsafe { items.data.as_ptr().add(id as usize * dim) };
            if let Some(bias) = bias {
                start[lane] = bias[id as usize];
            }
        }
        // SAFETY: 16 floats.
        let mut sums = unsafe { _mm512_loadu_ps(start.as_ptr()) };
        let mut d = 0;
        while d + 4 <= dim {
            if d % LINE == 0 {
                for &id in ahead {
                    let next = items.data.as_ptr().wrapping_add(id as usize * dim + d);
                    _mm_prefetch::<_MM_HINT_T0>(next.cast());
                }
            }
            // SAFETY: dimensions d to d + 3 of rows of dim values, and of the query.
            unsafe {
                let columns = transposed(&rows, |row| _mm_loadu_ps(row.add(d)));
                for (offset, column) in columns.into_iter().enumerate() {
                    sums = _mm512_fmadd_ps(_mm512_set1_ps(*query.get_unchecked(d + offset)), column, sums);
                }
            }
            d += 4;
        }
        if d < dim {
            let mask = (1u8 << (dim - d)) - 1;
            // SAFETY: the masked load touches only the dim - d values that are left of a row.
            let columns = unsafe { transposed(&rows, |row| _mm_maskz_loadu_ps(mask, row.add(d))) };
            for (&q, column) in query[d..].iter().zip(columns) {
                sums = _mm512_fmadd_ps(_mm512_set1_ps(q), column, sums);
            }
        }
        let mut scores = [0.0f32; LINE];
        // SAFETY: 16 floats.
        unsafe { _mm512_storeu_ps(scores.as_mut_ptr(), sums) };
        out.copy_from_slice(&scores[..out.len()]);
    }
}

/// Four values of each of sixteen rows, as four vectors of one value of each.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
fn transposed(rows: &[*const f32; LINE], load: impl Fn(*const f32) -> __m128) -> [__m512; 4] {
    let part: [__m512; 4] = std::array::from_fn(|a| {
        let low = _mm512_castps128_ps512(load(rows[a]));
        let low = _mm512_insertf32x4::<1>(low, load(rows[a + 4]));
        let low = _mm512_insertf32x4::<2>(low, load(rows[a + 8]));
        _mm512_insertf32x4::<3>(low, load(rows[a + 12]))
    });
    let pairs = [
        _mm512_castps_pd(_mm512_unpacklo_ps(part[0], part[1])),
        _mm512_castps_pd(_mm512_unpackhi_ps(part[0], part[1])),
        _mm512_castps_pd(_mm512_unpacklo_ps(part[2], part[3])),
        _mm512_castps_pd(_mm512_unpackhi_ps(part[2], part[3])),
    ];
    [
        _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[0], pairs[2])),
        _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[0], pairs[2])),
        _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[1], pairs[3])),
        _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[1], pairs[3])),
    ]
}
