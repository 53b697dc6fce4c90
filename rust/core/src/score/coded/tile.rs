//! Queries as codes.

use super::panels::signs;
use super::{CodePanels, Lane, Words};
use crate::codes::Codes;
use crate::score::{LINE, ROWS};
use crate::simd::SimdPath;

/// Up to [`ROWS`] queries, for certain panels.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub struct CodeTile {
    /// 0 past the last query.
    pub scales: [f32; LINE],
    /// 1 / scale, or 0 where that is no normal number.
    pub inverse_scales: [f32; LINE],
    /// A sum of levels is the sum of codes times 2^shift, less this.
    pub offsets: [i32; LINE],
    /// `[lanes][ROWS]`.
    pub lanes: Vec<u32>,
    levels: Vec<i8>,
    /// For an opened panel, of who has only this tile.
    pub room: Vec<Words>,
}

impl Default for CodeTile {
    fn default() -> Self {
        CodeTile {
            scales: [0.0; LINE],
            inverse_scales: [0.0; LINE],
            offsets: [0; LINE],
            lanes: Vec::new(),
            levels: Vec::new(),
            room: Vec::new(),
        }
    }
}

impl CodeTile {
    /// Whether it was packed for panels like these.
    pub fn fits(&self, panels: &CodePanels) -> bool {
        self.lanes.len() == panels.count * ROWS
    }

    pub fn pack(&mut self, simd: SimdPath, queries: Codes, ids: impl Iterator<Item = usize>, panels: &CodePanels) {
        self.lanes.clear();
        self.lanes.resize(panels.count * ROWS, 0);
        self.levels.resize(queries.padded(), 0);
        self.scales = [0.0; LINE];
        self.inverse_scales = [0.0; LINE];
        self.offsets = [0; LINE];
        for (row, id) in ids.take(ROWS).enumerate() {
            self.scales[row] = queries.scale(id);
            let inverse = 1.0 / queries.scale(id);
            self.inverse_scales[row] = if inverse.is_normal() { inverse } else { 0.0 };
            let own = self.lanes.iter_mut().skip(row).step_by(ROWS);
            match panels.lanes {
                Lane::Signs => {
                    own.zip(signs(queries, id)).for_each(|(lane, word)| *lane = word);
                    self.offsets[row] = -(panels.dim as i32);
                }
                Lane::Bytes => {
                    queries.levels(simd, id, &mut self.levels);
                    let groups = self.levels.as_chunks::<4>().0;
                    own.zip(groups)
                        .for_each(|(lane, group)| *lane = u32::from_le_bytes(group.map(|level| level as u8)));
                    let sum: i32 = self.levels.iter().map(|&level| i32::from(level)).sum();
                    self.offsets[row] = panels.middle * sum;
                }
            }
        }
    }
}
