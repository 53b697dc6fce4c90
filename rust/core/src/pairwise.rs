//! Bayesian personalised ranking on two tables: a step of Adam on a batch, gradient in closed form.

use std::cell::RefCell;

use crate::error::Error;
use crate::exec::Exec;
use crate::math;
use crate::score::SimdPath;
use crate::tables::{check_rows, AdamStep, Batch, Groups, Ledger, Shared, Table, Update};

/// Pairs whose products make a task.
const TASK_PAIRS: usize = 256;
/// Partial sums of a product.
const LANES: usize = 16;

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

thread_local! {
    /// Gradients of one batch.
    static GRADIENTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A step on L = Σ softplus(x) over all pairs with x = p · (q_j - q_i); returns L before it.
///
/// With g = sigmoid(x) the gradients are Σ g (q_j - q_i) of the user, g p of the negative j and -g p of the positive i. Rows of
/// the batch first take the steps they owe; other rows owe this one from then on. Products are summed in an order of their
/// own, the same everywhere.
pub fn bpr_step(exec: Exec, users: Trained, items: Trained, pairs: Pairs) -> Result<f64, Error> {
    let width = pairs.width;
    let (users_step, items_step) = (users.step, items.step);
    let (user_ledger, item_ledger) = (users.ledger, items.ledger);
    let (users, items) = (Shared::new(users.table), Shared::new(items.table));
    let (count, dim) = (pairs.users.len(), users.dim);
    if items.dim != dim || pairs.positives.len() != count || pairs.negatives.len() != count * width {
        return Err(Error::Shape(format!(
            "{count} users of dim {dim}, {} positives and {} negatives ({width} each) of dim {}",
            pairs.positives.len(),
            pairs.negatives.len(),
            items.dim
        )));
    }
    check_rows(pairs.users, users.rows)?;
    check_rows(pairs.positives, items.rows)?;
    check_rows(pairs.negatives, items.rows)?;
    let total = count * width;
    let mut item_rows = Vec::with_capacity(total + count);
    item_rows.extend_from_slice(pairs.negatives);
    item_rows.extend_from_slice(pairs.positives);
    let by_user = Groups::of(pairs.users, users.rows);
    let by_item = Groups::of(&item_rows, items.rows);
    user_ledger.check(users.rows)?;
    item_ledger.check(items.rows)?;
    let (users_owed, users_from) = by_user.owing(user_ledger, users.rows)?;
    let (items_owed, items_from) = by_item.owing(item_ledger, items.rows)?;

    // Both tables' rows in one sequence of tasks: few enough that rows which owe about the same steps meet in one, and enough
    // for all threads to be busy to the end.
    let rows = by_user.rows.len() + by_item.rows.len();
    let exec = exec.for_work(8 * rows * dim);
    let height = rows.div_ceil(4 * exec.threads()).clamp(64, users.task_rows().max(64));
    let user_tasks = by_user.rows.len().div_ceil(height);
    let tasks = user_tasks + by_item.rows.len().div_ceil(height);
    let part = |task: usize| {
        let (groups, task) = if task < user_tasks {
            (&by_user, task)
        } else {
            (&by_item, task - user_tasks)
        };
        task * height..groups.rows.len().min((task + 1) * height)
    };
    let update = Update::of(exec.simd);
    let kernel = Kernel::of(exec.simd);
    let (mut slopes, mut losses) = (vec![0f32; total], vec![0f64; total.div_ceil(TASK_PAIRS)]);
    let products = losses.len();
    let (slopes, loss_of) = (Parts::new(&mut slopes, TASK_PAIRS), Parts::new(&mut losses, 1));

    GRADIENTS.with_borrow_mut(|gradients| {
        let split = by_user.rows.len() * dim;
        gradients.resize(split + by_item.rows.len() * dim, 0.0);
        let (to_users, to_items) = gradients.split_at_mut(split);
        let (to_users, to_items) = (Parts::new(to_users, height * dim), Parts::new(to_items, height * dim));
        let gradient = |task: usize| {
            if task < user_tasks {
                (&to_users, task)
            } else {
                (&to_items, task - user_tasks)
            }
        };
        let stages = [tasks, products, tasks, tasks];
        exec.stages(&stages, Batch::default, |batch, stage, task| match stage {
            0 => {
                let (table, groups, owed, from) = if task < user_tasks {
                    (&users, &by_user, &users_owed, &users_from)
                } else {
                    (&items, &by_item, &items_owed, &items_from)
                };
                let part = part(task);
                batch.fill_from(&groups.rows[part.clone()], &from[part], owed.len());
                // SAFETY: groups are of distinct rows inside the table, and each belongs to one task of this stage, which
                // alone refers to tables.
                unsafe { batch.replay(update, table, owed) };
            }
            1 => {
                // SAFETY: every task has parts of its own; ids were checked; tables stand still in this stage.
                let (slopes, loss) = unsafe { (slopes.part(task), loss_of.part(task)) };
                for (pair, slope) in (task * TASK_PAIRS..).zip(slopes.iter_mut()) {
                    let (user, positive) = (pairs.users[pair / width], pairs.positives[pair / width]);
                    // SAFETY: as above.
                    let (user, positive, negative) = unsafe {
                        (
                            users.values(user as usize),
                            items.values(positive as usize),
                            items.values(pairs.negatives[pair] as usize),
                        )
                    };
                    *slope = kernel.product(user, positive, negative);
                }
                loss[0] = kernel.slopes(slopes);
            }
            2 => {
                let (gradient, number) = gradient(task);
                // SAFETY: every task has a part of its own; slopes and tables stand still in this stage; ids were checked.
                let (sums, slopes) = unsafe { (gradient.part(number), slopes.whole()) };
                // SAFETY: as above.
                let user = |row: usize| unsafe { users.values(pairs.users[row] as usize) };
                // SAFETY: as above.
                let item = |ids: &[i64], at: usize| unsafe { items.values(ids[at] as usize) };
                for (group, sum) in part(task).zip(sums.chunks_exact_mut(dim)) {
                    sum.fill(0.0);
                    if task < user_tasks {
                        for &row in by_user.places(group) {
                            let row = row as usize;
                            let own = row * width..(row + 1) * width;
                            for (pair, &slope) in own.clone().zip(&slopes[own]) {
                                kernel.add_gap(sum, slope, item(pairs.negatives, pair), item(pairs.positives, row));
                            }
                        }
                        continue;
                    }
                    for &place in by_item.places(group) {
                        let place = place as usize;
                        if place < total {
                            kernel.add(sum, slopes[place], user(place / width));
                        } else {
                            let row = place - total;
                            let slope: f32 = slopes[row * width..(row + 1) * width].iter().sum();
                            kernel.add(sum, -slope, user(row));
                        }
                    }
                }
            }
            _ => {
                let (gradient, number) = gradient(task);
                // SAFETY: groups are of distinct rows inside the table, each belongs to one task of this stage, which alone
                // refers to tables; gradients stand still.
                unsafe {
                    let gradient = gradient.part(number);
                    if task < user_tasks {
                        update.step(&users, &by_user.rows[part(task)], gradient, users_step);
                    } else {
                        update.step(&items, &by_item.rows[part(task)], gradient, items_step);
                    }
                }
            }
        });
    });
    Ok(losses.iter().sum())
}

/// A slice in parts of `size`, which go to several threads.
struct Parts<'a, T> {
    first: *mut T,
    len: usize,
    size: usize,
    /// Keeps the slice borrowed.
    _slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: the slice is borrowed mutably for as long as this lives, and `part`'s callers hand each part to one thread.
unsafe impl<T: Send + Sync> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    fn new(slice: &'a mut [T], size: usize) -> Self {
        Parts {
            first: slice.as_mut_ptr(),
            len: slice.len(),
            size,
            _slice: std::marker::PhantomData,
        }
    }

    /// # Safety
    /// No other reference to this part or to the whole lives.
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, number: usize) -> &mut [T] {
        let start = (number * self.size).min(self.len);
        let end = (start + self.size).min(self.len);
        // SAFETY: inside the slice; the caller vouches for its being alone.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(start), end - start) }
    }

    /// # Safety
    /// No part is being changed.
    unsafe fn whole(&self) -> &[T] {
        // SAFETY: the slice that was borrowed.
        unsafe { std::slice::from_raw_parts(self.first, self.len) }
    }
}

/// The instructions to use; the same bytes from all.
#[derive(Clone, Copy)]
enum Kernel {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

macro_rules! with_avx2 {
    ($($(#[$doc:meta])* fn $name:ident / $wide:ident ($($argument:ident: $kind:ty),*) $(-> $out:ty)?;)*) => {
        impl Kernel {
            $($(#[$doc])* #[inline] fn $name(self, $($argument: $kind),*) $(-> $out)? {
                match self {
                    Kernel::Portable => $name($($argument),*),
                    // SAFETY: this path is chosen only where the processor has AVX2.
                    #[cfg(target_arch = "x86_64")]
                    Kernel::Avx2 => unsafe { $wide($($argument),*) },
                }
            })*
        }
        $(#[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2")]
        fn $wide($($argument: $kind),*) $(-> $out)? {
            $name($($argument),*)
        })*
    };
}

with_avx2! {
    /// user · (negative - positive)
    fn product / product_avx2(user: &[f32], positive: &[f32], negative: &[f32]) -> f32;
    /// Turns each x into sigmoid(x); the sum of softplus(x).
    fn slopes / slopes_avx2(x: &mut [f32]) -> f64;
    fn add / add_avx2(sum: &mut [f32], slope: f32, row: &[f32]);
    fn add_gap / add_gap_avx2(sum: &mut [f32], slope: f32, up: &[f32], down: &[f32]);
}

impl Kernel {
    fn of(path: SimdPath) -> Kernel {
        #[cfg(target_arch = "x86_64")]
        if path.has_avx2() {
            return Kernel::Avx2;
        }
        let _ = path;
        Kernel::Portable
    }
}

#[inline(always)]
fn product(user: &[f32], positive: &[f32], negative: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (users, positives, negatives) = (
        user.chunks_exact(LANES),
        positive.chunks_exact(LANES),
        negative.chunks_exact(LANES),
    );
    let rest = users
        .remainder()
        .iter()
        .zip(positives.remainder())
        .zip(negatives.remainder());
    let rest: f32 = rest.map(|((u, i), j)| u * (j - i)).sum();
    for ((u, i), j) in users.zip(positives).zip(negatives) {
        for lane in 0..LANES {
            sums[lane] += u[lane] * (j[lane] - i[lane]);
        }
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
    }
    sums[0] + rest
}

#[inline(always)]
fn slopes(x: &mut [f32]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0f64; LANES];
    for block in x.chunks_mut(LANES) {
        let mut padded = [f32::NEG_INFINITY; LANES];
        padded[..block.len()].copy_from_slice(block);
        for (x, sum) in padded.iter_mut().zip(&mut sums) {
            let (sigmoid, softplus) = math::sigmoid_softplus(f64::from(*x));
            *x = sigmoid as f32;
            *sum += softplus;
        }
        let len = block.len();
        block.copy_from_slice(&padded[..len]);
    }
    sums.iter().sum()
}

#[inline(always)]
fn add(sum: &mut [f32], slope: f32, row: &[f32]) {
    for (total, x) in sum.iter_mut().zip(row) {
        *total += slope * x;
    }
}

#[inline(always)]
fn add_gap(sum: &mut [f32], slope: f32, up: &[f32], down: &[f32]) {
    for ((total, up), down) in sum.iter_mut().zip(up).zip(down) {
        *total += slope * (up - down);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{catch_up, step_rows, Touched};
    use proptest::prelude::*;

    fn words(seed: u64) -> impl FnMut() -> u64 {
        let mut state = seed | 1;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 40
        }
    }

    /// Values and both moments.
    type Parts = [Vec<f32>; 3];

    fn trained<'a>(
        parts: &'a mut Parts,
        dim: usize,
        steps: &'a [AdamStep],
        taken: &'a mut [i32],
        lazy: bool,
        step: AdamStep,
    ) -> Trained<'a> {
        let [values, first, second] = parts;
        Trained {
            table: Table::new(values, first, second, dim).unwrap(),
            ledger: Ledger::new(steps, taken, lazy).unwrap(),
            step,
        }
    }

    /// The loss and both gradients in double precision, dense.
    fn formula(p: &[f32], q: &[f32], dim: usize, pairs: Pairs) -> (f64, Vec<f64>, Vec<f64>) {
        let (mut loss, mut dp, mut dq) = (0.0f64, vec![0f64; p.len()], vec![0f64; q.len()]);
        for pair in 0..pairs.negatives.len() {
            let row = pair / pairs.width;
            let (u, i, j) = (
                pairs.users[row] as usize,
                pairs.positives[row] as usize,
                pairs.negatives[pair] as usize,
            );
            let x: f64 = (0..dim)
                .map(|d| f64::from(p[u * dim + d]) * (f64::from(q[j * dim + d]) - f64::from(q[i * dim + d])))
                .sum();
            loss += x.max(0.0) + (-x.abs()).exp().ln_1p();
            let g = 1.0 / (1.0 + (-x).exp());
            for d in 0..dim {
                dp[u * dim + d] += g * (f64::from(q[j * dim + d]) - f64::from(q[i * dim + d]));
                dq[j * dim + d] += g * f64::from(p[u * dim + d]);
                dq[i * dim + d] -= g * f64::from(p[u * dim + d]);
            }
        }
        (loss, dp, dq)
    }

    proptest! {
        #[test]
        fn steps_as_adam_does_on_the_gradient_of_the_formula(
            dim in 1usize..50, count in 0usize..30, width in 1usize..4, threads in 1usize..3, lazy: bool,
            seed: u64, path in 0..SimdPath::NAMES.len(), batches in 1usize..5,
        ) {
            let (n_users, n_items) = (7, 11);
            let mut word = words(seed);
            let mut fill = |n: usize| (0..n).map(|_| (word() as f32 / 16_777_216.0 - 0.5) * 4.0).collect::<Vec<f32>>();
            let mut table = |rows: usize| [fill(rows * dim), vec![0.0; rows * dim], vec![0.0; rows * dim]];
            let (mut users, mut items) = (table(n_users), table(n_items));
            let (mut other_users, mut other_items) = (users.clone(), items.clone());
            let (mut slow_users, mut slow_items) = (users.clone(), items.clone());
            let mut word = words(seed ^ 0x1234);
            let mut ids = |n: usize, below: usize| (0..n).map(|_| (word() % below as u64) as i64).collect::<Vec<i64>>();
            let team = crate::Team::new(threads).unwrap();
            let simd = SimdPath::named(SimdPath::NAMES[path]).unwrap_or_default();
            let exec = Exec { team: Some(&team), simd, ..Exec::default() };
            // a large epsilon, so that a step follows the gradient's size and not its sign alone
            let steps: Vec<AdamStep> = (0..batches)
                .map(|t| AdamStep { rate: 0.1 / (1.0 + t as f32), eps: 0.5, weight_decay: 0.01 })
                .collect();
            let (mut users_taken, mut items_taken) = (vec![0; n_users], vec![0; n_items]);
            let (mut other_users_taken, mut other_items_taken) = (vec![0; n_users], vec![0; n_items]);
            for (t, &step) in steps.iter().enumerate() {
                let (asked, positives, negatives) = (ids(count, n_users), ids(count, n_items), ids(count * width, n_items));
                let pairs = Pairs { users: &asked, positives: &positives, negatives: &negatives, width };
                let loss = bpr_step(
                    exec,
                    trained(&mut users, dim, &steps[..t], &mut users_taken, lazy, step),
                    trained(&mut items, dim, &steps[..t], &mut items_taken, lazy, step),
                    pairs,
                ).unwrap();
                let alone = bpr_step(
                    Exec { simd: SimdPath::named("portable").unwrap(), ..Exec::serial() },
                    trained(&mut other_users, dim, &steps[..t], &mut other_users_taken, lazy, step),
                    trained(&mut other_items, dim, &steps[..t], &mut other_items_taken, lazy, step),
                    pairs,
                ).unwrap();
                prop_assert_eq!(loss, alone);
                prop_assert_eq!(&users, &other_users);

                let (expected, dp, dq) = formula(&slow_users[0], &slow_items[0], dim, pairs);
                let allowed = if lazy { 5e-2 } else { 1e-4 };
                prop_assert!((loss - expected).abs() <= allowed * (1.0 + expected), "{} {}", loss, expected);
                for (parts, gradient) in [(&mut slow_users, dp), (&mut slow_items, dq)] {
                    let rows: Vec<i64> = (0..(gradient.len() / dim) as i64).collect();
                    let values: Vec<f32> = gradient.iter().map(|&x| x as f32).collect();
                    let mut taken = vec![0; rows.len()];
                    let Trained { table, ledger, .. } = trained(parts, dim, &[], &mut taken, false, step);
                    step_rows(Exec::serial(), table, ledger, Touched { rows: &rows, values: &values }, step).unwrap();
                }
            }
            for (parts, taken) in [(&mut users, &mut users_taken), (&mut items, &mut items_taken)] {
                let Trained { table, ledger, .. } = trained(parts, dim, &steps, taken, lazy, steps[0]);
                catch_up(exec, table, ledger).unwrap();
            }
            // with so large an epsilon a step is nearly linear, and its estimate close
            let tolerance = if lazy { 2e-2 } else { 1e-3 };
            for (ours, slow) in users.iter().chain(&items).flatten().zip(slow_users.iter().chain(&slow_items).flatten()) {
                prop_assert!((ours - slow).abs() < tolerance, "{} {}", ours, slow);
            }
        }
    }

    #[test]
    fn ids_outside_the_tables_are_refused_before_anything_changes() {
        let step = AdamStep {
            rate: 0.1,
            eps: 1e-8,
            weight_decay: 0.0,
        };
        let mut parts: Parts = [vec![1.0; 4], vec![0.0; 4], vec![0.0; 4]];
        let mut others = parts.clone();
        let pairs = Pairs {
            users: &[0],
            positives: &[0],
            negatives: &[2],
            width: 1,
        };
        let result = bpr_step(
            Exec::serial(),
            trained(&mut parts, 2, &[], &mut [0; 2], false, step),
            trained(&mut others, 2, &[], &mut [0; 2], false, step),
            pairs,
        );
        assert_eq!(result, Err(Error::RowRange { row: 2, rows: 2 }));
        assert_eq!(parts[0], vec![1.0; 4]);
    }
}
