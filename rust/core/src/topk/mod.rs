//! Top-k lists: scoring, masking and selection in one pass; the score matrix never reaches memory.

mod blocks;
mod bytes;
mod codes;
mod direct;
mod floats;
mod order;
mod packed;
mod packed_codes;
mod search;
mod sieve;

pub use blocks::topk_scores;
pub use codes::{neighbours_codes, topk_codes};
pub use packed::Catalogue;
pub use packed_codes::CodeCatalogue;

use std::ops::RangeInclusive;
use std::sync::atomic::AtomicU32;

use crate::csr::Mask;
use crate::error::Error;
use crate::exec::Exec;
use crate::matrix::{check_bound, check_finite, check_items_fit, check_shapes, largest_bias, Matrix, NOT_FINITE};
use crate::room::{filled, reserve};
use crate::score::quantised::BytePanels;
use crate::score::{length, square, Form, Panels};

use bytes::Bytes;
use direct::{direct, FewFloats};
use floats::Floats;
use order::Order;
use search::{search, Call};

/// Queries up to which a catalogue is not packed.
const FEW: usize = 8;
/// Lists up to which it is not.
const FEW_LISTED: usize = 1024;

/// Lists `[queries, k]`, best first; -1 and -infinity after the last.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranking {
    pub items: Vec<i32>,
    pub scores: Vec<f32>,
    /// What was asked for, but no more than there are items.
    pub k: usize,
}

impl Ranking {
    fn empty(queries: usize, k: usize) -> Result<Self, Error> {
        Ok(Ranking {
            items: filled(-1, queries, k)?,
            scores: filled(f32::NEG_INFINITY, queries, k)?,
            k,
        })
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
    let lists = |query| seen.of(query);
    if is_few(queries.rows, k) && items.dim > 0 && items.rows > 0 {
        return few(exec, queries, items, bias, k, lists);
    }
    check_finite(exec, queries, items, bias)?;
    select(exec, Form::Dot, queries, items, bias, k, lists)
}

/// Whether so many lists of `k` are made without packing the catalogue.
fn is_few(queries: usize, k: usize) -> bool {
    (1..=FEW).contains(&queries) && k <= FEW_LISTED
}

/// [`select`] for few queries. What [`check_finite`] asks of the items is asked on the way.
fn few<'a>(
    exec: Exec,
    queries: Matrix,
    items: Matrix,
    bias: Option<&[f32]>,
    k: usize,
    seen: impl Fn(usize) -> &'a [i32] + Sync,
) -> Result<Ranking, Error> {
    check_shapes(queries, items)?;
    let q = queries.largest(exec, "queries")?;
    let b = largest_bias(exec.for_work(items.rows), items.rows, bias)?;
    let mut out = Ranking::empty(queries.rows, k.min(items.rows))?;
    let scores = FewFloats {
        queries,
        items,
        bias,
        largest: AtomicU32::new(0),
    };
    if out.k == 0 {
        check_finite(exec, queries, items, bias)?;
        return Ok(out);
    }
    direct(exec.for_work(items.data.len()), &scores, items.rows, seen, &mut out)?;
    let bits = scores.largest.into_inner();
    if bits >= NOT_FINITE {
        check_finite(exec, queries, items, bias)?;
    }
    check_bound(q, f32::from_bits(bits), items.dim, b)?;
    Ok(out)
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
    let mut out = Ranking::empty(queries.rows, k.min(items.rows))?;
    if out.items.is_empty() {
        return Ok(out);
    }
    let typical = match form {
        Form::Dot => (square(queries.data) / queries.rows.max(1) as f64).sqrt() as f32,
        Form::Distance => 0.0,
    };
    let order = &Order::new(exec, items.rows, |item| match form {
        Form::Dot => typical * length(square(items.row(item))) + bias.map_or(0.0, |b| b[item]),
        Form::Distance => 0.0,
    })?;
    let call = Call { exec, order, k: out.k };
    if form == Form::Dot && exec.simd.has_bytes() && BytePanels::fits(items.dim) && items.dim > 0 {
        let unit = (square(queries.data) / queries.data.len() as f64).sqrt() as f32;
        let unit = if unit.is_normal() { unit } else { 1.0 };
        let panels = &BytePanels::pack(exec, items, bias, &order.ids, unit)?;
        let bytes = Bytes {
            queries,
            items,
            bias,
            panels,
        };
        search(call, &bytes, seen, &mut out)?;
    } else {
        let panels = Panels::pack(exec, items, bias, Some(&order.ids))?;
        let floats = Floats { form, queries, panels };
        search(call, &floats, seen, &mut out)?;
    }
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

/// Largest coordinates between which squares of differences neither overflow nor vanish beside it.
const SQUARED: RangeInclusive<f32> = 1e-12..=1e15;

/// The `k` nearest other rows of each row, or all others where there are fewer.
pub fn neighbours(exec: Exec, vectors: Matrix, k: usize, distance: Distance) -> Result<Ranking, Error> {
    check_items_fit(vectors.rows)?;
    let largest = vectors.largest(exec, "vectors")?;
    let mut ids = Vec::new();
    reserve(&mut ids, vectors.rows)?;
    ids.extend(0..vectors.rows as i32);
    let k = k.min(vectors.rows.saturating_sub(1));
    let itself = |row: usize| &ids[row..=row];
    match distance {
        Distance::Dot => {
            check_bound(largest, largest, vectors.dim, 0.0)?;
            select(exec, Form::Dot, vectors, vectors, None, k, itself)
        }
        Distance::Cosine => {
            let mut unit = copied(vectors.data)?;
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
            if largest == 0.0 || SQUARED.contains(&largest) {
                return select(exec, Form::Distance, vectors, vectors, None, k, itself);
            }
            if 2.0 * f64::from(largest) * (vectors.dim as f64).sqrt() > f64::from(f32::MAX) {
                return Err(Error::Overflow {
                    queries: largest,
                    items: largest,
                    dim: vectors.dim,
                });
            }
            // A power of two, so that no digit changes.
            let scale = 2f64.powi(-(f64::from(largest).log2().floor() as i32));
            let mut scaled = copied(vectors.data)?;
            scaled.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
            let scaled = Matrix::new(&scaled, vectors.rows, vectors.dim);
            let mut out = select(exec, Form::Distance, scaled, scaled, None, k, itself)?;
            out.scores
                .iter_mut()
                .for_each(|score| *score = (f64::from(*score) / scale) as f32);
            Ok(out)
        }
    }
}

fn copied(values: &[f32]) -> Result<Vec<f32>, Error> {
    let mut own = Vec::new();
    reserve(&mut own, values.len())?;
    own.extend_from_slice(values);
    Ok(own)
}
