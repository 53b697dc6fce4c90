//! Draws by how much two rankings disagree.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use crate::csr::Mask;
use crate::error::Error;
use crate::exec::Exec;
use crate::math;
use crate::matrix::Matrix;
use crate::rng::{self, Stream};
use crate::room::{filled, probe};
use crate::score::{Factors, PackedFactors, Tile, WholeScorer, COLUMNS, ROWS};
use crate::select::ordered;
use crate::simd::{compiled, SimdPath};

const KERNEL: u64 = 5;

/// The weight of an unseen item from its ranks in the student and in the teacher (1 = best).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Law {
    /// exp(sharpness * (teacher's rank - student's rank)): what the student places higher, for the teacher to learn.
    Exp(f64),
    /// tanh(max(sharpness * (student's rank - teacher's rank), 0)): what the student underrates.
    Tanh(f64),
    /// tanh(max(sharpness * (teacher's rank - student's rank), 0)): what the student overrates.
    TanhOver(f64),
}

/// Where one side's scores come from.
#[derive(Clone, Copy)]
pub enum Model<'a> {
    Factors {
        queries: Matrix<'a>,
        items: Matrix<'a>,
        bias: Option<&'a [f32]>,
    },
    Scores(Matrix<'a>),
}

impl Model<'_> {
    pub fn queries(&self) -> usize {
        match self {
            Model::Factors { queries, .. } => queries.rows,
            Model::Scores(scores) => scores.rows,
        }
    }

    pub fn items(&self) -> usize {
        match self {
            Model::Factors { items, .. } => items.rows,
            Model::Scores(scores) => scores.dim,
        }
    }
}

/// Score rows of one side, tile by tile.
enum Side<'a> {
    Factors(PackedFactors<'a>),
    Scores(Matrix<'a>, &'static str),
}

impl<'a> Side<'a> {
    fn new(exec: Exec, model: Model<'a>, what: &'static str) -> Result<Self, Error> {
        match model {
            Model::Factors { queries, items, bias } => {
                let factors = Factors::new(exec, queries, items, bias)?;
                Ok(Side::Factors(factors.packed(exec)?))
            }
            Model::Scores(scores) => Ok(Side::Scores(scores, what)),
        }
    }

    /// Scores of `count` queries from `first` on: `[count, stride]` with the row length rounded up to panels.
    fn rows(&self, exec: Exec, first: usize, count: usize, out: &mut [f32], stride: usize) -> Result<(), Error> {
        match self {
            Side::Factors(factors) => {
                let mut packed = Vec::new();
                let mut tile = Tile::default();
                factors.pack(exec.simd, first, &mut packed);
                for panel in 0..factors.panels() {
                    factors.panel(exec.simd, &mut packed, panel, &mut tile);
                    for row in 0..count {
                        out[row * stride + panel * COLUMNS..][..COLUMNS].copy_from_slice(&tile.0[row]);
                    }
                }
            }
            Side::Scores(scores, what) => {
                for row in 0..count {
                    let source = scores.row(first + row);
                    if source.iter().any(|s| s.is_nan() || *s == f32::INFINITY) {
                        return Err(Error::NotFinite { what, row: first + row });
                    }
                    out[row * stride..][..source.len()].copy_from_slice(source);
                }
            }
        }
        Ok(())
    }
}

/// Draws with replacement from each law, `ends[l][q]` being the end of query q's draws in the result of law `l`.
///
/// Ranks are exact, among the items a query has not seen, ties by item id. A query whose weights are all zero, or that
/// has seen everything, gets -1. Weights are rounded to multiples of 2^-40 of the row's largest (finer for catalogues
/// below 2^23 items), so that cumulative sums are exact.
pub fn discrepancy(
    exec: Exec,
    student: Model,
    teacher: Model,
    seen: Mask,
    laws: &[Law],
    ends: &[Vec<usize>],
    seed: u64,
) -> Result<Vec<Vec<i32>>, Error> {
    let (queries, items) = (student.queries(), student.items());
    if teacher.queries() != queries || teacher.items() != items {
        return Err(Error::Shape(format!(
            "the student scores {queries} x {items}, the teacher {} x {}",
            teacher.queries(),
            teacher.items()
        )));
    }
    let sides = [
        Side::new(exec, student, "student")?,
        Side::new(exec, teacher, "teacher")?,
    ];
    let stride = items.div_ceil(COLUMNS) * COLUMNS;
    let threads = exec.threads().min(queries.div_ceil(ROWS));
    let tables = laws.len() * 16 * (items + queries + 2); // and the slots of queries
    probe(tables + threads * Scratch::bytes(items, stride) + 24 * queries)?;
    let bits = 62 - (usize::BITS - items.leading_zeros()).min(22);
    let tables: Vec<Vec<u64>> = laws.iter().map(|&law| table(law, items, bits)).collect();
    let mut out: Vec<Vec<i32>> = ends
        .iter()
        .map(|ends| filled(-1, ends.last().copied().unwrap_or(0), 1))
        .collect::<Result<_, _>>()?;
    let mut slots: Vec<Vec<&mut [i32]>> = (0..queries).map(|_| Vec::with_capacity(laws.len())).collect();
    for (out, ends) in out.iter_mut().zip(ends) {
        let mut rest = out.as_mut_slice();
        let mut start = 0;
        for (&end, slots) in ends.iter().zip(&mut slots) {
            let (piece, tail) = rest.split_at_mut(end - start);
            slots.push(piece);
            rest = tail;
            start = end;
        }
    }
    let keys: Vec<u64> = (0..laws.len() as u64)
        .map(|l| rng::key(seed, KERNEL + (l << 8)))
        .collect();
    exec.each(
        slots.chunks_mut(ROWS).enumerate(),
        || Scratch::new(items, stride),
        |scratch, (task, slots)| {
            let first = task * ROWS;
            for (side, scores) in sides.iter().zip(&mut scratch.scores) {
                side.rows(exec, first, slots.len(), scores, stride)?;
            }
            for (row, slots) in slots.iter_mut().enumerate() {
                let query = first + row;
                scratch.rank(exec.simd, row * stride, seen.of(query), items);
                for (law, out) in slots.iter_mut().enumerate() {
                    let mut stream = Stream::of_row(keys[law], query as u64);
                    scratch.draw(laws[law], &tables[law], &mut stream, out);
                }
            }
            Ok(())
        },
    )?;
    drop(slots);
    Ok(out)
}

/// Integer weights by distance: for [`Law::Exp`] the distance below the row's largest difference, else the difference.
fn table(law: Law, items: usize, bits: u32) -> Vec<u64> {
    let one = (1u64 << bits) as f64;
    match law {
        // The last entry is the weight of seen items.
        Law::Exp(s) => {
            let weights = (0..2 * items).map(|d| (math::exp_neg(-s * d as f64) * one) as u64);
            weights.chain([0]).collect()
        }
        Law::Tanh(s) | Law::TanhOver(s) => (0..items.max(1))
            .map(|d| (math::tanh(s * d as f64) * one) as u64)
            .collect(),
    }
}

struct Scratch {
    scores: [Vec<f32>; 2],
    codes: Vec<u32>,
    order: Vec<u64>,
    swap: Vec<u64>,
    /// By item: teacher's rank - student's rank; [`SEEN`] for seen items.
    difference: Vec<i32>,
    sums: Vec<u64>,
}

const SEEN: i32 = i32::MIN;

impl Scratch {
    fn bytes(items: usize, stride: usize) -> usize {
        8 * ROWS * stride + 32 * items
    }

    fn new(items: usize, stride: usize) -> Self {
        Scratch {
            scores: [vec![0.0; ROWS * stride], vec![0.0; ROWS * stride]],
            codes: vec![0; items],
            order: vec![0; items],
            swap: vec![0; items],
            difference: vec![0; items],
            sums: vec![0; items],
        }
    }

    /// Ranks of the unseen items of the row that starts at `start`, as differences.
    #[inline(never)]
    fn rank(&mut self, simd: SimdPath, start: usize, seen: &[i32], items: usize) {
        let seen = || seen.iter().map(|&item| item as usize).filter(|&item| item < items);
        let unseen = items - seen().count();
        self.difference.fill(0);
        for (side, sign) in [(0, -1), (1, 1)] {
            let scores = &mut self.scores[side][start..start + items];
            // Not a number: the one score that no unseen item can have.
            seen().for_each(|item| scores[item] = f32::NAN);
            sort(simd, scores, &mut self.codes, &mut self.order, &mut self.swap);
            for (rank, &key) in self.order[..unseen].iter().enumerate() {
                self.difference[key as u32 as usize] += sign * rank as i32;
            }
        }
        seen().for_each(|item| self.difference[item] = SEEN);
    }

    #[inline(never)]
    fn draw(&mut self, law: Law, table: &[u64], stream: &mut Stream, out: &mut [i32]) {
        if out.is_empty() {
            return;
        }
        let sum = match law {
            Law::Exp(_) => {
                let largest = self.difference.iter().fold(SEEN, |m, &d| m.max(d));
                self.accumulate(|d| {
                    table[if d == SEEN {
                        table.len() - 1
                    } else {
                        (largest - d) as usize
                    }]
                })
            }
            Law::Tanh(_) => self.accumulate(|d| table[if d == SEEN { 0 } else { (-d).max(0) as usize }]),
            Law::TanhOver(_) => self.accumulate(|d| table[d.max(0) as usize]),
        };
        if sum == 0 {
            return;
        }
        for slot in out {
            let x = stream.below(sum);
            *slot = self.sums.partition_point(|&s| s <= x) as i32;
        }
    }

    #[inline(always)]
    fn accumulate(&mut self, weight: impl Fn(i32) -> u64) -> u64 {
        let mut sum = 0;
        for (slot, &difference) in self.sums.iter_mut().zip(&self.difference) {
            sum += weight(difference);
            *slot = sum;
        }
        sum
    }
}

/// Bits of a digit of the sort below; so few that the ends of all runs stay in the nearest cache. Three make a code.
const DIGIT: u32 = 8;
const DIGITS: usize = 1 << DIGIT;
/// Code of seen items, past those of all others. Integers below 2^23 become floats by adding 2^23, and back.
const LAST: u32 = (1 << 23) - 1;

/// Items by descending score, ties by id, those whose score is not a number last; ids in the low halves of `order`.
///
/// Scores are mapped linearly to 23 bits, which keeps their order, and sorted by those in three stable passes; the few
/// neighbours that share a code are then put right.
#[inline(never)]
fn sort(simd: SimdPath, scores: &[f32], codes: &mut [u32], order: &mut [u64], swap: &mut [u64]) {
    simd.codes(scores, codes);
    let mut counts = [[0u32; DIGITS]; 3];
    for &code in codes.iter() {
        for (pass, counts) in counts.iter_mut().enumerate() {
            counts[(code >> (DIGIT * pass as u32)) as usize % DIGITS] += 1;
        }
    }
    for counts in &mut counts {
        let mut place = 0;
        for count in counts {
            place += std::mem::replace(count, place);
        }
    }
    let mut put = |pass: u32, key: u64, to: &mut [u64]| {
        let slot = &mut counts[pass as usize][(key >> (32 + DIGIT * pass)) as usize % DIGITS];
        to[*slot as usize] = key;
        *slot += 1;
    };
    for (item, &code) in codes.iter().enumerate() {
        put(0, u64::from(code) << 32 | item as u64, order);
    }
    for &key in order.iter() {
        put(1, key, swap);
    }
    for &key in swap.iter() {
        put(2, key, order);
    }
    let mut start = 0;
    while let Some(tie) = simd.tie(&order[start..]) {
        start += tie;
        let code = order[start] >> 32;
        let end = start + order[start..].iter().take_while(|&&key| key >> 32 == code).count();
        if code < u64::from(LAST) {
            let best = |&key: &u64| (!ordered(scores[key as u32 as usize]), key as u32);
            if !order[start..end].is_sorted_by_key(best) {
                order[start..end].sort_unstable_by_key(best);
            }
        }
        start = end;
    }
}

compiled! {
    /// The place of the first key that shares its upper half with the next.
    fn tie(order: &[u64]) -> Option<usize> = tie, avx512: tie_avx512;
    /// Codes of scores: linear from the best (0) to the worst, [`LAST`] for what is not a number.
    fn codes(scores: &[f32], out: &mut [u32]) = codes;
}

/// The place of the first key that shares its upper half with the next.
#[inline(always)]
fn tie(order: &[u64]) -> Option<usize> {
    order.windows(2).position(|pair| (pair[0] ^ pair[1]) >> 32 == 0)
}

/// [`tie`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1")]
fn tie_avx512(order: &[u64]) -> Option<usize> {
    const LANES: usize = 8;
    let upper = _mm512_set1_epi64(!0xFFFF_FFFF);
    let mut start = 0;
    while start + LANES < order.len() {
        // SAFETY: 8 keys from start, and from the one after; both end at or before the last.
        let (these, next) = unsafe {
            (
                _mm512_loadu_si512(order.as_ptr().add(start).cast()),
                _mm512_loadu_si512(order.as_ptr().add(start + 1).cast()),
            )
        };
        let same = _mm512_testn_epi64_mask(_mm512_xor_si512(these, next), upper);
        if same != 0 {
            return Some(start + same.trailing_zeros() as usize);
        }
        start += LANES;
    }
    tie(&order[start..]).map(|place| start + place)
}

/// Codes of scores: linear from the best (0) to the worst, [`LAST`] for what is not a number.
#[inline(always)]
fn codes(scores: &[f32], out: &mut [u32]) {
    const LANES: usize = 32;
    let (mut tops, mut bottoms) = ([f32::NEG_INFINITY; LANES], [f32::INFINITY; LANES]);
    let (blocks, rest) = scores.as_chunks::<LANES>();
    for block in blocks {
        for ((&score, top), bottom) in block.iter().zip(&mut tops).zip(&mut bottoms) {
            // Comparisons with NaN are false.
            *top = if score > *top { score } else { *top };
            let finite = if score > f32::NEG_INFINITY {
                score
            } else {
                f32::INFINITY
            };
            *bottom = if finite < *bottom { finite } else { *bottom };
        }
    }
    let (mut top, mut bottom) = (f32::NEG_INFINITY, f32::INFINITY);
    for &score in tops.iter().chain(&bottoms).chain(rest) {
        top = if score > top && score < f32::INFINITY {
            score
        } else {
            top
        };
        bottom = if score < bottom && score > f32::NEG_INFINITY {
            score
        } else {
            bottom
        };
    }
    let scale = (LAST - 1) as f32 / (top - bottom);
    for (&score, out) in scores.iter().zip(out) {
        // NaN, of 0 * infinity where all scores are equal, is no less than the worst and gets its code.
        let place = (top - score) * scale;
        let place = if place < (LAST - 1) as f32 {
            place
        } else {
            (LAST - 1) as f32
        };
        let code = (place + 8_388_608.0).to_bits() & LAST;
        *out = if score.is_nan() { LAST } else { code };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(scores: Vec<f32>) {
        let mut expected: Vec<u32> = (0..scores.len() as u32)
            .filter(|&i| !scores[i as usize].is_nan())
            .collect();
        expected.sort_by_key(|&i| (!ordered(scores[i as usize]), i));
        let n = scores.len();
        let (mut codes, mut order, mut swap) = (vec![0; n], vec![0; n], vec![0; n]);
        sort(SimdPath::best(), &scores, &mut codes, &mut order, &mut swap);
        let got: Vec<u32> = order.iter().take(expected.len()).map(|&key| key as u32).collect();
        assert_eq!(got, expected, "{scores:?}");
    }

    #[test]
    fn sorts_whatever_the_scale() {
        let word = |c: u64| rng::at(5, c);
        check(vec![]);
        check(vec![1.0]);
        check(vec![2.0; 40]);
        check((0..3000).map(|c| rng::unit(word(c)) as f32).collect());
        check((0..3000).map(|c| (word(c) % 7) as f32 - 3.0).collect());
        check(
            (0..999)
                .map(|c| f32::from_bits((word(c) as u32) & 0x007F_FFFF))
                .collect(),
        );
        check(
            (0..999)
                .map(|c| f32::MAX * (1.0 - 2.0 * rng::unit(word(c)) as f32))
                .collect(),
        );
        check((0..999).map(|c| 1e30f32.powf(rng::unit(word(c)) as f32)).collect());
        check(
            (0..999)
                .map(|c| match word(c) % 4 {
                    0 => f32::NAN,
                    1 => f32::NEG_INFINITY,
                    r => r as f32 * 1e-30,
                })
                .collect(),
        );
        check(vec![f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NAN, 1.0, -0.0, 0.0]);
    }
}
