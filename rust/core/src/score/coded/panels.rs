//! Items as packed codes in panels.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::{Lane, Words};
use crate::codes::{Codes, EIGHT};
use crate::error::Error;
use crate::exec::Exec;
use crate::room::filled;
use crate::score::{length, rounding, Line, COLUMNS, LINE};
use crate::simd::{compiled, SimdPath};

/// More than what the rounding of a product of scales below the normal numbers adds to a score.
const UNDERFLOW: f32 = 1e-35;

/// Items in panels, in an order: line by line a lane of each item, the two halves of a panel in turn. Lanes of bytes are packed again:
/// a line holds 8 / width lanes, one above the other in each byte.
pub struct CodePanels {
    lines: Vec<Words>,
    /// Two lines a panel; 0 past the last item.
    scales: Vec<Line>,
    /// The same; -infinity past the last item.
    bias: Vec<Line>,
    pub biased: bool,
    /// Of each panel: 1 / the largest scale, or 0 where that is no normal number.
    pub inverse_scales: Vec<f32>,
    /// Largest length of a panel's vectors, rounded up.
    pub lengths: Vec<f32>,
    /// Largest bias of a panel, and what rounding can add to a score.
    pub offsets: Vec<f32>,
    pub lanes: Lane,
    /// Lanes of an item.
    pub count: usize,
    /// Bits of a code in a line.
    width: usize,
    /// A sum of levels is this power of two times a sum of codes, less what belongs to the query.
    pub shift: u32,
    /// What is added to a level to make it a code, times 2^shift.
    pub middle: i32,
    pub items: usize,
    pub dim: usize,
}

impl CodePanels {
    /// Items of these lengths, in the order of their ids, or as `order` lists them, for queries of so many bits.
    pub fn pack(
        exec: Exec,
        items: Codes,
        lengths: &[f32],
        bias: Option<&[f32]>,
        order: Option<&[i32]>,
        query_bits: usize,
    ) -> Result<Self, Error> {
        let lanes = match (items.bits, query_bits) {
            (1, 1) => Lane::Signs,
            _ => Lane::Bytes,
        };
        let count = items.dim.div_ceil(lanes.dims());
        let width = match lanes {
            Lane::Signs => 8,
            Lane::Bytes => items.bits.next_power_of_two(),
        };
        let panels = items.rows().div_ceil(COLUMNS);
        let per_panel = count.div_ceil(8 / width) * (COLUMNS / LINE);
        let mut packed = CodePanels {
            lines: filled(Words([0; LINE]), panels, per_panel)?,
            scales: filled(Line([0.0; LINE]), panels, COLUMNS / LINE)?,
            bias: filled(Line([f32::NEG_INFINITY; LINE]), panels, COLUMNS / LINE)?,
            biased: bias.is_some(),
            inverse_scales: vec![0.0; panels],
            lengths: vec![0.0; panels],
            offsets: vec![UNDERFLOW; panels],
            lanes,
            count,
            width,
            shift: u32::from(items.bits < EIGHT),
            middle: if items.bits == EIGHT {
                128
            } else {
                items.largest_level()
            },
            items: items.rows(),
            dim: items.dim,
        };
        let id = |position: usize| order.map_or(position, |order| order[position] as usize);
        for panel in 0..panels {
            let (mut scale, mut top, mut size) = (0.0f32, f32::NEG_INFINITY, 0.0f32);
            for position in panel * COLUMNS..items.rows().min((panel + 1) * COLUMNS) {
                let item = id(position);
                let bias = bias.map_or(0.0, |bias| bias[item]);
                packed.bias[position / LINE].0[position % LINE] = bias;
                packed.scales[position / LINE].0[position % LINE] = items.scale(item);
                scale = scale.max(items.scale(item));
                packed.lengths[panel] = packed.lengths[panel].max(lengths[item]);
                (top, size) = (top.max(bias), size.max(bias.abs()));
            }
            let inverse = 1.0 / scale;
            packed.inverse_scales[panel] = if inverse.is_normal() { inverse } else { 0.0 };
            packed.offsets[panel] += top + size * rounding(items.dim);
        }
        if per_panel == 0 {
            return Ok(packed);
        }
        const STEP: usize = 16;
        let tasks = packed.lines.chunks_mut(STEP * per_panel).enumerate();
        let exec = exec.for_work(items.rows() * items.stride());
        exec.each(
            tasks,
            || vec![[0u8; EIGHT]; COLUMNS * items.padded() / EIGHT],
            |rows, (task, lines)| {
                for (offset, lines) in lines.chunks_mut(per_panel).enumerate() {
                    let first = (task * STEP + offset) * COLUMNS;
                    let own = first..items.rows().min(first + COLUMNS);
                    match lanes {
                        Lane::Signs => {
                            for (column, position) in own.enumerate() {
                                let lines = lines.iter_mut().skip(column / LINE).step_by(COLUMNS / LINE);
                                for (line, word) in lines.zip(signs(items, id(position))) {
                                    line.0[column % LINE] = word;
                                }
                            }
                        }
                        Lane::Bytes => {
                            let stride = items.padded() / EIGHT;
                            rows.fill([0; EIGHT]);
                            for (row, position) in rows.chunks_mut(stride).zip(own) {
                                exec.simd.unpack_codes(items.bits, items.bytes(id(position)), row);
                            }
                            let rows = rows.as_flattened().as_chunks::<4>().0;
                            exec.simd.fill_lines(width, count, rows, lines);
                        }
                    }
                }
                Ok(())
            },
        )?;
        Ok(packed)
    }

    pub fn panels(&self) -> usize {
        self.lengths.len()
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        let floats = size_of_val(&*self.lengths) * 3;
        size_of_val(&*self.lines) + size_of_val(&*self.scales) + size_of_val(&*self.bias) + floats
    }

    /// Lines of a panel that has been opened.
    pub fn opened(&self) -> usize {
        self.count.next_multiple_of(8 / self.width) * (COLUMNS / LINE)
    }

    /// Panels from `first` on, [`CodePanels::opened`] lines each, a lane to a line; `room` is for those that are packed.
    pub fn open<'a>(&'a self, simd: SimdPath, first: usize, count: usize, room: &'a mut Vec<Words>) -> &'a [Words] {
        let per_panel = self.count.div_ceil(8 / self.width) * (COLUMNS / LINE);
        let lines = &self.lines[first * per_panel..(first + count) * per_panel];
        if self.width == 8 {
            return lines;
        }
        room.resize(count * self.opened(), Words([0; LINE]));
        simd.open_lines(self.width, lines, room);
        room
    }

    /// Scales and biases of a panel.
    #[inline(always)]
    pub fn of_panel(&self, panel: usize) -> (&[Line; 2], &[Line; 2]) {
        let lines = panel * 2..panel * 2 + 2;
        (
            self.scales[lines.clone()].try_into().expect("two lines a panel"),
            self.bias[lines].try_into().expect("two lines a panel"),
        )
    }
}

/// The signs of a row of one bit, 32 a word, 0 past the last.
pub fn signs<'a>(items: Codes<'a>, row: usize) -> impl Iterator<Item = u32> + 'a {
    items.bytes(row).chunks(4).enumerate().map(move |(place, bytes)| {
        let mut word = [0; 4];
        word[..bytes.len()].copy_from_slice(bytes);
        let left = items.dim - 32 * place;
        u32::from_le_bytes(word) & if left < 32 { (1 << left) - 1 } else { u32::MAX }
    })
}

/// What a row's length is at most, of each row.
pub fn code_lengths(exec: Exec, codes: Codes) -> Result<Vec<f32>, Error> {
    const STEP: usize = 256;
    let mut lengths = filled(0.0, codes.rows(), 1)?;
    exec.for_work(codes.rows() * codes.stride()).each(
        lengths.chunks_mut(STEP).enumerate(),
        || vec![0i8; codes.padded()],
        |levels, (task, lengths)| {
            for (offset, length) in lengths.iter_mut().enumerate() {
                *length = code_length(exec, codes, task * STEP + offset, levels);
            }
            Ok(())
        },
    )?;
    Ok(lengths)
}

/// The same of one row; `levels` is room for [`Codes::padded`].
pub fn code_length(exec: Exec, codes: Codes, row: usize, levels: &mut [i8]) -> f32 {
    let scale = f64::from(codes.scale(row));
    length(f64::from(codes.squared(exec.simd, row, levels)) * scale * scale)
}

compiled! {
    /// Lines of a panel of which 32 rows of codes are given, four a lane: `width` bits of each.
    fn fill_lines(width: usize, count: usize, rows: &[[u8; 4]], lines: &mut [Words]) = fill_lines;
    /// Lines of codes of `width` bits, one above the other in each byte, as lines of bytes.
    fn open_lines(width: usize, lines: &[Words], out: &mut [Words]) = open_lines, avx512: open_lines_avx512;
}

#[inline(always)]
fn fill_lines(width: usize, count: usize, rows: &[[u8; 4]], lines: &mut [Words]) {
    let (levels, stride) = (8 / width, rows.len() / COLUMNS);
    for (place, pair) in lines.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        for lane in place * levels..count.min((place + 1) * levels) {
            let shift = lane % levels * width;
            for (half, line) in pair.iter_mut().enumerate() {
                let rows = rows[half * LINE * stride..].iter().skip(lane).step_by(stride);
                for (word, &codes) in line.0.iter_mut().zip(rows) {
                    *word |= u32::from_le_bytes(codes) << shift;
                }
            }
        }
    }
}

#[inline(always)]
fn open_lines(width: usize, lines: &[Words], out: &mut [Words]) {
    match width {
        1 => open_width::<1>(lines, out),
        2 => open_width::<2>(lines, out),
        _ => open_width::<4>(lines, out),
    }
}

#[inline(always)]
fn open_width<const WIDTH: usize>(lines: &[Words], out: &mut [Words]) {
    let mask = ((1u32 << WIDTH) - 1) * 0x0101_0101;
    for (lines, out) in lines.as_chunks::<2>().0.iter().zip(out.chunks_exact_mut(2 * 8 / WIDTH)) {
        for (level, out) in out.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            for (line, out) in lines.iter().zip(out) {
                for (word, out) in line.0.iter().zip(&mut out.0) {
                    *out = word >> (level * WIDTH) & mask;
                }
            }
        }
    }
}

/// [`open_lines`], which compilers make four times as long.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,popcnt,bmi1,bmi2")]
fn open_lines_avx512(width: usize, lines: &[Words], out: &mut [Words]) {
    let mask = _mm512_set1_epi8(((1u32 << width) - 1) as i8);
    for (lines, out) in lines.as_chunks::<2>().0.iter().zip(out.chunks_exact_mut(2 * 8 / width)) {
        // SAFETY: lines are 64 bytes, aligned.
        let mut left = unsafe { lines.each_ref().map(|line| _mm512_load_si512(line.0.as_ptr().cast())) };
        for out in out.as_chunks_mut::<2>().0 {
            for (left, out) in left.iter_mut().zip(out) {
                // SAFETY: as above.
                unsafe { _mm512_store_si512(out.0.as_mut_ptr().cast(), _mm512_and_si512(*left, mask)) };
                *left = _mm512_srl_epi32(*left, _mm_cvtsi32_si128(width as i32));
            }
        }
    }
}
