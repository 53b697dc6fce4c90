//! Tables in training.

use kdrs_core as core;
use numpy::{PyReadonlyArray2, PyReadwriteArray1, PyReadwriteArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::args::{Factors, Floats2, Ints64, Wide};
use crate::call::{kernels, Call};

/// Values and both moments of a table [rows, dim], changed in place.
type Table<'py> = (
    PyReadwriteArray2<'py, f32>,
    PyReadwriteArray2<'py, f32>,
    PyReadwriteArray2<'py, f32>,
);
/// Steps [N, 3] of rate, epsilon and decay, how many of them each row has taken, and whether the others are estimated.
type Ledger<'py> = (Factors<'py>, PyReadwriteArray1<'py, i32>, bool);

fn adam_step(numbers: &[f32]) -> core::AdamStep {
    core::AdamStep {
        rate: numbers[0],
        eps: numbers[1],
        weight_decay: numbers[2],
    }
}

fn adam_steps(ledger: &Ledger) -> PyResult<Vec<core::AdamStep>> {
    Ok(ledger.0.as_slice()?.chunks_exact(3).map(adam_step).collect())
}

fn table<'a>(call: &Call, arrays: &'a mut Table) -> PyResult<core::Table<'a>> {
    let dim = arrays.0.shape()[1];
    let (values, first, second) = (&mut arrays.0, &mut arrays.1, &mut arrays.2);
    call.check(core::Table::new(
        values.as_slice_mut()?,
        first.as_slice_mut()?,
        second.as_slice_mut()?,
        dim,
    ))
}

fn ledger<'a>(call: &Call, arrays: &'a mut Ledger, steps: &'a [core::AdamStep]) -> PyResult<core::Ledger<'a>> {
    call.check(core::Ledger::new(steps, arrays.1.as_slice_mut()?, arrays.2))
}

/// A table, what its rows owe, and its step.
type Trained<'py> = (Table<'py>, Ledger<'py>, [f32; 3]);

fn trained<'a>(call: &Call, given: &'a mut Trained, steps: &'a [core::AdamStep]) -> PyResult<core::Trained<'a>> {
    let (arrays, owed, step) = given;
    Ok(core::Trained {
        table: table(call, arrays)?,
        ledger: ledger(call, owed, steps)?,
        step: adam_step(step),
    })
}

fn asked<'a>(rows: &'a Ints64, ids: &'a Wide) -> PyResult<core::Asked<'a>> {
    Ok(core::Asked {
        users: rows.as_slice()?,
        width: ids.shape()[1],
        items: ids.as_slice()?,
    })
}

kernels! {
    fn adam_catch_up(arrays: Table<'py>, owed: Ledger<'py>) -> () |call| {
        let steps = adam_steps(&owed)?;
        let table = table(&call, &mut arrays)?;
        let ledger = ledger(&call, &mut owed, &steps)?;
        call.run(|exec| core::catch_up(exec, table, ledger))
    }

    fn adam_catch_up_rows(arrays: Table<'py>, owed: Ledger<'py>, rows: Ints64<'py>) -> () |call| {
        let rows = rows.as_slice()?;
        let steps = adam_steps(&owed)?;
        let table = table(&call, &mut arrays)?;
        let ledger = ledger(&call, &mut owed, &steps)?;
        call.run(|exec| core::catch_up_rows(exec, table, ledger, rows))
    }

    fn adam_step_rows(
        arrays: Table<'py>,
        owed: Ledger<'py>,
        rows: Ints64<'py>,
        gradients: Factors<'py>,
        step: [f32; 3],
    ) -> () |call| {
        let touched = core::Touched {
            rows: rows.as_slice()?,
            values: gradients.as_slice()?,
        };
        let steps = adam_steps(&owed)?;
        let table = table(&call, &mut arrays)?;
        let ledger = ledger(&call, &mut owed, &steps)?;
        call.run(|exec| core::step_rows(exec, table, ledger, touched, adam_step(&step)))
    }

    fn table_scores(
        users: (Table<'py>, Ledger<'py>),
        items: (Table<'py>, Ledger<'py>),
        rows: Ints64<'py>,
        ids: Wide<'py>,
    ) -> Floats2<'py> |call| {
        let (asked, shape) = (asked(&rows, &ids)?, [ids.shape()[0], ids.shape()[1]]);
        let (user_steps, item_steps) = (adam_steps(&users.1)?, adam_steps(&items.1)?);
        let users = (table(&call, &mut users.0)?, ledger(&call, &mut users.1, &user_steps)?);
        let items = (table(&call, &mut items.0)?, ledger(&call, &mut items.1, &item_steps)?);
        call.array(shape, |exec| core::table_scores(exec, users, items, asked))
    }

    fn score_step(
        users: Trained<'py>,
        items: Trained<'py>,
        rows: Ints64<'py>,
        ids: Wide<'py>,
        slopes: Factors<'py>,
    ) -> () |call| {
        let (asked, slopes) = (asked(&rows, &ids)?, slopes.as_slice()?);
        let (user_steps, item_steps) = (adam_steps(&users.1)?, adam_steps(&items.1)?);
        let users = trained(&call, &mut users, &user_steps)?;
        let items = trained(&call, &mut items, &item_steps)?;
        call.run(|exec| core::score_step(exec, users, items, asked, slopes))
    }

    fn bpr_step(
        users: Trained<'py>,
        items: Trained<'py>,
        rows: Ints64<'py>,
        positives: Ints64<'py>,
        negatives: PyReadonlyArray2<'py, i64>,
    ) -> f64 |call| {
        let pairs = core::Pairs {
            users: rows.as_slice()?,
            positives: positives.as_slice()?,
            width: negatives.shape()[1],
            negatives: negatives.as_slice()?,
        };
        let (user_steps, item_steps) = (adam_steps(&users.1)?, adam_steps(&items.1)?);
        let users = trained(&call, &mut users, &user_steps)?;
        let items = trained(&call, &mut items, &item_steps)?;
        call.run(|exec| core::bpr_step(exec, users, items, pairs))
    }
}
