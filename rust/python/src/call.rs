//! What all kernels' bindings have in common.

use kdrs_core::{Csr, Error, Exec, Mask, SimdPath};
use numpy::{Element, IntoPyArray, PyArray2, PyArrayMethods};
use pyo3::prelude::*;

use crate::args::{Ints64, Seen};
use crate::error::{raise, refuse};
use crate::threads::run;

/// Where and how a kernel runs.
pub struct Call<'py> {
    pub py: Python<'py>,
    threads: usize,
    simd: SimdPath,
}

impl<'py> Call<'py> {
    pub fn new(py: Python<'py>, threads: usize, simd_path: Option<&str>) -> PyResult<Self> {
        let simd = simd(py, simd_path)?;
        Ok(Call { py, threads, simd })
    }

    /// The kernel's result, without the GIL.
    pub fn run<T: Send>(&self, kernel: impl FnOnce(Exec) -> Result<T, Error> + Send) -> PyResult<T> {
        run(self.py, self.threads, self.simd, kernel)
    }

    /// The same as an array of two dimensions.
    pub fn array<T: Element>(
        &self,
        shape: [usize; 2],
        kernel: impl FnOnce(Exec) -> Result<Vec<T>, Error> + Send,
    ) -> PyResult<Bound<'py, PyArray2<T>>> {
        self.shaped(self.run(kernel)?, shape)
    }

    pub fn shaped<T: Element>(&self, values: Vec<T>, shape: [usize; 2]) -> PyResult<Bound<'py, PyArray2<T>>> {
        values.into_pyarray(self.py).reshape(shape)
    }

    /// What the core says of arguments.
    pub fn check<T>(&self, checked: Result<T, Error>) -> PyResult<T> {
        checked.map_err(|error| raise(self.py, error))
    }

    pub fn csr<'a>(&self, seen: &'a Seen) -> PyResult<Csr<'a>> {
        self.check(Csr::new(seen.0.as_slice()?, seen.1.as_slice()?, seen.2))
    }

    /// `seen` and `rows` as a mask; errors name what does not fit.
    pub fn mask<'a>(
        &self,
        seen: &'a Option<Seen>,
        rows: &'a Option<Ints64>,
        queries: usize,
        items: usize,
    ) -> PyResult<Mask<'a>> {
        let seen = seen.as_ref().map(|seen| self.csr(seen)).transpose()?;
        let rows = rows.as_ref().map(|rows| rows.as_slice()).transpose()?;
        self.check(Mask::new(seen, rows, queries, items))
    }

    pub fn refuse(&self, cause: String, remedy: Option<&str>) -> PyErr {
        refuse(self.py, cause, remedy)
    }
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

/// Functions of the module: each takes the arguments named, then `threads` and `simd_path`, which its body knows as a [`Call`].
macro_rules! kernels {
    ($(
        fn $name:ident($($argument:ident: $kind:ty),* $(,)?) -> $out:ty |$call:ident| $body:block
    )+) => {
        $(
            #[pyfunction]
            #[pyo3(signature = ($($argument,)* threads, simd_path))]
            #[allow(clippy::too_many_arguments)]
            pub(crate) fn $name<'py>(
                py: Python<'py>,
                $(#[allow(unused_mut)] mut $argument: $kind,)*
                threads: usize,
                simd_path: Option<&str>,
            ) -> PyResult<$out> {
                let $call = $crate::call::Call::new(py, threads, simd_path)?;
                $body
            }
        )+
    };
}
pub(crate) use kernels;
