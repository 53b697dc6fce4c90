//! Who takes part in which network.

use std::ops::Range;

use super::networks::Networks;
#[cfg(doc)]
use crate::exec::Exec;
use crate::matrix::Matrix;
use crate::score::{LINE, ROWS};

/// Pairs of a task of entities and a network, at least and on average: fewer would leave tiles half empty.
const PAIRS: usize = 2 * ROWS;
/// Tasks of entities a thread, at most.
const TASKS: usize = 4;

/// An entity that takes part in a network.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pair {
    pub entity: u32,
    pub share: f32,
}

/// The pairs of each network, in the order of entities.
pub struct Lists {
    starts: Vec<usize>,
    pub pairs: Vec<Pair>,
}

impl Lists {
    pub fn new(shares: Matrix) -> Self {
        let mut next = vec![0usize; shares.dim + 1];
        // Not a comparison by size, which would lose NaN.
        let takes_part = |share: f32| share != 0.0;
        for row in shares.data.chunks_exact(shares.dim) {
            for (next, &share) in next[1..].iter_mut().zip(row) {
                *next += usize::from(takes_part(share));
            }
        }
        for network in 0..shares.dim {
            next[network + 1] += next[network];
        }
        let starts = next.clone();
        let mut pairs = vec![Pair::default(); starts[shares.dim]];
        for (entity, row) in shares.data.chunks_exact(shares.dim).enumerate() {
            for (next, &share) in next.iter_mut().zip(row) {
                if takes_part(share) {
                    let entity = entity as u32;
                    pairs[*next] = Pair { entity, share };
                    *next += 1;
                }
            }
        }
        Lists { starts, pairs }
    }

    pub fn of(&self, network: usize) -> Range<usize> {
        self.starts[network]..self.starts[network + 1]
    }

    /// Pairs of a network with some of the entities.
    pub fn among(&self, network: usize, entities: &Range<usize>) -> Range<usize> {
        let all = self.of(network);
        let own = &self.pairs[all.clone()];
        let place = |end: usize| all.start + own.partition_point(|pair| (pair.entity as usize) < end);
        place(entities.start)..place(entities.end)
    }

    /// Entities of a task: each packs the networks for itself.
    pub fn step(&self, entities: usize, threads: usize) -> usize {
        let networks = self.starts.len() - 1;
        let tasks = (self.pairs.len() / (PAIRS * networks)).clamp(1, TASKS * threads);
        let tasks = match tasks > threads {
            true => tasks / threads * threads,
            false => tasks,
        };
        entities.div_ceil(tasks).max(1)
    }

    /// Multiply-adds, a sixteenth of them: what [`Exec::for_work`] asks for.
    pub fn work(&self, networks: Networks) -> usize {
        self.pairs.len() * networks.hidden * (networks.source + networks.target) / LINE
    }
}
