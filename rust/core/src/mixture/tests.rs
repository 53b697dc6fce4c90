use super::lists::Lists;
use super::*;
use crate::exec::{the_same_everywhere, Exec, WORTH_WAKING};
use crate::matrix::Matrix;

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let word = |c| crate::rng::unit(crate::rng::at(seed, c)) as f32 - 0.5;
    (0..count as u64).map(word).collect()
}

/// `(outputs, gradients)` by the definition, in float64.
fn definition(source: Matrix, shares: Matrix, n: Networks, gradient: &[f32]) -> (Vec<f64>, [Vec<f64>; 6]) {
    let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|&x| f64::from(x)).collect() };
    let (w1, b1, w2, b2) = (wide(n.weight1), wide(n.bias1), wide(n.weight2), wide(n.bias2));
    let (x, q, g) = (wide(source.data), wide(shares.data), wide(gradient));
    let mut out = vec![0.0; source.rows * n.target];
    let mut to = [&x, &q, &w1, &b1, &w2, &b2].map(|like| vec![0.0; like.len()]);
    for e in 0..source.rows {
        for m in 0..n.count {
            let share = q[e * n.count + m];
            let input = |s: usize| e * n.source + s;
            let output = |t: usize| e * n.target + t;
            let value = |h: usize| {
                let sum: f64 = (0..n.source)
                    .map(|s| x[input(s)] * w1[(m * n.source + s) * n.hidden + h])
                    .sum();
                sum + b1[m * n.hidden + h]
            };
            for t in 0..n.target {
                out[output(t)] += share * b2[m * n.target + t];
                to[5][m * n.target + t] += share * g[output(t)];
                to[1][e * n.count + m] += g[output(t)] * b2[m * n.target + t];
            }
            for h in (0..n.hidden).filter(|&h| value(h) > 0.0) {
                let mut back = 0.0;
                for t in 0..n.target {
                    let place = (m * n.hidden + h) * n.target + t;
                    out[output(t)] += share * value(h) * w2[place];
                    to[4][place] += share * value(h) * g[output(t)];
                    back += g[output(t)] * w2[place];
                }
                to[1][e * n.count + m] += back * value(h);
                to[3][m * n.hidden + h] += share * back;
                for s in 0..n.source {
                    let place = (m * n.source + s) * n.hidden + h;
                    to[2][place] += share * back * x[input(s)];
                    to[0][input(s)] += share * back * w1[place];
                }
            }
        }
    }
    for (to, &share) in to[1].iter_mut().zip(&q) {
        *to = if share == 0.0 { 0.0 } else { *to }; // not asked for
    }
    (out, to)
}

#[test]
fn all_paths_and_threads_agree_with_the_definition() {
    for (entities, [count, source, hidden, target], kept) in [
        (1, [1, 1, 1, 1], 1.0),
        (13, [2, 3, 5, 7], 1.0),
        (400, [3, 20, 31, 40], 1.0),
        (700, [4, 20, 40, 70], 0.7),
        (250, [5, 13, 33, 12], 0.3),
        (90, [30, 8, 20, 33], 0.05),
        (40, [4, 36, 64, 100], 0.5),
        (9, [3, 2, 4, 5], 0.0),
        (0, [3, 2, 4, 5], 1.0),
    ] {
        let x = numbers(entities * source, 1);
        let drawn = numbers(entities * count, 2);
        let q: Vec<f32> = drawn.iter().map(|&q| if q + 0.5 < kept { q } else { 0.0 }).collect();
        let weights = [
            numbers(count * source * hidden, 3),
            numbers(count * hidden, 4),
            numbers(count * hidden * target, 5),
            numbers(count * target, 6),
        ];
        let g = numbers(entities * target, 7);
        let [w1, b1, w2, b2] = &weights;
        let networks = Networks::new([count, source, hidden, target], w1, b1, w2, b2).expect("sizes agree");
        let (x, q) = (Matrix::new(&x, entities, source), Matrix::new(&q, entities, count));
        let many = Lists::new(q).work(networks) >= WORTH_WAKING;
        assert_eq!(many, entities == 700, "one case at least goes to several threads");
        let (out, back) = the_same_everywhere(|exec| {
            let mut out = vec![9.0; entities * target];
            mixture(exec, x, q, networks, &mut out).expect("sizes agree");
            let g = Matrix::new(&g, entities, target);
            (out, mixture_gradient(exec, x, q, networks, g).expect("sizes agree"))
        });
        let (expected, gradients) = definition(x, q, networks, &g);
        let found = [
            &back.source,
            &back.shares,
            &back.weight1,
            &back.bias1,
            &back.weight2,
            &back.bias2,
        ];
        let pairs = found.into_iter().zip(&gradients).chain([(&out, &expected)]);
        for (found, expected) in pairs {
            assert_eq!(found.len(), expected.len());
            for (place, (&a, &b)) in found.iter().zip(expected).enumerate() {
                assert!((f64::from(a) - b).abs() < 2e-4, "{place}: {a} for {b}");
            }
        }
    }
}

#[test]
fn an_entity_does_not_depend_on_the_others() {
    let (entities, [count, source, hidden, target]) = (100, [3, 6, 9, 14]);
    let (x, q) = (numbers(entities * source, 1), numbers(entities * count, 2));
    let weights = [numbers(162, 3), numbers(27, 4), numbers(378, 5), numbers(42, 6)];
    let [w1, b1, w2, b2] = &weights;
    let networks = Networks::new([count, source, hidden, target], w1, b1, w2, b2).expect("sizes agree");
    let run = |rows: std::ops::Range<usize>| {
        let own = rows.len();
        let x = Matrix::new(&x[rows.start * source..rows.end * source], own, source);
        let q = Matrix::new(&q[rows.start * count..rows.end * count], own, count);
        let mut out = vec![0.0; own * target];
        mixture(Exec::serial(), x, q, networks, &mut out).expect("sizes agree");
        out
    };
    assert_eq!(run(0..entities)[31 * target..77 * target], run(31..77));
}

#[test]
fn what_diverged_shows_and_sizes_must_agree() {
    let (x, q) = ([1.0], [f32::NAN, 0.0]);
    let (x, q) = (Matrix::new(&x, 1, 1), Matrix::new(&q, 1, 2));
    let networks = Networks::new([2, 1, 1, 1], &[1.0; 2], &[0.0; 2], &[1.0; 2], &[0.0; 2]).expect("sizes agree");
    let mut out = [0.0];
    mixture(Exec::serial(), x, q, networks, &mut out).expect("sizes agree");
    assert!(out[0].is_nan());
    let nan = [f32::NAN];
    mixture(Exec::serial(), Matrix::new(&nan, 1, 1), q, networks, &mut out).expect("sizes agree");
    assert!(out[0].is_nan());
    assert!(mixture(Exec::serial(), x, q, networks, &mut [0.0; 2]).is_err());
    let wide = [1.0, 2.0];
    assert!(mixture(Exec::serial(), Matrix::new(&wide, 1, 2), q, networks, &mut out).is_err());
    assert!(mixture_gradient(Exec::serial(), x, x, networks, x).is_err());
    let flat = Matrix::new(&wide[..1], 1, 1);
    assert!(mixture_gradient(Exec::serial(), x, q, networks, flat).is_ok());
    assert!(mixture_gradient(Exec::serial(), x, q, networks, Matrix::new(&wide, 2, 1)).is_err());
    assert!(Networks::new([2, 1, 1, 1], &[1.0; 3], &[0.0; 2], &[1.0; 2], &[0.0; 2]).is_err());
    assert!(Networks::new([0, 1, 1, 1], &[], &[], &[], &[]).is_err());
}
