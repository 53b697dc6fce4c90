//! One pass over a batch's rows of both tables.

use std::cell::RefCell;
use std::ops::Range;

use super::parts::Parts;
use crate::error::Error;
use crate::exec::Exec;
use crate::matrix::Matrix;
use crate::products::Share;
use crate::tables::{self, check_rows, AdamStep, Batch, Groups, Ledger, Owed, Shared, Table, SPAN};

/// Items that are asked for, `width` of them for each of the users: [users, width].
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub users: &'a [i64],
    pub items: &'a [i64],
    pub width: usize,
}

thread_local! {
    /// Gradients of one batch.
    static GRADIENTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
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
pub struct Scratch {
    pub batch: Batch,
    pub gaps: Vec<f32>,
    shares: Vec<Share>,
    bounds: Vec<u32>,
}

/// Users and items of a batch, their rows in one sequence of tasks: few enough that rows which owe about the same steps meet in
/// one, and enough for all threads to be busy to the end.
pub struct Pass<'a> {
    pub exec: Exec<'a>,
    asked: Asked<'a>,
    sides: [Side<'a>; 2],
    /// Rows of a task.
    height: usize,
    user_tasks: usize,
    pub tasks: usize,
}

impl<'a> Pass<'a> {
    /// Refuses what does not fit before anything changes. The ledgers count what is owed, and `more` steps, as taken.
    pub fn new(
        exec: Exec<'a>,
        tables: [(Table<'a>, Ledger<'a>); 2],
        asked: Asked<'a>,
        more: i32,
    ) -> Result<Self, Error> {
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
    pub unsafe fn matrices(&self) -> [Matrix<'_>; 2] {
        // SAFETY: as the caller vouches.
        [0, 1].map(|side: usize| unsafe { self.sides[side].table.matrix() })
    }

    /// Runs `work` with room for the gradients of both sides' rows.
    pub fn with_gradients(&self, work: impl FnOnce(&[Parts<f32>; 2])) {
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
    pub unsafe fn catch_up(&self, batch: &mut Batch, task: usize) {
        let (side, _, part) = self.part(task);
        let side = &self.sides[side];
        batch.fill_from(&side.groups.rows[part.clone()], &side.from[part], side.owed.len());
        // SAFETY: groups are of distinct rows inside the table, and each belongs to one task.
        unsafe { batch.replay(self.exec.simd, &side.table, &side.owed) };
    }

    /// The gradients of the rows of a task.
    ///
    /// # Safety
    /// Every task once; nobody changes the tables.
    pub unsafe fn sum(&self, scratch: &mut Scratch, slopes: &[f32], gradients: &[Parts<f32>; 2], task: usize) {
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
    pub unsafe fn step(&self, steps: [AdamStep; 2], gradients: &[Parts<f32>; 2], task: usize) {
        let (side, number, part) = self.part(task);
        let Side { table, groups, .. } = &self.sides[side];
        // SAFETY: groups are of distinct rows inside the table, and each belongs to one task.
        unsafe {
            tables::step(
                self.exec.simd,
                table,
                &groups.rows[part],
                gradients[side].part(number),
                steps[side],
            )
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
