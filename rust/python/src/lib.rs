//! kdrs-core for Python. Each function reads the arrays, checks them, releases the GIL round one core call and wraps
//! the result. `python/kdrs/_core.pyi` documents them.

#![forbid(unsafe_code)]

mod args;
mod call;
mod catalogue;
mod codes;
mod draws;
mod error;
mod lists;
mod names;
mod networks;
mod products;
mod tables;
mod threads;

use kdrs_core::SimdPath;
use pyo3::prelude::*;

#[pyfunction]
#[pyo3(signature = (simd_path))]
fn has_bfloat16_tiles(py: Python, simd_path: Option<&str>) -> PyResult<bool> {
    Ok(call::simd(py, simd_path)?.has_bfloat16_tiles())
}

#[pyfunction]
fn simd_paths() -> Vec<&'static str> {
    SimdPath::NAMES
        .into_iter()
        .filter(|name| SimdPath::named(name).is_some())
        .collect()
}

#[pymodule]
mod _core {
    #[pymodule_export]
    use super::catalogue::{PackedCodes, PackedFactors};
    #[pymodule_export]
    use super::codes::{
        candidate_ranks_codes, check_codes, code_sums, code_vectors, neighbours_codes, pack_codes, ranks_codes,
        round_codes, topk_codes, turn_vectors, unpack_codes,
    };
    #[pymodule_export]
    use super::draws::{discrepancy, negatives, outside, weighted, weighted_negatives};
    #[pymodule_export]
    use super::lists::{
        candidate_ranks, candidate_ranks_scores, listed_scores, metrics, neighbours, ranks, ranks_scores, topk,
        topk_scores,
    };
    #[pymodule_export]
    use super::names::{names_places, names_table};
    #[pymodule_export]
    use super::networks::{dropout, mixture, mixture_gradient, quadratic, quadratic_gradient};
    #[pymodule_export]
    use super::products::{product_scatter, product_sums, products, relaxed_ranking};
    #[pymodule_export]
    use super::tables::{adam_catch_up, adam_catch_up_rows, adam_step_rows, bpr_step, score_step, table_scores};
    #[pymodule_export]
    use super::{has_bfloat16_tiles, simd_paths};
}
