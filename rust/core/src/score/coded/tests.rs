use proptest::prelude::*;

use super::*;
use crate::codes::Codes;
use crate::exec::Exec;
use crate::score::quantised::Totals;
use crate::score::{Tile, COLUMNS, ROWS};
use crate::simd::SimdPath;

/// The levels of a row, one by one.
fn levels(codes: Codes, row: usize) -> Vec<i32> {
    let bit = |at: usize| u32::from(codes.bytes(row)[at / 8] >> (at % 8) & 1);
    (0..codes.dim)
        .map(|d| {
            let code = (0..codes.bits).fold(0, |code, place| code | bit(d * codes.bits + place) << place);
            match codes.bits {
                8 => i32::from(code as u8 as i8),
                bits => 2 * code as i32 - ((1 << bits) - 1),
            }
        })
        .collect()
}

proptest! {
    /// Every path's sums and scores, of all bits, against plain loops; dimensions beyond those whose counts a byte holds.
    #[test]
    fn tiles_are_those_of_plain_loops(
        bits in (0usize..5, 0usize..5),
        dim in prop_oneof![3 => 0usize..70, 1 => 900usize..2100],
        (rows, items) in (1usize..=ROWS, 1usize..70),
        seed in any::<u64>(),
        biased in any::<bool>(),
    ) {
        let bits = (([1, 2, 3, 4, 8])[bits.0], ([1, 2, 3, 4, 8])[bits.1]);
        let word = |counter: usize| crate::rng::at(seed, counter as u64);
        let data = |rows: usize, bits: usize, from: usize| -> Vec<u8> {
            (0..rows * (dim * bits).div_ceil(8))
                .map(|place| word(from + place) as u8)
                .map(|byte| if bits == 8 && byte == 128 { 127 } else { byte })
                .collect()
        };
        let scales = |rows: usize, from: usize| -> Vec<f32> {
            (0..rows).map(|row| (word(from + row) % 5) as f32 * 0.3).collect()
        };
        let (own, table) = (data(rows, bits.0, 0), data(items, bits.1, 1 << 20));
        let (q, x) = (scales(rows, 1 << 30), scales(items, 1 << 31));
        let bias: Vec<f32> = (0..items).map(|item| (item % 7) as f32 - 3.0).collect();
        let bias = biased.then_some(&bias[..]);
        for simd in SimdPath::NAMES.into_iter().filter_map(SimdPath::named) {
            let exec = Exec { simd, ..Exec::serial() };
            let queries = Codes::new(exec, &own, &q, dim, bits.0).unwrap();
            let table = Codes::new(exec, &table, &x, dim, bits.1).unwrap();
            let lengths = code_lengths(exec, table).unwrap();
            let panels = CodePanels::pack(exec, table, &lengths, bias, None, bits.0).unwrap();
            let mut packed = CodeTile::default();
            packed.pack(simd, queries, 0..rows, &panels);
            let (mut room, mut totals, mut tile) = (Vec::new(), Totals::ZERO, Tile::default());
            for panel in 0..panels.panels() {
                let lines = panels.open(simd, panel, 1, &mut room);
                simd.code_sums(&packed, &panels, lines, &mut totals);
                simd.code_scores(&packed, &panels, panel, &totals, &mut tile);
                for row in 0..rows {
                    let query = levels(queries, row);
                    for column in 0..COLUMNS {
                        let item = panel * COLUMNS + column;
                        if item >= items {
                            prop_assert_eq!(tile.0[row][column], f32::NEG_INFINITY);
                            continue;
                        }
                        let sum: i32 = query.iter().zip(levels(table, item)).map(|(q, x)| q * x).sum();
                        let expected = (q[row] * x[item]) * sum as f32 + bias.map_or(0.0, |bias| bias[item]);
                        prop_assert_eq!(tile.0[row][column], expected);
                    }
                }
            }
        }
    }
}
