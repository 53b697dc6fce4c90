//! Memory for sizes that a caller names: an error where there is none, not the end of the process.

use std::alloc::{alloc_zeroed, Layout};

use crate::error::Error;

/// `rows` x `columns` times a value.
pub fn filled<T: Clone>(value: T, rows: usize, columns: usize) -> Result<Vec<T>, Error> {
    let len = rows.saturating_mul(columns);
    let mut values = Vec::new();
    reserve(&mut values, len)?;
    values.resize(len, value);
    Ok(values)
}

/// Room for `len` values more.
pub fn reserve<T>(values: &mut Vec<T>, len: usize) -> Result<(), Error> {
    values.try_reserve_exact(len).map_err(|_| Error::Memory {
        bytes: len.saturating_mul(size_of::<T>()),
    })
}

/// Refuses working memory of so many bytes that the machine does not give: before it is asked for piece by piece, where a refusal
/// would end the process.
pub fn probe(bytes: usize) -> Result<(), Error> {
    let mut room: Vec<u8> = Vec::new();
    reserve(&mut room, bytes)?;
    std::hint::black_box(&mut room); // or the compiler leaves the question out
    Ok(())
}

/// `rows` x `columns` zeros, which the system hands out without writing them.
pub fn zeros<T: Zero>(rows: usize, columns: usize) -> Result<Vec<T>, Error> {
    let len = rows.saturating_mul(columns);
    let refused = Error::Memory {
        bytes: len.saturating_mul(size_of::<T>()),
    };
    let Ok(layout) = Layout::array::<T>(len) else {
        return Err(refused);
    };
    if layout.size() == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the size is not 0.
    let first = unsafe { alloc_zeroed(layout) }.cast::<T>();
    if first.is_null() {
        return Err(refused);
    }
    // SAFETY: it was allocated, as vectors are, for `len` values, which all bits 0 make.
    Ok(unsafe { Vec::from_raw_parts(first, len, len) })
}

/// Numbers.
///
/// # Safety
/// All bits 0 are a value.
pub unsafe trait Zero {}

// SAFETY: integers and floats.
unsafe impl Zero for i32 {}
// SAFETY: as above.
unsafe impl Zero for f32 {}
// SAFETY: as above.
unsafe impl Zero for f64 {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_had_is_an_error() {
        for (rows, columns) in [
            (usize::MAX, 2),
            (1 << 62, 1),
            (1 << 31, 1 << 31),
            (usize::MAX, usize::MAX),
        ] {
            assert!(matches!(zeros::<i32>(rows, columns), Err(Error::Memory { .. })));
            assert!(matches!(filled(-1i32, rows, columns), Err(Error::Memory { .. })));
        }
        assert!(matches!(probe(usize::MAX), Err(Error::Memory { bytes: usize::MAX })));
        assert!(matches!(probe(1 << 60), Err(Error::Memory { .. })));
        assert_eq!(probe(1 << 20), Ok(()));
        assert_eq!(zeros::<f64>(3, 2), Ok(vec![0.0; 6]));
        assert_eq!(zeros::<f32>(0, 2), Ok(vec![]));
        assert_eq!(filled(-1i32, 2, 2), Ok(vec![-1; 4]));
    }
}
