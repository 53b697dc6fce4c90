//! Dot-product scores in register tiles.
//!
//! A score is one chain of fused multiply-adds over the dimension in index order that starts at the item's bias (0
//! without one). Every path below rounds that chain alike, so all give the same bytes. Items are packed once into
//! panels of [`COLUMNS`], queries into tiles of [`ROWS`]; a kernel computes one tile against one panel.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
mod kernels;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
pub mod quantised;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use kernels::SimdPath;

use std::ops::Range;

use self::quantised::{BytePanels, ByteTile, Catch, Lanes};
use crate::error::Error;
use crate::exec::Exec;

/// Queries in a tile.
pub const ROWS: usize = 12;
/// Items in a panel.
pub const COLUMNS: usize = 32;
/// Floats in a line of cache.
pub const LINE: usize = 16;

/// One cache line of floats, so that no load of a panel crosses two.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line(pub [f32; LINE]);

/// What the sums of a panel start at where items have no bias.
pub(crate) const NO_BIAS: [Line; 2] = [Line([0.0; LINE]); 2];

/// Scores of a tile: query by item.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub struct Tile(pub [[f32; COLUMNS]; ROWS]);

impl Default for Tile {
    fn default() -> Self {
        Tile([[0.0; COLUMNS]; ROWS])
    }
}

/// What a kernel sums over the dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// q * x
    Dot,
    /// -(q - x)^2
    Distance,
}

/// A row-major matrix of factors.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub dim: usize,
}

impl<'a> Matrix<'a> {
    pub fn new(data: &'a [f32], rows: usize, dim: usize) -> Self {
        assert_eq!(data.len(), rows * dim, "a matrix has rows x dim values");
        Matrix { data, rows, dim }
    }

    #[inline]
    pub fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.dim..(row + 1) * self.dim]
    }

    /// The largest magnitude; an error that names the first row with NaN or infinity.
    fn largest(&self, exec: Exec, what: &'static str) -> Result<f32, Error> {
        if self.data.is_empty() {
            return Ok(0.0);
        }
        let step = (65_536 / self.dim).max(1);
        let mut largest = vec![0.0f32; self.rows.div_ceil(step)];
        let tasks = self.data.chunks(step * self.dim).zip(&mut largest).enumerate();
        exec.each(
            tasks,
            || (),
            |(), (task, (rows, largest))| {
                // Magnitudes compare as integers, and NaN is the largest of them all.
                let bits = rows.iter().fold(0u32, |m, x| m.max(x.to_bits() & 0x7FFF_FFFF));
                if bits >= 0x7F80_0000 {
                    let bad = rows.iter().position(|x| !x.is_finite());
                    let row = task * step + bad.map_or(0, |place| place / self.dim);
                    return Err(Error::NotFinite { what, row });
                }
                *largest = f32::from_bits(bits);
                Ok(())
            },
        )?;
        Ok(largest.into_iter().fold(0.0, f32::max))
    }
}

/// The left factor of a product, made row by row.
pub(crate) trait Rows: Sync {
    /// Writes `columns` of a row.
    fn fill(&self, row: usize, columns: Range<usize>, out: &mut [f32]);
}

/// Refuses NaN and infinity by name, and factors whose scores would overflow.
pub fn check_finite(exec: Exec, queries: Matrix, items: Matrix, bias: Option<&[f32]>) -> Result<(), Error> {
    if queries.dim != items.dim {
        return Err(Error::Shape(format!(
            "queries have dim {}, items {}",
            queries.dim, items.dim
        )));
    }
    if items.rows > i32::MAX as usize {
        return Err(Error::Shape(format!("{} items do not fit int32 ids", items.rows)));
    }
    let q = queries.largest(exec, "queries")?;
    let x = items.largest(exec, "items")?;
    let mut b = 0.0;
    if let Some(bias) = bias {
        if bias.len() != items.rows {
            return Err(Error::Shape(format!("{} biases for {} items", bias.len(), items.rows)));
        }
        b = Matrix::new(bias, bias.len(), 1).largest(exec, "bias")?;
    }
    let bound = f64::from(q) * f64::from(x) * queries.dim as f64 + f64::from(b);
    if bound > f64::from(f32::MAX) / 2.0 {
        return Err(Error::Overflow {
            queries: q,
            items: x,
            dim: queries.dim,
        });
    }
    Ok(())
}

/// Items in panels: `panels x dim x COLUMNS`, with a bias each; columns past the last item have bias -infinity.
pub struct Panels {
    lines: Vec<Line>,
    bias: Vec<Line>,
    /// Largest length of a panel's vectors, rounded up.
    lengths: Vec<f32>,
    /// Largest bias of a panel, and what rounding can add to a score.
    offsets: Vec<f32>,
    pub items: usize,
    pub dim: usize,
}

impl Panels {
    /// Items in the order of their ids, or as `order` lists them.
    pub fn pack(exec: Exec, items: Matrix, bias: Option<&[f32]>, order: Option<&[i32]>) -> Result<Self, Error> {
        let panels = items.rows.div_ceil(COLUMNS);
        let per_panel = items.dim * (COLUMNS / LINE);
        let mut packed = Panels {
            lines: vec![Line([0.0; LINE]); panels * per_panel],
            bias: vec![Line([f32::NEG_INFINITY; LINE]); panels * (COLUMNS / LINE)],
            lengths: vec![0.0; panels],
            offsets: vec![0.0; panels],
            items: items.rows,
            dim: items.dim,
        };
        let id = |position: usize| order.map_or(position, |order| order[position] as usize);
        for position in 0..items.rows {
            packed.bias[position / LINE].0[position % LINE] = bias.map_or(0.0, |bias| bias[id(position)]);
        }
        if let Some(bias) = bias {
            for (panel, offset) in packed.offsets.iter_mut().enumerate() {
                let last = items.rows.min((panel + 1) * COLUMNS);
                let (top, size) = (panel * COLUMNS..last)
                    .map(|p| bias[id(p)])
                    .fold((f32::NEG_INFINITY, 0.0f32), |(top, size), b| {
                        (top.max(b), size.max(b.abs()))
                    });
                *offset = top + size * rounding(items.dim);
            }
        }
        // What underflow can add to a score.
        packed
            .offsets
            .iter_mut()
            .for_each(|offset| *offset += f32::MIN_POSITIVE);
        if per_panel == 0 {
            return Ok(packed);
        }
        const STEP: usize = 16;
        let tasks = packed
            .lines
            .chunks_mut(STEP * per_panel)
            .zip(packed.lengths.chunks_mut(STEP))
            .enumerate();
        exec.each(
            tasks,
            || (),
            |(), (task, (lines, lengths))| {
                for (offset, (lines, longest)) in lines.chunks_mut(per_panel).zip(lengths).enumerate() {
                    let first = (task * STEP + offset) * COLUMNS;
                    let mut squared = 0.0f64;
                    for column in 0..COLUMNS.min(items.rows - first) {
                        let (half, place) = (column / LINE, column % LINE);
                        let item = items.row(id(first + column));
                        for (line, &x) in lines[half..].iter_mut().step_by(2).zip(item) {
                            line.0[place] = x;
                        }
                        squared = squared.max(square(item));
                    }
                    *longest = length(squared);
                }
                Ok(())
            },
        )?;
        Ok(packed)
    }

    pub fn count(&self) -> usize {
        self.lengths.len()
    }

    #[inline]
    pub fn panel(&self, panel: usize) -> (&[Line], &[Line; 2]) {
        let per_panel = self.dim * (COLUMNS / LINE);
        let bias = self.bias[panel * 2..panel * 2 + 2]
            .try_into()
            .expect("two lines of bias a panel");
        (&self.lines[panel * per_panel..(panel + 1) * per_panel], bias)
    }
}

/// Sum of squares, to within a relative 1e-6.
#[inline]
pub fn square(row: &[f32]) -> f64 {
    const LANES: usize = 16;
    let mut sums = [0.0f64; LANES];
    let blocks = row.chunks_exact(LANES);
    let rest: f64 = blocks.remainder().iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    for block in blocks {
        for (sum, &x) in sums.iter_mut().zip(block) {
            *sum += f64::from(x) * f64::from(x);
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// Bound on the relative rounding error of a chain over `dim`, with room for what is computed from it.
#[inline]
pub fn rounding(dim: usize) -> f32 {
    (dim as f32 + 16.0) * f32::EPSILON
}

/// A float32 no less than the length whose square is `squared`.
#[inline]
pub fn length(squared: f64) -> f32 {
    (squared.sqrt() * (1.0 + 1e-6)) as f32
}

/// What a row of a tile must beat, and what bounds its scores.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct Goals {
    /// Scores at or above it survive; +infinity for a row without query.
    pub thresholds: [f32; LINE],
    /// Lengths of the queries, inflated so that `length * panel length + offset` bounds every computed score; +infinity
    /// where nothing is to be inferred.
    pub lengths: [f32; LINE],
}

impl Goals {
    /// By Cauchy and Schwarz, whether no score of the panel reaches its row's threshold.
    #[inline(always)]
    fn hopeless(&self, length: f32, offset: f32) -> bool {
        (0..LINE).all(|row| self.lengths[row].mul_add(length, offset) < self.thresholds[row])
    }
}

/// Takes in the scores that matter: row of the tile, position of the item, score; returns the row's threshold from then
/// on.
pub trait Sink {
    fn take(&mut self, row: usize, position: usize, score: f32) -> f32;
}

/// Makes room in the full catch of a query; returns the query's threshold from then on.
pub trait Net {
    fn relieve(&mut self, place: usize, threshold: f32, catch: &mut Catch) -> f32;
}

impl SimdPath {
    /// Scores the tile against panels `range`; what reaches its row's threshold goes to `sink`.
    #[inline]
    pub fn scan(
        self,
        form: Form,
        queries: &[f32],
        panels: &Panels,
        range: Range<usize>,
        goals: &mut Goals,
        sink: &mut impl Sink,
    ) {
        assert_eq!(queries.len(), panels.dim * ROWS, "tile and panels have one dim");
        assert!(range.end <= panels.count());
        #[cfg(target_arch = "x86_64")]
        if self.is_avx512() {
            // SAFETY: the path exists only if the processor has its features, and the sizes agree as asserted.
            unsafe { x86::scan_avx512(form, queries, panels, range, goals, sink) };
            return;
        }
        let mut tile = Tile::default();
        for panel in range {
            if goals.hopeless(panels.lengths[panel], panels.offsets[panel]) {
                continue;
            }
            let (lines, bias) = panels.panel(panel);
            self.tile(form, queries, lines, bias, &mut tile);
            for (row, scores) in tile.0.iter().enumerate() {
                let threshold = goals.thresholds[row];
                if scores.iter().fold(0, |any, &s| any | u32::from(s >= threshold)) == 0 {
                    continue;
                }
                for (column, &score) in scores.iter().enumerate() {
                    if score >= goals.thresholds[row] {
                        goals.thresholds[row] = sink.take(row, panel * COLUMNS + column, score);
                    }
                }
            }
        }
    }

    /// Catches every item whose score may reach its query's threshold, tile by tile; only with
    /// [`SimdPath::has_bytes`].
    pub fn scan_bytes(
        self,
        queries: &[ByteTile],
        panels: &BytePanels,
        goals: &mut [Goals],
        catches: &mut [Catch],
        net: &mut impl Net,
    ) {
        queries.iter().for_each(|queries| self.check_bytes(queries, panels));
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the instructions, and sizes and layout agree, as checked.
        unsafe {
            if panels.chunk > 0 {
                x86::scan_bytes::<true>(queries, panels, goals, catches, net);
            } else {
                x86::scan_bytes::<false>(queries, panels, goals, catches, net);
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = (goals, catches, net);
        }
    }

    /// Takes the approximate scores of a range of panels into `lanes`, but for those `seen`: position x 16 + row each,
    /// ascending, none before the range. Only with [`SimdPath::has_bytes`].
    pub fn sample_bytes(
        self,
        queries: &ByteTile,
        panels: &BytePanels,
        range: Range<usize>,
        seen: &[u64],
        lanes: &mut Lanes,
    ) {
        self.check_bytes(queries, panels);
        assert!(range.end <= panels.count());
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the instructions, and sizes and layout agree, as checked.
        unsafe {
            if panels.chunk > 0 {
                x86::sample_bytes::<true>(queries, panels, range, seen, lanes);
            } else {
                x86::sample_bytes::<false>(queries, panels, range, seen, lanes);
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = (seen, lanes);
        }
    }

    fn check_bytes(self, queries: &ByteTile, panels: &BytePanels) {
        assert_eq!(
            queries.bytes.len(),
            panels.groups * ROWS,
            "tile and panels have one dim"
        );
        assert!(self.has_bytes());
        assert!(panels.chunk == 0 || self.has_tiles() && panels.groups.is_multiple_of(panels.chunk));
    }
}

/// Packs up to [`ROWS`] queries into a tile, `[dim][ROWS]`.
pub fn pack_tile(queries: Matrix, ids: impl Iterator<Item = usize>, tile: &mut Vec<f32>) {
    tile.clear();
    tile.resize(queries.dim * ROWS, 0.0);
    for (row, id) in ids.take(ROWS).enumerate() {
        for (d, &x) in queries.row(id).iter().enumerate() {
            tile[d * ROWS + row] = x;
        }
    }
}
