//! What the rows of a table owe.

use super::steps::AdamStep;
use crate::error::Error;

/// Steps of a table, and how many of them each row has taken.
pub struct Ledger<'a> {
    pub(super) steps: &'a [AdamStep],
    pub(super) taken: &'a mut [i32],
    /// Lazy Adam: steps owed are estimated.
    pub(super) lazy: bool,
}

impl<'a> Ledger<'a> {
    pub fn new(steps: &'a [AdamStep], taken: &'a mut [i32], lazy: bool) -> Result<Self, Error> {
        let outside = |t: i32| t < 0 || t as usize > steps.len();
        // The whole of it, many at a time: nothing is ever found.
        if taken.iter().fold(false, |any, &t| any | outside(t)) {
            let found = taken.iter().find(|&&t| outside(t)).expect("it was seen");
            return Err(Error::Shape(format!("a row took {found} of {} steps", steps.len())));
        }
        Ok(Ledger { steps, taken, lazy })
    }
}

impl Ledger<'_> {
    /// Whether it is that of a table of so many rows.
    pub(crate) fn check(&self, rows: usize) -> Result<(), Error> {
        if self.taken.len() != rows {
            return Err(Error::Shape(format!("a clock of {} for {rows} rows", self.taken.len())));
        }
        Ok(())
    }
}
