//! Mixtures of small networks, `Σ_m q_m (relu(x W1_m + b1_m) W2_m + b2_m)`, and their gradients.
//!
//! An entity whose share of a network is 0 takes no part in it, so the cost is that of the pairs that are left. The second bias
//! is the weight of one more hidden unit, which is 1 for every finite source; so there are products alone, done in the tiles of [`crate::score`]:
//! chains of fused multiply-adds in the order of the inner dimension, an entity's networks and a network's [`CHUNK`]s of entities
//! added up in order. So all paths and any number of threads give the same bytes.

use std::cmp::Reverse;
use std::ops::Range;

use crate::error::Error;
use crate::exec::Exec;
use crate::score::{pack_tile, Line, Matrix, Tile, COLUMNS, LINE, NO_BIAS, ROWS};

/// Pairs of a network whose hidden values are held at a time in the way back: they stay in the second cache.
const CHUNK: usize = 16 * ROWS;
/// Pairs of a task of entities and a network, at least and on average: fewer would leave tiles half empty.
const PAIRS: usize = 2 * ROWS;
/// Tasks of entities a thread, at most.
const TASKS: usize = 4;

/// Networks of one shape, each Linear, ReLU, Linear.
#[derive(Clone, Copy, Debug)]
pub struct Networks<'a> {
    count: usize,
    source: usize,
    hidden: usize,
    target: usize,
    weight1: &'a [f32],
    bias1: &'a [f32],
    weight2: &'a [f32],
    bias2: &'a [f32],
}

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

impl<'a> Networks<'a> {
    /// Weights `[count, source, hidden]` and `[count, hidden, target]`, biases `[count, hidden]` and `[count, target]`.
    pub fn new(
        sizes: [usize; 4],
        weight1: &'a [f32],
        bias1: &'a [f32],
        weight2: &'a [f32],
        bias2: &'a [f32],
    ) -> Result<Self, Error> {
        let [count, source, hidden, target] = sizes;
        if sizes.contains(&0) {
            return Err(Error::Shape(format!(
                "{count} networks from {source} by {hidden} to {target} dimensions"
            )));
        }
        let found = [weight1.len(), bias1.len(), weight2.len(), bias2.len()];
        let expected = [
            count * source * hidden,
            count * hidden,
            count * hidden * target,
            count * target,
        ];
        if found != expected {
            return Err(Error::Shape(format!("{found:?} weights and biases for {expected:?}")));
        }
        Ok(Networks {
            count,
            source,
            hidden,
            target,
            weight1,
            bias1,
            weight2,
            bias2,
        })
    }

    fn first(&self, network: usize) -> Matrix<'a> {
        let size = self.source * self.hidden;
        Matrix::new(&self.weight1[network * size..][..size], self.source, self.hidden)
    }

    fn first_bias(&self, network: usize) -> &'a [f32] {
        &self.bias1[network * self.hidden..][..self.hidden]
    }

    fn second(&self, network: usize) -> Matrix<'a> {
        let size = self.hidden * self.target;
        Matrix::new(&self.weight2[network * size..][..size], self.hidden, self.target)
    }

    fn second_bias(&self, network: usize) -> &'a [f32] {
        &self.bias2[network * self.target..][..self.target]
    }

    /// Hidden units, the constant one among them.
    fn units(&self) -> usize {
        self.hidden + 1
    }

    fn check(&self, source: Matrix, shares: Matrix, results: usize) -> Result<(), Error> {
        let sizes = source.dim == self.source && shares.dim == self.count && shares.rows == source.rows;
        if !sizes || results != source.rows * self.target {
            return Err(Error::Shape(format!(
                "vectors {} x {}, shares {} x {} and {results} results for {} networks from {} to {}",
                source.rows, source.dim, shares.rows, shares.dim, self.count, self.source, self.target
            )));
        }
        if u32::try_from(source.rows).is_err() {
            return Err(Error::Shape(format!("{} entities do not fit 32 bits", source.rows)));
        }
        Ok(())
    }
}

/// The mixed outputs, float32 `[entities, target]`; `source` is `[entities, source]`, `shares` `[entities, networks]`.
pub fn mixture(exec: Exec, source: Matrix, shares: Matrix, networks: Networks, out: &mut [f32]) -> Result<(), Error> {
    networks.check(source, shares, out.len())?;
    out.fill(0.0);
    let lists = Lists::new(shares);
    let exec = exec.for_work(lists.work(networks));
    let step = lists.step(source.rows, exec.threads());
    exec.each(
        out.chunks_mut(step * networks.target).enumerate(),
        || (Forward::default(), Scratch::default()),
        |(packed, scratch), (task, out)| {
            let entities = task * step..task * step + out.len() / networks.target;
            for network in 0..networks.count {
                let pairs = &lists.pairs[lists.among(network, &entities)];
                if pairs.is_empty() {
                    continue;
                }
                packed.pack(networks, network);
                for pairs in pairs.chunks(ROWS) {
                    scratch.activate(exec, source, pairs, packed, networks);
                    for (place, panel) in packed.second.iter().enumerate() {
                        let (hidden, columns) = (&scratch.hidden, filled(place, networks.target));
                        exec.simd
                            .products_tile(hidden, panel, &NO_BIAS, columns, &mut scratch.tile);
                        for (pair, values) in pairs.iter().zip(&scratch.tile.0) {
                            let row = pair.entity as usize - entities.start;
                            let out = &mut out[row * networks.target..][..networks.target][place * COLUMNS..];
                            for (out, &value) in out.iter_mut().zip(values) {
                                *out += value;
                            }
                        }
                    }
                }
            }
            Ok(())
        },
    )
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

/// An entity that takes part in a network.
#[derive(Clone, Copy, Debug, Default)]
struct Pair {
    entity: u32,
    share: f32,
}

/// The pairs of each network, in the order of entities.
struct Lists {
    starts: Vec<usize>,
    pairs: Vec<Pair>,
}

impl Lists {
    fn new(shares: Matrix) -> Self {
        let mut next = vec![0usize; shares.dim + 1];
        // Not a comparison by size, which would lose NaN.
        let takes_part = |share: f32| share != 0.0;
        for row in shares.data.chunks_exact(shares.dim) {
            for (next, &share) in next[1..].iter_mut().zip(row) {
                *next += usize::from(takes_part(share));
            }
        }
        for network in 0..shares.dim {
            next[network + 1] += next[network];
        }
        let starts = next.clone();
        let mut pairs = vec![Pair::default(); starts[shares.dim]];
        for (entity, row) in shares.data.chunks_exact(shares.dim).enumerate() {
            for (next, &share) in next.iter_mut().zip(row) {
                if takes_part(share) {
                    let entity = entity as u32;
                    pairs[*next] = Pair { entity, share };
                    *next += 1;
                }
            }
        }
        Lists { starts, pairs }
    }

    fn of(&self, network: usize) -> Range<usize> {
        self.starts[network]..self.starts[network + 1]
    }

    /// Pairs of a network with some of the entities.
    fn among(&self, network: usize, entities: &Range<usize>) -> Range<usize> {
        let all = self.of(network);
        let own = &self.pairs[all.clone()];
        let place = |end: usize| all.start + own.partition_point(|pair| (pair.entity as usize) < end);
        place(entities.start)..place(entities.end)
    }

    /// Entities of a task: each packs the networks for itself.
    fn step(&self, entities: usize, threads: usize) -> usize {
        let networks = self.starts.len() - 1;
        let tasks = (self.pairs.len() / (PAIRS * networks)).clamp(1, TASKS * threads);
        let tasks = match tasks > threads {
            true => tasks / threads * threads,
            false => tasks,
        };
        entities.div_ceil(tasks).max(1)
    }

    /// Multiply-adds, a sixteenth of them: what [`Exec::for_work`] asks for.
    fn work(&self, networks: Networks) -> usize {
        self.pairs.len() * networks.hidden * (networks.source + networks.target) / LINE
    }
}

/// What the way to the outputs needs of a network: its layers in panels of [`COLUMNS`].
#[derive(Default)]
struct Forward {
    first: Vec<Panel>,
    bias: Vec<[Line; 2]>,
    second: Vec<Panel>,
}

type Panel = Vec<Line>;

impl Forward {
    fn pack(&mut self, networks: Networks, network: usize) {
        self.pack_first(networks, network);
        let (second, bias) = (networks.second(network), networks.second_bias(network));
        let rows = second.data.chunks_exact(second.dim).chain([bias]);
        straight(rows, networks.units(), second.dim, &mut self.second);
    }

    /// The first layer, with the unit that is always 1.
    fn pack_first(&mut self, networks: Networks, network: usize) {
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
fn straight<'a>(rows: impl Iterator<Item = &'a [f32]>, depth: usize, columns: usize, panels: &mut Vec<Panel>) {
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
fn turned<'a>(mut rows: impl Iterator<Item = &'a [f32]>, depth: usize, columns: usize, panels: &mut Vec<Panel>) {
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
fn filled(panel: usize, columns: usize) -> usize {
    COLUMNS.min(columns - panel * COLUMNS)
}

fn clear(panels: &mut Vec<Panel>, columns: usize, depth: usize) {
    panels.resize_with(columns.div_ceil(COLUMNS), Vec::new);
    for panel in panels {
        panel.clear();
        panel.resize(2 * depth, Line([0.0; LINE]));
    }
}

#[derive(Default)]
struct Scratch {
    source: Vec<f32>,
    /// `[units][ROWS]`
    hidden: Vec<f32>,
    tile: Tile,
}

impl Scratch {
    /// The hidden units of up to [`ROWS`] pairs, times their shares.
    fn activate(&mut self, exec: Exec, source: Matrix, pairs: &[Pair], packed: &Forward, networks: Networks) {
        pack_tile(source, pairs.iter().map(|pair| pair.entity as usize), &mut self.source);
        let mut shares = [0.0; ROWS];
        for (share, pair) in shares.iter_mut().zip(pairs) {
            *share = pair.share;
        }
        self.hidden.resize(networks.units() * ROWS, 0.0);
        let panels = packed.first.iter().zip(&packed.bias);
        for ((panel, bias), hidden) in panels.zip(self.hidden.chunks_mut(COLUMNS * ROWS)) {
            let columns = hidden.len() / ROWS;
            exec.simd
                .products_tile(&self.source, panel, bias, columns, &mut self.tile);
            for (column, hidden) in hidden.chunks_exact_mut(ROWS).enumerate() {
                for row in 0..ROWS {
                    hidden[row] = active(self.tile.0[row][column]) * shares[row];
                }
            }
        }
    }
}

#[inline(always)]
fn active(value: f32) -> f32 {
    // Not max, which would lose NaN.
    if value <= 0.0 {
        0.0
    } else {
        value
    }
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

/// A row to its place among `depth` in blocks of [`ROWS`] values, `[blocks][depth][ROWS]`.
#[inline(always)]
fn blocks(row: &[f32], place: usize, depth: usize, out: &mut [f32]) {
    let (whole, rest) = row.as_chunks::<ROWS>();
    for (block, values) in whole.iter().enumerate() {
        out[(block * depth + place) * ROWS..][..ROWS].copy_from_slice(values);
    }
    if !rest.is_empty() {
        out[(whole.len() * depth + place) * ROWS..][..rest.len()].copy_from_slice(rest);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::{the_same_everywhere, WORTH_WAKING};

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let word = |c| crate::rng::unit(crate::rng::at(seed, c)) as f32 - 0.5;
        (0..count as u64).map(word).collect()
    }

    /// `(outputs, gradients)` by the definition, in float64.
    fn definition(source: Matrix, shares: Matrix, n: Networks, gradient: &[f32]) -> (Vec<f64>, [Vec<f64>; 6]) {
        let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| f64::from(x)).collect() };
        let (w1, b1, w2, b2) = (wide(n.weight1), wide(n.bias1), wide(n.weight2), wide(n.bias2));
        let (x, q, g) = (wide(source.data), wide(shares.data), wide(gradient));
        let mut out = vec![0.0; source.rows * n.target];
        let mut to = [&x, &q, &w1, &b1, &w2, &b2].map(|like| vec![0.0; like.len()]);
        for e in 0..source.rows {
            for m in 0..n.count {
                let share = q[e * n.count + m];
                let input = |s: usize| e * n.source + s;
                let output = |t: usize| e * n.target + t;
                let value = |h: usize| {
                    let sum: f64 = (0..n.source)
                        .map(|s| x[input(s)] * w1[(m * n.source + s) * n.hidden + h])
                        .sum();
                    sum + b1[m * n.hidden + h]
                };
                for t in 0..n.target {
                    out[output(t)] += share * b2[m * n.target + t];
                    to[5][m * n.target + t] += share * g[output(t)];
                    to[1][e * n.count + m] += g[output(t)] * b2[m * n.target + t];
                }
                for h in (0..n.hidden).filter(|&h| value(h) > 0.0) {
                    let mut back = 0.0;
                    for t in 0..n.target {
                        let place = (m * n.hidden + h) * n.target + t;
                        out[output(t)] += share * value(h) * w2[place];
                        to[4][place] += share * value(h) * g[output(t)];
                        back += g[output(t)] * w2[place];
                    }
                    to[1][e * n.count + m] += back * value(h);
                    to[3][m * n.hidden + h] += share * back;
                    for s in 0..n.source {
                        let place = (m * n.source + s) * n.hidden + h;
                        to[2][place] += share * back * x[input(s)];
                        to[0][input(s)] += share * back * w1[place];
                    }
                }
            }
        }
        for (to, &share) in to[1].iter_mut().zip(&q) {
            *to = if share == 0.0 { 0.0 } else { *to }; // not asked for
        }
        (out, to)
    }

    #[test]
    fn all_paths_and_threads_agree_with_the_definition() {
        for (entities, [count, source, hidden, target], kept) in [
            (1, [1, 1, 1, 1], 1.0),
            (13, [2, 3, 5, 7], 1.0),
            (400, [3, 20, 31, 40], 1.0),
            (700, [4, 20, 40, 70], 0.7),
            (250, [5, 13, 33, 12], 0.3),
            (90, [30, 8, 20, 33], 0.05),
            (40, [4, 36, 64, 100], 0.5),
            (9, [3, 2, 4, 5], 0.0),
            (0, [3, 2, 4, 5], 1.0),
        ] {
            let x = numbers(entities * source, 1);
            let drawn = numbers(entities * count, 2);
            let q: Vec<f32> = drawn.iter().map(|&q| if q + 0.5 < kept { q } else { 0.0 }).collect();
            let weights = [
                numbers(count * source * hidden, 3),
                numbers(count * hidden, 4),
                numbers(count * hidden * target, 5),
                numbers(count * target, 6),
            ];
            let g = numbers(entities * target, 7);
            let [w1, b1, w2, b2] = &weights;
            let networks = Networks::new([count, source, hidden, target], w1, b1, w2, b2).expect("sizes agree");
            let (x, q) = (Matrix::new(&x, entities, source), Matrix::new(&q, entities, count));
            let many = Lists::new(q).work(networks) >= WORTH_WAKING;
            assert_eq!(many, entities == 700, "one case at least goes to several threads");
            let (out, back) = the_same_everywhere(|exec| {
                let mut out = vec![9.0; entities * target];
                mixture(exec, x, q, networks, &mut out).expect("sizes agree");
                let g = Matrix::new(&g, entities, target);
                (out, mixture_gradient(exec, x, q, networks, g).expect("sizes agree"))
            });
            let (expected, gradients) = definition(x, q, networks, &g);
            let found = [
                &back.source,
                &back.shares,
                &back.weight1,
                &back.bias1,
                &back.weight2,
                &back.bias2,
            ];
            let pairs = found.into_iter().zip(&gradients).chain([(&out, &expected)]);
            for (found, expected) in pairs {
                assert_eq!(found.len(), expected.len());
                for (place, (&a, &b)) in found.iter().zip(expected).enumerate() {
                    assert!((f64::from(a) - b).abs() < 2e-4, "{place}: {a} for {b}");
                }
            }
        }
    }

    #[test]
    fn an_entity_does_not_depend_on_the_others() {
        let (entities, [count, source, hidden, target]) = (100, [3, 6, 9, 14]);
        let (x, q) = (numbers(entities * source, 1), numbers(entities * count, 2));
        let weights = [numbers(162, 3), numbers(27, 4), numbers(378, 5), numbers(42, 6)];
        let [w1, b1, w2, b2] = &weights;
        let networks = Networks::new([count, source, hidden, target], w1, b1, w2, b2).expect("sizes agree");
        let run = |rows: std::ops::Range<usize>| {
            let own = rows.len();
            let x = Matrix::new(&x[rows.start * source..rows.end * source], own, source);
            let q = Matrix::new(&q[rows.start * count..rows.end * count], own, count);
            let mut out = vec![0.0; own * target];
            mixture(Exec::serial(), x, q, networks, &mut out).expect("sizes agree");
            out
        };
        assert_eq!(run(0..entities)[31 * target..77 * target], run(31..77));
    }

    #[test]
    fn what_diverged_shows_and_sizes_must_agree() {
        let (x, q) = ([1.0], [f32::NAN, 0.0]);
        let (x, q) = (Matrix::new(&x, 1, 1), Matrix::new(&q, 1, 2));
        let networks = Networks::new([2, 1, 1, 1], &[1.0; 2], &[0.0; 2], &[1.0; 2], &[0.0; 2]).expect("sizes agree");
        let mut out = [0.0];
        mixture(Exec::serial(), x, q, networks, &mut out).expect("sizes agree");
        assert!(out[0].is_nan());
        let nan = [f32::NAN];
        mixture(Exec::serial(), Matrix::new(&nan, 1, 1), q, networks, &mut out).expect("sizes agree");
        assert!(out[0].is_nan());
        assert!(mixture(Exec::serial(), x, q, networks, &mut [0.0; 2]).is_err());
        let wide = [1.0, 2.0];
        assert!(mixture(Exec::serial(), Matrix::new(&wide, 1, 2), q, networks, &mut out).is_err());
        assert!(mixture_gradient(Exec::serial(), x, x, networks, x).is_err());
        let flat = Matrix::new(&wide[..1], 1, 1);
        assert!(mixture_gradient(Exec::serial(), x, q, networks, flat).is_ok());
        assert!(mixture_gradient(Exec::serial(), x, q, networks, Matrix::new(&wide, 2, 1)).is_err());
        assert!(Networks::new([2, 1, 1, 1], &[1.0; 3], &[0.0; 2], &[1.0; 2], &[0.0; 2]).is_err());
        assert!(Networks::new([0, 1, 1, 1], &[], &[], &[], &[]).is_err());
    }
}
