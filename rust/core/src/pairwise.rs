//! Two tables in training whose rows' dot products are the scores: a step of Adam on a batch by the gradient in its scores, and
//! that of Bayesian personalised ranking in one pass.

use std::cell::RefCell;
use std::ops::Range;

use crate::error::Error;
use crate::exec::Exec;
use crate::math;
use crate::products::Share;
use crate::score::{Matrix, SimdPath};
use crate::tables::{check_rows, AdamStep, Batch, Groups, Ledger, Owed, Shared, Table, Update, SPAN};

/// Pairs whose products make a task.
const TASK_PAIRS: usize = 256;
/// Partial sums of a product.
const LANES: usize = 16;

/// Items that are asked for, `width` of them for each of the users: [users, width].
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub users: &'a [i64],
    pub items: &'a [i64],
    pub width: usize,
}

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
    let kernel = Kernel::of(pass.exec.simd);
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
                        loss_of.part(task)[0] = pair_slopes(kernel, pass.matrices(), asked, rows, gaps, slopes);
                    }
                    2 => pass.sum(scratch, slopes_of.whole(), gradients, task),
                    _ => pass.step(steps, gradients, task),
                }
            }
        });
    });
    Ok(losses.iter().sum())
}

/// The slopes of rows of users and their items, the positive first, and their loss.
fn pair_slopes(
    kernel: Kernel,
    [users, items]: [Matrix; 2],
    asked: Asked,
    rows: Range<usize>,
    gaps: &mut Vec<f32>,
    slopes: &mut [f32],
) -> f64 {
    let width = asked.width;
    gaps.clear();
    for row in rows {
        let ids = &asked.items[row * width..(row + 1) * width];
        let (user, positive) = (users.row(asked.users[row] as usize), items.row(ids[0] as usize));
        gaps.extend(
            ids[1..]
                .iter()
                .map(|&id| kernel.product(user, positive, items.row(id as usize))),
        );
    }
    let loss = kernel.slopes(gaps);
    for (slopes, own) in slopes
        .chunks_exact_mut(width)
        .zip(gaps.chunks_exact((width - 1).max(1)))
    {
        slopes[0] = -own.iter().sum::<f32>();
        slopes[1..].copy_from_slice(own);
    }
    loss
}

/// One of the two tables, and its rows of the batch.
struct Side<'a> {
    table: Shared<'a>,
    groups: Groups,
    owed: Owed<'a>,
    /// Steps that the row of each group has taken.
    from: Vec<i32>,
}

/// What a thread works with.
#[derive(Default)]
struct Scratch {
    batch: Batch,
    gaps: Vec<f32>,
    shares: Vec<Share>,
    bounds: Vec<u32>,
}

/// Users and items of a batch, their rows in one sequence of tasks: few enough that rows which owe about the same steps meet in
/// one, and enough for all threads to be busy to the end.
struct Pass<'a> {
    exec: Exec<'a>,
    update: Update,
    asked: Asked<'a>,
    sides: [Side<'a>; 2],
    /// Rows of a task.
    height: usize,
    user_tasks: usize,
    tasks: usize,
}

impl<'a> Pass<'a> {
    /// Refuses what does not fit before anything changes. The ledgers count what is owed, and `more` steps, as taken.
    fn new(exec: Exec<'a>, tables: [(Table<'a>, Ledger<'a>); 2], asked: Asked<'a>, more: i32) -> Result<Self, Error> {
        let [(users, user_ledger), (items, item_ledger)] = tables;
        let (users, items) = (Shared::new(users), Shared::new(items));
        if users.dim != items.dim || asked.users.len().checked_mul(asked.width) != Some(asked.items.len()) {
            return Err(Error::Shape(format!(
                "{} users of dim {} and {} items ({} each) of dim {}",
                asked.users.len(),
                users.dim,
                asked.items.len(),
                asked.width,
                items.dim
            )));
        }
        check_rows(asked.users, users.rows)?;
        check_rows(asked.items, items.rows)?;
        user_ledger.check(users.rows)?;
        item_ledger.check(items.rows)?;
        let side = |table: Shared<'a>, ledger, ids| {
            let groups = Groups::of(ids, table.rows);
            let (owed, from) = groups.owing(ledger, table.rows, more)?;
            Ok(Side {
                table,
                groups,
                owed,
                from,
            })
        };
        let sides = [
            side(users, user_ledger, asked.users)?,
            side(items, item_ledger, asked.items)?,
        ];
        let [rows, owed] = [Side::rows, Side::steps].map(|count| sides.iter().map(count).sum::<usize>());
        let exec = exec.for_work((8 * rows + owed + asked.items.len()) * sides[0].table.dim);
        let most = sides[0].table.task_rows().max(64);
        let height = rows.div_ceil(4 * exec.threads()).clamp(64, most);
        let [user_tasks, item_tasks] = [0, 1].map(|side: usize| sides[side].rows().div_ceil(height));
        Ok(Pass {
            exec,
            update: Update::of(exec.simd),
            asked,
            sides,
            height,
            user_tasks,
            tasks: user_tasks + item_tasks,
        })
    }

    /// Which side a task belongs to, its number there, and its groups.
    fn part(&self, task: usize) -> (usize, usize, Range<usize>) {
        let (side, number) = match task.checked_sub(self.user_tasks) {
            None => (0, task),
            Some(number) => (1, number),
        };
        let end = self.sides[side].rows().min((number + 1) * self.height);
        (side, number, number * self.height..end)
    }

    /// Users and items.
    ///
    /// # Safety
    /// Nobody changes a table while these live.
    unsafe fn matrices(&self) -> [Matrix<'_>; 2] {
        // SAFETY: as the caller vouches.
        [0, 1].map(|side: usize| unsafe { self.sides[side].table.matrix() })
    }

    /// Runs `work` with room for the gradients of both sides' rows.
    fn with_gradients(&self, work: impl FnOnce(&[Parts<f32>; 2])) {
        GRADIENTS.with_borrow_mut(|gradients| {
            let dim = self.sides[0].table.dim;
            let split = self.sides[0].rows() * dim;
            gradients.resize(split + self.sides[1].rows() * dim, 0.0);
            let (to_users, to_items) = gradients.split_at_mut(split);
            work(&[to_users, to_items].map(|part| Parts::new(part, self.height * dim)));
        });
    }

    /// The rows of a task take the steps they owe.
    ///
    /// # Safety
    /// Every task once, and nobody else refers to the tables.
    unsafe fn catch_up(&self, batch: &mut Batch, task: usize) {
        let (side, _, part) = self.part(task);
        let side = &self.sides[side];
        batch.fill_from(&side.groups.rows[part.clone()], &side.from[part], side.owed.len());
        // SAFETY: groups are of distinct rows inside the table, and each belongs to one task.
        unsafe { batch.replay(self.update, &side.table, &side.owed) };
    }

    /// The gradients of the rows of a task.
    ///
    /// # Safety
    /// Every task once; nobody changes the tables.
    unsafe fn sum(&self, scratch: &mut Scratch, slopes: &[f32], gradients: &[Parts<f32>; 2], task: usize) {
        let (side, number, part) = self.part(task);
        let Asked { users, items, width } = self.asked;
        let (shares, bounds) = (&mut scratch.shares, &mut scratch.bounds);
        shares.clear();
        bounds.clear();
        bounds.push(0);
        for group in part {
            for &place in self.sides[side].groups.places(group) {
                let place = place as usize;
                if side == 0 {
                    let own = place * width..(place + 1) * width;
                    let rows = items[own.clone()].iter().zip(&slopes[own]);
                    shares.extend(rows.map(|(&item, &weight)| Share {
                        row: item as u32,
                        weight,
                    }));
                } else {
                    shares.push(Share {
                        row: users[place / width] as u32,
                        weight: slopes[place],
                    });
                }
            }
            bounds.push(shares.len() as u32);
        }
        // SAFETY: as the caller vouches; the part is this task's alone.
        let (others, out) = unsafe { (self.sides[1 - side].table.matrix(), gradients[side].part(number)) };
        self.exec.simd.weighted_sums(shares, bounds, others, None, out);
    }

    /// The rows of a task take their step.
    ///
    /// # Safety
    /// Every task once, and nobody else refers to the tables or the gradients.
    unsafe fn step(&self, steps: [AdamStep; 2], gradients: &[Parts<f32>; 2], task: usize) {
        let (side, number, part) = self.part(task);
        let Side { table, groups, .. } = &self.sides[side];
        // SAFETY: groups are of distinct rows inside the table, and each belongs to one task.
        unsafe {
            self.update
                .step(table, &groups.rows[part], gradients[side].part(number), steps[side])
        };
    }
}

impl Side<'_> {
    fn rows(&self) -> usize {
        self.groups.rows.len()
    }

    /// Those that its rows owe together, or their estimates.
    fn steps(&self) -> usize {
        let owed = self.owed.len();
        let each = if let Owed::Spans(_) = self.owed { SPAN } else { 1 };
        let steps = |&from: &i32| owed.saturating_sub(from as usize).div_ceil(each);
        self.from.iter().map(steps).sum()
    }
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

    const N_USERS: usize = 7;
    const N_ITEMS: usize = 11;

    /// Users and items with values from -2 to 2, which owe nothing.
    fn tables(seed: u64, dim: usize) -> [Parts; 2] {
        let mut word = words(seed);
        [N_USERS, N_ITEMS].map(|rows| {
            let values = (0..rows * dim).map(|_| (word() as f32 / 16_777_216.0 - 0.5) * 4.0);
            [values.collect(), vec![0.0; rows * dim], vec![0.0; rows * dim]]
        })
    }

    /// Steps with a large epsilon, so that they follow the gradient's size and not its sign alone.
    fn falling(count: usize) -> Vec<AdamStep> {
        let step = |t| AdamStep {
            rate: 0.1 / (1.0 + t as f32),
            eps: 0.5,
            weight_decay: 0.01,
        };
        (0..count).map(step).collect()
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
            let (n_users, n_items) = (N_USERS, N_ITEMS);
            let [mut users, mut items] = tables(seed, dim);
            let (mut other_users, mut other_items) = (users.clone(), items.clone());
            let (mut slow_users, mut slow_items) = (users.clone(), items.clone());
            let mut word = words(seed ^ 0x1234);
            let mut ids = |n: usize, below: usize| (0..n).map(|_| (word() % below as u64) as i64).collect::<Vec<i64>>();
            let team = crate::Team::new(threads).unwrap();
            let simd = SimdPath::named(SimdPath::NAMES[path]).unwrap_or_default();
            let exec = Exec { team: Some(&team), simd, ..Exec::default() };
            let steps = falling(batches);
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

    proptest! {
        /// With the slopes of BPR worked out from the scores, in double precision.
        #[test]
        fn a_step_by_slopes_does_what_the_pass_does(
            dim in 1usize..50, count in 0usize..30, width in 0usize..4, threads in 1usize..3, lazy: bool,
            seed: u64, path in 0..SimdPath::NAMES.len(), batches in 1usize..5,
        ) {
            let (n_users, n_items) = (N_USERS, N_ITEMS);
            let [mut users, mut items] = tables(seed, dim);
            let (mut other_users, mut other_items) = (users.clone(), items.clone());
            let mut word = words(seed ^ 0x1234);
            let mut ids = |n: usize, below: usize| (0..n).map(|_| (word() % below as u64) as i64).collect::<Vec<i64>>();
            let team = crate::Team::new(threads).unwrap();
            let simd = SimdPath::named(SimdPath::NAMES[path]).unwrap_or_default();
            let exec = Exec { team: Some(&team), simd, ..Exec::default() };
            let steps = falling(batches);
            let mut clocks = [vec![0; n_users], vec![0; n_items]];
            let mut other_clocks = clocks.clone();
            for (t, &step) in steps.iter().enumerate() {
                let (asked, positives, negatives) = (ids(count, n_users), ids(count, n_items), ids(count * width, n_items));
                let pairs = Pairs { users: &asked, positives: &positives, negatives: &negatives, width };
                let [users_taken, items_taken] = &mut clocks;
                let loss = bpr_step(
                    exec,
                    trained(&mut users, dim, &steps[..t], users_taken, lazy, step),
                    trained(&mut items, dim, &steps[..t], items_taken, lazy, step),
                    pairs,
                ).unwrap();

                let wide = 1 + width;
                let all: Vec<i64> = (0..count)
                    .flat_map(|row| std::iter::once(positives[row]).chain(negatives[row * width..(row + 1) * width].iter().copied()))
                    .collect();
                let question = Asked { users: &asked, items: &all, width: wide };
                let [users_taken, items_taken] = &mut other_clocks;
                let waiting = |parts, taken| {
                    let Trained { table, ledger, .. } = trained(parts, dim, &steps[..t], taken, lazy, step);
                    (table, ledger)
                };
                let scores = table_scores(
                    exec, waiting(&mut other_users, users_taken), waiting(&mut other_items, items_taken), question,
                ).unwrap();
                let (mut slopes, mut sum) = (vec![0f32; scores.len()], 0.0);
                for (slopes, scores) in slopes.chunks_mut(wide).zip(scores.chunks(wide)) {
                    for k in 1..wide {
                        let x = f64::from(scores[k]) - f64::from(scores[0]);
                        sum += x.max(0.0) + (-x.abs()).exp().ln_1p();
                        slopes[k] = (1.0 / (1.0 + (-x).exp())) as f32;
                        slopes[0] -= slopes[k];
                    }
                }
                prop_assert!((loss - sum).abs() <= 1e-4 * (1.0 + sum), "{} {}", loss, sum);
                score_step(
                    exec,
                    trained(&mut other_users, dim, &steps[..t], users_taken, lazy, step),
                    trained(&mut other_items, dim, &steps[..t], items_taken, lazy, step),
                    question,
                    &slopes,
                ).unwrap();
                prop_assert_eq!(&clocks, &other_clocks);
            }
            for (own, other) in users.iter().chain(&items).flatten().zip(other_users.iter().chain(&other_items).flatten()) {
                prop_assert!((own - other).abs() < 1e-4, "{} {}", own, other);
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
        let start: Parts = [vec![1.0; 4], vec![0.0; 4], vec![0.0; 4]];
        let pairs = Pairs {
            users: &[0],
            positives: &[0],
            negatives: &[2],
            width: 1,
        };
        let asked = |items| Asked {
            users: &[0],
            items,
            width: 2,
        };
        let bad = Error::RowRange { row: 2, rows: 2 };
        let owed = [step; 3];
        let refuse = |call: &dyn Fn(Trained, Trained) -> Result<(), Error>, error: Option<&Error>| {
            let (mut parts, mut others) = (start.clone(), start.clone());
            let (mut clock, mut other_clock) = ([1, 0], [2, 3]);
            let found = call(
                trained(&mut parts, 2, &owed, &mut clock, false, step),
                trained(&mut others, 2, &owed, &mut other_clock, false, step),
            );
            assert!(found.is_err());
            if let Some(error) = error {
                assert_eq!(found.as_ref(), Err(error));
            }
            assert_eq!((parts, others), (start.clone(), start.clone()));
            assert_eq!((clock, other_clock), ([1, 0], [2, 3]));
        };
        let exec = Exec::serial();
        refuse(
            &|users, items| bpr_step(exec, users, items, pairs).map(|_| ()),
            Some(&bad),
        );
        refuse(
            &|users, items| score_step(exec, users, items, asked(&[1, 2]), &[1.0; 2]),
            Some(&bad),
        );
        refuse(
            &|users, items| score_step(exec, users, items, asked(&[1, 0]), &[1.0; 3]),
            None,
        );
        refuse(
            &|users, items| score_step(exec, users, items, asked(&[1]), &[1.0]),
            None,
        );
        let scores = |users: Trained, items: Trained| {
            let tables = [(users.table, users.ledger), (items.table, items.ledger)];
            let [users, items] = tables;
            table_scores(exec, users, items, asked(&[0, 2])).map(|_| ())
        };
        refuse(&scores, Some(&bad));
    }

    #[test]
    fn users_asked_for_no_item_take_what_they_owe() {
        let step = AdamStep {
            rate: 0.1,
            eps: 1e-8,
            weight_decay: 0.5,
        };
        let mut parts: Parts = [vec![1.0; 4], vec![0.0; 4], vec![0.0; 4]];
        let (mut others, mut expected) = (parts.clone(), parts.clone());
        let (owed, mut clock, mut other_clock) = ([step; 3], [0, 0], [0, 0]);
        let asked = Asked {
            users: &[1],
            items: &[],
            width: 0,
        };
        let users = trained(&mut parts, 2, &owed, &mut clock, false, step);
        let items = trained(&mut others, 2, &owed, &mut other_clock, false, step);
        let found = table_scores(
            Exec::serial(),
            (users.table, users.ledger),
            (items.table, items.ledger),
            asked,
        );
        assert_eq!(found, Ok(vec![]));
        let mut taken = [3, 0];
        let slow = trained(&mut expected, 2, &owed, &mut taken, false, step);
        catch_up(Exec::serial(), slow.table, slow.ledger).unwrap();
        assert_eq!(parts, expected);
        assert_eq!(clock, [0, 3]);
        assert_ne!(parts[0][2..], [1.0, 1.0]);
    }
}
