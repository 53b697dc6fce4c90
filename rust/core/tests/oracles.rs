//! Kernels against slow, obvious loops, on every instruction set of the machine.

use kdrs_core::*;
use proptest::prelude::*;

fn paths() -> impl Iterator<Item = Exec<'static>> {
    SimdPath::NAMES
        .into_iter()
        .filter_map(SimdPath::named)
        .map(|simd| Exec { simd, ..Exec::serial() })
}

/// Rows of ascending items.
fn ragged(rows: usize, items: usize) -> impl Strategy<Value = (Vec<i64>, Vec<i32>)> {
    prop::collection::vec(prop::collection::btree_set(0..items as i32, 0..=items), rows).prop_map(|rows| {
        let mut indptr = vec![0];
        let mut indices = Vec::new();
        for row in rows {
            indices.extend(row);
            indptr.push(indices.len() as i64);
        }
        (indptr, indices)
    })
}

/// Values of which few differ, so that scores tie.
fn values(len: usize) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec((-3i8..=3).prop_map(|x| f32::from(x) * 0.7), len)
}

#[derive(Clone, Debug)]
struct Problem {
    rows: usize,
    items: usize,
    dim: usize,
    queries: Vec<f32>,
    catalogue: Vec<f32>,
    bias: Option<Vec<f32>>,
    indptr: Vec<i64>,
    indices: Vec<i32>,
}

impl Problem {
    fn score(&self, query: usize, item: usize) -> f32 {
        let q = &self.queries[query * self.dim..][..self.dim];
        let x = &self.catalogue[item * self.dim..][..self.dim];
        let start = self.bias.as_ref().map_or(0.0, |bias| bias[item]);
        q.iter().zip(x).fold(start, |sum, (q, x)| q.mul_add(*x, sum))
    }

    fn seen(&self) -> Csr<'_> {
        Csr::new(&self.indptr, &self.indices, self.items).unwrap()
    }

    fn queries(&self) -> Matrix<'_> {
        Matrix::new(&self.queries, self.rows, self.dim)
    }

    fn catalogue(&self) -> Matrix<'_> {
        Matrix::new(&self.catalogue, self.items, self.dim)
    }
}

fn problems() -> impl Strategy<Value = Problem> {
    // Few dimensions are multiplied by vector instructions, many in tile registers.
    let dims = prop_oneof![3 => 0usize..11, 1 => 29usize..140];
    (1usize..15, 1usize..80, dims, any::<bool>()).prop_flat_map(|(rows, items, dim, biased)| {
        let bias = values(items).prop_map(move |bias| biased.then_some(bias));
        (values(rows * dim), values(items * dim), bias, ragged(rows, items)).prop_map(
            move |(queries, catalogue, bias, (indptr, indices))| Problem {
                rows,
                items,
                dim,
                queries,
                catalogue,
                bias,
                indptr,
                indices,
            },
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn topk_is_the_head_of_a_sort(p in problems(), k in 0usize..90) {
        let mask = Mask::new(Some(p.seen()), None, p.rows, p.items).unwrap();
        for exec in paths() {
            let got = topk(exec, p.queries(), p.catalogue(), p.bias.as_deref(), mask, k).unwrap();
            prop_assert_eq!(got.k, k.min(p.items));
            prop_assert_eq!(got.items.len(), p.rows * got.k);
            let k = got.k;
            for query in 0..p.rows {
                let seen = p.seen().row(query);
                let mut left: Vec<usize> = (0..p.items).filter(|&i| !seen.contains(&(i as i32))).collect();
                left.sort_by(|&a, &b| p.score(query, b).partial_cmp(&p.score(query, a)).unwrap().then(a.cmp(&b)));
                for place in 0..k {
                    let (item, score) = (got.items[query * k + place], got.scores[query * k + place]);
                    match left.get(place) {
                        Some(&expected) => prop_assert_eq!((item, score), (expected as i32, p.score(query, expected))),
                        None => prop_assert_eq!((item, score), (-1, f32::NEG_INFINITY)),
                    }
                }
            }
        }
    }

    #[test]
    fn ranks_are_counts(p in problems(), wanted in prop::collection::vec(0usize..1000, 15)) {
        let mask = Mask::new(Some(p.seen()), None, p.rows, p.items).unwrap();
        let targets: Vec<i32> = (0..p.rows).map(|query| (wanted[query] % p.items) as i32).collect();
        let ends: Vec<usize> = (1..=p.rows).collect();
        for exec in paths() {
            let got = list_ranks(exec, p.queries(), p.catalogue(), p.bias.as_deref(), &targets, &ends, mask).unwrap();
            for (query, &target) in targets.iter().enumerate() {
                let target = target as usize;
                let seen = p.seen().row(query);
                let others = (0..p.items).filter(|&i| i != target && !seen.contains(&(i as i32)));
                let (mut better, mut tied) = (0, 0);
                for item in others {
                    better += i32::from(p.score(query, item) > p.score(query, target));
                    tied += i32::from(p.score(query, item) == p.score(query, target));
                }
                prop_assert_eq!((got.better[query], got.tied[query]), (better, tied));
            }
        }
    }

    #[test]
    fn negatives_are_the_same_on_every_path(
        (indptr, indices) in ragged(9, 70),
        rows in prop::collection::vec(0i64..9, 0..200),
        n in 1usize..40,
        seed: u64,
    ) {
        let seen = Csr::new(&indptr, &indices, 70).unwrap();
        let mut results = paths().map(|exec| negatives(exec, seen, &rows, n, seed, true).unwrap());
        let first = results.next().unwrap();
        for (place, item) in first.iter().enumerate() {
            let row = seen.row(rows[place / n] as usize);
            let sound = if row.len() == 70 { *item == -1 } else { (0..70).contains(item) && !row.contains(item) };
            prop_assert!(sound, "place {place}: {item}");
        }
        for other in results {
            prop_assert_eq!(&other, &first);
        }
    }

    #[test]
    fn samplers_are_the_same_on_every_path((indptr, indices) in ragged(5, 60), seed: u64, n in 0usize..30) {
        let seen = Csr::new(&indptr, &indices, 60).unwrap();
        let mask = Mask::new(Some(seen), None, 5, 60).unwrap();
        let lists: Vec<i32> = (0..100).map(|place| (rng::at(seed, place) % 61) as i32 - 1).collect();
        let weights: Vec<f32> = (0..100).map(|place| (rng::at(seed, 200 + place) % 4) as f32).collect();
        let results = paths().map(|exec| {
            (
                weighted(exec, &lists, 5, 20, Weights::Rows32(&weights), n, seed, Order::Draw).unwrap(),
                outside(exec, 60, mask, &lists, 5, n, seed).unwrap(),
            )
        });
        let results: Vec<_> = results.collect();
        prop_assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    }
}

#[test]
fn large_catalogues_agree_on_every_path() {
    let (rows, items) = (30, 9000);
    let normal = |key: u64, len: usize| -> Vec<f32> {
        (0..len as u64)
            .map(|c| (0..4).map(|j| rng::unit(rng::at(key, 4 * c + j)) as f32 - 0.5).sum())
            .collect()
    };
    for dim in [1, 4, 21, 64, 200] {
        let (q, x, bias) = (normal(1, rows * dim), normal(2, items * dim), normal(3, items));
        for bias in [None, Some(bias.as_slice())] {
            let (q, x) = (Matrix::new(&q, rows, dim), Matrix::new(&x, items, dim));
            let results = |seen: Mask, k: usize| {
                let results: Vec<_> = paths().map(|exec| topk(exec, q, x, bias, seen, k).unwrap()).collect();
                assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "dim {dim}, k {k}");
                results.into_iter().next().unwrap()
            };
            let best = results(Mask::NONE, 400);
            // Whoever has seen the best is shown the next.
            let mut indices = best.items.clone();
            let taken = indices.chunks_mut(400).map(|row| {
                row[..250].sort_unstable();
                &row[..250]
            });
            let indices: Vec<i32> = taken.flatten().copied().collect();
            let indptr: Vec<i64> = (0..=rows as i64).map(|row| 250 * row).collect();
            let seen = Csr::new(&indptr, &indices, items).unwrap();
            let next = results(Mask::new(Some(seen), None, rows, items).unwrap(), 40);
            for row in 0..rows {
                assert_eq!(next.items[row * 40..][..40], best.items[row * 400 + 250..][..40]);
            }
        }
    }
}

#[test]
fn corrupt_rows_are_never_read_past_their_end() {
    // Descending, negative and too large entries between a first and a last that look right.
    let indptr = [0i64, 5, -3, 1 << 40, 2, 4];
    let indices = [0, 1, 2, 3];
    let seen = Csr::new(&indptr, &indices, 10).unwrap();
    for exec in paths() {
        let drawn = negatives(exec, seen, &[0i64, 1, 2, 3, 4, 4, 4], 3, 1, true).unwrap();
        assert!(drawn.iter().all(|&item| (-1..20).contains(&item)));
    }
    assert!(Csr::new(&[0, 3], &indices, 10).is_err());
    assert!(Csr::new(&[], &[], 10).is_err());
}
