//! Blocks of sums without tile registers, in the order in which those sum.

use super::{Sums, Tiles, TILE};

pub fn tile_sums(left: &[Tiles], right: &[Tiles], sums: &mut Sums) {
    for (left, right) in left.iter().zip(right) {
        for (place, sums) in sums.0.iter_mut().enumerate() {
            let (left, right) = (&left.0[place / 2], &right.0[place % 2]);
            for (row, sums) in left.iter().zip(sums) {
                for (column, sum) in sums.iter_mut().enumerate() {
                    *sum = flushed(*sum + pair_sums(row, right, column));
                }
            }
        }
    }
}

/// One value of a tile's product: the first of each pair and the second are summed apart.
fn pair_sums(row: &[u32; TILE], right: &[[u32; TILE]; TILE], column: usize) -> f32 {
    let (mut first, mut second) = (0.0f32, 0.0f32);
    for (pair, line) in row.iter().zip(right) {
        let other = line[column];
        first = flushed(value(pair << 16).mul_add(value(other << 16), first));
        second = flushed(value(pair & 0xffff_0000).mul_add(value(other & 0xffff_0000), second));
    }
    flushed(first + second)
}

/// What the upper half of a word stands for.
fn value(bits: u32) -> f32 {
    flushed(f32::from_bits(bits))
}

/// Tile registers take subnormal numbers as 0 and make none.
fn flushed(number: f32) -> f32 {
    if number.is_subnormal() {
        0.0
    } else {
        number
    }
}
