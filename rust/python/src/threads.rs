//! Helper threads, kept between calls and never shared across a fork.

use std::mem;
use std::sync::{Arc, Mutex};

use kdrs_core::{Error, Exec, SimdPath, Team};
use pyo3::prelude::*;

use crate::error::raise;

#[derive(Default)]
struct Teams {
    pid: u32,
    team: Option<Arc<Team>>,
}

static TEAMS: Mutex<Option<Teams>> = Mutex::new(None);

/// At least `helpers` threads beside the caller, or fewer if they cannot be had: one team for all calls, in whose place a larger
/// one comes when it is asked for.
///
/// A child of fork has the parent's bookkeeping but none of its threads, so the team carries the pid they were made in; the
/// parent's are forgotten, not dropped, since dropping would signal threads that do not exist. The lock is only tried:
/// a fork may have copied it in the locked state, and the calling thread alone gives the same result.
fn helpers(helpers: usize) -> Option<Arc<Team>> {
    if helpers == 0 {
        return None;
    }
    let mut guard = TEAMS.try_lock().ok()?;
    let pid = std::process::id();
    if guard.as_ref().is_none_or(|teams| teams.pid != pid) {
        mem::forget(guard.replace(Teams { pid, team: None }));
    }
    let teams = guard.as_mut()?;
    if teams.team.as_ref().is_none_or(|team| team.threads() < helpers) {
        if let Ok(larger) = Team::new(helpers) {
            teams.team = Some(Arc::new(larger));
        }
    }
    teams.team.clone()
}

/// Runs `call` without the GIL on `threads` threads; Ctrl-C ends it.
pub fn run<T: Send>(
    py: Python,
    threads: usize,
    simd: SimdPath,
    call: impl FnOnce(Exec) -> Result<T, Error> + Send,
) -> PyResult<T> {
    let wanted = threads.saturating_sub(1);
    let team = helpers(wanted);
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
            helpers: Some(wanted),
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
