//! Work shared among threads, without the result ever depending on how.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::score::SimdPath;

/// How often the calling thread asks whether to stop.
const POLL_EVERY: Duration = Duration::from_millis(40);

/// Where a kernel runs: on the calling thread, and on the threads of `pool` beside it.
#[derive(Clone, Copy, Default)]
pub struct Exec<'a> {
    /// Helpers; `None` for the calling thread alone.
    pub pool: Option<&'a rayon::ThreadPool>,
    /// Asked on the calling thread between tasks of a long call; true stops the call.
    pub stop: Option<&'a (dyn Fn() -> bool + Sync)>,
    pub simd: SimdPath,
}

/// Numbers that must be read or written for helpers to be worth waking, which takes some 50 µs.
const WORTH_WAKING: usize = 1 << 18;

impl Exec<'_> {
    /// The calling thread alone.
    pub fn serial() -> Exec<'static> {
        Exec::default()
    }

    /// The same without helpers, if a call touches too few `numbers` to be worth waking them.
    pub fn for_work(self, numbers: usize) -> Self {
        match numbers {
            0..WORTH_WAKING => Exec { pool: None, ..self },
            _ => self,
        }
    }

    pub fn threads(&self) -> usize {
        1 + self.pool.map_or(0, rayon::ThreadPool::current_num_threads)
    }

    /// Runs `work` on every task, each thread with its own `scratch`. Tasks are handed out in order; of several errors
    /// the one of the earliest task is returned, so that it does not depend on timing either.
    pub fn each<T: Send, S>(
        &self,
        tasks: impl ExactSizeIterator<Item = T> + Send,
        scratch: impl Fn() -> S + Sync,
        work: impl Fn(&mut S, T) -> Result<(), Error> + Sync,
    ) -> Result<(), Error> {
        let count = tasks.len();
        let queue = Mutex::new(tasks.enumerate());
        let stopped = AtomicBool::new(false);
        let failure: Mutex<Option<(usize, Error)>> = Mutex::new(None);
        let fail = |place: usize, error: Error| {
            stopped.store(true, Ordering::Relaxed);
            let mut first = failure.lock().expect("no thread panics while it holds this lock");
            if first.as_ref().is_none_or(|(earlier, _)| place < *earlier) {
                *first = Some((place, error));
            }
        };
        let run = |poll: Option<&(dyn Fn() -> bool + Sync)>| {
            let mut scratch = scratch();
            let mut polled = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let next = queue.lock().expect("a task iterator does not panic").next();
                let Some((place, task)) = next else { break };
                if let Err(error) = work(&mut scratch, task) {
                    fail(place, error);
                }
                if let Some(stop) = poll {
                    if polled.elapsed() >= POLL_EVERY {
                        polled = Instant::now();
                        if stop() {
                            fail(usize::MAX, Error::Interrupted);
                        }
                    }
                }
            }
        };
        let run = &run;
        match self.pool {
            Some(pool) if count > 1 => pool.in_place_scope(|scope| {
                let home = processor();
                for _ in 0..pool.current_num_threads().min(count - 1) {
                    scope.spawn(move |_| {
                        leave(home);
                        run(None);
                    });
                }
                run(self.stop);
            }),
            _ => run(self.stop),
        }
        let failure = failure.into_inner().expect("no thread panics while it holds this lock");
        failure.map_or(Ok(()), |(_, error)| Err(error))
    }
}

/// Where this thread runs.
#[cfg(target_os = "linux")]
fn processor() -> Option<usize> {
    Some(rustix::thread::sched_getcpu())
}

/// Moves this thread off the processor `home`, if it is there and may be elsewhere.
///
/// Where all processors are busy a helper is woken on that of its caller, and the two share it: calls are shorter than
/// the time after which the system looks for a better place. It is told once, and stays where it went.
#[cfg(target_os = "linux")]
fn leave(home: Option<usize>) {
    use rustix::thread::{sched_getaffinity, sched_setaffinity, CpuSet};
    let Some(home) = home.filter(|&home| processor() == Some(home) && home < CpuSet::MAX_CPU) else {
        return;
    };
    let Ok(allowed) = sched_getaffinity(None) else {
        return;
    };
    let mut others = allowed;
    others.unset(home);
    if others.count() > 0 && sched_setaffinity(None, &others).is_ok() {
        // What was allowed a moment ago is allowed still; if not, the thread is where it may be.
        let _ = sched_setaffinity(None, &allowed);
    }
}

#[cfg(not(target_os = "linux"))]
fn processor() -> Option<usize> {
    None
}

#[cfg(not(target_os = "linux"))]
fn leave(_: Option<usize>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_error_wins() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let exec = Exec {
            pool: Some(&pool),
            ..Exec::default()
        };
        for _ in 0..200 {
            let result = exec.each(
                0..64usize,
                || (),
                |(), row| {
                    if row % 7 == 3 {
                        return Err(Error::SeenEverything { row, items: 1 });
                    }
                    Ok(())
                },
            );
            assert_eq!(result, Err(Error::SeenEverything { row: 3, items: 1 }));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn whoever_leaves_is_elsewhere_and_may_return() {
        use rustix::thread::sched_getaffinity;
        let allowed = sched_getaffinity(None).unwrap();
        for _ in 0..20 {
            let home = processor();
            leave(home);
            assert_eq!(sched_getaffinity(None).unwrap(), allowed);
        }
        leave(Some(1 << 20));
        assert_eq!(sched_getaffinity(None).unwrap(), allowed);
    }

    #[test]
    fn a_long_call_can_be_stopped() {
        let stop = || true;
        let exec = Exec {
            stop: Some(&stop),
            ..Exec::default()
        };
        let result = exec.each(
            0..1_000usize,
            || (),
            |(), _| {
                std::thread::sleep(Duration::from_millis(2));
                Ok(())
            },
        );
        assert_eq!(result, Err(Error::Interrupted));
    }
}
