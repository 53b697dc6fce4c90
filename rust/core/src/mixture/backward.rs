//! The way back from the gradient of the outputs.

use std::cmp::Reverse;

use super::forward::{active, Scratch};
use super::lists::{Lists, Pair};
use super::networks::Networks;
use super::panels::{blocks, clear, filled, straight, turned, Forward, Panel};
use crate::error::Error;
use crate::exec::Exec;
use crate::matrix::Matrix;
use crate::score::{pack_tile, Line, Tile, COLUMNS, LINE, NO_BIAS, ROWS};

/// Pairs of a network whose hidden values are held at a time: they stay in the second cache.
pub const CHUNK: usize = 16 * ROWS;

/// Gradients of what a mixture is made of, each in the shape of its own.
#[derive(Debug, PartialEq)]
pub struct MixtureGradient {
    pub source: Vec<f32>,
    pub shares: Vec<f32>,
    pub weight1: Vec<f32>,
    pub bias1: Vec<f32>,
    pub weight2: Vec<f32>,
    pub bias2: Vec<f32>,
}

/// The way back from the gradient of the outputs, `[entities, target]`.
pub fn mixture_gradient(
    exec: Exec,
    source: Matrix,
    shares: Matrix,
    networks: Networks,
    gradient: Matrix,
) -> Result<MixtureGradient, Error> {
    networks.check(source, shares, gradient.data.len())?;
    if gradient.rows != source.rows {
        return Err(Error::Shape(format!(
            "{} gradients of {} results",
            gradient.rows, source.rows
        )));
    }
    let (count, hidden) = (networks.count, networks.hidden);
    let mut found = MixtureGradient {
        source: vec![0.0; source.data.len()],
        shares: vec![0.0; shares.data.len()],
        weight1: vec![0.0; networks.weight1.len()],
        bias1: vec![0.0; networks.bias1.len()],
        weight2: vec![0.0; networks.weight2.len()],
        bias2: vec![0.0; networks.bias2.len()],
    };
    let lists = Lists::new(shares);
    let exec = exec.for_work(lists.work(networks));
    let mut to_pairs = vec![0.0; lists.pairs.len() * (networks.source + 1)];
    let mut rest = to_pairs.as_mut_slice();
    let mut tasks: Vec<_> = found
        .weight1
        .chunks_mut(networks.source * hidden)
        .zip(found.bias1.chunks_mut(hidden))
        .zip(found.weight2.chunks_mut(hidden * networks.target))
        .zip(found.bias2.chunks_mut(networks.target))
        .enumerate()
        .map(|(network, (((weight1, bias1), weight2), bias2))| {
            let own;
            (own, rest) = std::mem::take(&mut rest).split_at_mut(lists.of(network).len() * (networks.source + 1));
            let results = Results {
                weight1,
                bias1,
                weight2,
                bias2,
                pairs: own,
            };
            (network, results)
        })
        .collect();
    tasks.sort_by_key(|&(network, _)| Reverse(lists.of(network).len())); // the longest first, or others wait for it
    exec.each(
        tasks.into_iter(),
        || Backward::new(networks),
        |scratch, (network, results)| {
            if !lists.of(network).is_empty() {
                scratch.run(exec, source, gradient, networks, network, &lists, results);
            }
            Ok(())
        },
    )?;
    let step = lists.step(source.rows, exec.threads());
    let tasks = found
        .source
        .chunks_mut(step * networks.source)
        .zip(found.shares.chunks_mut(step * count))
        .enumerate();
    exec.each(
        tasks,
        || (),
        |(), (task, (to_source, to_shares))| {
            let entities = task * step..task * step + to_shares.len() / count;
            for network in 0..count {
                for place in lists.among(network, &entities) {
                    let row = lists.pairs[place].entity as usize - entities.start;
                    let values = &to_pairs[place * (networks.source + 1)..][..networks.source + 1];
                    let to_source = &mut to_source[row * networks.source..][..networks.source];
                    for (to_source, &value) in to_source.iter_mut().zip(values) {
                        *to_source += value;
                    }
                    to_shares[row * count + network] = values[networks.source];
                }
            }
            Ok(())
        },
    )?;
    Ok(found)
}

/// Where the gradients of a network go; of each pair those of the source and, last, of the share.
struct Results<'a> {
    weight1: &'a mut [f32],
    bias1: &'a mut [f32],
    weight2: &'a mut [f32],
    bias2: &'a mut [f32],
    pairs: &'a mut [f32],
}

/// What the way back through a network needs.
struct Backward {
    forward: Forward,
    first_turned: Vec<Panel>,
    second_turned: Vec<Panel>,
    scratch: Scratch,
    gradient: Vec<f32>,
    back_turned: Vec<f32>,
    /// Hidden units of a tile, times shares, `[ROWS][panels][COLUMNS]`.
    rows: Vec<f32>,
    other: Tile,
    /// Of a chunk of pairs: the gradients of outputs and of hidden units, in panels of depth pairs.
    outputs: Vec<Panel>,
    back: Vec<Panel>,
    /// Hidden units times shares, and the sources with a last value of 1, `[blocks of ROWS][pairs][ROWS]`.
    hidden: Vec<f32>,
    inputs: Vec<f32>,
    /// Sums over chunks, `[blocks of ROWS][panels]`: both layers, the bias as the last row.
    second_sums: Vec<Tile>,
    first_sums: Vec<Tile>,
}

impl Backward {
    fn new(networks: Networks) -> Self {
        let (units, inputs) = (networks.units(), networks.source + 1);
        let panels = units.div_ceil(COLUMNS);
        Backward {
            forward: Forward::default(),
            first_turned: Vec::new(),
            second_turned: Vec::new(),
            scratch: Scratch::default(),
            gradient: Vec::new(),
            back_turned: vec![0.0; panels * COLUMNS * ROWS],
            rows: Vec::new(),
            other: Tile::default(),
            outputs: Vec::new(),
            back: Vec::new(),
            hidden: Vec::new(),
            inputs: Vec::new(),
            second_sums: vec![Tile::default(); units.div_ceil(ROWS) * networks.target.div_ceil(COLUMNS)],
            first_sums: vec![Tile::default(); inputs.div_ceil(ROWS) * panels],
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn run(
        &mut self,
        exec: Exec,
        source: Matrix,
        gradient: Matrix,
        networks: Networks,
        network: usize,
        lists: &Lists,
        results: Results,
    ) {
        let (first, second) = (networks.first(network), networks.second(network));
        self.forward.pack_first(networks, network);
        turned(
            first.data.chunks_exact(first.dim),
            first.dim,
            first.rows,
            &mut self.first_turned,
        );
        let second_rows = second
            .data
            .chunks_exact(second.dim)
            .chain([networks.second_bias(network)]);
        turned(second_rows, second.dim, networks.units(), &mut self.second_turned);
        let pairs = &lists.pairs[lists.of(network)];
        let width = networks.source + 1;
        let chunks = pairs.chunks(CHUNK).zip(results.pairs.chunks_mut(CHUNK * width));
        for (place, (pairs, to_pairs)) in chunks.enumerate() {
            self.chunk(exec, source, gradient, networks, pairs, to_pairs, place > 0);
        }
        let (source, hidden) = (networks.source, networks.hidden);
        write_out(
            &self.second_sums,
            hidden,
            networks.target,
            results.weight2,
            results.bias2,
        );
        write_out(&self.first_sums, source, hidden, results.weight1, results.bias1);
    }

    /// Adds the gradients of a chunk of pairs to the sums, or begins them with it.
    #[allow(clippy::too_many_arguments)]
    fn chunk(
        &mut self,
        exec: Exec,
        source: Matrix,
        gradient: Matrix,
        networks: Networks,
        pairs: &[Pair],
        to_pairs: &mut [f32],
        on_top: bool,
    ) {
        let (depth, units, width) = (pairs.len(), networks.units(), networks.source + 1);
        clear(&mut self.back, units, depth);
        self.hidden.clear();
        self.hidden.resize(units.div_ceil(ROWS) * ROWS * depth, 0.0);
        let entities = || pairs.iter().map(|pair| pair.entity as usize);
        straight(
            entities().map(|e| gradient.row(e)),
            depth,
            gradient.dim,
            &mut self.outputs,
        );
        self.inputs.clear();
        self.inputs.resize(width.div_ceil(ROWS) * ROWS * depth, 0.0);
        for (place, row) in entities().map(|e| source.row(e)).enumerate() {
            blocks(row, place, depth, &mut self.inputs);
            self.inputs[(source.dim / ROWS * depth + place) * ROWS + source.dim % ROWS] = 1.0;
        }
        for (place, (pairs, to_pairs)) in pairs.chunks(ROWS).zip(to_pairs.chunks_mut(ROWS * width)).enumerate() {
            self.tile(exec, source, gradient, networks, pairs, place * ROWS, to_pairs);
        }
        for (left, right, columns, sums) in [
            (&self.hidden, &self.outputs, networks.target, &mut self.second_sums),
            (&self.inputs, &self.back, units, &mut self.first_sums),
        ] {
            for (left, sums) in left.chunks_exact(depth * ROWS).zip(sums.chunks_exact_mut(right.len())) {
                for (place, (right, sums)) in right.iter().zip(sums).enumerate() {
                    let columns = filled(place, columns);
                    if !on_top {
                        exec.simd.products_tile(left, right, &NO_BIAS, columns, sums);
                        continue;
                    }
                    exec.simd.products_tile(left, right, &NO_BIAS, columns, &mut self.other);
                    for (sum, value) in sums.0.as_flattened_mut().iter_mut().zip(self.other.0.as_flattened()) {
                        *sum += value;
                    }
                }
            }
        }
    }

    /// Hidden units and their gradients of up to [`ROWS`] pairs, from the one that is `start` of the chunk on, and what goes
    /// to sources and shares.
    #[allow(clippy::too_many_arguments)]
    fn tile(
        &mut self,
        exec: Exec,
        source: Matrix,
        gradient: Matrix,
        networks: Networks,
        pairs: &[Pair],
        start: usize,
        to_pairs: &mut [f32],
    ) {
        let (units, width) = (networks.units(), networks.source + 1);
        let entities = || pairs.iter().map(|pair| pair.entity as usize);
        pack_tile(source, entities(), &mut self.scratch.source);
        pack_tile(gradient, entities(), &mut self.gradient);
        self.rows.resize(self.back.len() * COLUMNS * ROWS, 0.0);
        let mut lanes = [[0.0f32; COLUMNS]; ROWS];
        for panel in 0..self.back.len() {
            let (first, bias) = (&self.forward.first[panel], &self.forward.bias[panel]);
            let before = &mut self.scratch.tile;
            let (second, columns) = (&self.second_turned[panel], filled(panel, units));
            exec.simd
                .products_tile(&self.scratch.source, first, bias, columns, before);
            let after = &mut self.other;
            exec.simd
                .products_tile(&self.gradient, second, &NO_BIAS, columns, after);
            for (row, pair) in pairs.iter().enumerate() {
                let hidden = &mut self.rows[(row * self.back.len() + panel) * COLUMNS..][..COLUMNS];
                let (values, gradients) = (&before.0[row], &mut after.0[row]);
                for column in 0..columns {
                    let own = active(values[column]);
                    lanes[row][column] += own * gradients[column];
                    hidden[column] = own * pair.share;
                    gradients[column] = if values[column] <= 0.0 {
                        0.0
                    } else {
                        gradients[column] * pair.share
                    };
                }
                let place = 2 * (start + row);
                for (line, values) in self.back[panel][place..]
                    .iter_mut()
                    .zip(gradients.as_chunks::<LINE>().0)
                {
                    *line = Line(*values);
                }
            }
            let turned = &mut self.back_turned[panel * COLUMNS * ROWS..][..COLUMNS * ROWS];
            for (column, turned) in turned.chunks_exact_mut(ROWS).enumerate() {
                for (turned, values) in turned.iter_mut().zip(&after.0) {
                    *turned = values[column];
                }
            }
        }
        let depth = self.hidden.len() / (units.div_ceil(ROWS) * ROWS);
        for row in 0..pairs.len() {
            let hidden = &self.rows[row * self.back.len() * COLUMNS..][..units];
            blocks(hidden, start + row, depth, &mut self.hidden);
        }
        for (lanes, to_pair) in lanes.iter().zip(to_pairs.chunks_exact_mut(width)) {
            to_pair[networks.source] = lanes.iter().sum();
        }
        // without the unit that depends on no source
        let back = &self.back_turned[..networks.hidden * ROWS];
        for (place, panel) in self.first_turned.iter().enumerate() {
            let columns = filled(place, networks.source);
            exec.simd.products_tile(back, panel, &NO_BIAS, columns, &mut self.other);
            for (values, to_pair) in self.other.0.iter().zip(to_pairs.chunks_exact_mut(width)) {
                let to_source = &mut to_pair[..networks.source][place * COLUMNS..];
                for (to_source, &value) in to_source.iter_mut().zip(values) {
                    *to_source = value;
                }
            }
        }
    }
}

/// Sums `[blocks of ROWS][panels]` of `rows` and one more row, of `columns` each.
fn write_out(sums: &[Tile], rows: usize, columns: usize, to_rows: &mut [f32], to_last: &mut [f32]) {
    let panels = columns.div_ceil(COLUMNS);
    for row in 0..=rows {
        let sums = &sums[row / ROWS * (sums.len() / (rows + 1).div_ceil(ROWS))..];
        let goal = match row < rows {
            true => &mut to_rows[row * columns..][..columns],
            false => &mut *to_last,
        };
        for (goal, sums) in goal.chunks_mut(COLUMNS).zip(&sums[..panels]) {
            goal.copy_from_slice(&sums.0[row % ROWS][..goal.len()]);
        }
    }
}
