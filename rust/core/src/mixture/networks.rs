//! The networks of a mixture.

use crate::error::Error;
use crate::matrix::Matrix;

/// Networks of one shape, each Linear, ReLU, Linear.
#[derive(Clone, Copy, Debug)]
pub struct Networks<'a> {
    pub(super) count: usize,
    pub(super) source: usize,
    pub(super) hidden: usize,
    pub(super) target: usize,
    pub(super) weight1: &'a [f32],
    pub(super) bias1: &'a [f32],
    pub(super) weight2: &'a [f32],
    pub(super) bias2: &'a [f32],
}

impl<'a> Networks<'a> {
    /// Weights `[count, source, hidden]` and `[count, hidden, target]`, biases `[count, hidden]` and `[count, target]`.
    pub fn new(
        sizes: [usize; 4],
        weight1: &'a [f32],
        bias1: &'a [f32],
        weight2: &'a [f32],
        bias2: &'a [f32],
    ) -> Result<Self, Error> {
        let [count, source, hidden, target] = sizes;
        if sizes.contains(&0) {
            return Err(Error::Shape(format!(
                "{count} networks from {source} by {hidden} to {target} dimensions"
            )));
        }
        let found = [weight1.len(), bias1.len(), weight2.len(), bias2.len()];
        let expected = [
            count * source * hidden,
            count * hidden,
            count * hidden * target,
            count * target,
        ];
        if found != expected {
            return Err(Error::Shape(format!("{found:?} weights and biases for {expected:?}")));
        }
        Ok(Networks {
            count,
            source,
            hidden,
            target,
            weight1,
            bias1,
            weight2,
            bias2,
        })
    }

    pub(super) fn first(&self, network: usize) -> Matrix<'a> {
        let size = self.source * self.hidden;
        Matrix::new(&self.weight1[network * size..][..size], self.source, self.hidden)
    }

    pub(super) fn first_bias(&self, network: usize) -> &'a [f32] {
        &self.bias1[network * self.hidden..][..self.hidden]
    }

    pub(super) fn second(&self, network: usize) -> Matrix<'a> {
        let size = self.hidden * self.target;
        Matrix::new(&self.weight2[network * size..][..size], self.hidden, self.target)
    }

    pub(super) fn second_bias(&self, network: usize) -> &'a [f32] {
        &self.bias2[network * self.target..][..self.target]
    }

    /// Hidden units, the constant one among them.
    pub(super) fn units(&self) -> usize {
        self.hidden + 1
    }

    pub(super) fn check(&self, source: Matrix, shares: Matrix, results: usize) -> Result<(), Error> {
        let sizes = source.dim == self.source && shares.dim == self.count && shares.rows == source.rows;
        if !sizes || results != source.rows * self.target {
            return Err(Error::Shape(format!(
                "vectors {} x {}, shares {} x {} and {results} results for {} networks from {} to {}",
                source.rows, source.dim, shares.rows, shares.dim, self.count, self.source, self.target
            )));
        }
        if u32::try_from(source.rows).is_err() {
            return Err(Error::Shape(format!("{} entities do not fit 32 bits", source.rows)));
        }
        Ok(())
    }
}
