//! The best approximate scores of a sample of panels.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::amx;
#[cfg(target_arch = "x86_64")]
use super::sums::{sums, Totals, BATCH};
use super::{BytePanels, ByteTile};
use crate::score::{Line, COLUMNS, LINE, ROWS};
use crate::simd::SimdPath;

/// The best approximate scores of a sample of panels: of each query, the largest of every `lanes` places. The g-th
/// largest of a row's lanes is reached by g items of the sample at least.
#[derive(Clone, Debug, Default)]
pub struct Lanes {
    lines: Vec<Line>,
    /// Panels after which a lane is used again.
    panels: usize,
}

impl Lanes {
    /// `panels` x 32 lanes a row, nothing in them.
    pub fn clear(&mut self, panels: usize) {
        self.panels = panels;
        self.lines.clear();
        self.lines
            .resize(ROWS * panels * (COLUMNS / LINE), Line([f32::NEG_INFINITY; LINE]));
    }

    pub fn panels(&self) -> usize {
        self.panels
    }

    /// The lines of a row.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &[Line] {
        let width = self.panels * (COLUMNS / LINE);
        &self.lines[row * width..(row + 1) * width]
    }

    /// Two lines of each row, [`Lanes::stride`] lines apart, that take in a panel.
    #[inline(always)]
    pub fn of_panel(&mut self, panel: usize) -> &mut [Line] {
        &mut self.lines[panel % self.panels * (COLUMNS / LINE)..]
    }

    pub fn stride(&self) -> usize {
        self.panels * (COLUMNS / LINE)
    }
}

impl SimdPath {
    /// Takes the approximate scores of a range of panels into `lanes`, but for those `seen`: position x 16 + row each,
    /// ascending, none before the range. Only with [`SimdPath::has_bytes`].
    pub fn sample_bytes(
        self,
        queries: &ByteTile,
        panels: &BytePanels,
        range: Range<usize>,
        seen: &[u64],
        lanes: &mut Lanes,
    ) {
        self.check_bytes(queries, panels);
        assert!(range.end <= panels.count());
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the instructions, and sizes and layout agree, as checked.
        unsafe {
            if panels.chunk > 0 {
                sample_bytes::<true>(queries, panels, range, seen, lanes);
            } else {
                sample_bytes::<false>(queries, panels, range, seen, lanes);
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = (seen, lanes);
        }
    }
}

/// [`SimdPath::sample_bytes`].
///
/// # Safety
/// As of [`super::scan`]; `range` lies within the panels.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,popcnt,bmi1,bmi2")]
pub unsafe fn sample_bytes<const TILES: bool>(
    queries: &ByteTile,
    panels: &BytePanels,
    range: Range<usize>,
    seen: &[u64],
    lanes: &mut Lanes,
) {
    // SAFETY: the caller's word.
    let _tiles = TILES.then(|| unsafe { amx::configured(panels.chunk) });
    let mut totals = [Totals::ZERO; BATCH];
    let mut seen = seen
        .iter()
        .map(|&place| (place as usize / LINE, place as usize % LINE))
        .peekable();
    // SAFETY: 16 floats, aligned to 64 bytes by their structure.
    let scales = unsafe { _mm512_load_ps(queries.scales.as_ptr()) };
    let mut next = range.start;
    while next < range.end {
        let batch: [usize; BATCH] = std::array::from_fn(|place| next + place);
        let batch = &batch[..BATCH.min(range.end - next)];
        next += batch.len();
        // SAFETY: the panels lie in the range, and the rest is the caller's word.
        unsafe { sums::<TILES>(queries, panels, batch, &mut totals) };
        for (&panel, totals) in batch.iter().zip(&mut totals) {
            while let Some((position, row)) = seen.next_if(|&(position, _)| position < (panel + 1) * COLUMNS) {
                totals.0[row][position % COLUMNS] = i32::MIN;
            }
            let mut scale = [0.0f32; LINE];
            // SAFETY: 16 floats.
            unsafe {
                let scales = _mm512_mul_ps(scales, _mm512_set1_ps(panels.bounds[panel].scale));
                _mm512_storeu_ps(scale.as_mut_ptr(), scales);
            }
            let stride = lanes.stride();
            for ((sums, lines), &scale) in totals
                .0
                .iter()
                .zip(lanes.of_panel(panel).chunks_mut(stride))
                .zip(&scale)
            {
                for (sums, line) in sums.as_chunks::<LINE>().0.iter().zip(lines) {
                    // SAFETY: 16 integers and 16 floats, each aligned to 64 bytes by its structure.
                    unsafe {
                        let sums = _mm512_cvtepi32_ps(_mm512_load_si512(sums.as_ptr().cast()));
                        let scores = _mm512_mul_ps(sums, _mm512_set1_ps(scale));
                        let best = _mm512_max_ps(_mm512_load_ps(line.0.as_ptr()), scores);
                        _mm512_store_ps(line.0.as_mut_ptr(), best);
                    }
                }
            }
        }
    }
}
