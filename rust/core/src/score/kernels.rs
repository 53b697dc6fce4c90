//! Which instructions to use: found out at run time, or forced.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T1};
use std::ops::Range;

use super::quantised::Catch;
use super::{portable, Form, Line, Matrix, Rows, Tile, COLUMNS, LINE, ROWS};
use crate::bfloat16::{self, Sums, Tiles};
use crate::dropout::Thin;
use crate::products::{self, Share};
use crate::relaxed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512, and tile registers for bytes.
    #[cfg(target_arch = "x86_64")]
    Amx,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

/// A path that this machine can run: no value of any other path can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimdPath(Path);

impl Default for SimdPath {
    fn default() -> Self {
        Self::best()
    }
}

impl SimdPath {
    pub const NAMES: [&'static str; 5] = ["amx", "avx512", "avx2", "neon", "portable"];

    /// The fastest path of this machine.
    pub fn best() -> Self {
        Self::NAMES
            .into_iter()
            .find_map(Self::named)
            .unwrap_or(SimdPath(Path::Portable))
    }

    /// The path of that name, if this machine has it.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "portable" => Some(SimdPath(Path::Portable)),
            #[cfg(target_arch = "x86_64")]
            "avx2" if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") => Some(SimdPath(Path::Avx2)),
            #[cfg(target_arch = "x86_64")]
            "avx512"
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("popcnt")
                    && is_x86_feature_detected!("bmi1")
                    && is_x86_feature_detected!("bmi2") =>
            {
                Some(SimdPath(Path::Avx512))
            }
            #[cfg(target_arch = "x86_64")]
            "amx" if Self::named("avx512").is_some_and(Self::has_bytes) && super::amx::available() => {
                Some(SimdPath(Path::Amx))
            }
            #[cfg(target_arch = "aarch64")]
            "neon" if std::arch::is_aarch64_feature_detected!("neon") => Some(SimdPath(Path::Neon)),
            _ => None,
        }
    }

    /// Whether [`SimdPath::scan_bytes`] can run.
    pub fn has_bytes(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.is_avx512() && is_x86_feature_detected!("avx512vnni");
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether bytes are multiplied in tile registers.
    pub fn has_tiles(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.0 == Path::Amx;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether bfloat16 numbers are multiplied in tile registers.
    pub fn has_bfloat16_tiles(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self.has_tiles() && super::amx::has_bfloat16();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether AVX2 and FMA can be used.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn has_avx2(self) -> bool {
        self.0 == Path::Avx2 || self.is_avx512()
    }

    #[cfg(target_arch = "x86_64")]
    pub(crate) fn is_avx512(self) -> bool {
        matches!(self.0, Path::Avx512 | Path::Amx)
    }

    pub fn name(self) -> &'static str {
        match self.0 {
            Path::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Path::Amx => "amx",
            #[cfg(target_arch = "aarch64")]
            Path::Neon => "neon",
        }
    }

    /// Scores of a query tile (`[dim][ROWS]`) and an item panel (`dim x COLUMNS`).
    #[inline]
    pub fn tile(self, form: Form, queries: &[f32], panel: &[Line], bias: &[Line; 2], out: &mut Tile) {
        assert_eq!(
            queries.len() * COLUMNS,
            panel.len() * LINE * ROWS,
            "tile and panel have one dim"
        );
        match self.0 {
            Path::Portable => portable::tile(form, queries, panel, bias, out),
            // SAFETY: a value of this path exists only if the processor has its features, and both operands hold dim
            // rows, as asserted.
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => unsafe { super::x86::tile_avx2(form, queries, panel, bias, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { super::x86::tile_avx512(form, queries, panel, bias, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Path::Neon => unsafe { super::neon::tile(form, queries, panel, bias, out) },
        }
    }

    /// A tile of products of which the first `columns` are asked for: it may leave the others as they are.
    #[inline]
    pub fn products_tile(self, queries: &[f32], panel: &[Line], bias: &[Line; 2], columns: usize, out: &mut Tile) {
        assert_eq!(
            queries.len() * COLUMNS,
            panel.len() * LINE * ROWS,
            "tile and panel have one dim"
        );
        if columns > LINE {
            return self.tile(Form::Dot, queries, panel, bias, out);
        }
        match self.0 {
            Path::Portable => portable::tile(Form::Dot, queries, panel, bias, out),
            // SAFETY: a value of this path exists only if the processor has its features, and both operands hold dim
            // rows, as asserted.
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => unsafe { super::x86::half_tile_avx2(queries, panel, bias, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { super::x86::half_tile_avx512(queries, panel, bias, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Path::Neon => unsafe { super::neon::half_tile(queries, panel, bias, out) },
        }
    }

    /// [`super::quantised::round`].
    #[inline]
    pub fn round(self, row: &[f32], inverse: f32, bytes: &mut [i8]) -> super::quantised::Rounded {
        match self.0 {
            // SAFETY: a value of this path exists only if the processor has its features; the function is safe code.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { super::x86::round_avx512(row, inverse, bytes) },
            _ => super::quantised::round(row, inverse, bytes),
        }
    }

    /// [`super::quantised::magnitude`].
    #[inline]
    pub fn magnitude(self, row: &[f32]) -> f32 {
        match self.0 {
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { super::x86::magnitude_avx512(row) },
            _ => super::quantised::magnitude(row),
        }
    }

    /// [`super::quantised::drop_seen`].
    #[inline]
    pub fn drop_seen(self, seen: &[u32], ids: &[i32], catch: &mut Catch) {
        match self.0 {
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { super::x86::drop_seen_avx512(seen, ids, catch) },
            _ => super::quantised::drop_seen(seen, ids, catch),
        }
    }

    /// [`super::quantised::reaching`].
    #[inline]
    pub fn reaching(self, catch: &Catch, low: Range<f32>, up: f32, out: &mut Vec<u32>) {
        match self.0 {
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { super::x86::reaching_avx512(catch, low, up, out) },
            _ => super::quantised::reaching(catch, low, up, out),
        }
    }

    /// [`super::quantised::nth`].
    #[inline]
    pub fn nth(self, values: &[u32], keep: usize) -> u32 {
        match self.0 {
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { super::x86::nth_avx512(values, keep) },
            _ => super::quantised::nth(values, keep),
        }
    }

    /// [`super::quantised::places`].
    #[inline]
    pub fn places(self, keys: &[u64], places: &mut [u32]) {
        match self.0 {
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { super::x86::places_avx512(keys, places) },
            _ => super::quantised::places(keys, places),
        }
    }

    /// [`crate::ranks::count`].
    #[inline]
    pub fn count(self, scores: &[f32], goal: f32) -> (i32, i32) {
        match self.0 {
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { super::x86::count_avx512(scores, goal) },
            _ => crate::ranks::count(scores, goal),
        }
    }

    /// [`crate::ranks::occurrences`].
    #[inline]
    pub fn occurrences(self, ids: &[i32], id: i32) -> i32 {
        match self.0 {
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { super::x86::occurrences_avx512(ids, id) },
            _ => crate::ranks::occurrences(ids, id),
        }
    }

    /// [`crate::ranks::within`].
    #[inline]
    pub fn within(self, ids: &[i32], items: usize) -> bool {
        match self.0 {
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { super::x86::within_avx512(ids, items) },
            _ => crate::ranks::within(ids, items),
        }
    }

    /// [`crate::weighted::choose`].
    #[inline]
    pub fn choose(self, clocks: &[u64], keep: usize, out: &mut [i32]) -> usize {
        match self.0 {
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { super::x86::choose_avx512(clocks, keep, out) },
            _ => crate::weighted::choose(clocks, keep, out),
        }
    }

    /// [`crate::weighted::clocks`].
    #[inline]
    pub fn clocks(self, row_key: u64, list: &[i32], inverse: &[f64], out: &mut [u64]) {
        match self.0 {
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { super::x86::clocks_avx512(row_key, list, inverse, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => unsafe { super::x86::clocks_avx2(row_key, list, inverse, out) },
            _ => crate::weighted::clocks(row_key, list, inverse, out),
        }
    }

    /// [`crate::discrepancy::tie`].
    #[inline]
    pub fn tie(self, order: &[u64]) -> Option<usize> {
        match self.0 {
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { super::x86::tie_avx512(order) },
            _ => crate::discrepancy::tie(order),
        }
    }

    /// [`crate::discrepancy::codes`].
    #[inline]
    pub fn codes(self, scores: &[f32], out: &mut [u32]) {
        match self.0 {
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { super::x86::codes_avx512(scores, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => unsafe { super::x86::codes_avx2(scores, out) },
            _ => crate::discrepancy::codes(scores, out),
        }
    }

    /// Scores of one query and the items `ids`, each of which must be a row of `items` (and have a bias, if there are
    /// any).
    pub fn dots(self, query: &[f32], items: Matrix, bias: Option<&[f32]>, ids: &[i32], out: &mut [f32]) {
        assert!(query.len() == items.dim && ids.len() == out.len());
        assert!(bias.is_none_or(|bias| bias.len() == items.rows));
        assert!(self.within(ids, items.rows.max(1)));
        match self.0 {
            Path::Portable => portable::dots(query, items, bias, ids, out),
            // SAFETY: a value of this path exists only if the processor has its features; the function is safe code.
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => unsafe { super::x86::dots_fma(query, items, bias, ids, out) },
            // SAFETY: as above, and ids are rows of the matrix, as asserted.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { super::x86::dots_avx512(query, items, bias, ids, out) },
            #[cfg(target_arch = "aarch64")]
            Path::Neon => portable::dots(query, items, bias, ids, out),
        }
    }

    /// Products of a vector with the rows `ids` of a table; false, and nothing done, if one of them is no row.
    #[inline]
    pub(crate) fn products(self, own: &[f32], table: Matrix, ids: &[i64], out: &mut [f32]) -> bool {
        assert!(own.len() == table.dim && ids.len() == out.len());
        if !products::within(ids, table.rows) {
            return false;
        }
        match self.0 {
            // SAFETY: a value of this path exists only if the processor has its features; the function is safe code.
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => unsafe { products::x86::products_fma(own, table, ids, out) },
            // SAFETY: as above, and ids are rows of the table, as just seen.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { products::x86::products_avx512(own, table, ids, out) },
            _ => products::products_portable(own, table, ids, out),
        }
        true
    }

    /// [`products::weighted_sums_portable`].
    pub(crate) fn weighted_sums(
        self,
        shares: &[Share],
        bounds: &[u32],
        matrix: Matrix,
        goals: products::Goals,
        out: &mut [f32],
    ) {
        assert!(bounds.is_sorted());
        let used = &shares[bounds[0] as usize..bounds[bounds.len() - 1] as usize];
        assert!(used
            .iter()
            .fold(true, |all, share| all & ((share.row as usize) < matrix.rows)));
        match self.0 {
            // SAFETY: a value of this path exists only if the processor has its features; the function is safe code.
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => unsafe { products::x86::weighted_sums_fma(shares, bounds, matrix, goals, out) },
            // SAFETY: as above, and the shares within the bounds are of rows of the matrix, as asserted.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe {
                products::x86::weighted_sums_avx512(shares, bounds, matrix, goals, out)
            },
            _ => products::weighted_sums_portable(shares, bounds, matrix, goals, out),
        }
    }

    /// [`crate::relaxed::row`].
    #[inline]
    pub(crate) fn relaxed(
        self,
        scores: &[f32],
        known: Option<&[bool]>,
        scratch: &mut relaxed::Scratch,
        gradient: &mut [f32],
    ) -> f32 {
        match self.0 {
            // SAFETY: a value of this path exists only if the processor has its features; the function is safe code.
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => unsafe { super::x86::relaxed_avx2(scores, known, scratch, gradient) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { super::x86::relaxed_avx512(scores, known, scratch, gradient) },
            _ => relaxed::row(scores, known, scratch, gradient),
        }
    }

    /// [`Thin::each`].
    pub(crate) fn dropout(self, thin: &Thin, out: &mut [f32], gate: Option<&[f32]>) {
        match self.0 {
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => unsafe { super::x86::dropout_avx2(thin, out, gate) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { super::x86::dropout_avx512(thin, out, gate) },
            _ => thin.each(out, gate),
        }
    }

    /// [`bfloat16::pack_left_rows`].
    pub(crate) fn pack_left(
        self,
        left: &impl Rows,
        rows: Range<usize>,
        columns: Range<usize>,
        depth: usize,
        tiles: &mut [Tiles],
    ) {
        match self.0 {
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { super::x86::pack_left_avx512(left, rows, columns, depth, tiles) },
            _ => bfloat16::pack_left_rows(left, rows, columns, depth, tiles),
        }
    }

    /// [`bfloat16::pack_right_rows`].
    pub(crate) fn pack_right(self, right: Matrix, first: usize, tiles: &mut [Tiles]) {
        match self.0 {
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 | Path::Amx => unsafe { super::x86::pack_right_avx512(right, first, tiles) },
            _ => bfloat16::pack_right_rows(right, first, tiles),
        }
    }

    /// Asks for tiles that will be needed soon.
    #[inline]
    pub(crate) fn prefetch(self, tiles: &[Tiles]) {
        #[cfg(target_arch = "x86_64")]
        for tile in tiles {
            for line in tile.0.as_flattened() {
                // SAFETY: every x86-64 processor has the instruction, which changes nothing but caches.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = tiles;
    }

    /// To be kept while [`SimdPath::tile_sums`] is called.
    pub(crate) fn tiles_ready(self) -> TilesReady {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a value of this path exists only if there are tile registers.
        return TilesReady(
            self.has_bfloat16_tiles()
                .then(|| unsafe { super::amx::Configured::whole() }),
        );
        #[cfg(not(target_arch = "x86_64"))]
        TilesReady
    }

    /// Adds `left · right` to a block of sums; `ready` is of this thread and of this path.
    pub(crate) fn tile_sums(self, ready: &TilesReady, left: &[Tiles], right: &[Tiles], sums: &mut Sums) {
        assert!(!left.is_empty() && left.len() == right.len());
        #[cfg(target_arch = "x86_64")]
        if ready.0.is_some() {
            // SAFETY: registers of the shapes that are needed are this thread's, for `ready` cannot leave it and nothing makes
            // another configuration while it lives; the factors are of one length, as just asserted.
            return unsafe { bfloat16::amx::tile_sums(left, right, sums) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = ready;
        bfloat16::portable::tile_sums(left, right, sums);
    }
}

/// Tile registers of a thread, where there are any, in the shapes that [`SimdPath::tile_sums`] needs.
#[cfg(target_arch = "x86_64")]
pub(crate) struct TilesReady(Option<super::amx::Configured>);
#[cfg(not(target_arch = "x86_64"))]
pub(crate) struct TilesReady;
