//! Ids packed end to end.

use kdrs_core as core;
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;

use crate::args::{Ints32, Ints64};
use crate::call::kernels;

type Bytes<'py> = PyReadonlyArray1<'py, u8>;
type Places<'py> = Bound<'py, PyArray1<i32>>;

kernels! {
    fn names_table(bytes: Bytes<'py>, ends: Ints64<'py>) -> Places<'py> |call| {
        let (bytes, ends) = (bytes.as_slice()?, ends.as_slice()?);
        let table = call.run(|_| core::Names::new(bytes, ends)?.table())?;
        Ok(table.into_pyarray(call.py))
    }

    fn names_places(
        bytes: Bytes<'py>,
        ends: Ints64<'py>,
        table: Ints32<'py>,
        wanted: Bytes<'py>,
        wanted_ends: Ints64<'py>,
    ) -> Places<'py> |call| {
        let names = core::Names::known(bytes.as_slice()?, ends.as_slice()?);
        let (table, wanted, ends) = (table.as_slice()?, wanted.as_slice()?, wanted_ends.as_slice()?);
        let places = call.run(|exec| names.places(exec, table, core::Names::new(wanted, ends)?))?;
        Ok(places.into_pyarray(call.py))
    }
}
