//! Top-k lists: scoring, masking and selection in one pass; the score matrix never reaches memory.

use std::marker::PhantomData;

use crate::csr::Mask;
use crate::error::Error;
use crate::exec::Exec;
use crate::score::quantised::{BytePanels, ByteTile, Catch, Lanes};
use crate::score::{
    check_finite, length, pack_tile, rounding, square, Form, Goals, Matrix, Net, Panels, SimdPath, Sink, COLUMNS, LINE,
    ROWS,
};
use crate::select::{item_of, ordered, rank_key, score_of, unordered, Best};

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
            (n / 8).clamp(512, 8192) / COLUMNS
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
    goals: Vec<Goals>,
    floats: FloatScratch,
    bytes: ByteScratch,
}

struct FloatScratch {
    tiles: Vec<Vec<f32>>,
    best: Vec<Best>,
    seen: Vec<i32>,
    /// Of each query: where its part of `seen` ends, and how far it has been passed.
    spans: Vec<(usize, usize)>,
}

struct ByteScratch {
    tiles: Vec<ByteTile>,
    catches: Vec<Catch>,
    lanes: Lanes,
    sampled: Vec<u64>,
    sieve: Sieve,
}

/// What a call is about.
#[derive(Clone, Copy)]
struct Call<'a> {
    exec: Exec<'a>,
    form: Form,
    queries: Matrix<'a>,
    items: Matrix<'a>,
    bias: Option<&'a [f32]>,
    catalogue: &'a Catalogue,
    k: usize,
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
    let catalogue = &Catalogue::new(exec, form, queries, items, bias, k)?;
    let call = Call {
        exec,
        form,
        queries,
        items,
        bias,
        catalogue,
        k,
    };
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
        || Scratch::new(group, catalogue, k),
        |scratch, (task, (out_items, out_scores))| {
            let first = task * group * ROWS;
            let mut ids: Vec<usize> = (first..queries.rows.min(first + group * ROWS)).collect();
            let mut guess = catalogue.guess;
            while !ids.is_empty() {
                let mut again = Vec::new();
                let slots = |query: usize| (query - first) * k..(query - first + 1) * k;
                match &catalogue.packed {
                    Packed::Floats(panels) => {
                        call.scan_floats(panels, guess, &ids, &seen, scratch)?;
                        for (&query, best) in ids.iter().zip(&mut scratch.floats.best) {
                            let possible = k.min(items.rows.saturating_sub(seen(query).len()));
                            if guess < k && best.len() < possible {
                                again.push(query);
                            } else {
                                best.finish(&mut out_items[slots(query)], &mut out_scores[slots(query)]);
                            }
                        }
                    }
                    Packed::Bytes(panels) => {
                        call.scan_bytes(panels, guess, &ids, &seen, scratch)?;
                        for (place, &query) in ids.iter().enumerate() {
                            let (tile, row) = (place / ROWS, place % ROWS);
                            let threshold = scratch.goals[tile].thresholds[row];
                            let ByteScratch { catches, sieve, .. } = &mut scratch.bytes;
                            let found = call.settle(threshold, query, seen(query), &mut catches[place], sieve);
                            let possible = k.min(items.rows.saturating_sub(seen(query).len()));
                            // A threshold that was a guess may have turned out too high.
                            let certain = if possible < k {
                                found.len() == possible
                            } else {
                                found.len() == k && found.last().is_none_or(|&key| score_of(key) >= threshold)
                            };
                            if guess < k && !certain {
                                again.push(query);
                                continue;
                            }
                            let places = out_items[slots(query)].iter_mut().zip(&mut out_scores[slots(query)]);
                            for ((item, score), &key) in places.zip(found) {
                                (*item, *score) = (item_of(key), score_of(key));
                            }
                        }
                    }
                }
                ids = again;
                guess = k;
            }
            Ok(())
        },
    )?;
    Ok(out)
}

impl Scratch {
    fn new(group: usize, catalogue: &Catalogue, k: usize) -> Self {
        let (floats, bytes) = match catalogue.packed {
            Packed::Floats(_) => (group, 0),
            Packed::Bytes(_) => (0, group),
        };
        Scratch {
            goals: Vec::with_capacity(group),
            floats: FloatScratch {
                tiles: vec![Vec::new(); floats],
                best: vec![Best::new(k); floats * ROWS],
                seen: Vec::new(),
                spans: Vec::new(),
            },
            bytes: ByteScratch {
                tiles: vec![ByteTile::default(); bytes],
                catches: vec![Catch::default(); bytes * ROWS],
                lanes: Lanes::default(),
                sampled: Vec::new(),
                sieve: Sieve::new(catalogue.ids.len()),
            },
        }
    }
}

impl Call<'_> {
    /// Of a tile of queries, each with `unit` as one coordinate more: nothing to beat yet.
    fn goals(&self, ids: &[usize], unit: f32) -> Goals {
        let inflate = 1.0 + rounding(self.items.dim);
        let mut goals = Goals {
            thresholds: [f32::INFINITY; LINE],
            lengths: [0.0; LINE],
        };
        for (row, &query) in ids.iter().enumerate() {
            goals.thresholds[row] = f32::MIN;
            goals.lengths[row] = match self.form {
                Form::Dot => length(square(self.queries.row(query)) + f64::from(unit) * f64::from(unit)) * inflate,
                Form::Distance => f32::INFINITY,
            };
        }
        goals
    }

    /// Where an item that `query` has seen stands in the catalogue.
    fn position(&self, query: usize, item: i32) -> Result<i32, Error> {
        let position = usize::try_from(item)
            .ok()
            .and_then(|item| self.catalogue.positions.get(item));
        position.copied().ok_or(Error::ItemRange {
            what: "seen",
            row: query,
            item: i64::from(item),
            items: self.items.rows,
        })
    }

    /// The best of the queries `ids`, left in `best`.
    fn scan_floats<'a>(
        &self,
        panels: &Panels,
        guess: usize,
        ids: &[usize],
        seen: &impl Fn(usize) -> &'a [i32],
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        let Scratch { goals, floats, .. } = scratch;
        goals.clear();
        floats.seen.clear();
        floats.spans.clear();
        for (tile, ids) in floats.tiles.iter_mut().zip(ids.chunks(ROWS)) {
            pack_tile(self.queries, ids.iter().copied(), tile);
            goals.push(self.goals(ids, 0.0));
            for &query in ids {
                let start = floats.seen.len();
                for &item in seen(query) {
                    floats.seen.push(self.position(query, item)?);
                }
                floats.seen[start..].sort_unstable();
                floats.spans.push((start, floats.seen.len()));
            }
        }
        floats.best.iter_mut().for_each(Best::clear);
        let block = (BLOCK_BYTES / (COLUMNS * 4 * self.items.dim).max(1)).max(1);
        let sampled = if guess < self.k { self.catalogue.sampled } else { 0 };
        let mut start = 0;
        while start < panels.count() {
            let keep = if start < sampled { guess } else { self.k };
            let end = if start < sampled { sampled } else { panels.count() }.min(start + block);
            for (t, goals) in goals.iter_mut().enumerate() {
                let rows = t * ROWS..ids.len().min((t + 1) * ROWS);
                let mut sink = Scores {
                    ids: &self.catalogue.ids,
                    keep,
                    best: &mut floats.best[rows.clone()],
                    spans: &mut floats.spans[rows.clone()],
                    seen: &floats.seen,
                };
                let simd = self.exec.simd;
                simd.scan(self.form, &floats.tiles[t], panels, start..end, goals, &mut sink);
                if end == sampled {
                    for (best, threshold) in floats.best[rows].iter_mut().zip(&mut goals.thresholds) {
                        best.cut(guess);
                        *threshold = best.threshold().max(f32::MIN);
                    }
                }
            }
            start = end;
        }
        Ok(())
    }

    /// Items that may be among the best of the queries `ids`, left in the catches; the thresholds that they were held
    /// against in the goals.
    fn scan_bytes<'a>(
        &self,
        panels: &BytePanels,
        guess: usize,
        ids: &[usize],
        seen: &impl Fn(usize) -> &'a [i32],
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        let Scratch { goals, bytes, .. } = scratch;
        let simd = self.exec.simd;
        goals.clear();
        let sampled = if guess < self.k { self.catalogue.sampled } else { 0 };
        for (tile, ids) in bytes.tiles.iter_mut().zip(ids.chunks(ROWS)) {
            tile.pack(self.queries, ids.iter().copied(), panels, simd);
            let mut goal = self.goals(ids, panels.unit);
            bytes.sampled.clear();
            for (row, &query) in ids.iter().enumerate() {
                for &item in seen(query) {
                    let position = self.position(query, item)? as usize;
                    if position < sampled * COLUMNS {
                        bytes.sampled.push((position * LINE + row) as u64);
                    }
                }
            }
            if sampled > 0 {
                bytes.sampled.sort_unstable();
                // With four times as many lanes as are counted, few of the best share one.
                bytes.lanes.clear((4 * guess).div_ceil(COLUMNS).min(sampled));
                simd.sample_bytes(tile, panels, 0..sampled, &bytes.sampled, &mut bytes.lanes);
                for (row, threshold) in goal.thresholds.iter_mut().enumerate().take(ids.len()) {
                    let best = bytes.lanes.row(row).iter().flat_map(|line| line.0).map(ordered);
                    bytes.sieve.lows.clear();
                    bytes.sieve.lows.extend(best);
                    *threshold = unordered(simd.nth(&bytes.sieve.lows, guess)).max(f32::MIN);
                }
            }
            goals.push(goal);
        }
        for catch in &mut bytes.catches[..ids.len()] {
            catch.len = 0;
            catch.widen(room(self.k));
        }
        let ByteScratch {
            tiles, catches, sieve, ..
        } = bytes;
        let mut net = Full {
            call: self,
            ids,
            seen,
            sieve,
            lists: PhantomData,
        };
        simd.scan_bytes(
            &tiles[..goals.len()],
            panels,
            goals,
            &mut catches[..ids.len()],
            &mut net,
        );
        Ok(())
    }

    /// The best of what a query has caught, by their exact scores, as keys in order.
    fn settle<'s>(
        &self,
        threshold: f32,
        query: usize,
        seen: &[i32],
        catch: &mut Catch,
        sieve: &'s mut Sieve,
    ) -> &'s [u64] {
        let simd = self.exec.simd;
        let ids = &self.catalogue.ids;
        sieve.drop_seen(simd, ids, seen, catch);
        let surest = sieve.surest(simd, self.k, catch);
        // First those whose lower bounds are best, then those that can still be better.
        let threshold = threshold.max(surest);
        let (query, items, bias) = (self.queries.row(query), self.items, self.bias);
        let mut floor = threshold;
        sieve.chosen.clear();
        sieve.scores.clear();
        for low in [surest..f32::INFINITY, f32::NEG_INFINITY..surest] {
            simd.reaching(catch, low, floor, &mut sieve.places);
            let first = sieve.chosen.len();
            sieve
                .chosen
                .extend(sieve.places.iter().map(|&position| ids[position as usize]));
            sieve.scores.resize(sieve.chosen.len(), 0.0);
            let (chosen, scores) = (&sieve.chosen[first..], &mut sieve.scores[first..]);
            simd.dots(query, items, bias, chosen, scores);
            if sieve.scores.len() >= self.k {
                // At least k items reach the lowest of them all.
                floor = floor.max(sieve.scores.iter().copied().fold(f32::INFINITY, f32::min));
            }
        }
        sieve.keys.clear();
        let scored = sieve.chosen.iter().zip(&sieve.scores);
        sieve.keys.extend(scored.map(|(&id, &score)| rank_key(score, id)));
        sieve.order(simd, self.k)
    }
}

/// Catches are sieved when so many are held: a sieve costs as much as some hundreds of entries that come in for lack of
/// one.
fn room(keep: usize) -> usize {
    (4 * keep).max(512)
}

/// Takes what has been caught apart; scratch of one thread.
struct Sieve {
    /// A bit an item, all clear between uses.
    seen: Vec<u32>,
    lows: Vec<u32>,
    chosen: Vec<i32>,
    scores: Vec<f32>,
    keys: Vec<u64>,
    ordered: Vec<u64>,
    places: Vec<u32>,
}

impl Sieve {
    fn new(items: usize) -> Self {
        Sieve {
            seen: vec![0; items.div_ceil(32)],
            lows: Vec::new(),
            chosen: Vec::new(),
            scores: Vec::new(),
            keys: Vec::new(),
            ordered: Vec::new(),
            places: Vec::new(),
        }
    }

    fn drop_seen(&mut self, simd: SimdPath, ids: &[i32], seen: &[i32], catch: &mut Catch) {
        if seen.is_empty() {
            return;
        }
        for &item in seen {
            self.seen[item as usize / 32] |= 1 << (item % 32);
        }
        simd.drop_seen(&self.seen, ids, catch);
        for &item in seen {
            self.seen[item as usize / 32] = 0;
        }
    }

    /// What `keep` or more of the scores are certain to reach.
    fn surest(&mut self, simd: SimdPath, keep: usize, catch: &Catch) -> f32 {
        if catch.len < keep {
            return f32::MIN;
        }
        self.lows.clear();
        self.lows
            .extend(catch.lows[..catch.len].iter().map(|&low| ordered(low)));
        unordered(simd.nth(&self.lows, keep))
    }

    /// The best `k` of the keys, in order.
    fn order(&mut self, simd: SimdPath, k: usize) -> &[u64] {
        const FEW: usize = 256;
        let Sieve {
            keys, ordered, places, ..
        } = self;
        if keys.len() > FEW {
            if keys.len() > k {
                keys.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
                keys.truncate(k);
            }
            keys.sort_unstable_by(|a, b| b.cmp(a));
            return keys;
        }
        places.resize(keys.len(), 0);
        simd.places(keys, places);
        ordered.resize(keys.len(), 0);
        for (&key, &place) in keys.iter().zip(&*places) {
            ordered[place as usize] = key;
        }
        &ordered[..k.min(keys.len())]
    }
}

/// Makes room in catches.
struct Full<'c, 'a, F> {
    call: &'c Call<'c>,
    ids: &'c [usize],
    seen: &'c F,
    sieve: &'c mut Sieve,
    lists: PhantomData<&'a [i32]>,
}

impl<'a, F: Fn(usize) -> &'a [i32]> Net for Full<'_, 'a, F> {
    #[cold]
    #[inline(never)]
    fn relieve(&mut self, place: usize, threshold: f32, catch: &mut Catch) -> f32 {
        let (k, simd) = (self.call.k, self.call.exec.simd);
        let seen = (self.seen)(self.ids[place]);
        self.sieve.drop_seen(simd, &self.call.catalogue.ids, seen, catch);
        let threshold = threshold.max(self.sieve.surest(simd, k, catch));
        let mut kept = 0;
        for place in 0..catch.len {
            let up = catch.ups[place];
            catch.positions[kept] = catch.positions[place];
            catch.lows[kept] = catch.lows[place];
            catch.ups[kept] = up;
            kept += usize::from(up >= threshold);
        }
        catch.len = kept;
        catch.widen(2 * kept + room(k) / 2);
        threshold
    }
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
