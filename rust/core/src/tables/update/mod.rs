//! Rows take steps. Every operation is rounded by itself, so all instructions give the same bytes.

#[cfg(target_arch = "x86_64")]
mod wide;

use super::steps::{AdamStep, Span, BETA1, BETA2, SPAN};
use super::table::Shared;
use crate::simd::{Level, SimdPath};

/// Rows take a step, with a gradient [rows, dim].
///
/// # Safety
/// The rows are distinct rows of the table, and nobody else refers to them.
pub(crate) unsafe fn step(simd: SimdPath, table: &Shared, rows: &[u32], gradients: &[f32], step: AdamStep) {
    assert!(gradients.len() == rows.len() * table.dim);
    // SAFETY: as the caller vouches, and the gradients are as many.
    unsafe { run(simd, table, rows, |_| 0, gradients.as_ptr(), &[step]) }
}

/// Rows take steps one after the other, each with gradient 0: those of `steps` after the first `from`, which ascend.
///
/// # Safety
/// As of `step`.
pub(super) unsafe fn replay(simd: SimdPath, table: &Shared, rows: &[u32], from: &[i32], steps: &[AdamStep]) {
    assert!(from.len() == rows.len());
    // SAFETY: as the caller vouches.
    unsafe { run(simd, table, rows, |n| from[n] as usize, std::ptr::null(), steps) }
}

/// Rows take the spans that begin with the steps `from`.
///
/// # Safety
/// As of `step`.
pub(super) unsafe fn estimate(simd: SimdPath, table: &Shared, rows: &[u32], from: &[i32], spans: &[Span]) {
    for (n, (&row, &from)) in rows.iter().zip(from).enumerate() {
        prefetch(table, rows.get(n + 2));
        // SAFETY: as the caller vouches.
        let (values, first, second) = unsafe { table.row(row) };
        for &span in spans[from as usize..].iter().step_by(SPAN) {
            match simd.level() {
                // SAFETY: a path of this level exists only if the processor has its instructions; all three are rows of one length.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 if table.dim >= wide::WIDE => unsafe {
                    wide::estimate_avx512(values, first, second, span)
                },
                // SAFETY: as above; who has AVX-512 has AVX2.
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 | Level::Avx512 => unsafe { wide::estimate_avx2(values, first, second, span) },
                _ => estimated(values, first, second, span),
            }
        }
    }
}

/// # Safety
/// The rows are distinct rows of the table, and nobody else refers to them; gradients are [rows, dim] or null.
#[inline]
unsafe fn run(
    simd: SimdPath,
    table: &Shared,
    rows: &[u32],
    from: impl Fn(usize) -> usize,
    gradients: *const f32,
    steps: &[AdamStep],
) {
    match simd.level() {
        // SAFETY: a path of this level exists only if the processor has its instructions; the caller vouches for the rows and
        // the gradients.
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { wide::run_avx2(table, rows, from, gradients, steps) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { wide::run_avx512(table, rows, from, gradients, steps) },
        _ => {
            for (n, &row) in rows.iter().enumerate() {
                // SAFETY: as the caller vouches.
                let (values, first, second) = unsafe { table.row(row) };
                for i in 0..table.dim {
                    // SAFETY: as the caller vouches.
                    let gradient = match gradients.is_null() {
                        true => 0.0,
                        false => unsafe { *gradients.add(n * table.dim + i) },
                    };
                    for step in &steps[from(n)..] {
                        element(&mut values[i], &mut first[i], &mut second[i], gradient, *step);
                    }
                }
            }
        }
    }
}

/// Asks for a row, which may lie anywhere, where that can be asked.
#[inline(always)]
fn prefetch(table: &Shared, row: Option<&u32>) {
    #[cfg(target_arch = "x86_64")]
    if let Some(&row) = row {
        wide::prefetch(table, row);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (table, row);
}

#[inline(always)]
fn estimated(values: &mut [f32], first: &mut [f32], second: &mut [f32], span: Span) {
    let length = values.len();
    let (first, second) = (&mut first[..length], &mut second[..length]);
    for i in 0..length {
        let (value, m, v) = (values[i], first[i], second[i]);
        let drift = span.weight_decay * value;
        let square = drift * drift;
        let root = (v * span.half + (1.0 - span.half) * square).sqrt() + span.eps;
        let inverse = 1.0 / root;
        let shrink = span.shrinking * inverse;
        let shrunk = value / (1.0 + shrink + 0.5 * shrink * shrink);
        values[i] = shrunk - span.momentum * m * inverse;
        first[i] = normal(drift + (m - drift) * span.decay1);
        second[i] = normal(v * span.decay2 + (1.0 - span.decay2) * square);
    }
}

#[inline(always)]
pub(super) fn element(value: &mut f32, first: &mut f32, second: &mut f32, gradient: f32, step: AdamStep) {
    let gradient = gradient + step.weight_decay * *value;
    *first = normal(*first + (gradient - *first) * (1.0 - BETA1));
    *second = normal(*second * BETA2 + (1.0 - BETA2) * gradient * gradient);
    *value -= step.rate * *first / (second.sqrt() + step.eps);
}

/// Subnormal numbers as 0: they mean nothing here and would slow every step that follows a hundredfold.
#[inline(always)]
fn normal(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE {
        0.0
    } else {
        x
    }
}
