//! NumPy arrays as slices.

use kdrs_core::Matrix;
use numpy::{PyArray2, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

pub type Ints32<'py> = PyReadonlyArray1<'py, i32>;
pub type Ints64<'py> = PyReadonlyArray1<'py, i64>;
pub type Lists<'py> = PyReadonlyArray2<'py, i32>;
pub type Floats<'py> = PyReadonlyArray1<'py, f32>;
pub type Factors<'py> = PyReadonlyArray2<'py, f32>;
pub type Wide<'py> = PyReadonlyArray2<'py, i64>;
/// Results.
pub type Ints<'py> = Bound<'py, PyArray2<i32>>;
pub type Floats2<'py> = Bound<'py, PyArray2<f32>>;
/// indptr, indices, number of items
pub type Seen<'py> = (Ints64<'py>, Ints32<'py>, usize);

/// Row numbers of either width.
#[derive(FromPyObject)]
pub enum Rows<'py> {
    Narrow(Ints32<'py>),
    Wide(Ints64<'py>),
}

pub fn matrix<'a>(array: &'a Factors) -> PyResult<Matrix<'a>> {
    let shape = array.shape();
    Ok(Matrix::new(array.as_slice()?, shape[0], shape[1]))
}

pub fn floats<'a>(given: &'a Option<Floats>) -> PyResult<Option<&'a [f32]>> {
    given.as_ref().map(|given| Ok(given.as_slice()?)).transpose()
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
