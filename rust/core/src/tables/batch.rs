//! Rows that owe steps.

use super::steps::Owed;
use super::table::Shared;
use super::update;
use crate::simd::SimdPath;

/// Rows in the order of the steps they have taken, so that neighbours owe about the same and are stepped side by side: a step
/// waits long for its root and its quotient, and one row alone would leave the processor idle.
#[derive(Default)]
pub(crate) struct Batch {
    owing: Vec<(u32, i32)>,
    rows: Vec<u32>,
    from: Vec<i32>,
    ends: Vec<u32>,
}

impl Batch {
    /// (row, steps taken), of `steps` steps.
    pub fn fill(&mut self, owing: impl Iterator<Item = (u32, i32)>, steps: usize) {
        self.owing.clear();
        self.ends.clear();
        self.ends.resize(steps + 1, 0);
        for (row, from) in owing {
            self.owing.push((row, from));
            self.ends[from as usize] += 1;
        }
        self.rows.clear();
        self.rows.resize(self.owing.len(), 0);
        self.from.clear();
        self.from.resize(self.owing.len(), 0);
        let mut start = 0;
        for end in &mut self.ends {
            start += std::mem::replace(end, start);
        }
        for &(row, from) in &self.owing {
            let end = &mut self.ends[from as usize];
            self.rows[*end as usize] = row;
            self.from[*end as usize] = from;
            *end += 1;
        }
    }

    /// Those of `rows` that owe some of `steps` steps.
    pub fn fill_from(&mut self, rows: &[u32], from: &[i32], steps: usize) {
        let owing = rows.iter().zip(from).filter(|(_, &from)| (from as usize) < steps);
        self.fill(owing.map(|(&row, &from)| (row, from)), steps);
    }

    /// # Safety
    /// The rows are distinct rows of the table, and nobody else refers to them.
    pub unsafe fn replay(&self, simd: SimdPath, table: &Shared, owed: &Owed) {
        // SAFETY: as the caller vouches.
        unsafe {
            match owed {
                Owed::Steps(steps) => update::replay(simd, table, &self.rows, &self.from, steps),
                Owed::Spans(spans) => update::estimate(simd, table, &self.rows, &self.from, spans),
            }
        }
    }
}
