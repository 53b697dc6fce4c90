//! Work shared among threads, without the result ever depending on how.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::score::SimdPath;
use crate::team::{spin_until, Team};

/// How often the calling thread asks whether to stop.
const POLL_EVERY: Duration = Duration::from_millis(40);

/// How long a thread looks whether the others have ended a stage before it sleeps.
const PATIENCE: Duration = Duration::from_micros(40);

/// Where a kernel runs: on the calling thread, and on those of `team` beside it that are there in time.
#[derive(Clone, Copy, Default)]
pub struct Exec<'a> {
    /// Helpers; `None` for the calling thread alone.
    pub team: Option<&'a Team>,
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
            0..WORTH_WAKING => Exec { team: None, ..self },
            _ => self,
        }
    }

    pub fn threads(&self) -> usize {
        1 + self.team.map_or(0, Team::threads)
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
        let run = |here: bool| {
            let poll = self.stop.filter(|_| here);
            let mut own = None;
            let mut polled = Instant::now();
            let _stops = StopsOnPanic(&stopped); // or the others would do all that is left
            while !stopped.load(Ordering::Relaxed) {
                let next = queue.lock().expect("a task iterator does not panic").next();
                let Some((place, task)) = next else { break };
                if let Err(error) = work(own.get_or_insert_with(&scratch), task) {
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
        self.share(count, &run);
        let failure = failure.into_inner().expect("no thread panics while it holds this lock");
        failure.map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Runs `work(scratch, stage, task)` for `tasks[stage]` tasks of every stage; a stage begins when the one before has ended.
    ///
    /// For calls too short to wake helpers for every stage: they come once and stay to the end.
    pub fn stages<S>(
        &self,
        tasks: &[usize],
        scratch: impl Fn() -> S + Sync,
        work: impl Fn(&mut S, usize, usize) + Sync,
    ) {
        let stages: Vec<Stage> = tasks
            .iter()
            .map(|&count| Stage {
                count,
                next: AtomicUsize::new(0),
                done: AtomicUsize::new(0),
            })
            .collect();
        let gate = (Mutex::new(()), Condvar::new());
        let run = |_| {
            let mut scratch = scratch();
            for (number, stage) in stages.iter().enumerate() {
                loop {
                    let task = stage.next.fetch_add(1, Ordering::Relaxed);
                    if task >= stage.count {
                        break;
                    }
                    let _task = Task { stage, gate: &gate };
                    work(&mut scratch, number, task);
                }
                if !spin_until(|| stage.has_ended(), PATIENCE) {
                    let mut guard = gate.0.lock().expect("nobody panics while holding it");
                    while !stage.has_ended() {
                        guard = gate.1.wait(guard).expect("nobody panics while holding it");
                    }
                }
            }
        };
        self.share(tasks.iter().copied().max().unwrap_or(0), &run);
    }

    /// Runs `work` here (true) and on helpers (false), where there is more than one of `tasks`.
    fn share(&self, tasks: usize, work: &(dyn Fn(bool) + Sync)) {
        match self.team {
            Some(team) if tasks > 1 => {
                let (home, here) = (processor(), std::thread::current().id());
                team.share(tasks - 1, &|| {
                    let here = std::thread::current().id() == here;
                    if !here {
                        leave(home);
                    }
                    work(here);
                });
            }
            _ => work(true),
        }
    }
}

struct StopsOnPanic<'a>(&'a AtomicBool);

impl Drop for StopsOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Tasks of a stage.
struct Stage {
    count: usize,
    next: AtomicUsize,
    done: AtomicUsize,
}

impl Stage {
    fn has_ended(&self) -> bool {
        self.done.load(Ordering::Acquire) == self.count
    }
}

/// Counts a task as done when it is dropped, also by a panic: nobody must wait for it forever.
struct Task<'a> {
    stage: &'a Stage,
    gate: &'a (Mutex<()>, Condvar),
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        if self.stage.done.fetch_add(1, Ordering::AcqRel) + 1 == self.stage.count {
            let (lock, ended) = self.gate;
            drop(lock.lock());
            ended.notify_all();
        }
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
        let team = Team::new(3).unwrap();
        let exec = Exec {
            team: Some(&team),
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

    #[test]
    fn a_stage_sees_all_of_the_one_before() {
        let team = Team::new(2).unwrap();
        for team in [None, Some(&team)] {
            let exec = Exec {
                team,
                ..Exec::default()
            };
            for _ in 0..200 {
                let tasks = [7, 0, 1, 30];
                let counts: [AtomicUsize; 4] = Default::default();
                exec.stages(
                    &tasks,
                    || (),
                    |(), stage, task| {
                        assert!(task < tasks[stage]);
                        for (before, count) in counts.iter().take(stage).enumerate() {
                            assert_eq!(count.load(Ordering::Relaxed), tasks[before]);
                        }
                        counts[stage].fetch_add(1, Ordering::Relaxed);
                    },
                );
                assert_eq!(counts.map(AtomicUsize::into_inner), tasks);
            }
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
