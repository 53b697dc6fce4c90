//! Vectors rounded to codes.
//!
//! For given levels v of a row x the best scale is <x, v> / <v, v>, and leaves |x|^2 - <x, v>^2 / <v, v>; levels are those of the best of
//! some steps. Sums run in the order of the coordinates, in float64.

use super::rotation::{read, Column, Rotation, LANES};
use super::{check_kind, EIGHT};
use crate::error::Error;
use crate::exec::Exec;
use crate::room::filled;
use crate::simd::compiled;

/// So many scales of a range are tried, for 2 to 4 bits.
const STEPS: usize = 16;

/// Packed codes, and scales: not finite where a row is too long for a float32 scale.
pub type Rounded = (Vec<u8>, Vec<f32>);

/// Rows of `dim` as codes of `bits` bits; turned first if there is a rotation.
pub fn rounded(
    exec: Exec,
    rows: &[f32],
    dim: usize,
    rotation: Option<&Rotation>,
    bits: usize,
) -> Result<Rounded, Error> {
    check_kind(dim, bits)?;
    let (count, stride) = (rows.len().checked_div(dim).unwrap_or(0), (dim * bits).div_ceil(8));
    let mut data = filled(0u8, count, stride)?;
    let mut scales = filled(0.0f32, count, 1)?;
    if count == 0 {
        return Ok((data, scales));
    }
    let steps = steps(bits);
    let tasks = rows
        .chunks(LANES * dim)
        .zip(data.chunks_mut(LANES * stride))
        .zip(scales.chunks_mut(LANES));
    exec.for_work(16 * rows.len()).each(
        tasks,
        || (vec![Column::ZERO; dim], vec![[0i8; LANES]; dim], vec![0i8; dim]),
        |(columns, levels, row), ((rows, data), scales)| {
            match rotation {
                Some(rotation) => rotation.turn(exec, rows, columns),
                None => read(rows, columns, |d| d),
            }
            let mut found = Column::ZERO;
            exec.simd.round_columns(bits, &steps, columns, levels, &mut found);
            for (lane, (data, scale)) in data.chunks_mut(stride).zip(scales).enumerate() {
                *scale = found.0[lane] as f32;
                for (level, levels) in row.iter_mut().zip(&*levels) {
                    *level = levels[lane];
                }
                pack_row(bits, row, data);
            }
            Ok(())
        },
    )?;
    Ok((data, scales))
}

/// Rows of `dim` levels, packed; each must be one of `bits` bits.
pub fn packed(exec: Exec, levels: &[i8], dim: usize, bits: usize) -> Result<Vec<u8>, Error> {
    const STEP: usize = 256;
    check_kind(dim, bits)?;
    let (count, stride) = (levels.len().checked_div(dim).unwrap_or(0), (dim * bits).div_ceil(8));
    let mut data = filled(0u8, count, stride)?;
    if count == 0 {
        return Ok(data);
    }
    exec.for_work(levels.len()).each(
        data.chunks_mut(STEP * stride).zip(levels.chunks(STEP * dim)),
        || (),
        |(), (data, levels)| {
            for (data, levels) in data.chunks_mut(stride).zip(levels.chunks(dim)) {
                pack_row(bits, levels, data);
            }
            Ok(())
        },
    )?;
    Ok(data)
}

/// Scales that are tried: of the row's root mean square (the best for normal coordinates is .498, .293, .168 at 2, 3, 4 bits), or of its
/// largest magnitude for eight bits.
fn steps(bits: usize) -> Vec<f64> {
    let (from, to) = match bits {
        1 => return Vec::new(),
        2 => (0.32, 0.72),
        3 => (0.14, 0.44),
        4 => (0.08, 0.26),
        _ => return [1.0, 0.95, 0.9].map(|part| part / 127.0).to_vec(),
    };
    let apart = (to - from) / (STEPS - 1) as f64;
    let step = |place: usize| match place {
        place if place + 1 == STEPS => to,
        place => place as f64 * apart + from,
    };
    (0..STEPS).map(step).collect()
}

fn pack_row(bits: usize, levels: &[i8], data: &mut [u8]) {
    if bits == EIGHT {
        data.iter_mut()
            .zip(levels)
            .for_each(|(byte, &level)| *byte = level as u8);
        return;
    }
    let middle = (1i16 << bits) - 1;
    let (mut word, mut held, mut data) = (0u32, 0, data.iter_mut());
    for &level in levels {
        word |= ((i16::from(level) + middle) as u32 >> 1) << held;
        held += bits;
        if held >= 8 {
            *data.next().expect("a byte for eight bits") = word as u8;
            word >>= 8;
            held -= 8;
        }
    }
    if let Some(byte) = data.next() {
        *byte = word as u8;
    }
}

compiled! {
    /// Levels and scales of columns.
    fn round_columns(
        bits: usize,
        steps: &[f64],
        columns: &[Column],
        levels: &mut [[i8; LANES]],
        scales: &mut Column,
    ) = round_columns;
}

#[inline(always)]
fn round_columns(bits: usize, steps: &[f64], columns: &[Column], levels: &mut [[i8; LANES]], scales: &mut Column) {
    match bits {
        1 => round_signs(columns, levels, scales),
        2 => round_tried::<2>(steps, columns, levels, scales),
        3 => round_tried::<3>(steps, columns, levels, scales),
        4 => round_tried::<4>(steps, columns, levels, scales),
        _ => round_tried::<8>(steps, columns, levels, scales),
    }
}

#[inline(always)]
fn round_signs(columns: &[Column], levels: &mut [[i8; LANES]], scales: &mut Column) {
    let mut sums = [0.0; LANES];
    for (column, levels) in columns.iter().zip(levels) {
        for lane in 0..LANES {
            sums[lane] += column.0[lane].abs();
            levels[lane] = if column.0[lane] >= 0.0 { 1 } else { -1 };
        }
    }
    scales.0 = sums.map(|sum| sum / columns.len().max(1) as f64);
}

#[inline(always)]
fn round_tried<const BITS: usize>(steps: &[f64], columns: &[Column], levels: &mut [[i8; LANES]], scales: &mut Column) {
    let mut sizes = [0.0f64; LANES];
    for column in columns {
        for (size, &x) in sizes.iter_mut().zip(&column.0) {
            *size = match BITS {
                EIGHT => size.max(x.abs()),
                _ => *size + x * x,
            };
        }
    }
    if BITS < EIGHT {
        sizes = sizes.map(|sum| (sum / columns.len().max(1) as f64).sqrt());
    }
    let units = sizes.map(|size| if size > 0.0 { size } else { 1.0 });
    let (mut best, mut tried) = ([-1.0; LANES], [1.0; LANES]);
    let mut own = [0.0; LANES];
    for place in 0..=steps.len() {
        // The last step is the best scale so far.
        let step = match steps.get(place) {
            Some(factor) => units.map(|unit| unit * factor),
            None => own.map(|scale| if scale > 0.0 { scale } else { 1.0 }),
        };
        let (mut products, mut squares) = ([0.0; LANES], [0.0; LANES]);
        for column in columns {
            for lane in 0..LANES {
                let level = level::<BITS>(column.0[lane], step[lane]);
                products[lane] += level * column.0[lane];
                squares[lane] += level * level;
            }
        }
        for lane in 0..LANES {
            let square = if squares[lane] > 1.0 { squares[lane] } else { 1.0 };
            let kept = products[lane] * products[lane] / square;
            if kept > best[lane] {
                (best[lane], tried[lane], own[lane]) = (kept, step[lane], products[lane] / square);
            }
        }
    }
    for (column, levels) in columns.iter().zip(levels) {
        for lane in 0..LANES {
            levels[lane] = level::<BITS>(column.0[lane], tried[lane]) as i8;
        }
    }
    for lane in 0..LANES {
        scales.0[lane] = if sizes[lane] > 0.0 { own[lane] } else { 0.0 };
    }
}

/// The nearest level, in units of the step.
#[inline(always)]
fn level<const BITS: usize>(x: f64, step: f64) -> f64 {
    let within = |level: f64, low: f64, high: f64| {
        let level = if level > low { level } else { low };
        if level < high {
            level
        } else {
            high
        }
    };
    if BITS == EIGHT {
        return within((x / step).round_ties_even(), -127.0, 127.0);
    }
    let half = (1u32 << (BITS - 1)) as f64;
    2.0 * within((x / (2.0 * step)).floor(), -half, half - 1.0) + 1.0
}
