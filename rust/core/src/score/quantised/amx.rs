//! Sums of bytes in tile registers (AMX-INT8): sixteen times the products of a vector instruction.

use std::arch::asm;

use super::panels::{BytePanels, Bytes};
use super::sums::{Totals, BATCH};
use super::tile::ByteTile;
use crate::score::{COLUMNS, LINE, ROWS};
use crate::simd::amx::Configured;

/// Registers for [`sums`]: sums of two panels' halves, a chunk of the queries, a chunk of half a panel.
///
/// # Safety
/// Tile registers are available, and `chunk` is 1 to 16.
pub unsafe fn configured(chunk: usize) -> Configured {
    let (sums, queries, panel) = ((ROWS, 4 * LINE), (ROWS, 4 * chunk), (chunk, 4 * LINE));
    // SAFETY: the caller's word.
    unsafe { Configured::with([sums, sums, sums, sums, queries, panel, panel]) }
}

/// The sums of a batch of panels.
///
/// # Safety
/// What [`configured`] gives for `panels.chunk` lives on this thread, `queries` were packed for `panels`, and every panel of
/// `batch`, BATCH at most, is one of them.
#[inline]
pub unsafe fn sums(queries: &ByteTile, panels: &BytePanels, batch: &[usize], totals: &mut [Totals; BATCH]) {
    let per_panel = panels.groups * 2;
    for (pair, totals) in batch.chunks(2).zip(totals.as_chunks_mut::<2>().0) {
        // A panel without partner is its own, and its sums are written twice.
        let (first, second) = (pair[0], pair[pair.len() - 1]);
        // SAFETY: the first row of a tile is [groups] x 4 bytes of the queries, its stride the same; a tile of a panel
        // is every other line of its 2 x groups, [chunk] of them from each of groups / chunk places on. Sums start as
        // one line in all rows (stride 0) and are written as ROWS x 2 lines. Pointers move past the last chunk only
        // when nothing more is read.
        unsafe {
            let lines = panels.lines.as_ptr();
            asm!(
                "tileloadd tmm0, [{s0} + {none}*1]",
                "tileloadd tmm1, [{s0} + {none}*1 + 64]",
                "tileloadd tmm2, [{s1} + {none}*1]",
                "tileloadd tmm3, [{s1} + {none}*1 + 64]",
                "2:",
                "tileloadd tmm4, [{q} + {width}*1]",
                "tileloadd tmm5, [{x0} + {lines}*1]",
                "tileloadd tmm6, [{x0} + {lines}*1 + 64]",
                "tdpbusd tmm0, tmm4, tmm5",
                "tdpbusd tmm1, tmm4, tmm6",
                "tileloadd tmm5, [{x1} + {lines}*1]",
                "tileloadd tmm6, [{x1} + {lines}*1 + 64]",
                "tdpbusd tmm2, tmm4, tmm5",
                "tdpbusd tmm3, tmm4, tmm6",
                "add {q}, {bytes}",
                "add {x0}, {step}",
                "add {x1}, {step}",
                "dec {chunks}",
                "jnz 2b",
                "tilestored [{out} + {lines}*1], tmm0",
                "tilestored [{out} + {lines}*1 + 64], tmm1",
                "tilestored [{out} + {lines}*1 + {size}], tmm2",
                "tilestored [{out} + {lines}*1 + {size} + 64], tmm3",
                s0 = in(reg) panels.starts.as_ptr().add(first),
                s1 = in(reg) panels.starts.as_ptr().add(second),
                none = in(reg) 0usize,
                q = inout(reg) queries.bytes.as_ptr() => _,
                width = in(reg) panels.groups * 4,
                x0 = inout(reg) lines.add(first * per_panel) => _,
                x1 = inout(reg) lines.add(second * per_panel) => _,
                lines = in(reg) 2 * size_of::<Bytes>(),
                bytes = in(reg) panels.chunk * 4,
                step = in(reg) panels.chunk * 2 * size_of::<Bytes>(),
                chunks = inout(reg) panels.groups / panels.chunk => _,
                out = in(reg) totals.as_mut_ptr(),
                size = const size_of::<Totals>(),
                out("tmm0") _,
                out("tmm1") _,
                out("tmm2") _,
                out("tmm3") _,
                out("tmm4") _,
                out("tmm5") _,
                out("tmm6") _,
                options(nostack),
            );
        }
        const { assert!(size_of::<Totals>() == ROWS * COLUMNS * 4) };
    }
}
