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
        if seen.is_empty() {
            return;
        }
        for &item in seen {
            self.seen[item as usize / 32] |= 1 << (item % 32);
        }
        simd.drop_seen(&self.seen, ids, catch);
        for &item in seen {
            self.seen[item as usize / 32] = 0;
        }
    }

    /// What `keep` or more of the scores are certain to reach.
    pub fn surest(&mut self, simd: SimdPath, keep: usize, catch: &Catch) -> f32 {
        if catch.len < keep {
            return f32::MIN;
        }
        self.lows.clear();
        self.lows
            .extend(catch.lows[..catch.len].iter().map(|&low| ordered(low)));
        unordered(simd.nth(&self.lows, keep))
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
