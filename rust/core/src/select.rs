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

/// The best items seen so far, kept as a buffer that is cut back when full.
#[derive(Clone, Debug)]
pub struct Best {
    keys: Vec<u64>,
    /// Keys below it can no longer matter.
    floor: u64,
}

impl Best {
    pub fn new(k: usize) -> Self {
        Best {
            keys: Vec::with_capacity(Self::capacity(k)),
            floor: 0,
        }
    }

    /// Room for so many that a cut is paid for by what it lets in: a cut costs about as much as three times `keep`
    /// entries, and halves or better what still comes.
    fn capacity(keep: usize) -> usize {
        3 * keep + 16
    }

    pub fn clear(&mut self) {
        self.keys.clear();
        self.floor = 0;
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Scores below it can no longer matter.
    #[inline(always)]
    pub fn threshold(&self) -> f32 {
        if self.floor == 0 {
            f32::NEG_INFINITY
        } else {
            score_of(self.floor)
        }
    }

    #[inline(always)]
    pub fn wants(&self, key: u64) -> bool {
        key >= self.floor
    }

    /// Takes in one more; `keep` are to be left after a cut.
    #[inline(always)]
    pub fn push(&mut self, key: u64, keep: usize) {
        self.keys.push(key);
        if self.keys.len() >= Self::capacity(keep) {
            self.cut(keep);
        }
    }

    /// Drops all but the best `keep`, and from then on what is worse than the last of them.
    #[cold]
    #[inline(never)]
    pub fn cut(&mut self, keep: usize) {
        if keep > 0 && self.keys.len() >= keep {
            self.keys.select_nth_unstable_by(keep - 1, |a, b| b.cmp(a));
            self.keys.truncate(keep);
            self.floor = self.keys[keep - 1];
        }
    }

    /// Keys below it can no longer matter.
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// Keys below `floor` cannot matter either.
    pub fn raise(&mut self, floor: u64) {
        self.floor = self.floor.max(floor);
    }

    /// The best `keep`, in any order, and what the best of all cannot be below.
    pub fn cut_to(&mut self, keep: usize) -> (&[u64], u64) {
        self.cut(keep);
        (&self.keys, self.floor)
    }

    /// Writes items and scores, best first, and -1 and -infinity after the last.
    pub fn finish(&mut self, items: &mut [i32], scores: &mut [f32]) {
        self.cut(items.len());
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
