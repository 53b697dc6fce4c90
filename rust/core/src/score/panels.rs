//! Items as floats, packed once.

use super::{length, rounding, square, Line, COLUMNS, LINE};
use crate::error::Error;
use crate::exec::Exec;
use crate::matrix::Matrix;
use crate::room::filled;

/// Items in panels: `panels x dim x COLUMNS`, with a bias each; columns past the last item have bias -infinity.
pub struct Panels {
    lines: Vec<Line>,
    bias: Vec<Line>,
    /// Largest length of a panel's vectors, rounded up.
    pub(super) lengths: Vec<f32>,
    /// Largest bias of a panel, and what rounding can add to a score.
    pub(super) offsets: Vec<f32>,
    pub items: usize,
    pub dim: usize,
}

impl Panels {
    /// Items in the order of their ids, or as `order` lists them.
    pub fn pack(exec: Exec, items: Matrix, bias: Option<&[f32]>, order: Option<&[i32]>) -> Result<Self, Error> {
        let panels = items.rows.div_ceil(COLUMNS);
        let per_panel = items.dim * (COLUMNS / LINE);
        let mut packed = Panels {
            lines: filled(Line([0.0; LINE]), panels, per_panel)?,
            bias: filled(Line([f32::NEG_INFINITY; LINE]), panels, COLUMNS / LINE)?,
            lengths: filled(0.0, panels, 1)?,
            offsets: filled(0.0, panels, 1)?,
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
