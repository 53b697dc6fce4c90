//! Catalogues that are packed once: on every path, by any number of threads, the lists of `topk`.

use kdrs_core::{
    packed_codes, topk, topk_codes, Catalogue, CodeCatalogue, Codes, Csr, Error, Exec, Mask, Matrix, Ranking, SimdPath,
    Team,
};
use proptest::prelude::*;

/// Integers of [-3, 3], so that many scores tie, or numbers of many sizes.
fn numbers(seed: u64, count: usize, ties: bool) -> Vec<f32> {
    let word = |place: usize| kdrs_core::rng::at(seed, place as u64);
    (0..count)
        .map(|place| match ties {
            true => (word(place) % 7) as f32 - 3.0,
            false => {
                ((word(place) >> 40) as f32 / 8_388_608.0 - 1.0) * [1.0, 1.0, 1e-3, 30.0][word(place) as usize % 4]
            }
        })
        .collect()
}

/// Rows of items that ascend.
fn seen(seed: u64, queries: usize, items: usize, share: u64) -> (Vec<i64>, Vec<i32>) {
    let (mut ends, mut ids) = (vec![0], Vec::new());
    for query in 0..queries {
        let hidden = |item: &usize| kdrs_core::rng::at(seed ^ 9, (query * items + item) as u64) % 100 < share;
        ids.extend((0..items).filter(hidden).map(|item| item as i32));
        ends.push(ids.len() as i64);
    }
    (ends, ids)
}

/// What `asked` gives on every path, alone and with helpers.
fn everywhere(teams: &[Team], asked: impl Fn(Exec) -> Ranking, expected: &Ranking) {
    for simd in SimdPath::NAMES.into_iter().filter_map(SimdPath::named) {
        for team in teams.iter().map(Some).chain([None]) {
            let found = asked(Exec {
                team,
                simd,
                ..Exec::default()
            });
            assert_eq!(found.items, expected.items, "{}", simd.name());
            let bits = |ranking: &Ranking| ranking.scores.iter().map(|score| score.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&found), bits(expected), "{}", simd.name());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn lists_are_those_of_topk(
        seed in any::<u64>(),
        (queries, items, dim) in (1usize..12, prop_oneof![1usize..200, 4000usize..6000], 0usize..40),
        k in prop::sample::select(vec![1usize, 3, 20, 300, 9000]),
        (ties, biased, share) in (any::<bool>(), any::<bool>(), prop::sample::select(vec![0u64, 30, 97, 100])),
    ) {
        let teams = [Team::new(1).unwrap(), Team::new(3).unwrap()];
        let (q, x) = (numbers(seed, queries * dim, ties), numbers(seed ^ 1, items * dim, ties));
        let bias = biased.then(|| numbers(seed ^ 2, items, ties));
        let (q, x) = (Matrix::new(&q, queries, dim), Matrix::new(&x, items, dim));
        let (ends, ids) = seen(seed, queries, items, share);
        let mask = Mask::new(Some(Csr::new(&ends, &ids, items).unwrap()), None, queries, items).unwrap();
        let expected = topk(Exec::serial(), q, x, bias.as_deref(), mask, k).unwrap();
        everywhere(&teams, |exec| {
            let packed = Catalogue::pack(exec, x, bias.as_deref()).unwrap();
            packed.topk(exec, q, x, bias.as_deref(), mask, k).unwrap()
        }, &expected);
    }

    #[test]
    fn lists_of_codes_are_those_of_topk(
        seed in any::<u64>(),
        bits in (prop::sample::select(vec![1usize, 2, 3, 4, 8]), prop::sample::select(vec![1usize, 2, 3, 4, 8])),
        (queries, items, dim) in (1usize..12, prop_oneof![1usize..200, 4000usize..5000], 1usize..50),
        k in prop::sample::select(vec![1usize, 3, 20, 300]),
        (biased, share) in (any::<bool>(), prop::sample::select(vec![0u64, 30, 97])),
    ) {
        let teams = [Team::new(1).unwrap(), Team::new(3).unwrap()];
        let table = |seed: u64, rows: usize, bits: usize| {
            let largest = if bits == 8 { 127i64 } else { (1 << bits) - 1 };
            let level = |place: usize| {
                let word = (kdrs_core::rng::at(seed, place as u64) >> 8) as i64;
                (if bits == 8 { word % 255 - 127 } else { 2 * (word % (largest + 1)) - largest }) as i8
            };
            let levels: Vec<i8> = (0..rows * dim).map(level).collect();
            let scales = numbers(seed ^ 5, rows, true).into_iter().map(f32::abs).collect::<Vec<_>>();
            (packed_codes(Exec::serial(), &levels, dim, bits).unwrap(), scales)
        };
        let ((q, q_scales), (x, x_scales)) = (table(seed, queries, bits.0), table(seed ^ 1, items, bits.1));
        let q = Codes::new(Exec::serial(), &q, &q_scales, dim, bits.0).unwrap();
        let x = Codes::new(Exec::serial(), &x, &x_scales, dim, bits.1).unwrap();
        let bias = biased.then(|| numbers(seed ^ 2, items, false));
        let (ends, ids) = seen(seed, queries, items, share);
        let mask = Mask::new(Some(Csr::new(&ends, &ids, items).unwrap()), None, queries, items).unwrap();
        let expected = topk_codes(Exec::serial(), q, x, bias.as_deref(), mask, k).unwrap();
        everywhere(&teams, |exec| {
            let packed = CodeCatalogue::pack(exec, x, bias.as_deref()).unwrap();
            packed.topk(exec, q, mask, k).unwrap()
        }, &expected);
    }
}

#[test]
fn what_was_not_packed_is_refused() {
    let exec = Exec::serial();
    let x = vec![1.0f32; 40];
    let packed = Catalogue::pack(exec, Matrix::new(&x, 10, 4), None).unwrap();
    let query = Matrix::new(&x[..4], 1, 4);
    let shape = |found: Result<Ranking, Error>| assert!(matches!(found, Err(Error::Shape(_))));
    shape(packed.topk(exec, query, Matrix::new(&x[..36], 9, 4), None, Mask::NONE, 3));
    shape(packed.topk(exec, query, Matrix::new(&x, 10, 4), Some(&x[..10]), Mask::NONE, 3));
    shape(packed.topk(exec, query, Matrix::new(&x, 8, 5), None, Mask::NONE, 3));
    // Whoever changes items after they were packed gets other lists, and nothing worse.
    let changed = vec![f32::NAN; 40];
    assert!(packed
        .topk(exec, query, Matrix::new(&changed, 10, 4), None, Mask::NONE, 3)
        .is_ok());
    let ids = [3, 10];
    let mask = Mask::new(Some(Csr::new(&[0, 2], &ids, 10).unwrap()), None, 1, 10).unwrap();
    let found = packed.topk(exec, query, Matrix::new(&x, 10, 4), None, mask, 3);
    assert!(matches!(found, Err(Error::ItemRange { item: 10, .. })));
}
