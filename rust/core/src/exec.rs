//! Work shared among threads, without the result ever depending on how.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::simd::SimdPath;
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
    /// How many of them may help at most; all, without it.
    pub helpers: Option<usize>,
    /// Asked on the calling thread between tasks of a long call; true stops the call.
    pub stop: Option<&'a (dyn Fn() -> bool + Sync)>,
    pub simd: SimdPath,
}

/// Numbers that must be read or written for helpers to be worth waking, which takes some 50 µs.
pub(crate) const WORTH_WAKING: usize = 1 << 18;

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
        1 + self.team.map_or(0, |team| {
            self.helpers.map_or(team.threads(), |most| most.min(team.threads()))
        })
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
                let (home, here, subnormals) = (processor(), std::thread::current().id(), Subnormals::here());
                team.share((tasks - 1).min(self.threads() - 1), &|| {
                    let here = std::thread::current().id() == here;
                    if !here {
                        leave(home);
                        subnormals.take_over();
                    }
                    work(here);
                });
            }
            _ => work(true),
        }
    }
}

/// Whether this thread takes numbers below the normal ones as 0, which a training may ask of its thread: helpers must do as their
/// caller does, or results would depend on who does what.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Subnormals(u64);

impl Subnormals {
    fn here() -> Self {
        Subnormals(float_control() & FLUSHING)
    }

    fn take_over(self) {
        let now = float_control();
        if now & FLUSHING != self.0 {
            set_float_control(now & !FLUSHING | self.0);
        }
    }
}

/// MXCSR: results flushed to zero, and operands.
#[cfg(target_arch = "x86_64")]
const FLUSHING: u64 = 1 << 15 | 1 << 6;

#[cfg(target_arch = "x86_64")]
fn float_control() -> u64 {
    let mut control = 0u32;
    // SAFETY: stores the register's 32 bits.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut control, options(nostack, preserves_flags)) };
    u64::from(control)
}

#[cfg(target_arch = "x86_64")]
fn set_float_control(control: u64) {
    let control = control as u32;
    // SAFETY: loads what was stored, but for the two bits on subnormal numbers; rounding and exceptions stay as they were. Rust
    // gives no word for code that runs with these bits set, as the caller's does already, by torch's doing; no operation here is
    // folded or reordered by their value, and results differ by subnormal numbers alone.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const control, options(nostack, preserves_flags, readonly)) };
}

/// FPCR: flush to zero.
#[cfg(target_arch = "aarch64")]
const FLUSHING: u64 = 1 << 24;

#[cfg(target_arch = "aarch64")]
fn float_control() -> u64 {
    let control: u64;
    // SAFETY: reads the register.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) control, options(nomem, nostack, preserves_flags)) };
    control
}

#[cfg(target_arch = "aarch64")]
fn set_float_control(control: u64) {
    // SAFETY: writes what was read, but for the bit on subnormal numbers.
    unsafe { std::arch::asm!("msr fpcr, {}", in(reg) control, options(nomem, nostack, preserves_flags)) };
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const FLUSHING: u64 = 0;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn float_control() -> u64 {
    0
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn set_float_control(_: u64) {}

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

/// What `work` gives on every path of this machine, with one thread and with two: the same, or this panics.
#[cfg(test)]
pub(crate) fn the_same_everywhere<T: PartialEq + std::fmt::Debug>(work: impl Fn(Exec) -> T) -> T {
    let team = Team::new(2).expect("two threads");
    let mut first = None;
    for simd in SimdPath::NAMES.into_iter().filter_map(SimdPath::named) {
        for team in [None, Some(&team)] {
            let found = work(Exec {
                team,
                simd,
                ..Exec::default()
            });
            match &first {
                None => first = Some(found),
                Some(first) => assert_eq!(*first, found, "{}", simd.name()),
            }
        }
    }
    first.expect("there is a portable path")
}

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
    fn helpers_take_subnormal_numbers_as_their_caller_does() {
        let team = Team::new(2).unwrap();
        let exec = Exec {
            team: Some(&team),
            ..Exec::default()
        };
        let before = Subnormals::here();
        for flushing in [0, FLUSHING, 0] {
            Subnormals(flushing).take_over();
            let alike = AtomicUsize::new(0);
            let result = exec.each(
                0..64usize,
                || (),
                |(), _| {
                    std::thread::sleep(Duration::from_micros(100)); // so that helpers come in time
                    let half = std::hint::black_box(f32::MIN_POSITIVE) * std::hint::black_box(0.5);
                    let zero = half == 0.0;
                    alike.fetch_add(usize::from(zero == (flushing != 0)), Ordering::Relaxed);
                    Ok(())
                },
            );
            before.take_over();
            assert_eq!(result, Ok(()));
            assert_eq!(alike.into_inner(), 64);
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
