//! Top-k lists: scoring, masking and selection in one pass; the score matrix never reaches memory.

use crate::csr::Mask;
use crate::error::Error;
use crate::exec::Exec;
use crate::score::{check_finite, pack_tile, Form, Matrix, Panels, Tile, COLUMNS, ROWS};
use crate::select::Best;

/// Query tiles that share a pass over a block of panels.
const GROUP: usize = 20;
/// Bytes of packed items that stay in L2 while a group passes over them.
const BLOCK_BYTES: usize = 1 << 20;

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
    let panels = Panels::pack(exec, items, bias)?;
    let block = (BLOCK_BYTES / (COLUMNS * 4 * items.dim.max(1))).max(1);
    let group = GROUP
        .min(queries.rows.div_ceil(ROWS).div_ceil(2 * exec.threads()))
        .max(1);
    let chunk = group * ROWS * k;
    let tasks = out
        .items
        .chunks_mut(chunk)
        .zip(out.scores.chunks_mut(chunk))
        .enumerate();
    exec.each(
        tasks,
        || {
            (
                vec![Vec::new(); group],
                vec![Best::new(k); group * ROWS],
                Tile::default(),
            )
        },
        |(tiles, best, tile), (task, (out_items, out_scores))| {
            let first = task * group * ROWS;
            let count = (queries.rows - first).min(group * ROWS);
            let tiles = &mut tiles[..count.div_ceil(ROWS)];
            for (t, tile) in tiles.iter_mut().enumerate() {
                pack_tile(queries, first + t * ROWS, tile);
            }
            let mut next = vec![0usize; count];
            best.iter_mut().for_each(Best::clear);
            for block_start in (0..panels.count()).step_by(block) {
                let block_end = (block_start + block).min(panels.count());
                for (t, packed) in tiles.iter().enumerate() {
                    for panel in block_start..block_end {
                        let (lines, bias) = panels.panel(panel);
                        exec.simd.tile(form, packed, lines, bias, tile);
                        let base = panel * COLUMNS;
                        for row in 0..ROWS.min(count - t * ROWS) {
                            let query = t * ROWS + row;
                            let best = &mut best[query];
                            let scores = &tile.0[row];
                            let threshold = best.threshold;
                            if scores.iter().fold(0, |any, &s| any | u32::from(s >= threshold)) == 0 {
                                continue;
                            }
                            let seen = seen(first + query);
                            for (column, &score) in scores.iter().enumerate().take(panels.items - base) {
                                if score >= best.threshold {
                                    let item = (base + column) as i32;
                                    let next = &mut next[query];
                                    while *next < seen.len() && seen[*next] < item {
                                        *next += 1;
                                    }
                                    if seen.get(*next) != Some(&item) {
                                        best.push(score, item);
                                    }
                                }
                            }
                        }
                    }
                }
            }
            for ((best, items), scores) in best
                .iter_mut()
                .zip(out_items.chunks_mut(k))
                .zip(out_scores.chunks_mut(k))
            {
                best.finish(items, scores);
            }
            Ok(())
        },
    )?;
    Ok(out)
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
                let threshold = best.threshold;
                if block.iter().fold(0, |any, &s| any | u32::from(s >= threshold)) == 0 {
                    continue;
                }
                for (column, &score) in block.iter().enumerate() {
                    if score >= best.threshold {
                        let item = (base + column) as i32;
                        while next < seen.len() && seen[next] < item {
                            next += 1;
                        }
                        if seen.get(next) != Some(&item) {
                            best.push(score, item);
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
