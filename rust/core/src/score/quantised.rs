//! Eight-bit upper bounds of scores, so that most of a catalogue is ruled out at a quarter of the cost.
//!
//! Queries and items are rounded to multiples of a scale of their own. The dot product of the integers, times both
//! scales, differs from the exact score by at most `|q - q'| |x| + |q'| |x - x'|` (Cauchy and Schwarz; primes mark the
//! rounded vectors) plus the rounding of the chain itself. A score that could reach its threshold is always passed on,
//! and is then computed exactly: the result does not depend on this module, only the time does. A bias is one more
//! dimension, in which every query has the same coordinate.

use super::{length, rounding, square, Matrix, COLUMNS, LINE, ROWS};
use crate::error::Error;
use crate::exec::Exec;

/// Dimensions that one 32-bit lane holds.
pub const GROUP: usize = 4;
/// Past this, sums of products of bytes could leave 32 bits.
const MAX_DIM: usize = 1 << 16;

/// One cache line: four dimensions of sixteen items.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub [[i8; GROUP]; LINE]);

/// One cache line of sums.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Sums(pub [i32; LINE]);

/// Items as signed bytes in panels.
pub struct BytePanels {
    pub lines: Vec<Bytes>,
    /// -128 times the sum of an item's bytes, which undoes the offset of the unsigned queries; the least integer for
    /// columns past the last item, which then never pass.
    pub starts: Vec<[Sums; 2]>,
    /// Per panel: 1 / scale, the longest vector, the longest rounding error.
    pub inverse_scales: Vec<f32>,
    pub lengths: Vec<f32>,
    pub errors: Vec<f32>,
    /// Groups of four dimensions.
    pub groups: usize,
    /// The queries' coordinate in the dimension of the bias; 0 without bias.
    pub unit: f32,
    pub items: usize,
}

impl BytePanels {
    /// Whether the sums of `dim` dimensions and a bias fit.
    pub fn fits(dim: usize) -> bool {
        dim < MAX_DIM
    }

    pub fn pack(exec: Exec, items: Matrix, bias: Option<&[f32]>, order: &[i32], unit: f32) -> Result<Self, Error> {
        let unit = if bias.is_some() { unit } else { 0.0 };
        let panels = items.rows.div_ceil(COLUMNS);
        let groups = (items.dim + usize::from(bias.is_some())).div_ceil(GROUP);
        let per_panel = groups * 2;
        let mut packed = BytePanels {
            lines: vec![Bytes([[0; GROUP]; LINE]); panels * per_panel],
            starts: vec![[Sums([i32::MIN; LINE]); 2]; panels],
            inverse_scales: vec![1.0; panels],
            lengths: vec![0.0; panels],
            errors: vec![0.0; panels],
            groups,
            unit,
            items: items.rows,
        };
        const STEP: usize = 16;
        let tasks = packed
            .lines
            .chunks_mut((STEP * per_panel).max(1))
            .zip(packed.starts.chunks_mut(STEP))
            .zip(packed.inverse_scales.chunks_mut(STEP))
            .zip(packed.lengths.chunks_mut(STEP).zip(packed.errors.chunks_mut(STEP)))
            .enumerate();
        exec.each(tasks, Vec::new, |row: &mut Vec<f32>, (task, (((lines, starts), scales), (lengths, errors)))| {
            for (offset, lines) in lines.chunks_mut(per_panel).enumerate() {
                let first = (task * STEP + offset) * COLUMNS;
                let ids = &order[first..items.rows.min(first + COLUMNS)];
                let extra = |id: i32| bias.map(|bias| bias[id as usize] / unit);
                let mut largest = 0.0f32;
                for &id in ids {
                    largest = items.row(id as usize).iter().fold(largest, |m, x| m.max(x.abs()));
                    largest = largest.max(extra(id).unwrap_or(0.0).abs());
                }
                let inverse = inverse_scale(largest);
                let (mut longest, mut error) = (0.0f64, 0.0f64);
                for (column, &id) in ids.iter().enumerate() {
                    row.clear();
                    row.extend_from_slice(items.row(id as usize));
                    row.extend(extra(id));
                    let (half, place) = (column / LINE, column % LINE);
                    let mut sum = 0;
                    for (line, values) in lines[half..].iter_mut().step_by(2).zip(row.chunks(GROUP)) {
                        for (byte, &x) in line.0[place].iter_mut().zip(values) {
                            *byte = rounded(x * inverse) as i8;
                            sum += i32::from(*byte);
                        }
                    }
                    starts[offset][half].0[place] = -128 * sum;
                    longest = longest.max(square(row));
                    error = error.max(squared_error(row, inverse));
                }
                scales[offset] = inverse;
                lengths[offset] = length(longest);
                errors[offset] = length(error);
            }
            Ok(())
        })?;
        Ok(packed)
    }

    pub fn count(&self) -> usize {
        self.starts.len()
    }

    /// By how much a sum's score may be off, for a row of a tile and a panel.
    #[inline(always)]
    pub fn error(&self, tile: &ByteTile, row: usize, panel: usize) -> f32 {
        tile.per_length[row] * self.lengths[panel] + tile.per_error[row] * self.errors[panel] + f32::MIN_POSITIVE
    }

    /// The score that a sum stands for, to within [`BytePanels::error`].
    #[inline(always)]
    pub fn score(&self, tile: &ByteTile, row: usize, panel: usize, sum: i32) -> f32 {
        sum as f32 / (tile.inverse_scales[row] * self.inverse_scales[panel])
    }
}

/// 1 / scale such that `largest` becomes 127; capped so that the product of two stays finite.
fn inverse_scale(largest: f32) -> f32 {
    (127.0 / largest).min(1e18)
}

/// The nearest integer of |x| <= 2^21: adding 1.5 * 2^23 leaves it in the low bits.
#[inline(always)]
fn rounded(x: f32) -> i32 {
    ((x.clamp(-127.0, 127.0) + 12_582_912.0).to_bits() as i32) - 12_582_912.0f32.to_bits() as i32
}

/// |x - x'|^2 of a row and its rounded form.
fn squared_error(row: &[f32], inverse: f32) -> f64 {
    let scale = 1.0 / f64::from(inverse);
    row.iter()
        .map(|&x| {
            let error = f64::from(x) - f64::from(rounded(x * inverse)) * scale;
            error * error
        })
        .sum()
}

/// A tile of queries as unsigned bytes, and what bounds its errors.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub struct ByteTile {
    /// 1 / scale of each query.
    pub inverse_scales: [f32; LINE],
    /// Error for each unit of an item's length, and for each unit of an item's error.
    pub per_length: [f32; LINE],
    pub per_error: [f32; LINE],
    /// `[groups][ROWS]`, four bytes each.
    pub bytes: Vec<[u8; GROUP]>,
}

impl Default for ByteTile {
    fn default() -> Self {
        ByteTile {
            inverse_scales: [1.0; LINE],
            per_length: [0.0; LINE],
            per_error: [0.0; LINE],
            bytes: Vec::new(),
        }
    }
}

impl ByteTile {
    pub fn pack(&mut self, queries: Matrix, ids: impl Iterator<Item = usize>, panels: &BytePanels) {
        self.bytes.clear();
        self.bytes.resize(panels.groups * ROWS, [128; GROUP]);
        let mut padded = Vec::with_capacity(queries.dim + 1);
        for (row, id) in ids.take(ROWS).enumerate() {
            padded.clear();
            padded.extend_from_slice(queries.row(id));
            if panels.unit > 0.0 {
                padded.push(panels.unit);
            }
            let inverse = inverse_scale(padded.iter().fold(0.0f32, |m, x| m.max(x.abs())));
            let mut kept = 0i64;
            for (group, values) in padded.chunks(GROUP).enumerate() {
                for (byte, &x) in self.bytes[group * ROWS + row].iter_mut().zip(values) {
                    let value = rounded(x * inverse);
                    kept += i64::from(value) * i64::from(value);
                    *byte = (value + 128) as u8;
                }
            }
            self.inverse_scales[row] = inverse;
            let slack = rounding(queries.dim) * length(square(&padded));
            self.per_length[row] = (length(squared_error(&padded, inverse)) + slack) * 1.000_01;
            self.per_error[row] = length(kept as f64) / inverse * 1.000_01;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_the_nearest() {
        for (x, expected) in [(0.4, 0), (0.6, 1), (-0.6, -1), (126.7, 127), (-127.0, -127), (300.0, 127)] {
            assert_eq!(rounded(x), expected);
        }
    }
}
