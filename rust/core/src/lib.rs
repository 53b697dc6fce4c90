//! Exact samplers, top-k, ranks and metrics for recommenders trained on implicit feedback.
//!
//! Slices in, vectors out. Every result is the same bytes for any number of threads, any block size and any
//! instruction set: a draw depends on (seed, row, number of the draw), a score is one chain of fused multiply-adds over
//! the dimension in index order, ties are ordered by item id.

#![deny(unsafe_op_in_unsafe_fn)]

mod bfloat16;
mod codes;
mod csr;
mod discrepancy;
mod dropout;
mod error;
mod exec;
mod float32;
mod listed;
mod math;
mod matrix;
mod metrics;
mod mixture;
mod names;
mod negatives;
mod outside;
mod pairwise;
mod products;
mod quadratic;
mod ranks;
mod relaxed;
pub mod rng;
mod room;
mod score;
mod select;
mod simd;
mod tables;
mod team;
mod topk;
mod weighted;

pub use codes::{packed as packed_codes, rounded as rounded_codes, turned, Codes, Rotation, Rounded};
pub use csr::{Csr, Mask, RowId};
pub use discrepancy::{discrepancy, Law, Model};
pub use dropout::{dropout, Chance};
pub use error::Error;
pub use exec::Exec;
pub use listed::listed_scores;
pub use matrix::Matrix;
pub use metrics::{metrics, Metric};
pub use mixture::{mixture, mixture_gradient, MixtureGradient, Networks};
pub use names::Names;
pub use negatives::{negatives, weighted_negatives};
pub use outside::outside;
pub use pairwise::{bpr_step, score_step, table_scores, Asked, Pairs, Trained};
pub use products::{product_scatter, product_sums, products, Gathered, TableGradient};
pub use quadratic::{quadratic, quadratic_gradient, Precision};
pub use ranks::{
    candidate_ranks, candidate_ranks_codes, candidate_ranks_scores, list_ranks, list_ranks_codes, list_ranks_scores,
    Ranks,
};
pub use relaxed::{relaxed_ranking, Relaxed};
pub use simd::SimdPath;
pub use tables::{catch_up, catch_up_rows, step_rows, AdamStep, Ledger, Table, Touched};
pub use team::Team;
pub use topk::{
    neighbours, neighbours_codes, topk, topk_codes, topk_scores, Catalogue, CodeCatalogue, Distance, Ranking,
};
pub use weighted::{weighted, Order, Weights};
