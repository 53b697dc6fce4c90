//! Top-k lists: scoring, masking and selection in one pass; the score matrix never reaches memory.

use crate::csr::Mask;
use crate::error::Error;
use crate::exec::Exec;
use crate::score::quantised::{BytePanels, ByteTile, Catch};
use crate::score::{
    check_finite, length, pack_tile, rounding, square, Form, Goals, Matrix, Net, Panels, Sink, COLUMNS, ROWS,
};
use crate::select::{item_of, rank_key, score_of, Best};

/// Query tiles that share a pass over a block of panels.
const GROUP: usize = 20;
/// Multiply-adds of one task: a tenth of a second at most.
const TASK_PRODUCTS: usize = 20_000_000_000;
/// Bytes of packed items that stay in L2 while a group passes over them.
const BLOCK_BYTES: usize = 1 << 19;

/// Lists `[queries, k]`, best first; -1 and -infinity after the last.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranking {
    pub items: Vec<i32>,
    pub scores: Vec<f32>,
}

impl Ranking {
    fn empty(queries: usize, k: usize) -> Self {
        Ranking {
            items: vec![-1; queries * k],
            scores: vec![f32::NEG_INFINITY; queries * k],
        }
    }
}

/// The `k` best unseen items of each query by dot product plus bias.
pub fn topk(
    exec: Exec,
    queries: Matrix,
    items: Matrix,
    bias: Option<&[f32]>,
    seen: Mask,
    k: usize,
) -> Result<Ranking, Error> {
    check_finite(exec, queries, items, bias)?;
    select(exec, Form::Dot, queries, items, bias, k, |query| seen.of(query))
}

/// Items as floats, or as bytes that are checked first.
enum Packed {
    Floats(Panels),
    Bytes(BytePanels),
}

/// The catalogue in the order in which it is scored.
///
/// First a sample: its best few, unseen by the query, tell where the k-th best of all probably lies, so that from the
/// start few others need be looked at. Then the rest, longest vectors first, so that once the threshold passes what the
/// remaining lengths allow, whole panels are left out.
struct Catalogue {
    packed: Packed,
    ids: Vec<i32>,
    positions: Vec<i32>,
    /// Panels of the sample.
    sampled: usize,
    /// How many of the best of the sample make the threshold; k if that is to be certain.
    guess: usize,
}

impl Catalogue {
    fn new(
        exec: Exec,
        form: Form,
        queries: Matrix,
        items: Matrix,
        bias: Option<&[f32]>,
        k: usize,
    ) -> Result<Self, Error> {
        let n = items.rows;
        let mut keyed = vec![0u64; n];
        let typical = match form {
            Form::Dot => (square(queries.data) / queries.rows.max(1) as f64).sqrt() as f32,
            Form::Distance => 0.0,
        };
        const STEP: usize = 1024;
        exec.each(
            keyed.chunks_mut(STEP).enumerate(),
            || (),
            |(), (task, keyed)| {
                for (offset, key) in keyed.iter_mut().enumerate() {
                    let item = task * STEP + offset;
                    let reach = match form {
                        Form::Dot => typical * length(square(items.row(item))) + bias.map_or(0.0, |b| b[item]),
                        Form::Distance => 0.0,
                    };
                    *key = rank_key(reach, item as i32);
                }
                Ok(())
            },
        )?;
        keyed.sort_unstable_by(|a, b| b.cmp(a));
        // A sixteenth of a large catalogue; a small one is not worth it.
        let sampled = if n >= 4096 {
            (n / 16).clamp(512, 4096) / COLUMNS
        } else {
            0
        };
        let expected = k as f64 * (sampled * COLUMNS) as f64 / n.max(1) as f64;
        // The number of the k best that fall into the sample is nearly Poisson; five in a thousand queries or fewer
        // have as many as this, and are done again.
        let guess = ((expected + 3.0 * expected.sqrt() + 3.0) as usize).min(k);
        let mut ids = Vec::with_capacity(n);
        if sampled > 0 {
            let m = sampled * COLUMNS;
            let chosen = |j: usize| j * n / m;
            ids.extend((0..m).map(|j| item_of(keyed[chosen(j)])));
            let mut next = 0;
            for (place, &key) in keyed.iter().enumerate() {
                if next < m && chosen(next) == place {
                    next += 1;
                } else {
                    ids.push(item_of(key));
                }
            }
        } else {
            ids.extend(keyed.iter().map(|&key| item_of(key)));
        }
        let mut positions = vec![0; n];
        for (position, &id) in ids.iter().enumerate() {
            positions[id as usize] = position as i32;
        }
        let packed = if form == Form::Dot && exec.simd.has_bytes() && BytePanels::fits(items.dim) && items.dim > 0 {
            let unit = (square(queries.data) / queries.data.len() as f64).sqrt() as f32;
            let unit = if unit.is_normal() { unit } else { 1.0 };
            Packed::Bytes(BytePanels::pack(exec, items, bias, &ids, unit)?)
        } else {
            Packed::Floats(Panels::pack(exec, items, bias, Some(&ids))?)
        };
        Ok(Catalogue {
            packed,
            ids,
            positions,
            sampled,
            guess,
        })
    }
}

struct Scratch {
    tiles: Vec<Vec<f32>>,
    bytes: Vec<ByteTile>,
    contenders: Vec<Contenders>,
    catches: [Catch; ROWS],
    goals: Vec<Goals>,
    best: Vec<Best>,
    seen: Vec<i32>,
    /// Of each query: where its part of `seen` ends, and how far it has been passed.
    spans: Vec<(usize, usize)>,
}

fn select<'a>(
    exec: Exec,
    form: Form,
    queries: Matrix,
    items: Matrix,
    bias: Option<&[f32]>,
    k: usize,
    seen: impl Fn(usize) -> &'a [i32] + Sync,
) -> Result<Ranking, Error> {
    let mut out = Ranking::empty(queries.rows, k);
    if out.items.is_empty() {
        return Ok(out);
    }
    let catalogue = Catalogue::new(exec, form, queries, items, bias, k)?;
    // A task ends soon enough for the calling thread to ask whether to stop.
    let tile_products = (ROWS * items.rows * items.dim).max(1);
    let group = GROUP
        .min(queries.rows.div_ceil(ROWS).div_ceil(4 * exec.threads()))
        .min(TASK_PRODUCTS / tile_products)
        .max(1);
    let chunk = group * ROWS * k;
    let tasks = out
        .items
        .chunks_mut(chunk)
        .zip(out.scores.chunks_mut(chunk))
        .enumerate();
    exec.each(
        tasks,
        || Scratch {
            tiles: vec![Vec::new(); group],
            bytes: vec![ByteTile::default(); group],
            contenders: vec![Contenders::default(); group * ROWS],
            catches: Default::default(),
            goals: Vec::new(),
            best: vec![Best::new(k); group * ROWS],
            seen: Vec::new(),
            spans: Vec::new(),
        },
        |scratch, (task, (out_items, out_scores))| {
            let first = task * group * ROWS;
            let mut ids: Vec<usize> = (first..queries.rows.min(first + group * ROWS)).collect();
            let mut guess = catalogue.guess;
            while !ids.is_empty() {
                scan(
                    exec,
                    form,
                    Factors { queries, items, bias },
                    &catalogue,
                    k,
                    guess,
                    &ids,
                    &seen,
                    scratch,
                )?;
                let mut again = Vec::new();
                for (place, &query) in ids.iter().enumerate() {
                    let best = &mut scratch.best[place];
                    let possible = k.min(items.rows.saturating_sub(seen(query).len()));
                    let certain = match &catalogue.packed {
                        Packed::Floats(_) => best.len() == k,
                        Packed::Bytes(panels) => {
                            let at = At {
                                panels,
                                tile: &scratch.bytes[place / ROWS],
                                row: place % ROWS,
                            };
                            let contenders = &mut scratch.contenders[place];
                            let factors = Factors { queries, items, bias };
                            settle(exec, factors, &catalogue.ids, at, query, contenders, best, k);
                            // A threshold that was a guess may have turned out too high.
                            best.len() == k && best.threshold() >= contenders.threshold
                        }
                    };
                    let everything = possible < k && best.len() == possible;
                    if guess < k && !certain && !everything {
                        again.push(query);
                        continue;
                    }
                    let place = (query - first) * k;
                    best.finish(&mut out_items[place..place + k], &mut out_scores[place..place + k]);
                }
                ids = again;
                guess = k;
            }
            Ok(())
        },
    )?;
    Ok(out)
}

/// The best of the queries `ids`, left in `scratch.best`.
#[allow(clippy::too_many_arguments)]
fn scan<'a>(
    exec: Exec,
    form: Form,
    factors: Factors,
    catalogue: &Catalogue,
    k: usize,
    guess: usize,
    ids: &[usize],
    seen: &impl Fn(usize) -> &'a [i32],
    scratch: &mut Scratch,
) -> Result<(), Error> {
    let Factors { queries, items, .. } = factors;
    let panels = items.rows.div_ceil(COLUMNS);
    let inflate = 1.0 + rounding(items.dim);
    scratch.goals.clear();
    scratch.seen.clear();
    scratch.spans.clear();
    for (tile, ids) in ids.chunks(ROWS).enumerate() {
        // Bytes bound lengths with the bias as a dimension of the query, floats with the bias beside.
        let unit = match &catalogue.packed {
            Packed::Floats(_) => {
                pack_tile(queries, ids.iter().copied(), &mut scratch.tiles[tile]);
                0.0
            }
            Packed::Bytes(panels) => {
                scratch.bytes[tile].pack(queries, ids.iter().copied(), panels);
                f64::from(panels.unit)
            }
        };
        let mut goals = Goals {
            thresholds: [f32::INFINITY; 16],
            lengths: [0.0; 16],
        };
        for (row, &query) in ids.iter().enumerate() {
            goals.thresholds[row] = f32::MIN;
            goals.lengths[row] = match form {
                Form::Dot => length(square(queries.row(query)) + unit * unit) * inflate,
                Form::Distance => f32::INFINITY,
            };
            let start = scratch.seen.len();
            for &item in seen(query) {
                let position = usize::try_from(item)
                    .ok()
                    .and_then(|item| catalogue.positions.get(item));
                scratch.seen.push(*position.ok_or(Error::ItemRange {
                    what: "seen",
                    row: query,
                    item: i64::from(item),
                    items: items.rows,
                })?);
            }
            scratch.seen[start..].sort_unstable();
            scratch.spans.push((start, scratch.seen.len()));
        }
        scratch.goals.push(goals);
    }
    let best = &mut scratch.best[..ids.len()];
    best.iter_mut().for_each(Best::clear);
    for contenders in &mut scratch.contenders[..ids.len()] {
        contenders.clear(guess);
    }
    let width = match &catalogue.packed {
        Packed::Floats(_) => 4 * items.dim,
        Packed::Bytes(panels) => 4 * panels.groups,
    };
    let block = (BLOCK_BYTES / (COLUMNS * width.max(1))).max(1);
    let sampled = if guess < k { catalogue.sampled } else { 0 };
    let mut start = 0;
    while start < panels {
        let keep = if start < sampled { guess } else { k };
        let end = if start < sampled { sampled } else { panels }.min(start + block);
        for (t, goals) in scratch.goals.iter_mut().enumerate() {
            let rows = t * ROWS..ids.len().min((t + 1) * ROWS);
            let spans = &mut scratch.spans[rows.clone()];
            let seen = &scratch.seen;
            match &catalogue.packed {
                Packed::Floats(panels) => {
                    let mut sink = Scores {
                        ids: &catalogue.ids,
                        keep,
                        best: &mut best[rows.clone()],
                        spans,
                        seen,
                    };
                    exec.simd
                        .scan(form, &scratch.tiles[t], panels, start..end, goals, &mut sink);
                    if end == sampled {
                        for (best, threshold) in best[rows].iter_mut().zip(&mut goals.thresholds) {
                            best.cut(guess);
                            *threshold = best.threshold().max(f32::MIN);
                        }
                    }
                }
                Packed::Bytes(panels) => {
                    let tile = &scratch.bytes[t];
                    let mut net = Bounds {
                        panels,
                        tile,
                        keep,
                        contenders: &mut scratch.contenders[rows.clone()],
                        spans,
                        seen,
                    };
                    exec.simd
                        .scan_bytes(tile, panels, start..end, goals, &mut scratch.catches, &mut net);
                    for (row, catch) in scratch.catches.iter_mut().enumerate().take(rows.len()) {
                        goals.thresholds[row] = net.empty(row, catch);
                    }
                    if end == sampled {
                        for (row, contenders) in scratch.contenders[rows.clone()].iter_mut().enumerate() {
                            let (best, query) = (&mut best[rows.start + row], ids[rows.start + row]);
                            let at = At { panels, tile, row };
                            settle(exec, factors, &catalogue.ids, at, query, contenders, best, guess);
                            if best.len() == guess {
                                contenders.threshold = contenders.threshold.max(best.threshold());
                                contenders.drop_hopeless(at);
                            }
                            contenders.full = contenders.keys.len() + Contenders::room(k);
                            goals.thresholds[row] = contenders.threshold;
                            best.clear();
                        }
                    }
                }
            }
        }
        start = end;
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Factors<'a> {
    queries: Matrix<'a>,
    items: Matrix<'a>,
    bias: Option<&'a [f32]>,
}

/// Which items a query has seen, read along a pass over the catalogue.
struct Seen<'a> {
    positions: &'a [i32],
    span: &'a mut (usize, usize),
}

impl Seen<'_> {
    /// Panels must ascend from call to call; positions within one may come in any order.
    #[inline(always)]
    fn has(&mut self, position: usize) -> bool {
        let (next, end) = self.span;
        let panel = position / COLUMNS * COLUMNS;
        while *next < *end && (self.positions[*next] as usize) < panel {
            *next += 1;
        }
        let ahead = self.positions[*next..*end].iter().map(|&p| p as usize);
        ahead.take_while(|&p| p <= position).any(|p| p == position)
    }
}

/// Where the exact scores of one tile go.
struct Scores<'a> {
    ids: &'a [i32],
    keep: usize,
    best: &'a mut [Best],
    spans: &'a mut [(usize, usize)],
    seen: &'a [i32],
}

impl Sink for Scores<'_> {
    #[inline(always)]
    fn take(&mut self, row: usize, position: usize, score: f32) -> f32 {
        let best = &mut self.best[row];
        let key = rank_key(score, self.ids[position]);
        if best.wants(key) {
            let mut seen = Seen {
                positions: self.seen,
                span: &mut self.spans[row],
            };
            if !seen.has(position) {
                best.push(key, self.keep);
            }
        }
        best.threshold().max(f32::MIN)
    }
}

/// Items that may be among a query's best, by what their score is at least.
#[derive(Clone, Debug, Default)]
struct Contenders {
    /// (lower bound, position), ordered by the bound.
    keys: Vec<u64>,
    /// The number of keys at which to cut.
    full: usize,
    /// What the upper bound of a score must reach.
    threshold: f32,
}

impl Contenders {
    fn clear(&mut self, keep: usize) {
        self.keys.clear();
        self.full = Self::room(keep);
        self.threshold = f32::MIN;
    }

    /// A cut costs as much as some hundreds of entries that come in for lack of one.
    fn room(keep: usize) -> usize {
        (4 * keep).max(256)
    }

    fn position(key: u64) -> usize {
        !(key as u32) as usize
    }

    fn upper(key: u64, at: At) -> f32 {
        score_of(key) + 2.0 * at.panels.error(at.tile, at.row, Self::position(key) / COLUMNS)
    }

    /// Raises the threshold to the `keep`-th lower bound, and drops what cannot reach it.
    #[cold]
    #[inline(never)]
    fn cut(&mut self, at: At, keep: usize) {
        if keep > 0 && self.keys.len() >= keep {
            self.keys.select_nth_unstable_by(keep - 1, |a, b| b.cmp(a));
            self.threshold = self.threshold.max(score_of(self.keys[keep - 1]));
            self.drop_hopeless(at);
        }
        self.full = 2 * self.keys.len() + Self::room(keep) / 2;
    }

    fn drop_hopeless(&mut self, at: At) {
        let threshold = self.threshold;
        self.keys.retain(|&key| Self::upper(key, at) >= threshold);
    }
}

/// A row of a tile of bytes, and the panels it is scored against.
#[derive(Clone, Copy)]
struct At<'a> {
    panels: &'a BytePanels,
    tile: &'a ByteTile,
    row: usize,
}

/// Where the catches of one tile go.
struct Bounds<'a> {
    panels: &'a BytePanels,
    tile: &'a ByteTile,
    keep: usize,
    contenders: &'a mut [Contenders],
    spans: &'a mut [(usize, usize)],
    seen: &'a [i32],
}

impl Net for Bounds<'_> {
    #[inline(never)]
    fn empty(&mut self, row: usize, catch: &mut Catch) -> f32 {
        let Bounds { panels, tile, .. } = *self;
        let at = At { panels, tile, row };
        let contenders = &mut self.contenders[row];
        let mut seen = Seen {
            positions: self.seen,
            span: &mut self.spans[row],
        };
        for (&position, &sum) in catch.positions.iter().zip(&*catch.sums).take(catch.len) {
            let panel = position as usize / COLUMNS;
            let (score, error) = (panels.score(tile, row, panel, sum), panels.error(tile, row, panel));
            if score + error >= contenders.threshold && !seen.has(position as usize) {
                contenders.keys.push(rank_key(score - error, position as i32));
            }
        }
        catch.len = 0;
        if contenders.keys.len() >= contenders.full {
            contenders.cut(at, self.keep);
        }
        contenders.threshold
    }
}

/// The `keep` best of a query's contenders by their exact scores: first of those whose lower bounds are best, then of
/// those that can still be better.
#[allow(clippy::too_many_arguments)]
fn settle(
    exec: Exec,
    factors: Factors,
    ids: &[i32],
    at: At,
    query: usize,
    contenders: &mut Contenders,
    best: &mut Best,
    keep: usize,
) {
    contenders.cut(at, keep);
    let Factors { queries, items, bias } = factors;
    let mut chosen = [0i32; 64];
    let mut scores = [0.0f32; 64];
    let (first, rest) = contenders.keys.split_at(keep.min(contenders.keys.len()));
    for keys in [first, rest] {
        let floor = best.threshold();
        let mut keys = keys.iter().filter(|&&key| Contenders::upper(key, at) >= floor);
        loop {
            let mut len = 0;
            for (id, &key) in chosen.iter_mut().zip(&mut keys) {
                *id = ids[Contenders::position(key)];
                len += 1;
            }
            if len == 0 {
                break;
            }
            exec.simd
                .dots(queries.row(query), items, bias, &chosen[..len], &mut scores[..len]);
            for (&id, &score) in chosen.iter().zip(&scores).take(len) {
                best.push(rank_key(score, id), keep);
            }
        }
        best.cut(keep);
    }
}

/// The `k` best unseen items of each row of a score block `[queries, items]`. -infinity is a legal score (an item the
/// model rules out); NaN and +infinity are refused.
pub fn topk_scores(exec: Exec, scores: Matrix, seen: Mask, k: usize) -> Result<Ranking, Error> {
    let mut out = Ranking::empty(scores.rows, k);
    if out.items.is_empty() {
        return Ok(out);
    }
    let tasks = out.items.chunks_mut(k).zip(out.scores.chunks_mut(k)).enumerate();
    exec.each(
        tasks,
        || Best::new(k),
        |best, (query, (items, out))| {
            let row = scores.row(query);
            if row.iter().any(|&s| s.is_nan() || s == f32::INFINITY) {
                return Err(Error::NotFinite {
                    what: "scores",
                    row: query,
                });
            }
            let seen = seen.of(query);
            let mut next = 0;
            best.clear();
            for (base, block) in row.chunks(COLUMNS).enumerate().map(|(b, c)| (b * COLUMNS, c)) {
                let threshold = best.threshold();
                if block.iter().fold(0, |any, &s| any | u32::from(s >= threshold)) == 0 {
                    continue;
                }
                for (column, &score) in block.iter().enumerate() {
                    let item = (base + column) as i32;
                    let key = rank_key(score, item);
                    if best.wants(key) {
                        while next < seen.len() && seen[next] < item {
                            next += 1;
                        }
                        if seen.get(next) != Some(&item) {
                            best.push(key, k);
                        }
                    }
                }
            }
            best.finish(items, out);
            Ok(())
        },
    )?;
    Ok(out)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distance {
    /// Score: minus the distance.
    Euclidean,
    /// Score: the cosine; vectors of length 0 have cosine 0 with all others.
    Cosine,
    /// Score: the dot product.
    Dot,
}

/// The `k` nearest other rows of each row.
pub fn neighbours(exec: Exec, vectors: Matrix, k: usize, distance: Distance) -> Result<Ranking, Error> {
    check_finite(exec, vectors, vectors, None)?;
    let ids: Vec<i32> = (0..vectors.rows as i32).collect();
    let itself = |row: usize| &ids[row..=row];
    match distance {
        Distance::Dot => select(exec, Form::Dot, vectors, vectors, None, k, itself),
        Distance::Cosine => {
            let mut unit = vectors.data.to_vec();
            for row in unit.chunks_mut(vectors.dim.max(1)) {
                let length = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
                if length > 0.0 {
                    row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
                }
            }
            let unit = Matrix::new(&unit, vectors.rows, vectors.dim);
            select(exec, Form::Dot, unit, unit, None, k, itself)
        }
        Distance::Euclidean => {
            let mut out = select(exec, Form::Distance, vectors, vectors, None, k, itself)?;
            for score in out.scores.iter_mut().filter(|score| score.is_finite()) {
                *score = -(-*score).sqrt();
            }
            Ok(out)
        }
    }
}
