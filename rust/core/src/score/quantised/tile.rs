//! Queries as bytes.

use super::panels::{inverse_scale, BytePanels, GROUP};
use crate::matrix::Matrix;
use crate::score::{length, rounding, LINE, ROWS};
use crate::simd::SimdPath;

/// One query as signed bytes, and what bounds its errors.
#[derive(Clone, Debug)]
pub struct ByteQuery {
    /// 1 / scale.
    pub inverse_scale: f32,
    pub scale: f32,
    /// Error for each unit of an item's length, and for each unit of an item's error.
    pub per_length: f32,
    pub per_error: f32,
    /// `[groups]`.
    pub bytes: Vec<[i8; GROUP]>,
    padded: Vec<f32>,
}

impl ByteQuery {
    /// Room for queries of these panels.
    pub fn new(panels: &BytePanels) -> Self {
        ByteQuery {
            inverse_scale: 1.0,
            scale: 1.0,
            per_length: 0.0,
            per_error: 0.0,
            bytes: vec![[0; GROUP]; panels.groups],
            padded: vec![0.0; panels.groups * GROUP],
        }
    }

    pub fn pack(&mut self, simd: SimdPath, query: &[f32], unit: f32) {
        self.padded[..query.len()].copy_from_slice(query);
        if unit > 0.0 {
            self.padded[query.len()] = unit;
        }
        let rounded = self.bytes.as_flattened_mut();
        let inverse = inverse_scale(simd.magnitude(&self.padded));
        let known = simd.round(&self.padded, inverse, rounded);
        let kept: i64 = rounded.iter().map(|&byte| i64::from(byte) * i64::from(byte)).sum();
        self.inverse_scale = inverse;
        self.scale = 1.0 / inverse;
        let slack = rounding(query.len()) * length(known.squared);
        self.per_length = (length(known.squared_error) + slack) * 1.000_01;
        self.per_error = length(kept as f64) / inverse * 1.000_01;
    }
}

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
        let mut own = ByteQuery::new(panels);
        for (row, id) in ids.take(ROWS).enumerate() {
            own.pack(simd, queries.row(id), panels.unit);
            for (group, bytes) in own.bytes.iter().enumerate() {
                let place = if panels.chunk > 0 {
                    row * panels.groups + group
                } else {
                    group * ROWS + row
                };
                self.bytes[place] = bytes.map(|byte| (byte as u8) ^ 128);
            }
            self.inverse_scales[row] = own.inverse_scale;
            self.scales[row] = own.scale;
            self.per_length[row] = own.per_length;
            self.per_error[row] = own.per_error;
        }
    }
}
