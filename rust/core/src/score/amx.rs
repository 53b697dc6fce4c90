//! Tile registers (AMX), and sums of bytes in them (AMX-INT8): sixteen times the products of a vector instruction.
//!
//! Rust has no stable intrinsics for them, hence the assembly. The registers belong to the thread and no compiled code
//! uses them; the system grants them to a process that asks.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::quantised::{BytePanels, ByteTile, Totals, BATCH};
use super::{COLUMNS, LINE, ROWS};

/// Whether processor and system have tile registers for bytes; asks the system for them the first time.
pub fn available() -> bool {
    const INT8: u32 = 1 << 25;
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| supported(INT8) && granted())
}

/// Whether they multiply bfloat16 numbers too.
pub fn has_bfloat16() -> bool {
    const BF16: u32 = 1 << 22;
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| available() && supported(BF16))
}

/// Whether there are tile registers, and what this bit of the processor's features stands for.
fn supported(feature: u32) -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const TILE: u32 = 1 << 24;
    const TILE_STATE: u64 = 1 << 17 | 1 << 18;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    // SAFETY: OSXSAVE says that the instruction may be used.
    let enabled = unsafe { state() };
    __cpuid_count(7, 0).edx & (TILE | feature) == TILE | feature && enabled & TILE_STATE == TILE_STATE
}

/// Which states the system saves.
#[target_feature(enable = "xsave")]
fn state() -> u64 {
    // SAFETY: register 0 exists wherever the instruction does.
    unsafe { _xgetbv(0) }
}

#[cfg(target_os = "linux")]
fn granted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let answer: i64;
    // SAFETY: the call reads and writes no memory; the system keeps all registers but the three named.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => answer,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    answer == 0
}

#[cfg(not(target_os = "linux"))]
fn granted() -> bool {
    false
}

/// While it lives, this thread's tile registers have shapes.
pub struct Configured(PhantomData<*const ()>);

impl Configured {
    /// Those that [`sums`] needs: sums of two panels' halves, a chunk of the queries, a chunk of half a panel.
    ///
    /// # Safety
    /// Tile registers are [`available`], and `chunk` is 1 to 16.
    pub unsafe fn new(chunk: usize) -> Self {
        let (sums, queries, panel) = ((ROWS, 4 * LINE), (ROWS, 4 * chunk), (chunk, 4 * LINE));
        // SAFETY: the caller's word.
        unsafe { Self::with([sums, sums, sums, sums, queries, panel, panel]) }
    }

    /// Those of [`crate::bfloat16::amx`]: eight of 16 rows of 64 bytes.
    ///
    /// # Safety
    /// Tile registers are [`available`].
    pub unsafe fn whole() -> Self {
        // SAFETY: the caller's word.
        unsafe { Self::with([(16, 64); 8]) }
    }

    /// # Safety
    /// Tile registers are [`available`]; `shapes`, rows and bytes of each, are at most 8, of 1 to 16 rows of 1 to 64 bytes.
    unsafe fn with<const N: usize>(shapes: [(usize, usize); N]) -> Self {
        #[repr(C, align(64))]
        struct Config([u8; 64]);
        const COLUMN_BYTES: usize = 16;
        const TILE_ROWS: usize = 48;
        let mut config = Config([0; 64]);
        config.0[0] = 1;
        for (register, (rows, bytes)) in shapes.into_iter().enumerate() {
            config.0[COLUMN_BYTES + 2 * register] = bytes as u8;
            config.0[TILE_ROWS + register] = rows as u8;
        }
        // SAFETY: 64 bytes are read, a valid configuration of palette 1.
        unsafe { asm!("ldtilecfg [{}]", in(reg) config.0.as_ptr(), options(nostack, readonly)) };
        Configured(PhantomData)
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: it was configured, so the instruction exists.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// The sums of a batch of panels.
///
/// # Safety
/// A [`Configured`] of `panels.chunk` lives on this thread, `queries` were packed for `panels`, and every panel of
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
                lines = in(reg) 2 * size_of::<super::quantised::Bytes>(),
                bytes = in(reg) panels.chunk * 4,
                step = in(reg) panels.chunk * 2 * size_of::<super::quantised::Bytes>(),
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
