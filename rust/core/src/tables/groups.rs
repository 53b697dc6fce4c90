//! The rows of a batch, each once.

use std::cell::RefCell;

use super::ledger::Ledger;
use super::steps::Owed;
use crate::error::Error;

/// Distinct rows in the order of their first appearance, and where each appears.
pub(crate) struct Groups {
    pub rows: Vec<u32>,
    ends: Vec<u32>,
    places: Vec<u32>,
}

thread_local! {
    /// Group of each row plus 1; all 0 between calls.
    static SLOTS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

impl Groups {
    /// `rows` are within 0 to `count` - 1.
    pub fn of(rows: &[i64], count: usize) -> Groups {
        let mut groups = Groups {
            rows: Vec::with_capacity(rows.len()),
            ends: Vec::with_capacity(rows.len()),
            places: vec![0; rows.len()],
        };
        SLOTS.with_borrow_mut(|slots| {
            if slots.len() < count {
                slots.resize(count, 0);
            }
            for &row in rows {
                let slot = &mut slots[row as usize];
                if *slot == 0 {
                    groups.rows.push(row as u32);
                    groups.ends.push(0);
                    *slot = groups.rows.len() as u32;
                }
                groups.ends[*slot as usize - 1] += 1;
            }
            let mut start = 0;
            for end in &mut groups.ends {
                start += std::mem::replace(end, start);
            }
            for (place, &row) in rows.iter().enumerate() {
                let end = &mut groups.ends[slots[row as usize] as usize - 1];
                groups.places[*end as usize] = place as u32;
                *end += 1;
            }
            for &row in &groups.rows {
                slots[row as usize] = 0;
            }
        });
        groups
    }

    /// The ledger's steps, and how many of them each group's row has taken; it will have taken all of them and `more`.
    pub fn owing<'a>(&self, ledger: Ledger<'a>, count: usize, more: i32) -> Result<(Owed<'a>, Vec<i32>), Error> {
        ledger.check(count)?;
        let Ledger { steps, taken, lazy } = ledger;
        let after = steps.len() as i32 + more;
        let from = self
            .rows
            .iter()
            .map(|&row| std::mem::replace(&mut taken[row as usize], after));
        Ok((Owed::new(steps, lazy), from.collect()))
    }

    /// Where the row of a group appears, ascending.
    pub fn places(&self, group: usize) -> &[u32] {
        let start = if group == 0 { 0 } else { self.ends[group - 1] };
        &self.places[start as usize..self.ends[group] as usize]
    }
}
