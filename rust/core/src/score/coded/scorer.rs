//! Codes as a source of ranks.

use super::{code_lengths, score, CodePanels, CodeTile};
use crate::codes::{check_codes, Codes, EIGHT};
use crate::error::Error;
use crate::exec::Exec;
use crate::score::quantised::Totals;
use crate::score::{Scorer, Tile, WholeScorer};
use crate::simd::{compiled, SimdPath};

/// Products of codes, plus a bias.
#[derive(Clone, Copy)]
pub struct CodeFactors<'a> {
    queries: Codes<'a>,
    items: Codes<'a>,
    bias: Option<&'a [f32]>,
}

impl<'a> CodeFactors<'a> {
    /// Refuses what does not fit or is not finite.
    pub fn new(queries: Codes<'a>, items: Codes<'a>, bias: Option<&'a [f32]>) -> Result<Self, Error> {
        check_codes(queries, items, bias)?;
        Ok(CodeFactors { queries, items, bias })
    }

    pub fn packed(self, exec: Exec) -> Result<PackedCodes<'a>, Error> {
        let lengths = code_lengths(exec, self.items)?;
        let panels = CodePanels::pack(exec, self.items, &lengths, self.bias, None, self.queries.bits)?;
        Ok(PackedCodes { factors: self, panels })
    }
}

impl Scorer for CodeFactors<'_> {
    fn queries(&self) -> usize {
        self.queries.rows()
    }

    fn items(&self) -> usize {
        self.items.rows()
    }

    fn some(&self, simd: SimdPath, query: usize, ids: &[i32], out: &mut [f32]) {
        let mut levels = vec![0i8; self.queries.padded()];
        self.queries.levels(simd, query, &mut levels);
        simd.code_dots(&levels, self.queries.scale(query), self.items, self.bias, ids, out);
    }
}

compiled! {
    /// Scores of one query's levels and the items `ids`, all of which exist.
    fn code_dots(
        query: &[i8],
        scale: f32,
        items: Codes,
        bias: Option<&[f32]>,
        ids: &[i32],
        out: &mut [f32],
    ) = code_dots;
}

#[inline(always)]
fn code_dots(query: &[i8], scale: f32, items: Codes, bias: Option<&[f32]>, ids: &[i32], out: &mut [f32]) {
    let mut levels = vec![[0i8; EIGHT]; query.len() / EIGHT];
    for (&id, out) in ids.iter().zip(out) {
        let item = id as usize;
        items.levels_inline(item, &mut levels);
        let sum: i32 = query
            .iter()
            .zip(levels.as_flattened())
            .map(|(&q, &x)| i32::from(q) * i32::from(x))
            .sum();
        *out = score(sum, scale, items.scale(item), bias.map_or(0.0, |bias| bias[item]));
    }
}

/// The same with the items in panels.
pub struct PackedCodes<'a> {
    factors: CodeFactors<'a>,
    panels: CodePanels,
}

impl Scorer for PackedCodes<'_> {
    fn queries(&self) -> usize {
        self.factors.queries()
    }

    fn items(&self) -> usize {
        self.factors.items()
    }

    fn some(&self, simd: SimdPath, query: usize, ids: &[i32], out: &mut [f32]) {
        self.factors.some(simd, query, ids, out);
    }
}

impl WholeScorer for PackedCodes<'_> {
    type Packed = CodeTile;

    fn pack(&self, simd: SimdPath, first: usize, packed: &mut CodeTile) {
        packed.pack(simd, self.factors.queries, first..self.queries(), &self.panels);
    }

    fn panels(&self) -> usize {
        self.panels.panels()
    }

    fn panel(&self, simd: SimdPath, packed: &mut CodeTile, panel: usize, out: &mut Tile) {
        let mut totals = Totals::ZERO;
        let mut room = std::mem::take(&mut packed.room);
        let lines = self.panels.open(simd, panel, 1, &mut room);
        simd.code_sums(packed, &self.panels, lines, &mut totals);
        packed.room = room;
        simd.code_scores(packed, &self.panels, panel, &totals, out);
    }
}
