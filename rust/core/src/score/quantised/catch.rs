//! Items that may be among the best, until that is settled.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::ops::Range;

use crate::score::{COLUMNS, LINE};
use crate::simd::compiled;

/// Items whose scores may reach a query's threshold, in the order of their positions.
#[derive(Clone, Debug, Default)]
pub struct Catch {
    pub positions: Vec<u32>,
    /// What the scores are at least and at most.
    pub lows: Vec<f32>,
    pub ups: Vec<f32>,
    pub len: usize,
    /// At most so many are held when a panel is begun.
    pub full: usize,
}

impl Catch {
    /// A panel adds up to 32, and writes whole vectors.
    const SPARE: usize = COLUMNS + LINE;

    /// Lets it hold so many.
    pub fn widen(&mut self, full: usize) {
        let room = full + Self::SPARE;
        if self.positions.len() < room {
            self.positions.resize(room, 0);
            self.lows.resize(room, 0.0);
            self.ups.resize(room, 0.0);
        }
        self.full = full;
    }

    /// Leaves out what cannot reach the threshold.
    pub fn keep(&mut self, threshold: f32) {
        let mut kept = 0;
        for place in 0..self.len {
            let up = self.ups[place];
            self.positions[kept] = self.positions[place];
            self.lows[kept] = self.lows[place];
            self.ups[kept] = up;
            kept += usize::from(up >= threshold);
        }
        self.len = kept;
    }

    /// Takes what another holds and may reach the threshold.
    pub fn take_in(&mut self, other: &Catch, threshold: f32) {
        self.widen(self.len + other.len);
        for place in 0..other.len {
            self.positions[self.len] = other.positions[place];
            self.lows[self.len] = other.lows[place];
            self.ups[self.len] = other.ups[place];
            self.len += usize::from(other.ups[place] >= threshold);
        }
    }

    /// Whether it can take what a panel adds.
    #[inline(always)]
    pub fn has_room(&self) -> bool {
        self.len <= self.full && self.holds(Self::SPARE)
    }

    /// Whether so many entries after the last are there to be read and written.
    #[inline(always)]
    pub fn holds(&self, more: usize) -> bool {
        let room = self.len.saturating_add(more);
        self.positions.len() >= room && self.lows.len() >= room && self.ups.len() >= room
    }
}

compiled! {
    /// Leaves out the items whose bits are set in `seen`; `ids` are those of the positions.
    pub(crate) fn drop_seen(seen: &[u32], ids: &[i32], catch: &mut Catch) = drop_seen, avx512: drop_seen_avx512;
    /// The positions of those whose lower bound lies in `low` and whose upper bound reaches `up`.
    pub(crate) fn reaching(catch: &Catch, low: Range<f32>, up: f32, out: &mut Vec<u32>) = reaching, avx512: reaching_avx512;
    /// The largest of the values that `keep` or more of them reach; `keep` > 0 and no more than there are.
    pub(crate) fn nth(values: &[u32], keep: usize) -> u32 = nth;
    /// How many of the keys pass each of them: its place, if all differ.
    pub(crate) fn places(keys: &[u64], out: &mut [u32]) = places;
}

/// Leaves out the items whose bits are set in `seen`; `ids` are those of the positions.
#[inline(always)]
fn drop_seen(seen: &[u32], ids: &[i32], catch: &mut Catch) {
    let mut kept = 0;
    for place in 0..catch.len {
        let position = catch.positions[place];
        let id = ids[position as usize] as usize;
        catch.positions[kept] = position;
        catch.lows[kept] = catch.lows[place];
        catch.ups[kept] = catch.ups[place];
        kept += usize::from(seen[id / 32] >> (id % 32) & 1 == 0);
    }
    catch.len = kept;
}

/// The positions of those whose lower bound lies in `low` and whose upper bound reaches `up`.
#[inline(always)]
fn reaching(catch: &Catch, low: Range<f32>, up: f32, out: &mut Vec<u32>) {
    out.clear();
    for place in 0..catch.len {
        if low.contains(&catch.lows[place]) && catch.ups[place] >= up {
            out.push(catch.positions[place]);
        }
    }
}

/// The largest of the values that `keep` or more of them reach; `keep` > 0 and no more than there are.
#[inline(always)]
fn nth(values: &[u32], keep: usize) -> u32 {
    let (mut low, mut high) = (u32::MAX, 0);
    for &value in values {
        (low, high) = (low.min(value), high.max(value));
    }
    while low < high {
        let middle = high - (high - low) / 2;
        let count: u32 = values.iter().map(|&value| u32::from(value >= middle)).sum();
        if count as usize >= keep {
            low = middle;
            if count as usize == keep {
                // What is reached by so many and no more serves as well as the value itself.
                break;
            }
        } else {
            high = middle - 1;
        }
    }
    low
}

/// How many of the keys pass each of them: its place, if all differ.
#[inline(always)]
fn places(keys: &[u64], places: &mut [u32]) {
    for (place, &key) in places.iter_mut().zip(keys) {
        *place = keys.iter().map(|&other| u32::from(other > key)).sum();
    }
}

/// [`drop_seen`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt")]
fn drop_seen_avx512(seen: &[u32], ids: &[i32], catch: &mut Catch) {
    assert!(catch.holds(LINE));
    let (mut kept, mut place) = (0, 0);
    while place < catch.len {
        let inside = lanes(catch.len - place);
        let last = _mm512_set1_epi32(ids.len() as i32);
        // SAFETY: the catch holds 16 entries past its last; what is written ends at or before what has been
        // read. Positions are compared with the number of ids before they are followed, ids with the words of `seen`.
        unsafe {
            let positions = _mm512_loadu_si512(catch.positions.as_ptr().add(place).cast());
            let (lows, ups) = (
                _mm512_loadu_ps(catch.lows.as_ptr().add(place)),
                _mm512_loadu_ps(catch.ups.as_ptr().add(place)),
            );
            let inside = _mm512_mask_cmplt_epu32_mask(inside, positions, last);
            let id = _mm512_mask_i32gather_epi32::<4>(last, inside, positions, ids.as_ptr());
            let word = _mm512_srli_epi32::<5>(id);
            let inside = _mm512_mask_cmplt_epu32_mask(inside, word, _mm512_set1_epi32(seen.len() as i32));
            let word = _mm512_mask_i32gather_epi32::<4>(last, inside, word, seen.as_ptr().cast());
            let bit = _mm512_sllv_epi32(_mm512_set1_epi32(1), _mm512_and_si512(id, _mm512_set1_epi32(31)));
            let keep = _mm512_mask_testn_epi32_mask(inside, word, bit);
            let positions = _mm512_maskz_compress_epi32(keep, positions);
            _mm512_storeu_si512(catch.positions.as_mut_ptr().add(kept).cast(), positions);
            _mm512_storeu_ps(catch.lows.as_mut_ptr().add(kept), _mm512_maskz_compress_ps(keep, lows));
            _mm512_storeu_ps(catch.ups.as_mut_ptr().add(kept), _mm512_maskz_compress_ps(keep, ups));
            kept += keep.count_ones() as usize;
        }
        place += LINE;
    }
    catch.len = kept;
}

/// [`reaching`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt")]
fn reaching_avx512(catch: &Catch, low: Range<f32>, up: f32, out: &mut Vec<u32>) {
    assert!(catch.holds(LINE));
    out.resize(catch.len + LINE, 0);
    let (mut kept, mut place) = (0, 0);
    while place < catch.len {
        // SAFETY: the catch holds 16 entries past its last, and so does `out`, of which no more is written
        // than has been read.
        unsafe {
            let positions = _mm512_loadu_si512(catch.positions.as_ptr().add(place).cast());
            let (lows, ups) = (
                _mm512_loadu_ps(catch.lows.as_ptr().add(place)),
                _mm512_loadu_ps(catch.ups.as_ptr().add(place)),
            );
            let keep = lanes(catch.len - place);
            let keep = _mm512_mask_cmp_ps_mask::<_CMP_GE_OQ>(keep, lows, _mm512_set1_ps(low.start));
            let keep = _mm512_mask_cmp_ps_mask::<_CMP_LT_OQ>(keep, lows, _mm512_set1_ps(low.end));
            let keep = _mm512_mask_cmp_ps_mask::<_CMP_GE_OQ>(keep, ups, _mm512_set1_ps(up));
            let positions = _mm512_maskz_compress_epi32(keep, positions);
            _mm512_storeu_si512(out.as_mut_ptr().add(kept).cast(), positions);
            kept += keep.count_ones() as usize;
        }
        place += LINE;
    }
    out.truncate(kept);
}

/// The first so many of a vector's lanes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn lanes(count: usize) -> u16 {
    ((1u32 << count.min(LINE)) - 1) as u16
}
