//! Mixtures of small networks, `Σ_m q_m (relu(x W1_m + b1_m) W2_m + b2_m)`, and their gradients.
//!
//! An entity whose share of a network is 0 takes no part in it, so the cost is that of the pairs that are left. The second bias
//! is the weight of one more hidden unit, which is 1 for every finite source; so there are products alone, done in the tiles of [`crate::score`]:
//! chains of fused multiply-adds in the order of the inner dimension, an entity's networks and a network's [`backward::CHUNK`]s of entities
//! added up in order. So all paths and any number of threads give the same bytes.

mod backward;
mod forward;
mod lists;
mod networks;
mod panels;

#[cfg(test)]
mod tests;

pub use backward::{mixture_gradient, MixtureGradient};
pub use forward::mixture;
pub use networks::Networks;
