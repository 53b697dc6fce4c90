use super::steps::{BETA1, BETA2};
use super::update::element;
use super::*;
use crate::simd::SimdPath;
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
