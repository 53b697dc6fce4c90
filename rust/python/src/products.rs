//! Products with gathered rows, and the loss of lists.

use kdrs_core as core;
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::args::{matrix, Factors, Floats2, Wide};
use crate::call::kernels;

kernels! {
    fn products(own: Factors<'py>, table: Factors<'py>, ids: Wide<'py>) -> Floats2<'py> |call| {
        let (own, table, shape) = (matrix(&own)?, matrix(&table)?, [ids.shape()[0], ids.shape()[1]]);
        let ids = ids.as_slice()?;
        call.array(shape, |exec| core::products(exec, own, table, ids, shape[1]))
    }

    fn product_sums(weights: Factors<'py>, table: Factors<'py>, ids: Wide<'py>) -> Floats2<'py> |call| {
        let (table, shape) = (matrix(&table)?, [ids.shape()[0], ids.shape()[1]]);
        let (weights, ids) = (weights.as_slice()?, ids.as_slice()?);
        call.array([shape[0], table.dim], |exec| core::product_sums(exec, weights, table, ids, shape[1]))
    }

    fn product_scatter(
        groups: Vec<(Factors<'py>, Factors<'py>, Wide<'py>)>,
        items: usize,
        dim: usize,
        dense: bool,
    ) -> (Bound<'py, PyArray1<i64>>, Floats2<'py>) |call| {
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
        let found = call.run(|exec| core::product_scatter(exec, &pairs, items, dense))?;
        let rows = if dense { items } else { found.rows.len() };
        let values = call.shaped(found.values, [rows, dim])?;
        Ok((found.rows.into_pyarray(call.py), values))
    }

    fn relaxed_ranking(
        scores: Factors<'py>,
        listed: usize,
        known: Option<PyReadonlyArray2<'py, bool>>,
    ) -> (Bound<'py, PyArray1<f32>>, Floats2<'py>) |call| {
        let shape = [scores.shape()[0], scores.shape()[1]];
        let scores = scores.as_slice()?;
        let known = known.as_ref().map(|known| known.as_slice()).transpose()?;
        let found = call.run(|exec| core::relaxed_ranking(exec, scores, shape[1], listed, known))?;
        Ok((
            found.losses.into_pyarray(call.py),
            call.shaped(found.gradients, shape)?,
        ))
    }
}
