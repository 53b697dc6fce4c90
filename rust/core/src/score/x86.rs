//! AVX2+FMA and AVX-512 kernels.

use std::arch::x86_64::*;

use super::{portable, Form, Line, Matrix, Tile, COLUMNS, LINE, ROWS};

#[target_feature(enable = "avx2,fma")]
pub fn dots_fma(query: &[f32], items: Matrix, bias: Option<&[f32]>, ids: &[i32], out: &mut [f32]) {
    portable::dots(query, items, bias, ids, out);
}

/// # Safety
/// The processor has AVX-512F; `queries` holds dim x ROWS floats and `panel` dim x COLUMNS.
#[target_feature(enable = "avx512f")]
pub unsafe fn tile_avx512(form: Form, queries: &[f32], panel: &[Line], bias: &[Line; 2], out: &mut Tile) {
    match form {
        Form::Dot => tile512::<false>(queries, panel, bias, out),
        Form::Distance => tile512::<true>(queries, panel, bias, out),
    }
}

#[target_feature(enable = "avx512f")]
fn tile512<const DISTANCE: bool>(queries: &[f32], panel: &[Line], bias: &[Line; 2], out: &mut Tile) {
    let mut sums = sums512::<DISTANCE>(queries, panel, bias);
    for (row, sums) in out.0.iter_mut().zip(&mut sums) {
        // SAFETY: a row of the tile is 32 floats, two vectors; Tile is aligned to 64 bytes and so is each of its rows.
        unsafe {
            _mm512_store_ps(row.as_mut_ptr(), sums[0]);
            _mm512_store_ps(row.as_mut_ptr().add(LINE), sums[1]);
        }
    }
}

/// The 12 x 32 sums, in 24 registers.
#[inline]
#[target_feature(enable = "avx512f")]
fn sums512<const DISTANCE: bool>(queries: &[f32], panel: &[Line], bias: &[Line; 2]) -> [[__m512; 2]; ROWS] {
    let dim = queries.len() / ROWS;
    debug_assert_eq!(panel.len(), dim * 2);
    // SAFETY: a Line is 16 floats, aligned to 64 bytes.
    let start = unsafe { [_mm512_load_ps(bias[0].0.as_ptr()), _mm512_load_ps(bias[1].0.as_ptr())] };
    let mut sums = [start; ROWS];
    let (mut q, mut x) = (queries.as_ptr(), panel.as_ptr().cast::<f32>());
    for _ in 0..dim {
        // SAFETY: queries hold dim x ROWS floats and the panel dim x COLUMNS in aligned lines; both pointers advance by
        // one such row in each of dim steps.
        unsafe {
            let items = [_mm512_load_ps(x), _mm512_load_ps(x.add(LINE))];
            for (row, sums) in sums.iter_mut().enumerate() {
                let query = _mm512_set1_ps(*q.add(row));
                for half in 0..2 {
                    sums[half] = if DISTANCE {
                        let difference = _mm512_sub_ps(query, items[half]);
                        _mm512_fnmadd_ps(difference, difference, sums[half])
                    } else {
                        _mm512_fmadd_ps(query, items[half], sums[half])
                    };
                }
            }
            q = q.add(ROWS);
            x = x.add(COLUMNS);
        }
    }
    sums
}

/// # Safety
/// The processor has AVX2 and FMA; `queries` holds dim x ROWS floats and `panel` dim x COLUMNS.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn tile_avx2(form: Form, queries: &[f32], panel: &[Line], bias: &[Line; 2], out: &mut Tile) {
    match form {
        Form::Dot => tile256::<false>(queries, panel, bias, out),
        Form::Distance => tile256::<true>(queries, panel, bias, out),
    }
}

/// Four parts of 6 x 16, each in 12 of the 16 registers.
#[target_feature(enable = "avx2,fma")]
fn tile256<const DISTANCE: bool>(queries: &[f32], panel: &[Line], bias: &[Line; 2], out: &mut Tile) {
    const PART: usize = 6;
    let dim = queries.len() / ROWS;
    debug_assert_eq!(panel.len(), dim * 2);
    for top in [0, PART] {
        for half in 0..2 {
            // SAFETY: a Line is 16 floats: two vectors of 8.
            let start = unsafe {
                let bias = bias[half].0.as_ptr();
                [_mm256_loadu_ps(bias), _mm256_loadu_ps(bias.add(8))]
            };
            let mut sums = [start; PART];
            for d in 0..dim {
                // SAFETY: queries hold dim x ROWS floats and top + PART <= ROWS; line 2 * d + half is one of the
                // panel's 2 * dim.
                unsafe {
                    let x = panel.as_ptr().add(2 * d + half).cast::<f32>();
                    let items = [_mm256_loadu_ps(x), _mm256_loadu_ps(x.add(8))];
                    let q = queries.as_ptr().add(d * ROWS + top);
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let query = _mm256_set1_ps(*q.add(row));
                        for part in 0..2 {
                            sums[part] = if DISTANCE {
                                let difference = _mm256_sub_ps(query, items[part]);
                                _mm256_fnmadd_ps(difference, difference, sums[part])
                            } else {
                                _mm256_fmadd_ps(query, items[part], sums[part])
                            };
                        }
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                let row = &mut out.0[top + row][half * LINE..(half + 1) * LINE];
                // SAFETY: the slice is 16 floats: two vectors of 8.
                unsafe {
                    _mm256_storeu_ps(row.as_mut_ptr(), sums[0]);
                    _mm256_storeu_ps(row.as_mut_ptr().add(8), sums[1]);
                }
            }
        }
    }
}
