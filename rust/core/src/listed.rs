//! Scores of given items.

use crate::error::Error;
use crate::exec::Exec;
use crate::matrix::{check_finite, Matrix};
use crate::room::filled;

/// Queries of a task.
const STEP: usize = 64;

/// Scores `[queries, width]` of each query and the items that its row of `lists` names, those of top-k lists; -infinity where the
/// list has -1.
pub fn listed_scores(
    exec: Exec,
    queries: Matrix,
    items: Matrix,
    bias: Option<&[f32]>,
    lists: &[i32],
    width: usize,
) -> Result<Vec<f32>, Error> {
    check_finite(exec, queries, items, bias)?;
    if queries.rows.saturating_mul(width) != lists.len() {
        return Err(Error::Shape(format!(
            "{} places in lists of {width} for {} queries",
            lists.len(),
            queries.rows
        )));
    }
    let mut out = filled(f32::NEG_INFINITY, queries.rows, width)?;
    if out.is_empty() {
        return Ok(out);
    }
    exec.for_work(out.len().saturating_mul(items.dim)).each(
        out.chunks_mut(STEP * width).zip(lists.chunks(STEP * width)).enumerate(),
        || (Vec::new(), Vec::new()),
        |(ids, scores), (task, (out, lists))| {
            for (row, (out, list)) in out.chunks_mut(width).zip(lists.chunks(width)).enumerate() {
                let query = task * STEP + row;
                ids.clear();
                ids.extend(list.iter().copied().filter(|&item| item != -1));
                if let Some(&item) = ids.iter().find(|&&item| item < 0 || item as usize >= items.rows) {
                    return Err(Error::ItemRange {
                        what: "lists",
                        row: query,
                        item: i64::from(item),
                        items: items.rows,
                    });
                }
                scores.resize(ids.len(), 0.0f32);
                exec.simd.dots(queries.row(query), items, bias, ids, scores);
                let mut own = scores.iter();
                for (out, _) in out.iter_mut().zip(list).filter(|(_, &item)| item != -1) {
                    *out = own.next().map_or(0.0, |score| score + 0.0); // -0 is 0
                }
            }
            Ok(())
        },
    )?;
    Ok(out)
}
