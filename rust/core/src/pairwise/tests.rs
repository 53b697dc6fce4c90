use super::*;
use crate::simd::SimdPath;
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
