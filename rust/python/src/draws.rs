//! Draws: negatives, weighted lists, background items, rank discrepancies.

use kdrs_core as core;
use kdrs_core::{Law, Model, Order, Weights};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::args::{matrix, with_rows, Factors, Floats, Ints, Ints64, Lists, Rows, Seen};
use crate::call::kernels;

/// Weights of list places: shared, or a row each in either precision.
#[derive(FromPyObject)]
pub(crate) enum ListWeights<'py> {
    Shared(PyReadonlyArray1<'py, f64>),
    Rows32(PyReadonlyArray2<'py, f32>),
    Rows64(PyReadonlyArray2<'py, f64>),
}

/// One side of a discrepancy: factors with or without bias, or scores.
#[derive(FromPyObject)]
pub(crate) enum Scorer<'py> {
    Biased(Factors<'py>, Factors<'py>, Floats<'py>),
    Factors(Factors<'py>, Factors<'py>),
    Scores(Factors<'py>),
}

impl Scorer<'_> {
    fn model(&self) -> PyResult<Model<'_>> {
        Ok(match self {
            Scorer::Biased(queries, items, bias) => Model::Factors {
                queries: matrix(queries)?,
                items: matrix(items)?,
                bias: Some(bias.as_slice()?),
            },
            Scorer::Factors(queries, items) => Model::Factors {
                queries: matrix(queries)?,
                items: matrix(items)?,
                bias: None,
            },
            Scorer::Scores(scores) => Model::Scores(matrix(scores)?),
        })
    }
}

kernels! {
    fn negatives(seen: Seen<'py>, rows: Rows<'py>, n: usize, seed: u64, mask: bool) -> Ints<'py> |call| {
        let seen = call.csr(&seen)?;
        with_rows!(rows, rows => {
            call.array([rows.len(), n], |exec| core::negatives(exec, seen, rows, n, seed, mask))
        })
    }

    fn weighted_negatives(
        seen: Seen<'py>,
        rows: Rows<'py>,
        n: usize,
        weights: PyReadonlyArray1<'py, f64>,
        seed: u64,
        mask: bool,
    ) -> Ints<'py> |call| {
        let seen = call.csr(&seen)?;
        let weights = weights.as_slice()?;
        with_rows!(rows, rows => {
            call.array([rows.len(), n], |exec| core::weighted_negatives(exec, seen, rows, n, weights, seed, mask))
        })
    }

    fn weighted(
        lists: Lists<'py>,
        weights: ListWeights<'py>,
        n: usize,
        seed: u64,
        draw_order: bool,
    ) -> Ints<'py> |call| {
        let (rows, width) = (lists.shape()[0], lists.shape()[1]);
        let lists = lists.as_slice()?;
        let weights = match &weights {
            ListWeights::Shared(w) => Weights::Shared(w.as_slice()?),
            ListWeights::Rows32(w) => Weights::Rows32(w.as_slice()?),
            ListWeights::Rows64(w) => Weights::Rows64(w.as_slice()?),
        };
        let order = if draw_order { Order::Draw } else { Order::List };
        call.array([rows, n], |exec| core::weighted(exec, lists, rows, width, weights, n, seed, order))
    }

    fn outside(
        items: usize,
        seen: Option<Seen<'py>>,
        rows: Option<Ints64<'py>>,
        lists: Lists<'py>,
        n: usize,
        seed: u64,
    ) -> Ints<'py> |call| {
        let count = lists.shape()[0];
        let lists = lists.as_slice()?;
        let mask = call.mask(&seen, &rows, count, items)?;
        call.array([count, n], |exec| core::outside(exec, items, mask, lists, count, n, seed))
    }

    fn discrepancy(
        student: Scorer<'py>,
        teacher: Scorer<'py>,
        seen: Option<Seen<'py>>,
        rows: Option<Ints64<'py>>,
        laws: Vec<(String, f64)>,
        ends: Vec<Ints64<'py>>,
        seed: u64,
    ) -> Vec<Bound<'py, PyArray1<i32>>> |call| {
        let (student, teacher) = (student.model()?, teacher.model()?);
        let mask = call.mask(&seen, &rows, student.queries(), student.items())?;
        let laws = laws
            .iter()
            .map(|(name, sharpness)| match name.as_str() {
                "exp" => Ok(Law::Exp(*sharpness)),
                "tanh" => Ok(Law::Tanh(*sharpness)),
                "tanh-over" => Ok(Law::TanhOver(*sharpness)),
                _ => Err(call.refuse(
                    format!("law {name:?}"),
                    Some("allowed: exp, tanh, tanh-over"),
                )),
            })
            .collect::<PyResult<Vec<_>>>()?;
        let mut lengths = Vec::with_capacity(ends.len());
        for ends in &ends {
            let ends: Vec<usize> = ends.as_slice()?.iter().map(|&end| end as usize).collect();
            if ends.len() != student.queries() || !ends.is_sorted() {
                return Err(call.refuse(
                    format!("draws for {} rows, not {}", ends.len(), student.queries()),
                    None,
                ));
            }
            lengths.push(ends);
        }
        let drawn = call.run(|exec| core::discrepancy(exec, student, teacher, mask, &laws, &lengths, seed))?;
        Ok(drawn.into_iter().map(|items| items.into_pyarray(call.py)).collect())
    }
}
