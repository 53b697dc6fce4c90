//! Negatives: items that a row has not seen.
//!
//! The unseen items of a row are numbered in ascending order; a draw picks a number, so there is nothing to reject and
//! a row that has seen half of the catalogue, or all of it but one item, costs no more than any other.

#[cfg(target_arch = "x86_64")]
mod avx512;

use crate::csr::{Csr, RowId};
use crate::error::Error;
use crate::exec::Exec;
use crate::rng;
use crate::room::{probe, zeros};
#[cfg(target_arch = "x86_64")]
use crate::simd::Level;

const KERNEL: u64 = 1;
const WEIGHTED_KERNEL: u64 = 2;
/// Draws in one task.
const TASK: usize = 4_096;

/// `n` unseen items for each of `rows`, uniformly and independently: int32 `[rows, n]`.
///
/// A draw depends on the seed and its place in the result. A row that has seen everything is an error that names it,
/// or with `mask` a row of -1.
pub fn negatives<R: RowId>(
    exec: Exec,
    seen: Csr,
    rows: &[R],
    n: usize,
    seed: u64,
    mask: bool,
) -> Result<Vec<i32>, Error> {
    let key = rng::key(seed, KERNEL);
    let mut out = zeros::<i32>(rows.len(), n)?;
    if out.is_empty() {
        return Ok(out);
    }
    let step = (TASK / n).max(1);
    let tasks = rows.chunks(step).zip(out.chunks_mut(step * n)).enumerate();
    exec.each(
        tasks,
        || (),
        |(), (task, (rows, out))| {
            let mut counter = (task * step * n) as u64;
            #[cfg(target_arch = "x86_64")]
            if exec.simd.level() == Level::Avx512 {
                // SAFETY: the path exists only if the processor has its features.
                if unsafe { avx512::draw(key, seen, rows, n, counter, out) } {
                    return Ok(());
                }
            }
            for (&row, out) in rows.iter().zip(out.chunks_mut(n)) {
                let row = seen.check(row.as_i64())?;
                let positives = seen.row(row);
                let unseen = seen.items().saturating_sub(positives.len()) as u64;
                if unseen == 0 {
                    if !mask {
                        return Err(Error::SeenEverything {
                            row,
                            items: seen.items(),
                        });
                    }
                    out.fill(-1);
                    counter += n as u64;
                    continue;
                }
                for slot in out {
                    *slot = unseen_item(positives, rng::below(rng::at(key, counter), unseen) as i32);
                    counter += 1;
                }
            }
            Ok(())
        },
    )?;
    Ok(out)
}

/// Unseen item number `r` (from 0): r plus the positives before it.
#[inline]
fn unseen_item(positives: &[i32], r: i32) -> i32 {
    // positives[j] - j unseen items lie before positive j
    let (mut low, mut len) = (0, positives.len());
    while len > 0 {
        let half = len / 2;
        let middle = low + half;
        let before = positives[middle] - middle as i32 <= r;
        low = if before { middle + 1 } else { low };
        len = if before { len - half - 1 } else { half };
    }
    r + low as i32
}

/// As [`negatives`], with probability proportional to `weights` (one for each item).
///
/// The law is exact for the weights rounded to multiples of 2^-61 of their sum (positive weights to at least one such
/// multiple): cumulative sums are integers, so no rounding can ever give a seen item or one of weight zero.
pub fn weighted_negatives<R: RowId>(
    exec: Exec,
    seen: Csr,
    rows: &[R],
    n: usize,
    weights: &[f64],
    seed: u64,
    mask: bool,
) -> Result<Vec<i32>, Error> {
    let table = Cumulative::new(weights)?;
    if weights.len() != seen.items() {
        return Err(Error::Shape(format!(
            "{} weights for {} items",
            weights.len(),
            seen.items()
        )));
    }
    let key = rng::key(seed, WEIGHTED_KERNEL);
    let mut out = zeros::<i32>(rows.len(), n)?;
    if out.is_empty() {
        return Ok(out);
    }
    let step = (TASK / 2 / n).max(1);
    let tasks = rows.chunks(step).zip(out.chunks_mut(step * n)).enumerate();
    exec.each(tasks, Vec::new, |before: &mut Vec<u64>, (task, (rows, out))| {
        let mut counter = (task * step * n) as u64;
        let mut current = usize::MAX;
        let mut mass = 0;
        for (&row, out) in rows.iter().zip(out.chunks_mut(n)) {
            let row = seen.check(row.as_i64())?;
            let positives = seen.row(row);
            if row != current {
                current = row;
                mass = table.unseen(row, positives, before)?;
            }
            if mass == 0 {
                if !mask {
                    return Err(if positives.len() >= seen.items() {
                        Error::SeenEverything {
                            row,
                            items: seen.items(),
                        }
                    } else {
                        Error::NoWeight { row }
                    });
                }
                out.fill(-1);
                counter += n as u64;
                continue;
            }
            for slot in out {
                *slot = table.item(positives, before, rng::below(rng::at(key, counter), mass));
                counter += 1;
            }
        }
        Ok(())
    })?;
    Ok(out)
}

/// Integer cumulative weights of the catalogue, with a table of starting points for the search.
struct Cumulative {
    /// `sums[i]`: weight of all items before i; one entry more than items.
    sums: Vec<u64>,
    /// `starts[b]`: an item at or before the first whose end passes `b << shift`.
    starts: Vec<u32>,
    shift: u32,
}

impl Cumulative {
    fn new(weights: &[f64]) -> Result<Self, Error> {
        for (column, &value) in weights.iter().enumerate() {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::BadWeight { row: 0, column, value });
            }
        }
        let largest = weights.iter().copied().fold(0.0, f64::max);
        // Relative to the largest first: a sum of huge weights could overflow.
        let total: f64 = weights.iter().map(|w| w / largest).sum();
        let scale = (1u64 << 61) as f64 / total;
        probe(weights.len().saturating_mul(24))?; // sums, and up to four starts an item
        let mut sums = Vec::with_capacity(weights.len() + 1);
        let mut sum = 0u64;
        sums.push(0);
        for &weight in weights {
            if weight > 0.0 {
                sum += ((weight / largest * scale) as u64).max(1);
            }
            sums.push(sum);
        }
        let shift = (64 - sum.leading_zeros()).saturating_sub(usize::BITS - weights.len().leading_zeros() + 1);
        let mut starts = Vec::with_capacity((sum >> shift) as usize + 2);
        let mut item = 0;
        for bucket in 0..=(sum >> shift) {
            while item + 1 < weights.len() && sums[item + 1] <= bucket << shift {
                item += 1;
            }
            starts.push(item as u32);
        }
        Ok(Cumulative { sums, starts, shift })
    }

    /// Weight that is left to a row; `before[j]` becomes the unseen weight before its positive j.
    fn unseen(&self, row: usize, positives: &[i32], before: &mut Vec<u64>) -> Result<u64, Error> {
        before.clear();
        let mut seen = 0;
        for &item in positives {
            let item = item as usize;
            if item + 1 >= self.sums.len() {
                return Err(Error::ItemRange {
                    what: "seen",
                    row,
                    item: item as i64,
                    items: self.sums.len() - 1,
                });
            }
            before.push(self.sums[item] - seen);
            seen += self.sums[item + 1] - self.sums[item];
        }
        Ok(self.sums[self.sums.len() - 1] - seen)
    }

    /// The unseen item that holds point `x` of the row's weight.
    #[inline]
    fn item(&self, positives: &[i32], before: &[u64], x: u64) -> i32 {
        let seen = before.partition_point(|&b| b <= x);
        // On the catalogue's scale: add the weight of the positives passed.
        let x = match seen {
            0 => x,
            j => {
                let last = positives[j - 1] as usize;
                x - before[j - 1] + self.sums[last + 1]
            }
        };
        let mut item = self.starts[(x >> self.shift) as usize] as usize;
        let mut low = item;
        // The table leaves a handful of items; a bucket of many tiny weights is cut by doubling, then halving.
        let mut jump = 1;
        while item + 1 < self.sums.len() && self.sums[item + 1] <= x {
            low = item + 1;
            item = (item + jump).min(self.sums.len() - 2);
            jump *= 2;
        }
        low += self.sums[low + 1..=item + 1].partition_point(|&end| end <= x);
        low as i32
    }
}
