//! Tiles of queries against batches of panels with AVX-512: sums and what they are compared with stay in registers.

use std::arch::asm;
use std::arch::x86_64::*;

use super::caught::{take, Caught};
use super::scan::BATCH;
use super::{CodePanels, CodeTile, Lane, Words};
use crate::score::quantised::Totals;
use crate::score::{Goals, COLUMNS, LINE, ROWS};

/// Sums past this, either way, do not occur, nor with an offset do they leave 32 bits.
const LARGEST: f32 = (1u32 << 30) as f32;
/// Below it, what products of scales below the normal numbers are off by may matter.
const SMALL: f32 = 1e-25;
/// Bits of rows that a panel of a batch has to itself.
const PLACES: usize = 16;

/// An integer for each row.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Ints([i32; LINE]);

/// What a tile and a batch work with.
#[repr(C, align(64))]
pub struct Batch {
    /// Sums, of the panels that were not hopeless, from their starts on.
    totals: [Totals; BATCH],
    /// A sum reaches its limit if it is not negative when it starts here.
    starts: [Ints; BATCH],
    /// What such sums are too large by, when they are made sums of levels.
    excess: [Ints; BATCH],
}

impl Batch {
    pub const ZERO: Batch = Batch {
        totals: [Totals::ZERO; BATCH],
        starts: [Ints([0; LINE]); BATCH],
        excess: [Ints([0; LINE]); BATCH],
    };
}

/// Catches the items of `count` panels from `first` on, opened as `lines`, that reach their row's threshold; gives the rows, a bit each,
/// whose catches are full.
///
/// # Safety
/// The processor has the instructions: of bytes, or of signs, as the panels' lanes are. There are `count` <= BATCH panels from `first` on,
/// with [`CodePanels::opened`] lines each, as many lanes of queries as of items, and a catch for every row that has a query.
#[allow(clippy::too_many_arguments)]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,popcnt,bmi1,bmi2")]
pub unsafe fn catch(
    queries: &CodeTile,
    panels: &CodePanels,
    (first, count): (usize, usize),
    lines: &[Words],
    goals: &Goals,
    caught: &mut [Caught],
    batch: &mut Batch,
) -> u32 {
    // SAFETY: 16 numbers, aligned to 64 bytes by their structure.
    let thresholds = unsafe { _mm512_load_ps(goals.thresholds.as_ptr()) };
    let live = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(thresholds, _mm512_set1_ps(f32::INFINITY));
    let places = limits(queries, panels, (first, count), goals, live, batch);
    if places == 0 {
        return 0;
    }
    // SAFETY: the caller's word.
    let mut reached = unsafe {
        match panels.lanes {
            Lane::Bytes => bytes(queries, panels, lines, places, batch),
            Lane::Signs => signs(queries, panels, lines, places, batch),
        }
    };
    reached &= 0x0001_0001_0001_0001 * u64::from(live);
    let shift = _mm512_set1_epi32(panels.shift as i32);
    let mut full = 0;
    while reached != 0 {
        let bit = reached.trailing_zeros() as usize;
        reached &= reached - 1;
        let (place, row) = (bit / PLACES, bit % PLACES);
        let panel = first + place;
        let (scales, bias) = panels.of_panel(panel);
        let excess = _mm512_set1_epi32(batch.excess[place].0[row]);
        let own = _mm512_set1_ps(queries.scales[row]);
        let scores = [0, 1].map(|half| {
            // SAFETY: half a row is 16 numbers, aligned to 64 bytes, and so are the lines of a panel.
            let (total, scale, bias) = unsafe {
                (
                    _mm512_load_si512(batch.totals[place].0[row].as_ptr().add(half * LINE).cast()),
                    _mm512_load_ps(scales[half].0.as_ptr()),
                    _mm512_load_ps(bias[half].0.as_ptr()),
                )
            };
            let sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_sllv_epi32(total, shift), excess));
            _mm512_add_ps(_mm512_mul_ps(_mm512_mul_ps(own, scale), sum), bias)
        });
        let caught = &mut caught[row];
        take(scores, panel, _mm512_set1_ps(goals.thresholds[row]), caught);
        full |= u32::from(caught.len > caught.full) << row;
    }
    full
}

/// Where sums begin, into the batch; gives the panels of it, a bit each, that are not hopeless for all rows that are `live`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,popcnt,bmi1,bmi2")]
fn limits(
    queries: &CodeTile,
    panels: &CodePanels,
    (first, count): (usize, usize),
    goals: &Goals,
    live: __mmask16,
    batch: &mut Batch,
) -> u32 {
    // SAFETY: 16 numbers, aligned to 64 bytes by their structures.
    let (lengths, thresholds, inverse_scales, offsets) = unsafe {
        (
            _mm512_load_ps(goals.lengths.as_ptr()),
            _mm512_load_ps(goals.thresholds.as_ptr()),
            _mm512_load_ps(queries.inverse_scales.as_ptr()),
            _mm512_load_si512(queries.offsets.as_ptr().cast()),
        )
    };
    // What rounding takes off a sum with a bias.
    let lowered = _mm512_fnmadd_ps(_mm512_abs_ps(thresholds), _mm512_set1_ps(1e-6), thresholds);
    let shift = _mm512_set1_epi32(panels.shift as i32);
    let own = panels.lengths[first..]
        .iter()
        .zip(&panels.offsets[first..])
        .zip(&panels.inverse_scales[first..]);
    let mut places = 0;
    let starts = batch.starts.iter_mut().zip(&mut batch.excess);
    for (place, (((&length, &offset), &inverse), (starts, excess))) in own.zip(starts).take(count).enumerate() {
        let offset = _mm512_set1_ps(offset);
        let bound = _mm512_fmadd_ps(lengths, _mm512_set1_ps(length), offset);
        let hopeful = _mm512_mask_cmp_ps_mask::<_CMP_NLT_UQ>(live, bound, thresholds) != 0;
        places |= u32::from(hopeful) << place;
        // The least sum with which the largest scale of the panel can reach the threshold, less what computing it in float32 can be off
        // by: most rows are ruled out by integers alone.
        let least = _mm512_sub_ps(lowered, offset);
        let certain = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(least, _mm512_set1_ps(SMALL));
        let inverse = _mm512_mul_ps(inverse_scales, _mm512_set1_ps(inverse));
        let least = _mm512_fmsub_ps(
            _mm512_mul_ps(least, inverse),
            _mm512_set1_ps(1.0 - 1e-6),
            _mm512_set1_ps(1.5),
        );
        // Where scales are 0 or too large to be inverted, 0 times infinity is not a number, and the second operand is taken.
        let least = _mm512_max_ps(least, _mm512_set1_ps(-LARGEST));
        let least = _mm512_min_ps(least, _mm512_set1_ps(LARGEST));
        let least = _mm512_mask_blend_ps(certain, _mm512_set1_ps(-LARGEST), least);
        let least = _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(least);
        let limit = _mm512_srav_epi32(_mm512_add_epi32(least, offsets), shift);
        // -(limit + 1)
        let start = _mm512_xor_si512(limit, _mm512_set1_epi32(-1));
        // SAFETY: 16 integers each, aligned to 64 bytes.
        unsafe {
            _mm512_store_si512(starts.0.as_mut_ptr().cast(), start);
            let over = _mm512_add_epi32(_mm512_sllv_epi32(start, shift), offsets);
            _mm512_store_si512(excess.0.as_mut_ptr().cast(), over);
        }
    }
    places
}

/// `$step` of each row and half of `$sums`, by the lanes of queries from `$queries` + `$offset` bytes on.
macro_rules! each_row {
    ($step:ident, $sums:ident, $items:expr, $queries:expr, $offset:literal) => {
        each_row!(@rows $step, $sums, $items, $queries, $offset, 0 1 2 3 4 5 6 7 8 9 10 11)
    };
    (@rows $step:ident, $sums:ident, $items:expr, $queries:expr, $offset:literal, $($row:literal)+) => {{
        let (items, queries) = ($items, $queries);
        $(
            $sums[$row][0] = $step::<{ $offset + 4 * $row }>($sums[$row][0], items[0], queries);
            $sums[$row][1] = $step::<{ $offset + 4 * $row }>($sums[$row][1], items[1], queries);
        )+
    }};
}

/// Runs `$step` over all lanes of the panels `$places`, two lanes at a time: a jump costs as much as two products. Gives the rows of each
/// panel, [`PLACES`] bits a panel, of which one sum is not negative.
macro_rules! all_lanes {
    ($step:ident, $queries:expr, $panels:expr, $lines:expr, $places:expr, $batch:expr) => {{
        let (pairs, last) = $queries.lanes.as_chunks::<{ 2 * ROWS }>();
        let (mut places, mut reached) = ($places, 0u64);
        while places != 0 {
            let place = places.trailing_zeros() as usize;
            places &= places - 1;
            let mut sums = begun(&$batch.starts[place]);
            let lines = &$lines[place * $panels.opened()..][..$panels.count * 2];
            for (queries, lines) in pairs.iter().zip(lines.as_chunks::<4>().0) {
                each_row!($step, sums, [load(&lines[0]), load(&lines[1])], queries.as_ptr(), 0);
                each_row!($step, sums, [load(&lines[2]), load(&lines[3])], queries.as_ptr(), 48);
            }
            if let ([_, ..], [.., left, right]) = (last, lines) {
                each_row!($step, sums, [load(left), load(right)], last.as_ptr(), 0);
            }
            reached |= u64::from(ended(&sums, &mut $batch.totals[place])) << (PLACES * place);
        }
        reached
    }};
}

/// Sums of products of bytes.
///
/// # Safety
/// The processor has VNNI; ROWS lanes of `queries` belong to two lines of a panel.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,bmi1,bmi2")]
unsafe fn bytes(queries: &CodeTile, panels: &CodePanels, lines: &[Words], places: u32, batch: &mut Batch) -> u64 {
    // SAFETY: the lanes that are read are those of `queries`.
    unsafe { all_lanes!(dot, queries, panels, lines, places, batch) }
}

/// Minus the differing signs.
///
/// # Safety
/// The processor has VPOPCNTDQ; as above.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vpopcntdq,bmi1,bmi2")]
unsafe fn signs(queries: &CodeTile, panels: &CodePanels, lines: &[Words], places: u32, batch: &mut Batch) -> u64 {
    // SAFETY: as above.
    unsafe { all_lanes!(differing, queries, panels, lines, places, batch) }
}

/// Adds the products with a lane of a query, which is read and spread by the instruction itself: as an instruction of its own, as
/// compilers have it, it takes a third of what a processor can issue while its other thread is busy.
///
/// # Safety
/// The processor has VNNI; OFFSET bytes past `query` lies a lane.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dot<const OFFSET: usize>(mut sum: __m512i, item: __m512i, query: *const u32) -> __m512i {
    // SAFETY: reads the lane alone.
    unsafe {
        asm!(
            "vpdpbusd {sum}, {item}, dword ptr [{query} + {offset}]{{1to16}}",
            sum = inout(zmm_reg) sum,
            item = in(zmm_reg) item,
            query = in(reg) query,
            offset = const OFFSET,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    sum
}

/// Takes off the differing signs of a lane of a query, likewise.
///
/// # Safety
/// The processor has VPOPCNTDQ; as above.
#[inline]
#[target_feature(enable = "avx512f,avx512vpopcntdq")]
unsafe fn differing<const OFFSET: usize>(sum: __m512i, item: __m512i, query: *const u32) -> __m512i {
    let differ: __m512i;
    // SAFETY: reads the lane alone.
    unsafe {
        asm!(
            "vpxord {differ}, {item}, dword ptr [{query} + {offset}]{{1to16}}",
            differ = out(zmm_reg) differ,
            item = in(zmm_reg) item,
            query = in(reg) query,
            offset = const OFFSET,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    _mm512_sub_epi32(sum, _mm512_popcnt_epi32(differ))
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(line: &Words) -> __m512i {
    // SAFETY: 64 bytes, aligned.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn begun(starts: &Ints) -> [[__m512i; 2]; ROWS] {
    // Without the barrier they are taken apart in registers, on the port that products need.
    let starts = std::hint::black_box(starts);
    std::array::from_fn(|row| [_mm512_set1_epi32(starts.0[row]); 2])
}

/// Writes the sums; gives the rows, a bit each, of which one is not negative.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,bmi2")]
fn ended(sums: &[[__m512i; 2]; ROWS], totals: &mut Totals) -> u16 {
    for (row, sums) in totals.0.iter_mut().zip(sums) {
        // SAFETY: a row is 32 integers, two vectors, aligned to 64 bytes.
        unsafe {
            _mm512_store_si512(row.as_mut_ptr().cast(), sums[0]);
            _mm512_store_si512(row.as_mut_ptr().add(LINE).cast(), sums[1]);
        }
    }
    // The sign bit of a lane is set if neither sum reaches; packing keeps signs. Four rows make 64 bytes: in each part of 16 bytes four
    // of each row, one after the other.
    let mut word = 0u64;
    for (quarter, rows) in sums.as_chunks::<4>().0.iter().enumerate() {
        let rows = rows.map(|[left, right]| _mm512_and_si512(left, right));
        let packed = _mm512_packs_epi16(
            _mm512_packs_epi32(rows[0], rows[1]),
            _mm512_packs_epi32(rows[2], rows[3]),
        );
        let reached = !_mm512_movepi8_mask(packed);
        let halves = reached | reached >> 32;
        word |= u64::from((halves | halves >> 16) as u16) << (16 * quarter);
    }
    // A bit a row: the top bit of each four bits that are not 0.
    const LOW: u64 = 0x7777_7777_7777_7777;
    _pext_u64(((word & LOW) + LOW) | word, !LOW) as u16 & ((1 << ROWS) - 1)
}

const _: () = assert!(ROWS == 12 && COLUMNS == 2 * LINE && BATCH * PLACES <= 64);
