//! Matrices of factors.

use std::ops::Range;

use crate::error::Error;
use crate::exec::Exec;

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
    fn largest(&self, exec: Exec, what: &'static str) -> Result<f32, Error> {
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
                // Magnitudes compare as integers, and NaN is the largest of them all.
                let bits = rows.iter().fold(0u32, |m, x| m.max(x.to_bits() & 0x7FFF_FFFF));
                if bits >= 0x7F80_0000 {
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

/// The left factor of a product, made row by row.
pub(crate) trait Rows: Sync {
    /// Writes `columns` of a row.
    fn fill(&self, row: usize, columns: Range<usize>, out: &mut [f32]);
}

/// Refuses NaN and infinity by name, and factors whose scores would overflow.
pub fn check_finite(exec: Exec, queries: Matrix, items: Matrix, bias: Option<&[f32]>) -> Result<(), Error> {
    if queries.dim != items.dim {
        return Err(Error::Shape(format!(
            "queries have dim {}, items {}",
            queries.dim, items.dim
        )));
    }
    if items.rows > i32::MAX as usize {
        return Err(Error::Shape(format!("{} items do not fit int32 ids", items.rows)));
    }
    let q = queries.largest(exec, "queries")?;
    let x = items.largest(exec, "items")?;
    let mut b = 0.0;
    if let Some(bias) = bias {
        if bias.len() != items.rows {
            return Err(Error::Shape(format!("{} biases for {} items", bias.len(), items.rows)));
        }
        b = Matrix::new(bias, bias.len(), 1).largest(exec, "bias")?;
    }
    let bound = f64::from(q) * f64::from(x) * queries.dim as f64 + f64::from(b);
    if bound > f64::from(f32::MAX) / 2.0 {
        return Err(Error::Overflow {
            queries: q,
            items: x,
            dim: queries.dim,
        });
    }
    Ok(())
}
