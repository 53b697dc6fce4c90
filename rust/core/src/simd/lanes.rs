//! Vectors of floats of any width, for bodies that are written once.
//!
//! Such a body is `#[inline(always)]` and called from a function that is compiled for the instructions, so that these methods become
//! single instructions in it.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// A width of vector. Every operation rounds as that of a single float does.
///
/// # Safety
/// All methods need the processor to have the instructions, and those with pointers what these point to: [`Lanes::COUNT`] floats
/// that may be read or written, or as many as the mask has.
pub(crate) trait Lanes {
    /// Floats of a vector.
    const COUNT: usize;
    type Vector: Copy;

    unsafe fn splat(x: f32) -> Self::Vector;
    unsafe fn load(from: *const f32) -> Self::Vector;
    unsafe fn store(to: *mut f32, x: Self::Vector);
    /// `a * b + c`, rounded once.
    unsafe fn fused(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// `c - a * b`, rounded once.
    unsafe fn fused_less(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    unsafe fn sub(a: Self::Vector, b: Self::Vector) -> Self::Vector;
}

/// What steps of an optimizer need beside.
///
/// # Safety
/// As of [`Lanes`].
#[cfg(target_arch = "x86_64")]
pub(crate) trait Masked: Lanes {
    type Mask: Copy;
    type Integers: Copy;

    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    unsafe fn mul(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    unsafe fn div(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    unsafe fn sqrt(x: Self::Vector) -> Self::Vector;
    /// Numbers below the normal ones as 0.
    unsafe fn normal(x: Self::Vector) -> Self::Vector;
    /// The first so many lanes, or all.
    unsafe fn first(count: usize) -> Self::Mask;
    /// 0 in lanes that are not in the mask, which are not read.
    unsafe fn load_first(mask: Self::Mask, from: *const f32) -> Self::Vector;
    unsafe fn store_first(to: *mut f32, mask: Self::Mask, x: Self::Vector);
    unsafe fn integers(from: *const i32) -> Self::Integers;
    /// The lanes whose number is at most `bound`.
    unsafe fn at_most(numbers: Self::Integers, bound: i32) -> Self::Mask;
    /// `a` where the mask is, else `b`.
    unsafe fn select(mask: Self::Mask, a: Self::Vector, b: Self::Vector) -> Self::Vector;
}

/// AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Avx2;

/// AVX-512 F.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Avx512;

#[cfg(target_arch = "aarch64")]
pub(crate) struct Neon;

/// Methods of one or more instructions each.
macro_rules! instructions {
    ($features:literal: $(fn $name:ident($($argument:ident: $kind:ty),*) $(-> $out:ty)? { $body:expr })+) => {
        $(
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn $name($($argument: $kind),*) $(-> $out)? {
                // SAFETY: the caller's word, for those that read or write memory.
                #[allow(unused_unsafe)]
                unsafe { $body }
            }
        )+
    };
}

#[cfg(target_arch = "x86_64")]
impl Lanes for Avx2 {
    const COUNT: usize = 8;
    type Vector = __m256;

    instructions! { "avx2,fma":
        fn splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
        fn load(from: *const f32) -> __m256 { _mm256_loadu_ps(from) }
        fn store(to: *mut f32, x: __m256) { _mm256_storeu_ps(to, x) }
        fn fused(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn fused_less(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fnmadd_ps(a, b, c) }
        fn sub(a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Masked for Avx2 {
    /// All bits of a lane, or none.
    type Mask = __m256i;
    type Integers = __m256i;

    instructions! { "avx2,fma":
        fn add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fn div(a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
        fn sqrt(x: __m256) -> __m256 { _mm256_sqrt_ps(x) }
        fn normal(x: __m256) -> __m256 {{
            let size = _mm256_andnot_ps(_mm256_set1_ps(-0.0), x);
            _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(size, _mm256_set1_ps(f32::MIN_POSITIVE)), x)
        }}
        fn first(count: usize) -> __m256i {
            _mm256_cmpgt_epi32(_mm256_set1_epi32(count.min(8) as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
        }
        fn load_first(mask: __m256i, from: *const f32) -> __m256 { _mm256_maskload_ps(from, mask) }
        fn store_first(to: *mut f32, mask: __m256i, x: __m256) { _mm256_maskstore_ps(to, mask, x) }
        fn integers(from: *const i32) -> __m256i { _mm256_loadu_si256(from.cast()) }
        fn at_most(numbers: __m256i, bound: i32) -> __m256i {
            // There is no "less or equal"; steps are numbered from 0, so the next one exists.
            _mm256_cmpgt_epi32(_mm256_set1_epi32(bound + 1), numbers)
        }
        fn select(mask: __m256i, a: __m256, b: __m256) -> __m256 { _mm256_blendv_ps(b, a, _mm256_castsi256_ps(mask)) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes for Avx512 {
    const COUNT: usize = 16;
    type Vector = __m512;

    instructions! { "avx512f":
        fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn load(from: *const f32) -> __m512 { _mm512_loadu_ps(from) }
        fn store(to: *mut f32, x: __m512) { _mm512_storeu_ps(to, x) }
        fn fused(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn fused_less(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fnmadd_ps(a, b, c) }
        fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Masked for Avx512 {
    type Mask = __mmask16;
    type Integers = __m512i;

    instructions! { "avx512f":
        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn sqrt(x: __m512) -> __m512 { _mm512_sqrt_ps(x) }
        fn normal(x: __m512) -> __m512 {{
            let kept = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_abs_ps(x), _mm512_set1_ps(f32::MIN_POSITIVE));
            _mm512_maskz_mov_ps(kept, x)
        }}
        fn first(count: usize) -> __mmask16 { (0xFFFF_u32 >> (16 - count.min(16))) as __mmask16 }
        fn load_first(mask: __mmask16, from: *const f32) -> __m512 { _mm512_maskz_loadu_ps(mask, from) }
        fn store_first(to: *mut f32, mask: __mmask16, x: __m512) { _mm512_mask_storeu_ps(to, mask, x) }
        fn integers(from: *const i32) -> __m512i { _mm512_loadu_si512(from.cast()) }
        fn at_most(numbers: __m512i, bound: i32) -> __mmask16 {
            _mm512_cmple_epi32_mask(numbers, _mm512_set1_epi32(bound))
        }
        fn select(mask: __mmask16, a: __m512, b: __m512) -> __m512 { _mm512_mask_mov_ps(b, mask, a) }
    }
}

#[cfg(target_arch = "aarch64")]
impl Lanes for Neon {
    const COUNT: usize = 4;
    type Vector = float32x4_t;

    instructions! { "neon":
        fn splat(x: f32) -> float32x4_t { vdupq_n_f32(x) }
        fn load(from: *const f32) -> float32x4_t { vld1q_f32(from) }
        fn store(to: *mut f32, x: float32x4_t) { vst1q_f32(to, x) }
        fn fused(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t { vfmaq_f32(c, a, b) }
        fn fused_less(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t { vfmsq_f32(c, a, b) }
        fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t { vsubq_f32(a, b) }
    }
}
