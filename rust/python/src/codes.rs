//! Packed codes: how they are made and read, lists and ranks.

use kdrs_core as core;
use numpy::{IntoPyArray, PyArray1, PyArray2, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::args::{floats, Factors, Floats, Floats2, Ints, Ints32, Ints64, Lists, Seen};
use crate::call::{kernels, Call};
use crate::lists::{flat, pair, ranking, same_lists, same_rows, Ranking, Ranks, Truth};

/// data, scales, dim, bits
pub(crate) type Codes<'py> = (PyReadonlyArray2<'py, u8>, PyReadonlyArray1<'py, f32>, usize, usize);

/// data, scales
type Rounded<'py> = (Bound<'py, PyArray2<u8>>, Bound<'py, PyArray1<f32>>);

pub(crate) fn codes<'a>(call: &Call, given: &'a Codes) -> PyResult<core::Codes<'a>> {
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

    fn pack_codes(levels: PyReadonlyArray2<'py, i8>, bits: usize) -> Bound<'py, PyArray2<u8>> |call| {
        let (count, dim) = (levels.shape()[0], levels.shape()[1]);
        let levels = levels.as_slice()?;
        call.array([count, (dim * bits).div_ceil(8)], |exec| core::packed_codes(exec, levels, dim, bits))
    }

    fn round_codes(vectors: Factors<'py>, rotation: Option<u64>, bits: usize) -> Rounded<'py> |call| {
        let (count, dim) = (vectors.shape()[0], vectors.shape()[1]);
        let rows = vectors.as_slice()?;
        let (data, mut scales) = call.run(|exec| {
            let rotation = rotation.map(|seed| core::Rotation::new(dim, seed));
            core::rounded_codes(exec, rows, dim, rotation.as_ref(), bits)
        })?;
        scales.resize(count, 0.0); // rows without dimensions
        Ok((call.shaped(data, [count, (dim * bits).div_ceil(8)])?, scales.into_pyarray(call.py)))
    }

    fn turn_vectors(vectors: Factors<'py>, rotation: u64) -> Floats2<'py> |call| {
        let (count, dim) = (vectors.shape()[0], vectors.shape()[1]);
        let rows = vectors.as_slice()?;
        call.array([count, dim], |exec| core::turned(exec, rows, dim, &core::Rotation::new(dim, rotation)))
    }

    fn code_vectors(table: Codes<'py>, rotation: u64) -> Floats2<'py> |call| {
        let table = codes(&call, &table)?;
        call.array([table.rows(), table.dim], |exec| table.vectors(exec, &core::Rotation::new(table.dim, rotation)))
    }

    fn code_sums(
        table: Codes<'py>,
        indptr: Ints64<'py>,
        indices: Ints32<'py>,
        weights: Option<Floats<'py>>,
    ) -> Floats2<'py> |call| {
        let (table, weights) = (codes(&call, &table)?, floats(&weights)?);
        let (indptr, indices) = (indptr.as_slice()?, indices.as_slice()?);
        let count = indptr.len().saturating_sub(1);
        call.array([count, table.dim], |exec| table.sums(exec, indptr, indices, weights))
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
