//! Sums of coded rows.

use super::Codes;
use crate::error::Error;
use crate::exec::Exec;
use crate::room::filled;
use crate::simd::compiled;

impl Codes<'_> {
    /// Of each list of rows the sum of `(weight * scale) * level`, each operation rounded to float64 by itself, in the order of the list;
    /// rounded to float32 in the end. List q is `indices[indptr[q]..indptr[q + 1]]`. Refuses lists that do not fit, rows that do not
    /// exist, and weights and sums that are not finite.
    pub fn sums(
        &self,
        exec: Exec,
        indptr: &[i64],
        indices: &[i32],
        weights: Option<&[f32]>,
    ) -> Result<Vec<f32>, Error> {
        const STEP: usize = 16;
        check_lists(indptr, indices.len())?;
        if let Some(weights) = weights.filter(|weights| weights.len() != indices.len()) {
            return Err(Error::Shape(format!(
                "{} weights for {} rows",
                weights.len(),
                indices.len()
            )));
        }
        let count = indptr.len() - 1;
        let mut out = filled(0.0f32, count, self.dim)?;
        // Without dimensions there are still rows to be refused.
        let mut none = vec![0.0; if self.dim == 0 { count } else { 0 }];
        let width = self.dim.max(1);
        let out_or_none = if self.dim == 0 { &mut none } else { &mut out };
        exec.for_work(indices.len() * width).each(
            out_or_none.chunks_mut(STEP * width).enumerate(),
            || (vec![0.0f64; self.padded()], vec![0i8; self.padded()]),
            |(sums, levels), (task, out)| {
                for (offset, out) in out.chunks_mut(width).enumerate() {
                    let list = task * STEP + offset;
                    sums.fill(0.0);
                    for place in indptr[list] as usize..indptr[list + 1] as usize {
                        let row = usize::try_from(indices[place]).unwrap_or(usize::MAX);
                        if row >= self.rows() {
                            return Err(Error::ItemRange {
                                what: "indices",
                                row: list,
                                item: i64::from(indices[place]),
                                items: self.rows(),
                            });
                        }
                        let weight = weights.map_or(1.0, |weights| weights[place]);
                        if !weight.is_finite() {
                            return Err(Error::NotFinite {
                                what: "weights",
                                row: list,
                            });
                        }
                        self.levels(exec.simd, row, levels);
                        let scale = f64::from(weight) * f64::from(self.scale(row));
                        exec.simd.add_levels(scale, levels, sums);
                    }
                    for (out, &sum) in out.iter_mut().zip(&*sums) {
                        *out = sum as f32 + 0.0; // no -0
                    }
                    if out.iter().any(|sum| !sum.is_finite()) {
                        return Err(Error::NotFinite {
                            what: "sums",
                            row: list,
                        });
                    }
                }
                Ok(())
            },
        )?;
        Ok(out)
    }
}

fn check_lists(indptr: &[i64], pairs: usize) -> Result<(), Error> {
    if indptr.first() != Some(&0) || indptr.last() != Some(&(pairs as i64)) {
        return Err(Error::Shape(format!(
            "indptr does not run from 0 to the number of indices, {pairs}"
        )));
    }
    match indptr.windows(2).position(|ends| ends[1] < ends[0]) {
        Some(row) => Err(Error::Shape(format!(
            "indptr falls from {} to {} after row {row}",
            indptr[row],
            indptr[row + 1]
        ))),
        None => Ok(()),
    }
}

compiled! {
    fn add_levels(scale: f64, levels: &[i8], sums: &mut [f64]) = add_levels;
}

#[inline(always)]
fn add_levels(scale: f64, levels: &[i8], sums: &mut [f64]) {
    for (sum, &level) in sums.iter_mut().zip(levels) {
        *sum += scale * f64::from(level);
    }
}
