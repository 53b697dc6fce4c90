//! Top-k lists, ranks, metrics and neighbours.

use kdrs_core as core;
use kdrs_core::{Csr, Metric, RowId};
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArray3, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::args::{floats, matrix, Factors, Floats, Floats2, Ints, Ints64, Lists, Seen};
use crate::call::{kernels, Call};

pub(crate) type Ranking<'py> = (Ints<'py>, Bound<'py, PyArray2<f32>>);
pub(crate) type Ranks<'py> = (Bound<'py, PyArray1<i32>>, Bound<'py, PyArray1<i32>>);

pub(crate) fn ranking<'py>(call: &Call<'py>, found: core::Ranking, rows: usize) -> PyResult<Ranking<'py>> {
    let shape = [rows, found.k];
    Ok((call.shaped(found.items, shape)?, call.shaped(found.scores, shape)?))
}

pub(crate) fn pair<'py>(call: &Call<'py>, ranks: core::Ranks, shape: [usize; 2]) -> PyResult<(Ints<'py>, Ints<'py>)> {
    Ok((call.shaped(ranks.better, shape)?, call.shaped(ranks.tied, shape)?))
}

pub(crate) fn flat<'py>(call: &Call<'py>, ranks: core::Ranks) -> Ranks<'py> {
    (ranks.better.into_pyarray(call.py), ranks.tied.into_pyarray(call.py))
}

pub(crate) fn same_rows(call: &Call, truth: usize, queries: usize) -> PyResult<()> {
    if truth == queries {
        return Ok(());
    }
    let cause = format!("`truth` has {truth} rows for {queries} queries");
    Err(call.refuse(cause, Some("pass rows= to say which rows of `truth` the queries are")))
}

pub(crate) fn same_lists(call: &Call, targets: usize, candidates: usize, queries: usize) -> PyResult<()> {
    if targets == queries && candidates == queries {
        return Ok(());
    }
    let cause = format!("{targets} rows of targets and {candidates} of candidates for {queries} queries");
    Err(call.refuse(cause, None))
}

/// Targets of a query: a row of a CSR, or a list of fixed width.
#[derive(FromPyObject)]
pub(crate) enum Truth<'py> {
    Pairs(Seen<'py>),
    Lists(Lists<'py>),
}

impl Truth<'_> {
    pub(crate) fn targets(&self, call: &Call, rows: Option<&[i64]>) -> PyResult<(Vec<i32>, Vec<usize>)> {
        match self {
            Truth::Pairs(truth) => call.check(targets(call.csr(truth)?, rows)),
            Truth::Lists(lists) => {
                let (rows, width) = (lists.shape()[0], lists.shape()[1]);
                Ok((lists.as_slice()?.to_vec(), (1..=rows).map(|row| row * width).collect()))
            }
        }
    }
}

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

kernels! {
    fn listed_scores(
        queries: Factors<'py>,
        items: Factors<'py>,
        bias: Option<Floats<'py>>,
        lists: Lists<'py>,
    ) -> Floats2<'py> |call| {
        let (queries, items, bias) = (matrix(&queries)?, matrix(&items)?, floats(&bias)?);
        let (count, width) = (lists.shape()[0], lists.shape()[1]);
        let lists = lists.as_slice()?;
        call.array([count, width], |exec| core::listed_scores(exec, queries, items, bias, lists, width))
    }

    fn topk(
        queries: Factors<'py>,
        items: Factors<'py>,
        bias: Option<Floats<'py>>,
        seen: Option<Seen<'py>>,
        rows: Option<Ints64<'py>>,
        k: usize,
    ) -> Ranking<'py> |call| {
        let (queries, items, bias) = (matrix(&queries)?, matrix(&items)?, floats(&bias)?);
        let mask = call.mask(&seen, &rows, queries.rows, items.rows)?;
        let out = call.run(|exec| core::topk(exec, queries, items, bias, mask, k))?;
        ranking(&call, out, queries.rows)
    }

    fn topk_scores(
        scores: Factors<'py>,
        seen: Option<Seen<'py>>,
        rows: Option<Ints64<'py>>,
        k: usize,
    ) -> Ranking<'py> |call| {
        let scores = matrix(&scores)?;
        let mask = call.mask(&seen, &rows, scores.rows, scores.dim)?;
        let out = call.run(|exec| core::topk_scores(exec, scores, mask, k))?;
        ranking(&call, out, scores.rows)
    }

    fn neighbours(vectors: Factors<'py>, k: usize, metric: String) -> Ranking<'py> |call| {
        let vectors = matrix(&vectors)?;
        let distance = match metric.as_str() {
            "euclidean" => core::Distance::Euclidean,
            "cosine" => core::Distance::Cosine,
            "dot" => core::Distance::Dot,
            _ => {
                return Err(call.refuse(
                    format!("metric {metric:?}"),
                    Some("allowed: euclidean, cosine, dot"),
                ))
            }
        };
        let out = call.run(|exec| core::neighbours(exec, vectors, k, distance))?;
        ranking(&call, out, vectors.rows)
    }

    fn ranks(
        queries: Factors<'py>,
        items: Factors<'py>,
        bias: Option<Floats<'py>>,
        truth: Truth<'py>,
        seen: Option<Seen<'py>>,
        rows: Option<Ints64<'py>>,
    ) -> Ranks<'py> |call| {
        let (queries, items, bias) = (matrix(&queries)?, matrix(&items)?, floats(&bias)?);
        let mask = call.mask(&seen, &rows, queries.rows, items.rows)?;
        let rows = rows.as_ref().map(|rows| rows.as_slice()).transpose()?;
        let (targets, ends) = truth.targets(&call, rows)?;
        same_rows(&call, ends.len(), queries.rows)?;
        let out = call.run(|exec| core::list_ranks(exec, queries, items, bias, &targets, &ends, mask))?;
        Ok(flat(&call, out))
    }

    fn ranks_scores(
        scores: Factors<'py>,
        truth: Truth<'py>,
        seen: Option<Seen<'py>>,
        rows: Option<Ints64<'py>>,
    ) -> Ranks<'py> |call| {
        let scores = matrix(&scores)?;
        let mask = call.mask(&seen, &rows, scores.rows, scores.dim)?;
        let rows = rows.as_ref().map(|rows| rows.as_slice()).transpose()?;
        let (targets, ends) = truth.targets(&call, rows)?;
        same_rows(&call, ends.len(), scores.rows)?;
        let out = call.run(|exec| core::list_ranks_scores(exec, scores, &targets, &ends, mask))?;
        Ok(flat(&call, out))
    }

    fn candidate_ranks(
        queries: Factors<'py>,
        rows: Option<Ints64<'py>>,
        items: Factors<'py>,
        bias: Option<Floats<'py>>,
        targets: Lists<'py>,
        candidates: Lists<'py>,
    ) -> (Ints<'py>, Ints<'py>) |call| {
        let (queries, items, bias) = (matrix(&queries)?, matrix(&items)?, floats(&bias)?);
        let rows = rows.as_ref().map(|rows| rows.as_slice()).transpose()?;
        let (count, width) = (targets.shape()[0], targets.shape()[1]);
        same_lists(&call, count, candidates.shape()[0], rows.map_or(queries.rows, <[i64]>::len))?;
        let (targets, candidates) = (targets.as_slice()?, candidates.as_slice()?);
        let out = call.run(|exec| {
            core::candidate_ranks(exec, queries, rows, items, bias, targets, candidates, count)
        })?;
        pair(&call, out, [count, width])
    }

    fn candidate_ranks_scores(
        targets: Factors<'py>,
        scores: Factors<'py>,
        candidates: Option<Lists<'py>>,
        ids: Option<Lists<'py>>,
    ) -> (Ints<'py>, Ints<'py>) |call| {
        let (targets, scores) = (matrix(&targets)?, matrix(&scores)?);
        if let Some(shape) = ids.as_ref().map(|ids| (ids.shape()[0], ids.shape()[1])) {
            if shape != (targets.rows, targets.dim) {
                let cause = format!("scores of {} x {} targets with ids of shape {shape:?}", targets.rows, targets.dim);
                return Err(call.refuse(cause, None));
            }
        }
        let shape = candidates.as_ref().map(|ids| (ids.shape()[0], ids.shape()[1]));
        if targets.rows != scores.rows || shape.is_some_and(|shape| shape != (scores.rows, scores.dim)) {
            let cause = format!(
                "scores of {} rows of targets and {} x {} candidates with ids of shape {shape:?}",
                targets.rows, scores.rows, scores.dim
            );
            return Err(call.refuse( cause, None));
        }
        let candidates = candidates.as_ref().map(|ids| ids.as_slice()).transpose()?;
        let ids = ids.as_ref().map(|ids| ids.as_slice()).transpose()?;
        let out = call.run(|exec| core::candidate_ranks_scores(exec, targets, scores, candidates, ids))?;
        pair(&call, out, [targets.rows, targets.dim])
    }

    fn metrics(
        ranked: Lists<'py>,
        truth: Seen<'py>,
        rows: Option<Ints64<'py>>,
        ks: Vec<usize>,
        names: Vec<String>,
    ) -> Bound<'py, PyArray3<f64>> |call| {
        let (queries, width) = (ranked.shape()[0], ranked.shape()[1]);
        let ranked = ranked.as_slice()?;
        let items = truth.2;
        let truth = Some(truth);
        let mask = call.mask(&truth, &rows, queries, items)?;
        let names = names
            .iter()
            .map(|name| match name.as_str() {
                "hit" => Ok(Metric::Hit),
                "recall" => Ok(Metric::Recall),
                "precision" => Ok(Metric::Precision),
                "ndcg" => Ok(Metric::Ndcg),
                "mrr" => Ok(Metric::Mrr),
                "map" => Ok(Metric::Map),
                _ => Err(call.refuse( format!("metric {name:?}"), None)),
            })
            .collect::<PyResult<Vec<_>>>()?;
        let values = call.run(|exec| core::metrics(exec, ranked, width, queries, mask, &ks, &names))?;
        values.into_pyarray(call.py).reshape([names.len(), ks.len(), queries])
    }
}
