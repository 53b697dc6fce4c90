//! Queries as bytes.

use super::panels::{inverse_scale, BytePanels, GROUP};
use crate::matrix::Matrix;
use crate::score::{length, rounding, LINE, ROWS};
use crate::simd::SimdPath;

/// A tile of queries as unsigned bytes, and what bounds its errors.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub struct ByteTile {
    /// 1 / scale of each query.
    pub inverse_scales: [f32; LINE],
    pub scales: [f32; LINE],
    /// Error for each unit of an item's length, and for each unit of an item's error.
    pub per_length: [f32; LINE],
    pub per_error: [f32; LINE],
    /// `[groups][ROWS]`, four bytes each; `[ROWS][groups]` for tile registers.
    pub bytes: Vec<[u8; GROUP]>,
}

impl Default for ByteTile {
    fn default() -> Self {
        ByteTile {
            inverse_scales: [1.0; LINE],
            scales: [1.0; LINE],
            per_length: [0.0; LINE],
            per_error: [0.0; LINE],
            bytes: Vec::new(),
        }
    }
}

impl ByteTile {
    pub fn pack(&mut self, queries: Matrix, ids: impl Iterator<Item = usize>, panels: &BytePanels, simd: SimdPath) {
        self.bytes.clear();
        self.bytes.resize(panels.groups * ROWS, [128; GROUP]);
        let mut padded = vec![0.0f32; panels.groups * GROUP];
        let mut rounded = vec![0i8; panels.groups * GROUP];
        for (row, id) in ids.take(ROWS).enumerate() {
            padded[..queries.dim].copy_from_slice(queries.row(id));
            if panels.unit > 0.0 {
                padded[queries.dim] = panels.unit;
            }
            let inverse = inverse_scale(simd.magnitude(&padded));
            let known = simd.round(&padded, inverse, &mut rounded);
            for (group, bytes) in rounded.as_chunks::<GROUP>().0.iter().enumerate() {
                let place = if panels.chunk > 0 {
                    row * panels.groups + group
                } else {
                    group * ROWS + row
                };
                self.bytes[place] = bytes.map(|byte| (byte as u8) ^ 128);
            }
            let kept: i64 = rounded.iter().map(|&byte| i64::from(byte) * i64::from(byte)).sum();
            self.inverse_scales[row] = inverse;
            self.scales[row] = 1.0 / inverse;
            let slack = rounding(queries.dim) * length(known.squared);
            self.per_length[row] = (length(known.squared_error) + slack) * 1.000_01;
            self.per_error[row] = length(kept as f64) / inverse * 1.000_01;
        }
    }
}
