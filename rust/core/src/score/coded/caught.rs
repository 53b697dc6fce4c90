//! Items whose scores reach a query's threshold.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::scan::BATCH;
use crate::score::{COLUMNS, LINE};
use crate::simd::compiled;

/// Items that have reached their query's threshold, with their scores.
#[derive(Clone, Debug, Default)]
pub struct Caught {
    pub positions: Vec<u32>,
    pub scores: Vec<f32>,
    pub len: usize,
    /// At most so many are held when a batch of panels is begun.
    pub full: usize,
}

impl Caught {
    /// What a batch of panels adds at most, and what is written past the last, in whole vectors.
    const SPARE: usize = BATCH * COLUMNS + LINE;

    /// Lets it hold so many.
    pub fn widen(&mut self, full: usize) {
        let room = full + Self::SPARE;
        if self.positions.len() < room {
            self.positions.resize(room, 0);
            self.scores.resize(room, 0.0);
        }
        self.full = full;
    }

    /// Whether so many entries after the last are there to be read and written.
    #[inline(always)]
    pub fn holds(&self, more: usize) -> bool {
        let room = self.len.saturating_add(more);
        self.positions.len() >= room && self.scores.len() >= room
    }

    /// The scores, in the order in which they came.
    pub fn scores(&self) -> &[f32] {
        &self.scores[..self.len]
    }

    pub fn pairs(&self) -> impl Iterator<Item = (u32, f32)> + '_ {
        self.positions.iter().copied().zip(self.scores().iter().copied())
    }
}

compiled! {
    /// Takes in the items of a panel whose scores reach the threshold.
    pub(super) fn catch_scores(scores: &[f32; COLUMNS], panel: usize, threshold: f32, caught: &mut Caught) =
        catch_scores, avx512: catch_scores_avx512;
    /// Leaves out what is below the threshold.
    pub fn keep_codes(threshold: f32, caught: &mut Caught) = keep, avx512: keep_avx512;
    /// Leaves out the items whose bits are set in `seen`; `ids` are those of the positions.
    pub fn drop_seen_codes(seen: &[u32], ids: &[i32], caught: &mut Caught) = drop_seen, avx512: drop_seen_avx512;
}

#[inline(always)]
fn catch_scores(scores: &[f32; COLUMNS], panel: usize, threshold: f32, caught: &mut Caught) {
    if scores.iter().fold(0, |any, &s| any | u32::from(s >= threshold)) == 0 {
        return;
    }
    for (column, &score) in scores.iter().enumerate().filter(|(_, &score)| score >= threshold) {
        caught.positions[caught.len] = (panel * COLUMNS + column) as u32;
        caught.scores[caught.len] = score;
        caught.len += 1;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt")]
fn catch_scores_avx512(scores: &[f32; COLUMNS], panel: usize, threshold: f32, caught: &mut Caught) {
    let halves = scores.as_chunks::<LINE>().0;
    // SAFETY: each half is 16 floats.
    let scores = [0, 1].map(|half| unsafe { _mm512_loadu_ps(halves[half].as_ptr()) });
    take(scores, panel, _mm512_set1_ps(threshold), caught);
}

/// Takes in the items of a panel whose scores reach the threshold.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt")]
pub(super) fn take(scores: [__m512; 2], panel: usize, threshold: __m512, caught: &mut Caught) {
    assert!(caught.holds(COLUMNS + LINE));
    let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (half, scores) in scores.into_iter().enumerate() {
        let mask = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(scores, threshold);
        let start = _mm512_set1_epi32((panel * COLUMNS + half * LINE) as i32);
        // SAFETY: there is room for two vectors and 16 entries more, as asserted.
        unsafe { put(mask, _mm512_add_epi32(start, lanes), scores, caught.len, caught) };
        caught.len += mask.count_ones() as usize;
    }
}

#[inline(always)]
fn keep(threshold: f32, caught: &mut Caught) {
    let mut kept = 0;
    for place in 0..caught.len {
        let score = caught.scores[place];
        caught.positions[kept] = caught.positions[place];
        caught.scores[kept] = score;
        kept += usize::from(score >= threshold);
    }
    caught.len = kept;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt")]
fn keep_avx512(threshold: f32, caught: &mut Caught) {
    assert!(caught.holds(LINE));
    let (mut kept, mut place) = (0, 0);
    while place < caught.len {
        let inside = inside(caught.len - place);
        // SAFETY: there are 16 entries past the last; what is written ends at or before what has been read.
        unsafe {
            let positions = _mm512_loadu_si512(caught.positions.as_ptr().add(place).cast());
            let scores = _mm512_loadu_ps(caught.scores.as_ptr().add(place));
            let keep = _mm512_mask_cmp_ps_mask::<_CMP_GE_OQ>(inside, scores, _mm512_set1_ps(threshold));
            put(keep, positions, scores, kept, caught);
            kept += keep.count_ones() as usize;
        }
        place += LINE;
    }
    caught.len = kept;
}

/// The first `left` of 16 lanes.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn inside(left: usize) -> u16 {
    ((1u32 << left.min(LINE)) - 1) as u16
}

/// Writes those lanes that are kept, and as many more as make 16, at a place.
///
/// # Safety
/// There are 16 entries from there on.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn put(keep: u16, positions: __m512i, scores: __m512, place: usize, caught: &mut Caught) {
    // SAFETY: the caller's word.
    unsafe {
        let positions = _mm512_maskz_compress_epi32(keep, positions);
        _mm512_storeu_si512(caught.positions.as_mut_ptr().add(place).cast(), positions);
        _mm512_storeu_ps(
            caught.scores.as_mut_ptr().add(place),
            _mm512_maskz_compress_ps(keep, scores),
        );
    }
}

#[inline(always)]
fn drop_seen(seen: &[u32], ids: &[i32], caught: &mut Caught) {
    let mut kept = 0;
    for place in 0..caught.len {
        let position = caught.positions[place];
        let id = ids[position as usize] as usize;
        caught.positions[kept] = position;
        caught.scores[kept] = caught.scores[place];
        kept += usize::from(seen[id / 32] >> (id % 32) & 1 == 0);
    }
    caught.len = kept;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt")]
fn drop_seen_avx512(seen: &[u32], ids: &[i32], caught: &mut Caught) {
    assert!(caught.holds(LINE));
    let (mut kept, mut place) = (0, 0);
    let last = _mm512_set1_epi32(ids.len() as i32);
    let words = _mm512_set1_epi32(seen.len() as i32);
    while place < caught.len {
        let inside = inside(caught.len - place);
        // SAFETY: there are 16 entries past the last; what is written ends at or before what has been read. Positions are compared
        // with the number of ids before they are followed, ids with the words of `seen`.
        unsafe {
            let positions = _mm512_loadu_si512(caught.positions.as_ptr().add(place).cast());
            let scores = _mm512_loadu_ps(caught.scores.as_ptr().add(place));
            let inside = _mm512_mask_cmplt_epu32_mask(inside, positions, last);
            let id = _mm512_mask_i32gather_epi32::<4>(last, inside, positions, ids.as_ptr());
            let word = _mm512_srli_epi32::<5>(id);
            let inside = _mm512_mask_cmplt_epu32_mask(inside, word, words);
            let word = _mm512_mask_i32gather_epi32::<4>(last, inside, word, seen.as_ptr().cast());
            let bit = _mm512_sllv_epi32(_mm512_set1_epi32(1), _mm512_and_si512(id, _mm512_set1_epi32(31)));
            let keep = _mm512_mask_testn_epi32_mask(inside, word, bit);
            put(keep, positions, scores, kept, caught);
            kept += keep.count_ones() as usize;
        }
        place += LINE;
    }
    caught.len = kept;
}
