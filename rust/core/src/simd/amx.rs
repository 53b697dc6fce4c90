//! Tile registers (AMX).
//!
//! Rust has no stable intrinsics for them, hence the assembly. The registers belong to the thread and no compiled code
//! uses them; the system grants them to a process that asks.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::marker::PhantomData;
use std::sync::OnceLock;

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
    /// # Safety
    /// Tile registers are [`available`]; `shapes`, rows and bytes of each, are at most 8, of 1 to 16 rows of 1 to 64 bytes.
    pub unsafe fn with<const N: usize>(shapes: [(usize, usize); N]) -> Self {
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
