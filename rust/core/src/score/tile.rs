//! A tile of queries against one panel: the sums stay in registers over the dimension.

use super::{Form, Line, Tile, COLUMNS, LINE, ROWS};
use crate::simd::lanes::{self, Lanes};
use crate::simd::{Level, SimdPath};

impl SimdPath {
    /// Scores of a query tile (`[dim][ROWS]`) and an item panel (`dim x COLUMNS`).
    #[inline]
    pub fn tile(self, form: Form, queries: &[f32], panel: &[Line], bias: &[Line; 2], out: &mut Tile) {
        self.columns_of_tile(form, queries, panel, bias, COLUMNS, out);
    }

    /// A tile of products of which the first `columns` are asked for: it may leave the others as they are.
    #[inline]
    pub fn products_tile(self, queries: &[f32], panel: &[Line], bias: &[Line; 2], columns: usize, out: &mut Tile) {
        self.columns_of_tile(Form::Dot, queries, panel, bias, columns, out);
    }

    #[inline]
    fn columns_of_tile(
        self,
        form: Form,
        queries: &[f32],
        panel: &[Line],
        bias: &[Line; 2],
        columns: usize,
        out: &mut Tile,
    ) {
        assert_eq!(
            queries.len() * COLUMNS,
            panel.len() * LINE * ROWS,
            "tile and panel have one dim"
        );
        let columns = if columns > LINE { COLUMNS } else { LINE };
        match self.level() {
            Level::Portable => portable(form, queries, panel, bias, out),
            // SAFETY: a path of this level exists only if the processor has its instructions, and both operands hold dim rows, as
            // asserted.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { avx2(form, queries, panel, bias, columns, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { avx512(form, queries, panel, bias, columns, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Level::Neon => unsafe { neon(form, queries, panel, bias, columns, out) },
        }
    }
}

/// A tile in parts of TALL x WIDE vectors: as many as registers hold beside their operands.
macro_rules! tile {
    ($name:ident: $features:literal, $lanes:ty, $tall:expr, $wide:expr, $architecture:literal) => {
        /// # Safety
        /// The processor has the instructions; `queries` holds dim x ROWS floats and `panel` dim x COLUMNS; `columns` is LINE or
        /// COLUMNS.
        #[cfg(target_arch = $architecture)]
        #[target_feature(enable = $features)]
        unsafe fn $name(form: Form, queries: &[f32], panel: &[Line], bias: &[Line; 2], columns: usize, out: &mut Tile) {
            /// Each by itself, or one's registers would be another's.
            #[target_feature(enable = $features)]
            #[inline(never)]
            unsafe fn part<const DISTANCE: bool, const WIDE: usize>(
                queries: &[f32],
                panel: &[Line],
                bias: &[Line; 2],
                columns: usize,
                out: &mut Tile,
            ) {
                // SAFETY: as the caller vouches.
                unsafe { parts::<$lanes, DISTANCE, $tall, WIDE>(queries, panel, bias, columns, out) }
            }
            const NARROW: usize = LINE / <$lanes>::COUNT;
            // SAFETY: as the caller vouches.
            unsafe {
                match (form, columns) {
                    (Form::Dot, COLUMNS) => part::<false, $wide>(queries, panel, bias, COLUMNS, out),
                    (Form::Dot, _) => part::<false, NARROW>(queries, panel, bias, LINE, out),
                    (Form::Distance, _) => part::<true, $wide>(queries, panel, bias, COLUMNS, out),
                }
            }
        }
    };
}

// 24 of 32 registers.
tile!(avx512: "avx512f", lanes::Avx512, ROWS, 2, "x86_64");
// 12 of 16.
tile!(avx2: "avx2,fma", lanes::Avx2, 6, 2, "x86_64");
// 24 of 32.
tile!(neon: "neon", lanes::Neon, 6, 4, "aarch64");

/// # Safety
/// The instructions of the lanes; `queries` holds dim x ROWS floats and `panel` dim x COLUMNS.
#[inline(always)]
unsafe fn parts<L: Lanes, const DISTANCE: bool, const TALL: usize, const WIDE: usize>(
    queries: &[f32],
    panel: &[Line],
    bias: &[Line; 2],
    columns: usize,
    out: &mut Tile,
) {
    const { assert!(ROWS.is_multiple_of(TALL) && LINE.is_multiple_of(L::COUNT)) }
    for top in (0..ROWS).step_by(TALL) {
        for left in (0..columns).step_by(WIDE * L::COUNT) {
            // SAFETY: the part lies in the tile; the rest is the caller's word.
            let sums = unsafe { sums::<L, DISTANCE, TALL, WIDE>(queries, panel, bias, top, left) };
            for (row, sums) in out.0[top..top + TALL].iter_mut().zip(&sums) {
                let row = &mut row[left..left + WIDE * L::COUNT];
                for (place, &sums) in sums.iter().enumerate() {
                    // SAFETY: the slice is WIDE vectors.
                    unsafe { L::store(row.as_mut_ptr().add(place * L::COUNT), sums) };
                }
            }
        }
    }
}

/// The sums of TALL queries from `top` on and of WIDE vectors of items from column `left` on.
///
/// # Safety
/// As above; the part lies in the tile.
#[inline(always)]
pub(super) unsafe fn sums<L: Lanes, const DISTANCE: bool, const TALL: usize, const WIDE: usize>(
    queries: &[f32],
    panel: &[Line],
    bias: &[Line; 2],
    top: usize,
    left: usize,
) -> [[L::Vector; WIDE]; TALL] {
    let dim = queries.len() / ROWS;
    debug_assert_eq!(panel.len(), dim * 2);
    // SAFETY: two lines of bias are COLUMNS floats, and the part lies among them. Queries hold dim x ROWS floats and the panel
    // dim x COLUMNS.
    unsafe {
        let start = bias.as_ptr().cast::<f32>().add(left);
        let start: [L::Vector; WIDE] = std::array::from_fn(|place| L::load(start.add(place * L::COUNT)));
        let mut sums = [start; TALL];
        let (queries, panel) = (queries.as_ptr(), panel.as_ptr().cast::<f32>());
        for d in 0..dim {
            let (q, x) = (queries.add(d * ROWS + top), panel.add(d * COLUMNS + left));
            let items: [L::Vector; WIDE] = std::array::from_fn(|place| L::load(x.add(place * L::COUNT)));
            for (row, sums) in sums.iter_mut().enumerate() {
                let query = L::splat(*q.add(row));
                for (sum, &item) in sums.iter_mut().zip(&items) {
                    *sum = if DISTANCE {
                        let difference = L::sub(query, item);
                        L::fused_less(difference, difference, *sum)
                    } else {
                        L::fused(query, item, *sum)
                    };
                }
            }
        }
        sums
    }
}

/// The path without instructions of its own; also the definition that the others are tested against.
fn portable(form: Form, queries: &[f32], panel: &[Line], bias: &[Line; 2], out: &mut Tile) {
    for row in 0..ROWS {
        for column in 0..COLUMNS {
            let mut score = bias[column / LINE].0[column % LINE];
            for (d, q) in queries.chunks_exact(ROWS).enumerate() {
                let x = panel[2 * d + column / LINE].0[column % LINE];
                score = match form {
                    Form::Dot => q[row].mul_add(x, score),
                    Form::Distance => {
                        let difference = q[row] - x;
                        (-difference).mul_add(difference, score)
                    }
                };
            }
            out.0[row][column] = score;
        }
    }
}
