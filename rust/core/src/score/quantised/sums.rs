//! Sums of products of bytes.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
use super::{amx, panels::BytePanels, tile::ByteTile};
#[cfg(target_arch = "x86_64")]
use crate::score::LINE;
use crate::score::{COLUMNS, ROWS};

/// Sums of a tile of queries and a panel.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub struct Totals(pub [[i32; COLUMNS]; ROWS]);

/// Panels whose sums are taken together.
pub const BATCH: usize = 4;

impl Totals {
    pub const ZERO: Totals = Totals([[0; COLUMNS]; ROWS]);
}

/// The sums of a batch of panels.
///
/// # Safety
/// As of [`super::scan`]; every panel of `batch`, BATCH at most, is one of the panels, and with `TILES` the registers
/// are configured.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) unsafe fn sums<const TILES: bool>(
    queries: &ByteTile,
    panels: &BytePanels,
    batch: &[usize],
    totals: &mut [Totals; BATCH],
) {
    if TILES {
        // SAFETY: the caller's word.
        unsafe { amx::sums(queries, panels, batch, totals) };
        return;
    }
    for (&panel, totals) in batch.iter().zip(totals) {
        let starts = &panels.starts[panel];
        // SAFETY: two lines of 16 integers, aligned to 64 bytes.
        let start = unsafe {
            [
                _mm512_load_si512(starts[0].0.as_ptr().cast()),
                _mm512_load_si512(starts[1].0.as_ptr().cast()),
            ]
        };
        let mut sums = [start; ROWS];
        let mut q = queries.bytes.as_ptr().cast::<i32>();
        // SAFETY: panel is below count, and each panel has 2 * groups lines.
        let mut x = unsafe { panels.lines.as_ptr().add(panel * 2 * panels.groups) };
        for _ in 0..panels.groups {
            // SAFETY: both pointers advance by one group in each of `groups` steps; lines are aligned to 64 bytes, and
            // the queries' bytes are read as unaligned 32-bit words.
            unsafe {
                let items = [_mm512_load_si512(x.cast()), _mm512_load_si512(x.add(1).cast())];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let query = _mm512_set1_epi32(q.add(row).read_unaligned());
                    sums[0] = _mm512_dpbusd_epi32(sums[0], query, items[0]);
                    sums[1] = _mm512_dpbusd_epi32(sums[1], query, items[1]);
                }
                q = q.add(ROWS);
                x = x.add(2);
            }
        }
        for (row, sums) in totals.0.iter_mut().zip(&sums) {
            // SAFETY: a row is 32 integers, two vectors, aligned to 64 bytes.
            unsafe {
                _mm512_store_si512(row.as_mut_ptr().cast(), sums[0]);
                _mm512_store_si512(row.as_mut_ptr().add(LINE).cast(), sums[1]);
            }
        }
    }
}
