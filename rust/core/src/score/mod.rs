//! Dot-product scores in register tiles.
//!
//! A score is one chain of fused multiply-adds over the dimension in index order that starts at the item's bias (0
//! without one). Every path below rounds that chain alike, so all give the same bytes. Items are packed once into
//! panels of [`COLUMNS`], queries into tiles of [`ROWS`]; a kernel computes one tile against one panel.

pub mod coded;
mod dots;
mod panels;
pub mod quantised;
mod scan;
mod scorer;
mod tile;

pub use coded::score as code_score;
pub use panels::Panels;
pub use scan::{Goals, Sink};
pub use scorer::{Factors, PackedFactors, Scorer, WholeScorer};

use crate::matrix::Matrix;

/// Queries in a tile.
pub const ROWS: usize = 12;
/// Items in a panel.
pub const COLUMNS: usize = 32;
/// Floats in a line of cache.
pub const LINE: usize = 16;

/// One cache line of floats, so that no load of a panel crosses two.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line(pub [f32; LINE]);

/// What the sums of a panel start at where items have no bias.
pub(crate) const NO_BIAS: [Line; 2] = [Line([0.0; LINE]); 2];

/// Scores of a tile: query by item.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub struct Tile(pub [[f32; COLUMNS]; ROWS]);

impl Default for Tile {
    fn default() -> Self {
        Tile([[0.0; COLUMNS]; ROWS])
    }
}

/// What a kernel sums over the dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// q * x
    Dot,
    /// -(q - x)^2
    Distance,
}

impl Form {
    /// The score of a sum.
    #[inline(always)]
    pub fn score(self, sum: f32) -> f32 {
        match self {
            Form::Dot => sum,
            Form::Distance => -(-sum).sqrt(),
        }
    }

    /// A sum that no sum is below whose score reaches `threshold`.
    #[inline(always)]
    pub fn reach(self, threshold: f32) -> f32 {
        match self {
            Form::Dot => threshold.max(f32::MIN),
            // Several sums have one root, so a little more than the square.
            Form::Distance => (-threshold * threshold * (1.0 + 4.0 * f32::EPSILON) - f32::MIN_POSITIVE).max(f32::MIN),
        }
    }
}

/// Sum of squares, to within a relative 1e-6.
#[inline]
pub fn square(row: &[f32]) -> f64 {
    const LANES: usize = 16;
    let mut sums = [0.0f64; LANES];
    let blocks = row.chunks_exact(LANES);
    let rest: f64 = blocks.remainder().iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    for block in blocks {
        for (sum, &x) in sums.iter_mut().zip(block) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// Bound on the relative rounding error of a chain over `dim`, with room for what is computed from it.
#[inline]
pub fn rounding(dim: usize) -> f32 {
    (dim as f32 + 16.0) * f32::EPSILON
}

/// A float32 no less than the length whose square is `squared`.
#[inline]
pub fn length(squared: f64) -> f32 {
    (squared.sqrt() * (1.0 + 1e-6)) as f32
}

/// Packs up to [`ROWS`] queries into a tile, `[dim][ROWS]`.
pub fn pack_tile(queries: Matrix, ids: impl Iterator<Item = usize>, tile: &mut Vec<f32>) {
    tile.clear();
    tile.resize(queries.dim * ROWS, 0.0);
    for (row, id) in ids.take(ROWS).enumerate() {
        for (d, &x) in queries.row(id).iter().enumerate() {
            tile[d * ROWS + row] = x;
        }
    }
}
