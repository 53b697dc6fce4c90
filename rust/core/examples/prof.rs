use kdrs_core::*;
use std::time::Instant;
fn main() {
    let a: Vec<usize> = std::env::args().skip(1).map(|x| x.parse().unwrap()).collect();
    let (q, n, d, k) = (a[0], a[1], a[2], a[3]);
    let g = |seed: u64, len: usize| -> Vec<f32> {
        (0..len as u64)
            .map(|c| {
                let mut s = 0.0;
                for j in 0..6 {
                    s += rng::unit(rng::at(seed, c * 6 + j)) - 0.5;
                }
                (s * 1.414) as f32
            })
            .collect()
    };
    let (x, y) = (g(1, q * d), g(2, n * d));
    let mut best = f64::MAX;
    for _ in 0..8 {
        let t = Instant::now();
        let r = topk(
            Exec::serial(),
            Matrix::new(&x, q, d),
            Matrix::new(&y, n, d),
            None,
            Mask::NONE,
            k,
        )
        .unwrap();
        std::hint::black_box(&r);
        best = best.min(t.elapsed().as_secs_f64());
    }
    println!(
        "{:.2} ms  {:.0} GFLOP/s",
        best * 1e3,
        2.0 * (q * n * d) as f64 / best / 1e9
    );
}
