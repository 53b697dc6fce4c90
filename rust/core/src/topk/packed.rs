//! A catalogue that is packed once and asked often.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Mutex;

use super::bytes::Bytes;
use super::order::Order;
use super::search::{search, Call};
use super::sieve::Sieve;
use super::{is_few, select, Ranking};
use crate::csr::Mask;
use crate::error::Error;
use crate::exec::Exec;
use crate::matrix::{check_bound, check_shapes, largest_bias, Matrix};
use crate::score::quantised::{BytePanels, ByteQuery, ByteScan, Catch};
use crate::score::{length, rounding, square, Form};
use crate::select::{item_of, ordered, rank_key, score_of, unordered};

/// Panels of one task of a thread: so few that their bytes stay in L2 while all queries pass over them.
const STEP: usize = 64;
/// A catch of one query is sieved when so many are held: few, since the first panels are caught whole.
fn room(k: usize) -> usize {
    (3 * k).max(96)
}

/// Bytes of a catalogue that are read about as fast as one number is in other calls: below two million of them a helper costs more
/// than it does, and where processors are busy it is waited for.
const BYTES: usize = 8;

/// Items as bytes in panels, beside the floats that they were made of, which every call is given again.
///
/// What may be among the best by its bytes is scored exactly: lists are those of [`super::topk`], whatever is packed here.
pub struct Catalogue {
    order: Order,
    panels: BytePanels,
    /// The largest magnitudes of items and biases.
    largest: f32,
    bias: f32,
    biased: bool,
    dim: usize,
}

impl Catalogue {
    /// Refuses NaN and infinity by name, as [`super::topk`] does.
    pub fn pack(exec: Exec, items: Matrix, bias: Option<&[f32]>) -> Result<Self, Error> {
        check_shapes(items, items)?;
        let (largest, most) = (items.largest(exec, "items")?, largest_bias(exec, items.rows, bias)?);
        if !BytePanels::fits(items.dim) {
            return Err(Error::Shape(format!("{} dimensions are not packed", items.dim)));
        }
        // Queries are taken to be about as long as items. Only time depends on it.
        let squared = square(items.data);
        let typical = (squared / items.rows.max(1) as f64).sqrt() as f32;
        let unit = (squared / items.data.len().max(1) as f64).sqrt() as f32;
        let unit = if unit.is_normal() { unit } else { 1.0 };
        let order = Order::new(exec, items.rows, |item| {
            typical * length(square(items.row(item))) + bias.map_or(0.0, |b| b[item])
        })?;
        let panels = BytePanels::pack(exec, items, bias, &order.ids, unit)?;
        Ok(Catalogue {
            order,
            panels,
            largest,
            bias: most,
            biased: bias.is_some(),
            dim: items.dim,
        })
    }

    /// Bytes that it takes beside the items.
    pub fn bytes(&self) -> usize {
        2 * size_of_val(&*self.order.ids) + self.panels.bytes()
    }

    /// [`super::topk`] of the items that were packed.
    pub fn topk(
        &self,
        exec: Exec,
        queries: Matrix,
        items: Matrix,
        bias: Option<&[f32]>,
        seen: Mask,
        k: usize,
    ) -> Result<Ranking, Error> {
        check_shapes(queries, items)?;
        let same = items.rows == self.order.items() && items.dim == self.dim;
        if !same || bias.is_some() != self.biased || bias.is_some_and(|bias| bias.len() != items.rows) {
            return Err(Error::Shape("other items than were packed".into()));
        }
        check_bound(queries.largest(exec, "queries")?, self.largest, items.dim, self.bias)?;
        let lists = |query| seen.of(query);
        let mut out = Ranking::empty(queries.rows, k.min(items.rows))?;
        if out.items.is_empty() {
            return Ok(out);
        }
        let order = &self.order;
        let few = is_few(queries.rows, k);
        // Tiles of many queries are scanned with certain instructions, and panels for others cannot be read by them.
        let tiles = exec.simd.has_bytes() && (self.panels.chunk == 0 || exec.simd.has_tiles());
        if items.dim == 0 || !(few || tiles) {
            return select(exec, Form::Dot, queries, items, bias, k, lists);
        }
        if !few {
            let panels = &self.panels;
            let bytes = Bytes {
                queries,
                items,
                bias,
                panels,
            };
            search(Call { exec, order, k: out.k }, &bytes, lists, &mut out)?;
            return Ok(out);
        }
        let k = out.k;
        let asking: Vec<Asking> = (0..queries.rows)
            .map(|query| Asking::new(self, exec, queries, query, lists(query)))
            .collect::<Result<_, _>>()?;
        let panels = self.panels.count();
        let work = exec.for_work(items.data.len() / BYTES);
        let step = panels.div_ceil(4 * work.threads()).clamp(1, STEP);
        work.each(
            (0..panels.div_ceil(step)).map(|task| task * step),
            || (ByteScan::default(), Catch::default(), Sieve::new(0)),
            |(scan, catch, sieve), first| {
                for one in &asking {
                    one.pass(self, exec, scan, first..panels.min(first + step), k, catch, sieve);
                }
                Ok(())
            },
        )?;
        let mut sieve = Sieve::new(0);
        let lists = out.items.chunks_mut(k).zip(out.scores.chunks_mut(k));
        for (query, (one, (ids, scores))) in asking.into_iter().zip(lists).enumerate() {
            let best = one.settle(self, exec, queries.row(query), items, bias, k, &mut sieve);
            for ((id, score), &key) in ids.iter_mut().zip(scores).zip(best) {
                (*id, *score) = (item_of(key), score_of(key));
            }
        }
        Ok(out)
    }
}

/// A query on its way.
struct Asking {
    bytes: ByteQuery,
    length: f32,
    /// A bit an item; empty if there are none.
    seen: Vec<u32>,
    /// What k items are certain to reach, as an ordered integer.
    floor: AtomicU32,
    /// What may be among the best.
    pool: Mutex<Catch>,
}

impl Asking {
    fn new(of: &Catalogue, exec: Exec, queries: Matrix, query: usize, seen: &[i32]) -> Result<Self, Error> {
        let mut bytes = ByteQuery::new(&of.panels);
        let (row, unit) = (queries.row(query), of.panels.unit);
        bytes.pack(exec.simd, row, unit);
        let squared = square(row) + f64::from(unit) * f64::from(unit);
        Ok(Asking {
            bytes,
            length: length(squared) * (1.0 + rounding(row.len())),
            seen: of.order.marked(query, seen)?,
            floor: AtomicU32::new(ordered(f32::MIN)),
            pool: Mutex::default(),
        })
    }

    fn drop_seen(&self, of: &Catalogue, exec: Exec, catch: &mut Catch) {
        if !self.seen.is_empty() && catch.len > 0 {
            exec.simd.drop_seen(&self.seen, &of.order.ids, catch);
        }
    }

    /// Some panels: what they have goes to the pool, and the floor rises by it.
    #[allow(clippy::too_many_arguments)]
    fn pass(
        &self,
        of: &Catalogue,
        exec: Exec,
        scan: &mut ByteScan,
        range: Range<usize>,
        k: usize,
        catch: &mut Catch,
        sieve: &mut Sieve,
    ) {
        let floor = || unordered(self.floor.load(Ordering::Relaxed));
        catch.len = 0;
        catch.widen(room(k));
        let relieve = |threshold: f32, catch: &mut Catch| {
            self.drop_seen(of, exec, catch);
            let threshold = threshold.max(sieve.surest(exec.simd, k, catch)).max(floor());
            catch.keep(threshold);
            catch.widen(2 * catch.len + room(k) / 2);
            threshold
        };
        scan.scan(
            exec.simd,
            &self.bytes,
            self.length,
            &of.panels,
            range,
            floor(),
            catch,
            relieve,
        );
        self.drop_seen(of, exec, catch);
        if catch.len == 0 {
            return;
        }
        let mut pool = self.pool.lock().expect("nobody panics while holding it");
        pool.take_in(catch, floor());
        let surest = sieve.surest(exec.simd, k, &pool);
        if surest > floor() {
            self.floor.fetch_max(ordered(surest), Ordering::Relaxed);
            pool.keep(surest);
        }
    }

    /// The best by their exact scores, as keys in order.
    #[allow(clippy::too_many_arguments)]
    fn settle<'s>(
        self,
        of: &Catalogue,
        exec: Exec,
        query: &[f32],
        items: Matrix,
        bias: Option<&[f32]>,
        k: usize,
        sieve: &'s mut Sieve,
    ) -> &'s [u64] {
        let mut pool = self.pool.into_inner().expect("nobody panicked while holding it");
        pool.keep(unordered(self.floor.into_inner()));
        sieve.chosen.clear();
        let positions = pool.positions[..pool.len].iter();
        sieve
            .chosen
            .extend(positions.map(|&position| of.order.ids[position as usize]));
        sieve.scores.resize(sieve.chosen.len(), 0.0);
        exec.simd.dots(query, items, bias, &sieve.chosen, &mut sieve.scores);
        sieve.keys.clear();
        let scored = sieve.chosen.iter().zip(&sieve.scores);
        sieve.keys.extend(scored.map(|(&id, &score)| rank_key(score, id)));
        sieve.order(exec.simd, k)
    }
}
