use super::panels::nearest;
use super::*;
use crate::simd::SimdPath;

#[test]
fn rounding_is_to_the_nearest() {
    for (x, expected) in [
        (0.4, 0),
        (0.6, 1),
        (-0.6, -1),
        (126.7, 127),
        (-127.0, -127),
        (300.0, 127),
    ] {
        assert_eq!(nearest(x), expected);
    }
}

#[test]
fn the_nth_is_reached_by_so_many() {
    for simd in SimdPath::NAMES.into_iter().filter_map(SimdPath::named) {
        for len in [1usize, 2, 15, 16, 17, 100] {
            let values: Vec<u32> = (0..len as u64).map(|c| crate::rng::at(3, c) as u32 % 40).collect();
            let mut sorted = values.clone();
            sorted.sort_unstable_by(|a, b| b.cmp(a));
            for keep in 1..=len {
                let found = simd.nth(&values, keep);
                let reached = values.iter().filter(|&&value| value >= found).count();
                // Ties with the keep-th largest count, and nothing below it.
                assert!(reached >= keep && found <= sorted[keep - 1]);
                assert_eq!(
                    reached,
                    values.iter().filter(|&&value| value >= sorted[keep - 1]).count()
                );
            }
        }
    }
}

#[test]
fn seen_items_leave_a_catch_and_the_rest_stay_in_order() {
    for simd in SimdPath::NAMES.into_iter().filter_map(SimdPath::named) {
        for len in [0usize, 1, 15, 16, 17, 70] {
            let mut catch = Catch::default();
            catch.widen(100);
            for place in 0..len {
                catch.positions[place] = 2 * place as u32;
                (catch.lows[place], catch.ups[place]) = (place as f32, place as f32 + 2.0);
            }
            catch.len = len;
            let ids: Vec<i32> = (0..200).map(|position| 199 - position).collect();
            let mut seen = vec![0u32; 200usize.div_ceil(32)];
            let hidden = |position: u32| position.is_multiple_of(6);
            for position in (0..200).filter(|&position| hidden(position)) {
                let id = ids[position as usize] as usize;
                seen[id / 32] |= 1 << (id % 32);
            }
            simd.drop_seen(&seen, &ids, &mut catch);
            let expected: Vec<u32> = (0..len as u32).map(|place| 2 * place).filter(|&p| !hidden(p)).collect();
            assert_eq!(catch.positions[..catch.len], expected);
            let mut found = Vec::new();
            simd.reaching(&catch, 3.0..9.0, 6.0, &mut found);
            let within = |position: &u32| (4..9).contains(&(position / 2));
            assert_eq!(found, expected.into_iter().filter(within).collect::<Vec<_>>());
        }
    }
}
