//! The way to the outputs.

use super::lists::{Lists, Pair};
use super::networks::Networks;
use super::panels::{filled, Forward};
use crate::error::Error;
use crate::exec::Exec;
use crate::matrix::Matrix;
use crate::score::{pack_tile, Tile, COLUMNS, NO_BIAS, ROWS};

/// The mixed outputs, float32 `[entities, target]`; `source` is `[entities, source]`, `shares` `[entities, networks]`.
pub fn mixture(exec: Exec, source: Matrix, shares: Matrix, networks: Networks, out: &mut [f32]) -> Result<(), Error> {
    networks.check(source, shares, out.len())?;
    out.fill(0.0);
    let lists = Lists::new(shares);
    let exec = exec.for_work(lists.work(networks));
    let step = lists.step(source.rows, exec.threads());
    exec.each(
        out.chunks_mut(step * networks.target).enumerate(),
        || (Forward::default(), Scratch::default()),
        |(packed, scratch), (task, out)| {
            let entities = task * step..task * step + out.len() / networks.target;
            for network in 0..networks.count {
                let pairs = &lists.pairs[lists.among(network, &entities)];
                if pairs.is_empty() {
                    continue;
                }
                packed.pack(networks, network);
                for pairs in pairs.chunks(ROWS) {
                    scratch.activate(exec, source, pairs, packed, networks);
                    for (place, panel) in packed.second.iter().enumerate() {
                        let (hidden, columns) = (&scratch.hidden, filled(place, networks.target));
                        exec.simd
                            .products_tile(hidden, panel, &NO_BIAS, columns, &mut scratch.tile);
                        for (pair, values) in pairs.iter().zip(&scratch.tile.0) {
                            let row = pair.entity as usize - entities.start;
                            let out = &mut out[row * networks.target..][..networks.target][place * COLUMNS..];
                            for (out, &value) in out.iter_mut().zip(values) {
                                *out += value;
                            }
                        }
                    }
                }
            }
            Ok(())
        },
    )
}

#[derive(Default)]
pub struct Scratch {
    pub source: Vec<f32>,
    /// `[units][ROWS]`
    hidden: Vec<f32>,
    pub tile: Tile,
}

impl Scratch {
    /// The hidden units of up to [`ROWS`] pairs, times their shares.
    pub fn activate(&mut self, exec: Exec, source: Matrix, pairs: &[Pair], packed: &Forward, networks: Networks) {
        pack_tile(source, pairs.iter().map(|pair| pair.entity as usize), &mut self.source);
        let mut shares = [0.0; ROWS];
        for (share, pair) in shares.iter_mut().zip(pairs) {
            *share = pair.share;
        }
        self.hidden.resize(networks.units() * ROWS, 0.0);
        let panels = packed.first.iter().zip(&packed.bias);
        for ((panel, bias), hidden) in panels.zip(self.hidden.chunks_mut(COLUMNS * ROWS)) {
            let columns = hidden.len() / ROWS;
            exec.simd
                .products_tile(&self.source, panel, bias, columns, &mut self.tile);
            for (column, hidden) in hidden.chunks_exact_mut(ROWS).enumerate() {
                for row in 0..ROWS {
                    hidden[row] = active(self.tile.0[row][column]) * shares[row];
                }
            }
        }
    }
}

#[inline(always)]
pub fn active(value: f32) -> f32 {
    // Not max, which would lose NaN.
    if value <= 0.0 {
        0.0
    } else {
        value
    }
}
