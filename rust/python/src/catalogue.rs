//! Catalogues that are packed once and asked often.

use kdrs_core as core;
use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;

use crate::args::{floats, matrix, Factors, Floats, Ints64, Seen};
use crate::call::Call;
use crate::codes::{codes, Codes};
use crate::lists::{ranking, Ranking};

/// Float items, kept as they are given, and what was packed of them.
#[pyclass(frozen, module = "kdrs._core")]
pub(crate) struct PackedFactors {
    items: Py<PyArray2<f32>>,
    bias: Option<Py<PyArray1<f32>>>,
    packed: core::Catalogue,
}

#[pymethods]
impl PackedFactors {
    #[new]
    #[pyo3(signature = (items, bias, threads, simd_path))]
    fn new(
        py: Python<'_>,
        items: Factors<'_>,
        bias: Option<Floats<'_>>,
        threads: usize,
        simd_path: Option<&str>,
    ) -> PyResult<Self> {
        let call = Call::new(py, threads, simd_path)?;
        let (own, biases) = (matrix(&items)?, floats(&bias)?);
        let packed = call.run(|exec| core::Catalogue::pack(exec, own, biases))?;
        Ok(PackedFactors {
            items: items.as_unbound().clone_ref(py),
            bias: bias.map(|bias| bias.as_unbound().clone_ref(py)),
            packed,
        })
    }

    #[pyo3(signature = (queries, seen, rows, k, threads, simd_path))]
    #[allow(clippy::too_many_arguments)]
    fn topk<'py>(
        &self,
        py: Python<'py>,
        queries: Factors<'py>,
        seen: Option<Seen<'py>>,
        rows: Option<Ints64<'py>>,
        k: usize,
        threads: usize,
        simd_path: Option<&str>,
    ) -> PyResult<Ranking<'py>> {
        let call = Call::new(py, threads, simd_path)?;
        let items = self.items.bind(py).try_readonly()?;
        let bias = self
            .bias
            .as_ref()
            .map(|bias| bias.bind(py).try_readonly())
            .transpose()?;
        let (queries, items, bias) = (matrix(&queries)?, matrix(&items)?, floats(&bias)?);
        let mask = call.mask(&seen, &rows, queries.rows, items.rows)?;
        let out = call.run(|exec| self.packed.topk(exec, queries, items, bias, mask, k))?;
        ranking(&call, out, queries.rows)
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.packed.bytes()
    }
}

/// Items of codes, packed: nothing else of them is read again.
#[pyclass(frozen, module = "kdrs._core")]
pub(crate) struct PackedCodes {
    packed: core::CodeCatalogue,
    items: usize,
}

#[pymethods]
impl PackedCodes {
    #[new]
    #[pyo3(signature = (items, bias, threads, simd_path))]
    fn new(
        py: Python<'_>,
        items: Codes<'_>,
        bias: Option<Floats<'_>>,
        threads: usize,
        simd_path: Option<&str>,
    ) -> PyResult<Self> {
        let call = Call::new(py, threads, simd_path)?;
        let (own, biases) = (codes(&call, &items)?, floats(&bias)?);
        let packed = call.run(|exec| core::CodeCatalogue::pack(exec, own, biases))?;
        Ok(PackedCodes {
            packed,
            items: own.rows(),
        })
    }

    #[pyo3(signature = (queries, seen, rows, k, threads, simd_path))]
    #[allow(clippy::too_many_arguments)]
    fn topk<'py>(
        &self,
        py: Python<'py>,
        queries: Codes<'py>,
        seen: Option<Seen<'py>>,
        rows: Option<Ints64<'py>>,
        k: usize,
        threads: usize,
        simd_path: Option<&str>,
    ) -> PyResult<Ranking<'py>> {
        let call = Call::new(py, threads, simd_path)?;
        let queries = codes(&call, &queries)?;
        let mask = call.mask(&seen, &rows, queries.rows(), self.items)?;
        let out = call.run(|exec| self.packed.topk(exec, queries, mask, k))?;
        ranking(&call, out, queries.rows())
    }

    #[getter]
    fn nbytes(&self) -> usize {
        self.packed.bytes()
    }
}
