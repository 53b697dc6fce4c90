//! Items as codes: what is caught has its score at once.

use std::marker::PhantomData;

use super::order::Order;
use super::search::{search, Call, Kind};
use super::sieve::{room, Sieve};
use super::Ranking;
use crate::codes::{check_codes, Codes};
use crate::csr::Mask;
use crate::error::Error;
use crate::exec::Exec;
use crate::score::coded::{CodePanels, CodeScan, CodeTile};
use crate::score::quantised::{Catch, Lanes, Net};
use crate::score::{length, rounding, Goals, COLUMNS, LINE, ROWS};
use crate::select::{item_of, ordered, rank_key, score_of, unordered};

/// The `k` best unseen items of each query by product of codes plus bias.
pub fn topk_codes(
    exec: Exec,
    queries: Codes,
    items: Codes,
    bias: Option<&[f32]>,
    seen: Mask,
    k: usize,
) -> Result<Ranking, Error> {
    check_codes(queries, items, bias)?;
    select(exec, queries, items, bias, k, |query| seen.of(query))
}

/// The `k` other rows of each row with the largest products, or all others where there are fewer.
pub fn neighbours_codes(exec: Exec, codes: Codes, k: usize) -> Result<Ranking, Error> {
    check_codes(codes, codes, None)?;
    let ids: Vec<i32> = (0..codes.rows() as i32).collect();
    let k = k.min(codes.rows().saturating_sub(1));
    select(exec, codes, codes, None, k, |row| &ids[row..=row])
}

fn select<'a>(
    exec: Exec,
    queries: Codes,
    items: Codes,
    bias: Option<&[f32]>,
    k: usize,
    seen: impl Fn(usize) -> &'a [i32] + Sync,
) -> Result<Ranking, Error> {
    let mut out = Ranking::empty(queries.rows(), k.min(items.rows()))?;
    if out.items.is_empty() {
        return Ok(out);
    }
    let lengths = Lengths::new(exec, items)?;
    let typical = match bias {
        None => 1.0,
        Some(_) => {
            let own = Lengths::new(exec, queries)?;
            own.0.iter().map(|&length| f64::from(length)).sum::<f64>() as f32 / queries.rows() as f32
        }
    };
    let reach = |item: usize| typical * lengths.0[item] + bias.map_or(0.0, |bias| bias[item]);
    let order = &Order::new(exec, items.rows(), out.k, reach)?;
    let panels = CodePanels::pack(exec, items, bias, Some(&order.ids), queries.bits)?;
    search(
        Call { exec, order, k: out.k },
        &Coded { queries, panels },
        seen,
        &mut out,
    )?;
    Ok(out)
}

/// Of each row.
struct Lengths(Vec<f32>);

impl Lengths {
    fn new(exec: Exec, codes: Codes) -> Result<Self, Error> {
        const STEP: usize = 256;
        let mut lengths = vec![0.0; codes.rows()];
        exec.for_work(codes.rows() * codes.stride()).each(
            lengths.chunks_mut(STEP).enumerate(),
            || vec![0i8; codes.padded()],
            |levels, (task, lengths)| {
                for (offset, length) in lengths.iter_mut().enumerate() {
                    *length = length_of(exec, codes, task * STEP + offset, levels);
                }
                Ok(())
            },
        )?;
        Ok(Lengths(lengths))
    }
}

/// No less than the length of a row.
fn length_of(exec: Exec, codes: Codes, row: usize, levels: &mut [i8]) -> f32 {
    let scale = f64::from(codes.scale(row));
    length(f64::from(codes.squared(exec.simd, row, levels)) * scale * scale)
}

struct Coded<'a> {
    queries: Codes<'a>,
    panels: CodePanels,
}

struct Scratch {
    goals: Vec<Goals>,
    tiles: Vec<CodeTile>,
    scan: CodeScan,
    catches: Vec<Catch>,
    lanes: Vec<Lanes>,
    sampled: Vec<Vec<u64>>,
    levels: Vec<i8>,
    sieve: Sieve,
}

impl Kind for Coded<'_> {
    type Scratch = Scratch;

    fn queries(&self) -> usize {
        self.queries.rows()
    }

    fn products(&self) -> usize {
        self.panels.items * self.panels.dim
    }

    fn scratch(&self, call: &Call, group: usize) -> Scratch {
        Scratch {
            goals: Vec::with_capacity(group),
            tiles: vec![CodeTile::default(); group],
            scan: CodeScan::default(),
            catches: vec![Catch::default(); group * ROWS],
            lanes: vec![Lanes::default(); group],
            sampled: vec![Vec::new(); group],
            levels: vec![0; self.queries.padded()],
            sieve: Sieve::new(call.order.items()),
        }
    }

    /// Items that may be among the best are left in the catches, the thresholds that they were held against in the goals.
    fn scan<'a>(
        &self,
        call: &Call,
        guess: usize,
        ids: &[usize],
        seen: &impl Fn(usize) -> &'a [i32],
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        let (simd, panels) = (call.exec.simd, &self.panels);
        let sampled = if guess < call.k { call.order.sampled } else { 0 };
        let inflate = 1.0 + rounding(panels.dim);
        scratch.goals.clear();
        for (tile, (packed, ids)) in scratch.tiles.iter_mut().zip(ids.chunks(ROWS)).enumerate() {
            packed.pack(simd, self.queries, ids.iter().copied(), panels);
            let mut goals = Goals {
                thresholds: [f32::INFINITY; LINE],
                lengths: [0.0; LINE],
            };
            let gone = &mut scratch.sampled[tile];
            gone.clear();
            for (row, &query) in ids.iter().enumerate() {
                goals.thresholds[row] = f32::MIN;
                goals.lengths[row] = length_of(call.exec, self.queries, query, &mut scratch.levels) * inflate;
                for &item in seen(query) {
                    let position = call.order.position(query, item)? as usize;
                    if position < sampled * COLUMNS {
                        gone.push((position * LINE + row) as u64);
                    }
                }
            }
            gone.sort_unstable();
            scratch.goals.push(goals);
        }
        let tiles = &scratch.tiles[..scratch.goals.len()];
        if sampled > 0 {
            let lanes = &mut scratch.lanes[..tiles.len()];
            // With four times as many lanes as are counted, few of the best share one.
            let panels_kept = (4 * guess).div_ceil(COLUMNS).min(sampled);
            lanes.iter_mut().for_each(|lanes| lanes.clear(panels_kept));
            scratch
                .scan
                .sample(simd, tiles, panels, sampled, &scratch.sampled, lanes);
            for (place, _) in ids.iter().enumerate() {
                let best = lanes[place / ROWS]
                    .row(place % ROWS)
                    .iter()
                    .flat_map(|line| line.0)
                    .map(ordered);
                scratch.sieve.lows.clear();
                scratch.sieve.lows.extend(best);
                let threshold = unordered(simd.nth(&scratch.sieve.lows, guess)).max(f32::MIN);
                scratch.goals[place / ROWS].thresholds[place % ROWS] = threshold;
            }
        }
        for catch in &mut scratch.catches[..ids.len()] {
            catch.len = 0;
            catch.widen(room(call.k));
        }
        let mut net = Full {
            call,
            ids,
            seen,
            sieve: &mut scratch.sieve,
            lists: PhantomData,
        };
        let catches = &mut scratch.catches[..ids.len()];
        scratch
            .scan
            .scan(simd, tiles, panels, &mut scratch.goals, catches, &mut net);
        Ok(())
    }

    fn finish(
        &self,
        call: &Call,
        guess: usize,
        (place, _): (usize, usize),
        seen: &[i32],
        scratch: &mut Scratch,
        (items, scores): (&mut [i32], &mut [f32]),
    ) -> bool {
        let (simd, ids) = (call.exec.simd, &call.order.ids);
        let (sieve, catch) = (&mut scratch.sieve, &mut scratch.catches[place]);
        sieve.drop_seen(simd, ids, seen, catch);
        // A threshold that was a guess may have turned out too high.
        if guess < call.k && catch.len < call.possible(seen) {
            return false;
        }
        let surest = sieve.surest(simd, call.k, catch);
        sieve.keys.clear();
        let caught = catch.positions.iter().zip(&catch.lows).take(catch.len);
        let best = caught.filter(|(_, &score)| score >= surest);
        sieve
            .keys
            .extend(best.map(|(&position, &score)| rank_key(score, ids[position as usize])));
        for ((item, score), &key) in items.iter_mut().zip(scores).zip(sieve.order(simd, call.k)) {
            (*item, *score) = (item_of(key), score_of(key));
        }
        true
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
        self.sieve.drop_seen(simd, &self.call.order.ids, seen, catch);
        let threshold = threshold.max(self.sieve.surest(simd, k, catch));
        catch.keep(threshold);
        catch.widen(2 * catch.len + room(k) / 2);
        threshold
    }
}
