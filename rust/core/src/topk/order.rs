//! The order in which a catalogue is scored.

use crate::error::Error;
use crate::exec::Exec;
use crate::room::{filled, probe};
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
    /// Panels of the sample that are a sample themselves; see [`Order::lead`].
    pub first: usize,
}

/// Items that are put in an order of their own together: a fiftieth of a catalogue of 25,000.
const BLOCK: usize = 16 * COLUMNS;

impl Order {
    /// Of `n` items; `reach` tells about how high an item's scores go.
    pub fn new(exec: Exec, n: usize, reach: impl Fn(usize) -> f32 + Sync) -> Result<Self, Error> {
        let mut keyed = filled(0u64, n, 1)?;
        probe(n.saturating_mul(12))?; // ids twice, and positions
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
        let ids: Vec<i32> = keyed.into_iter().map(item_of).collect();
        let mut order = Order {
            ids: strided_first(&ids, sampled * COLUMNS),
            positions: vec![0; n],
            sampled,
            first: 0,
        };
        order.place();
        Ok(order)
    }

    /// Brings a quarter of the sample, strided itself, to its front. In blocks that keep their place, items are put in descending order
    /// of `key`, so that those of a panel are alike in it.
    pub fn lead(&mut self, key: impl Fn(i32) -> f32) {
        let sample = self.sampled * COLUMNS;
        self.first = self.sampled.div_ceil(4);
        let first = self.first * COLUMNS;
        let ordered = strided_first(&self.ids[..sample], first);
        self.ids[..sample].copy_from_slice(&ordered);
        let (front, rest) = self.ids.split_at_mut(sample);
        let (first, second) = front.split_at_mut(first);
        for block in [first]
            .into_iter()
            .chain(second.chunks_mut(BLOCK))
            .chain(rest.chunks_mut(BLOCK))
        {
            let mut keys: Vec<u64> = block.iter().map(|&id| rank_key(key(id), id)).collect();
            keys.sort_unstable_by(|a, b| b.cmp(a));
            block.iter_mut().zip(keys).for_each(|(id, key)| *id = item_of(key));
        }
        self.place();
    }

    /// How many of the best of the sample make the threshold of lists of `k`; k if that is to be certain.
    pub fn guess(&self, k: usize) -> usize {
        guess(k, self.sampled, self.items())
    }

    /// The same of the first panels.
    pub fn first_guess(&self, k: usize) -> usize {
        guess(k, self.first, self.items())
    }

    fn place(&mut self) {
        for (position, &id) in self.ids.iter().enumerate() {
            self.positions[id as usize] = position as i32;
        }
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

    /// A bit an item, those set that `query` has seen; empty if there are none. Refuses what is no item.
    pub fn marked(&self, query: usize, seen: &[i32]) -> Result<Vec<u32>, Error> {
        if seen.is_empty() {
            return Ok(Vec::new());
        }
        let mut bits = filled(0u32, self.items().div_ceil(32), 1)?;
        for &item in seen {
            self.position(query, item)?;
            bits[item as usize / 32] |= 1 << (item % 32);
        }
        Ok(bits)
    }
}

/// How many of the best of a sample of so many panels of `n` items make the threshold: the number of the k best that fall into the
/// sample is nearly Poisson; five in a thousand queries or fewer have as many as this, and are done again.
fn guess(k: usize, panels: usize, n: usize) -> usize {
    let expected = k as f64 * (panels * COLUMNS) as f64 / n.max(1) as f64;
    ((expected + 3.0 * expected.sqrt() + 3.0) as usize).min(k)
}

/// `m` of the ids at equal distances, then the others; both in their order.
fn strided_first(ids: &[i32], m: usize) -> Vec<i32> {
    let chosen = |j: usize| j * ids.len() / m;
    let mut ordered: Vec<i32> = (0..m).map(|j| ids[chosen(j)]).collect();
    let mut next = 0;
    for (place, &id) in ids.iter().enumerate() {
        if next < m && chosen(next) == place {
            next += 1;
        } else {
            ordered.push(id);
        }
    }
    ordered
}
