//! Sixteen draws at a time.

use std::arch::x86_64::*;

use crate::csr::{Csr, RowId};
use crate::rng::{self, GAMMA};

const LANES: usize = 16;

/// `n` draws for each of `rows`, number `counter` of the stream on, into `out`; false if a row is out of range, has seen everything or
/// has a span outside the pairs, and then `out` is undefined. The draws are those of the portable path.
///
/// # Safety
/// The processor has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn draw<R: RowId>(key: u64, seen: Csr, rows: &[R], n: usize, counter: u64, out: &mut [i32]) -> bool {
    if n == 1 {
        return draw_each(key, seen, rows, counter, out);
    }
    // Every draw with its row, as if they were rows: those of one row, and of its next appearance, agree.
    let Some(&first) = rows.first() else { return true };
    let mut owners = [first; LANES * BLOCKS];
    let (mut place, mut drawn) = (0, 0);
    out.chunks_mut(owners.len()).enumerate().all(|(chunk, out)| {
        let owners = &mut owners[..out.len()];
        for owner in owners.iter_mut() {
            *owner = rows[place];
            drawn += 1;
            let next = drawn == n;
            place += usize::from(next);
            drawn = if next { 0 } else { drawn };
        }
        draw_each(key, seen, owners, counter + (chunk * LANES * BLOCKS) as u64, out)
    })
}

/// Blocks of one row that are drawn side by side, so that one's loads hide behind another's.
const BLOCKS: usize = 4;

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn draw_each<R: RowId>(key: u64, seen: Csr, rows: &[R], counter: u64, out: &mut [i32]) -> bool {
    if seen.pairs() > i32::MAX as usize - LANES {
        return false;
    }
    let mut start = 0;
    while start < rows.len() {
        let first = rows[start].as_i64();
        let agree = |len: usize| {
            let rows = &rows[start..rows.len().min(start + len)];
            rows.iter().fold(0, |other, row| other | (row.as_i64() ^ first)) == 0
        };
        let left = rows.len() - start;
        // Several blocks where there are as many rows, whether one row's or those of several.
        let (whole, len) = if left >= LANES * BLOCKS {
            (agree(LANES * BLOCKS), LANES * BLOCKS)
        } else {
            (agree(LANES), LANES)
        };
        let end = rows.len().min(start + len);
        let (rows, out, counter) = (&rows[start..end], &mut out[start..end], counter + start as u64);
        start = end;
        let drawn = match (whole, rows.len() > LANES) {
            (true, true) => of_row::<BLOCKS>(key, seen, first, counter, out),
            (true, false) => of_row::<1>(key, seen, first, counter, out),
            (false, true) => of_rows::<R, BLOCKS>(key, seen, rows, counter, out),
            (false, false) => of_rows::<R, 1>(key, seen, rows, counter, out),
        };
        match drawn {
            Drawn::All => {}
            Drawn::Again => scalar(key, seen, rows, counter, out),
            Drawn::Not => return false,
        }
    }
    true
}

/// How blocks went.
enum Drawn {
    All,
    /// A word may have to be replaced.
    Again,
    /// A row cannot be drawn for.
    Not,
}

/// Blocks of draws for one row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn of_row<const N: usize>(key: u64, seen: Csr, row: i64, counter: u64, out: &mut [i32]) -> Drawn {
    let Some((low, len)) = span(seen, row) else {
        return Drawn::Not;
    };
    let positives = &seen.arrays().1[low as usize..(low + len) as usize];
    let bound = _mm512_set1_epi64(seen.items() as i64 - len);
    match below::<N>(blocks(key, counter), [[bound; 2]; N]) {
        Some(r) => store(among(positives, r), out),
        None => return Drawn::Again,
    }
    Drawn::All
}

/// Blocks of draws, each for a row of its own.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn of_rows<R: RowId, const N: usize>(key: u64, seen: Csr, rows: &[R], counter: u64, out: &mut [i32]) -> Drawn {
    let (mut lows, mut lens) = ([0i32; LANES * BLOCKS], [0i32; LANES * BLOCKS]);
    let (mut last, mut low, mut len) = (-1, 0, 0);
    for ((row, to_low), to_len) in rows.iter().zip(&mut lows).zip(&mut lens) {
        // Rows come in runs more often than not; -1 is none.
        let row = row.as_i64();
        if row != last || row < 0 {
            let Some(found) = span(seen, row) else {
                return Drawn::Not;
            };
            (last, low, len) = (row, found.0 as i32, found.1 as i32);
        }
        (*to_low, *to_len) = (low, len);
    }
    let load = |lanes: &[i32; LANES * BLOCKS]| -> [__m512i; N] {
        let blocks = lanes.as_chunks::<LANES>().0;
        // SAFETY: 16 integers.
        std::array::from_fn(|block| unsafe { _mm512_loadu_si512(blocks[block].as_ptr().cast()) })
    };
    let (lows, lens) = (load(&lows), load(&lens));
    let all = _mm512_set1_epi64(seen.items() as i64);
    let bounds = std::array::from_fn(|block| {
        let halves = [
            _mm512_castsi512_si256(lens[block]),
            _mm512_extracti32x8_epi32::<1>(lens[block]),
        ];
        halves.map(|lens| _mm512_sub_epi64(all, _mm512_cvtepi32_epi64(lens)))
    });
    match below::<N>(blocks(key, counter), bounds) {
        // SAFETY: each span lies within the pairs, whose number fits 32 bits, as checked before.
        Some(r) => store(unsafe { search(seen.arrays().1, lows, lens, r) }, out),
        None => return Drawn::Again,
    }
    Drawn::All
}

/// The words of several blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn blocks<const N: usize>(key: u64, counter: u64) -> [[__m512i; 2]; N] {
    std::array::from_fn(|block| {
        let counter = counter + (block * LANES) as u64;
        [words(key, counter), words(key, counter + 8)]
    })
}

/// Start and length of a row that exists, has something unseen, and lies within the pairs.
#[inline(always)]
fn span(seen: Csr, row: i64) -> Option<(i64, i64)> {
    if row < 0 || row >= seen.rows() as i64 {
        return None;
    }
    let indptr = seen.arrays().0;
    let (low, high) = (indptr[row as usize], indptr[row as usize + 1]);
    let sound = low >= 0 && low <= high && high <= seen.pairs() as i64 && seen.items() as i64 > high - low;
    sound.then_some((low, high - low))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store<const N: usize>(drawn: [__m512i; N], out: &mut [i32]) {
    for (drawn, out) in drawn.into_iter().zip(out.chunks_mut(LANES)) {
        let lanes = (1u32 << out.len()).wrapping_sub(1) as u16;
        // SAFETY: the mask has a bit for each of the slice's integers, 16 at most.
        unsafe { _mm512_mask_storeu_epi32(out.as_mut_ptr(), lanes, drawn) };
    }
}

#[cold]
#[inline(never)]
fn scalar<R: RowId>(key: u64, seen: Csr, rows: &[R], counter: u64, out: &mut [i32]) {
    for (lane, (row, slot)) in rows.iter().zip(out).enumerate() {
        let positives = seen.row(row.as_i64() as usize);
        let unseen = (seen.items() - positives.len()) as u64;
        let r = rng::below(rng::at(key, counter + lane as u64), unseen);
        *slot = super::unseen_item(positives, r as i32);
    }
}

/// Eight words of the stream, from `counter` on.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn words(key: u64, counter: u64) -> __m512i {
    let step = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
    let step = _mm512_mullo_epi64(step, _mm512_set1_epi64(GAMMA as i64));
    let start = key.wrapping_add(counter.wrapping_add(1).wrapping_mul(GAMMA));
    let z = _mm512_add_epi64(_mm512_set1_epi64(start as i64), step);
    let z = _mm512_xor_si512(z, _mm512_srli_epi64::<30>(z));
    let z = _mm512_mullo_epi64(z, _mm512_set1_epi64(0xBF58_476D_1CE4_E5B9_u64 as i64));
    let z = _mm512_xor_si512(z, _mm512_srli_epi64::<27>(z));
    let z = _mm512_mullo_epi64(z, _mm512_set1_epi64(0x94D0_49BB_1331_11EB_u64 as i64));
    _mm512_xor_si512(z, _mm512_srli_epi64::<31>(z))
}

/// Lemire's step on sixteen words at a time, for bounds of 31 bits; none if a word may have to be replaced.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn below<const N: usize>(words: [[__m512i; 2]; N], bounds: [[__m512i; 2]; N]) -> Option<[__m512i; N]> {
    let low_half = _mm512_set1_epi64(0xFFFF_FFFF);
    let mut rare = 0;
    let drawn = std::array::from_fn(|block| {
        let (words, bounds): ([__m512i; 2], [__m512i; 2]) = (words[block], bounds[block]);
        narrow(std::array::from_fn(|half| {
            let low = _mm512_mul_epu32(words[half], bounds[half]);
            let high = _mm512_mul_epu32(_mm512_srli_epi64::<32>(words[half]), bounds[half]);
            let sum = _mm512_add_epi64(high, _mm512_srli_epi64::<32>(low));
            // The low 64 bits of the product are below the bound only if their upper half is 0.
            rare |= _mm512_testn_epi64_mask(sum, low_half);
            _mm512_srli_epi64::<32>(sum)
        }))
    });
    (rare == 0).then_some(drawn)
}

/// Sixteen 64-bit lanes as 32-bit ones.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn narrow(wide: [__m512i; 2]) -> __m512i {
    let low = _mm512_castsi256_si512(_mm512_cvtepi64_epi32(wide[0]));
    _mm512_inserti32x8::<1>(low, _mm512_cvtepi64_epi32(wide[1]))
}

/// Unseen items number `r` of one row.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn among<const N: usize>(positives: &[i32], r: [__m512i; N]) -> [__m512i; N] {
    let one = _mm512_set1_epi32(1);
    if positives.len() <= 48 {
        let mut items = r;
        for &positive in positives {
            let positive = _mm512_set1_epi32(positive);
            for item in &mut items {
                // Ascending: a positive at or before the item so far moves it on by one.
                let passed = _mm512_cmple_epi32_mask(positive, *item);
                *item = _mm512_mask_add_epi32(*item, passed, *item, one);
            }
        }
        return items;
    }
    let len = _mm512_set1_epi32(positives.len() as i32);
    // SAFETY: the span is the whole slice.
    unsafe { search(positives, [_mm512_setzero_si512(); N], [len; N], r) }
}

/// Unseen items number `r` of sixteen rows a block, by halving.
///
/// # Safety
/// Each span from `lows` of `lens` lies within `indices`, whose length fits 32 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn search<const N: usize>(
    indices: &[i32],
    lows: [__m512i; N],
    lens: [__m512i; N],
    r: [__m512i; N],
) -> [__m512i; N] {
    let longest = lens
        .into_iter()
        .fold(_mm512_setzero_si512(), |a, b| _mm512_max_epi32(a, b));
    let largest = _mm512_reduce_max_epi32(longest);
    let mut passed = [_mm512_setzero_si512(); N];
    let mut step = if largest == 0 {
        0
    } else {
        1 << (31 - largest.leading_zeros())
    };
    // Positive number `passed` has as many positives before it; the rest of its id is unseen items.
    while step > 0 {
        let ahead = _mm512_set1_epi32(step - 1);
        for block in 0..N {
            let (passed, r) = (&mut passed[block], r[block]);
            let number = _mm512_add_epi32(*passed, ahead);
            let inside = _mm512_cmplt_epi32_mask(number, lens[block]);
            let place = _mm512_add_epi32(lows[block], number);
            // SAFETY: lanes outside their span are not read.
            let positive = unsafe { _mm512_mask_i32gather_epi32::<4>(number, inside, place, indices.as_ptr()) };
            let before = _mm512_sub_epi32(positive, number);
            let reached = _mm512_mask_cmple_epi32_mask(inside, before, r);
            *passed = _mm512_mask_add_epi32(*passed, reached, number, _mm512_set1_epi32(1));
        }
        step >>= 1;
    }
    std::array::from_fn(|block| _mm512_add_epi32(r[block], passed[block]))
}
