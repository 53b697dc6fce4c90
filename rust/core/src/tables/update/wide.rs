//! [`super::element`] in four vectors side by side, whose state stays in registers over all steps. Divisions and roots bound the
//! speed.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{AdamStep, Shared, Span, BETA1, BETA2};
use crate::simd::lanes::{Avx2, Avx512, Lanes, Masked};

/// Part of a row that a vector holds.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// Its first float in the table, and in the gradients.
    at: usize,
    gradient: usize,
    /// Floats of the row from there on.
    left: usize,
    /// Steps before its first.
    from: usize,
}

/// Vectors side by side.
const SIDE: usize = 4;
/// Parts of rows in a vector, at most.
const MOST: usize = 4;
/// Floats between what is asked for and what is worked on.
const AHEAD: usize = 64;
/// Steps from which on rows share vectors: what is left over of several rows in one saves more than it costs.
const WORTH_SHARING: usize = 4;

/// Vectors that hold parts of several rows.
///
/// # Safety
/// As of [`Lanes`]; of each slot as many floats as are left, or as fit, can be read or written.
trait Parts: Masked {
    /// Whether rows can share a vector; else there is one part in each.
    const SHARED: bool;

    /// A vector of P parts, more than one, at `from + at`, each of `COUNT / P` floats at most.
    unsafe fn gather<const P: usize>(from: *const f32, at: impl Fn(&Slot) -> usize, slots: &[Slot]) -> Self::Vector;

    /// The inverse of `gather`.
    unsafe fn scatter<const P: usize>(to: *mut f32, slots: &[Slot], vector: Self::Vector);

    /// [`Work::block`], compiled by itself: many of them in one function would be too much of it.
    unsafe fn block<const N: usize, const P: usize>(work: &Work, slots: &[Slot]);
}

impl Parts for Avx2 {
    const SHARED: bool = false;

    unsafe fn gather<const P: usize>(_: *const f32, _: impl Fn(&Slot) -> usize, _: &[Slot]) -> __m256 {
        unreachable!("rows share no vector")
    }

    unsafe fn scatter<const P: usize>(_: *mut f32, _: &[Slot], _: __m256) {
        unreachable!("rows share no vector")
    }

    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn block<const N: usize, const P: usize>(work: &Work, slots: &[Slot]) {
        // SAFETY: as the caller vouches.
        unsafe { work.block::<Self, N, P>(slots) }
    }
}

impl Parts for Avx512 {
    const SHARED: bool = true;

    #[target_feature(enable = "avx512f,avx512vl")]
    #[inline]
    unsafe fn block<const N: usize, const P: usize>(work: &Work, slots: &[Slot]) {
        // SAFETY: as the caller vouches.
        unsafe { work.block::<Self, N, P>(slots) }
    }

    #[target_feature(enable = "avx512f,avx512vl")]
    #[inline]
    unsafe fn gather<const P: usize>(from: *const f32, at: impl Fn(&Slot) -> usize, slots: &[Slot]) -> __m512 {
        let mut vector = _mm512_setzero_ps();
        for (piece, slot) in slots.iter().enumerate() {
            // SAFETY: masked lanes are not touched, the others are there.
            unsafe {
                let mask = Self::first(slot.left.min(Self::COUNT / P));
                let from = from.add(at(slot));
                match P {
                    2 => {
                        let part = _mm512_castps256_ps512(_mm256_maskz_loadu_ps(mask as __mmask8, from));
                        vector = if piece == 0 {
                            part
                        } else {
                            _mm512_shuffle_f32x4::<0b01_00_01_00>(vector, part)
                        };
                    }
                    _ => {
                        let part = _mm_maskz_loadu_ps(mask as __mmask8, from);
                        vector = match piece {
                            0 => _mm512_insertf32x4::<0>(vector, part),
                            1 => _mm512_insertf32x4::<1>(vector, part),
                            2 => _mm512_insertf32x4::<2>(vector, part),
                            _ => _mm512_insertf32x4::<3>(vector, part),
                        };
                    }
                }
            }
        }
        vector
    }

    #[target_feature(enable = "avx512f,avx512vl")]
    #[inline]
    unsafe fn scatter<const P: usize>(to: *mut f32, slots: &[Slot], vector: __m512) {
        for (piece, slot) in slots.iter().enumerate() {
            // SAFETY: masked lanes are not touched, the others are there.
            unsafe {
                let mask = Self::first(slot.left.min(Self::COUNT / P));
                let to = to.add(slot.at);
                match P {
                    2 => {
                        let part = if piece == 0 {
                            vector
                        } else {
                            _mm512_shuffle_f32x4::<0b11_10_11_10>(vector, vector)
                        };
                        _mm256_mask_storeu_ps(to, mask as __mmask8, _mm512_castps512_ps256(part));
                    }
                    _ => {
                        let part = match piece {
                            0 => _mm512_extractf32x4_ps::<0>(vector),
                            1 => _mm512_extractf32x4_ps::<1>(vector),
                            2 => _mm512_extractf32x4_ps::<2>(vector),
                            _ => _mm512_extractf32x4_ps::<3>(vector),
                        };
                        _mm_mask_storeu_ps(to, mask as __mmask8, part);
                    }
                }
            }
        }
    }
}

/// # Safety
/// AVX-512 F and VL; distinct rows of the table that nobody else refers to; a gradient for each, or null.
#[target_feature(enable = "avx512f,avx512vl")]
pub unsafe fn run_avx512(
    table: &Shared,
    rows: &[u32],
    from: impl Fn(usize) -> usize,
    gradients: *const f32,
    steps: &[AdamStep],
) {
    // SAFETY: as the caller vouches.
    unsafe { run::<Avx512>(table, rows, from, gradients, steps) }
}

/// # Safety
/// AVX2 and FMA; otherwise as above.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn run_avx2(
    table: &Shared,
    rows: &[u32],
    from: impl Fn(usize) -> usize,
    gradients: *const f32,
    steps: &[AdamStep],
) {
    // SAFETY: as the caller vouches.
    unsafe { run::<Avx2>(table, rows, from, gradients, steps) }
}

/// Floats of a row from which on whole vectors of sixteen are worth it: roots and quotients of half a vector take half the time.
pub const WIDE: usize = 64;

/// # Safety
/// AVX-512 F and VL; all slices of one length.
#[target_feature(enable = "avx512f,avx512vl")]
pub unsafe fn estimate_avx512(values: &mut [f32], first: &mut [f32], second: &mut [f32], span: Span) {
    // SAFETY: as the caller vouches.
    unsafe { estimate::<Avx512>(values, first, second, span) }
}

/// # Safety
/// AVX2 and FMA; all slices of one length.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn estimate_avx2(values: &mut [f32], first: &mut [f32], second: &mut [f32], span: Span) {
    // SAFETY: as the caller vouches.
    unsafe { estimate::<Avx2>(values, first, second, span) }
}

/// Asks for a row, which may lie anywhere.
#[inline(always)]
pub fn prefetch(table: &Shared, row: u32) {
    let start = row as usize * table.dim;
    for part in [table.values, table.first, table.second] {
        for at in (start..start + table.dim).step_by(16) {
            // SAFETY: a hint, which reads nothing; the address lies in the table if the row does.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(part.wrapping_add(at).cast()) };
        }
    }
}

/// [`super::estimated`], operation for operation.
///
/// # Safety
/// The instructions of the lanes; all slices of one length.
#[inline(always)]
unsafe fn estimate<L: Masked>(values: &mut [f32], first: &mut [f32], second: &mut [f32], span: Span) {
    let len = values.len();
    for start in (0..len).step_by(L::COUNT) {
        // SAFETY: masked lanes are not touched, the others are there.
        unsafe {
            let (mask, all) = (L::first(len - start), |x| L::splat(x));
            let (values, first, second) = (
                values.as_mut_ptr().add(start),
                first.as_mut_ptr().add(start),
                second.as_mut_ptr().add(start),
            );
            let (value, m, v) = (
                L::load_first(mask, values),
                L::load_first(mask, first),
                L::load_first(mask, second),
            );
            let drift = L::mul(all(span.weight_decay), value);
            let square = L::mul(drift, drift);
            let kept = L::mul(v, all(span.half));
            let new = L::mul(all(1.0 - span.half), square);
            let root = L::add(L::sqrt(L::add(kept, new)), all(span.eps));
            let inverse = L::div(all(1.0), root);
            let shrink = L::mul(all(span.shrinking), inverse);
            let twice = L::mul(L::mul(all(0.5), shrink), shrink);
            let shrunk = L::div(value, L::add(L::add(all(1.0), shrink), twice));
            let carried = L::mul(L::mul(all(span.momentum), m), inverse);
            L::store_first(values, mask, L::sub(shrunk, carried));
            let left = L::mul(L::sub(m, drift), all(span.decay1));
            L::store_first(first, mask, L::normal(L::add(drift, left)));
            let kept = L::mul(v, all(span.decay2));
            let new = L::mul(all(1.0 - span.decay2), square);
            L::store_first(second, mask, L::normal(L::add(kept, new)));
        }
    }
}

/// # Safety
/// The instructions of the lanes; distinct rows of the table that nobody else refers to; a gradient for each, or null.
#[inline(always)]
unsafe fn run<L: Parts>(
    table: &Shared,
    rows: &[u32],
    from: impl Fn(usize) -> usize,
    gradients: *const f32,
    steps: &[AdamStep],
) {
    let rest = table.dim % L::COUNT;
    let mut sharing = 0;
    if L::SHARED && (1..=L::COUNT / 2).contains(&rest) {
        // Those with few steps come last.
        sharing = (0..rows.len())
            .rposition(|n| steps.len() - from(n) >= WORTH_SHARING)
            .map_or(0, |n| n + 1);
    }
    let work = Work {
        table,
        values: table.values,
        first: table.first,
        second: table.second,
        rows,
        gradients,
        steps,
    };
    let whole = table.dim - rest;
    // SAFETY: as the caller vouches; parts begin inside a row.
    unsafe {
        if L::SHARED && sharing > 0 {
            if whole > 0 {
                work.blocks::<L, 1>(&from, 0..sharing, (0..whole).step_by(L::COUNT));
            }
            if rest <= L::COUNT / 4 {
                work.blocks::<L, 4>(&from, 0..sharing, [whole].into_iter());
            } else {
                work.blocks::<L, 2>(&from, 0..sharing, [whole].into_iter());
            }
        }
        work.blocks::<L, 1>(&from, sharing..rows.len(), (0..table.dim).step_by(L::COUNT));
    }
}

/// What a call is about. The table's pointers stand here too: behind a reference they would be read again after every store.
struct Work<'a> {
    table: &'a Shared<'a>,
    values: *mut f32,
    first: *mut f32,
    second: *mut f32,
    rows: &'a [u32],
    gradients: *const f32,
    steps: &'a [AdamStep],
}

impl Work<'_> {
    /// Hands the parts of rows `range` to `block`, four vectors of P parts at a time: the floats from each of `starts`.
    ///
    /// # Safety
    /// As of [`run`]; each of `starts` is inside a row.
    #[inline(always)]
    unsafe fn blocks<L: Parts, const P: usize>(
        &self,
        from: &impl Fn(usize) -> usize,
        range: Range<usize>,
        starts: impl Iterator<Item = usize> + Clone,
    ) {
        let Work { table, rows, .. } = *self;
        let mut slots = [Slot::default(); SIDE * MOST];
        let slots = &mut slots[..SIDE * P];
        let mut count = 0;
        for n in range {
            let row = rows[n];
            if let Some(&ahead) = rows.get(n + AHEAD.div_ceil(table.dim)) {
                prefetch(table, ahead);
            }
            for start in starts.clone() {
                slots[count] = Slot {
                    at: row as usize * table.dim + start,
                    gradient: n * table.dim + start,
                    left: table.dim - start,
                    from: from(n),
                };
                count += 1;
                if count == SIDE * P {
                    // SAFETY: the slots lie in rows of the table and of the gradients, for which the caller vouches.
                    unsafe { L::block::<SIDE, P>(self, slots) };
                    count = 0;
                }
            }
        }
        let slots = &slots[..count];
        // SAFETY: as above.
        unsafe {
            match count.div_ceil(P) {
                0 => (),
                1 => L::block::<1, P>(self, slots),
                2 => L::block::<2, P>(self, slots),
                3 => L::block::<3, P>(self, slots),
                _ => L::block::<SIDE, P>(self, slots),
            }
        }
    }

    /// N vectors of P slots, the last of which may be fewer; `from` ascends.
    ///
    /// # Safety
    /// The instructions of the lanes; the slots lie in the table, and in the gradients unless that pointer is null.
    #[inline(always)]
    unsafe fn block<L: Parts, const N: usize, const P: usize>(&self, slots: &[Slot]) {
        let Work { gradients, steps, .. } = *self;
        // SAFETY: as the caller vouches.
        unsafe {
            let zero = L::splat(0.0);
            let (mut value, mut m, mut v, mut g) = ([zero; N], [zero; N], [zero; N], [zero; N]);
            // Of vectors that hold part of one row.
            let mut masks = [L::first(0); N];
            for (n, slots) in slots.chunks(P).enumerate().take(N) {
                if P == 1 {
                    let slot = slots[0];
                    masks[n] = L::first(slot.left);
                    value[n] = L::load_first(masks[n], self.values.add(slot.at));
                    m[n] = L::load_first(masks[n], self.first.add(slot.at));
                    v[n] = L::load_first(masks[n], self.second.add(slot.at));
                    if !gradients.is_null() {
                        g[n] = L::load_first(masks[n], gradients.add(slot.gradient));
                    }
                    continue;
                }
                value[n] = L::gather::<P>(self.values, |slot| slot.at, slots);
                m[n] = L::gather::<P>(self.first, |slot| slot.at, slots);
                v[n] = L::gather::<P>(self.second, |slot| slot.at, slots);
                if !gradients.is_null() {
                    g[n] = L::gather::<P>(gradients, |slot| slot.gradient, slots);
                }
            }
            // Until the last of them has begun, the others go on alone.
            let (first, last) = (slots[0].from, slots[slots.len() - 1].from);
            if first < last {
                let mut lanes = [[0i32; 16]; N];
                for (lanes, slots) in lanes.iter_mut().zip(slots.chunks(P)) {
                    for (lanes, slot) in lanes[..L::COUNT].chunks_mut(L::COUNT / P).zip(slots) {
                        lanes.fill(slot.from as i32);
                    }
                }
                let from: [L::Integers; N] = std::array::from_fn(|n| L::integers(lanes[n].as_ptr()));
                for (number, step) in (first as i32..).zip(&steps[first..last]) {
                    for n in 0..N {
                        let begun = L::at_most(from[n], number);
                        let after = stepped::<L>(value[n], m[n], v[n], g[n], step);
                        value[n] = L::select(begun, after.0, value[n]);
                        m[n] = L::select(begun, after.1, m[n]);
                        v[n] = L::select(begun, after.2, v[n]);
                    }
                }
            }
            for step in &steps[last..] {
                for n in 0..N {
                    (value[n], m[n], v[n]) = stepped::<L>(value[n], m[n], v[n], g[n], step);
                }
            }
            for (n, slots) in slots.chunks(P).enumerate().take(N) {
                if P == 1 {
                    let at = slots[0].at;
                    L::store_first(self.values.add(at), masks[n], value[n]);
                    L::store_first(self.first.add(at), masks[n], m[n]);
                    L::store_first(self.second.add(at), masks[n], v[n]);
                    continue;
                }
                L::scatter::<P>(self.values, slots, value[n]);
                L::scatter::<P>(self.first, slots, m[n]);
                L::scatter::<P>(self.second, slots, v[n]);
            }
        }
    }
}

/// [`super::element`], operation for operation.
///
/// # Safety
/// The instructions of the lanes.
#[inline(always)]
unsafe fn stepped<L: Masked>(
    value: L::Vector,
    m: L::Vector,
    v: L::Vector,
    gradient: L::Vector,
    step: &AdamStep,
) -> (L::Vector, L::Vector, L::Vector) {
    // SAFETY: as the caller vouches.
    unsafe {
        let gradient = L::add(gradient, L::mul(L::splat(step.weight_decay), value));
        let change = L::mul(L::sub(gradient, m), L::splat(1.0 - BETA1));
        let m = L::normal(L::add(m, change));
        let square = L::mul(L::mul(L::splat(1.0 - BETA2), gradient), gradient);
        let v = L::normal(L::add(L::mul(v, L::splat(BETA2)), square));
        let root = L::add(L::sqrt(v), L::splat(step.eps));
        let change = L::div(L::mul(L::splat(step.rate), m), root);
        (L::sub(value, change), m, v)
    }
}
