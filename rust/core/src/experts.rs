//! The hidden layer of a mixture of networks, between its two matrix products.

use crate::error::Error;
use crate::exec::Exec;

/// Values in a task.
const TASK: usize = 65_536;
/// Lanes of a sum.
const LANES: usize = 16;

/// Hidden values `[rows, experts, width]` to `share · max(value, 0)`, in place; shares are `[rows, experts]`.
pub fn gate(exec: Exec, hidden: &mut [f32], shares: &[f32], width: usize) -> Result<(), Error> {
    check(hidden.len(), shares.len(), width)?;
    if hidden.is_empty() {
        return Ok(());
    }
    let step = (TASK / width).max(1);
    let tasks = hidden.chunks_mut(step * width).zip(shares.chunks(step));
    exec.each(
        tasks,
        || (),
        |(), (hidden, shares)| {
            exec.simd.gate(hidden, shares, width);
            Ok(())
        },
    )
}

/// The way back. `hidden` holds the values before the ReLU and becomes what [`gate`] makes of them; `back`, the gradient of
/// that, becomes the gradient of the values; the result is the gradient of the shares, `[rows, experts]`.
pub fn gate_back(
    exec: Exec,
    hidden: &mut [f32],
    back: &mut [f32],
    shares: &[f32],
    width: usize,
) -> Result<Vec<f32>, Error> {
    check(hidden.len(), shares.len(), width)?;
    check(back.len(), shares.len(), width)?;
    let mut to_shares = vec![0.0; shares.len()];
    if hidden.is_empty() {
        return Ok(to_shares);
    }
    let step = (TASK / width).max(1);
    let values = hidden.chunks_mut(step * width).zip(back.chunks_mut(step * width));
    let tasks = values.zip(shares.chunks(step).zip(to_shares.chunks_mut(step)));
    exec.each(
        tasks,
        || (),
        |(), ((hidden, back), (shares, to_shares))| {
            exec.simd.gate_back(hidden, back, shares, to_shares, width);
            Ok(())
        },
    )?;
    Ok(to_shares)
}

fn check(values: usize, shares: usize, width: usize) -> Result<(), Error> {
    if shares.checked_mul(width) == Some(values) {
        return Ok(());
    }
    Err(Error::Shape(format!("{values} values for {shares} shares of {width}")))
}

#[inline(always)]
pub(crate) fn gate_rows(hidden: &mut [f32], shares: &[f32], width: usize) {
    for (hidden, &share) in hidden.chunks_exact_mut(width).zip(shares) {
        for value in hidden {
            // Not max, which would lose NaN.
            *value = if *value <= 0.0 { 0.0 } else { *value * share };
        }
    }
}

#[inline(always)]
pub(crate) fn gate_back_rows(
    hidden: &mut [f32],
    back: &mut [f32],
    shares: &[f32],
    to_shares: &mut [f32],
    width: usize,
) {
    let rows = hidden.chunks_exact_mut(width).zip(back.chunks_exact_mut(width));
    for ((hidden, back), (&share, to_share)) in rows.zip(shares.iter().zip(to_shares)) {
        let mut lanes = [0.0f32; LANES];
        let (whole, rest) = hidden.split_at_mut(width / LANES * LANES);
        let (whole_back, rest_back) = back.split_at_mut(whole.len());
        for (hidden, back) in whole.chunks_exact_mut(LANES).zip(whole_back.chunks_exact_mut(LANES)) {
            for lane in 0..LANES {
                lanes[lane] += each(&mut hidden[lane], &mut back[lane], share);
            }
        }
        for ((hidden, back), lane) in rest.iter_mut().zip(rest_back).zip(&mut lanes) {
            *lane += each(hidden, back, share);
        }
        let mut left = LANES;
        while left > 1 {
            left /= 2;
            for lane in 0..left {
                lanes[lane] += lanes[lane + left];
            }
        }
        *to_share = lanes[0];
    }
}

/// One value: its share's part of the gradient.
#[inline(always)]
fn each(hidden: &mut f32, back: &mut f32, share: f32) -> f32 {
    let (value, gradient) = (*hidden, *back);
    let active = if value <= 0.0 { 0.0 } else { value };
    *hidden = active * share;
    *back = if value <= 0.0 { 0.0 } else { gradient * share };
    gradient * active
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::the_same_everywhere;

    #[test]
    fn all_paths_and_threads_agree_with_the_definition() {
        for (shares, width) in [(1, 1), (7, 5), (30, 16), (900, 110), (3, 131_072), (0, 4), (5, 0)] {
            let numbers = |count: usize, seed: u64| -> Vec<f32> {
                let word = |c| crate::rng::unit(crate::rng::at(seed, c)) as f32 - 0.5;
                (0..count as u64).map(word).collect()
            };
            let (hidden, back, gates) = (
                numbers(shares * width, 1),
                numbers(shares * width, 2),
                numbers(shares, 3),
            );
            let (forward, h, b, to_shares) = the_same_everywhere(|exec| {
                let (mut forward, mut h, mut b) = (hidden.clone(), hidden.clone(), back.clone());
                gate(exec, &mut forward, &gates, width).expect("sizes agree");
                let to_shares = gate_back(exec, &mut h, &mut b, &gates, width).expect("sizes agree");
                (forward, h, b, to_shares)
            });
            assert_eq!(forward, h);
            for (place, (&x, &y)) in hidden.iter().zip(&back).enumerate() {
                let share = gates[place / width];
                assert_eq!(forward[place], x.max(0.0) * share);
                assert_eq!(b[place], if x > 0.0 { y * share } else { 0.0 });
            }
            for (share, &found) in to_shares.iter().enumerate() {
                let own = share * width..(share + 1) * width;
                let terms = hidden[own.clone()].iter().zip(&back[own]);
                let expected: f64 = terms.map(|(&x, &y)| f64::from(x.max(0.0)) * f64::from(y)).sum();
                assert!((f64::from(found) - expected).abs() < 1e-3, "{found} for {expected}");
            }
        }
    }

    #[test]
    fn what_diverged_shows_and_sizes_must_agree() {
        let mut hidden = [f32::NAN, -1.0, 2.0];
        gate(Exec::serial(), &mut hidden, &[0.5], 3).expect("sizes agree");
        assert!(hidden[0].is_nan());
        assert_eq!(hidden[1..], [0.0, 1.0]);
        assert!(gate(Exec::serial(), &mut hidden, &[0.5], 2).is_err());
        assert!(gate_back(Exec::serial(), &mut hidden, &mut [0.0; 2], &[0.5], 3).is_err());
    }
}
