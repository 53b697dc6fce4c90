use super::*;
use crate::exec::the_same_everywhere;
use crate::rng;
use crate::Team;

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let word = |c| rng::unit(rng::at(seed, c)) as f32 - 0.5;
    (0..count as u64).map(word).collect()
}

impl Rows for Matrix<'_> {
    #[inline(always)]
    fn fill(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        out.copy_from_slice(&self.row(row)[columns]);
    }
}

fn multiplied(exec: Exec, left: Matrix, right: Matrix) -> Vec<f32> {
    let mut out = vec![f32::NAN; left.rows * right.dim];
    product(exec, &left, left.rows, right, &mut out).expect("sizes agree");
    out
}

fn everywhere(left: Matrix, right: Matrix) -> Vec<f32> {
    the_same_everywhere(|exec| multiplied(exec, left, right))
}

#[test]
fn all_paths_and_threads_give_the_same_bytes_near_the_exact_product() {
    const SIZES: [(usize, usize, usize); 8] = [
        (1, 1, 1),
        (3, 2, 5),
        (32, 32, 32),
        (33, 65, 31),
        (64, 700, 40),
        (300, 530, 33),
        (600, 64, 3),
        (70, 40, 9_000),
    ];
    for (rows, inner, columns) in SIZES {
        let (left, right) = (numbers(rows * inner, 1), numbers(inner * columns, 2));
        let (left, right) = (Matrix::new(&left, rows, inner), Matrix::new(&right, inner, columns));
        for (place, &found) in everywhere(left, right).iter().enumerate() {
            let (row, column) = (place / columns, place % columns);
            let terms = (0..inner).map(|k| f64::from(left.row(row)[k]) * f64::from(right.row(k)[column]));
            let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            assert!(
                (f64::from(found) - exact).abs() <= size / 127.0,
                "{found} for {exact} at {row}, {column}"
            );
        }
    }
}

#[test]
fn a_right_factor_larger_than_what_is_packed_at_a_time() {
    let (rows, inner, columns) = (2, 300_000, 33);
    assert!(inner * columns * 2 > PACKED);
    let (left, right) = (vec![1.0; rows * inner], vec![0.5; inner * columns]);
    let (left, right) = (Matrix::new(&left, rows, inner), Matrix::new(&right, inner, columns));
    assert_eq!(
        multiplied(Exec::default(), left, right),
        vec![150_000.0; rows * columns]
    );
}

#[test]
fn spans_and_tasks_together() {
    let (rows, inner, columns) = (70, 290, 33_000); // three panels, two spans
    assert!(inner * columns * 2 > PACKED);
    let (left, right) = (numbers(rows * inner, 1), numbers(inner * columns, 2));
    let (left, right) = (Matrix::new(&left, rows, inner), Matrix::new(&right, inner, columns));
    let team = Team::new(2).expect("two threads");
    let whole = multiplied(Exec::serial(), left, right);
    let exec = Exec {
        team: Some(&team),
        ..Exec::default()
    };
    assert_eq!(multiplied(exec, left, right), whole);
    let narrow: Vec<f32> = right.data.chunks(columns).flat_map(|row| &row[..5]).copied().collect();
    let narrow = multiplied(exec, left, Matrix::new(&narrow, inner, 5));
    for (row, own) in narrow.chunks(5).enumerate() {
        assert_eq!(own, &whole[row * columns..][..5]);
    }
}

#[test]
fn more_columns_than_are_packed_at_a_time() {
    let columns = 262_145;
    let found = multiplied(
        Exec::default(),
        Matrix::new(&[2.0], 1, 1),
        Matrix::new(&vec![1.5; columns], 1, columns),
    );
    assert_eq!(found, vec![3.0; columns]);
}

#[test]
fn numbers_too_small_are_zero_everywhere() {
    let (left, right) = ([1e-20, 1e-39, 1.0, 1.0], [1e-19, 1.0, 2e-38, -1.9e-38]);
    let found = everywhere(Matrix::new(&left, 1, 4), Matrix::new(&right, 4, 1));
    assert_eq!(found, [0.0]);
}

#[test]
fn numbers_are_rounded_to_the_nearest_even() {
    let half = |bits: u32| f32::from_bits(rounded(f32::from_bits(bits)));
    assert_eq!(half(0x3f80_8000), 1.0);
    assert_eq!(half(0x3f80_8001), f32::from_bits(0x3f81_0000));
    assert_eq!(half(0x3f81_8000), f32::from_bits(0x3f82_0000));
    assert_eq!(half(0x7f80_0000), f32::INFINITY);
    assert!(half(0x7fff_ffff).is_nan() && half(0xff80_0001).is_nan());
}

#[test]
fn what_diverged_shows() {
    for bad in [f32::NAN, f32::INFINITY] {
        let left = [1.0, bad, 1.0, 1.0];
        let found = multiplied(
            Exec::default(),
            Matrix::new(&left, 2, 2),
            Matrix::new(&[1.0, 1.0], 2, 1),
        );
        assert!(!found[0].is_finite() && found[1] == 2.0, "{found:?}");
    }
}

#[test]
fn sizes_must_agree_and_may_be_nothing() {
    let (exec, left) = (Exec::default(), Matrix::new(&[1.0; 6], 2, 3));
    assert!(product(exec, &left, 2, Matrix::new(&[1.0; 3], 3, 1), &mut [0.0; 3]).is_err());
    let (empty, none) = (Matrix::new(&[], 2, 0), Matrix::new(&[], 0, 3));
    assert_eq!(multiplied(exec, empty, none), vec![0.0; 6]);
    assert_eq!(
        multiplied(exec, Matrix::new(&[], 0, 3), Matrix::new(&[1.0; 3], 3, 1)),
        Vec::<f32>::new()
    );
}
