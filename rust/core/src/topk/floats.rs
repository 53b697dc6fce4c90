//! Items as floats.

use super::search::{self, Call, Kind};
use crate::error::Error;
use crate::matrix::Matrix;
use crate::score::{pack_tile, Form, Goals, Panels, Sink, COLUMNS, ROWS};
use crate::select::{rank_key, Best};

/// Bytes of packed items that stay in L2 while a group passes over them.
const BLOCK_BYTES: usize = 1 << 19;

pub struct Floats<'a> {
    pub form: Form,
    pub queries: Matrix<'a>,
    pub panels: Panels,
}

pub struct Scratch {
    goals: Vec<Goals>,
    floats: Tiles,
}

struct Tiles {
    tiles: Vec<Vec<f32>>,
    best: Vec<Best>,
    seen: Vec<i32>,
    /// Of each query: where its part of `seen` ends, and how far it has been passed.
    spans: Vec<(usize, usize)>,
}

impl Kind for Floats<'_> {
    type Scratch = Scratch;

    fn queries(&self) -> usize {
        self.queries.rows
    }

    fn products(&self) -> usize {
        self.panels.items * self.panels.dim
    }

    fn scratch(&self, call: &Call, group: usize) -> Scratch {
        Scratch {
            goals: Vec::with_capacity(group),
            floats: Tiles {
                tiles: vec![Vec::new(); group],
                best: vec![Best::new(call.k); group * ROWS],
                seen: Vec::new(),
                spans: Vec::new(),
            },
        }
    }

    fn scan<'a>(
        &self,
        call: &Call,
        guess: usize,
        ids: &[usize],
        seen: &impl Fn(usize) -> &'a [i32],
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        let Scratch { goals, floats } = scratch;
        let panels = &self.panels;
        goals.clear();
        floats.seen.clear();
        floats.spans.clear();
        for (tile, ids) in floats.tiles.iter_mut().zip(ids.chunks(ROWS)) {
            pack_tile(self.queries, ids.iter().copied(), tile);
            goals.push(search::goals(self.form, self.queries, ids, 0.0));
            for &query in ids {
                let start = floats.seen.len();
                for &item in seen(query) {
                    floats.seen.push(call.order.position(query, item)?);
                }
                floats.seen[start..].sort_unstable();
                floats.spans.push((start, floats.seen.len()));
            }
        }
        floats.best.iter_mut().for_each(Best::clear);
        let block = (BLOCK_BYTES / (COLUMNS * 4 * panels.dim).max(1)).max(1);
        let sampled = if guess < call.k { call.order.sampled } else { 0 };
        let mut start = 0;
        while start < panels.count() {
            let keep = if start < sampled { guess } else { call.k };
            let end = if start < sampled { sampled } else { panels.count() }.min(start + block);
            for (t, goals) in goals.iter_mut().enumerate() {
                let rows = t * ROWS..ids.len().min((t + 1) * ROWS);
                let mut sink = Scores {
                    form: self.form,
                    ids: &call.order.ids,
                    keep,
                    best: &mut floats.best[rows.clone()],
                    spans: &mut floats.spans[rows.clone()],
                    seen: &floats.seen,
                };
                let simd = call.exec.simd;
                simd.scan(self.form, &floats.tiles[t], panels, start..end, goals, &mut sink);
                if end == sampled {
                    for (best, threshold) in floats.best[rows].iter_mut().zip(&mut goals.thresholds) {
                        best.cut(guess);
                        *threshold = self.form.reach(best.threshold());
                    }
                }
            }
            start = end;
        }
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
        let best = &mut scratch.floats.best[place];
        if guess < call.k && best.len() < call.possible(seen) {
            return false;
        }
        best.finish(items, scores);
        true
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
    form: Form,
    ids: &'a [i32],
    keep: usize,
    best: &'a mut [Best],
    spans: &'a mut [(usize, usize)],
    seen: &'a [i32],
}

impl Sink for Scores<'_> {
    #[inline(always)]
    fn take(&mut self, row: usize, position: usize, sum: f32) -> f32 {
        let best = &mut self.best[row];
        let key = rank_key(self.form.score(sum), self.ids[position]);
        if best.wants(key) {
            let mut seen = Seen {
                positions: self.seen,
                span: &mut self.spans[row],
            };
            if !seen.has(position) {
                best.push(key, self.keep);
            }
        }
        self.form.reach(best.threshold())
    }
}
