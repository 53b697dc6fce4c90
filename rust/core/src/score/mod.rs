//! Dot-product scores in register tiles.
//!
//! A score is one chain of fused multiply-adds over the dimension in index order that starts at the item's bias (0
//! without one). Every path below rounds that chain alike, so all give the same bytes. Items are packed once into
//! panels of [`COLUMNS`], queries into tiles of [`ROWS`]; a kernel computes one tile against one panel.

mod kernels;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use kernels::SimdPath;

use crate::error::Error;
use crate::exec::Exec;

/// Queries in a tile.
pub const ROWS: usize = 12;
/// Items in a panel.
pub const COLUMNS: usize = 32;
/// Floats in a line of cache.
const LINE: usize = 16;

/// One cache line of floats, so that no load of a panel crosses two.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line(pub [f32; LINE]);

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
    pub items: usize,
    pub dim: usize,
}

impl Panels {
    pub fn pack(exec: Exec, items: Matrix, bias: Option<&[f32]>) -> Result<Self, Error> {
        let panels = items.rows.div_ceil(COLUMNS);
        let per_panel = items.dim * (COLUMNS / LINE);
        let mut packed = Panels {
            lines: vec![Line([0.0; LINE]); panels * per_panel],
            bias: vec![Line([f32::NEG_INFINITY; LINE]); panels * (COLUMNS / LINE)],
            items: items.rows,
            dim: items.dim,
        };
        for item in 0..items.rows {
            packed.bias[item / LINE].0[item % LINE] = bias.map_or(0.0, |bias| bias[item]);
        }
        if per_panel == 0 {
            return Ok(packed);
        }
        exec.each(
            packed.lines.chunks_mut(per_panel).enumerate(),
            || (),
            |(), (panel, lines)| {
                for column in 0..COLUMNS.min(items.rows - panel * COLUMNS) {
                    let (half, place) = (column / LINE, column % LINE);
                    for (line, &x) in lines[half..]
                        .iter_mut()
                        .step_by(2)
                        .zip(items.row(panel * COLUMNS + column))
                    {
                        line.0[place] = x;
                    }
                }
                Ok(())
            },
        )?;
        Ok(packed)
    }

    pub fn count(&self) -> usize {
        self.bias.len() / (COLUMNS / LINE)
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

/// Packs queries `first..first + ROWS` (as far as there are) into a tile, `[dim][ROWS]`.
pub fn pack_tile(queries: Matrix, first: usize, tile: &mut Vec<f32>) {
    tile.clear();
    tile.resize(queries.dim * ROWS, 0.0);
    for row in 0..ROWS.min(queries.rows - first) {
        for (d, &x) in queries.row(first + row).iter().enumerate() {
            tile[d * ROWS + row] = x;
        }
    }
}
