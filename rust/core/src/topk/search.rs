//! The search for the best of a catalogue, whatever its items are.

use super::order::Order;
use super::Ranking;
use crate::error::Error;
use crate::exec::Exec;
use crate::matrix::Matrix;
use crate::score::{length, rounding, square, Form, Goals, LINE, ROWS};

/// Query tiles that share a pass over a block of panels.
const GROUP: usize = 20;
/// Multiply-adds of one task: a tenth of a second at most.
const TASK_PRODUCTS: usize = 20_000_000_000;

/// A packed catalogue and the queries that search it: what a kind of items brings to top-k lists.
///
/// To add one (vectors of another width, packed codes): a file with its panels, its scan and this trait for both.
pub trait Kind: Sync {
    /// What a thread works with.
    type Scratch;

    fn queries(&self) -> usize;

    /// Multiply-adds of a query.
    fn products(&self) -> usize;

    /// Room for `group` tiles of queries.
    fn scratch(&self, call: &Call, group: usize) -> Self::Scratch;

    /// Passes over the catalogue for the queries `ids`. While `guess` is less than k, so many of the best of the sample make the
    /// threshold.
    fn scan<'a>(
        &self,
        call: &Call,
        guess: usize,
        ids: &[usize],
        seen: &impl Fn(usize) -> &'a [i32],
        scratch: &mut Self::Scratch,
    ) -> Result<(), Error>;

    /// Writes the list of a query, given by its number among those scanned and its own, best first; false, and nothing written, if the guess
    /// turned out too high for it.
    fn finish(
        &self,
        call: &Call,
        guess: usize,
        query: (usize, usize),
        seen: &[i32],
        scratch: &mut Self::Scratch,
        out: (&mut [i32], &mut [f32]),
    ) -> bool;
}

/// What a call is about.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub exec: Exec<'a>,
    pub order: &'a Order,
    pub k: usize,
}

impl Call<'_> {
    /// How long a list can be.
    pub fn possible(&self, seen: &[i32]) -> usize {
        self.k.min(self.order.items().saturating_sub(seen.len()))
    }
}

/// The lists of all queries, into `out`.
pub fn search<'a>(
    call: Call,
    kind: &impl Kind,
    seen: impl Fn(usize) -> &'a [i32] + Sync,
    out: &mut Ranking,
) -> Result<(), Error> {
    let Call { exec, order, k } = call;
    let queries = kind.queries();
    // A task ends soon enough for the calling thread to ask whether to stop.
    let group = GROUP
        .min(queries.div_ceil(ROWS).div_ceil(4 * exec.threads()))
        .min(TASK_PRODUCTS / kind.products().saturating_mul(ROWS).max(1))
        .max(1);
    let chunk = group * ROWS * k;
    let tasks = out
        .items
        .chunks_mut(chunk)
        .zip(out.scores.chunks_mut(chunk))
        .enumerate();
    exec.each(
        tasks,
        || kind.scratch(&call, group),
        |scratch, (task, (out_items, out_scores))| {
            let first = task * group * ROWS;
            let mut ids: Vec<usize> = (first..queries.min(first + group * ROWS)).collect();
            let mut guess = order.guess(k);
            while !ids.is_empty() {
                let mut again = Vec::new();
                kind.scan(&call, guess, &ids, &seen, scratch)?;
                for (place, &query) in ids.iter().enumerate() {
                    let slots = (query - first) * k..(query - first + 1) * k;
                    let out = (&mut out_items[slots.clone()], &mut out_scores[slots]);
                    if !kind.finish(&call, guess, (place, query), seen(query), scratch, out) {
                        again.push(query);
                    }
                }
                ids = again;
                guess = k;
            }
            Ok(())
        },
    )
}

/// Of a tile of queries, each with `unit` as one coordinate more: nothing to beat yet.
pub fn goals(form: Form, queries: Matrix, ids: &[usize], unit: f32) -> Goals {
    let inflate = 1.0 + rounding(queries.dim);
    let mut goals = Goals {
        thresholds: [f32::INFINITY; LINE],
        lengths: [0.0; LINE],
    };
    for (row, &query) in ids.iter().enumerate() {
        goals.thresholds[row] = f32::MIN;
        goals.lengths[row] = match form {
            Form::Dot => length(square(queries.row(query)) + f64::from(unit) * f64::from(unit)) * inflate,
            Form::Distance => f32::INFINITY,
        };
    }
    goals
}
