//! Matrices of factors.

use std::ops::Range;

use crate::error::Error;
use crate::exec::Exec;
use crate::simd::compiled;

/// A row-major matrix of factors.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub dim: usize,
}

impl<'a> Matrix<'a> {
    pub fn new(data: &'a [f32], rows: usize, dim: usize) -> Self {
        assert_eq!(data.len(), rows * dim, "a matrix has rows x dim values");
        Matrix { data, rows, dim }
    }

    #[inline]
    pub fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.dim..(row + 1) * self.dim]
    }

    /// The largest magnitude; an error that names the first row with NaN or infinity.
    pub fn largest(&self, exec: Exec, what: &'static str) -> Result<f32, Error> {
        if self.data.is_empty() {
            return Ok(0.0);
        }
        let step = (65_536 / self.dim).max(1);
        let mut largest = vec![0.0f32; self.rows.div_ceil(step)];
        let tasks = self.data.chunks(step * self.dim).zip(&mut largest).enumerate();
        exec.each(
            tasks,
            || (),
            |(), (task, (rows, largest))| {
                let bits = exec.simd.largest_bits(rows);
                if bits >= NOT_FINITE {
                    let bad = rows.iter().position(|x| !x.is_finite());
                    let row = task * step + bad.map_or(0, |place| place / self.dim);
                    return Err(Error::NotFinite { what, row });
                }
                *largest = f32::from_bits(bits);
                Ok(())
            },
        )?;
        Ok(largest.into_iter().fold(0.0, f32::max))
    }
}

/// Magnitudes from here on are infinity and NaN.
pub const NOT_FINITE: u32 = 0x7F80_0000;

compiled! {
    /// The largest magnitude as an integer: magnitudes compare as integers, and NaN is the largest of them all.
    pub fn largest_bits(values: &[f32]) -> u32 = largest_bits;
}

#[inline(always)]
fn largest_bits(values: &[f32]) -> u32 {
    values.iter().fold(0, |most, x| most.max(x.to_bits() & 0x7FFF_FFFF))
}

/// The left factor of a product, made row by row.
pub(crate) trait Rows: Sync {
    /// Writes `columns` of a row.
    fn fill(&self, row: usize, columns: Range<usize>, out: &mut [f32]);
}

/// Refuses NaN and infinity by name, and factors whose scores would overflow.
pub fn check_finite(exec: Exec, queries: Matrix, items: Matrix, bias: Option<&[f32]>) -> Result<(), Error> {
    check_shapes(queries, items)?;
    let q = queries.largest(exec, "queries")?;
    let x = items.largest(exec, "items")?;
    check_bound(q, x, queries.dim, largest_bias(exec, items.rows, bias)?)
}

/// Refuses sizes that do not go together.
pub fn check_shapes(queries: Matrix, items: Matrix) -> Result<(), Error> {
    if queries.dim != items.dim {
        return Err(Error::Shape(format!(
            "queries have dim {}, items {}",
            queries.dim, items.dim
        )));
    }
    check_items_fit(items.rows)
}

/// Refuses more items than ids.
pub fn check_items_fit(items: usize) -> Result<(), Error> {
    if items > i32::MAX as usize {
        return Err(Error::Shape(format!("{items} items do not fit int32 ids")));
    }
    Ok(())
}

/// The largest magnitude among biases; refuses NaN, infinity and another number of them than of items.
pub fn largest_bias(exec: Exec, items: usize, bias: Option<&[f32]>) -> Result<f32, Error> {
    match bias {
        None => Ok(0.0),
        Some(bias) if bias.len() != items => Err(Error::Shape(format!("{} biases for {items} items", bias.len()))),
        Some(bias) => Matrix::new(bias, bias.len(), 1).largest(exec, "bias"),
    }
}

/// Refuses factors of these largest magnitudes if a score could be past the range.
pub fn check_bound(queries: f32, items: f32, dim: usize, bias: f32) -> Result<(), Error> {
    let bound = f64::from(queries) * f64::from(items) * dim as f64 + f64::from(bias);
    if bound > f64::from(f32::MAX) / 2.0 {
        return Err(Error::Overflow { queries, items, dim });
    }
    Ok(())
}
