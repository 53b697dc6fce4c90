//! What has been caught, taken apart.

use crate::score::quantised::Catch;
use crate::select::{ordered, unordered};
use crate::simd::SimdPath;

/// Catches are sieved when so many are held: a sieve costs as much as some hundreds of entries that come in for lack of
/// one.
pub fn room(keep: usize) -> usize {
    (4 * keep).max(512)
}

/// Takes what has been caught apart; scratch of one thread.
pub struct Sieve {
    /// A bit an item, all clear between uses.
    seen: Vec<u32>,
    pub lows: Vec<u32>,
    pub chosen: Vec<i32>,
    pub scores: Vec<f32>,
    pub keys: Vec<u64>,
    ordered: Vec<u64>,
    pub places: Vec<u32>,
}

impl Sieve {
    pub fn new(items: usize) -> Self {
        Sieve {
            seen: vec![0; items.div_ceil(32)],
            lows: Vec::new(),
            chosen: Vec::new(),
            scores: Vec::new(),
            keys: Vec::new(),
            ordered: Vec::new(),
            places: Vec::new(),
        }
    }

    pub fn drop_seen(&mut self, simd: SimdPath, ids: &[i32], seen: &[i32], catch: &mut Catch) {
        self.with_seen(seen, |bits| simd.drop_seen(bits, ids, catch));
    }

    /// Calls `drop` with a bit an item, those of `seen` set; not if there are none.
    pub fn with_seen(&mut self, seen: &[i32], drop: impl FnOnce(&[u32])) {
        if seen.is_empty() {
            return;
        }
        for &item in seen {
            self.seen[item as usize / 32] |= 1 << (item % 32);
        }
        drop(&self.seen);
        for &item in seen {
            self.seen[item as usize / 32] = 0;
        }
    }

    /// What `keep` or more of the scores are certain to reach.
    pub fn surest(&mut self, simd: SimdPath, keep: usize, catch: &Catch) -> f32 {
        self.nth(simd, keep, &catch.lows[..catch.len])
    }

    /// What `keep` or more of some numbers reach; the least float if there are not so many.
    pub fn nth<'a>(&mut self, simd: SimdPath, keep: usize, numbers: impl IntoIterator<Item = &'a f32>) -> f32 {
        self.lows.clear();
        self.lows.extend(numbers.into_iter().map(|&number| ordered(number)));
        if self.lows.len() < keep {
            return f32::MIN;
        }
        unordered(simd.nth(&self.lows, keep)).max(f32::MIN)
    }

    /// The best `k` of the keys, in order.
    pub fn order(&mut self, simd: SimdPath, k: usize) -> &[u64] {
        const FEW: usize = 256;
        let Sieve {
            keys, ordered, places, ..
        } = self;
        if keys.len() > FEW {
            if keys.len() > k {
                keys.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
                keys.truncate(k);
            }
            keys.sort_unstable_by(|a, b| b.cmp(a));
            return keys;
        }
        places.resize(keys.len(), 0);
        simd.places(keys, places);
        ordered.resize(keys.len(), 0);
        for (&key, &place) in keys.iter().zip(&*places) {
            ordered[place as usize] = key;
        }
        &ordered[..k.min(keys.len())]
    }
}
