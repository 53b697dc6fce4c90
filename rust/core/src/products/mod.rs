//! Products of vectors with gathered rows of a table, and their gradients: what scoring lists in training takes.
//!
//! A product is summed in sixteen lanes, dimension d in lane d mod 16, each lane a chain of fused multiply-adds; then
//! [`folded`]. Weighted sums are chains of fused multiply-adds in the order of the pairs, for each dimension. So all paths and
//! any number of threads give the same bytes.

#[cfg(target_arch = "x86_64")]
mod avx512;

use crate::error::Error;
use crate::exec::Exec;
use crate::matrix::Matrix;
use crate::room::zeros;
use crate::simd::{compiled, Level, SimdPath};

/// Lanes of a product.
const LANES: usize = 16;
/// Gathered, or rows that are summed, in a task.
const TASK: usize = 8_192;

/// A row of a matrix and its weight in a sum.
#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    pub row: u32,
    pub weight: f32,
}

/// `own[r] · table[ids[r][k]]`, float32 `[rows, width]`; `ids` is `[rows, width]`.
pub fn products(exec: Exec, own: Matrix, table: Matrix, ids: &[i64], width: usize) -> Result<Vec<f32>, Error> {
    if own.dim != table.dim {
        return Err(Error::Shape(format!(
            "vectors of {} dimensions and a table of {}",
            own.dim, table.dim
        )));
    }
    check(own.rows, ids, width, None)?;
    let mut out = vec![0.0; ids.len()];
    if out.is_empty() {
        return Ok(out);
    }
    let step = (TASK / width).max(1);
    let tasks = out.chunks_mut(step * width).zip(ids.chunks(step * width)).enumerate();
    exec.each(
        tasks,
        || (),
        |(), (task, (out, ids))| {
            let first = task * step;
            for (row, (out, ids)) in out.chunks_mut(width).zip(ids.chunks(width)).enumerate() {
                if !exec.simd.products(own.row(first + row), table, ids, out) {
                    return Err(out_of_range(first + row, ids, width, table.rows));
                }
            }
            Ok(())
        },
    )?;
    Ok(out)
}

/// `Σ_k weights[r][k] table[ids[r][k]]`, float32 `[rows, dim]`: the gradient of the vectors.
pub fn product_sums(exec: Exec, weights: &[f32], table: Matrix, ids: &[i64], width: usize) -> Result<Vec<f32>, Error> {
    let rows = weights.len().checked_div(width).unwrap_or(0);
    check(rows, ids, width, Some(weights))?;
    fits(table.rows)?;
    let dim = table.dim;
    let mut out = vec![0.0; rows * dim];
    if out.is_empty() {
        return Ok(out);
    }
    let step = (TASK / width).max(1);
    let tasks = out
        .chunks_mut(step * dim)
        .zip(ids.chunks(step * width))
        .zip(weights.chunks(step * width));
    let bounds: Vec<u32> = (0..=step.min(rows)).map(|row| (row * width) as u32).collect();
    exec.each(tasks.enumerate(), Vec::new, |shares, (task, ((out, ids), weights))| {
        if !within(ids, table.rows) {
            return Err(out_of_range(task * step, ids, width, table.rows));
        }
        shares.clear();
        shares.extend(
            ids.iter()
                .zip(weights)
                .map(|(&id, &weight)| Share { row: id as u32, weight }),
        );
        exec.simd
            .weighted_sums(shares, &bounds[..=ids.len() / width], table, None, out);
        Ok(())
    })?;
    Ok(out)
}

/// The gradient of a table.
#[derive(Debug, PartialEq)]
pub struct TableGradient {
    /// The rows that are touched, ascending; empty if all rows were asked for.
    pub rows: Vec<i64>,
    /// `[touched, dim]`, or `[table rows, dim]`.
    pub values: Vec<f32>,
}

/// Weighted vectors, each of which goes to `width` rows of a table: `weights` and `ids` are `[own rows, width]`.
#[derive(Clone, Copy, Debug)]
pub struct Gathered<'a> {
    pub weights: &'a [f32],
    pub own: Matrix<'a>,
    pub ids: &'a [i64],
    pub width: usize,
}

/// `Σ weights[r][k] own[r]` over the pairs whose id is i, for each i: the gradient of a table of `items` rows, of all of
/// them (`dense`) or of those that are touched. The pairs, of all groups one after the other, are first brought into the order
/// of their ids, so that each row is summed in one go and written once.
pub fn product_scatter(exec: Exec, groups: &[Gathered], items: usize, dense: bool) -> Result<TableGradient, Error> {
    let dim = groups.first().map_or(0, |group| group.own.dim);
    for group in groups {
        check(group.own.rows, group.ids, group.width, Some(group.weights))?;
        if group.own.dim != dim {
            return Err(Error::Shape(format!(
                "vectors of {dim} and {} dimensions",
                group.own.dim
            )));
        }
        if !within(group.ids, items) {
            return Err(out_of_range(0, group.ids, group.width, items));
        }
    }
    let count = groups.iter().map(|group| group.ids.len()).sum();
    let owners = groups.iter().map(|group| group.own.rows).sum();
    fits(count)?;
    fits(owners)?;
    fits(items)?;
    let joined: Vec<f32>;
    let own = match groups {
        [group] => group.own,
        _ => {
            joined = groups.iter().flat_map(|group| group.own.data).copied().collect();
            Matrix::new(&joined, owners, dim)
        }
    };
    let (touched, bounds, shares) = by_id(groups, count, items);
    let rows = if dense { items } else { touched.len() };
    let mut values = zeros::<f32>(rows, dim)?;
    if !values.is_empty() && !touched.is_empty() {
        let step = (TASK * rows / count).clamp(1, rows);
        let tasks = values.chunks_mut(step * dim).enumerate();
        exec.each(
            tasks,
            || (),
            |(), (task, values)| {
                let span = task * step..task * step + values.len() / dim;
                let places = if dense {
                    let place = |row: usize| touched.partition_point(|&id| (id as usize) < row);
                    place(span.start)..place(span.end)
                } else {
                    span.clone()
                };
                let rows = dense.then(|| (&touched[places.clone()], span.start));
                exec.simd
                    .weighted_sums(&shares, &bounds[places.start..=places.end], own, rows, values);
                Ok(())
            },
        )?;
    }
    let rows = if dense { Vec::new() } else { touched };
    Ok(TableGradient { rows, values })
}

/// The pairs in the order of their ids: the ids that occur, ascending, where the pairs of each begin, and of the last end, and
/// the pairs, with the vectors of all groups numbered through.
fn by_id(groups: &[Gathered], count: usize, items: usize) -> (Vec<i64>, Vec<u32>, Vec<Share>) {
    let (mut touched, mut bounds) = (Vec::new(), vec![0]);
    let ids = groups.iter().flat_map(|group| group.ids);
    // Counting passes over all items once; far more items than pairs are better left alone.
    if items / 16 > count {
        let mut keys: Vec<u64> = ids
            .enumerate()
            .map(|(place, &id)| (id as u64) << 32 | place as u64)
            .collect();
        keys.sort_unstable();
        let mut pairs = Vec::with_capacity(count);
        each_pair(groups, |_, share| pairs.push(share));
        let shares = keys.iter().map(|&key| pairs[key as u32 as usize]).collect();
        for (place, &key) in keys.iter().enumerate() {
            let id = (key >> 32) as i64;
            if touched.last() != Some(&id) {
                touched.push(id);
                bounds.push(0);
            }
            if let Some(end) = bounds.last_mut() {
                *end = place as u32 + 1;
            }
        }
        return (touched, bounds, shares);
    }
    let mut next = vec![0u32; items];
    for &id in ids {
        next[id as usize] += 1;
    }
    let mut total = 0;
    touched.reserve(items.min(count));
    bounds.reserve(items.min(count));
    for (id, next) in next.iter_mut().enumerate() {
        let own = *next;
        *next = total;
        if own > 0 {
            total += own;
            touched.push(id as i64);
            bounds.push(total);
        }
    }
    let mut shares = vec![Share::default(); count];
    each_pair(groups, |id, share| {
        let place = &mut next[id as usize];
        shares[*place as usize] = share;
        *place += 1;
    });
    (touched, bounds, shares)
}

/// The pairs of all groups in order.
#[inline(always)]
fn each_pair(groups: &[Gathered], mut take: impl FnMut(i64, Share)) {
    let mut first = 0;
    for group in groups.iter().filter(|group| group.width > 0) {
        let rows = group.ids.chunks(group.width).zip(group.weights.chunks(group.width));
        for (row, (ids, weights)) in rows.enumerate() {
            let row = (first + row) as u32;
            for (&id, &weight) in ids.iter().zip(weights) {
                take(id, Share { row, weight });
            }
        }
        first += group.own.rows;
    }
}

fn check(rows: usize, ids: &[i64], width: usize, weights: Option<&[f32]>) -> Result<(), Error> {
    let weights = weights.map_or(ids.len(), <[f32]>::len);
    if rows.checked_mul(width) != Some(ids.len()) || weights != ids.len() {
        return Err(Error::Shape(format!(
            "{} ids and {weights} weights for {rows} rows of {width}",
            ids.len()
        )));
    }
    Ok(())
}

fn fits(count: usize) -> Result<(), Error> {
    match u32::try_from(count) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::Shape(format!("{count} rows or pairs do not fit 32 bits"))),
    }
}

/// Whether all ids are rows of a table of `rows`.
#[inline(always)]
fn within(ids: &[i64], rows: usize) -> bool {
    // A negative id is a large number.
    ids.iter().fold(true, |all, &id| all & ((id as u64) < rows as u64))
}

/// Names the first id of rows from `first` on that is no row of the table.
#[cold]
fn out_of_range(first: usize, ids: &[i64], width: usize, items: usize) -> Error {
    let bad = ids.iter().position(|&id| !within(&[id], items)).unwrap_or(0);
    Error::ItemRange {
        what: "ids",
        row: first + bad / width,
        item: ids[bad],
        items,
    }
}

impl SimdPath {
    /// Products of a vector with the rows `ids` of a table; false, and nothing done, if one of them is no row.
    #[inline]
    pub(crate) fn products(self, own: &[f32], table: Matrix, ids: &[i64], out: &mut [f32]) -> bool {
        assert!(own.len() == table.dim && ids.len() == out.len());
        if !within(ids, table.rows) {
            return false;
        }
        match self.level() {
            // SAFETY: a path of this level exists only if the processor has its instructions, and ids are rows of the table, as
            // just seen.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::products_avx512(own, table, ids, out) },
            _ => self.plain_products(own, table, ids, out),
        }
        true
    }

    /// [`weighted_sums_portable`].
    pub(crate) fn weighted_sums(self, shares: &[Share], bounds: &[u32], matrix: Matrix, goals: Goals, out: &mut [f32]) {
        assert!(bounds.is_sorted());
        let used = &shares[bounds[0] as usize..bounds[bounds.len() - 1] as usize];
        assert!(used
            .iter()
            .fold(true, |all, share| all & ((share.row as usize) < matrix.rows)));
        match self.level() {
            // SAFETY: a path of this level exists only if the processor has its instructions, and the shares within the bounds are
            // of rows of the matrix, as asserted.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512::weighted_sums_avx512(shares, bounds, matrix, goals, out) },
            _ => self.plain_weighted_sums(shares, bounds, matrix, goals, out),
        }
    }
}

compiled! {
    fn plain_products(own: &[f32], table: Matrix, ids: &[i64], out: &mut [f32]) = products_portable;
    fn plain_weighted_sums(shares: &[Share], bounds: &[u32], matrix: Matrix, goals: Goals, out: &mut [f32])
        = weighted_sums_portable;
}

/// The sum of sixteen lanes, in the order that the transposing vector path adds them up.
#[inline(always)]
fn folded(l: &[f32; LANES]) -> f32 {
    let quad = |q: usize| (l[4 * q] + l[4 * q + 2]) + (l[4 * q + 1] + l[4 * q + 3]);
    (quad(0) + quad(2)) + (quad(1) + quad(3))
}

/// The products of a vector with rows of the table, which all ids are.
#[inline(always)]
fn products_portable(own: &[f32], table: Matrix, ids: &[i64], out: &mut [f32]) {
    let whole = own.len() / LANES * LANES;
    for (&id, out) in ids.iter().zip(out) {
        let row = &table.row(id as usize)[..own.len()];
        let mut lanes = [0.0f32; LANES];
        for (q, x) in own[..whole].chunks_exact(LANES).zip(row[..whole].chunks_exact(LANES)) {
            for lane in 0..LANES {
                lanes[lane] = q[lane].mul_add(x[lane], lanes[lane]);
            }
        }
        for ((lane, &q), &x) in lanes.iter_mut().zip(&own[whole..]).zip(&row[whole..]) {
            *lane = q.mul_add(x, *lane);
        }
        *out = folded(&lanes);
    }
}

/// Where the sums of a part go: row after row, or to the rows named, counted from the second number.
pub(crate) type Goals<'a> = Option<(&'a [i64], usize)>;

/// The weighted sums of rows of a matrix: sum n is over the shares from `bounds[n]` to `bounds[n + 1]`.
#[inline(always)]
fn weighted_sums_portable(shares: &[Share], bounds: &[u32], matrix: Matrix, goals: Goals, out: &mut [f32]) {
    for (place, bounds) in bounds.windows(2).enumerate() {
        let row = goals.map_or(place, |(rows, first)| rows[place] as usize - first);
        let shares = &shares[bounds[0] as usize..bounds[1] as usize];
        weighted_sum(shares, matrix, &mut out[row * matrix.dim..][..matrix.dim]);
    }
}

/// The weighted sum of rows of a matrix.
#[inline(always)]
fn weighted_sum(shares: &[Share], matrix: Matrix, out: &mut [f32]) {
    out.fill(0.0);
    for share in shares {
        for (out, &x) in out.iter_mut().zip(matrix.row(share.row as usize)) {
            *out = share.weight.mul_add(x, *out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::the_same_everywhere;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        (0..count as u64)
            .map(|c| crate::rng::unit(crate::rng::at(seed, c)) as f32 - 0.5)
            .collect()
    }

    fn ids(count: usize, items: usize, seed: u64) -> Vec<i64> {
        (0..count as u64)
            .map(|c| (crate::rng::at(seed, c) % items as u64) as i64)
            .collect()
    }

    fn close(found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (place, (&a, &b)) in found.iter().zip(expected).enumerate() {
            assert!((f64::from(a) - b).abs() < 1e-5, "{place}: {a} for {b}");
        }
    }

    #[test]
    fn all_paths_and_threads_agree_with_the_definition() {
        for (rows, width, items, dim) in [
            (1, 1, 1, 1),
            (40, 1, 9, 20),
            (7, 5, 9, 3),
            (30, 17, 40, 16),
            (300, 80, 500, 20),
            (3, 2, 4_000, 33),
            (90, 100, 60, 130),
            (2, 3, 5, 0),
            (0, 4, 5, 6),
            (4, 0, 5, 6),
        ] {
            let (own, table) = (numbers(rows * dim, 1), numbers(items * dim, 2));
            let (ids, weights) = (ids(rows * width, items, 3), numbers(rows * width, 4));
            let (own, table) = (Matrix::new(&own, rows, dim), Matrix::new(&table, items, dim));
            let mut scores = vec![0.0f64; rows * width];
            let mut to_own = vec![0.0f64; rows * dim];
            let mut to_table = vec![0.0f64; items * dim];
            for place in 0..rows * width {
                let (row, id, weight) = (place / width, ids[place] as usize, f64::from(weights[place]));
                for d in 0..dim {
                    scores[place] += f64::from(own.row(row)[d]) * f64::from(table.row(id)[d]);
                    to_own[row * dim + d] += weight * f64::from(table.row(id)[d]);
                    to_table[id * dim + d] += weight * f64::from(own.row(row)[d]);
                }
            }
            // In two groups, split between rows.
            let (a, b) = (rows / 3, rows - rows / 3);
            let part = |from: usize, count: usize| Gathered {
                weights: &weights[from * width..][..count * width],
                own: Matrix::new(&own.data[from * dim..][..count * dim], count, dim),
                ids: &ids[from * width..][..count * width],
                width,
            };
            let whole = product_scatter(Exec::serial(), &[part(0, rows)], items, false).expect("ids are rows");
            let groups = [part(0, a), part(a, b)];
            let sums = the_same_everywhere(|exec| {
                (
                    products(exec, own, table, &ids, width).expect("ids are rows"),
                    product_sums(exec, &weights, table, &ids, width).expect("ids are rows"),
                    product_scatter(exec, &groups, items, true).expect("ids are rows"),
                    product_scatter(exec, &groups, items, false).expect("ids are rows"),
                )
            });
            close(&sums.0, &scores);
            if width > 0 {
                close(&sums.1, &to_own);
            }
            close(&sums.2.values, &to_table);
            let mut touched: Vec<i64> = ids.clone();
            touched.sort_unstable();
            touched.dedup();
            assert_eq!(sums.3.rows, touched);
            assert_eq!(sums.3, whole);
            for (place, &id) in touched.iter().enumerate() {
                let (sparse, dense) = (&sums.3.values[place * dim..], &sums.2.values[id as usize * dim..]);
                assert_eq!(sparse[..dim], dense[..dim]);
            }
        }
    }

    #[test]
    fn ids_past_the_table_are_named() {
        let (own, table) = ([1.0, 2.0], [0.0; 6]);
        let (own, table) = (Matrix::new(&own, 2, 1), Matrix::new(&table, 6, 1));
        let ids = [0, 5, 3, 6];
        let refused = Err(Error::ItemRange {
            what: "ids",
            row: 1,
            item: 6,
            items: 6,
        });
        assert_eq!(products(Exec::serial(), own, table, &ids, 2), refused);
        assert_eq!(product_sums(Exec::serial(), &[1.0; 4], table, &ids, 2), refused);
        let pairs = Gathered {
            weights: &[1.0; 4],
            own,
            ids: &[0, 5, -1, 2],
            width: 2,
        };
        let refused = Err(Error::ItemRange {
            what: "ids",
            row: 1,
            item: -1,
            items: 6,
        });
        assert_eq!(product_scatter(Exec::serial(), &[pairs], 6, false), refused);
        let other = Gathered {
            own: Matrix::new(&[0.0; 4], 2, 2),
            ids: &[0; 4],
            ..pairs
        };
        assert!(product_scatter(Exec::serial(), &[Gathered { ids: &[0; 4], ..pairs }, other], 6, false).is_err());
        assert!(products(Exec::serial(), own, table, &ids[..3], 2).is_err());
    }
}
