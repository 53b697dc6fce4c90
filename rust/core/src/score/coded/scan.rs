//! Tiles of queries against the panels: what reaches its threshold is caught, with its score.

use std::ops::Range;

use super::caught::Caught;
#[cfg(target_arch = "x86_64")]
use super::wide;
#[cfg(target_arch = "x86_64")]
use super::Lane;
use super::{score, CodePanels, CodeTile, Words};
use crate::score::quantised::{Lanes, Totals};
use crate::score::{Goals, Tile, COLUMNS, LINE, ROWS};
use crate::simd::{compiled, SimdPath};

/// Panels that are opened together and stay in L1 while all queries pass over them.
pub(super) const BATCH: usize = 4;

/// Makes room in the full catch of a query; returns the query's threshold from then on.
pub trait Relief {
    fn relieve(&mut self, place: usize, threshold: f32, caught: &mut Caught) -> f32;
}

/// What a pass works with.
#[derive(Default)]
pub struct CodeScan {
    /// Opened panels.
    room: Vec<Words>,
    work: Work,
}

/// Sums and scores on their way.
struct Work {
    totals: Totals,
    tile: Tile,
    #[cfg(target_arch = "x86_64")]
    batch: Box<wide::Batch>,
}

impl Default for Work {
    fn default() -> Self {
        Work {
            totals: Totals::ZERO,
            tile: Tile::default(),
            #[cfg(target_arch = "x86_64")]
            batch: Box::new(wide::Batch::ZERO),
        }
    }
}

impl CodeScan {
    /// Catches every item of some panels whose score reaches its query's threshold, tile by tile.
    #[allow(clippy::too_many_arguments)]
    pub fn scan(
        &mut self,
        simd: SimdPath,
        queries: &[CodeTile],
        panels: &CodePanels,
        range: Range<usize>,
        goals: &mut [Goals],
        caught: &mut [Caught],
        relief: &mut impl Relief,
    ) {
        assert!(range.end <= panels.panels() && queries.iter().all(|queries| queries.fits(panels)));
        assert!(queries.len() == goals.len() && queries.len() == caught.len().div_ceil(ROWS));
        for first in range.clone().step_by(BATCH) {
            let count = BATCH.min(range.end - first);
            let lines = panels.open(simd, first, count, &mut self.room);
            for (tile, (queries, goals)) in queries.iter().zip(&mut *goals).enumerate() {
                let caught = &mut caught[tile * ROWS..];
                let mut full = self
                    .work
                    .catch(simd, queries, panels, (first, count), lines, goals, caught);
                while full != 0 {
                    let row = full.trailing_zeros() as usize;
                    full &= full - 1;
                    goals.thresholds[row] = relief.relieve(tile * ROWS + row, goals.thresholds[row], &mut caught[row]);
                }
            }
        }
    }

    /// The scores of the first `count` panels, those of a tile one after the other; -infinity for those `seen`: position x 16 + row
    /// each, ascending. The largest of them go into the lanes of each tile.
    #[allow(clippy::too_many_arguments)]
    pub fn sample(
        &mut self,
        simd: SimdPath,
        queries: &[CodeTile],
        panels: &CodePanels,
        count: usize,
        seen: &[Vec<u64>],
        lanes: &mut [Lanes],
        scores: &mut [Tile],
    ) {
        let mut passed = vec![0; queries.len()];
        for first in (0..count).step_by(BATCH) {
            let batch = BATCH.min(count - first);
            let lines = panels.open(simd, first, batch, &mut self.room);
            let tiles = queries.iter().zip(scores.chunks_mut(count));
            for (((queries, scores), (seen, passed)), lanes) in tiles.zip(seen.iter().zip(&mut passed)).zip(&mut *lanes)
            {
                for place in 0..batch {
                    let lines = &lines[place * panels.opened()..];
                    let panel = first + place;
                    let scores = &mut scores[panel];
                    simd.code_sums(queries, panels, lines, &mut self.work.totals);
                    simd.code_scores(queries, panels, panel, &self.work.totals, scores);
                    while let Some(&gone) = seen
                        .get(*passed)
                        .filter(|&&gone| gone as usize / LINE < (panel + 1) * COLUMNS)
                    {
                        scores.0[gone as usize % LINE][gone as usize / LINE % COLUMNS] = f32::NEG_INFINITY;
                        *passed += 1;
                    }
                    simd.take_best(scores, panel, lanes);
                }
            }
        }
    }
}

impl Work {
    /// Catches the items of `count` panels from `first` on, opened as `lines`, whose scores reach their row's threshold; gives the rows,
    /// a bit each, whose catches are full. Tile and panels have one dim.
    #[allow(clippy::too_many_arguments)]
    fn catch(
        &mut self,
        simd: SimdPath,
        queries: &CodeTile,
        panels: &CodePanels,
        (first, count): (usize, usize),
        lines: &[Words],
        goals: &Goals,
        caught: &mut [Caught],
    ) -> u32 {
        #[cfg(target_arch = "x86_64")]
        if simd.has_wide(panels.lanes) {
            assert!(queries.fits(panels) && first + count <= panels.panels() && count <= BATCH);
            // SAFETY: the processor has the instructions, and sizes agree, as asserted; whoever has opened the panels gave all lines.
            return unsafe { wide::catch(queries, panels, (first, count), lines, goals, caught, &mut self.batch) };
        }
        let mut full = 0;
        for place in 0..count {
            let panel = first + place;
            if goals.hopeless(panels.lengths[panel], panels.offsets[panel]) {
                continue;
            }
            simd.code_sums(queries, panels, &lines[place * panels.opened()..], &mut self.totals);
            simd.code_scores(queries, panels, panel, &self.totals, &mut self.tile);
            let rows = self.tile.0.iter().zip(&goals.thresholds).zip(&mut *caught);
            for (row, ((scores, &threshold), caught)) in rows.enumerate() {
                simd.catch_scores(scores, panel, threshold, caught);
                full |= u32::from(caught.len > caught.full) << row;
            }
        }
        full
    }
}

impl SimdPath {
    /// Takes the items of the first panels, with the scores of a tile that [`CodeScan::sample`] gave, that reach the threshold of a
    /// row.
    pub fn catch_sampled(self, scores: &[Tile], row: usize, threshold: f32, caught: &mut Caught) {
        for (panel, scores) in scores.iter().enumerate() {
            caught.widen(caught.full.max(caught.len));
            self.catch_scores(&scores.0[row], panel, threshold, caught);
        }
        caught.widen(caught.full.max(caught.len));
    }

    /// Whether there is a pass that keeps sums in registers.
    #[cfg(target_arch = "x86_64")]
    fn has_wide(self, lanes: Lane) -> bool {
        match lanes {
            Lane::Bytes => self.has_bytes(),
            Lane::Signs => self.level() == crate::simd::Level::Avx512 && is_x86_feature_detected!("avx512vpopcntdq"),
        }
    }
}

compiled! {
    /// The scores of sums; -infinity past the last item.
    pub(super) fn code_scores(
        queries: &CodeTile,
        panels: &CodePanels,
        panel: usize,
        totals: &Totals,
        out: &mut Tile,
    ) = code_scores;
    /// The largest of each lane.
    fn take_best(tile: &Tile, panel: usize, lanes: &mut Lanes) = take_best;
}

#[inline(always)]
fn code_scores(queries: &CodeTile, panels: &CodePanels, panel: usize, totals: &Totals, out: &mut Tile) {
    let (scales, bias) = panels.of_panel(panel);
    for (row, (totals, out)) in totals.0.iter().zip(&mut out.0).enumerate() {
        let (scale, offset) = (queries.scales[row], queries.offsets[row]);
        let halves = totals.as_chunks::<LINE>().0.iter().zip(out.as_chunks_mut::<LINE>().0);
        for ((totals, out), (scales, bias)) in halves.zip(scales.iter().zip(bias)) {
            for column in 0..LINE {
                let sum = (totals[column] << panels.shift) - offset;
                out[column] = score(sum, scale, scales.0[column], bias.0[column]);
            }
        }
    }
}

#[inline(always)]
fn take_best(tile: &Tile, panel: usize, lanes: &mut Lanes) {
    let stride = lanes.stride();
    for (scores, lines) in tile.0.iter().zip(lanes.of_panel(panel).chunks_mut(stride)) {
        for (scores, line) in scores.as_chunks::<LINE>().0.iter().zip(lines) {
            for (best, &score) in line.0.iter_mut().zip(scores) {
                *best = if score > *best { score } else { *best };
            }
        }
    }
}
