//! Helper threads that a call borrows, and does not wait for if they come late.

use std::any::Any;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a helper that has nothing to do looks for more before it sleeps: steps of a training follow each other closely,
/// and to wake a thread takes longer than many of them.
const LOOKS_FOR: Duration = Duration::from_micros(60);

/// Threads that wait for work. Several callers may share them.
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    board: Mutex<Board>,
    posted: Condvar,
    /// Jobs posted so far, changed under the board's lock; to be looked at without it.
    count: AtomicU64,
}

#[derive(Default)]
struct Board {
    jobs: Vec<Arc<Job>>,
    closed: bool,
}

struct Job {
    work: Work,
    /// Helpers that may still join; changed under the board's lock only.
    places: AtomicUsize,
    /// Helpers at work.
    inside: AtomicUsize,
    left: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// What helpers run, as long as its caller is in `Team::share`.
struct Work(*const (dyn Fn() + Sync));

// SAFETY: what it points to is Sync, and `Team::share` does not return before all who run it have left.
unsafe impl Send for Work {}
// SAFETY: as above.
unsafe impl Sync for Work {}

impl Team {
    pub fn new(threads: usize) -> std::io::Result<Team> {
        let mut team = Team {
            shared: Arc::default(),
            threads: Vec::with_capacity(threads),
        };
        for number in 0..threads {
            let shared = team.shared.clone();
            let builder = std::thread::Builder::new().name(format!("kdrs-{number}"));
            team.threads.push(builder.spawn(move || shared.help())?);
        }
        Ok(team)
    }

    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Runs `work` here and, at the same time, on as many helpers as come before it ends here; at most `helpers`.
    ///
    /// Those who have begun are waited for. A panic of theirs is passed on.
    pub fn share(&self, helpers: usize, work: &(dyn Fn() + Sync)) {
        // SAFETY: the lifetime alone is forgotten; the job is taken down and everybody has left it before this returns.
        let work_forever: *const (dyn Fn() + Sync) =
            unsafe { std::mem::transmute::<&(dyn Fn() + Sync), &'static (dyn Fn() + Sync)>(work) };
        let helpers = helpers.min(self.threads());
        let job = Arc::new(Job {
            work: Work(work_forever),
            places: AtomicUsize::new(helpers),
            inside: AtomicUsize::new(0),
            left: Condvar::new(),
            panic: Mutex::new(None),
        });
        let mut board = self.shared.board();
        board.jobs.push(job.clone());
        self.shared.count.fetch_add(1, Ordering::Release);
        drop(board);
        if helpers == self.threads() {
            self.shared.posted.notify_all();
        } else {
            for _ in 0..helpers {
                self.shared.posted.notify_one();
            }
        }
        let posted = Posted {
            shared: &self.shared,
            job: &job,
        };
        work();
        drop(posted);
        let panic = lock(&job.panic).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        let mut board = self.shared.board();
        board.closed = true;
        self.shared.count.fetch_add(1, Ordering::Release);
        drop(board);
        self.shared.posted.notify_all();
        for thread in self.threads.drain(..) {
            // A helper's panics are its callers'.
            let _ = thread.join();
        }
    }
}

/// A job on the board; taken down at the end, also by a panic.
struct Posted<'a> {
    shared: &'a Shared,
    job: &'a Arc<Job>,
}

impl Drop for Posted<'_> {
    fn drop(&mut self) {
        let mut board = self.shared.board();
        board.jobs.retain(|job| !Arc::ptr_eq(job, self.job));
        drop(board);
        // Nobody joins any more. Whoever is inside mostly leaves within moments.
        spin_until(|| self.job.inside.load(Ordering::Acquire) == 0, LOOKS_FOR);
        let mut board = self.shared.board();
        while self.job.inside.load(Ordering::Acquire) > 0 {
            board = self.job.left.wait(board).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    fn board(&self) -> MutexGuard<'_, Board> {
        lock(&self.board)
    }

    /// The life of a helper.
    fn help(&self) {
        let mut board = self.board();
        loop {
            let mut looked = false;
            let job = loop {
                if board.closed {
                    return;
                }
                let open = board.jobs.iter().find(|job| job.places.load(Ordering::Relaxed) > 0);
                if let Some(job) = open {
                    job.places.fetch_sub(1, Ordering::Relaxed);
                    job.inside.fetch_add(1, Ordering::Relaxed);
                    break job.clone();
                }
                if looked {
                    board = self.posted.wait(board).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
                looked = true;
                let seen = self.count.load(Ordering::Relaxed);
                drop(board);
                spin_until(|| self.count.load(Ordering::Relaxed) != seen, LOOKS_FOR);
                board = self.board();
            };
            drop(board);
            // SAFETY: the job counts this thread as inside, and its caller stays in `share` until it has left.
            let work = unsafe { &*job.work.0 };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
                lock(&job.panic).get_or_insert(panic);
            }
            board = self.board();
            job.inside.fetch_sub(1, Ordering::Release);
            job.left.notify_one();
        }
    }
}

/// A lock whose data is whole even if its holder panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks again and again whether something has happened, for some time; whether it has.
pub(crate) fn spin_until(happened: impl Fn() -> bool, time: Duration) -> bool {
    let begun = Instant::now();
    loop {
        for _ in 0..16 {
            if happened() {
                return true;
            }
            std::hint::spin_loop();
        }
        if begun.elapsed() > time {
            return happened();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_run_here_and_by_no_more_helpers_than_asked_for() {
        let team = Team::new(3).unwrap();
        for helpers in [0, 1, 2, 3, 9] {
            for _ in 0..300 {
                let here = std::thread::current().id();
                let (ran, by_caller) = (AtomicUsize::new(0), AtomicUsize::new(0));
                team.share(helpers, &|| {
                    ran.fetch_add(1, Ordering::Relaxed);
                    if std::thread::current().id() == here {
                        by_caller.fetch_add(1, Ordering::Relaxed);
                    }
                });
                assert_eq!(by_caller.into_inner(), 1);
                assert!((1..=1 + helpers.min(3)).contains(&ran.into_inner()));
            }
        }
    }

    #[test]
    fn callers_share_a_team() {
        let team = Team::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let next = AtomicUsize::new(0);
                        team.share(2, &|| {
                            while next.fetch_add(1, Ordering::Relaxed) < 50 {
                                sum.fetch_add(1, Ordering::Relaxed);
                            }
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 200 * 50);
    }

    #[test]
    fn panics_come_to_the_caller_and_the_team_works_on() {
        let team = Team::new(1).unwrap();
        let here = std::thread::current().id();
        for of_helper in [true, false] {
            let came = AtomicUsize::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                team.share(1, &|| {
                    if (std::thread::current().id() != here) == of_helper {
                        came.fetch_add(1, Ordering::Release);
                        panic!("on purpose");
                    }
                    if of_helper {
                        spin_until(|| came.load(Ordering::Acquire) > 0, Duration::from_secs(20));
                    }
                });
            }));
            assert!(result.is_err());
        }
        let ran = AtomicUsize::new(0);
        team.share(1, &|| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert!(ran.into_inner() >= 1);
    }
}
