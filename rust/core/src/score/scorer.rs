//! Queries and a catalogue whose scores can be asked for, whatever their vectors are.

use super::{pack_tile, Form, Panels, Tile};
use crate::error::Error;
use crate::exec::Exec;
use crate::matrix::{check_finite, Matrix};
use crate::simd::SimdPath;

/// What ranks are counted from.
///
/// To add a kind of vectors (packed codes with a scale, say): this trait for ranks, and that of `topk::search` for lists.
pub trait Scorer: Sync {
    fn queries(&self) -> usize;
    fn items(&self) -> usize;
    /// Scores of one query and the items `ids`, all of which exist.
    fn some(&self, simd: SimdPath, query: usize, ids: &[i32], out: &mut [f32]);
}

/// What gives the scores of all items too, panel by panel in the order of ids.
pub trait WholeScorer: Scorer {
    /// Queries packed together, [`super::ROWS`] at most.
    type Packed: Default;

    /// Packs the queries from `first` on.
    fn pack(&self, simd: SimdPath, first: usize, packed: &mut Self::Packed);
    /// Panels of [`super::COLUMNS`] items, the last of which may be fewer.
    fn panels(&self) -> usize;
    /// Scores of packed queries and the items of a panel.
    fn panel(&self, simd: SimdPath, packed: &mut Self::Packed, panel: usize, out: &mut Tile);
}

/// Dot products of factors, plus a bias.
#[derive(Clone, Copy)]
pub struct Factors<'a> {
    queries: Matrix<'a>,
    items: Matrix<'a>,
    bias: Option<&'a [f32]>,
}

impl<'a> Factors<'a> {
    /// Refuses what does not fit or is not finite.
    pub fn new(exec: Exec, queries: Matrix<'a>, items: Matrix<'a>, bias: Option<&'a [f32]>) -> Result<Self, Error> {
        check_finite(exec, queries, items, bias)?;
        Ok(Factors { queries, items, bias })
    }

    pub fn packed(self, exec: Exec) -> Result<PackedFactors<'a>, Error> {
        let panels = Panels::pack(exec, self.items, self.bias, None)?;
        Ok(PackedFactors { factors: self, panels })
    }
}

impl Scorer for Factors<'_> {
    fn queries(&self) -> usize {
        self.queries.rows
    }

    fn items(&self) -> usize {
        self.items.rows
    }

    #[inline]
    fn some(&self, simd: SimdPath, query: usize, ids: &[i32], out: &mut [f32]) {
        simd.dots(self.queries.row(query), self.items, self.bias, ids, out);
    }
}

/// The same with the items in panels.
pub struct PackedFactors<'a> {
    factors: Factors<'a>,
    panels: Panels,
}

impl Scorer for PackedFactors<'_> {
    fn queries(&self) -> usize {
        self.factors.queries()
    }

    fn items(&self) -> usize {
        self.factors.items()
    }

    #[inline]
    fn some(&self, simd: SimdPath, query: usize, ids: &[i32], out: &mut [f32]) {
        self.factors.some(simd, query, ids, out);
    }
}

impl WholeScorer for PackedFactors<'_> {
    type Packed = Vec<f32>;

    fn pack(&self, _: SimdPath, first: usize, packed: &mut Vec<f32>) {
        pack_tile(self.factors.queries, first..self.queries(), packed);
    }

    fn panels(&self) -> usize {
        self.panels.count()
    }

    #[inline]
    fn panel(&self, simd: SimdPath, packed: &mut Vec<f32>, panel: usize, out: &mut Tile) {
        let (lines, bias) = self.panels.panel(panel);
        simd.tile(Form::Dot, packed, lines, bias, out);
    }
}
