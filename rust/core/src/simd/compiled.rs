//! Plain code, compiled anew for each instruction set.

/// Gives [`SimdPath`](super::SimdPath) a method that runs a plain function compiled for the path's instructions:
///
/// ```text
/// compiled! {
///     /// What it does.
///     pub fn name(argument: Type) -> Result = body;
///     pub fn other(argument: Type) = body, avx512: function_with_those_features;
/// }
/// ```
///
/// `body` must be `#[inline(always)]`, or it keeps the instructions of the crate. It has to give the same bytes however it is
/// compiled, as Rust does: products and sums are never fused but by `mul_add`.
macro_rules! compiled {
    ($(
        $(#[$doc:meta])*
        $vis:vis fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $(-> $out:ty)? = $body:path
        $(, avx512: $own:path)?;
    )+) => {
        impl $crate::simd::SimdPath {
            $(
                $(#[$doc])*
                #[inline]
                $vis fn $name(self, $($argument: $kind),*) $(-> $out)? {
                    #[cfg(target_arch = "x86_64")]
                    {
                        #[target_feature(enable = "avx2,fma")]
                        fn avx2($($argument: $kind),*) $(-> $out)? {
                            $body($($argument),*)
                        }
                        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,popcnt,bmi1,bmi2")]
                        fn avx512($($argument: $kind),*) $(-> $out)? {
                            $crate::simd::compiled!(@first $($own)?, $body)($($argument),*)
                        }
                        match self.level() {
                            $crate::simd::Level::Portable => {}
                            // SAFETY: a path of this level exists only if the processor has its instructions.
                            $crate::simd::Level::Avx2 => return unsafe { avx2($($argument),*) },
                            // SAFETY: as above.
                            $crate::simd::Level::Avx512 => return unsafe { avx512($($argument),*) },
                        }
                    }
                    $body($($argument),*)
                }
            )+
        }
    };
    (@first $own:path, $body:path) => { $own };
    (@first , $body:path) => { $body };
}
pub(crate) use compiled;
