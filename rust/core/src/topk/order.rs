//! The order in which a catalogue is scored.

use crate::error::Error;
use crate::exec::Exec;
use crate::score::COLUMNS;
use crate::select::{item_of, rank_key};

/// First a sample: its best few, unseen by the query, tell where the k-th best of all probably lies, so that from the
/// start few others need be looked at. Then the rest, longest vectors first, so that once the threshold passes what the
/// remaining lengths allow, whole panels are left out.
pub struct Order {
    pub ids: Vec<i32>,
    positions: Vec<i32>,
    /// Panels of the sample.
    pub sampled: usize,
    /// How many of the best of the sample make the threshold; k if that is to be certain.
    pub guess: usize,
}

impl Order {
    /// Of `n` items; `reach` tells about how high an item's scores go.
    pub fn new(exec: Exec, n: usize, k: usize, reach: impl Fn(usize) -> f32 + Sync) -> Result<Self, Error> {
        let mut keyed = vec![0u64; n];
        const STEP: usize = 1024;
        exec.each(
            keyed.chunks_mut(STEP).enumerate(),
            || (),
            |(), (task, keyed)| {
                for (offset, key) in keyed.iter_mut().enumerate() {
                    let item = task * STEP + offset;
                    *key = rank_key(reach(item), item as i32);
                }
                Ok(())
            },
        )?;
        keyed.sort_unstable_by(|a, b| b.cmp(a));
        // A sixteenth of a large catalogue; a small one is not worth it.
        let sampled = if n >= 4096 {
            (n / 8).clamp(512, 8192) / COLUMNS
        } else {
            0
        };
        let expected = k as f64 * (sampled * COLUMNS) as f64 / n.max(1) as f64;
        // The number of the k best that fall into the sample is nearly Poisson; five in a thousand queries or fewer
        // have as many as this, and are done again.
        let guess = ((expected + 3.0 * expected.sqrt() + 3.0) as usize).min(k);
        let mut ids = Vec::with_capacity(n);
        if sampled > 0 {
            let m = sampled * COLUMNS;
            let chosen = |j: usize| j * n / m;
            ids.extend((0..m).map(|j| item_of(keyed[chosen(j)])));
            let mut next = 0;
            for (place, &key) in keyed.iter().enumerate() {
                if next < m && chosen(next) == place {
                    next += 1;
                } else {
                    ids.push(item_of(key));
                }
            }
        } else {
            ids.extend(keyed.iter().map(|&key| item_of(key)));
        }
        let mut positions = vec![0; n];
        for (position, &id) in ids.iter().enumerate() {
            positions[id as usize] = position as i32;
        }
        Ok(Order {
            ids,
            positions,
            sampled,
            guess,
        })
    }

    pub fn items(&self) -> usize {
        self.ids.len()
    }

    /// Where an item that `query` has seen stands.
    pub fn position(&self, query: usize, item: i32) -> Result<i32, Error> {
        let position = usize::try_from(item).ok().and_then(|item| self.positions.get(item));
        position.copied().ok_or(Error::ItemRange {
            what: "seen",
            row: query,
            item: i64::from(item),
            items: self.items(),
        })
    }
}
