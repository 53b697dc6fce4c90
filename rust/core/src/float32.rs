//! Products of float32 matrices whose left factor is made where it is needed ([`Rows`]).
//!
//! Done in the tiles of [`crate::score`]: each value is a chain of fused multiply-adds over [`DEPTH`] of the inner dimension, and the
//! chains' results are added up in order. So all paths and any number of threads give the same bytes.

use crate::error::Error;
use crate::exec::Exec;
use crate::matrix::{Matrix, Rows};
use crate::score::{Line, Tile, COLUMNS, LINE, NO_BIAS, ROWS};

/// Of the inner dimension at a time: a panel of the right factor and a tile of the left one stay in the second cache.
const DEPTH: usize = 768;
/// Rows of a task.
const TASK: usize = 8 * ROWS;

/// `left · right` into `out`, float32 `[rows, right.dim]`, for a left factor `[rows, right.rows]`.
pub(crate) fn product(exec: Exec, left: &impl Rows, rows: usize, right: Matrix, out: &mut [f32]) -> Result<(), Error> {
    let (inner, columns) = (right.rows, right.dim);
    if rows.checked_mul(columns) != Some(out.len()) {
        return Err(Error::Shape(format!("{} values for {rows} x {columns}", out.len())));
    }
    if out.is_empty() || inner == 0 {
        out.fill(0.0);
        return Ok(());
    }
    let exec = exec.for_work(out.len().saturating_mul(inner) / LINE);
    let panel = 2 * DEPTH.min(inner);
    let mut packed = vec![Line([0.0; LINE]); columns.div_ceil(COLUMNS) * panel];
    for start in (0..inner).step_by(DEPTH) {
        let depth = DEPTH.min(inner - start);
        exec.each(
            packed.chunks_mut(panel).enumerate(),
            || (),
            |(), (place, lines)| {
                pack(right, start, place * COLUMNS, &mut lines[..2 * depth]);
                Ok(())
            },
        )?;
        let packed = &packed;
        exec.each(
            out.chunks_mut(TASK * columns).enumerate(),
            || (vec![0.0; TASK * depth], [0.0; DEPTH], Tile::default()),
            |(tiles, values, tile), (task, out)| {
                let values = &mut values[..depth];
                for (place, _) in out.chunks(columns).enumerate() {
                    left.fill(task * TASK + place, start..start + depth, values);
                    let own = &mut tiles[place / ROWS * depth * ROWS..][..depth * ROWS];
                    for (own, &value) in own.iter_mut().skip(place % ROWS).step_by(ROWS).zip(&*values) {
                        *own = value;
                    }
                }
                for (place, lines) in packed.chunks(panel).enumerate() {
                    let span = place * COLUMNS..columns.min((place + 1) * COLUMNS);
                    let blocks = out.chunks_mut(ROWS * columns).zip(tiles.chunks(depth * ROWS));
                    for (out, left) in blocks {
                        exec.simd
                            .products_tile(left, &lines[..2 * depth], &NO_BIAS, span.len(), tile);
                        for (out, sums) in out.chunks_mut(columns).zip(&tile.0) {
                            let out = &mut out[span.clone()];
                            match start {
                                0 => out.copy_from_slice(&sums[..out.len()]),
                                _ => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
                            }
                        }
                    }
                }
                Ok(())
            },
        )?;
    }
    Ok(())
}

/// Rows from `first` on, columns from `column` on, into a panel.
fn pack(right: Matrix, first: usize, column: usize, lines: &mut [Line]) {
    for (d, lines) in lines.chunks_exact_mut(2).enumerate() {
        let row = &right.row(first + d)[column..];
        for (line, values) in lines.iter_mut().zip(row.chunks(LINE)) {
            line.0[..values.len()].copy_from_slice(values);
        }
    }
}
