//! The relaxed ranking loss of lists with its gradient.

use crate::error::Error;
use crate::exec::Exec;
use crate::math;
use crate::simd::compiled;

/// Scores in a task.
const TASK: usize = 8_192;
/// Sums of exponentials below this, next to a row's largest score, go through logarithms instead.
const SMALLEST: f64 = 1e-280;

/// The loss of each row and its gradient.
#[derive(Debug, PartialEq)]
pub struct Relaxed {
    /// `[rows]`
    pub losses: Vec<f32>,
    /// `[rows, width]`
    pub gradients: Vec<f32>,
}

/// `Σ_k [log(Σ_{i >= k} exp s_i + Σ_j exp s_j) - s_k]` for the first `listed` scores of each row of `width`, in their order,
/// above the others, whose order is free. Entries that `known` leaves out do not exist.
///
/// With e the exponentials less the row's largest score and t_k those sums of them, the gradient is `e_m Σ_{k <= m} 1 / t_k`,
/// less 1 where m is listed: one exponential a score, one logarithm an entry listed. All in float64.
pub fn relaxed_ranking(
    exec: Exec,
    scores: &[f32],
    width: usize,
    listed: usize,
    known: Option<&[bool]>,
) -> Result<Relaxed, Error> {
    let rows = scores.len().checked_div(width).unwrap_or(0);
    if rows * width != scores.len() || listed > width || known.is_some_and(|known| known.len() != scores.len()) {
        return Err(Error::Shape(format!(
            "{} scores in rows of {width}, {listed} of them listed, do not go with {} known ones",
            scores.len(),
            known.map_or(scores.len(), <[bool]>::len)
        )));
    }
    let (mut losses, mut gradients) = (vec![0.0; rows], vec![0.0; scores.len()]);
    if rows > 0 {
        let step = (TASK / width).max(1);
        let tasks = losses
            .chunks_mut(step)
            .zip(gradients.chunks_mut(step * width))
            .enumerate();
        let scratch = || Scratch::new(width, listed);
        exec.each(tasks, scratch, |scratch, (task, (losses, gradients))| {
            for (row, (loss, gradient)) in losses.iter_mut().zip(gradients.chunks_mut(width)).enumerate() {
                let own = (task * step + row) * width..(task * step + row + 1) * width;
                let known = known.map(|known| &known[own.clone()]);
                *loss = exec.simd.relaxed(&scores[own], known, scratch, gradient);
            }
            Ok(())
        })?;
    }
    Ok(Relaxed { losses, gradients })
}

/// Room for one row.
struct Scratch {
    /// Exponentials, [width].
    powers: Vec<f64>,
    /// Tail sums, then their reciprocals, [listed].
    tails: Vec<f64>,
    logs: Vec<f64>,
}

impl Scratch {
    fn new(width: usize, listed: usize) -> Self {
        Scratch {
            powers: vec![0.0; width],
            tails: vec![0.0; listed],
            logs: vec![0.0; listed],
        }
    }
}

compiled! {
    /// One row: its loss, and its gradient into `gradient`.
    fn relaxed(scores: &[f32], known: Option<&[bool]>, scratch: &mut Scratch, gradient: &mut [f32]) -> f32 = row;
}

/// One row: its loss, and its gradient into `gradient`.
#[inline(always)]
fn row(scores: &[f32], known: Option<&[bool]>, scratch: &mut Scratch, gradient: &mut [f32]) -> f32 {
    let Scratch { powers, tails, logs } = scratch;
    let listed = tails.len();
    let width = powers.len();
    let (scores, gradient) = (&scores[..width], &mut gradient[..width]);
    let exists = |place: usize| known.is_none_or(|known| known[place]);
    let mut top = f32::NEG_INFINITY;
    match known {
        // Sixteen at a time: a maximum of floats is no reduction that a compiler would split up.
        None => {
            let mut lanes = [f32::NEG_INFINITY; 16];
            for chunk in scores.chunks(16) {
                for (lane, &s) in lanes.iter_mut().zip(chunk) {
                    *lane = if s > *lane { s } else { *lane };
                }
            }
            top = lanes.into_iter().fold(top, f32::max);
        }
        Some(known) => {
            for (&s, &known) in scores.iter().zip(known) {
                top = if known && s > top { s } else { top };
            }
        }
    }
    let top = f64::from(top);
    if top == f64::NEG_INFINITY && (0..listed).all(|place| !exists(place)) {
        gradient.fill(0.0);
        return 0.0;
    }
    for (power, &s) in powers.iter_mut().zip(scores) {
        *power = math::exp_neg_each(f64::from(s) - top);
    }
    if let Some(known) = known {
        for (power, &known) in powers.iter_mut().zip(known) {
            *power = if known { *power } else { 0.0 };
        }
    }
    let mut lanes = [0.0f64; 8];
    for chunk in powers[listed..].chunks(8) {
        for (lane, &power) in lanes.iter_mut().zip(chunk) {
            *lane += power;
        }
    }
    let mut sum: f64 = lanes.into_iter().sum();
    for (tail, &power) in tails.iter_mut().zip(&powers[..listed]).rev() {
        sum += power;
        *tail = sum;
    }
    let smallest = match known {
        None => tails.last().copied().unwrap_or(1.0), // they fall
        Some(known) => {
            let theirs = tails.iter().zip(known).filter(|(_, &known)| known);
            theirs.fold(f64::INFINITY, |m, (&tail, _)| m.min(tail))
        }
    };
    if !top.is_finite() || smallest < SMALLEST || !sum.is_finite() {
        return in_logarithms(scores, known, tails, gradient);
    }
    for (log, tail) in logs.iter_mut().zip(tails.iter()) {
        *log = math::ln(tail.max(SMALLEST));
    }
    tails.iter_mut().for_each(|tail| *tail = 1.0 / *tail);
    let (mut loss, mut share) = (0.0, 0.0);
    match known {
        None => {
            for place in 0..listed {
                loss += logs[place] - (f64::from(scores[place]) - top);
                share += tails[place];
                gradient[place] = (powers[place] * share - 1.0) as f32;
            }
        }
        Some(known) => {
            for place in 0..listed {
                gradient[place] = 0.0;
                if known[place] {
                    loss += logs[place] - (f64::from(scores[place]) - top);
                    share += tails[place];
                    gradient[place] = (powers[place] * share - 1.0) as f32;
                }
            }
        }
    }
    for (gradient, &power) in gradient[listed..].iter_mut().zip(&powers[listed..]) {
        *gradient = (power * share) as f32;
    }
    loss as f32
}

/// The same where exponentials leave the range of float64: sums through their logarithms, entry by entry.
#[cold]
#[inline(never)]
fn in_logarithms(scores: &[f32], known: Option<&[bool]>, tails: &mut [f64], gradient: &mut [f32]) -> f32 {
    let exists = |place: usize| known.is_none_or(|known| known[place]);
    let listed = tails.len();
    let mut sum = f64::NEG_INFINITY;
    for (place, &s) in scores.iter().enumerate().rev() {
        if exists(place) {
            sum = added(sum, f64::from(s));
        }
        if place < listed {
            tails[place] = sum;
        }
    }
    let (mut loss, mut share) = (0.0, f64::NEG_INFINITY);
    for (place, (&s, gradient)) in scores.iter().zip(gradient).enumerate() {
        let s = f64::from(s);
        *gradient = 0.0;
        if !exists(place) {
            continue;
        }
        if place < listed {
            loss += tails[place] - s;
            share = added(share, -tails[place]);
        }
        let exponent = s + share;
        let power = if exponent > 0.0 {
            1.0 / math::exp_neg(-exponent)
        } else {
            math::exp_neg(exponent)
        };
        *gradient = (if place < listed { power - 1.0 } else { power }) as f32;
    }
    loss as f32
}

/// log(exp a + exp b)
fn added(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY && !high.is_nan() {
        return high;
    }
    if low.is_nan() || high.is_nan() {
        return f64::NAN;
    }
    high + math::ln(1.0 + math::exp_neg(low - high))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::SimdPath;

    /// By the definition, in logarithms throughout; the gradient by differences.
    fn slow(scores: &[f64], known: &[bool], listed: usize) -> f64 {
        let mut loss = 0.0;
        for k in (0..listed).filter(|&k| known[k]) {
            let after = (k..scores.len()).filter(|&i| known[i]);
            let top = after.clone().fold(f64::NEG_INFINITY, |m, i| m.max(scores[i]));
            loss += top + after.map(|i| (scores[i] - top).exp()).sum::<f64>().ln() - scores[k];
        }
        loss
    }

    fn exact(spread: f64, rows: usize, listed: usize, rest: usize, masked: bool) {
        let width = listed + rest;
        let mut word = 0;
        let mut uniform = || {
            word = crate::rng::at(word, 7);
            crate::rng::unit(word)
        };
        let scores: Vec<f32> = (0..rows * width).map(|_| ((uniform() - 0.5) * spread) as f32).collect();
        let known: Vec<bool> = (0..rows * width).map(|_| !masked || uniform() < 0.7).collect();
        let mut first = None;
        for name in SimdPath::NAMES {
            let Some(simd) = SimdPath::named(name) else { continue };
            let exec = Exec {
                simd,
                ..Exec::default()
            };
            let found = relaxed_ranking(exec, &scores, width, listed, masked.then_some(&known)).expect("sizes agree");
            for row in 0..rows {
                let own = row * width..(row + 1) * width;
                let (wide, known) = (scores[own.clone()].iter().map(|&s| f64::from(s)), &known[own.clone()]);
                let mut wide: Vec<f64> = wide.collect();
                let expected = slow(&wide, known, listed);
                let loss = f64::from(found.losses[row]);
                assert!(
                    (loss - expected).abs() <= 1e-6 * (1.0 + expected),
                    "{loss} for {expected}"
                );
                let step = 1e-5 * spread.min(10.0);
                for place in 0..width {
                    let s = wide[place];
                    let mut shifted = |by: f64| {
                        wide[place] = s + by;
                        slow(&wide, known, listed)
                    };
                    let expected = (shifted(step) - shifted(-step)) / (2.0 * step);
                    wide[place] = s;
                    let gradient = f64::from(found.gradients[row * width + place]);
                    assert!(
                        (gradient - expected).abs() < 1e-4 * (1.0 + expected.abs()),
                        "{gradient} for {expected}"
                    );
                }
            }
            match &first {
                None => first = Some(found),
                Some(first) => assert_eq!(*first, found, "{name}"),
            }
        }
    }

    #[test]
    fn loss_and_gradient_are_exact() {
        for spread in [1.0, 30.0, 3_000.0] {
            for (listed, rest) in [(1, 0), (1, 3), (40, 40), (7, 0), (5, 30), (0, 4)] {
                exact(spread, 9, listed, rest, false);
                exact(spread, 9, listed, rest, true);
            }
        }
    }

    #[test]
    fn what_is_not_finite_shows() {
        for bad in [f32::NAN, f32::INFINITY] {
            for place in 0..4 {
                let mut scores = [1.0f32, 2.0, 3.0, 4.0];
                scores[place] = bad;
                let found = relaxed_ranking(Exec::serial(), &scores, 4, 2, None).expect("sizes agree");
                assert!(!found.losses[0].is_finite());
            }
        }
        let scores = [1.0f32, 2.0, f32::NEG_INFINITY];
        let found = relaxed_ranking(Exec::serial(), &scores, 3, 2, None).expect("sizes agree");
        assert!((f64::from(found.losses[0]) - ((1.0f64.exp() + 2.0f64.exp()).ln() - 1.0)).abs() < 1e-6);
        assert_eq!(found.gradients[2], 0.0);
    }

    #[test]
    fn sizes_must_agree() {
        assert!(relaxed_ranking(Exec::serial(), &[0.0; 5], 2, 1, None).is_err());
        assert!(relaxed_ranking(Exec::serial(), &[0.0; 4], 2, 3, None).is_err());
        assert!(relaxed_ranking(Exec::serial(), &[0.0; 4], 2, 1, Some(&[true; 3])).is_err());
    }
}
