//! Tables of codes: few bits a coordinate and one scale a row.

mod rotation;
mod rounding;
mod sums;

pub use rotation::{turned, Rotation};
pub use rounding::{packed, rounded, Rounded};

use crate::error::Error;
use crate::exec::Exec;
use crate::room::filled;
use crate::simd::{compiled, SimdPath};

/// More dimensions could take sums of products past 32 bits.
const MAX_DIM: usize = 1 << 16;
/// Codes that whole bytes hold, whatever their bits.
pub const EIGHT: usize = 8;
/// The pattern of eight bits that stands for no level.
const NO_LEVEL: u8 = 0x80;

/// A packed table, row-major. A row is `dim` codes of `bits` bits from the lowest bit of its first byte on, and ends with a whole
/// byte. A code c of 1 to 4 bits stands for the odd level 2 c - (2^bits - 1); eight bits are an integer from -127 to 127. The row is
/// its levels times its scale.
#[derive(Clone, Copy, Debug)]
pub struct Codes<'a> {
    data: &'a [u8],
    scales: &'a [f32],
    pub dim: usize,
    pub bits: usize,
}

impl<'a> Codes<'a> {
    /// Refuses sizes that do not go together, scales that are negative or not finite, and -128.
    pub fn new(exec: Exec, data: &'a [u8], scales: &'a [f32], dim: usize, bits: usize) -> Result<Self, Error> {
        check_kind(dim, bits)?;
        let rows = scales.len();
        if rows > i32::MAX as usize {
            return Err(Error::Shape(format!("{rows} rows do not fit int32 ids")));
        }
        let codes = Codes {
            data,
            scales,
            dim,
            bits,
        };
        if rows.checked_mul(codes.stride()) != Some(data.len()) {
            return Err(Error::Shape(format!(
                "{} bytes for {rows} rows of {dim} codes of {bits} bits",
                data.len()
            )));
        }
        if let Some(row) = scales.iter().position(|&scale| !(scale.is_finite() && scale >= 0.0)) {
            return Err(Error::BadScale {
                row,
                scale: scales[row],
            });
        }
        if bits == EIGHT && dim > 0 {
            const STEP: usize = 1 << 16;
            exec.each(
                data.chunks(STEP).enumerate(),
                || (),
                |(), (task, bytes)| match exec.simd.no_level(bytes) {
                    false => Ok(()),
                    true => {
                        let place = bytes.iter().position(|&byte| byte == NO_LEVEL).unwrap_or(0);
                        Err(Error::NoLevel {
                            row: (task * STEP + place) / dim,
                        })
                    }
                },
            )?;
        }
        Ok(codes)
    }

    pub fn rows(&self) -> usize {
        self.scales.len()
    }

    /// Bytes of a row.
    pub fn stride(&self) -> usize {
        (self.dim * self.bits).div_ceil(8)
    }

    /// Dimensions, and so many more that they are eights.
    pub fn padded(&self) -> usize {
        self.dim.next_multiple_of(EIGHT)
    }

    #[inline]
    pub fn bytes(&self, row: usize) -> &'a [u8] {
        &self.data[row * self.stride()..][..self.stride()]
    }

    #[inline]
    pub fn scale(&self, row: usize) -> f32 {
        self.scales[row]
    }

    pub fn scales(&self) -> &'a [f32] {
        self.scales
    }

    /// The levels of a row, and 0 after the last, into [`Codes::padded`] places.
    #[inline]
    pub fn levels(&self, simd: SimdPath, row: usize, out: &mut [i8]) {
        let (blocks, rest) = out.as_chunks_mut::<EIGHT>();
        assert!(blocks.len() * EIGHT == self.padded() && rest.is_empty());
        simd.unpack_levels(self.bits, self.bytes(row), blocks);
        out[self.dim..].fill(0);
    }

    /// The levels of all rows.
    pub fn unpacked(&self, exec: Exec) -> Result<Vec<i8>, Error> {
        const STEP: usize = 256;
        let mut out = filled(0i8, self.rows(), self.dim)?;
        if out.is_empty() {
            return Ok(out);
        }
        exec.for_work(out.len()).each(
            out.chunks_mut(STEP * self.dim).enumerate(),
            || vec![0; self.padded()],
            |levels, (task, out)| {
                for (offset, out) in out.chunks_mut(self.dim).enumerate() {
                    self.levels(exec.simd, task * STEP + offset, levels);
                    out.copy_from_slice(&levels[..out.len()]);
                }
                Ok(())
            },
        )?;
        Ok(out)
    }

    /// The sum of squares of a row's levels; `levels` is room for [`Codes::padded`] of them.
    pub fn squared(&self, simd: SimdPath, row: usize, levels: &mut [i8]) -> i32 {
        if self.bits == 1 {
            return self.dim as i32;
        }
        self.levels(simd, row, levels);
        simd.sum_squares(levels)
    }

    /// [`Codes::levels`] within compiled code; what lies past the last level is unspecified.
    #[inline(always)]
    pub fn levels_inline(&self, row: usize, out: &mut [[i8; EIGHT]]) {
        unpack_levels(self.bits, self.bytes(row), out);
    }

    /// The largest magnitude of a level.
    pub fn largest_level(&self) -> i32 {
        if self.bits == EIGHT {
            127
        } else {
            (1 << self.bits) - 1
        }
    }

    /// What a coordinate is at most.
    pub fn reach(&self) -> f64 {
        f64::from(self.scales.iter().copied().fold(0.0, f32::max)) * f64::from(self.largest_level())
    }
}

/// Refuses widths and dimensions that no table has.
pub fn check_kind(dim: usize, bits: usize) -> Result<(), Error> {
    if !matches!(bits, 1..=4 | 8) {
        return Err(Error::Shape(format!("codes of {bits} bits; allowed: 1, 2, 3, 4, 8")));
    }
    if dim > MAX_DIM {
        return Err(Error::Shape(format!(
            "codes of {dim} dimensions; allowed: up to {MAX_DIM}, whose sums fit 32 bits"
        )));
    }
    Ok(())
}

/// Refuses tables that do not go together and scores that would overflow.
pub fn check_codes(queries: Codes, items: Codes, bias: Option<&[f32]>) -> Result<(), Error> {
    if queries.dim != items.dim {
        return Err(Error::Shape(format!(
            "queries have dim {}, items {}",
            queries.dim, items.dim
        )));
    }
    let mut largest = 0.0f32;
    if let Some(bias) = bias {
        if bias.len() != items.rows() {
            return Err(Error::Shape(format!(
                "{} biases for {} items",
                bias.len(),
                items.rows()
            )));
        }
        for (row, &bias) in bias.iter().enumerate() {
            if !bias.is_finite() {
                return Err(Error::NotFinite { what: "bias", row });
            }
            largest = largest.max(bias.abs());
        }
    }
    check_code_scores(queries, items.reach(), largest)
}

/// Refuses queries whose scores would overflow with items of this [`Codes::reach`] and biases of this magnitude.
pub fn check_code_scores(queries: Codes, items: f64, bias: f32) -> Result<(), Error> {
    let reach = queries.reach();
    // The product of the scales alone is rounded to float32 too.
    if reach * items * queries.dim.max(1) as f64 + f64::from(bias) > f64::from(f32::MAX) / 2.0 {
        return Err(Error::Overflow {
            queries: reach as f32,
            items: items as f32,
            dim: queries.dim,
        });
    }
    Ok(())
}

compiled! {
    /// Levels of a row of codes; those past its last byte are unspecified.
    fn unpack_levels(bits: usize, bytes: &[u8], out: &mut [[i8; EIGHT]]) = unpack_levels;
    /// Codes of a row as unsigned bytes, those of eight bits as level + 128; as above.
    pub(crate) fn unpack_codes(bits: usize, bytes: &[u8], out: &mut [[u8; EIGHT]]) = unpack_codes;
    fn no_level(bytes: &[u8]) -> bool = no_level;
    fn sum_squares(levels: &[i8]) -> i32 = sum_squares;
}

#[inline(always)]
fn sum_squares(levels: &[i8]) -> i32 {
    levels.iter().map(|&level| i32::from(level) * i32::from(level)).sum()
}

#[inline(always)]
fn no_level(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |any, &byte| any | u8::from(byte == NO_LEVEL)) != 0
}

#[inline(always)]
fn unpack_levels(bits: usize, bytes: &[u8], out: &mut [[i8; EIGHT]]) {
    #[inline(always)]
    fn odd<const BITS: usize>(codes: [u8; EIGHT]) -> [i8; EIGHT] {
        codes.map(|code| 2 * code as i8 - ((1 << BITS) - 1))
    }
    match bits {
        1 => unpack::<1, i8>(bytes, out, odd::<1>),
        2 => unpack::<2, i8>(bytes, out, odd::<2>),
        3 => unpack::<3, i8>(bytes, out, odd::<3>),
        4 => unpack::<4, i8>(bytes, out, odd::<4>),
        _ => unpack::<8, i8>(bytes, out, |codes| codes.map(|code| code as i8)),
    }
}

#[inline(always)]
fn unpack_codes(bits: usize, bytes: &[u8], out: &mut [[u8; EIGHT]]) {
    match bits {
        1 => unpack::<1, u8>(bytes, out, |codes| codes),
        2 => unpack::<2, u8>(bytes, out, |codes| codes),
        3 => unpack::<3, u8>(bytes, out, |codes| codes),
        4 => unpack::<4, u8>(bytes, out, |codes| codes),
        _ => unpack::<8, u8>(bytes, out, |codes| codes.map(|code| code ^ NO_LEVEL)),
    }
}

/// Eight codes lie in BITS bytes.
#[inline(always)]
fn unpack<const BITS: usize, T>(bytes: &[u8], out: &mut [[T; EIGHT]], then: impl Fn([u8; EIGHT]) -> [T; EIGHT]) {
    let (whole, rest) = bytes.as_chunks::<BITS>();
    let (first, last) = out.split_at_mut(whole.len().min(out.len()));
    for (bytes, out) in whole.iter().zip(first) {
        *out = then(spread::<BITS>(bytes));
    }
    if let (Some(out), [_, ..]) = (last.first_mut(), rest) {
        let mut bytes = [0; BITS];
        bytes[..rest.len()].copy_from_slice(rest);
        *out = then(spread::<BITS>(&bytes));
    }
}

/// Eight codes as bytes: halved three times, the upper half of each part moves to the upper half of its place.
#[inline(always)]
fn spread<const BITS: usize>(bytes: &[u8; BITS]) -> [u8; EIGHT] {
    let mut eight = [0; EIGHT];
    eight[..BITS].copy_from_slice(bytes);
    if BITS == EIGHT {
        return eight;
    }
    let mut word = u64::from_le_bytes(eight);
    let part = |codes: usize| (1u64 << (codes * BITS)) - 1;
    word = (word | word << (32 - 4 * BITS)) & (part(4) * 0x1_0000_0001);
    word = (word | word << (16 - 2 * BITS)) & (part(2) * 0x1_0001_0001_0001);
    word = (word | word << (8 - BITS)) & (part(1) * 0x101_0101_0101_0101);
    word.to_le_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Codes bit by bit.
    fn packed(bits: usize, codes: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0u8; (codes.len() * bits).div_ceil(8)];
        for (place, code) in codes.iter().enumerate() {
            for bit in 0..bits {
                let at = place * bits + bit;
                bytes[at / 8] |= (code >> bit & 1) << (at % 8);
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn levels_are_those_that_were_packed(
            bits in prop::sample::select(vec![1usize, 2, 3, 4, 8]),
            codes in prop::collection::vec(any::<u8>(), 0..70),
            ones in any::<bool>(),
        ) {
            let codes: Vec<u8> = codes
                .into_iter()
                .map(|code| if bits == 8 { code.max(1) ^ 0x80 } else { code & ((1 << bits) - 1) })
                .collect();
            let mut data = packed(bits, &codes);
            if ones && !(codes.len() * bits).is_multiple_of(8) {
                // Bits past the last code mean nothing.
                *data.last_mut().unwrap() |= 0xFF << (codes.len() * bits % 8);
            }
            let expected: Vec<i8> = codes
                .iter()
                .map(|&code| if bits == 8 { code as i8 } else { 2 * code as i8 - ((1 << bits) - 1) })
                .collect();
            for simd in SimdPath::NAMES.into_iter().filter_map(SimdPath::named) {
                let exec = Exec { simd, ..Exec::serial() };
                let table = Codes::new(exec, &data, &[1.0], codes.len(), bits).unwrap();
                let mut levels = vec![7i8; table.padded()];
                table.levels(simd, 0, &mut levels);
                prop_assert_eq!(&levels[..codes.len()], &expected[..]);
                prop_assert!(levels[codes.len()..].iter().all(|&level| level == 0));
            }
        }
    }

    #[test]
    fn what_is_no_table_is_refused() {
        let exec = Exec::serial();
        assert!(matches!(Codes::new(exec, &[0; 3], &[1.0], 3, 5), Err(Error::Shape(_))));
        assert!(matches!(Codes::new(exec, &[0; 3], &[1.0], 2, 8), Err(Error::Shape(_))));
        assert!(matches!(
            Codes::new(exec, &[], &[], MAX_DIM + 1, 1),
            Err(Error::Shape(_))
        ));
        assert_eq!(
            Codes::new(exec, &[0, 1, 128, 3], &[1.0, 1.0], 2, 8).err(),
            Some(Error::NoLevel { row: 1 })
        );
        for scale in [-1.0, f32::NAN, f32::INFINITY] {
            let refused = Codes::new(exec, &[0, 0], &[1.0, scale], 8, 1).err();
            assert!(matches!(refused, Some(Error::BadScale { row: 1, .. })));
        }
    }
}
