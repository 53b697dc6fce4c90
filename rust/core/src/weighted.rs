//! Weighted draws without replacement from each row's list.

use crate::error::Error;
use crate::exec::Exec;
use crate::math;
use crate::rng;

const KERNEL: u64 = 3;

/// Weights of the places of a list: one set for all rows, or a set for each.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    Shared(&'a [f64]),
    Rows32(&'a [f32]),
    Rows64(&'a [f64]),
}

/// How the drawn items of a row are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they stand in the list.
    List,
    /// As they were drawn.
    Draw,
}

/// `n` items of each list of width `width`, without replacement: int32 `[rows, n]`.
///
/// The law is that of successive draws, each with probability proportional to the weights that are left. Place `i` gets
/// the key `E_i / w_i` with `E_i` exponential, and the `n` smallest keys are taken, smallest first: the first of
/// competing exponential clocks is `i` with probability `w_i / sum w`, and what is left starts afresh (Efraimidis and
/// Spirakis, 2006; the Gumbel top-k trick in another scale). Places that hold -1 and places of weight zero are never
/// drawn; a row with fewer than `n` others is padded with -1.
#[allow(clippy::too_many_arguments)]
pub fn weighted(
    exec: Exec,
    lists: &[i32],
    rows: usize,
    width: usize,
    weights: Weights,
    n: usize,
    seed: u64,
    order: Order,
) -> Result<Vec<i32>, Error> {
    let expected = match weights {
        Weights::Shared(w) => (w.len(), width),
        Weights::Rows32(w) => (w.len(), lists.len()),
        Weights::Rows64(w) => (w.len(), lists.len()),
    };
    if expected.0 != expected.1 {
        return Err(Error::Shape(format!(
            "{} weights for lists of {} places",
            expected.0, expected.1
        )));
    }
    let inverse: Vec<f64> = match weights {
        Weights::Shared(w) => inverses(w.iter().copied(), 0)?,
        _ => Vec::new(),
    };
    let key = rng::key(seed, KERNEL);
    let mut out = vec![-1i32; rows * n];
    if out.is_empty() || width == 0 {
        return Ok(out);
    }
    let step = (16_384 / width).max(1);
    let tasks = lists.chunks(step * width).zip(out.chunks_mut(step * n)).enumerate();
    exec.each(tasks, Vec::new, |keys: &mut Vec<(f64, u32)>, (task, (lists, out))| {
        for (offset, (list, out)) in lists.chunks(width).zip(out.chunks_mut(n)).enumerate() {
            let row = task * step + offset;
            let row_key = rng::at(key, row as u64);
            let mut own = Vec::new();
            let inverse: &[f64] = match weights {
                Weights::Shared(_) => &inverse,
                Weights::Rows32(w) => {
                    own = inverses(w[row * width..][..width].iter().map(|&w| f64::from(w)), row)?;
                    &own
                }
                Weights::Rows64(w) => {
                    own = inverses(w[row * width..][..width].iter().copied(), row)?;
                    &own
                }
            };
            keys.clear();
            for (place, (&item, &inverse)) in list.iter().zip(inverse).enumerate() {
                if item >= 0 && inverse < f64::INFINITY {
                    let clock = -math::ln(rng::unit(rng::at(row_key, place as u64))) * inverse;
                    keys.push((clock, place as u32));
                }
            }
            drop(own);
            let taken = n.min(keys.len());
            let less = |a: &(f64, u32), b: &(f64, u32)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
            if taken > 0 && taken < keys.len() {
                keys.select_nth_unstable_by(taken - 1, less);
            }
            let chosen = &mut keys[..taken];
            match order {
                Order::List => chosen.sort_unstable_by_key(|&(_, place)| place),
                Order::Draw => chosen.sort_unstable_by(less),
            }
            for (slot, &(_, place)) in out.iter_mut().zip(chosen.iter()) {
                *slot = list[place as usize];
            }
        }
        Ok(())
    })?;
    Ok(out)
}

/// 1 / w, infinite for weight zero (and for weights so small that it overflows).
fn inverses(weights: impl Iterator<Item = f64>, row: usize) -> Result<Vec<f64>, Error> {
    weights
        .enumerate()
        .map(|(column, value)| {
            if value.is_finite() && value >= 0.0 {
                Ok(1.0 / value)
            } else {
                Err(Error::BadWeight { row, column, value })
            }
        })
        .collect()
}
