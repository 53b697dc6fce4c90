//! Helper threads, kept between calls and never shared across a fork.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex};

use kdrs_core::{Error, Exec, SimdPath, Team};
use pyo3::prelude::*;

use crate::error::raise;

#[derive(Default)]
struct Teams {
    pid: u32,
    by_helpers: HashMap<usize, Arc<Team>>,
}

static TEAMS: Mutex<Option<Teams>> = Mutex::new(None);

/// `helpers` threads beside the caller, or none if they cannot be had.
///
/// A child of fork has the parent's bookkeeping but none of its threads, so teams carry the pid they were made in; the
/// parent's are forgotten, not dropped, since dropping would signal threads that do not exist. The lock is only tried:
/// a fork may have copied it in the locked state, and the calling thread alone gives the same result.
fn helpers(helpers: usize) -> Option<Arc<Team>> {
    if helpers == 0 {
        return None;
    }
    let mut guard = TEAMS.try_lock().ok()?;
    let pid = std::process::id();
    if guard.as_ref().is_none_or(|teams| teams.pid != pid) {
        mem::forget(guard.replace(Teams {
            pid,
            by_helpers: HashMap::new(),
        }));
    }
    let teams = guard.as_mut()?;
    if let Some(team) = teams.by_helpers.get(&helpers) {
        return Some(team.clone());
    }
    let team = Arc::new(Team::new(helpers).ok()?);
    teams.by_helpers.insert(helpers, team.clone());
    Some(team)
}

/// Runs `call` without the GIL on `threads` threads; Ctrl-C ends it.
pub fn run<T: Send>(
    py: Python,
    threads: usize,
    simd: SimdPath,
    call: impl FnOnce(Exec) -> Result<T, Error> + Send,
) -> PyResult<T> {
    let team = helpers(threads.saturating_sub(1));
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
            team: team.as_deref(),
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
