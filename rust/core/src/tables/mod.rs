//! Adam for tables of vectors whose gradient touches few rows.
//!
//! In dense Adam a row without gradient takes a step too: decay and momentum move it. Such steps of a row read nothing but
//! the row, so they may wait until the row is next read and then be taken all at once, in registers. A [`Ledger`] keeps the
//! steps that rows may still owe. The arithmetic is that of one step after the other, bit for bit.

mod batch;
mod groups;
mod ledger;
mod steps;
mod table;
mod update;

#[cfg(test)]
mod tests;

use crate::error::Error;
use crate::exec::Exec;

pub(crate) use batch::Batch;
pub(crate) use groups::Groups;
pub use ledger::Ledger;
pub use steps::AdamStep;
pub(crate) use steps::{Owed, SPAN};
pub(crate) use table::Shared;
pub use table::Table;
pub(crate) use update::step;

/// The rows that hold a batch's gradient: `rows` [N] of the table, `values` [N, dim]; repeated rows add up in the order given.
#[derive(Clone, Copy)]
pub struct Touched<'a> {
    pub rows: &'a [i64],
    pub values: &'a [f32],
}

/// Takes the steps that rows still owe, each with gradient 0.
pub fn catch_up(exec: Exec, table: Table, ledger: Ledger) -> Result<(), Error> {
    ledger.check(table.rows())?;
    let Ledger { steps, taken, lazy } = ledger;
    let now = steps.len() as i32;
    let shared = Shared::new(table);
    let height = shared.task_rows();
    let owed = Owed::new(steps, lazy);
    let tasks = taken.chunks_mut(height).enumerate();
    exec.each(tasks, Batch::default, |batch, (task, taken)| {
        let owing = taken.iter_mut().enumerate().filter_map(|(n, taken)| {
            let from = std::mem::replace(taken, now);
            (from < now).then_some(((task * height + n) as u32, from))
        });
        batch.fill(owing, steps.len());
        // SAFETY: a task has the rows of its own chunk, each once.
        unsafe { batch.replay(exec.simd, &shared, &owed) };
        Ok(())
    })
}

/// The same for some rows, which may repeat.
pub fn catch_up_rows(exec: Exec, table: Table, ledger: Ledger, rows: &[i64]) -> Result<(), Error> {
    ledger.check(table.rows())?;
    check_rows(rows, table.rows())?;
    let Ledger { steps, taken, lazy } = ledger;
    let now = steps.len() as i32;
    // A row that has been met owes nothing any more, so that none is taken twice.
    let owing: Vec<(u32, i32)> = rows
        .iter()
        .filter_map(|&row| {
            let from = std::mem::replace(&mut taken[row as usize], now);
            (from < now).then_some((row as u32, from))
        })
        .collect();
    let shared = Shared::new(table);
    let owed = Owed::new(steps, lazy);
    // Not to be stopped half way: the ledger counts the steps as taken.
    let exec = Exec { stop: None, ..exec };
    exec.for_work(4 * owing.len() * shared.dim).each(
        owing.chunks(shared.task_rows()),
        Batch::default,
        |batch, owing| {
            batch.fill(owing.iter().copied(), steps.len());
            // SAFETY: the rows are distinct and inside the table.
            unsafe { batch.replay(exec.simd, &shared, &owed) };
            Ok(())
        },
    )
}

/// One step of the touched rows, which the other rows owe from then on. Rows that owe steps of the ledger take them first;
/// `step` is the one that follows the ledger's last.
pub fn step_rows(exec: Exec, table: Table, ledger: Ledger, touched: Touched, step: AdamStep) -> Result<(), Error> {
    let (count, dim) = (table.rows(), table.dim);
    check_rows(touched.rows, count)?;
    if touched.values.len() != touched.rows.len() * dim {
        return Err(Error::Shape(format!(
            "{} gradients for {} rows of {dim}",
            touched.values.len(),
            touched.rows.len()
        )));
    }
    let groups = Groups::of(touched.rows, count);
    let (owed, from) = groups.owing(ledger, count, 1)?;
    let shared = Shared::new(table);
    let height = shared.task_rows();
    // Distinct rows stand in their own order.
    let distinct = groups.rows.len() == touched.rows.len();
    // Not to be stopped half way: the ledger counts the step as taken.
    let exec = Exec { stop: None, ..exec };
    exec.for_work(4 * groups.rows.len() * dim).each(
        groups.rows.chunks(height).enumerate(),
        || (Batch::default(), vec![0f32; if distinct { 0 } else { height * dim }]),
        |(batch, sums), (task, rows)| {
            let start = task * height;
            batch.fill_from(rows, &from[start..], owed.len());
            // SAFETY: groups are of distinct rows, and every row is inside the table.
            unsafe { batch.replay(exec.simd, &shared, &owed) };
            let gradients = if distinct {
                &touched.values[start * dim..(start + rows.len()) * dim]
            } else {
                for (group, sum) in (start..start + rows.len()).zip(sums.chunks_exact_mut(dim)) {
                    sum.fill(0.0);
                    for &place in groups.places(group) {
                        let place = place as usize;
                        for (total, x) in sum.iter_mut().zip(&touched.values[place * dim..(place + 1) * dim]) {
                            *total += x;
                        }
                    }
                }
                &sums[..rows.len() * dim]
            };
            // SAFETY: as above.
            unsafe { update::step(exec.simd, &shared, rows, gradients, step) };
            Ok(())
        },
    )
}

pub(crate) fn check_rows(rows: &[i64], count: usize) -> Result<(), Error> {
    match rows.iter().find(|&&row| row < 0 || row as usize >= count) {
        Some(&row) => Err(Error::RowRange { row, rows: count }),
        None => Ok(()),
    }
}
