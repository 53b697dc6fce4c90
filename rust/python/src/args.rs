//! NumPy arrays as slices.

use kdrs_core::{Csr, Matrix, RowId, SimdPath};
use numpy::{PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::error::{raise, refuse};

pub type Ints32<'py> = PyReadonlyArray1<'py, i32>;
pub type Ints64<'py> = PyReadonlyArray1<'py, i64>;
pub type Lists<'py> = PyReadonlyArray2<'py, i32>;
pub type Floats<'py> = PyReadonlyArray1<'py, f32>;
pub type Factors<'py> = PyReadonlyArray2<'py, f32>;
/// indptr, indices, number of items
pub type Seen<'py> = (Ints64<'py>, Ints32<'py>, usize);

/// Row numbers of either width.
#[derive(FromPyObject)]
pub enum Rows<'py> {
    Narrow(Ints32<'py>),
    Wide(Ints64<'py>),
}

pub fn csr<'a>(py: Python, seen: &'a Seen) -> PyResult<Csr<'a>> {
    Csr::new(seen.0.as_slice()?, seen.1.as_slice()?, seen.2).map_err(|error| raise(py, error))
}

pub fn matrix<'a>(array: &'a Factors) -> PyResult<Matrix<'a>> {
    let shape = array.shape();
    Ok(Matrix::new(array.as_slice()?, shape[0], shape[1]))
}

/// The forced path, or the machine's best.
pub fn simd(py: Python, name: Option<&str>) -> PyResult<SimdPath> {
    match name {
        None => Ok(SimdPath::best()),
        Some(name) => SimdPath::named(name).ok_or_else(|| {
            let cause = format!("KDRS_SIMD is {name:?}, which this processor does not have");
            refuse(py, cause, Some("unset it, or use portable"))
        }),
    }
}

/// Runs `$body` with `$rows` bound to a slice of either width.
macro_rules! with_rows {
    ($argument:expr, $rows:ident => $body:expr) => {
        match &$argument {
            $crate::args::Rows::Narrow(array) => {
                let $rows = array.as_slice()?;
                $body
            }
            $crate::args::Rows::Wide(array) => {
                let $rows = array.as_slice()?;
                $body
            }
        }
    };
}
pub(crate) use with_rows;

/// Ends of the targets of each query: a CSR's rows, as `rows` says.
pub fn targets<R: RowId>(truth: Csr, rows: Option<&[R]>) -> Result<(Vec<i32>, Vec<usize>), kdrs_core::Error> {
    let count = rows.map_or(truth.rows(), <[R]>::len);
    let mut items = Vec::new();
    let mut ends = Vec::with_capacity(count);
    for query in 0..count {
        let row = match rows {
            None => query,
            Some(rows) => truth.check(rows[query].as_i64())?,
        };
        items.extend_from_slice(truth.row(row));
        ends.push(items.len());
    }
    Ok((items, ends))
}
