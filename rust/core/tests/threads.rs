//! Calls large enough for several threads give the same bytes with any number of them, on every path.

use kdrs_core::{
    bpr_step, catch_up, catch_up_rows, score_step, step_rows, table_scores, AdamStep, Asked, Exec, Ledger, Pairs,
    SimdPath, Table, Team, Touched, Trained,
};

/// Values and both moments.
type Parts = [Vec<f32>; 3];

struct Words(u64);

impl Words {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % bound
    }

    fn ids(&mut self, count: usize, bound: usize) -> Vec<i64> {
        (0..count).map(|_| self.below(bound) as i64).collect()
    }

    fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count)
            .map(|_| self.below(1 << 20) as f32 / (1 << 20) as f32 - 0.5)
            .collect()
    }

    fn table(&mut self, rows: usize, dim: usize) -> Parts {
        let squares = self.numbers(rows * dim).into_iter().map(|x| x * x).collect();
        [self.numbers(rows * dim), self.numbers(rows * dim), squares]
    }
}

fn schedule(count: usize) -> Vec<AdamStep> {
    (0..count)
        .map(|t| AdamStep {
            rate: 0.01 / (1.0 + t as f32),
            eps: 1e-7,
            weight_decay: 0.01,
        })
        .collect()
}

fn whole(parts: &mut Parts, dim: usize) -> Table<'_> {
    let [values, first, second] = parts;
    Table::new(values, first, second, dim).unwrap()
}

/// One thread on the portable path, then others; `call` gives what must be equal.
fn same_everywhere<T: PartialEq>(call: impl Fn(Exec) -> T) -> bool {
    let expected = call(Exec {
        simd: SimdPath::named("portable").unwrap(),
        ..Exec::serial()
    });
    SimdPath::NAMES.into_iter().filter_map(SimdPath::named).all(|simd| {
        [1, 3].into_iter().all(|helpers| {
            let team = Team::new(helpers).unwrap();
            let exec = Exec {
                team: Some(&team),
                simd,
                ..Exec::default()
            };
            call(exec) == expected
        })
    })
}

#[test]
fn tables() {
    let mut words = Words(5);
    for (dim, owed) in [(1, 3), (5, 70), (8, 5), (16, 4), (20, 33), (25, 0), (64, 31)] {
        let rows = (1 << 17) / dim + words.below(37);
        let count = (1 << 17) / dim + 100;
        let (table, touched) = (words.table(rows, dim), words.ids(count, rows));
        let (gradients, taken) = (words.numbers(count * dim), words.ids(rows, owed + 1));
        let steps = schedule(owed + 1);
        for lazy in [false, true] {
            let equal = same_everywhere(|exec| {
                let mut parts = table.clone();
                let mut taken: Vec<i32> = taken.iter().map(|&t| t as i32).collect();
                let ledger = Ledger::new(&steps[..owed], &mut taken, lazy).unwrap();
                catch_up_rows(exec, whole(&mut parts, dim), ledger, &touched[count / 2..]).unwrap();
                let ledger = Ledger::new(&steps[..owed], &mut taken, lazy).unwrap();
                let touched = Touched {
                    rows: &touched,
                    values: &gradients,
                };
                step_rows(exec, whole(&mut parts, dim), ledger, touched, steps[owed]).unwrap();
                let ledger = Ledger::new(&steps, &mut taken, lazy).unwrap();
                catch_up(exec, whole(&mut parts, dim), ledger).unwrap();
                (parts, taken)
            });
            assert!(equal, "dim {dim}, {owed} steps, lazy {lazy}");
        }
    }
}

#[test]
fn pairs() {
    let mut words = Words(77);
    for (dim, owed, width) in [(1, 2, 1), (5, 40, 2), (16, 4, 1), (20, 40, 3), (31, 0, 1), (64, 4, 2)] {
        let (n_users, n_items, count) = (50_000 / dim + 77, 60_000 / dim + 200, 40_000 / dim + 10);
        let (users, positives) = (words.ids(count, n_users), words.ids(count, n_items));
        let negatives = words.ids(count * width, n_items);
        let (users_table, items_table) = (words.table(n_users, dim), words.table(n_items, dim));
        let (users_taken, items_taken) = (words.ids(n_users, owed + 1), words.ids(n_items, owed + 1));
        let steps = schedule(owed + 1);
        for lazy in [false, true] {
            let equal = same_everywhere(|exec| {
                let (mut own, mut others) = (users_table.clone(), items_table.clone());
                let [mut own_taken, mut others_taken] =
                    [&users_taken, &items_taken].map(|taken| taken.iter().map(|&t| t as i32).collect::<Vec<i32>>());
                let trained = |parts, taken| Trained {
                    table: whole(parts, dim),
                    ledger: Ledger::new(&steps[..owed], taken, lazy).unwrap(),
                    step: steps[owed],
                };
                let pairs = Pairs {
                    users: &users,
                    positives: &positives,
                    negatives: &negatives,
                    width,
                };
                let loss = bpr_step(
                    exec,
                    trained(&mut own, &mut own_taken),
                    trained(&mut others, &mut others_taken),
                    pairs,
                );
                let asked = Asked {
                    users: &users,
                    items: &negatives,
                    width,
                };
                let both = steps.as_slice();
                let [own_ledger, others_ledger] =
                    [&mut own_taken, &mut others_taken].map(|taken| Ledger::new(both, taken, lazy).unwrap());
                let tables = [(&mut own, own_ledger), (&mut others, others_ledger)];
                let [own_table, others_table] = tables.map(|(parts, ledger)| (whole(parts, dim), ledger));
                let slopes = table_scores(exec, own_table, others_table, asked).unwrap();
                let trained = |parts, taken| Trained {
                    table: whole(parts, dim),
                    ledger: Ledger::new(both, taken, lazy).unwrap(),
                    step: steps[owed],
                };
                let stepped = score_step(
                    exec,
                    trained(&mut own, &mut own_taken),
                    trained(&mut others, &mut others_taken),
                    asked,
                    &slopes,
                );
                stepped.unwrap();
                (loss.unwrap().to_bits(), own, others, own_taken, others_taken)
            });
            assert!(equal, "dim {dim}, {owed} steps, lazy {lazy}");
        }
    }
}
