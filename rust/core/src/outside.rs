//! Items that are neither seen by a row nor on its list.

use crate::csr::Mask;
use crate::error::Error;
use crate::exec::Exec;
use crate::rng::{self, Stream};
use crate::room::filled;

const KERNEL: u64 = 4;

/// `n` distinct items for each row, uniform over those neither seen nor on the row's list: int32 `[rows, n]`, padded
/// with -1 where fewer exist.
///
/// Rejection against a bit a catalogue item; once that would reject more than half, the remaining items are listed and
/// dealt (Fisher and Yates), which has the same law.
pub fn outside(
    exec: Exec,
    items: usize,
    seen: Mask,
    lists: &[i32],
    rows: usize,
    n: usize,
    seed: u64,
) -> Result<Vec<i32>, Error> {
    let key = rng::key(seed, KERNEL);
    let mut out = filled(-1i32, rows, n)?;
    if out.is_empty() {
        return Ok(out);
    }
    let width = lists.len() / rows;
    let step = (16_384 / n.saturating_add(width + 64)).max(1);
    let scratch = || (vec![0u64; items.div_ceil(64)], Vec::new());
    exec.each(
        out.chunks_mut(step * n).enumerate(),
        scratch,
        |(bits, left): &mut (Vec<u64>, Vec<i32>), (task, out)| {
            for (offset, out) in out.chunks_mut(n).enumerate() {
                let row = task * step + offset;
                let seen = seen.of(row);
                let list = &lists[row * width..][..width];
                let mut excluded = 0;
                for &item in seen {
                    excluded += usize::from(set(bits, item, items, "seen", row)?);
                }
                for &item in list.iter().filter(|&&item| item != -1) {
                    excluded += usize::from(set(bits, item, items, "lists", row)?);
                }
                let available = items - excluded;
                let mut stream = Stream::of_row(key, row as u64);
                if available / 2 >= n && 2 * available >= items {
                    for slot in out.iter_mut() {
                        *slot = loop {
                            let item = stream.below(items as u64) as usize;
                            let (word, bit) = (item / 64, 1u64 << (item % 64));
                            if bits[word] & bit == 0 {
                                bits[word] |= bit;
                                break item as i32;
                            }
                        };
                    }
                    clear(bits, out);
                } else {
                    left.clear();
                    for (place, &word) in bits.iter().enumerate() {
                        let mut free = !word;
                        while free != 0 {
                            let item = place * 64 + free.trailing_zeros() as usize;
                            if item < items {
                                left.push(item as i32);
                            }
                            free &= free - 1;
                        }
                    }
                    for (place, slot) in out.iter_mut().take(available).enumerate() {
                        let other = place + stream.below((available - place) as u64) as usize;
                        left.swap(place, other);
                        *slot = left[place];
                    }
                }
                clear(bits, seen);
                clear(bits, list);
            }
            Ok(())
        },
    )?;
    Ok(out)
}

/// Sets an item's bit; true if it was clear.
#[inline]
fn set(bits: &mut [u64], item: i32, items: usize, what: &'static str, row: usize) -> Result<bool, Error> {
    if item < 0 || item as usize >= items {
        return Err(Error::ItemRange {
            what,
            row,
            item: i64::from(item),
            items,
        });
    }
    let (word, bit) = (item as usize / 64, 1u64 << (item % 64));
    let fresh = bits[word] & bit == 0;
    bits[word] |= bit;
    Ok(fresh)
}

#[inline]
fn clear(bits: &mut [u64], ids: &[i32]) {
    for &item in ids {
        if item >= 0 {
            bits[item as usize / 64] = 0;
        }
    }
}
