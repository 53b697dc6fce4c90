//! Weighted draws without replacement from each row's list.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use crate::error::Error;
use crate::exec::Exec;
use crate::math;
use crate::rng;
use crate::room::filled;
use crate::simd::compiled;

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
    sequence: Order,
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
    let mut inverse = Vec::new();
    if let Weights::Shared(w) = weights {
        inverses(w.iter().copied(), 0, &mut inverse)?;
    }
    let key = rng::key(seed, KERNEL);
    let mut out = filled(-1i32, rows, n)?;
    if out.is_empty() || width == 0 {
        return Ok(out);
    }
    let step = (16_384 / width).max(1);
    let tasks = lists.chunks(step * width).zip(out.chunks_mut(step * n)).enumerate();
    let scratch = || (vec![0u64; width], vec![0.0f64; width]);
    exec.each(tasks, scratch, |(clocks, own), (task, (lists, out))| {
        for (offset, (list, out)) in lists.chunks(width).zip(out.chunks_mut(n)).enumerate() {
            let row = task * step + offset;
            let inverse: &[f64] = match weights {
                Weights::Shared(_) => &inverse,
                Weights::Rows32(w) => {
                    inverses(w[row * width..][..width].iter().map(|&w| f64::from(w)), row, own)?;
                    own
                }
                Weights::Rows64(w) => {
                    inverses(w[row * width..][..width].iter().copied(), row, own)?;
                    own
                }
            };
            exec.simd.clocks(rng::at(key, row as u64), list, inverse, clocks);
            let taken = exec.simd.choose(clocks, n.min(width), out);
            let out = &mut out[..taken];
            if sequence == Order::Draw {
                out.sort_unstable_by_key(|&place| (clocks[place as usize], place));
            }
            out.iter_mut().for_each(|slot| *slot = list[*slot as usize]);
        }
        Ok(())
    })?;
    Ok(out)
}

/// The clock of a place that is never drawn: infinity, as the bits of a float.
const NEVER: u64 = 0x7FF0_0000_0000_0000;

compiled! {
    /// The places of the `keep` least clocks, in order, of equal ones the first; fewer where [`NEVER`] would be among them.
    fn choose(clocks: &[u64], keep: usize, out: &mut [i32]) -> usize = choose, avx512: choose_avx512;
    /// The clocks of a list's places.
    fn clocks(row_key: u64, list: &[i32], inverse: &[f64], out: &mut [u64]) = clocks;
}

/// The places of the `keep` least clocks, in order, of equal ones the first; fewer where [`NEVER`] would be among them.
#[inline(always)]
fn choose(clocks: &[u64], keep: usize, out: &mut [i32]) -> usize {
    let count = |middle| clocks.iter().map(|&clock| usize::from(clock <= middle)).sum();
    let (bound, _) = bound(clocks, keep, count);
    gather(clocks, bound, keep, out)
}

/// A clock below [`NEVER`] that the `keep` least do not pass, and no others but its equals; and whether there are just
/// `keep` of them. `count` tells how many do not pass a clock.
#[inline(always)]
fn bound(clocks: &[u64], keep: usize, count: impl Fn(u64) -> usize) -> (u64, bool) {
    let (mut low, mut high) = (NEVER - 1, 0);
    for &clock in clocks {
        (low, high) = (low.min(clock), high.max(clock));
    }
    high = high.min(NEVER - 1);
    while low < high {
        let middle = low + (high - low) / 2;
        match count(middle) {
            few if few < keep => low = middle + 1,
            many => {
                high = middle;
                if many == keep {
                    return (middle, true);
                }
            }
        }
    }
    (high, false)
}

/// The places of the `keep` least clocks, `bound` being the largest of them.
#[inline(always)]
fn gather(clocks: &[u64], bound: u64, keep: usize, out: &mut [i32]) -> usize {
    let below = clocks.iter().filter(|&&clock| clock < bound).count();
    // Of places with the very same clock the first are taken.
    let mut level = keep - below.min(keep);
    let mut taken = 0;
    for (place, &clock) in clocks.iter().enumerate() {
        if clock < bound || (clock == bound && level > 0) {
            level -= usize::from(clock == bound);
            out[taken] = place as i32;
            taken += 1;
        }
    }
    taken
}

/// The clock of each place, as the bits of a positive float: they order as integers.
#[inline(always)]
fn clocks(row_key: u64, list: &[i32], inverse: &[f64], out: &mut [u64]) {
    for (place, ((&item, &inverse), out)) in list.iter().zip(inverse).zip(out).enumerate() {
        let clock = -math::ln(rng::unit(rng::at(row_key, place as u64))) * inverse;
        // Adding 0 turns the -0 of ln 1 into 0; 0 * infinity is not a number and never less.
        let bits = (clock + 0.0).to_bits();
        *out = if item >= 0 && bits < NEVER { bits } else { NEVER };
    }
}

/// 1 / w, infinite for weight zero alone.
fn inverses(weights: impl ExactSizeIterator<Item = f64> + Clone, row: usize, out: &mut Vec<f64>) -> Result<(), Error> {
    out.clear();
    let mut tiny = false;
    for (column, value) in weights.clone().enumerate() {
        if !(value.is_finite() && value >= 0.0) {
            return Err(Error::BadWeight { row, column, value });
        }
        let inverse = 1.0 / value;
        tiny |= inverse > 1e300 && value > 0.0; // times a logarithm it may overflow
        out.push(inverse);
    }
    if tiny {
        of_tiny(weights, out);
    }
    Ok(())
}

/// The same of weights of which an inverse is near the end of the range. A row of such alone is scaled up, by a power of two;
/// beside larger ones they are so small that they are drawn last.
#[cold]
fn of_tiny(weights: impl Iterator<Item = f64> + Clone, out: &mut [f64]) {
    const SMALL: f64 = 1e-280;
    const LEAST: f64 = 1e-300;
    let largest = weights.clone().fold(0.0, f64::max);
    let scale = if largest < SMALL { 2f64.powi(300) } else { 1.0 };
    for (weight, inverse) in weights.zip(out) {
        if weight > 0.0 {
            *inverse = 1.0 / (weight * scale).max(LEAST);
        }
    }
}

/// [`choose`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt")]
fn choose_avx512(clocks: &[u64], keep: usize, out: &mut [i32]) -> usize {
    const LANES: usize = 8;
    let (bound, sharp) = bound(clocks, keep, |middle| {
        let (blocks, rest) = clocks.as_chunks::<LANES>();
        let middles = _mm512_set1_epi64(middle as i64);
        let counted: u32 = blocks.iter().fold(0, |count, block| {
            // SAFETY: 8 integers.
            let block = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
            count + _mm512_cmple_epu64_mask(block, middles).count_ones()
        });
        counted as usize + rest.iter().filter(|&&clock| clock <= middle).count()
    });
    if !sharp || out.len() < keep {
        return gather(clocks, bound, keep, out);
    }
    let bounds = _mm512_set1_epi64(bound as i64);
    let mut taken = 0;
    for (place, block) in clocks.chunks(LANES).enumerate() {
        let inside = first(block.len());
        let places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let places = _mm256_add_epi32(places, _mm256_set1_epi32((place * LANES) as i32));
        // SAFETY: what is loaded and stored is masked: as many lanes as the block has, and as many as are taken, which
        // are `keep` in all.
        unsafe {
            let block = _mm512_maskz_loadu_epi64(inside, block.as_ptr().cast());
            let chosen = _mm512_mask_cmple_epu64_mask(inside, block, bounds);
            let count = (chosen.count_ones() as usize).min(out.len() - taken);
            let places = _mm256_maskz_compress_epi32(chosen, places);
            _mm256_mask_storeu_epi32(out.as_mut_ptr().add(taken), first(count), places);
            taken += count;
        }
    }
    taken
}

/// The first so many of eight lanes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn first(count: usize) -> u8 {
    ((1u16 << count.min(8)) - 1) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::SimdPath;

    #[test]
    fn the_least_clocks_are_chosen_ties_by_place() {
        let word = |c: u64| rng::at(11, c);
        for simd in SimdPath::NAMES.into_iter().filter_map(SimdPath::named) {
            for (round, width) in [1usize, 7, 8, 9, 33, 100].into_iter().enumerate() {
                for few in [3, 1_000_000] {
                    let clocks: Vec<u64> = (0..width as u64)
                        .map(|c| match word(c + 1000 * round as u64) % 5 {
                            0 => NEVER,
                            _ => word(c) % few,
                        })
                        .collect();
                    let mut order: Vec<usize> = (0..width).filter(|&place| clocks[place] < NEVER).collect();
                    order.sort_by_key(|&place| (clocks[place], place));
                    for keep in 1..=width {
                        let mut expected: Vec<i32> = order.iter().take(keep).map(|&place| place as i32).collect();
                        expected.sort_unstable();
                        let mut out = vec![-7; keep];
                        let taken = simd.choose(&clocks, keep, &mut out);
                        assert_eq!(out[..taken], expected, "{} {keep} of {clocks:?}", simd.name());
                    }
                }
            }
        }
    }
}
