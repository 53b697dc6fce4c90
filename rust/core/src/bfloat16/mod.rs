//! Products of float32 matrices in bfloat16: factors are rounded, sums are float32.
//!
//! Tile registers (AMX-BF16) multiply at sixteen times the rate of float32 vectors, if they are fed: the left factor is made where
//! it is needed ([`Rows`]), so that features need no array; the right one is packed once, or piece by piece where it is large.
//! Each value is summed in the order of the inner dimension, pair by pair as tile registers sum: the same bytes for any number of
//! threads and any instruction set.

#[cfg(target_arch = "x86_64")]
mod amx;
mod portable;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T1};
use std::ops::Range;

use crate::error::Error;
use crate::exec::Exec;
use crate::matrix::{Matrix, Rows};
use crate::simd::{compiled, SimdPath};

/// Rows and columns of a tile of sums.
pub(crate) const TILE: usize = 16;
/// Inner length of a tile.
const DEPTH: usize = 32;
/// Rows and columns of what a kernel computes at once: two by two tiles.
const BLOCK: usize = 2 * TILE;
/// Tiles of the inner dimension that are multiplied in one go: a block of columns that long stays in the first cache.
const STRETCH: usize = 8;
/// Rows of a task, at most.
const PANEL: usize = 256;
/// Sums of a task, unless a block of rows has more: they stay in the second cache.
const SUMS: usize = 1 << 18;
/// Bytes of the right factor that are packed at a time, unless one stretch of it has more.
const PACKED: usize = 16 << 20;

/// Two tiles of 16 by 32 bfloat16 numbers, a line of 16 pairs a row: a block's part of one depth of the inner dimension. Of the
/// left factor a line is 32 of the inner dimension of a row; of the right one, two of the inner dimension of 16 columns.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Tiles(pub [[[u32; TILE]; TILE]; 2]);

impl Tiles {
    const ZERO: Tiles = Tiles([[[0; TILE]; TILE]; 2]);
}

/// [`BLOCK`] by [`BLOCK`] sums, as tiles: upper left and right, lower left and right.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Sums(pub [[[f32; TILE]; TILE]; 4]);

impl Sums {
    const ZERO: Sums = Sums([[[0.0; TILE]; TILE]; 4]);

    /// The 16 values from column `half` times 16 on of a row.
    fn line(&mut self, row: usize, half: usize) -> &mut [f32; TILE] {
        &mut self.0[row / TILE * 2 + half][row % TILE]
    }
}

/// `left · right` into `out`, float32 `[rows, right.dim]`, for a left factor `[rows, right.rows]`.
pub(crate) fn product(exec: Exec, left: &impl Rows, rows: usize, right: Matrix, out: &mut [f32]) -> Result<(), Error> {
    let columns = right.dim;
    if rows.checked_mul(columns) != Some(out.len()) {
        return Err(Error::Shape(format!("{} values for {rows} x {columns}", out.len())));
    }
    if out.is_empty() || right.rows == 0 {
        out.fill(0.0);
        return Ok(());
    }
    let exec = exec.for_work(out.len().saturating_mul(right.rows) / 16);
    let (line, depth) = (columns.div_ceil(BLOCK), right.rows.div_ceil(DEPTH));
    let step = (PACKED / size_of::<Tiles>() / line).max(1).next_multiple_of(STRETCH);
    let mut packed = vec![Tiles::ZERO; step.min(depth) * line];
    // equal shares of the threads
    let most = (SUMS / (line * BLOCK)).clamp(BLOCK, PANEL);
    let tasks = rows.div_ceil(most).next_multiple_of(exec.threads());
    let panel = rows.div_ceil(tasks).next_multiple_of(BLOCK);
    for start in (0..depth).step_by(step) {
        let span = start..depth.min(start + step);
        let packed = &mut packed[..span.len() * line];
        exec.each(
            packed.chunks_mut(STRETCH * line).enumerate(),
            || (),
            |(), (place, tiles)| {
                exec.simd.pack_right(right, (start + place * STRETCH) * DEPTH, tiles);
                Ok(())
            },
        )?;
        let packed = &*packed;
        exec.each(
            out.chunks_mut(panel * columns).enumerate(),
            || Panel::new(panel, columns),
            |scratch, (task, out)| {
                scratch.load(out, start > 0);
                scratch.multiply(exec, left, task * panel, right.rows, span.clone(), packed);
                scratch.store(out);
                Ok(())
            },
        )?;
    }
    Ok(())
}

/// What a task needs beside its results.
struct Panel {
    rows: usize,
    columns: usize,
    /// `[blocks of rows][depth]`
    left: Vec<Tiles>,
    /// `[blocks of columns][blocks of rows]`
    sums: Vec<Sums>,
}

impl Panel {
    fn new(rows: usize, columns: usize) -> Self {
        let blocks = rows / BLOCK;
        Panel {
            rows: 0,
            columns,
            left: vec![Tiles::ZERO; blocks * STRETCH],
            sums: vec![Sums::ZERO; blocks * columns.div_ceil(BLOCK)],
        }
    }

    /// Begins with zeros, or with what stands in `out`.
    fn load(&mut self, out: &mut [f32], on_top: bool) {
        self.rows = out.len() / self.columns;
        match on_top {
            false => self.sums.fill(Sums::ZERO),
            true => self.each_line(out, |sums, out| sums[..out.len()].copy_from_slice(out)),
        }
    }

    fn store(&mut self, out: &mut [f32]) {
        self.each_line(out, |sums, out| out.copy_from_slice(&sums[..out.len()]));
    }

    /// Adds what tiles `span` of the inner dimension, `inner` in all, give; the panel's rows are those from `first` on.
    fn multiply(
        &mut self,
        exec: Exec,
        left: &impl Rows,
        first: usize,
        inner: usize,
        span: Range<usize>,
        packed: &[Tiles],
    ) {
        let (blocks, line) = (self.rows.div_ceil(BLOCK), self.columns.div_ceil(BLOCK));
        let ready = exec.simd.tiles_ready();
        for (start, packed) in span.clone().step_by(STRETCH).zip(packed.chunks(STRETCH * line)) {
            let depth = packed.len() / line;
            let columns = start * DEPTH..inner.min((start + depth) * DEPTH);
            if !self.rows.is_multiple_of(BLOCK) {
                self.left[self.rows / BLOCK * depth..][..depth].fill(Tiles::ZERO);
            }
            exec.simd
                .pack_left(left, first..first + self.rows, columns, depth, &mut self.left);
            let ahead = depth.div_ceil(blocks); // of the next block of columns, asked for while this one is multiplied
            for (place, (sums, right)) in self.sums.chunks_mut(blocks).zip(packed.chunks(depth)).enumerate() {
                let next = packed.chunks(depth).nth(place + 1).unwrap_or(&[]);
                let mut next = next.chunks(ahead);
                for (sums, left) in sums.iter_mut().zip(self.left.chunks(depth)) {
                    exec.simd.prefetch(next.next().unwrap_or(&[]));
                    exec.simd.tile_sums(&ready, left, right, sums);
                }
            }
        }
    }

    /// Every line of sums with the values of `out` that it stands for.
    fn each_line(&mut self, out: &mut [f32], each: impl Fn(&mut [f32; TILE], &mut [f32])) {
        let blocks = self.rows.div_ceil(BLOCK);
        for (row, out) in out.chunks_mut(self.columns).enumerate() {
            for (place, out) in out.chunks_mut(TILE).enumerate() {
                let sums = &mut self.sums[place / 2 * blocks + row / BLOCK];
                each(sums.line(row % BLOCK, place % 2), out);
            }
        }
    }
}

/// Two bfloat16 numbers, the first in the lower half of the word.
#[inline(always)]
fn pair(first: f32, second: f32) -> u32 {
    rounded(first) >> 16 | rounded(second)
}

/// The nearest bfloat16 number, ties to even, in the upper half of the word; NaN stays NaN.
#[inline(always)]
fn rounded(value: f32) -> u32 {
    const NUMBER: u32 = 0x7fff_ffff;
    const INFINITE: u32 = 0x7f80_0000;
    const QUIET: u32 = 0x0040_0000;
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let kept = if bits & NUMBER > INFINITE {
        bits | QUIET
    } else {
        nearest
    };
    kept & 0xffff_0000
}

compiled! {
    /// Rows of the left factor into tiles `[blocks of rows][depth]`; zeros beyond the columns.
    fn pack_left(left: &impl Rows, rows: Range<usize>, columns: Range<usize>, depth: usize, tiles: &mut [Tiles])
        = pack_left_rows;
    /// Rows from `first` on of the right factor into tiles `[blocks of columns][depth]`; zeros beyond.
    fn pack_right(right: Matrix, first: usize, tiles: &mut [Tiles]) = pack_right_rows;
}

impl SimdPath {
    /// Asks for tiles that will be needed soon.
    #[inline]
    fn prefetch(self, tiles: &[Tiles]) {
        #[cfg(target_arch = "x86_64")]
        for tile in tiles {
            for line in tile.0.as_flattened() {
                // SAFETY: every x86-64 processor has the instruction, which changes nothing but caches.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = tiles;
    }

    /// To be kept while [`SimdPath::tile_sums`] is called.
    fn tiles_ready(self) -> TilesReady {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a value of this path exists only if there are tile registers.
        return TilesReady(self.has_bfloat16_tiles().then(|| unsafe { amx::configured() }));
        #[cfg(not(target_arch = "x86_64"))]
        TilesReady
    }

    /// Adds `left · right` to a block of sums; `ready` is of this thread and of this path.
    fn tile_sums(self, ready: &TilesReady, left: &[Tiles], right: &[Tiles], sums: &mut Sums) {
        assert!(!left.is_empty() && left.len() == right.len());
        #[cfg(target_arch = "x86_64")]
        if ready.0.is_some() {
            // SAFETY: registers of the shapes that are needed are this thread's, for `ready` cannot leave it and nothing makes
            // another configuration while it lives; the factors are of one length, as just asserted.
            return unsafe { amx::tile_sums(left, right, sums) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = ready;
        portable::tile_sums(left, right, sums);
    }
}

/// Tile registers of a thread, where there are any, in the shapes that [`SimdPath::tile_sums`] needs.
#[cfg(target_arch = "x86_64")]
struct TilesReady(Option<crate::simd::amx::Configured>);
#[cfg(not(target_arch = "x86_64"))]
struct TilesReady;

/// Rows of the left factor into tiles `[blocks of rows][depth]`; zeros beyond the columns.
#[inline(always)]
fn pack_left_rows(left: &impl Rows, rows: Range<usize>, columns: Range<usize>, depth: usize, tiles: &mut [Tiles]) {
    let mut values = [0.0; STRETCH * DEPTH];
    for (place, row) in rows.enumerate() {
        left.fill(row, columns.clone(), &mut values[..columns.len()]);
        let tiles = &mut tiles[place / BLOCK * depth..][..depth];
        for (values, tiles) in values.as_chunks::<DEPTH>().0.iter().zip(tiles) {
            let line = std::array::from_fn(|k| pair(values[2 * k], values[2 * k + 1]));
            tiles.0[place % BLOCK / TILE][place % TILE] = line;
        }
    }
}

/// Rows from `first` on of the right factor into tiles `[blocks of columns][depth]`; zeros beyond.
#[inline(always)]
fn pack_right_rows(right: Matrix, first: usize, tiles: &mut [Tiles]) {
    let blocks = right.dim.div_ceil(BLOCK);
    let depth = tiles.len() / blocks;
    let row = |row: usize| if row < right.rows { right.row(row) } else { &[] };
    for line in 0..depth * TILE {
        let (upper, lower) = (row(first + 2 * line), row(first + 2 * line + 1));
        for place in 0..2 * blocks {
            let (upper, lower) = (sixteen(upper, place * TILE), sixteen(lower, place * TILE));
            let tiles = &mut tiles[place / 2 * depth + line / TILE];
            tiles.0[place % 2][line % TILE] = std::array::from_fn(|lane| pair(upper[lane], lower[lane]));
        }
    }
}

/// Values from `from` on, zeros where there are none.
#[inline(always)]
fn sixteen(row: &[f32], from: usize) -> [f32; TILE] {
    let mut values = [0.0; TILE];
    match row.get(from..from + TILE) {
        Some(whole) => values.copy_from_slice(whole),
        None => {
            let rest = row.get(from..).unwrap_or(&[]);
            values[..rest.len()].copy_from_slice(rest);
        }
    }
    values
}

#[cfg(test)]
mod tests;
