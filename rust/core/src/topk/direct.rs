//! Few queries: items are scored where they lie. To pack a catalogue first pays from more of them on.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::Mutex;

use super::Ranking;
use crate::codes::{Codes, EIGHT};
use crate::error::Error;
use crate::exec::Exec;
use crate::matrix::Matrix;
use crate::score::{code_score, COLUMNS};
use crate::select::{rank_key, Best};
use crate::simd::{compiled, SimdPath};

/// Items that are scored before the next ones are looked at, so many that their scores stay in L1.
const STEP: usize = 2048;
const LEAST: usize = 256;

/// Scores of one query and consecutive items.
pub trait Direct: Sync {
    fn score(&self, simd: SimdPath, query: usize, first: usize, out: &mut [f32]);
}

/// The lists of all queries, into `out`.
pub fn direct<'a>(
    exec: Exec,
    scores: &impl Direct,
    items: usize,
    seen: impl Fn(usize) -> &'a [i32] + Sync,
    out: &mut Ranking,
) -> Result<(), Error> {
    let k = out.k;
    let queries = out.items.len() / k;
    // Of each query: what its best cannot be below, and what may be among them.
    let floors: Vec<AtomicU64> = (0..queries).map(|_| AtomicU64::new(0)).collect();
    let pools: Vec<Mutex<Vec<u64>>> = (0..queries).map(|_| Mutex::default()).collect();
    let step = (items / (4 * exec.threads()))
        .next_multiple_of(COLUMNS)
        .clamp(LEAST, STEP);
    exec.each(
        (0..items.div_ceil(step)).map(|task| task * step),
        || (vec![0.0f32; step], Best::new(k)),
        |(scored, best), first| {
            let scored = &mut scored[..step.min(items - first)];
            for query in 0..queries {
                scores.score(exec.simd, query, first, scored);
                best.clear();
                best.raise(floors[query].load(Ordering::Relaxed));
                exec.simd.note_best(scored, first as i32, seen(query), k, best);
                let (keys, floor) = best.cut_to(k);
                floors[query].fetch_max(floor, Ordering::Relaxed);
                let mut pool = pools[query].lock().expect("nobody panics while holding it");
                pool.extend_from_slice(keys);
            }
            Ok(())
        },
    )?;
    let lists = out.items.chunks_mut(k).zip(out.scores.chunks_mut(k));
    let mut best = Best::new(k);
    for (pool, (items, scores)) in pools.into_iter().zip(lists) {
        best.clear();
        for key in pool.into_inner().expect("nobody panicked while holding it") {
            best.push(key, k);
        }
        best.finish(items, scores);
    }
    Ok(())
}

compiled! {
    fn note_best(scores: &[f32], first: i32, seen: &[i32], k: usize, best: &mut Best) = note_best;
    fn score_codes(query: &Asking, items: Codes, bias: Option<&[f32]>, first: usize, out: &mut [f32]) = score_codes;
}

#[inline(always)]
fn note_best(scores: &[f32], first: i32, seen: &[i32], k: usize, best: &mut Best) {
    let mut next = seen.partition_point(|&item| item < first);
    for (base, block) in (first..).step_by(COLUMNS).zip(scores.chunks(COLUMNS)) {
        let threshold = best.threshold();
        if block.iter().fold(0, |any, &s| any | u32::from(s >= threshold)) == 0 {
            continue;
        }
        for (item, &score) in (base..).zip(block) {
            let key = rank_key(score, item);
            if score >= best.threshold() && best.wants(key) {
                while next < seen.len() && seen[next] < item {
                    next += 1;
                }
                if seen.get(next) != Some(&item) {
                    best.push(key, k);
                }
            }
        }
    }
}

/// Items as floats.
pub struct FewFloats<'a> {
    pub queries: Matrix<'a>,
    pub items: Matrix<'a>,
    pub bias: Option<&'a [f32]>,
    /// Of the magnitudes of the items that were scored, as integers.
    pub largest: AtomicU32,
}

impl Direct for FewFloats<'_> {
    fn score(&self, simd: SimdPath, query: usize, first: usize, out: &mut [f32]) {
        let dim = self.items.dim;
        let ids: [i32; STEP] = std::array::from_fn(|place| place as i32);
        let rows = &self.items.data[first * dim..(first + out.len()) * dim];
        let bias = self.bias.map(|bias| &bias[first..first + out.len()]);
        let own = Matrix::new(rows, out.len(), dim);
        if query == 0 {
            self.largest.fetch_max(simd.largest_bits(rows), Ordering::Relaxed);
        }
        simd.dots(self.queries.row(query), own, bias, &ids[..out.len()], out);
    }
}

/// Items as codes. Of one or two bits each byte of a row names an entry of a table of sums; others are multiplied.
pub struct FewCodes<'a> {
    items: Codes<'a>,
    bias: Option<&'a [f32]>,
    queries: Vec<Asking>,
}

/// A query of codes.
struct Asking {
    levels: Vec<i8>,
    scale: f32,
    /// Of each byte of a row, the sums that its codes have with the query; none where they are multiplied.
    sums: Vec<i16>,
}

/// Values of a byte.
const ENTRIES: usize = 256;

impl<'a> FewCodes<'a> {
    pub fn new(simd: SimdPath, queries: Codes, items: Codes<'a>, bias: Option<&'a [f32]>) -> Self {
        let asking = |query: usize| {
            let mut levels = vec![0; queries.padded()];
            queries.levels(simd, query, &mut levels);
            let mut sums = Vec::new();
            if items.bits <= 2 {
                let (mask, largest) = ((1 << items.bits) - 1, items.largest_level());
                for levels in levels.chunks(8 / items.bits) {
                    sums.extend((0..ENTRIES).map(|byte| {
                        let level = |place: usize| 2 * (byte >> (place * items.bits) & mask) as i32 - largest;
                        let products = levels.iter().enumerate().map(|(place, &q)| i32::from(q) * level(place));
                        products.sum::<i32>() as i16 // of eight times 127, or four times 127 times 3
                    }));
                }
            }
            Asking {
                levels,
                scale: queries.scale(query),
                sums,
            }
        };
        FewCodes {
            items,
            bias,
            queries: (0..queries.rows()).map(asking).collect(),
        }
    }
}

impl Direct for FewCodes<'_> {
    fn score(&self, simd: SimdPath, query: usize, first: usize, out: &mut [f32]) {
        simd.score_codes(&self.queries[query], self.items, self.bias, first, out);
    }
}

#[inline(always)]
fn score_codes(query: &Asking, items: Codes, bias: Option<&[f32]>, first: usize, out: &mut [f32]) {
    let mut unpacked = vec![[0i8; EIGHT]; query.levels.len() / EIGHT];
    for (item, out) in (first..).zip(out) {
        let bytes = items.bytes(item);
        let sum = match items.bits {
            EIGHT => query.levels.iter().zip(bytes).map(|(&q, &x)| product(q, x as i8)).sum(),
            3.. => {
                items.levels_inline(item, &mut unpacked);
                let (asked, _) = query.levels.as_chunks::<EIGHT>();
                let eights =
                    |(q, x): (&[i8; EIGHT], &[i8; EIGHT])| (0..EIGHT).map(|at| product(q[at], x[at])).sum::<i32>();
                asked.iter().zip(&unpacked).map(eights).sum()
            }
            _ => {
                let sums = query.sums.as_chunks::<ENTRIES>().0;
                bytes
                    .iter()
                    .zip(sums)
                    .map(|(&byte, sums)| i32::from(sums[usize::from(byte)]))
                    .sum()
            }
        };
        *out = code_score(sum, query.scale, items.scale(item), bias.map_or(0.0, |bias| bias[item]));
    }
}

#[inline(always)]
fn product(a: i8, b: i8) -> i32 {
    i32::from(i16::from(a) * i16::from(b))
}
