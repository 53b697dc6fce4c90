//! Items as bytes that rule most of them out; the few that are left are scored exactly.

use std::marker::PhantomData;

use super::search::{self, Call, Kind};
use super::sieve::{room, Sieve};
use crate::error::Error;
use crate::matrix::Matrix;
use crate::score::quantised::{BytePanels, ByteTile, Catch, Lanes, Net};
use crate::score::{Form, Goals, COLUMNS, LINE, ROWS};
use crate::select::{item_of, ordered, rank_key, score_of, unordered};

pub struct Bytes<'a> {
    pub queries: Matrix<'a>,
    pub items: Matrix<'a>,
    pub bias: Option<&'a [f32]>,
    pub panels: &'a BytePanels,
}

pub struct Scratch {
    goals: Vec<Goals>,
    bytes: Tiles,
}

struct Tiles {
    tiles: Vec<ByteTile>,
    catches: Vec<Catch>,
    lanes: Lanes,
    sampled: Vec<u64>,
    sieve: Sieve,
}

impl Kind for Bytes<'_> {
    type Scratch = Scratch;

    fn queries(&self) -> usize {
        self.queries.rows
    }

    fn products(&self) -> usize {
        self.items.rows * self.items.dim
    }

    fn scratch(&self, call: &Call, group: usize) -> Scratch {
        Scratch {
            goals: Vec::with_capacity(group),
            bytes: Tiles {
                tiles: vec![ByteTile::default(); group],
                catches: vec![Catch::default(); group * ROWS],
                lanes: Lanes::default(),
                sampled: Vec::new(),
                sieve: Sieve::new(call.order.items()),
            },
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
        let Scratch { goals, bytes } = scratch;
        let (simd, panels) = (call.exec.simd, self.panels);
        goals.clear();
        let sampled = if guess < call.k { call.order.sampled } else { 0 };
        for (tile, ids) in bytes.tiles.iter_mut().zip(ids.chunks(ROWS)) {
            tile.pack(self.queries, ids.iter().copied(), panels, simd);
            let mut goal = search::goals(Form::Dot, self.queries, ids, panels.unit);
            bytes.sampled.clear();
            for (row, &query) in ids.iter().enumerate() {
                for &item in seen(query) {
                    let position = call.order.position(query, item)? as usize;
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
            catch.widen(room(call.k));
        }
        let Tiles {
            tiles, catches, sieve, ..
        } = bytes;
        let mut net = Full {
            call,
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

    fn finish(
        &self,
        call: &Call,
        guess: usize,
        (place, query): (usize, usize),
        seen: &[i32],
        scratch: &mut Scratch,
        (items, scores): (&mut [i32], &mut [f32]),
    ) -> bool {
        let threshold = scratch.goals[place / ROWS].thresholds[place % ROWS];
        let Tiles { catches, sieve, .. } = &mut scratch.bytes;
        let found = self.settle(call, threshold, query, seen, &mut catches[place], sieve);
        let possible = call.possible(seen);
        // A threshold that was a guess may have turned out too high.
        let certain = if possible < call.k {
            found.len() == possible
        } else {
            found.len() == call.k && found.last().is_none_or(|&key| score_of(key) >= threshold)
        };
        if guess < call.k && !certain {
            return false;
        }
        for ((item, score), &key) in items.iter_mut().zip(scores).zip(found) {
            (*item, *score) = (item_of(key), score_of(key));
        }
        true
    }
}

impl Bytes<'_> {
    /// The best of what a query has caught, by their exact scores, as keys in order.
    fn settle<'s>(
        &self,
        call: &Call,
        threshold: f32,
        query: usize,
        seen: &[i32],
        catch: &mut Catch,
        sieve: &'s mut Sieve,
    ) -> &'s [u64] {
        let simd = call.exec.simd;
        let ids = &call.order.ids;
        sieve.drop_seen(simd, ids, seen, catch);
        let surest = sieve.surest(simd, call.k, catch);
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
            if sieve.scores.len() >= call.k {
                // At least k items reach the lowest of them all.
                floor = floor.max(sieve.scores.iter().copied().fold(f32::INFINITY, f32::min));
            }
        }
        sieve.keys.clear();
        let scored = sieve.chosen.iter().zip(&sieve.scores);
        sieve.keys.extend(scored.map(|(&id, &score)| rank_key(score, id)));
        sieve.order(simd, call.k)
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
