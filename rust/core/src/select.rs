//! The k best of a stream of scored items.

/// A score's place in the order of floats, as an integer; -0 counts as 0.
#[inline(always)]
pub fn ordered(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    bits ^ (((bits as i32 >> 31) as u32) | 0x8000_0000)
}

#[inline(always)]
pub fn unordered(key: u32) -> f32 {
    f32::from_bits(key ^ (((!key as i32 >> 31) as u32) | 0x8000_0000))
}

/// (score, item) as one integer that is larger for what ranks better: higher score, then lower id.
#[inline(always)]
pub fn rank_key(score: f32, item: i32) -> u64 {
    u64::from(ordered(score)) << 32 | u64::from(!(item as u32))
}

#[inline(always)]
pub fn item_of(key: u64) -> i32 {
    !(key as u32) as i32
}

#[inline(always)]
pub fn score_of(key: u64) -> f32 {
    unordered((key >> 32) as u32)
}

/// The best `k` seen so far, kept as a buffer of a few `k` that is cut back when full.
#[derive(Clone, Debug)]
pub struct Best {
    keys: Vec<u64>,
    k: usize,
    capacity: usize,
    /// Only scores at or above this can still matter.
    pub threshold: f32,
}

impl Best {
    pub fn new(k: usize) -> Self {
        let capacity = (4 * k).max(64);
        Best {
            keys: Vec::with_capacity(capacity),
            k,
            capacity,
            threshold: f32::NEG_INFINITY,
        }
    }

    pub fn clear(&mut self) {
        self.keys.clear();
        self.threshold = f32::NEG_INFINITY;
    }

    #[inline]
    pub fn push(&mut self, score: f32, item: i32) {
        self.keys.push(rank_key(score, item));
        if self.keys.len() == self.capacity {
            self.cut();
        }
    }

    fn cut(&mut self) {
        if self.keys.len() > self.k {
            self.keys.select_nth_unstable_by(self.k - 1, |a, b| b.cmp(a));
            self.keys.truncate(self.k);
            self.threshold = score_of(self.keys[self.k - 1]);
        }
    }

    /// Writes items and scores, best first, and -1 and -infinity after the last.
    pub fn finish(&mut self, items: &mut [i32], scores: &mut [f32]) {
        self.cut();
        self.keys.sort_unstable_by(|a, b| b.cmp(a));
        items.fill(-1);
        scores.fill(f32::NEG_INFINITY);
        for ((&key, item), score) in self.keys.iter().zip(items).zip(scores) {
            *item = item_of(key);
            *score = score_of(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_order_as_floats_do() {
        let scores = [f32::MIN, -1.5, -1e-40, 0.0, 1e-40, 1.0, f32::MAX];
        for pair in scores.windows(2) {
            assert!(rank_key(pair[0], 0) < rank_key(pair[1], 7));
        }
        assert_eq!(ordered(-0.0), ordered(0.0));
        assert!(rank_key(1.0, 3) > rank_key(1.0, 4));
        for score in scores {
            assert_eq!(score_of(rank_key(score, 5)), score);
            assert_eq!(item_of(rank_key(score, i32::MAX - 1)), i32::MAX - 1);
        }
    }
}
