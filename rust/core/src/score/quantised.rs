//! Eight-bit upper bounds of scores, so that most of a catalogue is ruled out at a quarter of the cost.
//!
//! Queries and items are rounded to multiples of a scale of their own. The dot product of the integers, times both
//! scales, differs from the exact score by at most `|q - q'| |x| + |q'| |x - x'|` (Cauchy and Schwarz; primes mark the
//! rounded vectors) plus the rounding of the chain itself. A score that could reach its threshold is always passed on,
//! and is then computed exactly: the result does not depend on this module, only the time does. A bias is one more
//! dimension, in which every query has the same coordinate.

use std::ops::Range;

use super::{length, rounding, Line, Matrix, SimdPath, COLUMNS, LINE, ROWS};
use crate::error::Error;
use crate::exec::Exec;

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
            lines: vec![Bytes([[0; GROUP]; LINE]); panels * per_panel],
            starts: vec![[Sums([i32::MIN; LINE]); 2]; panels],
            bounds: vec![PanelBounds::default(); panels],
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

    /// By how much a sum's score may be off, for a row of a tile and a panel.
    #[inline(always)]
    pub fn error(&self, tile: &ByteTile, row: usize, panel: usize) -> f32 {
        let bounds = &self.bounds[panel];
        tile.per_length[row] * bounds.length + tile.per_error[row] * bounds.error + f32::MIN_POSITIVE
    }

    /// The score that a sum stands for, to within [`BytePanels::error`].
    #[inline(always)]
    pub fn score(&self, tile: &ByteTile, row: usize, panel: usize, sum: i32) -> f32 {
        sum as f32 * tile.scales[row] * self.bounds[panel].scale
    }
}

/// 1 / scale such that `largest` becomes 127; capped so that the product of two stays finite.
fn inverse_scale(largest: f32) -> f32 {
    (127.0 / largest).min(1e18)
}

/// The nearest integer of |x| <= 2^21: adding 1.5 * 2^23 leaves it in the low bits.
#[inline(always)]
fn nearest(x: f32) -> i32 {
    ((x.clamp(-127.0, 127.0) + 12_582_912.0).to_bits() as i32) - 12_582_912.0f32.to_bits() as i32
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
pub fn round(row: &[f32], inverse: f32, bytes: &mut [i8]) -> Rounded {
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
pub fn magnitude(row: &[f32]) -> f32 {
    f32::from_bits(row.iter().fold(0, |m, x| m.max(x.to_bits() & 0x7FFF_FFFF)))
}

/// Sums of a tile of queries and a panel.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub struct Totals(pub [[i32; COLUMNS]; ROWS]);

/// Panels whose sums are taken together.
pub const BATCH: usize = 4;

impl Totals {
    pub const ZERO: Totals = Totals([[0; COLUMNS]; ROWS]);
}

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

/// Leaves out the items whose bits are set in `seen`; `ids` are those of the positions.
#[inline(always)]
pub fn drop_seen(seen: &[u32], ids: &[i32], catch: &mut Catch) {
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
pub fn reaching(catch: &Catch, low: Range<f32>, up: f32, out: &mut Vec<u32>) {
    out.clear();
    for place in 0..catch.len {
        if low.contains(&catch.lows[place]) && catch.ups[place] >= up {
            out.push(catch.positions[place]);
        }
    }
}

/// The best approximate scores of a sample of panels: of each query, the largest of every `lanes` places. The g-th
/// largest of a row's lanes is reached by g items of the sample at least.
#[derive(Clone, Debug, Default)]
pub struct Lanes {
    lines: Vec<Line>,
    /// Panels after which a lane is used again.
    panels: usize,
}

impl Lanes {
    /// `panels` x 32 lanes a row, nothing in them.
    pub fn clear(&mut self, panels: usize) {
        self.panels = panels;
        self.lines.clear();
        self.lines
            .resize(ROWS * panels * (COLUMNS / LINE), Line([f32::NEG_INFINITY; LINE]));
    }

    pub fn panels(&self) -> usize {
        self.panels
    }

    /// The lines of a row.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &[Line] {
        let width = self.panels * (COLUMNS / LINE);
        &self.lines[row * width..(row + 1) * width]
    }

    /// Two lines of each row, [`Lanes::stride`] lines apart, that take in a panel.
    #[inline(always)]
    pub fn of_panel(&mut self, panel: usize) -> &mut [Line] {
        &mut self.lines[panel % self.panels * (COLUMNS / LINE)..]
    }

    pub fn stride(&self) -> usize {
        self.panels * (COLUMNS / LINE)
    }
}

/// The largest of the values that `keep` or more of them reach; `keep` > 0 and no more than there are.
#[inline(always)]
pub fn nth(values: &[u32], keep: usize) -> u32 {
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
pub fn places(keys: &[u64], places: &mut [u32]) {
    for (place, &key) in places.iter_mut().zip(keys) {
        *place = keys.iter().map(|&other| u32::from(other > key)).sum();
    }
}

/// A tile of queries as unsigned bytes, and what bounds its errors.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub struct ByteTile {
    /// 1 / scale of each query.
    pub inverse_scales: [f32; LINE],
    pub scales: [f32; LINE],
    /// Error for each unit of an item's length, and for each unit of an item's error.
    pub per_length: [f32; LINE],
    pub per_error: [f32; LINE],
    /// `[groups][ROWS]`, four bytes each; `[ROWS][groups]` for tile registers.
    pub bytes: Vec<[u8; GROUP]>,
}

impl Default for ByteTile {
    fn default() -> Self {
        ByteTile {
            inverse_scales: [1.0; LINE],
            scales: [1.0; LINE],
            per_length: [0.0; LINE],
            per_error: [0.0; LINE],
            bytes: Vec::new(),
        }
    }
}

impl ByteTile {
    pub fn pack(&mut self, queries: Matrix, ids: impl Iterator<Item = usize>, panels: &BytePanels, simd: SimdPath) {
        self.bytes.clear();
        self.bytes.resize(panels.groups * ROWS, [128; GROUP]);
        let mut padded = vec![0.0f32; panels.groups * GROUP];
        let mut rounded = vec![0i8; panels.groups * GROUP];
        for (row, id) in ids.take(ROWS).enumerate() {
            padded[..queries.dim].copy_from_slice(queries.row(id));
            if panels.unit > 0.0 {
                padded[queries.dim] = panels.unit;
            }
            let inverse = inverse_scale(simd.magnitude(&padded));
            let known = simd.round(&padded, inverse, &mut rounded);
            for (group, bytes) in rounded.as_chunks::<GROUP>().0.iter().enumerate() {
                let place = if panels.chunk > 0 {
                    row * panels.groups + group
                } else {
                    group * ROWS + row
                };
                self.bytes[place] = bytes.map(|byte| (byte as u8) ^ 128);
            }
            let kept: i64 = rounded.iter().map(|&byte| i64::from(byte) * i64::from(byte)).sum();
            self.inverse_scales[row] = inverse;
            self.scales[row] = 1.0 / inverse;
            let slack = rounding(queries.dim) * length(known.squared);
            self.per_length[row] = (length(known.squared_error) + slack) * 1.000_01;
            self.per_error[row] = length(kept as f64) / inverse * 1.000_01;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_the_nearest() {
        for (x, expected) in [
            (0.4, 0),
            (0.6, 1),
            (-0.6, -1),
            (126.7, 127),
            (-127.0, -127),
            (300.0, 127),
        ] {
            assert_eq!(nearest(x), expected);
        }
    }

    #[test]
    fn the_nth_is_reached_by_so_many() {
        for simd in SimdPath::NAMES.into_iter().filter_map(SimdPath::named) {
            for len in [1usize, 2, 15, 16, 17, 100] {
                let values: Vec<u32> = (0..len as u64).map(|c| crate::rng::at(3, c) as u32 % 40).collect();
                let mut sorted = values.clone();
                sorted.sort_unstable_by(|a, b| b.cmp(a));
                for keep in 1..=len {
                    let found = simd.nth(&values, keep);
                    let reached = values.iter().filter(|&&value| value >= found).count();
                    // Ties with the keep-th largest count, and nothing below it.
                    assert!(reached >= keep && found <= sorted[keep - 1]);
                    assert_eq!(
                        reached,
                        values.iter().filter(|&&value| value >= sorted[keep - 1]).count()
                    );
                }
            }
        }
    }

    #[test]
    fn seen_items_leave_a_catch_and_the_rest_stay_in_order() {
        for simd in SimdPath::NAMES.into_iter().filter_map(SimdPath::named) {
            for len in [0usize, 1, 15, 16, 17, 70] {
                let mut catch = Catch::default();
                catch.widen(100);
                for place in 0..len {
                    catch.positions[place] = 2 * place as u32;
                    (catch.lows[place], catch.ups[place]) = (place as f32, place as f32 + 2.0);
                }
                catch.len = len;
                let ids: Vec<i32> = (0..200).map(|position| 199 - position).collect();
                let mut seen = vec![0u32; 200usize.div_ceil(32)];
                let hidden = |position: u32| position.is_multiple_of(6);
                for position in (0..200).filter(|&position| hidden(position)) {
                    let id = ids[position as usize] as usize;
                    seen[id / 32] |= 1 << (id % 32);
                }
                simd.drop_seen(&seen, &ids, &mut catch);
                let expected: Vec<u32> = (0..len as u32).map(|place| 2 * place).filter(|&p| !hidden(p)).collect();
                assert_eq!(catch.positions[..catch.len], expected);
                let mut found = Vec::new();
                simd.reaching(&catch, 3.0..9.0, 6.0, &mut found);
                let within = |position: &u32| (4..9).contains(&(position / 2));
                assert_eq!(found, expected.into_iter().filter(within).collect::<Vec<_>>());
            }
        }
    }
}
