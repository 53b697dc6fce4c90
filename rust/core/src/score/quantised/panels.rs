//! Items as bytes.

use crate::error::Error;
use crate::exec::Exec;
use crate::matrix::Matrix;
use crate::room::filled;
use crate::score::{length, COLUMNS, LINE};
use crate::simd::compiled;

/// Dimensions that one 32-bit lane holds.
pub const GROUP: usize = 4;
/// Groups that a tile register holds at most.
const CHUNK: usize = 16;
/// Fewer groups are multiplied sooner by vector instructions than tiles are stored.
const WORTHWHILE: usize = 8;
/// Past this, sums of products of bytes could leave 32 bits.
const MAX_DIM: usize = 1 << 16;

/// One cache line: four dimensions of sixteen items.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub [[i8; GROUP]; LINE]);

/// One cache line of sums.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Sums(pub [i32; LINE]);

/// What bounds the scores of a panel's items.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default)]
pub struct PanelBounds {
    pub inverse_scale: f32,
    pub scale: f32,
    /// The longest vector.
    pub length: f32,
    /// The longest rounding error.
    pub error: f32,
}

/// Items as signed bytes in panels.
pub struct BytePanels {
    pub lines: Vec<Bytes>,
    /// -128 times the sum of an item's bytes, which undoes the offset of the unsigned queries; the least integer for
    /// columns past the last item, which then never pass.
    pub starts: Vec<[Sums; 2]>,
    pub bounds: Vec<PanelBounds>,
    /// Groups of four dimensions.
    pub groups: usize,
    /// Groups that a tile register takes at once; 0 where there are none, and then queries are laid out differently.
    pub chunk: usize,
    /// The queries' coordinate in the dimension of the bias; 0 without bias.
    pub unit: f32,
    pub items: usize,
}

impl BytePanels {
    /// Whether the sums of `dim` dimensions and a bias fit.
    pub fn fits(dim: usize) -> bool {
        dim < MAX_DIM
    }

    pub fn pack(exec: Exec, items: Matrix, bias: Option<&[f32]>, order: &[i32], unit: f32) -> Result<Self, Error> {
        let unit = if bias.is_some() { unit } else { 0.0 };
        let panels = items.rows.div_ceil(COLUMNS);
        let groups = (items.dim + usize::from(bias.is_some())).div_ceil(GROUP);
        let (groups, chunk) = if exec.simd.has_tiles() && groups >= WORTHWHILE {
            // As few chunks as there can be, all alike.
            let chunks = groups.div_ceil(CHUNK);
            let chunk = groups.div_ceil(chunks);
            (chunk * chunks, chunk)
        } else {
            (groups, 0)
        };
        let per_panel = groups * 2;
        let mut packed = BytePanels {
            lines: filled(Bytes([[0; GROUP]; LINE]), panels, per_panel)?,
            starts: filled([Sums([i32::MIN; LINE]); 2], panels, 1)?,
            bounds: filled(PanelBounds::default(), panels, 1)?,
            groups,
            chunk,
            unit,
            items: items.rows,
        };
        const STEP: usize = 16;
        let tasks = packed
            .lines
            .chunks_mut((STEP * per_panel).max(1))
            .zip(packed.starts.chunks_mut(STEP))
            .zip(packed.bounds.chunks_mut(STEP))
            .enumerate();
        let scratch = || (vec![0.0f32; groups * GROUP], vec![0i8; groups * GROUP]);
        exec.each(tasks, scratch, |(row, bytes), (task, ((lines, starts), bounds))| {
            for (offset, lines) in lines.chunks_mut(per_panel).enumerate() {
                let first = (task * STEP + offset) * COLUMNS;
                let ids = &order[first..items.rows.min(first + COLUMNS)];
                let extra = |id: i32| bias.map(|bias| bias[id as usize] / unit);
                let mut largest = 0.0f32;
                for &id in ids {
                    largest = largest.max(exec.simd.magnitude(items.row(id as usize)));
                    largest = largest.max(extra(id).unwrap_or(0.0).abs());
                }
                let inverse = inverse_scale(largest);
                let (mut longest, mut error) = (0.0f64, 0.0f64);
                for (column, &id) in ids.iter().enumerate() {
                    row[..items.dim].copy_from_slice(items.row(id as usize));
                    if let Some(extra) = extra(id) {
                        row[items.dim] = extra;
                    }
                    let rounded = exec.simd.round(row, inverse, bytes);
                    let (half, place) = (column / LINE, column % LINE);
                    for (line, bytes) in lines[half..].iter_mut().step_by(2).zip(bytes.as_chunks().0) {
                        line.0[place] = *bytes;
                    }
                    starts[offset][half].0[place] = -128 * rounded.sum;
                    longest = longest.max(rounded.squared);
                    error = error.max(rounded.squared_error);
                }
                bounds[offset] = PanelBounds {
                    inverse_scale: inverse,
                    scale: 1.0 / inverse,
                    length: length(longest),
                    error: length(error),
                };
            }
            Ok(())
        })?;
        Ok(packed)
    }

    pub fn count(&self) -> usize {
        self.starts.len()
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.lines) + size_of_val(&*self.starts) + size_of_val(&*self.bounds)
    }
}

/// 1 / scale such that `largest` becomes 127; capped so that the product of two stays finite.
pub(super) fn inverse_scale(largest: f32) -> f32 {
    (127.0 / largest).min(1e18)
}

/// The nearest integer of |x| <= 2^21: adding 1.5 * 2^23 leaves it in the low bits.
#[inline(always)]
pub(super) fn nearest(x: f32) -> i32 {
    ((x.clamp(-127.0, 127.0) + 12_582_912.0).to_bits() as i32) - 12_582_912.0f32.to_bits() as i32
}

compiled! {
    /// Writes the nearest multiples of 1 / `inverse`.
    pub(crate) fn round(row: &[f32], inverse: f32, bytes: &mut [i8]) -> Rounded = round;
    /// The largest magnitude of finite values.
    pub(crate) fn magnitude(row: &[f32]) -> f32 = magnitude;
}

/// What is known of a rounded row.
#[derive(Clone, Copy, Debug)]
pub struct Rounded {
    pub sum: i32,
    pub squared: f64,
    pub squared_error: f64,
}

/// Writes the nearest multiples of 1 / `inverse`.
#[inline(always)]
fn round(row: &[f32], inverse: f32, bytes: &mut [i8]) -> Rounded {
    const LANES: usize = 8;
    let scale = 1.0 / f64::from(inverse);
    let (mut sums, mut squares, mut errors) = ([0i32; LANES], [0.0f64; LANES], [0.0f64; LANES]);
    let mut put = |lane: usize, x: f32, byte: &mut i8| {
        let value = nearest(x * inverse);
        *byte = value as i8;
        sums[lane] += value;
        squares[lane] += f64::from(x) * f64::from(x);
        let error = f64::from(x) - f64::from(value) * scale;
        errors[lane] += error * error;
    };
    let whole = row.len() / LANES * LANES;
    for (row, bytes) in row[..whole]
        .as_chunks::<LANES>()
        .0
        .iter()
        .zip(bytes.as_chunks_mut::<LANES>().0)
    {
        for lane in 0..LANES {
            put(lane, row[lane], &mut bytes[lane]);
        }
    }
    for (&x, byte) in row[whole..].iter().zip(&mut bytes[whole..]) {
        put(0, x, byte);
    }
    Rounded {
        sum: sums.iter().sum(),
        squared: squares.iter().sum(),
        squared_error: errors.iter().sum(),
    }
}

/// The largest magnitude of finite values.
#[inline(always)]
fn magnitude(row: &[f32]) -> f32 {
    f32::from_bits(row.iter().fold(0, |m, x| m.max(x.to_bits() & 0x7FFF_FFFF)))
}
