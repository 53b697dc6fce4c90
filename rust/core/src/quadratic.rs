//! Quadratic forms of vectors, many at a time: `out[a] = Σ_{b<c} 2 h_b h_c weights[(b, c)][a]`.
//!
//! The pairs (b, c) are those of a triangle, row after row: (0, 1), (0, 2) … (1, 2) …. Their features 2 h_b h_c are made where
//! the product needs them, for `vectors` x `pairs` are more than memory should hold.

use std::ops::Range;

use crate::bfloat16;
use crate::error::Error;
use crate::exec::Exec;
use crate::float32;
use crate::matrix::{Matrix, Rows};

/// What factors are rounded to before they are multiplied; sums are float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    Float32,
    BFloat16,
}

impl Precision {
    fn product(self, exec: Exec, left: &impl Rows, rows: usize, right: Matrix, out: &mut [f32]) -> Result<(), Error> {
        match self {
            Precision::Float32 => float32::product(exec, left, rows, right, out),
            Precision::BFloat16 => bfloat16::product(exec, left, rows, right, out),
        }
    }
}

/// The forms, float32 `[vectors, outputs]`, of vectors `[vectors, dim]` and weights `[dim (dim - 1) / 2, outputs]`.
pub fn quadratic(
    exec: Exec,
    precision: Precision,
    vectors: Matrix,
    weights: Matrix,
    out: &mut [f32],
) -> Result<(), Error> {
    if weights.rows != pairs(vectors.dim) {
        return Err(Error::Shape(format!(
            "{} rows of weights for the {} pairs of {} dimensions",
            weights.rows,
            pairs(vectors.dim),
            vectors.dim
        )));
    }
    precision.product(exec, &OfVectors(vectors), vectors.rows, weights, out)
}

/// The gradient of the weights, float32 `[dim (dim - 1) / 2, outputs]`, from that of the forms, `[vectors, outputs]`.
pub fn quadratic_gradient(
    exec: Exec,
    precision: Precision,
    vectors: Matrix,
    gradient: Matrix,
    out: &mut [f32],
) -> Result<(), Error> {
    if vectors.rows != gradient.rows {
        return Err(Error::Shape(format!(
            "{} gradients of {} vectors",
            gradient.rows, vectors.rows
        )));
    }
    let (rows, dim) = (vectors.rows, vectors.dim);
    let mut columns = vec![0.0; vectors.data.len()];
    for (row, vector) in vectors.data.chunks(dim.max(1)).enumerate() {
        for (column, &value) in vector.iter().enumerate() {
            columns[column * rows + row] = value;
        }
    }
    let left = OfPairs(Matrix::new(&columns, dim, rows));
    precision.product(exec, &left, pairs(dim), gradient, out)
}

/// Pairs of different dimensions.
fn pairs(dim: usize) -> usize {
    dim * dim.saturating_sub(1) / 2
}

/// Where the pairs of dimension `b` with later ones begin.
fn begin(dim: usize, b: usize) -> usize {
    b * (2 * dim - b - 1) / 2
}

/// The dimension to which a pair belongs: the last that begins there or before.
fn dimension(dim: usize, pair: usize) -> usize {
    let (mut low, mut high) = (0, dim - 1);
    while high - low > 1 {
        let middle = (low + high) / 2;
        if begin(dim, middle) <= pair {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

/// A row is a vector, a column a pair.
struct OfVectors<'a>(Matrix<'a>);

impl Rows for OfVectors<'_> {
    #[inline(always)]
    fn fill(&self, row: usize, columns: Range<usize>, mut out: &mut [f32]) {
        let (vector, dim) = (self.0.row(row), self.0.dim);
        let mut b = dimension(dim, columns.start);
        let mut c = b + 1 + columns.start - begin(dim, b);
        while !out.is_empty() {
            let len = out.len().min(dim - c);
            let (now, rest) = out.split_at_mut(len);
            let own = 2.0 * vector[b];
            for (out, other) in now.iter_mut().zip(&vector[c..c + len]) {
                *out = own * other;
            }
            out = rest;
            b += 1;
            c = b + 1;
        }
    }
}

/// A row is a pair, a column a vector; holds the vectors' coordinates `[dim, vectors]`.
struct OfPairs<'a>(Matrix<'a>);

impl Rows for OfPairs<'_> {
    #[inline(always)]
    fn fill(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        let b = dimension(self.0.rows, row);
        let c = b + 1 + row - begin(self.0.rows, b);
        let (one, other) = (&self.0.row(b)[columns.clone()], &self.0.row(c)[columns]);
        for ((out, one), other) in out.iter_mut().zip(one).zip(other) {
            *out = 2.0 * one * other;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::the_same_everywhere;

    #[test]
    fn forms_and_gradients_are_those_of_the_definition() {
        for (count, dim, outputs) in [
            (1, 2, 1),
            (5, 3, 4),
            (40, 20, 37),
            (3, 70, 2),
            (200, 41, 33),
            (1_600, 5, 3),
            (13, 4, 16),
            (769, 3, 17),
        ] {
            let number = |seed: u64| move |c: usize| crate::rng::unit(crate::rng::at(seed, c as u64)) as f32 - 0.5;
            let vectors: Vec<f32> = (0..count * dim).map(number(1)).collect();
            let weights: Vec<f32> = (0..pairs(dim) * outputs).map(number(2)).collect();
            let goals: Vec<f32> = (0..count * outputs).map(number(3)).collect();
            let of = |row: usize, place: usize| f64::from(vectors[row * dim + place]);
            let (mut forms, mut gradient) = (vec![0.0; goals.len()], vec![0.0; weights.len()]);
            let mut pair = 0;
            for b in 0..dim {
                for c in b + 1..dim {
                    for row in 0..count {
                        for a in 0..outputs {
                            let feature = 2.0 * of(row, b) * of(row, c);
                            forms[row * outputs + a] += feature * f64::from(weights[pair * outputs + a]);
                            gradient[pair * outputs + a] += feature * f64::from(goals[row * outputs + a]);
                        }
                    }
                    pair += 1;
                }
            }
            let vectors = Matrix::new(&vectors, count, dim);
            let weights = Matrix::new(&weights, pairs(dim), outputs);
            let goals = Matrix::new(&goals, count, outputs);
            for (precision, apart) in [(Precision::BFloat16, 0.1), (Precision::Float32, 1e-3)] {
                let near = |found: &[f32], exact: &[f64]| {
                    assert!(found.iter().zip(exact).all(|(&f, e)| (f64::from(f) - e).abs() < apart));
                };
                let (to_forms, to_weights) = the_same_everywhere(|exec| {
                    let (mut to_forms, mut to_weights) = (vec![f32::NAN; forms.len()], vec![f32::NAN; gradient.len()]);
                    quadratic(exec, precision, vectors, weights, &mut to_forms).expect("sizes agree");
                    quadratic_gradient(exec, precision, vectors, goals, &mut to_weights).expect("sizes agree");
                    (to_forms, to_weights)
                });
                near(&to_forms, &forms);
                near(&to_weights, &gradient);
            }
        }
    }

    #[test]
    fn sizes_must_agree_and_may_be_nothing() {
        for precision in [Precision::Float32, Precision::BFloat16] {
            sizes(precision);
        }
    }

    fn sizes(precision: Precision) {
        let exec = Exec::serial();
        let (vectors, single) = (Matrix::new(&[1.0; 6], 2, 3), Matrix::new(&[1.0; 2], 2, 1));
        assert!(quadratic(exec, precision, vectors, Matrix::new(&[1.0; 2], 2, 1), &mut [0.0; 2]).is_err());
        assert!(quadratic(exec, precision, vectors, Matrix::new(&[1.0; 3], 3, 1), &mut [0.0; 3]).is_err());
        assert!(quadratic_gradient(exec, precision, vectors, Matrix::new(&[1.0; 3], 3, 1), &mut [0.0; 3]).is_err());
        let mut out = [1.0; 4];
        quadratic(exec, precision, single, Matrix::new(&[], 0, 2), &mut out).expect("sizes agree");
        assert_eq!(out, [0.0; 4]);
        quadratic_gradient(exec, precision, single, Matrix::new(&[1.0; 4], 2, 2), &mut []).expect("sizes agree");
    }
}
