//! Blocks of sums in tile registers (AMX-BF16).

use std::arch::asm;

use super::{Sums, Tiles};
use crate::simd::amx::Configured;

/// Registers for [`tile_sums`]: eight of 16 rows of 64 bytes.
///
/// # Safety
/// Tile registers are available.
pub unsafe fn configured() -> Configured {
    // SAFETY: the caller's word.
    unsafe { Configured::with([(16, 64); 8]) }
}

/// Adds products to a block of sums.
///
/// # Safety
/// The processor has the instructions and what [`configured`] gives lives on this thread; the factors are of
/// one length, at least 1.
pub unsafe fn tile_sums(left: &[Tiles], right: &[Tiles], sums: &mut Sums) {
    const { assert!(size_of::<Tiles>() == 2048 && size_of::<Sums>() == 4096) };
    // SAFETY: tiles are 16 rows of 64 bytes, one after the other; pointers move past the last one only when nothing more is read.
    unsafe {
        asm!(
            "tileloadd tmm0, [{sums} + {row}*1]",
            "tileloadd tmm1, [{sums} + {row}*1 + 1024]",
            "tileloadd tmm2, [{sums} + {row}*1 + 2048]",
            "tileloadd tmm3, [{sums} + {row}*1 + 3072]",
            "2:",
            "tileloadd tmm4, [{left} + {row}*1]",
            "tileloadd tmm5, [{left} + {row}*1 + 1024]",
            "tileloadd tmm6, [{right} + {row}*1]",
            "tileloadd tmm7, [{right} + {row}*1 + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {left}, 2048",
            "add {right}, 2048",
            "dec {depth}",
            "jnz 2b",
            "tilestored [{sums} + {row}*1], tmm0",
            "tilestored [{sums} + {row}*1 + 1024], tmm1",
            "tilestored [{sums} + {row}*1 + 2048], tmm2",
            "tilestored [{sums} + {row}*1 + 3072], tmm3",
            left = inout(reg) left.as_ptr() => _,
            right = inout(reg) right.as_ptr() => _,
            row = in(reg) 64usize,
            depth = inout(reg) left.len() => _,
            sums = in(reg) std::ptr::from_mut(sums),
            out("tmm0") _,
            out("tmm1") _,
            out("tmm2") _,
            out("tmm3") _,
            out("tmm4") _,
            out("tmm5") _,
            out("tmm6") _,
            out("tmm7") _,
            options(nostack),
        );
    }
}
