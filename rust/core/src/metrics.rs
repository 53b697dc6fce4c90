//! Metrics of ranked lists, one value a query.

use crate::csr::Mask;
use crate::error::Error;
use crate::exec::Exec;
use crate::room::zeros;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// 1 if any of the first K is relevant.
    Hit,
    /// Relevant among the first K / all relevant.
    Recall,
    /// Relevant among the first K / K.
    Precision,
    /// Sum of 1 / log2(position + 1) over relevant positions / the same sum with all relevant ones first.
    Ndcg,
    /// 1 / position of the first relevant one, 0 if it is past K.
    Mrr,
    /// Sum of the precision at each relevant position / min(all relevant, K).
    Map,
}

/// float64 `[names, ks, queries]` of `ranked` (int32 `[queries, width]`, best first, padded with -1). A query without
/// relevant items gets NaN. `ks` may pass the lists' width: the list then simply ends.
pub fn metrics(
    exec: Exec,
    ranked: &[i32],
    width: usize,
    queries: usize,
    truth: Mask,
    ks: &[usize],
    names: &[Metric],
) -> Result<Vec<f64>, Error> {
    let longest = ks.iter().copied().max().unwrap_or(0);
    // Neither lists nor truth reach past the longest of them, however large K is.
    let most = (0..queries).map(|query| truth.of(query).len()).fold(width, usize::max);
    let longest = longest.min(most);
    // gains[p]: gain of position p (from 0); ideal[m]: sum of the first m gains
    let gains: Vec<f64> = (0..longest)
        .map(|p| std::f64::consts::LN_2 / crate::math::ln(p as f64 + 2.0))
        .collect();
    let mut ideal = vec![0.0; longest + 1];
    for (p, gain) in gains.iter().enumerate() {
        ideal[p + 1] = ideal[p] + gain;
    }
    let cells = names.len() * ks.len();
    let mut by_query = zeros::<f64>(cells, queries)?;
    if by_query.is_empty() {
        return Ok(by_query);
    }
    const STEP: usize = 256;
    exec.each(
        by_query.chunks_mut(STEP * cells).enumerate(),
        Vec::new,
        |relevant: &mut Vec<usize>, (task, out)| {
            for (offset, out) in out.chunks_mut(cells).enumerate() {
                let query = task * STEP + offset;
                let truth = truth.of(query);
                if truth.is_empty() {
                    out.fill(f64::NAN);
                    continue;
                }
                relevant.clear();
                let list = &ranked[query * width..][..width.min(longest)];
                relevant.extend((0..list.len()).filter(|&p| truth.binary_search(&list[p]).is_ok()));
                for (name, out) in names.iter().zip(out.chunks_mut(ks.len())) {
                    for (&k, slot) in ks.iter().zip(out) {
                        let hits = &relevant[..relevant.partition_point(|&p| p < k)];
                        let best = truth.len().min(k);
                        *slot = match name {
                            Metric::Hit => f64::from(u8::from(!hits.is_empty())),
                            Metric::Recall => hits.len() as f64 / truth.len() as f64,
                            Metric::Precision => hits.len() as f64 / k as f64,
                            Metric::Ndcg => hits.iter().fold(0.0, |sum, &p| sum + gains[p]) / ideal[best],
                            Metric::Mrr => hits.first().map_or(0.0, |&p| 1.0 / (p + 1) as f64),
                            Metric::Map => {
                                let precision = |(m, &p): (usize, &usize)| (m + 1) as f64 / (p + 1) as f64;
                                hits.iter().enumerate().map(precision).fold(0.0, |sum, x| sum + x) / best as f64
                            }
                        };
                    }
                }
            }
            Ok(())
        },
    )?;
    let mut out = zeros::<f64>(cells, queries)?;
    for (query, values) in by_query.chunks(cells).enumerate() {
        for (cell, &value) in values.iter().enumerate() {
            out[cell * queries + query] = value;
        }
    }
    Ok(out)
}
