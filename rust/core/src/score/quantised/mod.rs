//! Eight-bit upper bounds of scores, so that most of a catalogue is ruled out at a quarter of the cost.
//!
//! Queries and items are rounded to multiples of a scale of their own. The dot product of the integers, times both
//! scales, differs from the exact score by at most `|q - q'| |x| + |q'| |x - x'|` (Cauchy and Schwarz; primes mark the
//! rounded vectors) plus the rounding of the chain itself. A score that could reach its threshold is always passed on,
//! and is then computed exactly: the result does not depend on this module, only the time does. A bias is one more
//! dimension, in which every query has the same coordinate.

#[cfg(target_arch = "x86_64")]
mod amx;
mod catch;
mod one;
mod panels;
mod sample;
mod scan;
mod sums;
mod tile;

#[cfg(test)]
mod tests;

pub use catch::Catch;
pub use one::ByteScan;
pub use panels::BytePanels;
pub use sample::Lanes;
pub use scan::Net;
pub use sums::Totals;
pub use tile::{ByteQuery, ByteTile};
