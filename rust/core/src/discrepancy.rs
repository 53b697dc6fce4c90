//! Draws by how much two rankings disagree.

use crate::csr::Mask;
use crate::error::Error;
use crate::exec::Exec;
use crate::math;
use crate::rng::{self, Stream};
use crate::score::{check_finite, pack_tile, Form, Matrix, Panels, Tile, COLUMNS, ROWS};
use crate::select::ordered;

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
    Packed { queries: Matrix<'a>, panels: Panels },
    Scores(Matrix<'a>, &'static str),
}

impl<'a> Side<'a> {
    fn new(exec: Exec, model: Model<'a>, what: &'static str) -> Result<Self, Error> {
        match model {
            Model::Factors { queries, items, bias } => {
                check_finite(exec, queries, items, bias)?;
                Ok(Side::Packed {
                    queries,
                    panels: Panels::pack(exec, items, bias, None)?,
                })
            }
            Model::Scores(scores) => Ok(Side::Scores(scores, what)),
        }
    }

    /// Scores of `count` queries from `first` on: `[count, stride]` with the row length rounded up to panels.
    fn rows(&self, exec: Exec, first: usize, count: usize, out: &mut [f32], stride: usize) -> Result<(), Error> {
        match self {
            Side::Packed { queries, panels } => {
                let mut packed = Vec::new();
                let mut tile = Tile::default();
                pack_tile(*queries, first..queries.rows, &mut packed);
                for panel in 0..panels.count() {
                    let (lines, bias) = panels.panel(panel);
                    exec.simd.tile(Form::Dot, &packed, lines, bias, &mut tile);
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
    let bits = 62 - (usize::BITS - items.leading_zeros()).min(22);
    let tables: Vec<Vec<u64>> = laws.iter().map(|&law| table(law, items, bits)).collect();
    let mut out: Vec<Vec<i32>> = ends
        .iter()
        .map(|ends| vec![-1; ends.last().copied().unwrap_or(0)])
        .collect();
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
    let stride = items.div_ceil(COLUMNS) * COLUMNS;
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
                scratch.rank(row * stride, seen.of(query), items);
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
        Law::Exp(s) => (0..2 * items)
            .map(|d| (math::exp_neg(-s * d as f64) * one) as u64)
            .collect(),
        Law::Tanh(s) | Law::TanhOver(s) => (0..items.max(1))
            .map(|d| (math::tanh(s * d as f64) * one) as u64)
            .collect(),
    }
}

struct Scratch {
    scores: [Vec<f32>; 2],
    unseen: Vec<i32>,
    order: Vec<u64>,
    swap: Vec<u64>,
    /// By place in `unseen`: teacher's rank - student's rank.
    difference: Vec<i32>,
    sums: Vec<u64>,
}

impl Scratch {
    fn new(items: usize, stride: usize) -> Self {
        Scratch {
            scores: [vec![0.0; ROWS * stride], vec![0.0; ROWS * stride]],
            unseen: Vec::with_capacity(items),
            order: Vec::with_capacity(items),
            swap: Vec::with_capacity(items),
            difference: Vec::with_capacity(items),
            sums: Vec::with_capacity(items),
        }
    }

    /// Ranks of the unseen items of the row that starts at `start`, as differences.
    fn rank(&mut self, start: usize, seen: &[i32], items: usize) {
        self.unseen.clear();
        let mut next = 0;
        for &item in seen {
            self.unseen.extend(next..item.min(items as i32));
            next = item + 1;
        }
        self.unseen.extend(next..items as i32);
        self.difference.clear();
        self.difference.resize(self.unseen.len(), 0);
        for (side, sign) in [(0, -1), (1, 1)] {
            let scores = &self.scores[side][start..];
            self.order.clear();
            // Descending score, then ascending place (places ascend with ids): sort ascending by the inverted key.
            self.order.extend(
                self.unseen
                    .iter()
                    .enumerate()
                    .map(|(place, &item)| u64::from(!ordered(scores[item as usize])) << 32 | place as u64),
            );
            radix_sort(&mut self.order, &mut self.swap);
            for (rank, &key) in self.order.iter().enumerate() {
                self.difference[key as u32 as usize] += sign * rank as i32;
            }
        }
    }

    fn draw(&mut self, law: Law, table: &[u64], stream: &mut Stream, out: &mut [i32]) {
        if out.is_empty() {
            return;
        }
        let largest = self.difference.iter().copied().max().unwrap_or(0);
        self.sums.clear();
        let mut sum = 0;
        for &difference in &self.difference {
            sum += match law {
                Law::Exp(_) => table[(largest - difference) as usize],
                Law::Tanh(_) => table[(-difference).max(0) as usize],
                Law::TanhOver(_) => table[difference.max(0) as usize],
            };
            self.sums.push(sum);
        }
        if sum == 0 {
            return;
        }
        for slot in out {
            let x = stream.below(sum);
            *slot = self.unseen[self.sums.partition_point(|&s| s <= x)];
        }
    }
}

/// Sorts by the upper 32 bits, keeping the order of equals: three passes of 11 bits.
fn radix_sort(keys: &mut Vec<u64>, swap: &mut Vec<u64>) {
    const BITS: u32 = 11;
    const SIZE: usize = 1 << BITS;
    let mut counts = [[0u32; SIZE]; 3];
    for &key in keys.iter() {
        for (pass, counts) in counts.iter_mut().enumerate() {
            counts[(key >> (32 + BITS * pass as u32)) as usize % SIZE] += 1;
        }
    }
    swap.resize(keys.len(), 0);
    for (pass, counts) in counts.iter_mut().enumerate() {
        let mut place = 0;
        for count in counts.iter_mut() {
            place += std::mem::replace(count, place);
        }
        for &key in keys.iter() {
            let slot = &mut counts[(key >> (32 + BITS * pass as u32)) as usize % SIZE];
            swap[*slot as usize] = key;
            *slot += 1;
        }
        std::mem::swap(keys, swap);
    }
}
