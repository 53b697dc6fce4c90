//! A table and its moments, whole or shared among threads.

use crate::error::Error;
use crate::matrix::Matrix;

/// Floats of a table that one task updates.
const TASK_FLOATS: usize = 1 << 15;

/// A table [rows, dim] and its two moments.
pub struct Table<'a> {
    values: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    pub(super) dim: usize,
}

impl<'a> Table<'a> {
    pub fn new(values: &'a mut [f32], first: &'a mut [f32], second: &'a mut [f32], dim: usize) -> Result<Self, Error> {
        if first.len() != values.len() || second.len() != values.len() || dim == 0 || !values.len().is_multiple_of(dim)
        {
            return Err(Error::Shape(format!(
                "a table of {} values in rows of {dim} with moments of {} and {}",
                values.len(),
                first.len(),
                second.len()
            )));
        }
        Ok(Table {
            values,
            first,
            second,
            dim,
        })
    }

    pub(super) fn rows(&self) -> usize {
        self.values.len() / self.dim
    }
}

/// A table whose rows go to several threads.
pub(crate) struct Shared<'a> {
    pub values: *mut f32,
    pub first: *mut f32,
    pub second: *mut f32,
    pub rows: usize,
    pub dim: usize,
    /// Keeps the table borrowed.
    _table: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: what it points to is borrowed mutably for as long as it lives, and `row`'s callers hand each row to one thread.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub fn new(table: Table<'a>) -> Self {
        Shared {
            rows: table.values.len() / table.dim,
            values: table.values.as_mut_ptr(),
            first: table.first.as_mut_ptr(),
            second: table.second.as_mut_ptr(),
            dim: table.dim,
            _table: std::marker::PhantomData,
        }
    }

    /// Rows that make a task.
    pub fn task_rows(&self) -> usize {
        (TASK_FLOATS / self.dim).max(1)
    }

    /// The table's values, to be read.
    ///
    /// # Safety
    /// Nobody changes them while the matrix lives.
    pub unsafe fn matrix(&self) -> Matrix<'_> {
        // SAFETY: there are rows x dim values, and the caller vouches for the rest.
        let values = unsafe { std::slice::from_raw_parts(self.values, self.rows * self.dim) };
        Matrix::new(values, self.rows, self.dim)
    }

    /// # Safety
    /// `row` is a row of the table, and no other reference to it lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn row(&self, row: u32) -> (&mut [f32], &mut [f32], &mut [f32]) {
        let start = row as usize * self.dim;
        // SAFETY: all three have rows x dim values, and the caller vouches for row and for its being alone.
        unsafe {
            (
                std::slice::from_raw_parts_mut(self.values.add(start), self.dim),
                std::slice::from_raw_parts_mut(self.first.add(start), self.dim),
                std::slice::from_raw_parts_mut(self.second.add(start), self.dim),
            )
        }
    }
}
