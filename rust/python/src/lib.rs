//! kdrs-core for Python. Each function reads the arrays, checks them, releases the GIL round one core call and wraps
//! the result. `python/kdrs/_core.pyi` documents them.

#![forbid(unsafe_code)]

mod args;
mod error;
mod threads;

use args::{csr, matrix, simd, targets, with_rows, Factors, Floats, Ints64, Lists, Rows, Seen};
use error::refuse;
use kdrs_core as core;
use kdrs_core::{Law, Mask, Matrix, Metric, Model, Order, Weights};
use numpy::{
    IntoPyArray, PyArray1, PyArray2, PyArray3, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyReadonlyArray3,
    PyReadwriteArray1, PyReadwriteArray2, PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use threads::run;

type Ints<'py> = Bound<'py, PyArray2<i32>>;
type Floats2<'py> = Bound<'py, PyArray2<f32>>;
type Wide<'py> = PyReadonlyArray2<'py, i64>;
type Ranking<'py> = (Bound<'py, PyArray2<i32>>, Bound<'py, PyArray2<f32>>);

fn ranking(py: Python, ranking: core::Ranking, rows: usize, k: usize) -> PyResult<Ranking> {
    Ok((
        ranking.items.into_pyarray(py).reshape([rows, k])?,
        ranking.scores.into_pyarray(py).reshape([rows, k])?,
    ))
}

/// `seen` and `rows` as a mask; errors name what does not fit.
macro_rules! mask {
    ($py:expr, $seen:expr, $rows:expr, $queries:expr, $items:expr) => {{
        let seen = match &$seen {
            None => None,
            Some(seen) => Some(csr($py, seen)?),
        };
        let rows = match &$rows {
            None => None,
            Some(rows) => Some(rows.as_slice()?),
        };
        Mask::new(seen, rows, $queries, $items).map_err(|error| error::raise($py, error))?
    }};
}

fn floats<'a>(given: &'a Option<Floats>) -> PyResult<Option<&'a [f32]>> {
    Ok(match given {
        None => None,
        Some(given) => Some(given.as_slice()?),
    })
}

#[pyfunction]
#[pyo3(signature = (seen, rows, n, seed, mask, threads, simd_path))]
#[allow(clippy::too_many_arguments)]
fn negatives<'py>(
    py: Python<'py>,
    seen: Seen<'py>,
    rows: Rows<'py>,
    n: usize,
    seed: u64,
    mask: bool,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<Ints<'py>> {
    let seen = csr(py, &seen)?;
    with_rows!(rows, rows => {
        let drawn = run(py, threads, simd(py, simd_path)?, |exec| core::negatives(exec, seen, rows, n, seed, mask))?;
        drawn.into_pyarray(py).reshape([rows.len(), n])
    })
}

#[pyfunction]
#[pyo3(signature = (seen, rows, n, weights, seed, mask, threads, simd_path))]
#[allow(clippy::too_many_arguments)]
fn weighted_negatives<'py>(
    py: Python<'py>,
    seen: Seen<'py>,
    rows: Rows<'py>,
    n: usize,
    weights: PyReadonlyArray1<'py, f64>,
    seed: u64,
    mask: bool,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<Ints<'py>> {
    let seen = csr(py, &seen)?;
    let weights = weights.as_slice()?;
    with_rows!(rows, rows => {
        let drawn = run(py, threads, simd(py, simd_path)?, |exec| {
            core::weighted_negatives(exec, seen, rows, n, weights, seed, mask)
        })?;
        drawn.into_pyarray(py).reshape([rows.len(), n])
    })
}

/// Weights of list places: shared, or a row each in either precision.
#[derive(FromPyObject)]
enum ListWeights<'py> {
    Shared(PyReadonlyArray1<'py, f64>),
    Rows32(PyReadonlyArray2<'py, f32>),
    Rows64(PyReadonlyArray2<'py, f64>),
}

#[pyfunction]
#[pyo3(signature = (lists, weights, n, seed, draw_order, threads, simd_path))]
#[allow(clippy::too_many_arguments)]
fn weighted<'py>(
    py: Python<'py>,
    lists: Lists<'py>,
    weights: ListWeights<'py>,
    n: usize,
    seed: u64,
    draw_order: bool,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<Ints<'py>> {
    let (rows, width) = (lists.shape()[0], lists.shape()[1]);
    let lists = lists.as_slice()?;
    let weights = match &weights {
        ListWeights::Shared(w) => Weights::Shared(w.as_slice()?),
        ListWeights::Rows32(w) => Weights::Rows32(w.as_slice()?),
        ListWeights::Rows64(w) => Weights::Rows64(w.as_slice()?),
    };
    let order = if draw_order { Order::Draw } else { Order::List };
    let drawn = run(py, threads, simd(py, simd_path)?, |exec| {
        core::weighted(exec, lists, rows, width, weights, n, seed, order)
    })?;
    drawn.into_pyarray(py).reshape([rows, n])
}

#[pyfunction]
#[pyo3(signature = (items, seen, rows, lists, n, seed, threads, simd_path))]
#[allow(clippy::too_many_arguments)]
fn outside<'py>(
    py: Python<'py>,
    items: usize,
    seen: Option<Seen<'py>>,
    rows: Option<Ints64<'py>>,
    lists: Lists<'py>,
    n: usize,
    seed: u64,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<Ints<'py>> {
    let count = lists.shape()[0];
    let lists = lists.as_slice()?;
    let mask = mask!(py, seen, rows, count, items);
    let drawn = run(py, threads, simd(py, simd_path)?, |exec| {
        core::outside(exec, items, mask, lists, count, n, seed)
    })?;
    drawn.into_pyarray(py).reshape([count, n])
}

/// One side of a discrepancy: factors with or without bias, or scores.
#[derive(FromPyObject)]
enum Scorer<'py> {
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

#[pyfunction]
#[pyo3(signature = (student, teacher, seen, rows, laws, ends, seed, threads, simd_path))]
#[allow(clippy::too_many_arguments)]
fn discrepancy<'py>(
    py: Python<'py>,
    student: Scorer<'py>,
    teacher: Scorer<'py>,
    seen: Option<Seen<'py>>,
    rows: Option<Ints64<'py>>,
    laws: Vec<(String, f64)>,
    ends: Vec<Ints64<'py>>,
    seed: u64,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<Vec<Bound<'py, PyArray1<i32>>>> {
    let (student, teacher) = (student.model()?, teacher.model()?);
    let mask = mask!(py, seen, rows, student.queries(), student.items());
    let laws = laws
        .iter()
        .map(|(name, sharpness)| match name.as_str() {
            "exp" => Ok(Law::Exp(*sharpness)),
            "tanh" => Ok(Law::Tanh(*sharpness)),
            "tanh-over" => Ok(Law::TanhOver(*sharpness)),
            _ => Err(refuse(
                py,
                format!("law {name:?}"),
                Some("allowed: exp, tanh, tanh-over"),
            )),
        })
        .collect::<PyResult<Vec<_>>>()?;
    let mut lengths = Vec::with_capacity(ends.len());
    for ends in &ends {
        let ends: Vec<usize> = ends.as_slice()?.iter().map(|&end| end as usize).collect();
        if ends.len() != student.queries() || !ends.is_sorted() {
            return Err(refuse(
                py,
                format!("draws for {} rows, not {}", ends.len(), student.queries()),
                None,
            ));
        }
        lengths.push(ends);
    }
    let drawn = run(py, threads, simd(py, simd_path)?, |exec| {
        core::discrepancy(exec, student, teacher, mask, &laws, &lengths, seed)
    })?;
    Ok(drawn.into_iter().map(|items| items.into_pyarray(py)).collect())
}

#[pyfunction]
#[pyo3(signature = (queries, items, bias, seen, rows, k, threads, simd_path))]
#[allow(clippy::too_many_arguments)]
fn topk<'py>(
    py: Python<'py>,
    queries: Factors<'py>,
    items: Factors<'py>,
    bias: Option<Floats<'py>>,
    seen: Option<Seen<'py>>,
    rows: Option<Ints64<'py>>,
    k: usize,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<Ranking<'py>> {
    let (queries, items, bias) = (matrix(&queries)?, matrix(&items)?, floats(&bias)?);
    let mask = mask!(py, seen, rows, queries.rows, items.rows);
    let out = run(py, threads, simd(py, simd_path)?, |exec| {
        core::topk(exec, queries, items, bias, mask, k)
    })?;
    ranking(py, out, queries.rows, k)
}

#[pyfunction]
#[pyo3(signature = (scores, seen, rows, k, threads, simd_path))]
fn topk_scores<'py>(
    py: Python<'py>,
    scores: Factors<'py>,
    seen: Option<Seen<'py>>,
    rows: Option<Ints64<'py>>,
    k: usize,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<Ranking<'py>> {
    let scores = matrix(&scores)?;
    let mask = mask!(py, seen, rows, scores.rows, scores.dim);
    let out = run(py, threads, simd(py, simd_path)?, |exec| {
        core::topk_scores(exec, scores, mask, k)
    })?;
    ranking(py, out, scores.rows, k)
}

fn pair(py: Python, ranks: core::Ranks, shape: [usize; 2]) -> PyResult<(Ints, Ints)> {
    Ok((
        ranks.better.into_pyarray(py).reshape(shape)?,
        ranks.tied.into_pyarray(py).reshape(shape)?,
    ))
}

type PyRanks<'py> = (Bound<'py, PyArray1<i32>>, Bound<'py, PyArray1<i32>>);

fn flat(py: Python, ranks: core::Ranks) -> PyRanks {
    (ranks.better.into_pyarray(py), ranks.tied.into_pyarray(py))
}

/// Targets of a query: a row of a CSR, or a list of fixed width.
#[derive(FromPyObject)]
enum Truth<'py> {
    Pairs(Seen<'py>),
    Lists(Lists<'py>),
}

impl Truth<'_> {
    fn targets(&self, py: Python, rows: Option<&[i64]>) -> PyResult<(Vec<i32>, Vec<usize>)> {
        match self {
            Truth::Pairs(truth) => targets(csr(py, truth)?, rows).map_err(|error| error::raise(py, error)),
            Truth::Lists(lists) => {
                let (rows, width) = (lists.shape()[0], lists.shape()[1]);
                Ok((lists.as_slice()?.to_vec(), (1..=rows).map(|row| row * width).collect()))
            }
        }
    }
}

#[pyfunction]
#[pyo3(signature = (queries, items, bias, truth, seen, rows, threads, simd_path))]
#[allow(clippy::too_many_arguments)]
fn ranks<'py>(
    py: Python<'py>,
    queries: Factors<'py>,
    items: Factors<'py>,
    bias: Option<Floats<'py>>,
    truth: Truth<'py>,
    seen: Option<Seen<'py>>,
    rows: Option<Ints64<'py>>,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<PyRanks<'py>> {
    let (queries, items, bias) = (matrix(&queries)?, matrix(&items)?, floats(&bias)?);
    let mask = mask!(py, seen, rows, queries.rows, items.rows);
    let rows = rows.as_ref().map(|rows| rows.as_slice()).transpose()?;
    let (targets, ends) = truth.targets(py, rows)?;
    same_rows(py, ends.len(), queries.rows)?;
    let out = run(py, threads, simd(py, simd_path)?, |exec| {
        core::list_ranks(exec, queries, items, bias, &targets, &ends, mask)
    })?;
    Ok(flat(py, out))
}

#[pyfunction]
#[pyo3(signature = (scores, truth, seen, rows, threads, simd_path))]
fn ranks_scores<'py>(
    py: Python<'py>,
    scores: Factors<'py>,
    truth: Truth<'py>,
    seen: Option<Seen<'py>>,
    rows: Option<Ints64<'py>>,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<PyRanks<'py>> {
    let scores = matrix(&scores)?;
    let mask = mask!(py, seen, rows, scores.rows, scores.dim);
    let rows = rows.as_ref().map(|rows| rows.as_slice()).transpose()?;
    let (targets, ends) = truth.targets(py, rows)?;
    same_rows(py, ends.len(), scores.rows)?;
    let out = run(py, threads, simd(py, simd_path)?, |exec| {
        core::list_ranks_scores(exec, scores, &targets, &ends, mask)
    })?;
    Ok(flat(py, out))
}

fn same_rows(py: Python, truth: usize, queries: usize) -> PyResult<()> {
    if truth == queries {
        return Ok(());
    }
    let cause = format!("`truth` has {truth} rows for {queries} queries");
    Err(refuse(
        py,
        cause,
        Some("pass rows= to say which rows of `truth` the queries are"),
    ))
}

#[pyfunction]
#[pyo3(signature = (queries, rows, items, bias, targets, candidates, threads, simd_path))]
#[allow(clippy::too_many_arguments)]
fn candidate_ranks<'py>(
    py: Python<'py>,
    queries: Factors<'py>,
    rows: Option<Ints64<'py>>,
    items: Factors<'py>,
    bias: Option<Floats<'py>>,
    targets: Lists<'py>,
    candidates: Lists<'py>,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<(Ints<'py>, Ints<'py>)> {
    let (queries, items, bias) = (matrix(&queries)?, matrix(&items)?, floats(&bias)?);
    let rows = rows.as_ref().map(|rows| rows.as_slice()).transpose()?;
    let (count, width) = (targets.shape()[0], targets.shape()[1]);
    let expected = rows.map_or(queries.rows, <[i64]>::len);
    if count != expected || candidates.shape()[0] != expected {
        let cause = format!(
            "{count} rows of targets and {} of candidates for {expected} queries",
            candidates.shape()[0]
        );
        return Err(refuse(py, cause, None));
    }
    let (targets, candidates) = (targets.as_slice()?, candidates.as_slice()?);
    let out = run(py, threads, simd(py, simd_path)?, |exec| {
        core::candidate_ranks(exec, queries, rows, items, bias, targets, candidates, count)
    })?;
    pair(py, out, [count, width])
}

#[pyfunction]
#[pyo3(signature = (targets, scores, candidates, threads))]
fn candidate_ranks_scores<'py>(
    py: Python<'py>,
    targets: Factors<'py>,
    scores: Factors<'py>,
    candidates: Option<Lists<'py>>,
    threads: usize,
) -> PyResult<(Ints<'py>, Ints<'py>)> {
    let (targets, scores): (Matrix, Matrix) = (matrix(&targets)?, matrix(&scores)?);
    let shape = candidates.as_ref().map(|ids| (ids.shape()[0], ids.shape()[1]));
    if targets.rows != scores.rows || shape.is_some_and(|shape| shape != (scores.rows, scores.dim)) {
        let cause = format!(
            "scores of {} rows of targets and {} x {} candidates with ids of shape {shape:?}",
            targets.rows, scores.rows, scores.dim
        );
        return Err(refuse(py, cause, None));
    }
    let candidates = candidates.as_ref().map(|ids| ids.as_slice()).transpose()?;
    let out = run(py, threads, core::SimdPath::best(), |exec| {
        core::candidate_ranks_scores(exec, targets, scores, candidates)
    })?;
    pair(py, out, [targets.rows, targets.dim])
}

#[pyfunction]
#[pyo3(signature = (ranked, truth, rows, ks, names, threads))]
fn metrics<'py>(
    py: Python<'py>,
    ranked: Lists<'py>,
    truth: Seen<'py>,
    rows: Option<Ints64<'py>>,
    ks: Vec<usize>,
    names: Vec<String>,
    threads: usize,
) -> PyResult<Bound<'py, PyArray3<f64>>> {
    let (queries, width) = (ranked.shape()[0], ranked.shape()[1]);
    let ranked = ranked.as_slice()?;
    let items = truth.2;
    let truth = Some(truth);
    let mask = mask!(py, truth, rows, queries, items);
    let names = names
        .iter()
        .map(|name| match name.as_str() {
            "hit" => Ok(Metric::Hit),
            "recall" => Ok(Metric::Recall),
            "precision" => Ok(Metric::Precision),
            "ndcg" => Ok(Metric::Ndcg),
            "mrr" => Ok(Metric::Mrr),
            "map" => Ok(Metric::Map),
            _ => Err(refuse(py, format!("metric {name:?}"), None)),
        })
        .collect::<PyResult<Vec<_>>>()?;
    let values = run(py, threads, core::SimdPath::best(), |exec| {
        core::metrics(exec, ranked, width, queries, mask, &ks, &names)
    })?;
    values.into_pyarray(py).reshape([names.len(), ks.len(), queries])
}

#[pyfunction]
#[pyo3(signature = (vectors, k, metric, threads, simd_path))]
fn neighbours<'py>(
    py: Python<'py>,
    vectors: Factors<'py>,
    k: usize,
    metric: &str,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<Ranking<'py>> {
    let vectors = matrix(&vectors)?;
    let distance = match metric {
        "euclidean" => core::Distance::Euclidean,
        "cosine" => core::Distance::Cosine,
        "dot" => core::Distance::Dot,
        _ => {
            return Err(refuse(
                py,
                format!("metric {metric:?}"),
                Some("allowed: euclidean, cosine, dot"),
            ))
        }
    };
    let out = run(py, threads, simd(py, simd_path)?, |exec| {
        core::neighbours(exec, vectors, k, distance)
    })?;
    ranking(py, out, vectors.rows, k)
}

/// Values and both moments of a table [rows, dim], changed in place.
type Table<'py> = (
    PyReadwriteArray2<'py, f32>,
    PyReadwriteArray2<'py, f32>,
    PyReadwriteArray2<'py, f32>,
);
/// Steps [N, 3] of rate, epsilon and decay, how many of them each row has taken, and whether the others are estimated.
type Ledger<'py> = (Factors<'py>, PyReadwriteArray1<'py, i32>, bool);

fn adam_step(numbers: &[f32]) -> core::AdamStep {
    core::AdamStep {
        rate: numbers[0],
        eps: numbers[1],
        weight_decay: numbers[2],
    }
}

fn adam_steps(ledger: &Ledger) -> PyResult<Vec<core::AdamStep>> {
    Ok(ledger.0.as_slice()?.chunks_exact(3).map(adam_step).collect())
}

fn table<'a>(py: Python, arrays: &'a mut Table) -> PyResult<core::Table<'a>> {
    let dim = arrays.0.shape()[1];
    let (values, first, second) = (&mut arrays.0, &mut arrays.1, &mut arrays.2);
    core::Table::new(
        values.as_slice_mut()?,
        first.as_slice_mut()?,
        second.as_slice_mut()?,
        dim,
    )
    .map_err(|error| error::raise(py, error))
}

fn ledger<'a>(py: Python, arrays: &'a mut Ledger, steps: &'a [core::AdamStep]) -> PyResult<core::Ledger<'a>> {
    core::Ledger::new(steps, arrays.1.as_slice_mut()?, arrays.2).map_err(|error| error::raise(py, error))
}

#[pyfunction]
#[pyo3(signature = (arrays, owed, threads, simd_path))]
fn adam_catch_up<'py>(
    py: Python<'py>,
    mut arrays: Table<'py>,
    mut owed: Ledger<'py>,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<()> {
    let steps = adam_steps(&owed)?;
    let table = table(py, &mut arrays)?;
    let ledger = ledger(py, &mut owed, &steps)?;
    run(py, threads, simd(py, simd_path)?, |exec| {
        core::catch_up(exec, table, ledger)
    })
}

#[pyfunction]
#[pyo3(signature = (arrays, owed, rows, threads, simd_path))]
fn adam_catch_up_rows<'py>(
    py: Python<'py>,
    mut arrays: Table<'py>,
    mut owed: Ledger<'py>,
    rows: Ints64<'py>,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<()> {
    let rows = rows.as_slice()?;
    let steps = adam_steps(&owed)?;
    let table = table(py, &mut arrays)?;
    let ledger = ledger(py, &mut owed, &steps)?;
    run(py, threads, simd(py, simd_path)?, |exec| {
        core::catch_up_rows(exec, table, ledger, rows)
    })
}

#[pyfunction]
#[pyo3(signature = (arrays, owed, rows, gradients, step, threads, simd_path))]
#[allow(clippy::too_many_arguments)]
fn adam_step_rows<'py>(
    py: Python<'py>,
    mut arrays: Table<'py>,
    mut owed: Ledger<'py>,
    rows: Ints64<'py>,
    gradients: Factors<'py>,
    step: [f32; 3],
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<()> {
    let touched = core::Touched {
        rows: rows.as_slice()?,
        values: gradients.as_slice()?,
    };
    let steps = adam_steps(&owed)?;
    let table = table(py, &mut arrays)?;
    let ledger = ledger(py, &mut owed, &steps)?;
    run(py, threads, simd(py, simd_path)?, |exec| {
        core::step_rows(exec, table, ledger, touched, adam_step(&step))
    })
}

/// A table, what its rows owe, and its step.
type Trained<'py> = (Table<'py>, Ledger<'py>, [f32; 3]);

fn trained<'a>(py: Python, given: &'a mut Trained, steps: &'a [core::AdamStep]) -> PyResult<core::Trained<'a>> {
    let (arrays, owed, step) = given;
    Ok(core::Trained {
        table: table(py, arrays)?,
        ledger: ledger(py, owed, steps)?,
        step: adam_step(step),
    })
}

fn asked<'a>(rows: &'a Ints64, ids: &'a Wide) -> PyResult<core::Asked<'a>> {
    Ok(core::Asked {
        users: rows.as_slice()?,
        width: ids.shape()[1],
        items: ids.as_slice()?,
    })
}

#[pyfunction]
#[pyo3(signature = (users, items, rows, ids, threads, simd_path))]
fn table_scores<'py>(
    py: Python<'py>,
    mut users: (Table<'py>, Ledger<'py>),
    mut items: (Table<'py>, Ledger<'py>),
    rows: Ints64<'py>,
    ids: Wide<'py>,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<Floats2<'py>> {
    let (asked, shape) = (asked(&rows, &ids)?, [ids.shape()[0], ids.shape()[1]]);
    let (user_steps, item_steps) = (adam_steps(&users.1)?, adam_steps(&items.1)?);
    let users = (table(py, &mut users.0)?, ledger(py, &mut users.1, &user_steps)?);
    let items = (table(py, &mut items.0)?, ledger(py, &mut items.1, &item_steps)?);
    let scores = run(py, threads, simd(py, simd_path)?, |exec| {
        core::table_scores(exec, users, items, asked)
    })?;
    scores.into_pyarray(py).reshape(shape)
}

#[pyfunction]
#[pyo3(signature = (users, items, rows, ids, slopes, threads, simd_path))]
#[allow(clippy::too_many_arguments)]
fn score_step<'py>(
    py: Python<'py>,
    mut users: Trained<'py>,
    mut items: Trained<'py>,
    rows: Ints64<'py>,
    ids: Wide<'py>,
    slopes: Factors<'py>,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<()> {
    let (asked, slopes) = (asked(&rows, &ids)?, slopes.as_slice()?);
    let (user_steps, item_steps) = (adam_steps(&users.1)?, adam_steps(&items.1)?);
    let users = trained(py, &mut users, &user_steps)?;
    let items = trained(py, &mut items, &item_steps)?;
    run(py, threads, simd(py, simd_path)?, |exec| {
        core::score_step(exec, users, items, asked, slopes)
    })
}

#[pyfunction]
#[pyo3(signature = (users, items, rows, positives, negatives, threads, simd_path))]
#[allow(clippy::too_many_arguments)]
fn bpr_step<'py>(
    py: Python<'py>,
    mut users: Trained<'py>,
    mut items: Trained<'py>,
    rows: Ints64<'py>,
    positives: Ints64<'py>,
    negatives: PyReadonlyArray2<'py, i64>,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<f64> {
    let pairs = core::Pairs {
        users: rows.as_slice()?,
        positives: positives.as_slice()?,
        width: negatives.shape()[1],
        negatives: negatives.as_slice()?,
    };
    let (user_steps, item_steps) = (adam_steps(&users.1)?, adam_steps(&items.1)?);
    let users = trained(py, &mut users, &user_steps)?;
    let items = trained(py, &mut items, &item_steps)?;
    run(py, threads, simd(py, simd_path)?, |exec| {
        core::bpr_step(exec, users, items, pairs)
    })
}

#[pyfunction]
#[pyo3(signature = (own, table, ids, threads, simd_path))]
fn products<'py>(
    py: Python<'py>,
    own: Factors<'py>,
    table: Factors<'py>,
    ids: Wide<'py>,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<Floats2<'py>> {
    let (own, table, shape) = (matrix(&own)?, matrix(&table)?, [ids.shape()[0], ids.shape()[1]]);
    let ids = ids.as_slice()?;
    let scores = run(py, threads, simd(py, simd_path)?, |exec| {
        core::products(exec, own, table, ids, shape[1])
    })?;
    scores.into_pyarray(py).reshape(shape)
}

#[pyfunction]
#[pyo3(signature = (weights, table, ids, threads, simd_path))]
fn product_sums<'py>(
    py: Python<'py>,
    weights: Factors<'py>,
    table: Factors<'py>,
    ids: Wide<'py>,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<Floats2<'py>> {
    let (table, shape) = (matrix(&table)?, [ids.shape()[0], ids.shape()[1]]);
    let (weights, ids) = (weights.as_slice()?, ids.as_slice()?);
    let sums = run(py, threads, simd(py, simd_path)?, |exec| {
        core::product_sums(exec, weights, table, ids, shape[1])
    })?;
    sums.into_pyarray(py).reshape([shape[0], table.dim])
}

#[pyfunction]
#[pyo3(signature = (groups, items, dim, dense, threads, simd_path))]
fn product_scatter<'py>(
    py: Python<'py>,
    groups: Vec<(Factors<'py>, Factors<'py>, Wide<'py>)>,
    items: usize,
    dim: usize,
    dense: bool,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<(Bound<'py, PyArray1<i64>>, Floats2<'py>)> {
    let pairs = groups
        .iter()
        .map(|(weights, own, ids)| {
            Ok(core::Gathered {
                weights: weights.as_slice()?,
                own: matrix(own)?,
                ids: ids.as_slice()?,
                width: ids.shape()[1],
            })
        })
        .collect::<PyResult<Vec<_>>>()?;
    let found = run(py, threads, simd(py, simd_path)?, |exec| {
        core::product_scatter(exec, &pairs, items, dense)
    })?;
    let rows = if dense { items } else { found.rows.len() };
    let values = found.values.into_pyarray(py).reshape([rows, dim])?;
    Ok((found.rows.into_pyarray(py), values))
}

#[pyfunction]
#[pyo3(signature = (scores, listed, known, threads, simd_path))]
fn relaxed_ranking<'py>(
    py: Python<'py>,
    scores: Factors<'py>,
    listed: usize,
    known: Option<PyReadonlyArray2<'py, bool>>,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<(Bound<'py, PyArray1<f32>>, Floats2<'py>)> {
    let shape = [scores.shape()[0], scores.shape()[1]];
    let scores = scores.as_slice()?;
    let known = known.as_ref().map(|known| known.as_slice()).transpose()?;
    let found = run(py, threads, simd(py, simd_path)?, |exec| {
        core::relaxed_ranking(exec, scores, shape[1], listed, known)
    })?;
    Ok((
        found.losses.into_pyarray(py),
        found.gradients.into_pyarray(py).reshape(shape)?,
    ))
}

/// Weights and biases of the networks of a mixture.
type Layers<'py> = (
    PyReadonlyArray3<'py, f32>,
    Factors<'py>,
    PyReadonlyArray3<'py, f32>,
    Factors<'py>,
);

fn networks<'a>(py: Python, layers: &'a Layers) -> PyResult<core::Networks<'a>> {
    let (weight1, bias1, weight2, bias2) = layers;
    let (first, second) = (weight1.shape(), weight2.shape());
    let sizes = [first[0], first[1], first[2], second[2]];
    let [count, _, hidden, target] = sizes;
    if second[..2] != [count, hidden] || bias1.shape() != [count, hidden] || bias2.shape() != [count, target] {
        let (one, other) = (bias1.shape(), bias2.shape());
        let cause = format!("layers of shapes {first:?}, {one:?}, {second:?} and {other:?} do not belong together");
        return Err(refuse(py, cause, None));
    }
    let (first, second) = (
        (weight1.as_slice()?, bias1.as_slice()?),
        (weight2.as_slice()?, bias2.as_slice()?),
    );
    core::Networks::new(sizes, first.0, first.1, second.0, second.1).map_err(|error| error::raise(py, error))
}

#[pyfunction]
#[pyo3(signature = (source, shares, layers, out, threads, simd_path))]
fn mixture<'py>(
    py: Python<'py>,
    source: Factors<'py>,
    shares: Factors<'py>,
    layers: Layers<'py>,
    mut out: PyReadwriteArray2<'py, f32>,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<()> {
    let (source, shares, networks, out) = (
        matrix(&source)?,
        matrix(&shares)?,
        networks(py, &layers)?,
        out.as_slice_mut()?,
    );
    run(py, threads, simd(py, simd_path)?, |exec| {
        core::mixture(exec, source, shares, networks, out)
    })
}

type MixtureGradient<'py> = (
    Floats2<'py>,
    Floats2<'py>,
    Bound<'py, PyArray3<f32>>,
    Floats2<'py>,
    Bound<'py, PyArray3<f32>>,
    Floats2<'py>,
);

#[pyfunction]
#[pyo3(signature = (source, shares, layers, gradient, threads, simd_path))]
fn mixture_gradient<'py>(
    py: Python<'py>,
    source: Factors<'py>,
    shares: Factors<'py>,
    layers: Layers<'py>,
    gradient: Factors<'py>,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<MixtureGradient<'py>> {
    let (own, of, gradient) = (matrix(&source)?, matrix(&shares)?, matrix(&gradient)?);
    let networks = networks(py, &layers)?;
    let found = run(py, threads, simd(py, simd_path)?, |exec| {
        core::mixture_gradient(exec, own, of, networks, gradient)
    })?;
    let flat = |values: Vec<f32>, like: &[usize]| values.into_pyarray(py).reshape([like[0], like[1]]);
    let cube = |values: Vec<f32>, like: &[usize]| values.into_pyarray(py).reshape([like[0], like[1], like[2]]);
    Ok((
        flat(found.source, source.shape())?,
        flat(found.shares, shares.shape())?,
        cube(found.weight1, layers.0.shape())?,
        flat(found.bias1, layers.1.shape())?,
        cube(found.weight2, layers.2.shape())?,
        flat(found.bias2, layers.3.shape())?,
    ))
}

fn precision(bf16: bool) -> core::Precision {
    match bf16 {
        false => core::Precision::Float32,
        true => core::Precision::BFloat16,
    }
}

#[pyfunction]
#[pyo3(signature = (vectors, weights, out, bf16, threads, simd_path))]
fn quadratic<'py>(
    py: Python<'py>,
    vectors: Factors<'py>,
    weights: Factors<'py>,
    mut out: PyReadwriteArray2<'py, f32>,
    bf16: bool,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<()> {
    let (vectors, weights, out) = (matrix(&vectors)?, matrix(&weights)?, out.as_slice_mut()?);
    run(py, threads, simd(py, simd_path)?, |exec| {
        core::quadratic(exec, precision(bf16), vectors, weights, out)
    })
}

#[pyfunction]
#[pyo3(signature = (vectors, gradient, out, bf16, threads, simd_path))]
fn quadratic_gradient<'py>(
    py: Python<'py>,
    vectors: Factors<'py>,
    gradient: Factors<'py>,
    mut out: PyReadwriteArray2<'py, f32>,
    bf16: bool,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<()> {
    let (vectors, gradient, out) = (matrix(&vectors)?, matrix(&gradient)?, out.as_slice_mut()?);
    run(py, threads, simd(py, simd_path)?, |exec| {
        core::quadratic_gradient(exec, precision(bf16), vectors, gradient, out)
    })
}

#[pyfunction]
#[pyo3(signature = (values, out, gate, seed, dropped, threads, simd_path))]
#[allow(clippy::too_many_arguments)]
fn dropout<'py>(
    py: Python<'py>,
    values: Floats<'py>,
    mut out: PyReadwriteArray1<'py, f32>,
    gate: Option<Floats<'py>>,
    seed: u64,
    dropped: u16,
    threads: usize,
    simd_path: Option<&str>,
) -> PyResult<()> {
    let (values, gate, out) = (values.as_slice()?, floats(&gate)?, out.as_slice_mut()?);
    run(py, threads, simd(py, simd_path)?, |exec| {
        core::dropout(
            exec.for_work(out.len()),
            values,
            out,
            gate,
            core::Chance { seed, dropped },
        )
    })
}

#[pyfunction]
#[pyo3(signature = (simd_path))]
fn has_bfloat16_tiles(py: Python, simd_path: Option<&str>) -> PyResult<bool> {
    Ok(simd(py, simd_path)?.has_bfloat16_tiles())
}

#[pyfunction]
fn simd_paths() -> Vec<&'static str> {
    core::SimdPath::NAMES
        .into_iter()
        .filter(|name| core::SimdPath::named(name).is_some())
        .collect()
}

#[pymodule]
mod _core {
    #[pymodule_export]
    use super::{
        adam_catch_up, adam_catch_up_rows, adam_step_rows, bpr_step, candidate_ranks, candidate_ranks_scores,
        discrepancy, dropout, has_bfloat16_tiles, metrics, mixture, mixture_gradient, negatives, neighbours, outside,
        product_scatter, product_sums, products, quadratic, quadratic_gradient, ranks, ranks_scores, relaxed_ranking,
        score_step, simd_paths, table_scores, topk, topk_scores, weighted, weighted_negatives,
    };
}
