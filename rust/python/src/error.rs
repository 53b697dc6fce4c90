//! Core errors as the exceptions of `kdrs.errors`.

use kdrs_core::Error;
use pyo3::exceptions::{PyKeyboardInterrupt, PyMemoryError};
use pyo3::prelude::*;

/// `DataError(cause, remedy)`; `MemoryError` where there is no room; for an interrupted call what the signal handler raised.
pub fn raise(py: Python, error: Error) -> PyErr {
    if error == Error::Interrupted {
        return PyErr::take(py).unwrap_or_else(|| PyKeyboardInterrupt::new_err(()));
    }
    if let Error::Memory { .. } = error {
        return PyMemoryError::new_err(error.to_string());
    }
    refuse(py, error.to_string(), error.remedy())
}

/// `DataError(cause, remedy)`.
pub fn refuse(py: Python, cause: String, remedy: Option<&str>) -> PyErr {
    let made = py
        .import("kdrs.errors")
        .and_then(|module| module.getattr("DataError"))
        .and_then(|class| class.call1((cause, remedy)));
    match made {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}
