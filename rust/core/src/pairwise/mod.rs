//! Two tables in training whose rows' dot products are the scores: a step of Adam on a batch by the gradient in its scores, and
//! that of Bayesian personalised ranking in one pass.

mod parts;
mod pass;
mod slopes;

#[cfg(test)]
mod tests;

use crate::error::Error;
use crate::exec::Exec;
use crate::tables::{AdamStep, Batch, Ledger, Table};

use parts::Parts;
pub use pass::Asked;
use pass::{Pass, Scratch};
use slopes::pair_slopes;

/// Pairs whose products make a task.
const TASK_PAIRS: usize = 256;

/// Batch rows of (user, positive) with `width` negatives each.
#[derive(Clone, Copy)]
pub struct Pairs<'a> {
    pub users: &'a [i64],
    pub positives: &'a [i64],
    /// [users, width]
    pub negatives: &'a [i64],
    pub width: usize,
}

/// A table in training, and the step to take.
pub struct Trained<'a> {
    pub table: Table<'a>,
    pub ledger: Ledger<'a>,
    pub step: AdamStep,
}

/// s = p · q of all that is asked for, float32 [users, width]; the rows first take the steps they owe.
pub fn table_scores(
    exec: Exec,
    users: (Table, Ledger),
    items: (Table, Ledger),
    asked: Asked,
) -> Result<Vec<f32>, Error> {
    let pass = Pass::new(exec, [users, items], asked, 0)?;
    let mut out = vec![0f32; asked.items.len()];
    let width = asked.width.max(1);
    let height = (TASK_PAIRS / width).max(1);
    let stages = [pass.tasks, out.len().div_ceil(height * width)];
    let scores = Parts::new(&mut out, height * width);
    pass.exec.stages(&stages, Batch::default, |batch, stage, task| {
        if stage == 0 {
            // SAFETY: no other stage runs.
            unsafe { pass.catch_up(batch, task) };
            return;
        }
        // SAFETY: every task has a part of its own; tables stand still in this stage; ids were checked.
        let (scores, [own, table]) = unsafe { (scores.part(task), pass.matrices()) };
        let rows = scores
            .chunks_mut(width)
            .zip(asked.items.chunks(width).skip(task * height));
        for (&user, (out, ids)) in asked.users[task * height..].iter().zip(rows) {
            pass.exec.simd.products(own.row(user as usize), table, ids, out);
        }
    });
    Ok(out)
}

/// A step by `slopes`, the gradient of a loss in the scores that `table_scores` gives: with h = dL/ds the gradients are Σ h q of
/// a user and Σ h p of an item. Rows that are asked for first take the steps they owe; other rows owe this one from then on.
pub fn score_step(exec: Exec, users: Trained, items: Trained, asked: Asked, slopes: &[f32]) -> Result<(), Error> {
    if slopes.len() != asked.items.len() {
        return Err(Error::Shape(format!(
            "{} slopes for {} scores",
            slopes.len(),
            asked.items.len()
        )));
    }
    let steps = [users.step, items.step];
    let tables = [(users.table, users.ledger), (items.table, items.ledger)];
    let pass = Pass::new(exec, tables, asked, 1)?;
    pass.with_gradients(|gradients| {
        let stages = [pass.tasks, pass.tasks, pass.tasks];
        pass.exec.stages(&stages, Scratch::default, |scratch, stage, task| {
            // SAFETY: stages run one after the other; slopes stand still.
            unsafe {
                match stage {
                    0 => pass.catch_up(&mut scratch.batch, task),
                    1 => pass.sum(scratch, slopes, gradients, task),
                    _ => pass.step(steps, gradients, task),
                }
            }
        });
    });
    Ok(())
}

/// A step on L = Σ softplus(x) over all pairs with x = p · (q_j - q_i); returns L before it.
///
/// With g = sigmoid(x) the slopes are g of the negative j and -g, summed over the negatives, of the positive i; the rest as in
/// `score_step`. Products are summed in an order of their own, the same everywhere.
pub fn bpr_step(exec: Exec, users: Trained, items: Trained, pairs: Pairs) -> Result<f64, Error> {
    let (count, each) = (pairs.users.len(), pairs.width);
    if pairs.positives.len() != count || pairs.negatives.len() != count * each {
        return Err(Error::Shape(format!(
            "{count} users, {} positives and {} negatives ({each} each)",
            pairs.positives.len(),
            pairs.negatives.len(),
        )));
    }
    let width = 1 + each;
    let mut ids = Vec::with_capacity(count * width);
    for (row, &positive) in pairs.positives.iter().enumerate() {
        ids.push(positive);
        ids.extend_from_slice(&pairs.negatives[row * each..(row + 1) * each]);
    }
    let asked = Asked {
        users: pairs.users,
        items: &ids,
        width,
    };
    let steps = [users.step, items.step];
    let tables = [(users.table, users.ledger), (items.table, items.ledger)];
    let pass = Pass::new(exec, tables, asked, 1)?;
    let simd = pass.exec.simd.narrowed();
    let height = (TASK_PAIRS / each.max(1)).max(1);
    let (mut slopes, mut losses) = (vec![0f32; count * width], vec![0f64; count.div_ceil(height)]);
    let products = losses.len();
    let (slopes_of, loss_of) = (Parts::new(&mut slopes, height * width), Parts::new(&mut losses, 1));
    pass.with_gradients(|gradients| {
        let stages = [pass.tasks, products, pass.tasks, pass.tasks];
        pass.exec.stages(&stages, Scratch::default, |scratch, stage, task| {
            // SAFETY: stages run one after the other; every task has slopes and a loss of its own, and tables stand still
            // while slopes are made, which then stand still.
            unsafe {
                match stage {
                    0 => pass.catch_up(&mut scratch.batch, task),
                    1 => {
                        let rows = task * height..count.min((task + 1) * height);
                        let (gaps, slopes) = (&mut scratch.gaps, slopes_of.part(task));
                        loss_of.part(task)[0] = pair_slopes(simd, pass.matrices(), asked, rows, gaps, slopes);
                    }
                    2 => pass.sum(scratch, slopes_of.whole(), gradients, task),
                    _ => pass.step(steps, gradients, task),
                }
            }
        });
    });
    Ok(losses.iter().fold(0.0, |sum, loss| sum + loss)) // not -0.0 for none
}
