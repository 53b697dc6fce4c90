//! The slopes of Bayesian personalised ranking.

use std::ops::Range;

use super::pass::Asked;
use crate::math;
use crate::matrix::Matrix;
use crate::simd::{compiled, SimdPath};

/// Partial sums of a product.
const LANES: usize = 16;

/// The slopes of rows of users and their items, the positive first, and their loss.
pub fn pair_slopes(
    simd: SimdPath,
    [users, items]: [Matrix; 2],
    asked: Asked,
    rows: Range<usize>,
    gaps: &mut Vec<f32>,
    slopes: &mut [f32],
) -> f64 {
    let width = asked.width;
    gaps.clear();
    for row in rows {
        let ids = &asked.items[row * width..(row + 1) * width];
        let (user, positive) = (users.row(asked.users[row] as usize), items.row(ids[0] as usize));
        gaps.extend(
            ids[1..]
                .iter()
                .map(|&id| simd.product_of_gap(user, positive, items.row(id as usize))),
        );
    }
    let loss = simd.slopes(gaps);
    for (slopes, own) in slopes
        .chunks_exact_mut(width)
        .zip(gaps.chunks_exact((width - 1).max(1)))
    {
        slopes[0] = -own.iter().sum::<f32>();
        slopes[1..].copy_from_slice(own);
    }
    loss
}

compiled! {
    /// user · (negative - positive)
    fn product_of_gap(user: &[f32], positive: &[f32], negative: &[f32]) -> f32 = product;
    /// Turns each x into sigmoid(x); the sum of softplus(x).
    fn slopes(x: &mut [f32]) -> f64 = slopes;
}

#[inline(always)]
fn product(user: &[f32], positive: &[f32], negative: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (users, positives, negatives) = (
        user.chunks_exact(LANES),
        positive.chunks_exact(LANES),
        negative.chunks_exact(LANES),
    );
    let rest = users
        .remainder()
        .iter()
        .zip(positives.remainder())
        .zip(negatives.remainder());
    let rest: f32 = rest.map(|((u, i), j)| u * (j - i)).sum();
    for ((u, i), j) in users.zip(positives).zip(negatives) {
        for lane in 0..LANES {
            sums[lane] += u[lane] * (j[lane] - i[lane]);
        }
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
    }
    sums[0] + rest
}

#[inline(always)]
fn slopes(x: &mut [f32]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0f64; LANES];
    for block in x.chunks_mut(LANES) {
        let mut padded = [f32::NEG_INFINITY; LANES];
        padded[..block.len()].copy_from_slice(block);
        for (x, sum) in padded.iter_mut().zip(&mut sums) {
            let (sigmoid, softplus) = math::sigmoid_softplus(f64::from(*x));
            *x = sigmoid as f32;
            *sum += softplus;
        }
        let len = block.len();
        block.copy_from_slice(&padded[..len]);
    }
    sums.iter().sum()
}
