//! Helper threads, kept between calls and never shared across a fork.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex};

use kdrs_core::{Error, Exec, SimdPath};
use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::raise;

#[derive(Default)]
struct Pools {
    pid: u32,
    by_helpers: HashMap<usize, Arc<ThreadPool>>,
}

static POOLS: Mutex<Option<Pools>> = Mutex::new(None);

/// `helpers` threads beside the caller, or none if they cannot be had.
///
/// A child of fork has the parent's bookkeeping but none of its threads, so pools carry the pid they were made in; the
/// parent's are forgotten, not dropped, since dropping would signal threads that do not exist. The lock is only tried:
/// a fork may have copied it in the locked state, and the calling thread alone gives the same result.
fn helpers(helpers: usize) -> Option<Arc<ThreadPool>> {
    if helpers == 0 {
        return None;
    }
    let mut guard = POOLS.try_lock().ok()?;
    let pid = std::process::id();
    if guard.as_ref().is_none_or(|pools| pools.pid != pid) {
        mem::forget(guard.replace(Pools {
            pid,
            by_helpers: HashMap::new(),
        }));
    }
    let pools = guard.as_mut()?;
    if let Some(pool) = pools.by_helpers.get(&helpers) {
        return Some(pool.clone());
    }
    let pool = ThreadPoolBuilder::new()
        .num_threads(helpers)
        .thread_name(|number| format!("kdrs-{number}"))
        .build()
        .ok()?;
    let pool = Arc::new(pool);
    pools.by_helpers.insert(helpers, pool.clone());
    Some(pool)
}

/// Runs `call` without the GIL on `threads` threads; Ctrl-C ends it.
pub fn run<T: Send>(
    py: Python,
    threads: usize,
    simd: SimdPath,
    call: impl FnOnce(Exec) -> Result<T, Error> + Send,
) -> PyResult<T> {
    let pool = helpers(threads.saturating_sub(1));
    let raised: Mutex<Option<PyErr>> = Mutex::new(None);
    let stop = || {
        Python::attach(|py| match py.check_signals() {
            Ok(()) => false,
            Err(error) => {
                *raised.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                true
            }
        })
    };
    let result = py.detach(|| {
        call(Exec {
            pool: pool.as_deref(),
            stop: Some(&stop),
            simd,
        })
    });
    let raised = raised.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    match (result, raised) {
        (_, Some(error)) => Err(error),
        (Ok(value), None) => Ok(value),
        (Err(error), None) => Err(raise(py, error)),
    }
}
