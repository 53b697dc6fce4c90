//! Elementary functions of our own: additions, multiplications, divisions and bit operations only, so that every
//! machine gives the same bytes (the C library's differ between systems).

/// Natural logarithm of a positive, normal `x`; error below 1 ulp. Reduction and polynomial are those of FreeBSD's
/// `e_log.c`.
#[inline(always)]
pub fn ln(x: f64) -> f64 {
    const LN2_HI: f64 = 6.931_471_803_691_238e-1;
    const LN2_LO: f64 = 1.908_214_929_270_587_7e-10;
    const C: [f64; 7] = [
        6.666_666_666_666_735e-1,
        3.999_999_999_940_942e-1,
        2.857_142_874_366_239e-1,
        2.222_219_843_214_978_4e-1,
        1.818_357_216_161_805e-1,
        1.531_383_769_920_937_3e-1,
        1.479_819_860_511_658_6e-1,
    ];
    // sqrt(1/2) <= m < sqrt(2) with x = 2^e * m
    let shifted = x.to_bits().wrapping_sub(0x3FE6_A09E_667F_3BCD);
    let e = (shifted as i64) >> 52;
    let m = f64::from_bits((shifted & 0x000F_FFFF_FFFF_FFFF).wrapping_add(0x3FE6_A09E_667F_3BCD));
    // |e| < 2^12 as a double without a conversion instruction that AVX2 lacks: 1.5 * 2^52 + e is exact.
    let e = f64::from_bits(0x4338_0000_0000_0000_u64.wrapping_add(e as u64)) - 6_755_399_441_055_744.0;
    let f = m - 1.0;
    let s = f / (2.0 + f);
    let z = s * s;
    let w = z * z;
    let even = w * (C[1] + w * (C[3] + w * C[5]));
    let odd = z * (C[0] + w * (C[2] + w * (C[4] + w * C[6])));
    let r = even + odd;
    let half = 0.5 * f * f;
    e * LN2_HI - ((half - (s * (half + r) + e * LN2_LO)) - f)
}

/// e^x for x <= 0; error below 2 ulp, 0 below -700.
#[inline(always)]
pub fn exp_neg(x: f64) -> f64 {
    const LN2_HI: f64 = 6.931_471_803_691_238e-1;
    const LN2_LO: f64 = 1.908_214_929_270_587_7e-10;
    if x < -700.0 {
        return 0.0;
    }
    let n = (x * std::f64::consts::LOG2_E - 0.5) as i64;
    let r = (x - n as f64 * LN2_HI) - n as f64 * LN2_LO;
    // |r| <= 0.35: the Taylor series to r^13 errs by less than 1e-17.
    let mut sum = 1.0;
    let mut k = 13.0;
    while k >= 1.0 {
        sum = 1.0 + sum * r / k;
        k -= 1.0;
    }
    sum * f64::from_bits(((1023 + n) as u64) << 52)
}

/// 1 / (1 + e^-x) and ln(1 + e^x), to a relative 1e-10; branch-free, so that loops over it use vectors. NaN stays NaN.
#[inline(always)]
pub fn sigmoid_softplus(x: f64) -> (f64, f64) {
    let e = exp_neg_each(-x.abs());
    let inverse = 1.0 / (1.0 + e);
    let positive = if x < 0.0 { 0.0 } else { x };
    (if x < 0.0 { e * inverse } else { inverse }, positive + ln(1.0 + e))
}

/// e^x for x <= 0, the same without a branch or a division, for loops over many; error below 2 ulp, 0 below -700.
#[inline(always)]
pub fn exp_neg_each(x: f64) -> f64 {
    const LN2_HI: f64 = 6.931_471_803_691_238e-1;
    const LN2_LO: f64 = 1.908_214_929_270_587_7e-10;
    // 1.5 * 2^52: a sum with it is rounded to an integer, which its lowest bits then are.
    const ROUNDER: f64 = 6_755_399_441_055_744.0;
    let bounded = if x < -700.0 { -700.0 } else { x }; // not max, which would lose NaN
    let rounded = bounded * std::f64::consts::LOG2_E + ROUNDER;
    let n = rounded - ROUNDER;
    let r = (bounded - n * LN2_HI) - n * LN2_LO;
    // |r| <= 0.35: 1 / k! up to r^13.
    const C: [f64; 14] = [
        1.0,
        1.0,
        1.0 / 2.0,
        1.0 / 6.0,
        1.0 / 24.0,
        1.0 / 120.0,
        1.0 / 720.0,
        1.0 / 5_040.0,
        1.0 / 40_320.0,
        1.0 / 362_880.0,
        1.0 / 3_628_800.0,
        1.0 / 39_916_800.0,
        1.0 / 479_001_600.0,
        1.0 / 6_227_020_800.0,
    ];
    let mut sum = C[13];
    for c in C[..13].iter().rev() {
        sum = sum * r + c;
    }
    let power = f64::from_bits(rounded.to_bits().wrapping_add(1023) << 52);
    if x < -700.0 {
        0.0
    } else {
        sum * power
    }
}

/// tanh(x) for x >= 0.
#[inline(always)]
pub fn tanh(x: f64) -> f64 {
    if x < 0.05 {
        // The series errs by less than 1e-15 of x here; the quotient would cancel.
        let z = x * x;
        return x * (1.0 - z * (1.0 / 3.0 - z * (2.0 / 15.0 - z * (17.0 / 315.0 - z * (62.0 / 2835.0)))));
    }
    let e = exp_neg(-2.0 * x);
    (1.0 - e) / (1.0 + e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_to_the_c_library() {
        let mut word = 1u64;
        for counter in 0..200_000 {
            word = crate::rng::at(word, counter);
            let u = crate::rng::unit(word);
            assert!((ln(u) - u.ln()).abs() <= 4e-16 * u.ln().abs(), "ln {u:e}");
            let tiny = u * 1e-300;
            assert!((ln(tiny) - tiny.ln()).abs() <= 4e-16 * tiny.ln().abs(), "ln {tiny:e}");
            let x = -u * 40.0;
            assert!((exp_neg(x) - x.exp()).abs() <= 1e-15 * x.exp(), "exp {x}");
            assert!((exp_neg_each(x) - x.exp()).abs() <= 1e-15 * x.exp(), "exp {x}");
            assert!((exp_neg_each(17.0 * x) - (17.0 * x).exp()).abs() <= 1e-15 * (17.0 * x).exp());
            let y = (u - 0.5) * 60.0;
            let (sigmoid, softplus) = sigmoid_softplus(y);
            assert!((sigmoid * (1.0 + (-y).exp()) - 1.0).abs() <= 1e-10, "sigmoid {y}");
            // ln(1 + e) loses what 1 + e rounds away
            let exact = y.max(0.0) + (-y.abs()).exp().ln_1p();
            assert!((softplus - exact).abs() <= 1e-10 * exact + 2e-16, "softplus {y}");
            let t = u * if counter % 2 == 0 { 0.1 } else { 20.0 };
            assert!((tanh(t) - t.tanh()).abs() <= 4e-15 * t.tanh(), "tanh {t}");
        }
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(exp_neg(0.0), 1.0);
        assert_eq!(tanh(0.0), 0.0);
        assert_eq!(exp_neg(-1e9), 0.0);
        assert_eq!(exp_neg_each(0.0), 1.0);
        assert_eq!(exp_neg_each(-1e9), 0.0);
        assert_eq!(exp_neg_each(f64::NEG_INFINITY), 0.0);
        let low = sigmoid_softplus(f64::NEG_INFINITY);
        assert!(low.0 < 1e-300 && low.1 == 0.0, "{low:?}");
        assert_eq!(sigmoid_softplus(0.0).0, 0.5);
        assert!(sigmoid_softplus(f64::NAN).1.is_nan());
    }
}
