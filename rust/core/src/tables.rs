//! Adam for tables of vectors whose gradient touches few rows.
//!
//! In dense Adam a row without gradient takes a step too: decay and momentum move it. Such steps of a row read nothing but
//! the row, so they may wait until the row is next read and then be taken all at once, in registers. A [`Ledger`] keeps the
//! steps that rows may still owe. The arithmetic is that of one step after the other, bit for bit.

use std::cell::RefCell;

use crate::error::Error;
use crate::exec::Exec;
use crate::score::{Matrix, SimdPath};

/// Floats of a table that one task updates.
const TASK_FLOATS: usize = 1 << 15;

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;

/// The numbers of one step. With bias corrections c1 = 1 - β1^t and c2 = 1 - β2^t, `rate` is lr · √c2 / c1 and `eps` is
/// ε · √c2: θ − rate · m / (√v + eps) is Adam's θ − lr · (m / c1) / (√(v / c2) + ε) with one division less.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamStep {
    pub rate: f32,
    pub eps: f32,
    pub weight_decay: f32,
}

/// Steps that are estimated at once.
pub(crate) const SPAN: usize = 32;

/// k steps without gradient in closed form.
///
/// With d = wd · θ as if θ stood still, m_j = d + (m - d) β1^j, and v decays. Σ m_j over the k steps is then m S + d (k - S) with
/// S = Σ β1^j; both parts are divided by √v + ε half way. The part of the decay is taken as the exponential that it is if v stands
/// still, so that it never carries θ past 0.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    /// The mean rate times S, and times wd (k - S).
    momentum: f32,
    shrinking: f32,
    eps: f32,
    weight_decay: f32,
    /// β1^k, β2^k, β2^((k + 1) / 2)
    decay1: f32,
    decay2: f32,
    half: f32,
}

/// Steps of a ledger, to be taken one by one; or for each of them the span that begins there.
pub(crate) enum Owed<'a> {
    Steps(&'a [AdamStep]),
    Spans(Vec<Span>),
}

impl<'a> Owed<'a> {
    pub fn new(steps: &'a [AdamStep], lazy: bool) -> Self {
        match lazy {
            false => Owed::Steps(steps),
            true => Owed::Spans(
                (0..steps.len())
                    .map(|from| Span::of(&steps[from..steps.len().min(from + SPAN)]))
                    .collect(),
            ),
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Owed::Steps(steps) => steps.len(),
            Owed::Spans(spans) => spans.len(),
        }
    }
}

impl Span {
    fn of(steps: &[AdamStep]) -> Span {
        let count = steps.len() as f32;
        let mean = |part: fn(&AdamStep) -> f32| steps.iter().map(part).sum::<f32>() / count;
        let (mut decay1, mut decay2) = (1.0, 1.0);
        for _ in steps {
            decay1 *= BETA1;
            decay2 *= BETA2;
        }
        let (rate, weight_decay) = (mean(|step| step.rate), mean(|step| step.weight_decay));
        let sum = BETA1 * (1.0 - decay1) / (1.0 - BETA1);
        Span {
            momentum: rate * sum,
            shrinking: rate * weight_decay * (count - sum),
            eps: mean(|step| step.eps),
            weight_decay,
            decay1,
            decay2,
            half: (decay2 * BETA2).sqrt(),
        }
    }
}

#[inline(always)]
fn estimate(values: &mut [f32], first: &mut [f32], second: &mut [f32], span: Span) {
    let length = values.len();
    let (first, second) = (&mut first[..length], &mut second[..length]);
    for i in 0..length {
        let (value, m, v) = (values[i], first[i], second[i]);
        let drift = span.weight_decay * value;
        let square = drift * drift;
        let root = (v * span.half + (1.0 - span.half) * square).sqrt() + span.eps;
        let inverse = 1.0 / root;
        let shrink = span.shrinking * inverse;
        let shrunk = value / (1.0 + shrink + 0.5 * shrink * shrink);
        values[i] = shrunk - span.momentum * m * inverse;
        first[i] = normal(drift + (m - drift) * span.decay1);
        second[i] = normal(v * span.decay2 + (1.0 - span.decay2) * square);
    }
}

/// A table [rows, dim] and its two moments.
pub struct Table<'a> {
    values: &'a mut [f32],
    first: &'a mut [f32],
    second: &'a mut [f32],
    dim: usize,
}

impl<'a> Table<'a> {
    pub fn new(values: &'a mut [f32], first: &'a mut [f32], second: &'a mut [f32], dim: usize) -> Result<Self, Error> {
        if first.len() != values.len() || second.len() != values.len() || dim == 0 || !values.len().is_multiple_of(dim)
        {
            return Err(Error::Shape(format!(
                "a table of {} values in rows of {dim} with moments of {} and {}",
                values.len(),
                first.len(),
                second.len()
            )));
        }
        Ok(Table {
            values,
            first,
            second,
            dim,
        })
    }

    fn rows(&self) -> usize {
        self.values.len() / self.dim
    }
}

/// Steps of a table, and how many of them each row has taken.
pub struct Ledger<'a> {
    steps: &'a [AdamStep],
    taken: &'a mut [i32],
    /// Lazy Adam: steps owed are estimated.
    lazy: bool,
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
    let update = Update::of(exec.simd);
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
        unsafe { batch.replay(update, &shared, &owed) };
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
    let update = Update::of(exec.simd);
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
            unsafe { batch.replay(update, &shared, &owed) };
            Ok(())
        },
    )
}

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
    pub unsafe fn replay(&self, update: Update, table: &Shared, owed: &Owed) {
        // SAFETY: as the caller vouches.
        unsafe {
            match owed {
                Owed::Steps(steps) => update.replay(table, &self.rows, &self.from, steps),
                Owed::Spans(spans) => update.estimate(table, &self.rows, &self.from, spans),
            }
        }
    }
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
    let update = Update::of(exec.simd);
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
            unsafe { batch.replay(update, &shared, &owed) };
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
            unsafe { update.step(&shared, rows, gradients, step) };
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

/// A table whose rows go to several threads.
pub(crate) struct Shared<'a> {
    values: *mut f32,
    first: *mut f32,
    second: *mut f32,
    pub rows: usize,
    pub dim: usize,
    /// Keeps the table borrowed.
    _table: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: what it points to is borrowed mutably for as long as it lives, and `row`'s callers hand each row to one thread.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub fn new(table: Table<'a>) -> Self {
        Shared {
            rows: table.values.len() / table.dim,
            values: table.values.as_mut_ptr(),
            first: table.first.as_mut_ptr(),
            second: table.second.as_mut_ptr(),
            dim: table.dim,
            _table: std::marker::PhantomData,
        }
    }

    /// Rows that make a task.
    pub fn task_rows(&self) -> usize {
        (TASK_FLOATS / self.dim).max(1)
    }

    /// The table's values, to be read.
    ///
    /// # Safety
    /// Nobody changes them while the matrix lives.
    pub unsafe fn matrix(&self) -> Matrix<'_> {
        // SAFETY: there are rows x dim values, and the caller vouches for the rest.
        let values = unsafe { std::slice::from_raw_parts(self.values, self.rows * self.dim) };
        Matrix::new(values, self.rows, self.dim)
    }

    /// # Safety
    /// `row` is a row of the table, and no other reference to it lives.
    #[allow(clippy::mut_from_ref)]
    unsafe fn row(&self, row: u32) -> (&mut [f32], &mut [f32], &mut [f32]) {
        let start = row as usize * self.dim;
        // SAFETY: all three have rows x dim values, and the caller vouches for row and for its being alone.
        unsafe {
            (
                std::slice::from_raw_parts_mut(self.values.add(start), self.dim),
                std::slice::from_raw_parts_mut(self.first.add(start), self.dim),
                std::slice::from_raw_parts_mut(self.second.add(start), self.dim),
            )
        }
    }
}

/// The instructions to use. Every operation is rounded by itself, so all give the same bytes.
#[derive(Clone, Copy)]
pub(crate) enum Update {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Update {
    pub fn of(path: SimdPath) -> Update {
        #[cfg(target_arch = "x86_64")]
        {
            if path.is_avx512() {
                return Update::Avx512;
            }
            if path.has_avx2() {
                return Update::Avx2;
            }
        }
        let _ = path;
        Update::Portable
    }

    /// Rows take the spans that begin with the steps `from`.
    ///
    /// # Safety
    /// As of `step`.
    unsafe fn estimate(self, table: &Shared, rows: &[u32], from: &[i32], spans: &[Span]) {
        for (n, (&row, &from)) in rows.iter().zip(from).enumerate() {
            prefetch(table, rows.get(n + 2));
            // SAFETY: as the caller vouches.
            let (values, first, second) = unsafe { table.row(row) };
            for &span in spans[from as usize..].iter().step_by(SPAN) {
                match self {
                    Update::Portable => estimate(values, first, second, span),
                    // SAFETY: these paths exist only if the processor has AVX2; all three are rows of one length.
                    #[cfg(target_arch = "x86_64")]
                    _ => unsafe { x86::estimate(values, first, second, span) },
                }
            }
        }
    }

    /// Rows take a step, with a gradient [rows, dim].
    ///
    /// # Safety
    /// The rows are distinct rows of the table, and nobody else refers to them.
    pub unsafe fn step(self, table: &Shared, rows: &[u32], gradients: &[f32], step: AdamStep) {
        assert!(gradients.len() == rows.len() * table.dim);
        // SAFETY: as the caller vouches, and the gradients are as many.
        unsafe { self.run(table, rows, |_| 0, gradients.as_ptr(), &[step]) }
    }

    /// Rows take steps one after the other, each with gradient 0: those of `steps` after the first `from`, which ascend.
    ///
    /// # Safety
    /// As of `step`.
    unsafe fn replay(self, table: &Shared, rows: &[u32], from: &[i32], steps: &[AdamStep]) {
        assert!(from.len() == rows.len());
        // SAFETY: as the caller vouches.
        unsafe { self.run(table, rows, |n| from[n] as usize, std::ptr::null(), steps) }
    }

    /// # Safety
    /// The rows are distinct rows of the table, and nobody else refers to them; gradients are [rows, dim] or null.
    #[inline]
    unsafe fn run(
        self,
        table: &Shared,
        rows: &[u32],
        from: impl Fn(usize) -> usize,
        gradients: *const f32,
        steps: &[AdamStep],
    ) {
        match self {
            Update::Portable => {
                for (n, &row) in rows.iter().enumerate() {
                    // SAFETY: as the caller vouches.
                    let (values, first, second) = unsafe { table.row(row) };
                    for i in 0..table.dim {
                        // SAFETY: as the caller vouches.
                        let gradient = match gradients.is_null() {
                            true => 0.0,
                            false => unsafe { *gradients.add(n * table.dim + i) },
                        };
                        for step in &steps[from(n)..] {
                            element(&mut values[i], &mut first[i], &mut second[i], gradient, *step);
                        }
                    }
                }
            }
            // SAFETY: paths of these names exist only if the processor has AVX2, or AVX-512 F and VL; the caller vouches for
            // the rows and the gradients.
            #[cfg(target_arch = "x86_64")]
            Update::Avx2 => unsafe { x86::run_avx2(table, rows, from, gradients, steps) },
            #[cfg(target_arch = "x86_64")]
            Update::Avx512 => unsafe { x86::run_avx512(table, rows, from, gradients, steps) },
        }
    }
}

/// Asks for a row, which may lie anywhere, where that can be asked.
#[inline(always)]
fn prefetch(table: &Shared, row: Option<&u32>) {
    #[cfg(target_arch = "x86_64")]
    if let Some(&row) = row {
        x86::prefetch(table, row);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (table, row);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! `element` in four vectors side by side, whose state stays in registers over all steps. Divisions and roots bound the
    //! speed.

    use std::arch::x86_64::*;

    use super::{AdamStep, Shared, Span, BETA1, BETA2};

    /// Part of a row that a vector holds.
    #[derive(Clone, Copy, Default)]
    struct Slot {
        /// Its first float in the table, and in the gradients.
        at: usize,
        gradient: usize,
        /// Floats of the row from there on.
        left: usize,
        /// Steps before its first.
        from: usize,
    }

    /// Floats between what is asked for and what is worked on.
    const AHEAD: usize = 64;

    /// Asks for a row, which may lie anywhere.
    #[inline(always)]
    pub fn prefetch(table: &Shared, row: u32) {
        let start = row as usize * table.dim;
        for part in [table.values, table.first, table.second] {
            for at in (start..start + table.dim).step_by(16) {
                // SAFETY: a hint, which reads nothing; the address lies in the table if the row does.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(part.wrapping_add(at).cast()) };
            }
        }
    }

    /// Hands the parts of all rows to `block`, four vectors of `pieces` parts at a time: the `lanes` floats from each of
    /// `starts`.
    macro_rules! blocks {
        ($table:ident, $rows:ident, $from:ident, $range:expr, $gradients:ident, $steps:ident, $starts:expr, $block:ident, $pieces:literal) => {
            let mut slots = [Slot::default(); 4 * $pieces];
            let mut count = 0;
            for n in $range {
                let row = $rows[n];
                if let Some(&ahead) = $rows.get(n + AHEAD.div_ceil($table.dim)) {
                    prefetch($table, ahead);
                }
                for start in $starts {
                    slots[count] = Slot {
                        at: row as usize * $table.dim + start,
                        gradient: n * $table.dim + start,
                        left: $table.dim - start,
                        from: $from(n),
                    };
                    count += 1;
                    if count == 4 * $pieces {
                        // SAFETY: the slots lie in rows of the table and of the gradients, for which the caller vouches.
                        unsafe { $block::<4, $pieces>($table, $gradients, &slots, $steps) };
                        count = 0;
                    }
                }
            }
            // SAFETY: as above.
            unsafe {
                match count.div_ceil($pieces) {
                    0 => (),
                    1 => $block::<1, $pieces>($table, $gradients, &slots[..count], $steps),
                    2 => $block::<2, $pieces>($table, $gradients, &slots[..count], $steps),
                    3 => $block::<3, $pieces>($table, $gradients, &slots[..count], $steps),
                    _ => $block::<4, $pieces>($table, $gradients, &slots[..count], $steps),
                }
            }
        };
    }

    /// [`super::estimate`], operation for operation.
    ///
    /// # Safety
    /// AVX2; all slices of one length.
    #[target_feature(enable = "avx2")]
    pub unsafe fn estimate(values: &mut [f32], first: &mut [f32], second: &mut [f32], span: Span) {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let (one, all) = (_mm256_set1_ps(1.0), _mm256_set1_ps);
        let normal = |x: __m256| {
            let size = _mm256_andnot_ps(_mm256_set1_ps(-0.0), x);
            _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(size, _mm256_set1_ps(f32::MIN_POSITIVE)), x)
        };
        let len = values.len();
        for start in (0..len).step_by(8) {
            let mask = _mm256_cmpgt_epi32(_mm256_set1_epi32((len - start).min(8) as i32), lanes);
            // SAFETY: masked lanes are not touched, the others are there.
            unsafe {
                let (values, first, second) = (
                    values.as_mut_ptr().add(start),
                    first.as_mut_ptr().add(start),
                    second.as_mut_ptr().add(start),
                );
                let (value, m, v) = (
                    _mm256_maskload_ps(values, mask),
                    _mm256_maskload_ps(first, mask),
                    _mm256_maskload_ps(second, mask),
                );
                let drift = _mm256_mul_ps(all(span.weight_decay), value);
                let square = _mm256_mul_ps(drift, drift);
                let kept = _mm256_mul_ps(v, all(span.half));
                let new = _mm256_mul_ps(all(1.0 - span.half), square);
                let root = _mm256_add_ps(_mm256_sqrt_ps(_mm256_add_ps(kept, new)), all(span.eps));
                let inverse = _mm256_div_ps(one, root);
                let shrink = _mm256_mul_ps(all(span.shrinking), inverse);
                let twice = _mm256_mul_ps(_mm256_mul_ps(all(0.5), shrink), shrink);
                let shrunk = _mm256_div_ps(value, _mm256_add_ps(_mm256_add_ps(one, shrink), twice));
                let carried = _mm256_mul_ps(_mm256_mul_ps(all(span.momentum), m), inverse);
                _mm256_maskstore_ps(values, mask, _mm256_sub_ps(shrunk, carried));
                let left = _mm256_mul_ps(_mm256_sub_ps(m, drift), all(span.decay1));
                _mm256_maskstore_ps(first, mask, normal(_mm256_add_ps(drift, left)));
                let kept = _mm256_mul_ps(v, all(span.decay2));
                let new = _mm256_mul_ps(all(1.0 - span.decay2), square);
                _mm256_maskstore_ps(second, mask, normal(_mm256_add_ps(kept, new)));
            }
        }
    }

    /// Steps from which on rows share vectors: what is left over of several rows in one saves more than it costs.
    const WORTH_SHARING: usize = 4;

    /// # Safety
    /// AVX-512 F and VL; distinct rows of the table that nobody else refers to; a gradient for each, or null.
    #[target_feature(enable = "avx512f,avx512vl")]
    pub unsafe fn run_avx512(
        table: &Shared,
        rows: &[u32],
        from: impl Fn(usize) -> usize,
        gradients: *const f32,
        steps: &[AdamStep],
    ) {
        let rest = table.dim % 16;
        // Those with few steps come last.
        let sharing = match rest {
            1..=8 => (0..rows.len())
                .rposition(|n| steps.len() - from(n) >= WORTH_SHARING)
                .map_or(0, |n| n + 1),
            _ => 0,
        };
        let whole = table.dim - rest;
        if whole > 0 && sharing > 0 {
            blocks!(
                table,
                rows,
                from,
                0..sharing,
                gradients,
                steps,
                (0..whole).step_by(16),
                block_avx512,
                1
            );
        }
        if rest <= 4 {
            blocks!(
                table,
                rows,
                from,
                0..sharing,
                gradients,
                steps,
                [whole],
                block_avx512,
                4
            );
        } else {
            blocks!(
                table,
                rows,
                from,
                0..sharing,
                gradients,
                steps,
                [whole],
                block_avx512,
                2
            );
        }
        blocks!(
            table,
            rows,
            from,
            sharing..rows.len(),
            gradients,
            steps,
            (0..table.dim).step_by(16),
            block_avx512,
            1
        );
    }

    /// # Safety
    /// AVX2; otherwise as above.
    #[target_feature(enable = "avx2")]
    pub unsafe fn run_avx2(
        table: &Shared,
        rows: &[u32],
        from: impl Fn(usize) -> usize,
        gradients: *const f32,
        steps: &[AdamStep],
    ) {
        blocks!(
            table,
            rows,
            from,
            0..rows.len(),
            gradients,
            steps,
            (0..table.dim).step_by(8),
            block_avx2,
            1
        );
    }

    /// A vector of P parts at `from + at`, each of 16 / P floats at most.
    ///
    /// # Safety
    /// AVX-512 F and VL; the parts can be read.
    #[target_feature(enable = "avx512f,avx512vl")]
    #[inline]
    unsafe fn load<const P: usize>(from: *const f32, at: impl Fn(&Slot) -> usize, slots: &[Slot]) -> __m512 {
        let mut vector = _mm512_setzero_ps();
        for (piece, slot) in slots.iter().enumerate() {
            let mask = (0xFFFF_u32 >> (16 - slot.left.min(16 / P))) as __mmask16;
            // SAFETY: masked lanes are not touched, the others are there.
            unsafe {
                let from = from.add(at(slot));
                match P {
                    1 => vector = _mm512_maskz_loadu_ps(mask, from),
                    2 => {
                        let part = _mm512_castps256_ps512(_mm256_maskz_loadu_ps(mask as __mmask8, from));
                        vector = if piece == 0 {
                            part
                        } else {
                            _mm512_shuffle_f32x4::<0b01_00_01_00>(vector, part)
                        };
                    }
                    _ => {
                        let part = _mm_maskz_loadu_ps(mask as __mmask8, from);
                        vector = match piece {
                            0 => _mm512_insertf32x4::<0>(vector, part),
                            1 => _mm512_insertf32x4::<1>(vector, part),
                            2 => _mm512_insertf32x4::<2>(vector, part),
                            _ => _mm512_insertf32x4::<3>(vector, part),
                        };
                    }
                }
            }
        }
        vector
    }

    /// The inverse of `load`.
    ///
    /// # Safety
    /// AVX-512 F and VL; the parts can be written.
    #[target_feature(enable = "avx512f,avx512vl")]
    #[inline]
    unsafe fn store<const P: usize>(to: *mut f32, slots: &[Slot], vector: __m512) {
        for (piece, slot) in slots.iter().enumerate() {
            let mask = (0xFFFF_u32 >> (16 - slot.left.min(16 / P))) as __mmask16;
            // SAFETY: masked lanes are not touched, the others are there.
            unsafe {
                let to = to.add(slot.at);
                match P {
                    1 => _mm512_mask_storeu_ps(to, mask, vector),
                    2 => {
                        let part = if piece == 0 {
                            vector
                        } else {
                            _mm512_shuffle_f32x4::<0b11_10_11_10>(vector, vector)
                        };
                        _mm256_mask_storeu_ps(to, mask as __mmask8, _mm512_castps512_ps256(part));
                    }
                    _ => {
                        let part = match piece {
                            0 => _mm512_extractf32x4_ps::<0>(vector),
                            1 => _mm512_extractf32x4_ps::<1>(vector),
                            2 => _mm512_extractf32x4_ps::<2>(vector),
                            _ => _mm512_extractf32x4_ps::<3>(vector),
                        };
                        _mm_mask_storeu_ps(to, mask as __mmask8, part);
                    }
                }
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn step_avx512(value: __m512, m: __m512, v: __m512, gradient: __m512, step: &AdamStep) -> (__m512, __m512, __m512) {
        let normal = |x: __m512| {
            let kept = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_abs_ps(x), _mm512_set1_ps(f32::MIN_POSITIVE));
            _mm512_maskz_mov_ps(kept, x)
        };
        let gradient = _mm512_add_ps(gradient, _mm512_mul_ps(_mm512_set1_ps(step.weight_decay), value));
        let change = _mm512_mul_ps(_mm512_sub_ps(gradient, m), _mm512_set1_ps(1.0 - BETA1));
        let m = normal(_mm512_add_ps(m, change));
        let square = _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(1.0 - BETA2), gradient), gradient);
        let v = normal(_mm512_add_ps(_mm512_mul_ps(v, _mm512_set1_ps(BETA2)), square));
        let root = _mm512_add_ps(_mm512_sqrt_ps(v), _mm512_set1_ps(step.eps));
        let change = _mm512_div_ps(_mm512_mul_ps(_mm512_set1_ps(step.rate), m), root);
        (_mm512_sub_ps(value, change), m, v)
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn step_avx2(value: __m256, m: __m256, v: __m256, gradient: __m256, step: &AdamStep) -> (__m256, __m256, __m256) {
        let normal = |x: __m256| {
            let size = _mm256_andnot_ps(_mm256_set1_ps(-0.0), x);
            _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(size, _mm256_set1_ps(f32::MIN_POSITIVE)), x)
        };
        let gradient = _mm256_add_ps(gradient, _mm256_mul_ps(_mm256_set1_ps(step.weight_decay), value));
        let change = _mm256_mul_ps(_mm256_sub_ps(gradient, m), _mm256_set1_ps(1.0 - BETA1));
        let m = normal(_mm256_add_ps(m, change));
        let square = _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(1.0 - BETA2), gradient), gradient);
        let v = normal(_mm256_add_ps(_mm256_mul_ps(v, _mm256_set1_ps(BETA2)), square));
        let root = _mm256_add_ps(_mm256_sqrt_ps(v), _mm256_set1_ps(step.eps));
        let change = _mm256_div_ps(_mm256_mul_ps(_mm256_set1_ps(step.rate), m), root);
        (_mm256_sub_ps(value, change), m, v)
    }

    /// N vectors of P slots, the last of which may be fewer; `from` ascends.
    ///
    /// # Safety
    /// AVX-512 F and VL; the slots lie in the table, and in the gradients unless that pointer is null.
    #[target_feature(enable = "avx512f,avx512vl")]
    #[inline]
    unsafe fn block_avx512<const N: usize, const P: usize>(
        table: &Shared,
        gradients: *const f32,
        slots: &[Slot],
        steps: &[AdamStep],
    ) {
        let zero = _mm512_setzero_ps();
        let (mut value, mut m, mut v, mut g) = ([zero; N], [zero; N], [zero; N], [zero; N]);
        for (n, slots) in slots.chunks(P).enumerate().take(N) {
            // SAFETY: as the caller vouches.
            unsafe {
                value[n] = load::<P>(table.values, |slot| slot.at, slots);
                m[n] = load::<P>(table.first, |slot| slot.at, slots);
                v[n] = load::<P>(table.second, |slot| slot.at, slots);
                if !gradients.is_null() {
                    g[n] = load::<P>(gradients, |slot| slot.gradient, slots);
                }
            }
        }
        // Until the last of them has begun, the others go on alone.
        let (first, last) = (slots[0].from, slots[slots.len() - 1].from);
        if first < last {
            let mut from = [_mm512_setzero_si512(); N];
            for (from, slots) in from.iter_mut().zip(slots.chunks(P)) {
                let mut lanes = [0i32; 16];
                for (lanes, slot) in lanes.chunks_mut(16 / P).zip(slots) {
                    lanes.fill(slot.from as i32);
                }
                // SAFETY: sixteen numbers.
                *from = unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
            }
            for (number, step) in (first as i32..).zip(&steps[first..last]) {
                for n in 0..N {
                    let begun = _mm512_cmple_epi32_mask(from[n], _mm512_set1_epi32(number));
                    let after = step_avx512(value[n], m[n], v[n], g[n], step);
                    value[n] = _mm512_mask_mov_ps(value[n], begun, after.0);
                    m[n] = _mm512_mask_mov_ps(m[n], begun, after.1);
                    v[n] = _mm512_mask_mov_ps(v[n], begun, after.2);
                }
            }
        }
        for step in &steps[last..] {
            for n in 0..N {
                (value[n], m[n], v[n]) = step_avx512(value[n], m[n], v[n], g[n], step);
            }
        }
        for (n, slots) in slots.chunks(P).enumerate().take(N) {
            // SAFETY: as above.
            unsafe {
                store::<P>(table.values, slots, value[n]);
                store::<P>(table.first, slots, m[n]);
                store::<P>(table.second, slots, v[n]);
            }
        }
    }

    /// # Safety
    /// AVX2; otherwise as above.
    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn block_avx2<const N: usize, const P: usize>(
        table: &Shared,
        gradients: *const f32,
        slots: &[Slot],
        steps: &[AdamStep],
    ) {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        let mut masks = [_mm256_setzero_si256(); N];
        let zero = _mm256_setzero_ps();
        let (mut value, mut m, mut v, mut g) = ([zero; N], [zero; N], [zero; N], [zero; N]);
        for (n, slot) in slots.iter().enumerate().take(N) {
            masks[n] = _mm256_cmpgt_epi32(_mm256_set1_epi32(slot.left.min(8) as i32), lanes);
            // SAFETY: masked lanes are not touched, the others are there.
            unsafe {
                value[n] = _mm256_maskload_ps(table.values.add(slot.at), masks[n]);
                m[n] = _mm256_maskload_ps(table.first.add(slot.at), masks[n]);
                v[n] = _mm256_maskload_ps(table.second.add(slot.at), masks[n]);
                if !gradients.is_null() {
                    g[n] = _mm256_maskload_ps(gradients.add(slot.gradient), masks[n]);
                }
            }
        }
        let (first, last) = (slots[0].from, slots[slots.len() - 1].from);
        for (number, step) in (first..).zip(&steps[first..last]) {
            for (n, slot) in slots.iter().enumerate().take(N) {
                if slot.from <= number {
                    (value[n], m[n], v[n]) = step_avx2(value[n], m[n], v[n], g[n], step);
                }
            }
        }
        for step in &steps[last..] {
            for n in 0..N {
                (value[n], m[n], v[n]) = step_avx2(value[n], m[n], v[n], g[n], step);
            }
        }
        for (n, slot) in slots.iter().enumerate().take(N) {
            // SAFETY: as above.
            unsafe {
                _mm256_maskstore_ps(table.values.add(slot.at), masks[n], value[n]);
                _mm256_maskstore_ps(table.first.add(slot.at), masks[n], m[n]);
                _mm256_maskstore_ps(table.second.add(slot.at), masks[n], v[n]);
            }
        }
    }
}

#[inline(always)]
fn element(value: &mut f32, first: &mut f32, second: &mut f32, gradient: f32, step: AdamStep) {
    let gradient = gradient + step.weight_decay * *value;
    *first = normal(*first + (gradient - *first) * (1.0 - BETA1));
    *second = normal(*second * BETA2 + (1.0 - BETA2) * gradient * gradient);
    *value -= step.rate * *first / (second.sqrt() + step.eps);
}

/// Subnormal numbers as 0: they mean nothing here and would slow every step that follows a hundredfold.
#[inline(always)]
fn normal(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE {
        0.0
    } else {
        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn schedule(count: usize) -> Vec<AdamStep> {
        (1..=count as i32)
            .map(|t| AdamStep {
                rate: 0.1 * (1.0 - BETA2.powi(t)).sqrt() / (1.0 - BETA1.powi(t)),
                eps: 1e-6,
                weight_decay: 0.01,
            })
            .collect()
    }

    fn exec(team: &crate::Team, simd: SimdPath) -> Exec<'_> {
        Exec {
            team: Some(team),
            simd,
            ..Exec::default()
        }
    }

    type Batch = (Vec<i64>, Vec<f32>);

    /// One row after the other, one step after the other.
    fn slow(table: &mut [Vec<f32>; 3], dim: usize, batches: &[Batch], steps: &[AdamStep]) {
        let rows = table[0].len() / dim;
        for ((touched, gradients), step) in batches.iter().zip(steps) {
            for row in 0..rows {
                let places: Vec<usize> = (0..touched.len()).filter(|&n| touched[n] as usize == row).collect();
                for d in 0..dim {
                    let gradient = places.iter().fold(0.0, |sum, &n| sum + gradients[n * dim + d]);
                    let [value, first, second] = table.each_mut().map(|part| &mut part[row * dim + d]);
                    element(value, first, second, gradient, *step);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn owed_steps_are_the_steps_of_one_after_the_other(
            dim in 1usize..70, rows in 1usize..60, threads in 1usize..4, seed: u64, path in 0..SimdPath::NAMES.len(),
            settled in proptest::collection::vec(any::<bool>(), 6), read in proptest::collection::vec(any::<bool>(), 6),
            touched in proptest::collection::vec(proptest::collection::vec(0usize..60, 0..20), 1..6),
        ) {
            let mut state = seed | 1;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 40) as f32 / 1e6 - 8.0
            };
            let mut fill = |n: usize| (0..n).map(|_| next()).collect::<Vec<f32>>();
            let batches: Vec<Batch> = touched
                .iter()
                .map(|rows_of| (rows_of.iter().map(|&r| (r % rows) as i64).collect(), fill(rows_of.len() * dim)))
                .collect();
            let steps = schedule(batches.len());
            let mut table = [fill(rows * dim), fill(rows * dim), fill(rows * dim).iter().map(|v| v * v).collect()];
            let mut expected = table.clone();
            slow(&mut expected, dim, &batches, &steps);
            let team = crate::Team::new(threads).unwrap();
            let simd = SimdPath::named(SimdPath::NAMES[path]).unwrap_or_default();
            let exec = exec(&team, simd);
            let mut taken = vec![0; rows];
            for (t, (rows, values)) in batches.iter().enumerate() {
                let [v, m, s] = &mut table;
                if settled[t] {
                    let ledger = Ledger::new(&steps[..t], &mut taken, false).unwrap();
                    catch_up(exec, Table::new(v, m, s, dim).unwrap(), ledger).unwrap();
                }
                if read[t] {
                    let ledger = Ledger::new(&steps[..t], &mut taken, false).unwrap();
                    catch_up_rows(exec, Table::new(v, m, s, dim).unwrap(), ledger, rows).unwrap();
                    prop_assert!(rows.iter().all(|&row| taken[row as usize] as usize == t));
                }
                let ledger = Ledger::new(&steps[..t], &mut taken, false).unwrap();
                step_rows(exec, Table::new(v, m, s, dim).unwrap(), ledger, Touched { rows, values }, steps[t]).unwrap();
            }
            let [v, m, s] = &mut table;
            let ledger = Ledger::new(&steps, &mut taken, false).unwrap();
            catch_up(exec, Table::new(v, m, s, dim).unwrap(), ledger).unwrap();
            prop_assert!(taken.iter().all(|&t| t as usize == steps.len()));
            prop_assert_eq!(table, expected);
        }

        #[test]
        fn groups_hold_every_place_once(rows in proptest::collection::vec(0i64..30, 0..100)) {
            let groups = Groups::of(&rows, 30);
            let mut seen = vec![false; rows.len()];
            for group in 0..groups.rows.len() {
                let places = groups.places(group);
                prop_assert!(!places.is_empty() && places.is_sorted());
                for &place in places {
                    prop_assert_eq!(rows[place as usize], i64::from(groups.rows[group]));
                    prop_assert!(!std::mem::replace(&mut seen[place as usize], true));
                }
            }
            prop_assert!(seen.into_iter().all(|s| s));
        }
    }

    #[test]
    fn a_row_outside_the_table_is_refused() {
        let (mut a, mut b, mut c) = ([0f32; 4], [0f32; 4], [0f32; 4]);
        let step = schedule(1)[0];
        let touched = Touched {
            rows: &[2],
            values: &[1.0, 1.0],
        };
        let table = Table::new(&mut a, &mut b, &mut c, 2).unwrap();
        let mut taken = [0; 2];
        let ledger = Ledger::new(&[], &mut taken, true).unwrap();
        let result = step_rows(Exec::serial(), table, ledger, touched, step);
        assert_eq!(result, Err(Error::RowRange { row: 2, rows: 2 }));
    }

    #[test]
    fn momentum_ends_at_zero_and_not_below_normal_numbers() {
        let (mut value, mut first, mut second) = ([1.0f32], [1e-30f32], [0.0f32]);
        let steps = vec![
            AdamStep {
                rate: 1e-3,
                eps: 1e-8,
                weight_decay: 0.0
            };
            400
        ];
        let table = Table::new(&mut value, &mut first, &mut second, 1).unwrap();
        let mut taken = [0];
        catch_up(Exec::serial(), table, Ledger::new(&steps, &mut taken, false).unwrap()).unwrap();
        assert_eq!(first, [0.0]);
    }

    /// Rows that were trained for a while and then are left alone for `count` steps: how far the estimate lands from where
    /// they go, as a part of how far they go.
    fn error_of_estimate(count: usize, weight_decay: f32, path: SimdPath) -> f32 {
        let dim = 200;
        let trained = 300;
        let mut steps = schedule(trained + count);
        for step in &mut steps {
            (step.rate, step.eps, step.weight_decay) = (step.rate * 0.01, step.eps * 1e-2, weight_decay);
        }
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / 8_388_608.0 - 1.0
        };
        let mut values: Vec<f32> = (0..dim).map(|_| next() * 0.3).collect();
        let (mut first, mut second) = (vec![0f32; dim], vec![0f32; dim]);
        for (t, step) in steps[..trained].iter().enumerate() {
            let touched = t % 8 == 0 || t + 2 > trained;
            let gradient: Vec<f32> = (0..dim).map(|_| if touched { next() * 0.2 } else { 0.0 }).collect();
            for d in 0..dim {
                element(&mut values[d], &mut first[d], &mut second[d], gradient[d], *step);
            }
        }
        let start = values.clone();
        let mut ends = Vec::new();
        for lazy in [false, true] {
            let (mut v, mut m, mut s) = (values.clone(), first.clone(), second.clone());
            let mut taken = [0];
            let table = Table::new(&mut v, &mut m, &mut s, dim).unwrap();
            let ledger = Ledger::new(&steps[trained..], &mut taken, lazy).unwrap();
            let exec = Exec {
                simd: path,
                ..Exec::serial()
            };
            catch_up(exec, table, ledger).unwrap();
            ends.push(v);
        }
        let norm = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
        norm(&ends[0], &ends[1]) / norm(&ends[0], &start)
    }

    #[test]
    fn the_estimate_goes_where_the_steps_go() {
        for path in SimdPath::NAMES.into_iter().filter_map(SimdPath::named) {
            for weight_decay in [0.0, 1e-3, 1e-2] {
                for count in [1, 2, 5, 10, 30, 100, 400] {
                    let error = error_of_estimate(count, weight_decay, path);
                    assert!(error < 0.1, "{count} steps, decay {weight_decay}: {error}");
                }
            }
        }
    }
}
