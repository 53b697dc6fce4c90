//! A catalogue of codes that is packed once and asked often.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;

use super::codes::{packed, Coded};
use super::order::Order;
use super::search::{search, Call};
use super::{is_few, Ranking};
use crate::codes::{check_code_scores, check_codes, Codes};
use crate::csr::Mask;
use crate::error::Error;
use crate::exec::Exec;
use crate::score::coded::{code_length, code_lengths, CodePanels, CodeQuery, OneScan};
use crate::score::{rounding, COLUMNS};
use crate::select::{rank_key, Best};
use crate::simd::compiled;

/// Panels that are scored before the next ones are looked at, so few that their scores stay in L1.
const STEP: usize = 16;
/// Bits of the queries that are made at run time.
const QUERY_BITS: usize = 8;
/// Bytes of a catalogue that are read about as fast as one number is in other calls: below two million of them a helper costs more
/// than it does, and where processors are busy it is waited for.
const BYTES: usize = 8;

/// Items in panels, which hold all that their scores need.
pub struct CodeCatalogue {
    order: Order,
    panels: CodePanels,
    /// What a coordinate of an item is at most, and the largest bias.
    reach: f64,
    bias: f32,
    bits: usize,
}

impl CodeCatalogue {
    /// Refuses what [`super::topk_codes`] refuses of items.
    pub fn pack(exec: Exec, items: Codes, bias: Option<&[f32]>) -> Result<Self, Error> {
        check_codes(items, items, bias)?;
        // Queries are taken to be about as long as items. Only time depends on it.
        let typical = match bias {
            None => 1.0,
            Some(_) => {
                let lengths = code_lengths(exec, items)?;
                lengths.iter().map(|&length| f64::from(length)).sum::<f64>() as f32 / items.rows().max(1) as f32
            }
        };
        let (order, panels) = packed(exec, items, bias, typical, QUERY_BITS)?;
        Ok(CodeCatalogue {
            order,
            panels,
            reach: items.reach(),
            bias: bias
                .unwrap_or_default()
                .iter()
                .fold(0.0, |most, bias| bias.abs().max(most)),
            bits: items.bits,
        })
    }

    /// Bytes that it takes beside the items.
    pub fn bytes(&self) -> usize {
        2 * size_of_val(&*self.order.ids) + self.panels.bytes()
    }

    /// [`super::topk_codes`] of the items that were packed.
    pub fn topk(&self, exec: Exec, queries: Codes, seen: Mask, k: usize) -> Result<Ranking, Error> {
        if queries.dim != self.panels.dim {
            let dims = (queries.dim, self.panels.dim);
            return Err(Error::Shape(format!("queries have dim {}, items {}", dims.0, dims.1)));
        }
        check_code_scores(queries, self.reach, self.bias)?;
        let lists = |query| seen.of(query);
        let mut out = Ranking::empty(queries.rows(), k.min(self.order.items()))?;
        if out.items.is_empty() {
            return Ok(out);
        }
        let (order, panels) = (&self.order, &self.panels);
        if !is_few(queries.rows(), k) {
            let coded = Coded { queries, panels };
            search(Call { exec, order, k: out.k }, &coded, lists, &mut out)?;
            return Ok(out);
        }
        let k = out.k;
        let asking: Vec<Asking> = (0..queries.rows())
            .map(|query| Asking::new(self, exec, queries, query, lists(query)))
            .collect::<Result<_, _>>()?;
        let count = panels.panels();
        let work = exec.for_work(self.order.items() * panels.dim * self.bits / 8 / BYTES);
        let step = count.div_ceil(4 * work.threads()).clamp(1, STEP);
        work.each(
            (0..count.div_ceil(step)).map(|task| task * step),
            || (OneScan::default(), vec![0.0f32; step * COLUMNS], Best::new(k)),
            |(scan, scores, best), first| {
                let panels = first..count.min(first + step);
                let scores = &mut scores[..panels.len() * COLUMNS];
                for one in &asking {
                    best.clear();
                    best.raise(one.floor.load(Ordering::Relaxed));
                    if one.is_hopeless(&self.panels, panels.clone(), best.threshold()) {
                        continue;
                    }
                    scan.scores(exec.simd, &one.codes, &self.panels, first, scores);
                    let ids = &order.ids[first * COLUMNS..order.items().min(panels.end * COLUMNS)];
                    exec.simd.note_placed(scores, ids, &one.seen, k, best);
                    let (keys, floor) = best.cut_to(k);
                    one.floor.fetch_max(floor, Ordering::Relaxed);
                    if !keys.is_empty() {
                        let mut pool = one.pool.lock().expect("nobody panics while holding it");
                        keys.iter().for_each(|&key| pool.push(key, k));
                        one.floor.fetch_max(pool.floor(), Ordering::Relaxed);
                    }
                }
                Ok(())
            },
        )?;
        let lists = out.items.chunks_mut(k).zip(out.scores.chunks_mut(k));
        for (one, (items, scores)) in asking.into_iter().zip(lists) {
            let mut pool = one.pool.into_inner().expect("nobody panicked while holding it");
            pool.finish(items, scores);
        }
        Ok(out)
    }
}

/// A query on its way.
struct Asking {
    codes: CodeQuery,
    /// No score passes this times an item's length, plus what its panel adds.
    length: f32,
    /// A bit an item; empty if there are none.
    seen: Vec<u32>,
    /// What its best cannot be below, and what may be among them.
    floor: AtomicU64,
    pool: Mutex<Best>,
}

impl Asking {
    fn new(of: &CodeCatalogue, exec: Exec, queries: Codes, query: usize, seen: &[i32]) -> Result<Self, Error> {
        let mut levels = vec![0; queries.padded()];
        Ok(Asking {
            codes: CodeQuery::new(exec.simd, queries, query, &of.panels),
            length: code_length(exec, queries, query, &mut levels) * (1.0 + rounding(of.panels.dim)),
            seen: of.order.marked(query, seen)?,
            floor: AtomicU64::new(0),
            pool: Mutex::new(Best::new(0)),
        })
    }

    /// By Cauchy and Schwarz, whether no item of some panels reaches the threshold.
    fn is_hopeless(&self, panels: &CodePanels, mut range: std::ops::Range<usize>, threshold: f32) -> bool {
        range.all(|panel| self.length.mul_add(panels.lengths[panel], panels.offsets[panel]) < threshold)
    }
}

compiled! {
    /// Takes in the scores of items, those whose bits are set in `seen` left out.
    fn note_placed(scores: &[f32], ids: &[i32], seen: &[u32], k: usize, best: &mut Best) = note_placed;
}

#[inline(always)]
fn note_placed(scores: &[f32], ids: &[i32], seen: &[u32], k: usize, best: &mut Best) {
    for (scores, ids) in scores.chunks(COLUMNS).zip(ids.chunks(COLUMNS)) {
        let threshold = best.threshold();
        if scores.iter().fold(0, |any, &s| any | u32::from(s >= threshold)) == 0 {
            continue;
        }
        for (&score, &id) in scores.iter().zip(ids) {
            let key = rank_key(score, id);
            let gone = !seen.is_empty() && seen[id as usize / 32] >> (id % 32) & 1 == 1;
            if score >= best.threshold() && best.wants(key) && !gone {
                best.push(key, k);
            }
        }
    }
}
