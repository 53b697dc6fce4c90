//! Each kernel on one thread, on made-up data of CiteULike's size.

use std::hint::black_box;

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion};
use kdrs_core::*;

const ROWS: usize = 512;
const ITEMS: usize = 25_182;
const SEEN: usize = 22;

struct Data {
    indptr: Vec<i64>,
    indices: Vec<i32>,
    lists: Vec<i32>,
}

impl Data {
    fn new() -> Self {
        let mut indices = Vec::new();
        for row in 0..ROWS as u64 {
            let start = rng::at(1, row) % 1000;
            indices.extend((0..SEEN as u64).map(|j| (start + j * 1100) as i32));
        }
        Data {
            indptr: (0..=ROWS).map(|row| (row * SEEN) as i64).collect(),
            indices,
            lists: (0..ROWS * 500).map(|place| ((place % 500) * 50 + 7) as i32).collect(),
        }
    }

    fn seen(&self) -> Csr<'_> {
        Csr::new(&self.indptr, &self.indices, ITEMS).expect("the arrays describe rows")
    }

    fn mask(&self) -> Mask<'_> {
        Mask::new(Some(self.seen()), None, ROWS, ITEMS).expect("there is a row for each query")
    }
}

/// Nearly normal factors.
fn factors(key: u64, len: usize) -> Vec<f32> {
    let one = |c: u64| (0..4).map(|j| rng::unit(rng::at(key, 4 * c + j)) - 0.5).sum::<f64>() as f32;
    (0..len as u64).map(|c| 1.7 * one(c)).collect()
}

fn samplers(c: &mut Criterion) {
    let data = Data::new();
    let exec = Exec::serial();
    let rows: Vec<i32> = (0..(ROWS * SEEN) as i32).map(|place| place / SEEN as i32).collect();
    c.bench_function("negatives", |b| {
        b.iter(|| black_box(negatives(exec, data.seen(), &rows, 1, 3, false)));
    });
    let weights: Vec<f64> = (0..ITEMS).map(|item| 1.0 + (item % 97) as f64).collect();
    c.bench_function("weighted_negatives", |b| {
        b.iter(|| black_box(weighted_negatives(exec, data.seen(), &rows, 1, &weights, 3, false)));
    });
    let law: Vec<f64> = (0..500).map(|rank| (-f64::from(rank) / 10.0).exp()).collect();
    c.bench_function("weighted 100 of 500", |b| {
        b.iter(|| {
            let law = Weights::Shared(&law);
            black_box(weighted(exec, &data.lists, ROWS, 500, law, 100, 3, Order::List))
        });
    });
    c.bench_function("outside 200", |b| {
        b.iter(|| black_box(outside(exec, ITEMS, data.mask(), &data.lists, ROWS, 200, 3)));
    });
    let (q, x) = (factors(1, ROWS * 8), factors(2, ITEMS * 8));
    let model = |q| Model::Factors {
        queries: Matrix::new(q, ROWS, 8),
        items: Matrix::new(&x, ITEMS, 8),
        bias: None,
    };
    let other = factors(3, ROWS * 8);
    let ends = vec![(1..=ROWS).map(|row| row * 200).collect()];
    c.bench_function("discrepancy", |b| {
        b.iter(|| {
            let laws = [Law::Exp(1e-4)];
            black_box(discrepancy(
                exec,
                model(&q),
                model(&other),
                data.mask(),
                &laws,
                &ends,
                3,
            ))
        });
    });
}

fn rankers(c: &mut Criterion) {
    let data = Data::new();
    let mut group = c.benchmark_group("topk");
    for dim in [8, 20, 64, 200] {
        let (q, x) = (factors(1, ROWS * dim), factors(2, ITEMS * dim));
        let (q, x) = (Matrix::new(&q, ROWS, dim), Matrix::new(&x, ITEMS, dim));
        for name in SimdPath::NAMES {
            let Some(simd) = SimdPath::named(name) else { continue };
            if name == "portable" && dim > 20 {
                continue;
            }
            let exec = Exec { simd, ..Exec::serial() };
            group.bench_function(BenchmarkId::new(name, dim), |b| {
                b.iter(|| black_box(topk(exec, q, x, None, data.mask(), 50)));
            });
        }
    }
    group.finish();
    let exec = Exec::serial();
    let (q, x) = (factors(1, ROWS * 20), factors(2, ITEMS * 20));
    let (q, x) = (Matrix::new(&q, ROWS, 20), Matrix::new(&x, ITEMS, 20));
    let ends: Vec<usize> = (1..=ROWS).map(|row| row * 2).collect();
    c.bench_function("list_ranks", |b| {
        b.iter(|| {
            black_box(list_ranks(
                exec,
                q,
                x,
                None,
                &data.lists[..2 * ROWS],
                &ends,
                data.mask(),
            ))
        });
    });
    c.bench_function("candidate_ranks 500", |b| {
        b.iter(|| {
            let targets = &data.lists[..2 * ROWS];
            black_box(candidate_ranks(exec, q, None, x, None, targets, &data.lists, ROWS))
        });
    });
    let lists = topk(exec, q, x, None, data.mask(), 50).expect("factors are finite");
    c.bench_function("metrics", |b| {
        b.iter(|| {
            let names = [Metric::Recall, Metric::Ndcg];
            black_box(metrics(exec, &lists.items, 50, ROWS, data.mask(), &[20, 50], &names))
        });
    });
    c.bench_function("neighbours", |b| {
        let few = Matrix::new(&x.data[..20 * 4096], 4096, 20);
        b.iter(|| black_box(neighbours(exec, few, 20, Distance::Euclidean)));
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(std::time::Duration::from_secs(1)).warm_up_time(std::time::Duration::from_millis(300));
    targets = samplers, rankers
}
criterion_main!(benches);
