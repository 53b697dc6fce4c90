//! Items as codes: what is caught has its score at once.

use std::marker::PhantomData;

use super::direct::{direct, FewCodes};
use super::is_few;
use super::order::Order;
use super::search::{search, Call, Kind};
use super::sieve::{room, Sieve};
use super::Ranking;
use crate::codes::{check_codes, Codes};
use crate::csr::Mask;
use crate::error::Error;
use crate::exec::Exec;
use crate::score::coded::{code_length, code_lengths, Caught, CodePanels, CodeScan, CodeTile, Relief};
use crate::score::quantised::Lanes;
use crate::score::{rounding, Goals, Tile, COLUMNS, LINE, ROWS};
use crate::select::{item_of, rank_key, score_of};

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
    if is_few(queries.rows(), k) && items.rows() > 0 && k > 0 {
        let mut out = Ranking::empty(queries.rows(), k.min(items.rows()))?;
        let scores = FewCodes::new(exec.simd, queries, items, bias);
        direct(
            exec.for_work(items.rows() * items.dim),
            &scores,
            items.rows(),
            |query| seen.of(query),
            &mut out,
        )?;
        return Ok(out);
    }
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
    let typical = match bias {
        None => 1.0,
        Some(_) => {
            let own = code_lengths(exec, queries)?;
            own.iter().map(|&length| f64::from(length)).sum::<f64>() as f32 / queries.rows() as f32
        }
    };
    let (order, panels) = &packed(exec, items, bias, typical, queries.bits)?;
    let coded = Coded { queries, panels };
    search(Call { exec, order, k: out.k }, &coded, seen, &mut out)?;
    Ok(out)
}

/// Items in the order of a search by queries of about this length and so many bits.
pub fn packed(
    exec: Exec,
    items: Codes,
    bias: Option<&[f32]>,
    typical: f32,
    query_bits: usize,
) -> Result<(Order, CodePanels), Error> {
    let lengths = code_lengths(exec, items)?;
    let reach = |item: usize| typical * lengths[item] + bias.map_or(0.0, |bias| bias[item]);
    let mut order = Order::new(exec, items.rows(), reach)?;
    // Within a panel the largest scale tells how large a sum must be.
    order.lead(|id| items.scale(id as usize));
    let panels = CodePanels::pack(exec, items, &lengths, bias, Some(&order.ids), query_bits)?;
    Ok((order, panels))
}

pub struct Coded<'a> {
    pub queries: Codes<'a>,
    pub panels: &'a CodePanels,
}

pub struct Scratch {
    goals: Vec<Goals>,
    tiles: Vec<CodeTile>,
    scan: CodeScan,
    catches: Vec<Caught>,
    lanes: Vec<Lanes>,
    /// Of the first panels of the sample.
    scores: Vec<Tile>,
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
            catches: vec![Caught::default(); group * ROWS],
            lanes: vec![Lanes::default(); group],
            scores: vec![Tile::default(); group * call.order.first],
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
        let (simd, panels) = (call.exec.simd, self.panels);
        let (first, sampled) = match guess < call.k {
            true => (call.order.first, call.order.sampled),
            false => (0, 0),
        };
        let first_guess = call.order.first_guess(call.k);
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
                goals.lengths[row] = code_length(call.exec, self.queries, query, &mut scratch.levels) * inflate;
                for &item in seen(query) {
                    let position = call.order.position(query, item)? as usize;
                    if position < first * COLUMNS {
                        gone.push((position * LINE + row) as u64);
                    }
                }
            }
            gone.sort_unstable();
            scratch.goals.push(goals);
        }
        let tiles = &scratch.tiles[..scratch.goals.len()];
        let Scratch {
            goals,
            scan,
            catches,
            lanes,
            scores,
            sampled: gone,
            sieve,
            ..
        } = scratch;
        let catches = &mut catches[..ids.len()];
        for caught in &mut *catches {
            caught.len = 0;
            caught.widen(room(call.k));
        }
        if sampled > 0 {
            // With four times as many lanes as are counted, few of the best share one.
            let lanes = &mut lanes[..tiles.len()];
            let panels_kept = (4 * first_guess).div_ceil(COLUMNS).min(first);
            lanes.iter_mut().for_each(|lanes| lanes.clear(panels_kept));
            scan.sample(simd, tiles, panels, first, gone, lanes, scores);
            for (place, caught) in catches.iter_mut().enumerate() {
                let (tile, row) = (place / ROWS, place % ROWS);
                let best = lanes[tile].row(row).iter().flat_map(|line| &line.0);
                let threshold = &mut goals[tile].thresholds[row];
                *threshold = sieve.nth(simd, first_guess, best);
                simd.catch_sampled(&scores[tile * first..][..first], row, *threshold, caught);
            }
        }
        let mut full = Full {
            call,
            ids,
            seen,
            sieve,
            lists: PhantomData,
        };
        scan.scan(simd, tiles, panels, first..sampled, goals, catches, &mut full);
        if sampled > 0 {
            for (place, caught) in catches.iter_mut().enumerate() {
                let threshold = &mut goals[place / ROWS].thresholds[place % ROWS];
                let unseen = seen(ids[place]);
                full.sieve
                    .with_seen(unseen, |bits| simd.drop_seen_codes(bits, &call.order.ids, caught));
                *threshold = threshold.max(full.sieve.nth(simd, guess, caught.scores()));
                simd.keep_codes(*threshold, caught);
            }
        }
        scan.scan(simd, tiles, panels, sampled..panels.panels(), goals, catches, &mut full);
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
        let (sieve, caught) = (&mut scratch.sieve, &mut scratch.catches[place]);
        sieve.with_seen(seen, |bits| simd.drop_seen_codes(bits, ids, caught));
        // A threshold that was a guess may have turned out too high.
        if guess < call.k && caught.len < call.possible(seen) {
            return false;
        }
        let surest = sieve.nth(simd, call.k, caught.scores());
        simd.keep_codes(surest, caught);
        sieve.keys.clear();
        let best = caught.pairs();
        sieve
            .keys
            .extend(best.map(|(position, score)| rank_key(score, ids[position as usize])));
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

impl<'a, F: Fn(usize) -> &'a [i32]> Relief for Full<'_, 'a, F> {
    #[cold]
    #[inline(never)]
    fn relieve(&mut self, place: usize, threshold: f32, caught: &mut Caught) -> f32 {
        let (k, simd) = (self.call.k, self.call.exec.simd);
        let (seen, ids) = ((self.seen)(self.ids[place]), &self.call.order.ids);
        self.sieve
            .with_seen(seen, |bits| simd.drop_seen_codes(bits, ids, caught));
        let threshold = threshold.max(self.sieve.nth(simd, k, caught.scores()));
        simd.keep_codes(threshold, caught);
        caught.widen(2 * caught.len + room(k) / 2);
        threshold
    }
}
