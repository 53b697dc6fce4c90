//! Random numbers that belong to a place, not to a thread.
//!
//! The generator is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), used by counter: number `c` of the stream with
//! key `k` is `mix(k + (c + 1) * GAMMA)`. Any place of any stream is reached in constant time, so a draw depends on
//! (seed, row, number of the draw) alone. Integers below a bound are Lemire's multiply-shift with rejection (ACM
//! TOMACS 29:1, 2019) on 64-bit words. Both are fixed for ever: changing either changes every seeded result.

pub const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// SplitMix64's output function (David Stafford's variant 13).
#[inline(always)]
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The key of one kernel's stream, so that two kernels given one seed do not share numbers.
#[inline]
pub fn key(seed: u64, kernel: u64) -> u64 {
    mix(seed ^ mix(kernel.wrapping_mul(GAMMA)))
}

/// Number `counter` of the stream `key`.
#[inline(always)]
pub fn at(key: u64, counter: u64) -> u64 {
    mix(key.wrapping_add(counter.wrapping_add(1).wrapping_mul(GAMMA)))
}

/// Uniform in (0, 1], on the grid of 2^-53: its logarithm is finite and exact near 1.
#[inline(always)]
pub fn unit(word: u64) -> f64 {
    ((word >> 11) + 1) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Uniform below `bound` (> 0) from `word`; the rare words that would bias it are replaced by words of a stream that
/// only this word has.
#[inline(always)]
pub fn below(word: u64, bound: u64) -> u64 {
    let product = u128::from(word) * u128::from(bound);
    if (product as u64) < bound {
        return below_rare(word, bound, product);
    }
    (product >> 64) as u64
}

#[cold]
#[inline(never)]
fn below_rare(word: u64, bound: u64, mut product: u128) -> u64 {
    let threshold = bound.wrapping_neg() % bound;
    let substream = mix(word ^ GAMMA);
    let mut attempt = 0;
    while (product as u64) < threshold {
        product = u128::from(at(substream, attempt)) * u128::from(bound);
        attempt += 1;
    }
    (product >> 64) as u64
}

/// A stream read in order.
#[derive(Clone, Debug)]
pub struct Stream {
    key: u64,
    counter: u64,
}

impl Stream {
    /// The stream of one row.
    #[inline]
    pub fn of_row(key: u64, row: u64) -> Self {
        Stream {
            key: at(key, row),
            counter: 0,
        }
    }

    #[inline(always)]
    pub fn word(&mut self) -> u64 {
        let word = at(self.key, self.counter);
        self.counter += 1;
        word
    }

    #[inline(always)]
    pub fn below(&mut self, bound: u64) -> u64 {
        below(self.word(), bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_numbers_never_change() {
        // The first outputs of SplitMix64 seeded with 1234567, as published with the reference code.
        let published: [u64; 3] = [6457827717110365317, 3203168211198807973, 9817491932198370423];
        for (counter, word) in published.into_iter().enumerate() {
            assert_eq!(at(1234567, counter as u64), word);
        }
    }

    #[test]
    fn below_is_unbiased_where_bias_is_largest() {
        // With a bound of 3/4 of 2^64, taking the product's high word alone would give the lower third twice as often.
        let bound = (1u64 << 62) * 3;
        let n = 30_000;
        let low = (0..n).filter(|&c| below(at(9, c), bound) < bound / 3).count() as f64;
        assert!((low / n as f64 - 1.0 / 3.0).abs() < 0.015);
    }

    #[test]
    fn unit_is_never_zero() {
        assert!(unit(0) > 0.0);
        assert_eq!(unit(u64::MAX), 1.0);
    }
}
