//! One query against the panels: its bytes are read once, however few queries there are.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::ops::Range;

use super::panels::{Bytes, PanelBounds, GROUP};
use super::{BytePanels, ByteQuery, Catch};
use crate::score::{COLUMNS, LINE};
use crate::simd::{compiled, Level, SimdPath};

/// Panels whose sums are taken together: as many chains as an addition takes steps.
const FEW_PANELS: usize = 4;

/// Sums of a query and some panels; of columns past the last item they mean nothing.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
struct Sums([[i32; COLUMNS]; FEW_PANELS]);

/// A pass of one query over panels.
pub struct ByteScan {
    /// Of each panel: sums that can reach the threshold are above it.
    limits: Vec<i32>,
    sums: Sums,
}

impl Default for ByteScan {
    fn default() -> Self {
        ByteScan {
            limits: Vec::new(),
            sums: Sums([[0; COLUMNS]; FEW_PANELS]),
        }
    }
}

impl ByteScan {
    /// Catches every item of some panels whose score may reach the threshold. A query of `length` has no score above that times an
    /// item's length. `relieve` makes room in a full catch and returns the threshold from then on.
    #[allow(clippy::too_many_arguments)]
    pub fn scan(
        &mut self,
        simd: SimdPath,
        query: &ByteQuery,
        length: f32,
        panels: &BytePanels,
        range: Range<usize>,
        mut threshold: f32,
        catch: &mut Catch,
        mut relieve: impl FnMut(f32, &mut Catch) -> f32,
    ) -> f32 {
        assert!(range.end <= panels.count() && query.bytes.len() == panels.groups);
        let bounds = &panels.bounds[range.clone()];
        self.limits.resize(bounds.len(), 0);
        simd.byte_limits(query, length, bounds, threshold, &mut self.limits);
        let mut place = 0;
        while place < bounds.len() {
            let count = FEW_PANELS.min(bounds.len() - place);
            if self.limits[place..place + count].iter().all(|&limit| limit == i32::MAX) {
                place += count;
                continue;
            }
            simd.byte_sums_of_one(query, panels, range.start + place, count, &mut self.sums);
            for offset in 0..count {
                let sums = &self.sums.0[offset];
                let mut above = simd.above(sums, self.limits[place + offset]);
                let first = (range.start + place + offset) * COLUMNS;
                if panels.items - first < COLUMNS {
                    above &= (1 << (panels.items - first)) - 1;
                }
                if above == 0 {
                    continue;
                }
                take(query, &bounds[place + offset], sums, first, above, catch);
                if catch.len > catch.full {
                    threshold = relieve(threshold, catch);
                    let left = place + offset + 1;
                    let bounds = &panels.bounds[range.start + left..range.end];
                    simd.byte_limits(query, length, bounds, threshold, &mut self.limits[left..]);
                }
            }
            place += count;
        }
        threshold
    }
}

/// Catches the items of a panel whose bits are set.
fn take(
    query: &ByteQuery,
    bounds: &PanelBounds,
    sums: &[i32; COLUMNS],
    first: usize,
    mut above: u32,
    catch: &mut Catch,
) {
    assert!(catch.has_room());
    let (error, scale) = (error(query, bounds), query.scale * bounds.scale);
    while above != 0 {
        let column = above.trailing_zeros() as usize;
        above &= above - 1;
        let score = sums[column] as f32 * scale;
        catch.positions[catch.len] = (first + column) as u32;
        catch.lows[catch.len] = score - error;
        catch.ups[catch.len] = score + error;
        catch.len += 1;
    }
}

/// What a score may differ by from what its bytes give.
#[inline(always)]
fn error(query: &ByteQuery, bounds: &PanelBounds) -> f32 {
    query.per_length * bounds.length + (query.per_error * bounds.error + f32::MIN_POSITIVE)
}

compiled! {
    /// The largest integer sum of each panel whose score cannot reach the threshold: (threshold - error) / scales, less what computing
    /// this in float32 can be off by, less 1 since sums are to be above. The largest integer where no item is long enough.
    fn byte_limits(query: &ByteQuery, length: f32, bounds: &[PanelBounds], threshold: f32, out: &mut [i32]) = byte_limits;
    /// A bit for each sum above the limit.
    fn above(sums: &[i32; COLUMNS], limit: i32) -> u32 = above;
    fn plain_sums(query: &[[i8; GROUP]], lines: &[Bytes], sums: &mut [i32; COLUMNS]) = plain_sums;
}

#[inline(always)]
fn byte_limits(query: &ByteQuery, length: f32, bounds: &[PanelBounds], threshold: f32, out: &mut [i32]) {
    for (bounds, out) in bounds.iter().zip(out) {
        let error = error(query, bounds);
        let inverse = query.inverse_scale * bounds.inverse_scale;
        let limit = (threshold - error) * inverse;
        let size = (threshold.abs() + error) * inverse;
        let slack = size * 1e-6 + 1.5;
        // The lesser of the two is 2e9 too where both are infinite and their difference is no number.
        let limit = (limit - slack).min(2e9).floor() as i32;
        let hopeless = length * bounds.length + f32::MIN_POSITIVE < threshold;
        *out = if hopeless { i32::MAX } else { limit };
    }
}

#[inline(always)]
fn above(sums: &[i32; COLUMNS], limit: i32) -> u32 {
    (0..COLUMNS).fold(0, |bits, column| bits | u32::from(sums[column] > limit) << column)
}

#[inline(always)]
fn plain_sums(query: &[[i8; GROUP]], lines: &[Bytes], sums: &mut [i32; COLUMNS]) {
    *sums = [0; COLUMNS];
    for (query, pair) in query.iter().zip(lines.as_chunks::<2>().0) {
        let query = query.map(i32::from);
        for (line, sums) in pair.iter().zip(sums.as_chunks_mut::<LINE>().0) {
            for (item, sum) in line.0.iter().zip(sums) {
                *sum += (0..GROUP).map(|d| query[d] * i32::from(item[d])).sum::<i32>();
            }
        }
    }
}

impl SimdPath {
    /// Sums of products of a query and `count` panels from `first` on.
    fn byte_sums_of_one(self, query: &ByteQuery, panels: &BytePanels, first: usize, count: usize, sums: &mut Sums) {
        let per_panel = 2 * panels.groups;
        let lines = &panels.lines[first * per_panel..(first + count) * per_panel];
        assert!(query.bytes.len() == panels.groups && (1..=FEW_PANELS).contains(&count));
        #[cfg(target_arch = "x86_64")]
        if self.has_bytes() {
            let starts = &panels.starts[first..first + count];
            for (place, start) in starts.iter().enumerate() {
                let (low, high) = sums.0[place].split_at_mut(LINE);
                low.copy_from_slice(&start[0].0);
                high.copy_from_slice(&start[1].0);
            }
            // SAFETY: the processor has the instructions, and there are two lines of each panel to a group of the query.
            return unsafe {
                match count {
                    FEW_PANELS => avx512::<FEW_PANELS>(&query.bytes, lines, sums),
                    3 => avx512::<3>(&query.bytes, lines, sums),
                    2 => avx512::<2>(&query.bytes, lines, sums),
                    _ => avx512::<1>(&query.bytes, lines, sums),
                }
            };
        }
        for (lines, sums) in lines.chunks(per_panel.max(1)).zip(&mut sums.0) {
            match self.level() {
                // SAFETY: a path of this level exists only if the processor has its instructions, as those with AVX-512 have AVX2; sizes
                // are as above.
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 | Level::Avx512 => unsafe { avx2(&query.bytes, lines, sums) },
                _ => self.plain_sums(&query.bytes, lines, sums),
            }
        }
    }
}

/// Sums begin as -128 times those of an item's bytes, which undoes the offset of the unsigned queries.
///
/// # Safety
/// The processor has the features; `lines` are two a panel and group.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn avx512<const COUNT: usize>(query: &[[i8; GROUP]], lines: &[Bytes], out: &mut Sums) {
    let per_panel = 2 * query.len();
    // SAFETY: rows of 32 integers, aligned to 64 bytes; COUNT panels have per_panel lines each, of 64 bytes, aligned.
    unsafe {
        let mut sums = [[_mm512_setzero_si512(); 2]; COUNT];
        for (sums, out) in sums.iter_mut().zip(&out.0) {
            *sums = [
                _mm512_load_si512(out.as_ptr().cast()),
                _mm512_load_si512(out.as_ptr().add(LINE).cast()),
            ];
        }
        let base = lines.as_ptr();
        for (group, &bytes) in query.iter().enumerate() {
            let own = _mm512_set1_epi32(i32::from_le_bytes(bytes.map(|byte| (byte as u8) ^ 128)));
            for (panel, sums) in sums.iter_mut().enumerate() {
                let line = base.add(panel * per_panel + 2 * group);
                sums[0] = _mm512_dpbusd_epi32(sums[0], own, _mm512_load_si512(line.cast()));
                sums[1] = _mm512_dpbusd_epi32(sums[1], own, _mm512_load_si512(line.add(1).cast()));
            }
        }
        for (sums, out) in sums.iter().zip(&mut out.0) {
            _mm512_store_si512(out.as_mut_ptr().cast(), sums[0]);
            _mm512_store_si512(out.as_mut_ptr().add(LINE).cast(), sums[1]);
        }
    }
}

/// The query's signs go to the items, so that pairs of products, 2 * 127 * 127 at most, fit 16 bits.
///
/// # Safety
/// The processor has the features; there are two of `lines` to a group of the query.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2(query: &[[i8; GROUP]], lines: &[Bytes], out: &mut [i32; COLUMNS]) {
    const LANES: usize = 8;
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_si256(); COLUMNS / LANES];
    for (&bytes, pair) in query.iter().zip(lines.as_chunks::<2>().0) {
        let own = _mm256_set1_epi32(i32::from_le_bytes(bytes.map(|byte| byte as u8)));
        let size = _mm256_abs_epi8(own);
        let from = pair.as_ptr().cast::<__m256i>();
        for (part, sum) in sums.iter_mut().enumerate() {
            // SAFETY: two lines are four vectors, aligned.
            let items = unsafe { _mm256_load_si256(from.add(part)) };
            let pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(items, own));
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
        }
    }
    for (part, &sum) in sums.iter().enumerate() {
        // SAFETY: eight integers from there on belong to the row.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(part * LANES).cast(), sum) };
    }
}
