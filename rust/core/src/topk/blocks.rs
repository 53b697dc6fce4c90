//! The best of score blocks.

use super::Ranking;
use crate::csr::Mask;
use crate::error::Error;
use crate::exec::Exec;
use crate::matrix::{check_items_fit, Matrix};
use crate::score::COLUMNS;
use crate::select::{rank_key, Best};

/// The `k` best unseen items of each row of a score block `[queries, items]`. -infinity is a legal score (an item the
/// model rules out); NaN and +infinity are refused.
pub fn topk_scores(exec: Exec, scores: Matrix, seen: Mask, k: usize) -> Result<Ranking, Error> {
    check_items_fit(scores.dim)?;
    let mut out = Ranking::empty(scores.rows, k.min(scores.dim))?;
    let k = out.k;
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
