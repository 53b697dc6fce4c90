//! Names packed end to end, found by a table of hashes.

use std::hash::{DefaultHasher, Hasher};

use crate::error::Error;
use crate::exec::Exec;
use crate::room::filled;

/// Names looked up by a thread at a time.
const STEP: usize = 1 << 12;
/// A slot without a name.
const FREE: i32 = -1;

/// Names in UTF-8 (or any bytes), one behind the other: name n lies at `ends[n]..ends[n + 1]`.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    bytes: &'a [u8],
    ends: &'a [i64],
}

impl<'a> Names<'a> {
    /// Names that were checked before: other ends give wrong names, never a crash.
    pub fn known(bytes: &'a [u8], ends: &'a [i64]) -> Self {
        Names { bytes, ends }
    }

    /// Refuses ends that do not ascend from 0 to the number of bytes.
    pub fn new(bytes: &'a [u8], ends: &'a [i64]) -> Result<Self, Error> {
        let ascending = ends.windows(2).all(|pair| pair[0] <= pair[1]);
        if ends.first() != Some(&0) || ends.last() != Some(&(bytes.len() as i64)) || !ascending {
            return Err(Error::Shape(format!(
                "the ends of names do not ascend from 0 to the number of bytes, {}",
                bytes.len()
            )));
        }
        if ends.len() > i32::MAX as usize {
            return Err(Error::Shape(format!("{} names do not fit int32 ids", ends.len() - 1)));
        }
        Ok(Names { bytes, ends })
    }

    pub fn count(&self) -> usize {
        self.ends.len().saturating_sub(1)
    }

    pub fn name(&self, place: usize) -> &'a [u8] {
        let end = |place: usize| self.ends.get(place).map_or(usize::MAX, |&end| end as usize);
        self.bytes.get(end(place)..end(place + 1)).unwrap_or_default()
    }

    /// A table for [`Names::places`]: places by hash, -1 where there is none, at most half full. Its layout may be another in the
    /// next version: it is made anew, never stored. An error that names the place of a name that came before.
    pub fn table(&self) -> Result<Vec<i32>, Error> {
        let mut slots = filled(FREE, (2 * self.count()).next_power_of_two().max(2), 1)?;
        for place in 0..self.count() {
            let slot = self.slot(&slots, self.name(place));
            if slots[slot] != FREE {
                return Err(Error::Twice {
                    first: slots[slot] as usize,
                    again: place,
                });
            }
            slots[slot] = place as i32;
        }
        Ok(slots)
    }

    /// The place of each of `wanted`, -1 for those that are none of these names; `table` is these names' own, or what is found
    /// means nothing.
    pub fn places(&self, exec: Exec, table: &[i32], wanted: Names) -> Result<Vec<i32>, Error> {
        if !table.len().is_power_of_two() {
            return Err(Error::Shape("the table is not one of these names".into()));
        }
        let mut out = filled(FREE, wanted.count(), 1)?;
        exec.for_work(wanted.bytes.len()).each(
            out.chunks_mut(STEP).enumerate(),
            || (),
            |(), (task, out)| {
                for (offset, out) in out.iter_mut().enumerate() {
                    *out = table[self.slot(table, wanted.name(task * STEP + offset))];
                }
                Ok(())
            },
        )?;
        Ok(out)
    }

    /// Where a name is in a table, or would be.
    fn slot(&self, table: &[i32], name: &[u8]) -> usize {
        let mut hasher = DefaultHasher::new();
        hasher.write(name);
        let (mask, first) = (table.len() - 1, hasher.finish() as usize);
        let probes = (0..table.len()).map(|step| first.wrapping_add(step) & mask);
        let fits = |&slot: &usize| table[slot] == FREE || self.name(table[slot] as usize) == name;
        probes.clone().find(fits).unwrap_or(first & mask)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(names: &[Vec<u8>]) -> (Vec<u8>, Vec<i64>) {
        let mut ends = vec![0];
        for name in names {
            ends.push(ends[ends.len() - 1] + name.len() as i64);
        }
        (names.concat(), ends)
    }

    proptest! {
        #[test]
        fn a_name_is_found_where_it_is(
            all in prop::collection::hash_set(prop::collection::vec(0u8..4, 0..6), 0..200),
            others in prop::collection::vec(prop::collection::vec(0u8..4, 0..6), 0..50),
        ) {
            let all: Vec<_> = all.into_iter().collect();
            let (bytes, ends) = packed(&all);
            let names = Names::new(&bytes, &ends).unwrap();
            let table = names.table().unwrap();
            let wanted: Vec<_> = others.iter().chain(&all).cloned().collect();
            let (bytes, ends) = packed(&wanted);
            let found = names.places(Exec::serial(), &table, Names::new(&bytes, &ends).unwrap()).unwrap();
            let expected: Vec<i32> = wanted
                .iter()
                .map(|name| all.iter().position(|other| other == name).map_or(-1, |place| place as i32))
                .collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_name_that_comes_twice_is_refused() {
        let (bytes, ends) = packed(&[b"a".to_vec(), b"b".to_vec(), b"a".to_vec()]);
        let found = Names::new(&bytes, &ends).unwrap().table();
        assert_eq!(found, Err(Error::Twice { first: 0, again: 2 }));
    }

    #[test]
    fn ends_must_ascend() {
        assert!(Names::new(b"ab", &[0, 3]).is_err());
        assert!(Names::new(b"ab", &[0, 2, 1, 2]).is_err());
        assert!(Names::new(b"ab", &[1, 2]).is_err());
        assert!(Names::new(b"ab", &[]).is_err());
        assert!(Names::new(b"", &[0]).unwrap().count() == 0);
    }
}
