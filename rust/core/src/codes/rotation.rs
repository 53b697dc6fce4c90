//! The orthogonal matrix that both sides of a product are turned by.
//!
//! Coordinates are permuted. Then in each round signs are drawn, and the first or, in turn, the last of them go through a Hadamard
//! butterfly, as many as the largest power of two: over half, so that two rounds reach all, and four spread each over all. Additions and
//! products in a stated order, in float64, of one row at a time: the bytes depend on no machine, as those of a QR would.

use super::{Codes, EIGHT};
use crate::error::Error;
use crate::exec::Exec;
use crate::rng;
use crate::room::filled;
use crate::simd::compiled;

/// Rows that go through together, a lane each.
pub const LANES: usize = 16;
/// Of signs and butterfly.
const ROUNDS: usize = 4;

/// A coordinate of each of some rows.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Column(pub [f64; LANES]);

impl Column {
    pub const ZERO: Column = Column([0.0; LANES]);
}

/// A rotation of so many coordinates.
pub struct Rotation {
    order: Vec<u32>,
    /// Of each round, for each coordinate.
    signs: Vec<Vec<f64>>,
}

impl Rotation {
    /// Of the stream `seed`.
    pub fn new(dim: usize, seed: u64) -> Self {
        let word = |place: usize| rng::at(seed, place as u64);
        let mut order: Vec<u32> = (0..dim as u32).collect();
        order.sort_by_key(|&d| word(d as usize));
        let sign = |place: usize| if word(place) >> 63 == 1 { -1.0 } else { 1.0 };
        let signs = (1..=ROUNDS)
            .map(|round| (0..dim).map(|d| sign(round * dim + d)).collect())
            .collect();
        Rotation { order, signs }
    }

    /// Up to [`LANES`] rows, turned.
    pub fn turn(&self, exec: Exec, rows: &[f32], columns: &mut [Column]) {
        read(rows, columns, |d| self.order[d] as usize);
        for (round, signs) in self.signs.iter().enumerate() {
            exec.simd.turn_round(signs, round, columns);
        }
    }

    /// Columns that were turned, back into rows.
    fn turn_back(&self, exec: Exec, columns: &mut [Column], rows: &mut [f32]) {
        for (round, signs) in self.signs.iter().enumerate().rev() {
            exec.simd.turn_round_back(signs, round, columns);
        }
        let dim = columns.len();
        for (lane, row) in rows.chunks_mut(dim).enumerate() {
            for (column, &d) in columns.iter().zip(&self.order) {
                row[d as usize] = column.0[lane] as f32 + 0.0; // no -0
            }
        }
    }
}

/// Up to [`LANES`] rows as columns; coordinate `from(d)` stands at place d.
pub fn read(rows: &[f32], columns: &mut [Column], from: impl Fn(usize) -> usize) {
    let dim = columns.len();
    for (d, column) in columns.iter_mut().enumerate() {
        let place = from(d);
        *column = Column::ZERO;
        for (lane, row) in column.0.iter_mut().zip(rows.chunks(dim)) {
            *lane = f64::from(row[place]);
        }
    }
}

/// Rows of `dim` turned, as float32.
pub fn turned(exec: Exec, rows: &[f32], dim: usize, rotation: &Rotation) -> Result<Vec<f32>, Error> {
    let mut out = filled(0.0f32, rows.len(), 1)?;
    if out.is_empty() {
        return Ok(out);
    }
    exec.for_work(8 * rows.len()).each(
        out.chunks_mut(LANES * dim).zip(rows.chunks(LANES * dim)),
        || vec![Column::ZERO; dim],
        |columns, (out, rows)| {
            rotation.turn(exec, rows, columns);
            for (lane, row) in out.chunks_mut(dim).enumerate() {
                for (value, column) in row.iter_mut().zip(&*columns) {
                    *value = column.0[lane] as f32;
                }
            }
            Ok(())
        },
    )?;
    Ok(out)
}

impl Codes<'_> {
    /// The rows in the original directions.
    pub fn vectors(&self, exec: Exec, rotation: &Rotation) -> Result<Vec<f32>, Error> {
        let mut out = filled(0.0f32, self.rows(), self.dim)?;
        if out.is_empty() {
            return Ok(out);
        }
        exec.for_work(8 * out.len()).each(
            out.chunks_mut(LANES * self.dim).enumerate(),
            || (vec![Column::ZERO; self.dim], vec![0; self.padded()]),
            |(columns, levels), (task, out)| {
                for lane in 0..out.len() / self.dim {
                    let row = task * LANES + lane;
                    self.levels(exec.simd, row, levels);
                    let scale = f64::from(self.scale(row));
                    for (column, &level) in columns.iter_mut().zip(&*levels) {
                        column.0[lane] = f64::from(level) * scale;
                    }
                }
                rotation.turn_back(exec, columns, out);
                Ok(())
            },
        )?;
        Ok(out)
    }
}

compiled! {
    /// One round of signs and butterfly.
    fn turn_round(signs: &[f64], round: usize, columns: &mut [Column]) = turn_round;
    /// What undoes it.
    fn turn_round_back(signs: &[f64], round: usize, columns: &mut [Column]) = turn_round_back;
}

#[inline(always)]
fn turn_round(signs: &[f64], round: usize, columns: &mut [Column]) {
    flip(signs, columns);
    butterfly(round, columns);
}

#[inline(always)]
fn turn_round_back(signs: &[f64], round: usize, columns: &mut [Column]) {
    butterfly(round, columns);
    flip(signs, columns);
}

#[inline(always)]
fn flip(signs: &[f64], columns: &mut [Column]) {
    for (column, sign) in columns.iter_mut().zip(signs) {
        column.0.iter_mut().for_each(|x| *x *= sign);
    }
}

/// The orthonormal Hadamard transform, its own inverse, of the coordinates of a round.
#[inline(always)]
fn butterfly(round: usize, columns: &mut [Column]) {
    let dim = columns.len();
    if dim == 0 {
        return;
    }
    let size = 1usize << dim.ilog2();
    let part = match round % 2 {
        0 => &mut columns[..size],
        _ => &mut columns[dim - size..],
    };
    let mut width = 1;
    while width < size {
        for pairs in part.chunks_exact_mut(2 * width) {
            let (low, high) = pairs.split_at_mut(width);
            for (low, high) in low.iter_mut().zip(high) {
                for (a, b) in low.0.iter_mut().zip(&mut high.0) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
        }
        width *= 2;
    }
    let unit = 1.0 / (size as f64).sqrt();
    for column in part {
        column.0.iter_mut().for_each(|x| *x *= unit);
    }
}

const _: () = assert!(LANES.is_multiple_of(EIGHT));
