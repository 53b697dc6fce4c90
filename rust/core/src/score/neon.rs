//! NEON kernels.

use std::arch::aarch64::*;

use super::{Form, Line, Tile, LINE, ROWS};

/// # Safety
/// The processor has NEON; `queries` holds dim x ROWS floats and `panel` dim x COLUMNS.
#[target_feature(enable = "neon")]
pub unsafe fn tile(form: Form, queries: &[f32], panel: &[Line], bias: &[Line; 2], out: &mut Tile) {
    match form {
        Form::Dot => parts::<false>(queries, panel, bias, 2, out),
        Form::Distance => parts::<true>(queries, panel, bias, 2, out),
    }
}

/// The first half of the columns.
///
/// # Safety
/// As above.
#[target_feature(enable = "neon")]
pub unsafe fn half_tile(queries: &[f32], panel: &[Line], bias: &[Line; 2], out: &mut Tile) {
    parts::<false>(queries, panel, bias, 1, out);
}

/// Four parts of 6 x 16, each in 24 of the 32 registers; two of them for one half of the columns.
#[target_feature(enable = "neon")]
fn parts<const DISTANCE: bool>(queries: &[f32], panel: &[Line], bias: &[Line; 2], halves: usize, out: &mut Tile) {
    const PART: usize = 6;
    let dim = queries.len() / ROWS;
    debug_assert_eq!(panel.len(), dim * 2);
    for top in [0, PART] {
        for half in 0..halves {
            // SAFETY: a Line is 16 floats: four vectors of 4.
            let start: [float32x4_t; 4] =
                std::array::from_fn(|part| unsafe { vld1q_f32(bias[half].0.as_ptr().add(4 * part)) });
            let mut sums = [start; PART];
            for d in 0..dim {
                // SAFETY: queries hold dim x ROWS floats and top + PART <= ROWS; line 2 * d + half is one of the
                // panel's 2 * dim.
                unsafe {
                    let x = panel.as_ptr().add(2 * d + half).cast::<f32>();
                    let items: [float32x4_t; 4] = std::array::from_fn(|part| vld1q_f32(x.add(4 * part)));
                    let q = queries.as_ptr().add(d * ROWS + top);
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let query = vdupq_n_f32(*q.add(row));
                        for part in 0..4 {
                            sums[part] = if DISTANCE {
                                let difference = vsubq_f32(query, items[part]);
                                vfmsq_f32(sums[part], difference, difference)
                            } else {
                                vfmaq_f32(sums[part], query, items[part])
                            };
                        }
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                let row = &mut out.0[top + row][half * LINE..(half + 1) * LINE];
                for part in 0..4 {
                    // SAFETY: the slice is 16 floats: four vectors of 4.
                    unsafe { vst1q_f32(row.as_mut_ptr().add(4 * part), sums[part]) };
                }
            }
        }
    }
}
