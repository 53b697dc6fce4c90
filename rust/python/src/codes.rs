//! Lists and ranks of packed codes.

use kdrs_core as core;
use numpy::{PyArray2, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::args::{floats, Floats, Ints, Ints64, Lists, Seen};
use crate::call::{kernels, Call};
use crate::lists::{flat, pair, ranking, same_lists, same_rows, Ranking, Ranks, Truth};

/// data, scales, dim, bits
type Codes<'py> = (PyReadonlyArray2<'py, u8>, PyReadonlyArray1<'py, f32>, usize, usize);

fn codes<'a>(call: &Call, given: &'a Codes) -> PyResult<core::Codes<'a>> {
    let (data, scales) = (given.0.as_slice()?, given.1.as_slice()?);
    let (dim, bits) = (given.2, given.3);
    call.run(|exec| core::Codes::new(exec, data, scales, dim, bits))
}

kernels! {
    fn check_codes(table: Codes<'py>) -> () |call| {
        codes(&call, &table).map(|_| ())
    }

    fn unpack_codes(table: Codes<'py>) -> Bound<'py, PyArray2<i8>> |call| {
        let table = codes(&call, &table)?;
        call.array([table.rows(), table.dim], |exec| table.unpacked(exec))
    }

    fn topk_codes(
        queries: Codes<'py>,
        items: Codes<'py>,
        bias: Option<Floats<'py>>,
        seen: Option<Seen<'py>>,
        rows: Option<Ints64<'py>>,
        k: usize,
    ) -> Ranking<'py> |call| {
        let (queries, items, bias) = (codes(&call, &queries)?, codes(&call, &items)?, floats(&bias)?);
        let mask = call.mask(&seen, &rows, queries.rows(), items.rows())?;
        let out = call.run(|exec| core::topk_codes(exec, queries, items, bias, mask, k))?;
        ranking(&call, out, queries.rows())
    }

    fn neighbours_codes(table: Codes<'py>, k: usize) -> Ranking<'py> |call| {
        let table = codes(&call, &table)?;
        let out = call.run(|exec| core::neighbours_codes(exec, table, k))?;
        ranking(&call, out, table.rows())
    }

    fn ranks_codes(
        queries: Codes<'py>,
        items: Codes<'py>,
        bias: Option<Floats<'py>>,
        truth: Truth<'py>,
        seen: Option<Seen<'py>>,
        rows: Option<Ints64<'py>>,
    ) -> Ranks<'py> |call| {
        let (queries, items, bias) = (codes(&call, &queries)?, codes(&call, &items)?, floats(&bias)?);
        let mask = call.mask(&seen, &rows, queries.rows(), items.rows())?;
        let rows = rows.as_ref().map(|rows| rows.as_slice()).transpose()?;
        let (targets, ends) = truth.targets(&call, rows)?;
        same_rows(&call, ends.len(), queries.rows())?;
        let out = call.run(|exec| core::list_ranks_codes(exec, queries, items, bias, &targets, &ends, mask))?;
        Ok(flat(&call, out))
    }

    fn candidate_ranks_codes(
        queries: Codes<'py>,
        rows: Option<Ints64<'py>>,
        items: Codes<'py>,
        bias: Option<Floats<'py>>,
        targets: Lists<'py>,
        candidates: Lists<'py>,
    ) -> (Ints<'py>, Ints<'py>) |call| {
        let (queries, items, bias) = (codes(&call, &queries)?, codes(&call, &items)?, floats(&bias)?);
        let rows = rows.as_ref().map(|rows| rows.as_slice()).transpose()?;
        let (count, width) = (targets.shape()[0], targets.shape()[1]);
        same_lists(&call, count, candidates.shape()[0], rows.map_or(queries.rows(), <[i64]>::len))?;
        let (targets, candidates) = (targets.as_slice()?, candidates.as_slice()?);
        let out = call.run(|exec| {
            core::candidate_ranks_codes(exec, queries, rows, items, bias, targets, candidates, count)
        })?;
        pair(&call, out, [count, width])
    }
}
