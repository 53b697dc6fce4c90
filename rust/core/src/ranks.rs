//! Exact ranks by counting: how many items score better than a target, and how many equally.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use crate::codes::Codes;
use crate::csr::Mask;
use crate::error::Error;
use crate::exec::Exec;
use crate::matrix::{check_items_fit, Matrix};
use crate::score::coded::CodeFactors;
#[cfg(target_arch = "x86_64")]
use crate::score::LINE;
use crate::score::{Factors, Scorer, Tile, WholeScorer, COLUMNS, ROWS};
use crate::simd::{compiled, SimdPath};

/// For each target: items strictly better, and other items with an equal score. A target that is absent (-1) has -1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranks {
    pub better: Vec<i32>,
    pub tied: Vec<i32>,
}

impl Ranks {
    fn absent(len: usize) -> Self {
        Ranks {
            better: vec![-1; len],
            tied: vec![-1; len],
        }
    }

    /// Pieces of the lengths that `ends` gives (cumulative), one a query.
    fn pieces<'a>(&'a mut self, ends: &'a [usize]) -> impl ExactSizeIterator<Item = (&'a mut [i32], &'a mut [i32])> {
        let (mut better, mut tied) = (self.better.as_mut_slice(), self.tied.as_mut_slice());
        let mut start = 0;
        let mut pieces = Vec::with_capacity(ends.len());
        for &end in ends {
            let (b, rest) = better.split_at_mut(end - start);
            better = rest;
            let (t, rest) = tied.split_at_mut(end - start);
            tied = rest;
            start = end;
            pieces.push((b, t));
        }
        pieces.into_iter()
    }
}

/// Ranks of the targets of each query (`ends[q]` is the end of query q's targets) among the whole catalogue less the
/// items it has seen; a target is always eligible, and other targets count as any item does.
pub fn list_ranks(
    exec: Exec,
    queries: Matrix,
    items: Matrix,
    bias: Option<&[f32]>,
    targets: &[i32],
    ends: &[usize],
    seen: Mask,
) -> Result<Ranks, Error> {
    let factors = Factors::new(exec, queries, items, bias)?;
    if targets.is_empty() {
        return Ok(Ranks::absent(0));
    }
    counted(exec, &factors.packed(exec)?, targets, ends, seen)
}

/// [`list_ranks`] of codes.
pub fn list_ranks_codes(
    exec: Exec,
    queries: Codes,
    items: Codes,
    bias: Option<&[f32]>,
    targets: &[i32],
    ends: &[usize],
    seen: Mask,
) -> Result<Ranks, Error> {
    let factors = CodeFactors::new(queries, items, bias)?;
    if targets.is_empty() {
        return Ok(Ranks::absent(0));
    }
    counted(exec, &factors.packed(exec)?, targets, ends, seen)
}

/// The ranks by any scorer.
fn counted<S: WholeScorer>(
    exec: Exec,
    scorer: &S,
    targets: &[i32],
    ends: &[usize],
    seen: Mask,
) -> Result<Ranks, Error> {
    let (simd, items) = (exec.simd, scorer.items());
    let mut out = Ranks::absent(targets.len());
    let mut pieces: Vec<_> = out.pieces(ends).collect();
    let tasks = pieces.chunks_mut(ROWS).enumerate();
    exec.each(
        tasks,
        || (S::Packed::default(), Tile::default(), Vec::new()),
        |(packed, tile, seen_scores): &mut (S::Packed, Tile, Vec<f32>), (task, pieces)| {
            let first = task * ROWS;
            scorer.pack(simd, first, packed);
            let mut goals: Vec<Goals> = Vec::with_capacity(ROWS);
            for row in 0..pieces.len() {
                let query = first + row;
                let start = if query == 0 { 0 } else { ends[query - 1] };
                let targets = &targets[start..ends[query]];
                let present: Vec<i32> = targets.iter().copied().filter(|&t| t != -1).collect();
                check_items(&present, items, "targets", query)?;
                let mut scores = vec![0.0; present.len()];
                scorer.some(simd, query, &present, &mut scores);
                goals.push(Goals::new(scores));
            }
            for panel in 0..scorer.panels() {
                scorer.panel(simd, packed, panel, tile);
                let valid = COLUMNS.min(items - panel * COLUMNS);
                for (goals, scores) in goals.iter_mut().zip(&tile.0) {
                    goals.count(simd, &scores[..valid], 1);
                }
            }
            for (row, (better, tied)) in pieces.iter_mut().enumerate() {
                let query = first + row;
                let start = if query == 0 { 0 } else { ends[query - 1] };
                let seen = seen.of(query);
                check_items(seen, items, "seen", query)?;
                seen_scores.resize(seen.len(), 0.0);
                scorer.some(simd, query, seen, seen_scores);
                goals[row].count(simd, seen_scores, -1);
                goals[row].write(&targets[start..ends[query]], seen, better, tied);
            }
            Ok(())
        },
    )?;
    drop(pieces);
    Ok(out)
}

/// [`list_ranks`] on a score block `[queries, items]`.
pub fn list_ranks_scores(
    exec: Exec,
    scores: Matrix,
    targets: &[i32],
    ends: &[usize],
    seen: Mask,
) -> Result<Ranks, Error> {
    check_items_fit(scores.dim)?;
    let mut out = Ranks::absent(targets.len());
    let mut pieces: Vec<_> = out.pieces(ends).collect();
    exec.each(
        pieces.iter_mut().enumerate(),
        Vec::new,
        |seen_scores: &mut Vec<f32>, (query, (better, tied))| {
            let row = scores.row(query);
            if row.iter().any(|&s| s.is_nan() || s == f32::INFINITY) {
                return Err(Error::NotFinite {
                    what: "scores",
                    row: query,
                });
            }
            let start = if query == 0 { 0 } else { ends[query - 1] };
            let targets = &targets[start..ends[query]];
            let present: Vec<i32> = targets.iter().copied().filter(|&t| t != -1).collect();
            check_items(&present, row.len(), "targets", query)?;
            let seen = seen.of(query);
            check_items(seen, row.len(), "seen", query)?;
            let mut goals = Goals::new(present.iter().map(|&t| row[t as usize]).collect());
            goals.count(exec.simd, row, 1);
            seen_scores.clear();
            seen_scores.extend(seen.iter().map(|&item| row[item as usize]));
            goals.count(exec.simd, seen_scores, -1);
            goals.write(targets, seen, better, tied);
            Ok(())
        },
    )?;
    drop(pieces);
    Ok(out)
}

/// Ranks of each query's targets `[queries, T]` among its own candidates `[queries, C]`; -1 is padding in both. Targets
/// do not compete with each other, and a candidate that is the target itself does not count.
#[allow(clippy::too_many_arguments)]
pub fn candidate_ranks(
    exec: Exec,
    queries: Matrix,
    rows: Option<&[i64]>,
    items: Matrix,
    bias: Option<&[f32]>,
    targets: &[i32],
    candidates: &[i32],
    count: usize,
) -> Result<Ranks, Error> {
    let factors = Factors::new(exec, queries, items, bias)?;
    among(exec, &factors, rows, targets, candidates, count)
}

/// [`candidate_ranks`] of codes.
#[allow(clippy::too_many_arguments)]
pub fn candidate_ranks_codes(
    exec: Exec,
    queries: Codes,
    rows: Option<&[i64]>,
    items: Codes,
    bias: Option<&[f32]>,
    targets: &[i32],
    candidates: &[i32],
    count: usize,
) -> Result<Ranks, Error> {
    let factors = CodeFactors::new(queries, items, bias)?;
    among(exec, &factors, rows, targets, candidates, count)
}

/// The ranks among candidates by any scorer.
fn among(
    exec: Exec,
    scorer: &impl Scorer,
    rows: Option<&[i64]>,
    targets: &[i32],
    candidates: &[i32],
    count: usize,
) -> Result<Ranks, Error> {
    let (simd, items, queries) = (exec.simd, scorer.items(), scorer.queries());
    let mut out = Ranks::absent(targets.len());
    if targets.is_empty() {
        return Ok(out);
    }
    let (t, c) = (targets.len() / count, candidates.len() / count);
    const STEP: usize = 16;
    let tasks = out
        .better
        .chunks_mut(STEP * t)
        .zip(out.tied.chunks_mut(STEP * t))
        .enumerate();
    exec.each(
        tasks,
        || (Vec::new(), Vec::new(), Vec::new()),
        |(ids, own, scores): &mut (Vec<i32>, Vec<i32>, Vec<f32>), (task, (better, tied))| {
            for (offset, (better, tied)) in better.chunks_mut(t).zip(tied.chunks_mut(t)).enumerate() {
                let place = task * STEP + offset;
                let query = match rows {
                    None => place,
                    Some(rows) => {
                        usize::try_from(rows[place])
                            .ok()
                            .filter(|&row| row < queries)
                            .ok_or(Error::RowRange {
                                row: rows[place],
                                rows: queries,
                            })?
                    }
                };
                let targets = &targets[place * t..][..t];
                let all = &candidates[place * c..][..c];
                ids.clear();
                // Most lists have no padding and are read as they stand.
                let others = if simd.within(all, items) {
                    all
                } else {
                    ids.extend(all.iter().filter(|&&id| id != -1));
                    check_items(ids, items, "candidates", place)?;
                    ids.as_slice()
                };
                own.clear();
                own.extend(targets.iter().filter(|&&id| id != -1));
                check_items(own, items, "targets", place)?;
                scores.resize(own.len() + others.len(), 0.0);
                let (of_own, of_others) = scores.split_at_mut(own.len());
                scorer.some(simd, query, own, of_own);
                scorer.some(simd, query, others, of_others);
                let mut of_own = of_own.iter();
                for ((&target, better), tied) in targets.iter().zip(better).zip(tied) {
                    if target != -1 {
                        let &score = of_own.next().expect("one score for each target that is present");
                        (*better, *tied) = simd.count(of_others, score);
                        *tied -= simd.occurrences(others, target);
                    }
                }
            }
            Ok(())
        },
    )?;
    Ok(out)
}

/// [`candidate_ranks`] of scores: targets `[queries, T]` against candidates `[queries, C]`. Where a target's score is
/// NaN there is no target; `candidates` (ids, -1 padding) says which candidates there are, all without it. With `ids` of the
/// targets too, a candidate that is the target itself does not count.
pub fn candidate_ranks_scores(
    exec: Exec,
    targets: Matrix,
    scores: Matrix,
    candidates: Option<&[i32]>,
    ids: Option<&[i32]>,
) -> Result<Ranks, Error> {
    let mut out = Ranks::absent(targets.data.len());
    if out.better.is_empty() {
        return Ok(out);
    }
    let (t, c) = (targets.dim, scores.dim);
    let tasks = out.better.chunks_mut(t).zip(out.tied.chunks_mut(t)).enumerate();
    exec.each(tasks, Vec::new, |kept: &mut Vec<f32>, (query, (better, tied))| {
        kept.clear();
        match candidates {
            None => kept.extend(scores.row(query)),
            Some(ids) => {
                let ids = &ids[query * c..][..c];
                kept.extend(
                    scores
                        .row(query)
                        .iter()
                        .zip(ids)
                        .filter(|(_, &id)| id != -1)
                        .map(|(&s, _)| s),
                );
            }
        }
        if kept.iter().any(|s| s.is_nan() || *s == f32::INFINITY) {
            return Err(Error::NotFinite {
                what: "candidate scores",
                row: query,
            });
        }
        for (place, ((&score, better), tied)) in targets.row(query).iter().zip(better).zip(tied).enumerate() {
            if score == f32::INFINITY {
                return Err(Error::NotFinite {
                    what: "target scores",
                    row: query,
                });
            }
            if score.is_nan() {
                continue;
            }
            (*better, *tied) = exec.simd.count(kept, score);
            if let (Some(candidates), Some(ids)) = (candidates, ids) {
                let own = ids[query * t + place];
                let candidates = &candidates[query * c..][..c];
                if own == -1 || !candidates.contains(&own) {
                    continue;
                }
                for (&id, &other) in candidates.iter().zip(scores.row(query)) {
                    let itself = i32::from(id == own);
                    *better -= itself * i32::from(other > score);
                    *tied -= itself * i32::from(other == score);
                }
            }
        }
        Ok(())
    })?;
    Ok(out)
}

fn check_items(ids: &[i32], items: usize, what: &'static str, row: usize) -> Result<(), Error> {
    match ids.iter().find(|&&id| id < 0 || id as usize >= items) {
        None => Ok(()),
        Some(&id) => Err(Error::ItemRange {
            what,
            row,
            item: i64::from(id),
            items,
        }),
    }
}

compiled! {
    /// How many scores are larger than `goal`, and how many equal to it.
    fn count(scores: &[f32], goal: f32) -> (i32, i32) = count, avx512: count_avx512;
    /// How often `id` occurs.
    fn occurrences(ids: &[i32], id: i32) -> i32 = occurrences;
}

/// How many scores are larger than `goal`, and how many equal to it.
#[inline(always)]
fn count(scores: &[f32], goal: f32) -> (i32, i32) {
    scores.iter().fold((0, 0), |(above, equal), &score| {
        (above + i32::from(score > goal), equal + i32::from(score == goal))
    })
}

/// How often `id` occurs.
#[inline(always)]
fn occurrences(ids: &[i32], id: i32) -> i32 {
    ids.iter().map(|&other| i32::from(other == id)).sum()
}

/// [`count`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt")]
fn count_avx512(scores: &[f32], goal: f32) -> (i32, i32) {
    let (blocks, rest) = scores.as_chunks::<LINE>();
    let goals = _mm512_set1_ps(goal);
    let counted = blocks.iter().fold((0, 0), |(above, equal), block| {
        // SAFETY: 16 floats.
        let block = unsafe { _mm512_loadu_ps(block.as_ptr()) };
        (
            above + _mm512_cmp_ps_mask::<_CMP_GT_OQ>(block, goals).count_ones() as i32,
            equal + _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(block, goals).count_ones() as i32,
        )
    });
    let rest = count(rest, goal);
    (counted.0 + rest.0, counted.1 + rest.1)
}

/// Target scores of one query and the counts so far.
struct Goals {
    scores: Vec<f32>,
    better: Vec<i32>,
    tied: Vec<i32>,
}

impl Goals {
    fn new(scores: Vec<f32>) -> Self {
        Goals {
            better: vec![0; scores.len()],
            tied: vec![0; scores.len()],
            scores,
        }
    }

    #[inline]
    fn count(&mut self, simd: SimdPath, scores: &[f32], sign: i32) {
        for ((&goal, better), tied) in self.scores.iter().zip(&mut self.better).zip(&mut self.tied) {
            let (above, equal) = simd.count(scores, goal);
            *better += sign * above;
            *tied += sign * equal;
        }
    }

    /// The counts in the order of `targets`; a target counted itself as tied, unless it was taken out as seen.
    fn write(&self, targets: &[i32], seen: &[i32], better: &mut [i32], tied: &mut [i32]) {
        let mut present = 0;
        for ((&target, better), tied) in targets.iter().zip(better).zip(tied) {
            if target != -1 {
                *better = self.better[present];
                *tied = self.tied[present] - i32::from(seen.binary_search(&target).is_err());
                present += 1;
            }
        }
    }
}
