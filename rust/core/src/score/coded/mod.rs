//! Scores of packed codes: sums of products of integers, exact, times the scales of both rows.
//!
//! A score is `(scale of the query * scale of the item) * sum + bias`, each operation rounded to float32 by itself. Items keep the
//! bits of their table, in panels; a few panels at a time are opened into bytes, which all tiles of queries then pass over. Rows of
//! signs against signs are words of 32 of them: the sum is the dimension less twice the differing bits.

mod caught;
mod one;
mod panels;
mod scan;
mod scorer;
mod signs;
mod sums;
mod tile;
#[cfg(target_arch = "x86_64")]
mod wide;

#[cfg(test)]
mod tests;

pub use caught::Caught;
pub use one::{CodeQuery, OneScan};
pub use panels::{code_length, code_lengths, CodePanels};
pub use scan::{CodeScan, Relief};
pub use scorer::CodeFactors;
pub use tile::CodeTile;

use crate::score::LINE;

/// One cache line: a lane of 32 bits for each of sixteen items.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Words(pub [u32; LINE]);

/// What lanes of 32 bits hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Four unsigned bytes of an item, four signed ones of a query.
    Bytes,
    /// 32 signs.
    Signs,
}

impl Lane {
    pub fn dims(self) -> usize {
        match self {
            Lane::Bytes => 4,
            Lane::Signs => 32,
        }
    }
}

/// The score that all paths give.
#[inline(always)]
pub fn score(sum: i32, query_scale: f32, item_scale: f32, bias: f32) -> f32 {
    (query_scale * item_scale) * sum as f32 + bias
}
