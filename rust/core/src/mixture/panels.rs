//! Layers and batches in panels and tiles.

use super::networks::Networks;
use crate::score::{Line, COLUMNS, LINE, NO_BIAS, ROWS};

/// What the way to the outputs needs of a network: its layers in panels of [`COLUMNS`].
#[derive(Default)]
pub struct Forward {
    pub first: Vec<Panel>,
    pub bias: Vec<[Line; 2]>,
    pub second: Vec<Panel>,
}

pub type Panel = Vec<Line>;

impl Forward {
    pub fn pack(&mut self, networks: Networks, network: usize) {
        self.pack_first(networks, network);
        let (second, bias) = (networks.second(network), networks.second_bias(network));
        let rows = second.data.chunks_exact(second.dim).chain([bias]);
        straight(rows, networks.units(), second.dim, &mut self.second);
    }

    /// The first layer, with the unit that is always 1.
    pub fn pack_first(&mut self, networks: Networks, network: usize) {
        let (first, bias) = (networks.first(network), networks.first_bias(network));
        straight(
            first.data.chunks_exact(first.dim),
            first.rows,
            networks.units(),
            &mut self.first,
        );
        self.bias.clear();
        self.bias.resize(self.first.len(), NO_BIAS);
        for (unit, &bias) in bias.iter().chain([&1.0]).enumerate() {
            self.bias[unit / COLUMNS][unit % COLUMNS / LINE].0[unit % LINE] = bias;
        }
    }
}

/// Rows, which may be shorter than `columns`, into panels of depth `depth`.
pub fn straight<'a>(rows: impl Iterator<Item = &'a [f32]>, depth: usize, columns: usize, panels: &mut Vec<Panel>) {
    clear(panels, columns, depth);
    for (d, row) in rows.enumerate() {
        let (whole, rest) = row.as_chunks::<LINE>();
        for (place, &values) in whole.iter().enumerate() {
            panels[place / 2][2 * d + place % 2] = Line(values);
        }
        if !rest.is_empty() {
            panels[whole.len() / 2][2 * d + whole.len() % 2].0[..rest.len()].copy_from_slice(rest);
        }
    }
}

/// Rows as the columns of panels of depth `depth`.
pub fn turned<'a>(mut rows: impl Iterator<Item = &'a [f32]>, depth: usize, columns: usize, panels: &mut Vec<Panel>) {
    clear(panels, columns, depth);
    for place in 0..columns.div_ceil(LINE) {
        let lines = &mut panels[place / 2][place % 2..];
        let own: [&[f32]; LINE] = std::array::from_fn(|_| rows.next().unwrap_or_default());
        if !own[LINE - 1].is_empty() {
            turn(own, lines);
            continue;
        }
        for (column, row) in own.into_iter().enumerate() {
            for (line, &value) in lines.iter_mut().step_by(2).zip(row) {
                line.0[column] = value;
            }
        }
    }
}

/// Sixteen rows as the columns of every second line.
fn turn(rows: [&[f32]; LINE], lines: &mut [Line]) {
    let blocks = rows.map(|row| row.as_chunks::<LINE>().0);
    let whole = blocks[0].len();
    for block in 0..whole {
        let square: [[f32; LINE]; LINE] = std::array::from_fn(|row| blocks[row][block]);
        let goals = lines[2 * block * LINE..].iter_mut().step_by(2);
        for (d, line) in goals.take(LINE).enumerate() {
            *line = Line(std::array::from_fn(|row| square[row][d]));
        }
    }
    for d in whole * LINE..rows[0].len() {
        lines[2 * d] = Line(std::array::from_fn(|row| rows[row][d]));
    }
}

/// Columns of a panel, of `columns` in all.
pub fn filled(panel: usize, columns: usize) -> usize {
    COLUMNS.min(columns - panel * COLUMNS)
}

pub fn clear(panels: &mut Vec<Panel>, columns: usize, depth: usize) {
    panels.resize_with(columns.div_ceil(COLUMNS), Vec::new);
    for panel in panels {
        panel.clear();
        panel.resize(2 * depth, Line([0.0; LINE]));
    }
}

/// A row to its place among `depth` in blocks of [`ROWS`] values, `[blocks][depth][ROWS]`.
#[inline(always)]
pub fn blocks(row: &[f32], place: usize, depth: usize, out: &mut [f32]) {
    let (whole, rest) = row.as_chunks::<ROWS>();
    for (block, values) in whole.iter().enumerate() {
        out[(block * depth + place) * ROWS..][..ROWS].copy_from_slice(values);
    }
    if !rest.is_empty() {
        out[(whole.len() * depth + place) * ROWS..][..rest.len()].copy_from_slice(rest);
    }
}
