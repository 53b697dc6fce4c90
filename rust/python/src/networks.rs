//! Layers of networks.

use kdrs_core as core;
use numpy::{
    IntoPyArray, PyArray3, PyArrayMethods, PyReadonlyArray3, PyReadwriteArray1, PyReadwriteArray2,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;

use crate::args::{floats, matrix, Factors, Floats, Floats2};
use crate::call::{kernels, Call};

/// Weights and biases of the networks of a mixture.
type Layers<'py> = (
    PyReadonlyArray3<'py, f32>,
    Factors<'py>,
    PyReadonlyArray3<'py, f32>,
    Factors<'py>,
);

fn networks<'a>(call: &Call, layers: &'a Layers) -> PyResult<core::Networks<'a>> {
    let (weight1, bias1, weight2, bias2) = layers;
    let (first, second) = (weight1.shape(), weight2.shape());
    let sizes = [first[0], first[1], first[2], second[2]];
    let [count, _, hidden, target] = sizes;
    if second[..2] != [count, hidden] || bias1.shape() != [count, hidden] || bias2.shape() != [count, target] {
        let (one, other) = (bias1.shape(), bias2.shape());
        let cause = format!("layers of shapes {first:?}, {one:?}, {second:?} and {other:?} do not belong together");
        return Err(call.refuse(cause, None));
    }
    let (first, second) = (
        (weight1.as_slice()?, bias1.as_slice()?),
        (weight2.as_slice()?, bias2.as_slice()?),
    );
    call.check(core::Networks::new(sizes, first.0, first.1, second.0, second.1))
}

type MixtureGradient<'py> = (
    Floats2<'py>,
    Floats2<'py>,
    Bound<'py, PyArray3<f32>>,
    Floats2<'py>,
    Bound<'py, PyArray3<f32>>,
    Floats2<'py>,
);

fn precision(bf16: bool) -> core::Precision {
    match bf16 {
        false => core::Precision::Float32,
        true => core::Precision::BFloat16,
    }
}

kernels! {
    fn mixture(
        source: Factors<'py>,
        shares: Factors<'py>,
        layers: Layers<'py>,
        out: PyReadwriteArray2<'py, f32>,
    ) -> () |call| {
        let (source, shares, networks, out) = (
            matrix(&source)?,
            matrix(&shares)?,
            networks(&call, &layers)?,
            out.as_slice_mut()?,
        );
        call.run(|exec| core::mixture(exec, source, shares, networks, out))
    }

    fn mixture_gradient(
        source: Factors<'py>,
        shares: Factors<'py>,
        layers: Layers<'py>,
        gradient: Factors<'py>,
    ) -> MixtureGradient<'py> |call| {
        let (own, of, gradient) = (matrix(&source)?, matrix(&shares)?, matrix(&gradient)?);
        let networks = networks(&call, &layers)?;
        let found = call.run(|exec| core::mixture_gradient(exec, own, of, networks, gradient))?;
        let flat = |values: Vec<f32>, like: &[usize]| values.into_pyarray(call.py).reshape([like[0], like[1]]);
        let cube = |values: Vec<f32>, like: &[usize]| values.into_pyarray(call.py).reshape([like[0], like[1], like[2]]);
        Ok((
            flat(found.source, source.shape())?,
            flat(found.shares, shares.shape())?,
            cube(found.weight1, layers.0.shape())?,
            flat(found.bias1, layers.1.shape())?,
            cube(found.weight2, layers.2.shape())?,
            flat(found.bias2, layers.3.shape())?,
        ))
    }

    fn quadratic(
        vectors: Factors<'py>,
        weights: Factors<'py>,
        out: PyReadwriteArray2<'py, f32>,
        bf16: bool,
    ) -> () |call| {
        let (vectors, weights, out) = (matrix(&vectors)?, matrix(&weights)?, out.as_slice_mut()?);
        call.run(|exec| core::quadratic(exec, precision(bf16), vectors, weights, out))
    }

    fn quadratic_gradient(
        vectors: Factors<'py>,
        gradient: Factors<'py>,
        out: PyReadwriteArray2<'py, f32>,
        bf16: bool,
    ) -> () |call| {
        let (vectors, gradient, out) = (matrix(&vectors)?, matrix(&gradient)?, out.as_slice_mut()?);
        call.run(|exec| core::quadratic_gradient(exec, precision(bf16), vectors, gradient, out))
    }

    fn dropout(
        values: Floats<'py>,
        out: PyReadwriteArray1<'py, f32>,
        gate: Option<Floats<'py>>,
        seed: u64,
        dropped: u16,
    ) -> () |call| {
        let (values, gate, out) = (values.as_slice()?, floats(&gate)?, out.as_slice_mut()?);
        call.run(|exec| {
            core::dropout(
                exec.for_work(out.len()),
                values,
                out,
                gate,
                core::Chance { seed, dropped },
            )
        })
    }
}
