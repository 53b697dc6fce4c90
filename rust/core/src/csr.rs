//! Who has seen what.

use crate::error::Error;

/// Row numbers of either width.
pub trait RowId: Copy + Sync + Send {
    fn as_i64(self) -> i64;
}

impl RowId for i32 {
    fn as_i64(self) -> i64 {
        i64::from(self)
    }
}

impl RowId for i64 {
    fn as_i64(self) -> i64 {
        self
    }
}

/// A 0/1 matrix in CSR form; the items of a row ascend strictly.
#[derive(Clone, Copy, Debug)]
pub struct Csr<'a> {
    indptr: &'a [i64],
    indices: &'a [i32],
    items: usize,
}

impl<'a> Csr<'a> {
    /// Wraps the arrays. Order within rows is the caller's word: kernels give wrong draws, never a crash, without it.
    pub fn new(indptr: &'a [i64], indices: &'a [i32], items: usize) -> Result<Self, Error> {
        if items > i32::MAX as usize || indptr.len() > i32::MAX as usize {
            return Err(Error::Shape(format!(
                "{} rows x {items} items do not fit int32 ids",
                indptr.len().saturating_sub(1)
            )));
        }
        match (indptr.first(), indptr.last()) {
            (Some(0), Some(&last)) if last == indices.len() as i64 => Ok(Csr { indptr, indices, items }),
            _ => Err(Error::Shape(format!(
                "indptr does not run from 0 to the number of pairs, {}",
                indices.len()
            ))),
        }
    }

    pub fn rows(&self) -> usize {
        self.indptr.len() - 1
    }

    pub fn items(&self) -> usize {
        self.items
    }

    pub fn pairs(&self) -> usize {
        self.indices.len()
    }

    /// indptr and indices.
    pub fn arrays(&self) -> (&'a [i64], &'a [i32]) {
        (self.indptr, self.indices)
    }

    /// The place of `row`'s items among all pairs; an `indptr` that descends gives an empty row.
    #[inline]
    pub fn span(&self, row: usize) -> (usize, usize) {
        let low = (self.indptr[row] as usize).min(self.indices.len());
        let high = (self.indptr[row + 1] as usize).min(self.indices.len());
        (low, high.max(low))
    }

    #[inline]
    pub fn row(&self, row: usize) -> &'a [i32] {
        let (low, high) = self.span(row);
        &self.indices[low..high]
    }

    /// `row` as an index, if the matrix has it.
    #[inline]
    pub fn check(&self, row: i64) -> Result<usize, Error> {
        if row < 0 || row >= self.rows() as i64 {
            return Err(Error::RowRange { row, rows: self.rows() });
        }
        Ok(row as usize)
    }
}

/// What queries may not be shown: `seen`'s rows, in order or as `rows` says; or nothing.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    seen: Option<Csr<'a>>,
    rows: Option<&'a [i64]>,
}

impl<'a> Mask<'a> {
    pub const NONE: Mask<'static> = Mask { seen: None, rows: None };

    /// Checks that there is a row of `seen` for each of `queries` queries, and that the catalogue's size agrees.
    pub fn new(seen: Option<Csr<'a>>, rows: Option<&'a [i64]>, queries: usize, items: usize) -> Result<Self, Error> {
        if let Some(rows) = rows {
            if rows.len() != queries {
                return Err(Error::Shape(format!("{} rows for {queries} queries", rows.len())));
            }
        }
        if let Some(seen) = seen {
            if seen.items() != items {
                return Err(Error::Shape(format!(
                    "`seen` has {} items, the catalogue {items}",
                    seen.items()
                )));
            }
            match rows {
                None if seen.rows() != queries => {
                    return Err(Error::Shape(format!(
                        "`seen` has {} rows for {queries} queries; pass rows= to say which",
                        seen.rows()
                    )))
                }
                None => {}
                Some(rows) => {
                    for &row in rows {
                        seen.check(row)?;
                    }
                }
            }
        }
        Ok(Mask { seen, rows })
    }

    #[inline]
    pub fn of(&self, query: usize) -> &'a [i32] {
        match (self.seen, self.rows) {
            (None, _) => &[],
            (Some(seen), None) => seen.row(query),
            (Some(seen), Some(rows)) => seen.row(rows[query] as usize),
        }
    }
}
