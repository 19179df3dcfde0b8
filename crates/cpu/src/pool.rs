//! Worker threads that wait for work by spinning a little and then parking.
//!
//! A decode step is a few hundred launches of some ten microseconds each, so a launch must cost about one microsecond
//! while steps follow each other, and nothing while the program idles. Each worker has a share of the work, one range that it
//! takes in chunks, and then helps with the shares of others: a worker that has not woken by the time the last chunk is
//! taken is not waited for, so when another process holds its core, the rest go on without it.
//!
//! Shares are ranges because reading is fastest when each core reads one long run: two threads of an Intel Xeon that took
//! every other 64 KiB of 1 GiB read 28 GB/s, and 38 GB/s from a half each.

use std::{
    any::Any,
    cell::UnsafeCell,
    hint,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a waiter burns its core before it parks: longer than the gaps between the launches of one step.
const SPIN: Duration = Duration::from_micros(50);

/// A fixed number of workers, of which the thread that launches is one.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    launch: Mutex<()>,
    /// How much of each worker's share is taken
    taken: Box<[Taken]>,
}

/// In cache lines of its own (two, as they are fetched in pairs), because each worker writes one.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Taken(AtomicUsize);

impl Pool {
    /// A pool of `workers` (at least one); starts `workers − 1` threads.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(workers: usize) -> std::io::Result<Self> {
        let spins = thread::available_parallelism().is_ok_and(|cores| workers <= cores.get());
        let shared = Arc::new(Shared {
            ticket: AtomicU32::new(0),
            task: UnsafeCell::new(&|_| {}),
            start: Event::new(spins),
            done: Event::new(spins),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let taken = (0..workers).map(|_| Taken::default()).collect();
        let mut pool = Self { shared, threads: Vec::new(), launch: Mutex::new(()), taken };
        for worker in 1..workers {
            let shared = pool.shared.clone();
            pool.threads.push(thread::Builder::new().name(format!("ferrum-cpu-{worker}")).spawn(move || shared.work(worker))?);
        }
        Ok(pool)
    }

    /// How many threads may compute at once, the launching one included.
    pub fn workers(&self) -> usize {
        self.threads.len() + 1
    }

    /// Splits `0..total` into ranges of `chunk` (some may be shorter), calls `task(worker, range)` for each, neighbours on
    /// one worker as far as all keep up, and returns when all are done. No two calls with the same `worker` run at the same
    /// time.
    ///
    /// # Panics
    /// With the panic of a call. Calls that had not begun by then may not happen.
    pub fn chunks(&self, total: usize, chunk: usize, task: &(dyn Fn(usize, Range<usize>) + Sync)) {
        let (chunk, workers) = (chunk.max(1), self.workers());
        if workers == 1 || total <= chunk {
            (0..total).step_by(chunk).for_each(|start| task(0, start..(start + chunk).min(total)));
            return;
        }
        let share = total.div_ceil(chunk).div_ceil(workers) * chunk;
        let _one_at_a_time = lock(&self.launch);
        self.taken.iter().for_each(|t| t.0.store(0, Ordering::Relaxed));
        self.launch(&|worker| {
            for owner in (worker..workers).chain(0..worker) {
                let (first, end) = (owner * share, ((owner + 1) * share).min(total));
                loop {
                    let start = first + self.taken[owner].0.fetch_add(chunk, Ordering::Relaxed);
                    if start >= end {
                        break;
                    }
                    task(worker, start..(start + chunk).min(end));
                }
            }
        });
    }

    /// Calls `task(0)` here and `task(w)` on every worker that wakes up before that returns; waits for those that did.
    fn launch(&self, task: &Task<'_>) {
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. No worker is inside a task: the previous launch waited for the last one, and
        // the ticket has been closed since. So nothing reads the cell while it is written, and workers read it only
        // between joining and leaving this launch, all of which happens before this function returns.
        unsafe { *shared.task.get() = std::mem::transmute::<&Task<'_>, &'static Task<'static>>(task) };
        shared.ticket.store(OPEN, Ordering::Release);
        shared.start.advance();
        let mine = catch_unwind(AssertUnwindSafe(|| task(0)));
        shared.ticket.fetch_and(!OPEN, Ordering::AcqRel);
        loop {
            let seen = shared.done.now();
            if shared.ticket.load(Ordering::Acquire) == 0 {
                break;
            }
            shared.done.wait_change(seen);
        }
        let theirs = lock(&shared.panic).take();
        match (mine, theirs) {
            (Err(payload), _) | (_, Some(payload)) => resume_unwind(payload),
            (Ok(()), None) => {}
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.start.advance();
        for thread in self.threads.drain(..) {
            // A worker catches every panic of a task, so there is nothing to learn from the result.
            let _ = thread.join();
        }
    }
}

type Task<'a> = dyn Fn(usize) + Sync + 'a;

/// Set in the ticket while workers may join; the other bits count those inside.
const OPEN: u32 = 1 << 31;

struct Shared {
    ticket: AtomicU32,
    task: UnsafeCell<&'static Task<'static>>,
    start: Event,
    done: Event,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

// SAFETY: `task` is written only by the launching thread while no worker is inside (see `Pool::launch`); everything else
// is `Sync` by itself.
unsafe impl Sync for Shared {}
// SAFETY: as above; the task behind the reference is `Sync`.
unsafe impl Send for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shared(ticket {:#x})", self.ticket.load(Ordering::Relaxed))
    }
}

impl Shared {
    fn work(&self, worker: usize) {
        let mut seen = 0;
        loop {
            seen = self.start.wait_change(seen);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            if !self.join() {
                continue;
            }
            // SAFETY: this worker is counted in the ticket, so the launch that set the task is still waiting for it.
            let task = unsafe { *self.task.get() };
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| task(worker))) {
                *lock(&self.panic) = Some(payload);
            }
            if self.ticket.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.done.advance();
            }
        }
    }

    fn join(&self) -> bool {
        let enter = |t: u32| (t & OPEN != 0).then_some(t + 1);
        self.ticket.fetch_update(Ordering::AcqRel, Ordering::Relaxed, enter).is_ok()
    }
}

/// A counter that threads can wait on.
struct Event {
    count: AtomicU32,
    sleepers: AtomicU32,
    lock: Mutex<()>,
    wake: Condvar,
    spins: bool,
}

impl Event {
    fn new(spins: bool) -> Self {
        Self { count: AtomicU32::new(0), sleepers: AtomicU32::new(0), lock: Mutex::new(()), wake: Condvar::new(), spins }
    }

    fn now(&self) -> u32 {
        self.count.load(Ordering::SeqCst)
    }

    fn advance(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
        // A sleeper registers before it looks at the count, so either it is seen here or it sees the new count.
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _held = lock(&self.lock);
            self.wake.notify_all();
        }
    }

    /// Returns the count once it is no longer `seen`.
    fn wait_change(&self, seen: u32) -> u32 {
        if self.spins {
            let start = Instant::now();
            loop {
                for _ in 0..64 {
                    let now = self.now();
                    if now != seen {
                        return now;
                    }
                    hint::spin_loop();
                }
                if start.elapsed() > SPIN {
                    break;
                }
            }
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut held = lock(&self.lock);
        while self.now() == seen {
            held = self.wake.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        drop(held);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        self.now()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_runs_once() {
        for workers in [1, 2, 3, 8] {
            let pool = Pool::new(workers).unwrap();
            for (total, chunk) in [(0, 4), (1, 1), (7, 3), (1000, 1), (1000, 64)] {
                let hits: Vec<AtomicUsize> = (0..total).map(|_| AtomicUsize::new(0)).collect();
                pool.chunks(total, chunk, &|worker, range| {
                    assert!(worker < workers && range.len() <= chunk);
                    for n in range {
                        hits[n].fetch_add(1, Ordering::Relaxed);
                    }
                });
                assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1), "{workers} workers, {total} by {chunk}");
            }
        }
    }

    #[test]
    fn results_of_many_launches_are_seen_by_the_caller() {
        let pool = Pool::new(4).unwrap();
        let sum = AtomicUsize::new(0);
        for n in 0..20_000 {
            pool.chunks(4, 1, &|_, part| {
                sum.fetch_add(part.start, Ordering::Relaxed);
            });
            assert_eq!(sum.load(Ordering::Relaxed), 6 * (n + 1));
        }
    }

    #[test]
    fn parked_workers_wake() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..5 {
            thread::sleep(4 * SPIN);
            let hits = AtomicUsize::new(0);
            pool.chunks(2, 1, &|_, _| {
                hits.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(hits.into_inner(), 2);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        for bad in 0..3 {
            let caught = catch_unwind(AssertUnwindSafe(|| pool.chunks(3, 1, &|_, part| assert_ne!(part.start, bad, "planned"))));
            assert!(caught.unwrap_err().downcast_ref::<String>().unwrap().contains("planned"));
            let hits = AtomicUsize::new(0);
            pool.chunks(3, 1, &|_, _| {
                hits.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(hits.into_inner(), 3);
        }
    }
}
