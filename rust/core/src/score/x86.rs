//! AVX2+FMA and AVX-512 kernels.

use std::arch::x86_64::*;

use std::ops::Range;

use super::quantised::{self, BytePanels, ByteTile, Catch, Lanes, Rounded, Totals, BATCH};
use super::{amx, portable, Form, Goals, Line, Matrix, Net, Panels, Rows, Sink, Tile, COLUMNS, LINE, ROWS};
use crate::bfloat16::{self, Tiles};
use crate::dropout::Thin;
use crate::relaxed::Scratch;

#[target_feature(enable = "avx2,fma")]
pub fn dots_fma(query: &[f32], items: Matrix, bias: Option<&[f32]>, ids: &[i32], out: &mut [f32]) {
    portable::dots(query, items, bias, ids, out);
}

#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw")]
pub fn pack_left_avx512(
    left: &impl Rows,
    rows: Range<usize>,
    columns: Range<usize>,
    depth: usize,
    tiles: &mut [Tiles],
) {
    bfloat16::pack_left_rows(left, rows, columns, depth, tiles);
}

#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw")]
pub fn pack_right_avx512(right: Matrix, first: usize, tiles: &mut [Tiles]) {
    bfloat16::pack_right_rows(right, first, tiles);
}

#[target_feature(enable = "avx2")]
pub fn dropout_avx2(thin: &Thin, out: &mut [f32], gate: Option<&[f32]>) {
    thin.each(out, gate);
}

#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
pub fn dropout_avx512(thin: &Thin, out: &mut [f32], gate: Option<&[f32]>) {
    thin.each(out, gate);
}

/// Without fused multiply-adds, which the portable path does not have here.
#[target_feature(enable = "avx2")]
pub fn relaxed_avx2(scores: &[f32], known: Option<&[bool]>, scratch: &mut Scratch, gradient: &mut [f32]) -> f32 {
    crate::relaxed::row(scores, known, scratch, gradient)
}

#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
pub fn relaxed_avx512(scores: &[f32], known: Option<&[bool]>, scratch: &mut Scratch, gradient: &mut [f32]) -> f32 {
    crate::relaxed::row(scores, known, scratch, gradient)
}

/// Sixteen items at a time: four dimensions of each are loaded and transposed, so that a vector holds one dimension of
/// all sixteen.
///
/// # Safety
/// The processor has the features; every id is a row of `items`, and of `bias`; `query` is as long as a row.
#[target_feature(enable = "avx512f,avx512vl,avx512dq,fma")]
pub unsafe fn dots_avx512(query: &[f32], items: Matrix, bias: Option<&[f32]>, ids: &[i32], out: &mut [f32]) {
    let dim = query.len();
    // Short rows are found sooner without: the processor looks far enough ahead by itself.
    let mut ahead = if dim < 4 * LINE {
        [].chunks(LINE)
    } else {
        ids.chunks(LINE)
    };
    ahead.next();
    for (ids, out) in ids.chunks(LINE).zip(out.chunks_mut(LINE)) {
        let ahead = ahead.next().unwrap_or_default();
        let mut rows = [items.data.as_ptr(); LINE];
        let mut start = [0.0f32; LINE];
        for (lane, &id) in ids.iter().enumerate() {
            // SAFETY: the id is a row of items; lanes past the last id read row 0, which exists if any id does.
            rows[lane] = unsafe { items.data.as_ptr().add(id as usize * dim) };
            if let Some(bias) = bias {
                start[lane] = bias[id as usize];
            }
        }
        // SAFETY: 16 floats.
        let mut sums = unsafe { _mm512_loadu_ps(start.as_ptr()) };
        let mut d = 0;
        while d + 4 <= dim {
            if d % LINE == 0 {
                for &id in ahead {
                    let next = items.data.as_ptr().wrapping_add(id as usize * dim + d);
                    _mm_prefetch::<_MM_HINT_T0>(next.cast());
                }
            }
            // SAFETY: dimensions d to d + 3 of rows of dim values, and of the query.
            unsafe {
                let columns = transposed(&rows, |row| _mm_loadu_ps(row.add(d)));
                for (offset, column) in columns.into_iter().enumerate() {
                    sums = _mm512_fmadd_ps(_mm512_set1_ps(*query.get_unchecked(d + offset)), column, sums);
                }
            }
            d += 4;
        }
        if d < dim {
            let mask = (1u8 << (dim - d)) - 1;
            // SAFETY: the masked load touches only the dim - d values that are left of a row.
            let columns = unsafe { transposed(&rows, |row| _mm_maskz_loadu_ps(mask, row.add(d))) };
            for (&q, column) in query[d..].iter().zip(columns) {
                sums = _mm512_fmadd_ps(_mm512_set1_ps(q), column, sums);
            }
        }
        let mut scores = [0.0f32; LINE];
        // SAFETY: 16 floats.
        unsafe { _mm512_storeu_ps(scores.as_mut_ptr(), sums) };
        out.copy_from_slice(&scores[..out.len()]);
    }
}

/// Four values of each of sixteen rows, as four vectors of one value of each.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512dq")]
fn transposed(rows: &[*const f32; LINE], load: impl Fn(*const f32) -> __m128) -> [__m512; 4] {
    let part: [__m512; 4] = std::array::from_fn(|a| {
        let low = _mm512_castps128_ps512(load(rows[a]));
        let low = _mm512_insertf32x4::<1>(low, load(rows[a + 4]));
        let low = _mm512_insertf32x4::<2>(low, load(rows[a + 8]));
        _mm512_insertf32x4::<3>(low, load(rows[a + 12]))
    });
    let pairs = [
        _mm512_castps_pd(_mm512_unpacklo_ps(part[0], part[1])),
        _mm512_castps_pd(_mm512_unpackhi_ps(part[0], part[1])),
        _mm512_castps_pd(_mm512_unpacklo_ps(part[2], part[3])),
        _mm512_castps_pd(_mm512_unpackhi_ps(part[2], part[3])),
    ];
    [
        _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[0], pairs[2])),
        _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[0], pairs[2])),
        _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[1], pairs[3])),
        _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[1], pairs[3])),
    ]
}

/// [`super::SimdPath::scan_bytes`].
///
/// # Safety
/// The processor has the features, and with `TILES` those of [`amx`]; each of `queries` holds panels.groups x ROWS
/// lanes, laid out as `TILES` says.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,popcnt,bmi1,bmi2")]
pub unsafe fn scan_bytes<const TILES: bool>(
    queries: &[ByteTile],
    panels: &BytePanels,
    goals: &mut [Goals],
    catches: &mut [Catch],
    net: &mut impl Net,
) {
    // SAFETY: the caller's word.
    let _tiles = TILES.then(|| unsafe { amx::Configured::new(panels.chunk) });
    let mut totals = [Totals::ZERO; BATCH];
    for first in (0..panels.count()).step_by(BATCH) {
        let range = first..panels.count().min(first + BATCH);
        // A batch stays in L1 while all queries pass over it.
        for (tile, (queries, goals)) in queries.iter().zip(&mut *goals).enumerate() {
            // SAFETY: 16 floats each, aligned to 64 bytes by their structure.
            let (lengths, thresholds) = unsafe {
                (
                    _mm512_load_ps(goals.lengths.as_ptr()),
                    _mm512_load_ps(goals.thresholds.as_ptr()),
                )
            };
            let (mut batch, mut len) = ([0; BATCH], 0);
            for panel in range.clone() {
                let length = _mm512_set1_ps(panels.bounds[panel].length);
                let bound = _mm512_fmadd_ps(lengths, length, _mm512_set1_ps(f32::MIN_POSITIVE));
                batch[len] = panel;
                len += usize::from(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(bound, thresholds) != 0);
            }
            let batch = &batch[..len];
            // SAFETY: the panels exist, and the rest is the caller's word.
            unsafe { sums::<TILES>(queries, panels, batch, &mut totals) };
            for (&panel, totals) in batch.iter().zip(&totals) {
                sift(queries, panels, panel, totals, goals, catches, tile * ROWS, net);
            }
        }
    }
}

/// [`super::SimdPath::sample_bytes`].
///
/// # Safety
/// As of [`scan_bytes`]; `range` lies within the panels.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,popcnt,bmi1,bmi2")]
pub unsafe fn sample_bytes<const TILES: bool>(
    queries: &ByteTile,
    panels: &BytePanels,
    range: Range<usize>,
    seen: &[u64],
    lanes: &mut Lanes,
) {
    // SAFETY: the caller's word.
    let _tiles = TILES.then(|| unsafe { amx::Configured::new(panels.chunk) });
    let mut totals = [Totals::ZERO; BATCH];
    let mut seen = seen
        .iter()
        .map(|&place| (place as usize / LINE, place as usize % LINE))
        .peekable();
    // SAFETY: 16 floats, aligned to 64 bytes by their structure.
    let scales = unsafe { _mm512_load_ps(queries.scales.as_ptr()) };
    let mut next = range.start;
    while next < range.end {
        let batch: [usize; BATCH] = std::array::from_fn(|place| next + place);
        let batch = &batch[..BATCH.min(range.end - next)];
        next += batch.len();
        // SAFETY: the panels lie in the range, and the rest is the caller's word.
        unsafe { sums::<TILES>(queries, panels, batch, &mut totals) };
        for (&panel, totals) in batch.iter().zip(&mut totals) {
            while let Some((position, row)) = seen.next_if(|&(position, _)| position < (panel + 1) * COLUMNS) {
                totals.0[row][position % COLUMNS] = i32::MIN;
            }
            let mut scale = [0.0f32; LINE];
            // SAFETY: 16 floats.
            unsafe {
                let scales = _mm512_mul_ps(scales, _mm512_set1_ps(panels.bounds[panel].scale));
                _mm512_storeu_ps(scale.as_mut_ptr(), scales);
            }
            let stride = lanes.stride();
            for ((sums, lines), &scale) in totals
                .0
                .iter()
                .zip(lanes.of_panel(panel).chunks_mut(stride))
                .zip(&scale)
            {
                for (sums, line) in sums.as_chunks::<LINE>().0.iter().zip(lines) {
                    // SAFETY: 16 integers and 16 floats, each aligned to 64 bytes by its structure.
                    unsafe {
                        let sums = _mm512_cvtepi32_ps(_mm512_load_si512(sums.as_ptr().cast()));
                        let scores = _mm512_mul_ps(sums, _mm512_set1_ps(scale));
                        let best = _mm512_max_ps(_mm512_load_ps(line.0.as_ptr()), scores);
                        _mm512_store_ps(line.0.as_mut_ptr(), best);
                    }
                }
            }
        }
    }
}

/// The sums of a batch of panels.
///
/// # Safety
/// As of [`scan_bytes`]; every panel of `batch`, BATCH at most, is one of the panels, and with `TILES` the registers
/// are configured.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn sums<const TILES: bool>(
    queries: &ByteTile,
    panels: &BytePanels,
    batch: &[usize],
    totals: &mut [Totals; BATCH],
) {
    if TILES {
        // SAFETY: the caller's word.
        unsafe { amx::sums(queries, panels, batch, totals) };
        return;
    }
    for (&panel, totals) in batch.iter().zip(totals) {
        let starts = &panels.starts[panel];
        // SAFETY: two lines of 16 integers, aligned to 64 bytes.
        let start = unsafe {
            [
                _mm512_load_si512(starts[0].0.as_ptr().cast()),
                _mm512_load_si512(starts[1].0.as_ptr().cast()),
            ]
        };
        let mut sums = [start; ROWS];
        let mut q = queries.bytes.as_ptr().cast::<i32>();
        // SAFETY: panel is below count, and each panel has 2 * groups lines.
        let mut x = unsafe { panels.lines.as_ptr().add(panel * 2 * panels.groups) };
        for _ in 0..panels.groups {
            // SAFETY: both pointers advance by one group in each of `groups` steps; lines are aligned to 64 bytes, and
            // the queries' bytes are read as unaligned 32-bit words.
            unsafe {
                let items = [_mm512_load_si512(x.cast()), _mm512_load_si512(x.add(1).cast())];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let query = _mm512_set1_epi32(q.add(row).read_unaligned());
                    sums[0] = _mm512_dpbusd_epi32(sums[0], query, items[0]);
                    sums[1] = _mm512_dpbusd_epi32(sums[1], query, items[1]);
                }
                q = q.add(ROWS);
                x = x.add(2);
            }
        }
        for (row, sums) in totals.0.iter_mut().zip(&sums) {
            // SAFETY: a row is 32 integers, two vectors, aligned to 64 bytes.
            unsafe {
                _mm512_store_si512(row.as_mut_ptr().cast(), sums[0]);
                _mm512_store_si512(row.as_mut_ptr().add(LINE).cast(), sums[1]);
            }
        }
    }
}

/// Catches the items of a panel whose scores may reach their row's threshold; the tile's catches begin at `first`.
#[allow(clippy::too_many_arguments)]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,popcnt,bmi1,bmi2")]
fn sift(
    queries: &ByteTile,
    panels: &BytePanels,
    panel: usize,
    totals: &Totals,
    goals: &mut Goals,
    catches: &mut [Catch],
    first: usize,
    net: &mut impl Net,
) {
    #[repr(C, align(64))]
    struct Ints([i32; LINE]);
    #[repr(C, align(64))]
    struct Floats([f32; LINE]);

    let bounds = &panels.bounds[panel];
    // SAFETY: arrays of 16 floats, aligned to 64 bytes by their structures.
    let (inverse_scales, scales, per_length, per_error, thresholds) = unsafe {
        (
            _mm512_load_ps(queries.inverse_scales.as_ptr()),
            _mm512_load_ps(queries.scales.as_ptr()),
            _mm512_load_ps(queries.per_length.as_ptr()),
            _mm512_load_ps(queries.per_error.as_ptr()),
            _mm512_load_ps(goals.thresholds.as_ptr()),
        )
    };
    // The least integer sum whose score can reach the threshold: (threshold - error) / scales, less what computing
    // this in float32 can be off by, less 1 since the comparison is strict.
    let error = _mm512_fmadd_ps(
        per_length,
        _mm512_set1_ps(bounds.length),
        _mm512_fmadd_ps(
            per_error,
            _mm512_set1_ps(bounds.error),
            _mm512_set1_ps(f32::MIN_POSITIVE),
        ),
    );
    let inverse = _mm512_mul_ps(inverse_scales, _mm512_set1_ps(bounds.inverse_scale));
    let limit = _mm512_mul_ps(_mm512_sub_ps(thresholds, error), inverse);
    let size = _mm512_mul_ps(_mm512_add_ps(_mm512_abs_ps(thresholds), error), inverse);
    let slack = _mm512_fmadd_ps(size, _mm512_set1_ps(1e-6), _mm512_set1_ps(1.5));
    let limit = _mm512_min_ps(_mm512_sub_ps(limit, slack), _mm512_set1_ps(2e9));
    let limit = _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(limit);
    let mut limits = Ints([0; LINE]);
    // SAFETY: 16 integers, aligned to 64 bytes.
    unsafe { _mm512_store_si512(limits.0.as_mut_ptr().cast(), limit) };
    // Without the barrier the limits are taken apart in registers, on the port that comparisons need.
    let limits = std::hint::black_box(&limits);
    // A bit for each pair of columns (c, c + 16), four rows a word.
    let mut words = [0u64; ROWS / 4];
    for (row, sums) in totals.0.iter().enumerate() {
        // SAFETY: 32 integers, aligned to 64 bytes.
        let pair = unsafe {
            _mm512_max_epi32(
                _mm512_load_si512(sums.as_ptr().cast()),
                _mm512_load_si512(sums.as_ptr().add(LINE).cast()),
            )
        };
        let reached = _mm512_cmpgt_epi32_mask(pair, _mm512_set1_epi32(limits.0[row]));
        words[row / 4] |= u64::from(reached) << (16 * (row % 4));
    }
    if words[0] | words[1] | words[2] == 0 {
        return;
    }
    // A bit a row: the top bit of each of a word's parts that is not 0, put together.
    const LOW: u64 = 0x7FFF_7FFF_7FFF_7FFF;
    let mut rows = words.iter().enumerate().fold(0, |rows, (part, word)| {
        rows | _pext_u64(((word & LOW) + LOW) | word, !LOW) << (4 * part)
    });
    let (mut row_errors, mut row_scales) = (Floats([0.0; LINE]), Floats([0.0; LINE]));
    // SAFETY: 16 floats each, aligned to 64 bytes.
    unsafe {
        _mm512_store_ps(row_errors.0.as_mut_ptr(), error);
        let scales = _mm512_mul_ps(scales, _mm512_set1_ps(bounds.scale));
        _mm512_store_ps(row_scales.0.as_mut_ptr(), scales);
    }
    let (row_errors, row_scales) = (std::hint::black_box(&row_errors), std::hint::black_box(&row_scales));
    let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    while rows != 0 {
        let row = rows.trailing_zeros() as usize;
        rows &= rows - 1;
        let catch = &mut catches[first + row];
        assert!(catch.has_room());
        let limit = _mm512_set1_epi32(limits.0[row]);
        let (error, scale) = (_mm512_set1_ps(row_errors.0[row]), _mm512_set1_ps(row_scales.0[row]));
        for half in 0..2 {
            // SAFETY: the vector lies within the tile's row. The catch has room for two vectors and 16 entries more.
            unsafe {
                let sums = _mm512_load_si512(totals.0[row].as_ptr().add(half * LINE).cast());
                let mask = _mm512_cmpgt_epi32_mask(sums, limit);
                let start = _mm512_set1_epi32((panel * COLUMNS + half * LINE) as i32);
                let positions = _mm512_maskz_compress_epi32(mask, _mm512_add_epi32(start, lanes));
                _mm512_storeu_si512(catch.positions.as_mut_ptr().add(catch.len).cast(), positions);
                let scores = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_maskz_compress_epi32(mask, sums)), scale);
                _mm512_storeu_ps(catch.lows.as_mut_ptr().add(catch.len), _mm512_sub_ps(scores, error));
                _mm512_storeu_ps(catch.ups.as_mut_ptr().add(catch.len), _mm512_add_ps(scores, error));
                catch.len += mask.count_ones() as usize;
            }
        }
        if catch.len > catch.full {
            goals.thresholds[row] = net.relieve(first + row, goals.thresholds[row], catch);
        }
    }
}

/// [`quantised::drop_seen`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt")]
pub fn drop_seen_avx512(seen: &[u32], ids: &[i32], catch: &mut Catch) {
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

/// [`quantised::reaching`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt")]
pub fn reaching_avx512(catch: &Catch, low: Range<f32>, up: f32, out: &mut Vec<u32>) {
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
#[inline(always)]
fn lanes(count: usize) -> u16 {
    ((1u32 << count.min(LINE)) - 1) as u16
}

/// [`quantised::nth`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn nth_avx512(values: &[u32], keep: usize) -> u32 {
    quantised::nth(values, keep)
}

/// [`quantised::places`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn places_avx512(keys: &[u64], places: &mut [u32]) {
    quantised::places(keys, places);
}

/// [`super::quantised::round`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn round_avx512(row: &[f32], inverse: f32, bytes: &mut [i8]) -> Rounded {
    quantised::round(row, inverse, bytes)
}

/// [`crate::ranks::count`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt")]
pub fn count_avx512(scores: &[f32], goal: f32) -> (i32, i32) {
    let (blocks, rest) = scores.as_chunks::<LINE>();
    let goals = _mm512_set1_ps(goal);
    let counted = blocks.iter().fold((0, 0), |(above, equal), block| {
        // SAFETY: 16 floats.
        let block = unsafe { _mm512_loadu_ps(block.as_ptr()) };
        (
            above + _mm512_cmp_ps_mask::<_CMP_GT_OQ>(block, goals).count_ones() as i32,
            equal + _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(block, goals).count_ones() as i32,
        )
    });
    let rest = crate::ranks::count(rest, goal);
    (counted.0 + rest.0, counted.1 + rest.1)
}

/// [`crate::ranks::occurrences`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn occurrences_avx512(ids: &[i32], id: i32) -> i32 {
    crate::ranks::occurrences(ids, id)
}

/// [`crate::ranks::within`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn within_avx512(ids: &[i32], items: usize) -> bool {
    crate::ranks::within(ids, items)
}

/// [`crate::weighted::choose`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt")]
pub fn choose_avx512(clocks: &[u64], keep: usize, out: &mut [i32]) -> usize {
    const HALF: usize = LINE / 2;
    let (bound, sharp) = crate::weighted::bound(clocks, keep, |middle| {
        let (blocks, rest) = clocks.as_chunks::<HALF>();
        let middles = _mm512_set1_epi64(middle as i64);
        let counted: u32 = blocks.iter().fold(0, |count, block| {
            // SAFETY: 8 integers.
            let block = unsafe { _mm512_loadu_si512(block.as_ptr().cast()) };
            count + _mm512_cmple_epu64_mask(block, middles).count_ones()
        });
        counted as usize + rest.iter().filter(|&&clock| clock <= middle).count()
    });
    if !sharp || out.len() < keep {
        return crate::weighted::gather(clocks, bound, keep, out);
    }
    let bounds = _mm512_set1_epi64(bound as i64);
    let mut taken = 0;
    for (place, block) in clocks.chunks(HALF).enumerate() {
        let inside = lanes(block.len()) as u8;
        let places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let places = _mm256_add_epi32(places, _mm256_set1_epi32((place * HALF) as i32));
        // SAFETY: what is loaded and stored is masked: as many lanes as the block has, and as many as are taken, which
        // are `keep` in all.
        unsafe {
            let block = _mm512_maskz_loadu_epi64(inside, block.as_ptr().cast());
            let chosen = _mm512_mask_cmple_epu64_mask(inside, block, bounds);
            let count = (chosen.count_ones() as usize).min(out.len() - taken);
            let places = _mm256_maskz_compress_epi32(chosen, places);
            _mm256_mask_storeu_epi32(out.as_mut_ptr().add(taken), lanes(count) as u8, places);
            taken += count;
        }
    }
    taken
}

/// [`crate::weighted::clocks`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn clocks_avx512(row_key: u64, list: &[i32], inverse: &[f64], out: &mut [u64]) {
    crate::weighted::clocks(row_key, list, inverse, out);
}

/// [`crate::weighted::clocks`].
#[target_feature(enable = "avx2")]
pub fn clocks_avx2(row_key: u64, list: &[i32], inverse: &[f64], out: &mut [u64]) {
    crate::weighted::clocks(row_key, list, inverse, out);
}

/// [`crate::discrepancy::tie`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,bmi1")]
pub fn tie_avx512(order: &[u64]) -> Option<usize> {
    const HALF: usize = LINE / 2;
    let upper = _mm512_set1_epi64(!0xFFFF_FFFF);
    let mut start = 0;
    while start + HALF < order.len() {
        // SAFETY: 8 keys from start, and from the one after; both end at or before the last.
        let (these, next) = unsafe {
            (
                _mm512_loadu_si512(order.as_ptr().add(start).cast()),
                _mm512_loadu_si512(order.as_ptr().add(start + 1).cast()),
            )
        };
        let same = _mm512_testn_epi64_mask(_mm512_xor_si512(these, next), upper);
        if same != 0 {
            return Some(start + same.trailing_zeros() as usize);
        }
        start += HALF;
    }
    crate::discrepancy::tie(&order[start..]).map(|place| start + place)
}

/// [`crate::discrepancy::codes`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn codes_avx512(scores: &[f32], out: &mut [u32]) {
    crate::discrepancy::codes(scores, out);
}

/// [`crate::discrepancy::codes`].
#[target_feature(enable = "avx2")]
pub fn codes_avx2(scores: &[f32], out: &mut [u32]) {
    crate::discrepancy::codes(scores, out);
}

/// [`super::quantised::magnitude`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub fn magnitude_avx512(row: &[f32]) -> f32 {
    quantised::magnitude(row)
}

/// # Safety
/// The processor has AVX-512F; `queries` holds dim x ROWS floats and `panel` dim x COLUMNS.
#[target_feature(enable = "avx512f")]
pub unsafe fn tile_avx512(form: Form, queries: &[f32], panel: &[Line], bias: &[Line; 2], out: &mut Tile) {
    match form {
        Form::Dot => tile512::<false, 2>(queries, panel, bias, out),
        Form::Distance => tile512::<true, 2>(queries, panel, bias, out),
    }
}

/// The first half of the columns.
///
/// # Safety
/// As above.
#[target_feature(enable = "avx512f")]
pub unsafe fn half_tile_avx512(queries: &[f32], panel: &[Line], bias: &[Line; 2], out: &mut Tile) {
    tile512::<false, 1>(queries, panel, bias, out);
}

#[target_feature(enable = "avx512f")]
fn tile512<const DISTANCE: bool, const HALVES: usize>(
    queries: &[f32],
    panel: &[Line],
    bias: &[Line; 2],
    out: &mut Tile,
) {
    let sums = sums512::<DISTANCE, HALVES>(queries, panel, bias);
    for (row, sums) in out.0.iter_mut().zip(&sums) {
        for (half, &sums) in sums.iter().enumerate() {
            // SAFETY: a row of the tile is 32 floats, two vectors; Tile is aligned to 64 bytes and so is each of its rows.
            unsafe { _mm512_store_ps(row.as_mut_ptr().add(half * LINE), sums) };
        }
    }
}

/// [`super::SimdPath::scan`].
///
/// # Safety
/// The processor has the features; `queries` holds panels.dim x ROWS floats and `range` lies within the panels.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
pub unsafe fn scan_avx512(
    form: Form,
    queries: &[f32],
    panels: &Panels,
    range: Range<usize>,
    goals: &mut Goals,
    sink: &mut impl Sink,
) {
    match form {
        Form::Dot => scan512::<false>(queries, panels, range, goals, sink),
        Form::Distance => scan512::<true>(queries, panels, range, goals, sink),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
fn scan512<const DISTANCE: bool>(
    queries: &[f32],
    panels: &Panels,
    range: Range<usize>,
    goals: &mut Goals,
    sink: &mut impl Sink,
) {
    let mut tile = Tile::default();
    // SAFETY: both arrays are 16 floats, aligned to 64 bytes by Goals.
    let (mut thresholds, lengths) = unsafe {
        (
            _mm512_load_ps(goals.thresholds.as_ptr()),
            _mm512_load_ps(goals.lengths.as_ptr()),
        )
    };
    for panel in range {
        let (length, offset) = (
            _mm512_set1_ps(panels.lengths[panel]),
            _mm512_set1_ps(panels.offsets[panel]),
        );
        let bound = _mm512_fmadd_ps(lengths, length, offset);
        if _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(bound, thresholds) == 0 {
            continue;
        }
        let (lines, bias) = panels.panel(panel);
        let sums = sums512::<DISTANCE, 2>(queries, lines, bias);
        // A bit for each pair of columns (c, c + 16) of four rows a word: which of them reaches its threshold.
        let mut words = [0u64; ROWS / 4];
        for (row, sums) in sums.iter().enumerate() {
            let pair = _mm512_max_ps(sums[0], sums[1]);
            let reached = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(pair, _mm512_set1_ps(goals.thresholds[row]));
            words[row / 4] |= u64::from(reached) << (16 * (row % 4));
        }
        if words[0] | words[1] | words[2] == 0 {
            continue;
        }
        for (row, sums) in tile.0.iter_mut().zip(&sums) {
            // SAFETY: a row of the tile is 32 floats, two vectors; Tile is aligned to 64 bytes and so is each row.
            unsafe {
                _mm512_store_ps(row.as_mut_ptr(), sums[0]);
                _mm512_store_ps(row.as_mut_ptr().add(LINE), sums[1]);
            }
        }
        for (part, mut word) in words.into_iter().enumerate() {
            while word != 0 {
                let bit = word.trailing_zeros() as usize;
                word &= word - 1;
                let (row, column) = (4 * part + bit / LINE, bit % LINE);
                for column in [column, column + LINE] {
                    let score = tile.0[row][column];
                    if score >= goals.thresholds[row] {
                        goals.thresholds[row] = sink.take(row, panel * COLUMNS + column, score);
                    }
                }
            }
        }
        // SAFETY: as above.
        thresholds = unsafe { _mm512_load_ps(goals.thresholds.as_ptr()) };
    }
}

/// The 12 x 32 sums, in 24 registers, or those of the first half of the columns, in 12.
#[inline]
#[target_feature(enable = "avx512f")]
fn sums512<const DISTANCE: bool, const HALVES: usize>(
    queries: &[f32],
    panel: &[Line],
    bias: &[Line; 2],
) -> [[__m512; HALVES]; ROWS] {
    let dim = queries.len() / ROWS;
    debug_assert_eq!(panel.len(), dim * 2);
    // SAFETY: a Line is 16 floats, aligned to 64 bytes.
    let start: [__m512; HALVES] = std::array::from_fn(|half| unsafe { _mm512_load_ps(bias[half].0.as_ptr()) });
    let mut sums = [start; ROWS];
    let (mut q, mut x) = (queries.as_ptr(), panel.as_ptr().cast::<f32>());
    for _ in 0..dim {
        // SAFETY: queries hold dim x ROWS floats and the panel dim x COLUMNS in aligned lines; both pointers advance by
        // one such row in each of dim steps.
        unsafe {
            let items: [__m512; HALVES] = std::array::from_fn(|half| _mm512_load_ps(x.add(half * LINE)));
            for (row, sums) in sums.iter_mut().enumerate() {
                let query = _mm512_set1_ps(*q.add(row));
                for half in 0..HALVES {
                    sums[half] = if DISTANCE {
                        let difference = _mm512_sub_ps(query, items[half]);
                        _mm512_fnmadd_ps(difference, difference, sums[half])
                    } else {
                        _mm512_fmadd_ps(query, items[half], sums[half])
                    };
                }
            }
            q = q.add(ROWS);
            x = x.add(COLUMNS);
        }
    }
    sums
}

/// # Safety
/// The processor has AVX2 and FMA; `queries` holds dim x ROWS floats and `panel` dim x COLUMNS.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn tile_avx2(form: Form, queries: &[f32], panel: &[Line], bias: &[Line; 2], out: &mut Tile) {
    match form {
        Form::Dot => tile256::<false>(queries, panel, bias, 2, out),
        Form::Distance => tile256::<true>(queries, panel, bias, 2, out),
    }
}

/// The first half of the columns.
///
/// # Safety
/// As above.
#[target_feature(enable = "avx2,fma")]
pub unsafe fn half_tile_avx2(queries: &[f32], panel: &[Line], bias: &[Line; 2], out: &mut Tile) {
    tile256::<false>(queries, panel, bias, 1, out);
}

/// Four parts of 6 x 16, each in 12 of the 16 registers; two of them for one half of the columns.
#[target_feature(enable = "avx2,fma")]
fn tile256<const DISTANCE: bool>(queries: &[f32], panel: &[Line], bias: &[Line; 2], halves: usize, out: &mut Tile) {
    const PART: usize = 6;
    let dim = queries.len() / ROWS;
    debug_assert_eq!(panel.len(), dim * 2);
    for top in [0, PART] {
        for half in 0..halves {
            // SAFETY: a Line is 16 floats: two vectors of 8.
            let start = unsafe {
                let bias = bias[half].0.as_ptr();
                [_mm256_loadu_ps(bias), _mm256_loadu_ps(bias.add(8))]
            };
            let mut sums = [start; PART];
            for d in 0..dim {
                // SAFETY: queries hold dim x ROWS floats and top + PART <= ROWS; line 2 * d + half is one of the
                // panel's 2 * dim.
                unsafe {
                    let x = panel.as_ptr().add(2 * d + half).cast::<f32>();
                    let items = [_mm256_loadu_ps(x), _mm256_loadu_ps(x.add(8))];
                    let q = queries.as_ptr().add(d * ROWS + top);
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let query = _mm256_set1_ps(*q.add(row));
                        for part in 0..2 {
                            sums[part] = if DISTANCE {
                                let difference = _mm256_sub_ps(query, items[part]);
                                _mm256_fnmadd_ps(difference, difference, sums[part])
                            } else {
                                _mm256_fmadd_ps(query, items[part], sums[part])
                            };
                        }
                    }
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                let row = &mut out.0[top + row][half * LINE..(half + 1) * LINE];
                // SAFETY: the slice is 16 floats: two vectors of 8.
                unsafe {
                    _mm256_storeu_ps(row.as_mut_ptr(), sums[0]);
                    _mm256_storeu_ps(row.as_mut_ptr().add(8), sums[1]);
                }
            }
        }
    }
}
