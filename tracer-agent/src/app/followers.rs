//! The thread that attaches probes to what processes run, so that the kernel side knows what their calls
//! are made for.
//!
//! In: processes that start, serve with an event loop, and end. Out: of which kind a process is from
//! now on. Attaching takes milliseconds to seconds, all the longer while another agent's hooks go: never
//! on the capture thread, which would hear of new programs late.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};
use tracer_common::abi::kind_of_process as kind;

use super::AppError;
use crate::discover::Runtime;
use crate::meta::ProcFs;
use crate::probes::{Follower, immediate};

/// Processes that may wait for the thread; calls of more of them have no parents.
const MOST: usize = 4096;
/// Jobs that may wait if they are ends of processes; of more of them the next look at all processes finds out.
const MOST_ENDS: usize = 4 * MOST;
/// Time between such looks: an end may also have been lost on its way here.
const SWEEP: Duration = Duration::from_secs(60);
/// Longest wait for those that run already.
const LONGEST: Duration = Duration::from_secs(15);

/// Device and inode number.
type FileId = (u64, u64);

enum Job {
    /// A process runs this from now on.
    Program(u32, Runtime, FileId),
    /// It may serve with tokio later.
    Foresee(u32),
    /// It serves with an event loop.
    Tasks(u32, Runtime),
    /// Waits and wakes of its threads are to be seen.
    Wakes(u32, Runtime),
    /// Nobody of it will be believed again: what shows its waits and wakes is not needed.
    LetGo(u32),
    /// It serves, and may have executors by now.
    Pools(u32),
    /// It ended, or runs something else.
    Forget(u32),
}

/// The kind of a process, with the number of the question; `None` if nothing was found out.
type Answer = (u32, u64, Option<u32>);

/// What was asked and is not answered: an answer about what a process ran before is none.
#[derive(Debug, Default)]
struct Questions {
    /// By process the last one.
    asked: FxHashMap<u32, u64>,
    last: u64,
}

impl Questions {
    /// A new one about a process; its number is never 0.
    fn ask(&mut self, tgid: u32) -> u64 {
        self.last += 1;
        self.asked.insert(tgid, self.last);
        self.last
    }

    /// Nobody wants to know any more.
    fn forget(&mut self, tgid: u32) {
        self.asked.remove(&tgid);
    }

    /// True if this is the answer that is waited for.
    fn answered(&mut self, tgid: u32, number: u64) -> bool {
        let wanted = self.asked.get(&tgid) == Some(&number);
        if wanted {
            self.asked.remove(&tgid);
        }
        wanted
    }
}

/// What was not done, for the metrics.
#[derive(Debug, Default)]
struct Undone {
    queue_full: AtomicU64,
    table_full: AtomicU64,
    end_later: AtomicU64,
}

/// The capture thread's end.
pub struct Followers {
    jobs: Sender<(u64, Job)>,
    answers: Receiver<Answer>,
    waiting: Arc<AtomicUsize>,
    undone: Arc<Undone>,
    questions: Questions,
    /// Processes with [`Job::Wakes`].
    woken: FxHashSet<u32>,
    /// Processes that ended, or run something else, while too much waited to say so.
    ends: FxHashSet<u32>,
}

impl Followers {
    /// Starts the thread, which ends with this.
    pub fn start(follower: Follower, proc: ProcFs) -> Result<Self, AppError> {
        let (jobs, to_do) = channel();
        let (answer, answers) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let done = Arc::clone(&waiting);
        let undone = Arc::new(Undone::default());
        let told = Arc::clone(&undone);
        std::thread::Builder::new()
            .name("followers".into())
            .spawn(move || {
                let mut worker = Worker { follower, proc };
                let mut swept = Instant::now();
                loop {
                    let wait = SWEEP.saturating_sub(swept.elapsed());
                    if wait.is_zero() {
                        worker.follower.sweep(&worker.proc);
                        swept = Instant::now();
                        continue;
                    }
                    let (number, job) = match to_do.recv_timeout(wait) {
                        Ok(job) => job,
                        Err(RecvTimeoutError::Timeout) => continue,
                        Err(RecvTimeoutError::Disconnected) => break,
                    };
                    let answered = worker.work(job).map(|(tgid, kind)| (tgid, number, kind));
                    // The receiver is gone only when the agent is ending.
                    let heard = answered.is_none_or(|answered| answer.send(answered).is_ok());
                    let left_out = worker.follower.left_out();
                    told.table_full.store(left_out, Ordering::Relaxed);
                    done.fetch_sub(1, Ordering::Release);
                    if !heard {
                        break;
                    }
                }
            })
            .map_err(|error| AppError::Start("start the thread that follows programs", error))?;
        Ok(Followers {
            jobs,
            answers,
            waiting,
            undone,
            questions: Questions::default(),
            woken: FxHashSet::default(),
            ends: FxHashSet::default(),
        })
    }

    /// A process runs this from now on; `exe` says which file its program is. Returns its kind, if that is known at
    /// once; else it is an answer later.
    pub fn program(
        &mut self,
        tgid: u32,
        runtime: Runtime,
        exe: impl FnOnce() -> Option<FileId>,
    ) -> Option<u32> {
        self.questions.forget(tgid);
        let known = immediate(runtime);
        if self.is_full() {
            return known;
        }
        if runtime == Runtime::Rust {
            self.send(0, Job::Foresee(tgid));
        }
        // Asked here: by the time that it is opened the process may run something else.
        if known.is_none()
            && let Some(exe) = exe()
        {
            let number = self.questions.ask(tgid);
            self.send(number, Job::Program(tgid, runtime, exe));
        }
        known
    }

    /// A process serves with an event loop: its kind is an answer later. False if it has to be asked again.
    pub fn tasks(&mut self, tgid: u32, runtime: Runtime) -> bool {
        if self.is_full() {
            return false;
        }
        let number = self.questions.ask(tgid);
        self.send(number, Job::Tasks(tgid, runtime));
        true
    }

    /// Threads of a process may work for others by now: told now and then.
    pub fn pools(&mut self, tgid: u32, runtime: Runtime) {
        let is_python = runtime == Runtime::Python;
        if (!is_python && self.woken.contains(&tgid)) || self.is_full() {
            return;
        }
        if is_python {
            self.send(0, Job::Pools(tgid));
        } else {
            self.wakes(tgid, runtime);
        }
    }

    /// Threads of a process were seen to work for others: told any number of times.
    pub fn wakes(&mut self, tgid: u32, runtime: Runtime) {
        if !self.woken.contains(&tgid) && !self.is_full() {
            self.woken.insert(tgid);
            self.send(0, Job::Wakes(tgid, runtime));
        }
    }

    /// A process ended, or runs something else from now on.
    pub fn gone(&mut self, tgid: u32, may_have_probes: bool) {
        self.questions.forget(tgid);
        if self.woken.remove(&tgid) || may_have_probes {
            // Beyond the limit of others: probes of a process that is gone would stay.
            if self.waiting.load(Ordering::Acquire) < MOST_ENDS {
                self.send(0, Job::Forget(tgid));
            } else {
                self.undone.end_later.fetch_add(1, Ordering::Relaxed);
                self.ends.insert(tgid);
            }
        }
    }

    /// What was not done, by reason.
    pub fn unfollowed(&self) -> Vec<(&'static str, u64)> {
        let Undone {
            queue_full,
            table_full,
            end_later,
        } = &*self.undone;
        let counts = [
            ("queue_full", queue_full),
            ("table_full", table_full),
            ("end_later", end_later),
        ];
        counts
            .map(|(reason, count)| (reason, count.load(Ordering::Relaxed)))
            .to_vec()
    }

    /// Gives back what was attached for processes that are gone by now, whose end was not told: the record may
    /// have been lost. So with those whose threads will never be believed (`is_lost`): all programs of the host pay for it.
    pub fn sweep(&mut self, is_there: impl Fn(u32) -> bool, is_lost: impl Fn(u32) -> bool) {
        if self.waiting.load(Ordering::Acquire) < MOST {
            for tgid in std::mem::take(&mut self.ends) {
                self.send(0, Job::Forget(tgid));
            }
        }
        let woken: Vec<u32> = self.woken.iter().copied().collect();
        for tgid in woken {
            if !is_there(tgid) {
                self.gone(tgid, false);
            } else if is_lost(tgid) && self.waiting.load(Ordering::Acquire) < MOST {
                self.woken.remove(&tgid);
                self.send(0, Job::LetGo(tgid));
            }
        }
    }

    /// A process, and the kind that it is of from now on.
    pub fn answer(&mut self) -> Option<(u32, u32)> {
        while let Ok(answer) = self.answers.try_recv() {
            if let Some(answer) = self.take(answer) {
                return Some(answer);
            }
        }
        None
    }

    /// Waits for all answers, but not for ever.
    pub fn wait(&mut self, mut each: impl FnMut(u32, u32)) {
        let begun = Instant::now();
        while self.waiting.load(Ordering::Acquire) > 0 {
            if begun.elapsed() > LONGEST {
                tracing::warn!("looking into what runs takes long; its calls have parents later");
                break;
            }
            match self.answers.recv_timeout(Duration::from_millis(20)) {
                Ok(answer) => {
                    if let Some((tgid, kind)) = self.take(answer) {
                        each(tgid, kind);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        while let Some((tgid, kind)) = self.answer() {
            each(tgid, kind);
        }
    }

    fn take(&mut self, (tgid, number, kind): Answer) -> Option<(u32, u32)> {
        self.questions.answered(tgid, number).then_some(())?;
        Some((tgid, kind?))
    }

    fn is_full(&self) -> bool {
        let full = self.waiting.load(Ordering::Acquire) >= MOST;
        if full {
            self.undone.queue_full.fetch_add(1, Ordering::Relaxed);
        }
        full
    }

    fn send(&mut self, number: u64, job: Job) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        // A thread that ended by a panic was told of by the panic handler.
        let _ = self.jobs.send((number, job));
    }
}

struct Worker {
    follower: Follower,
    proc: ProcFs,
}

impl Worker {
    /// The process that was asked about, and the kind that it is of from now on if that changed.
    fn work(&mut self, job: Job) -> Option<(u32, Option<u32>)> {
        match job {
            Job::Program(tgid, runtime, exe) => {
                let file = self.proc.open_exe(tgid).filter(|file| {
                    file.metadata()
                        .is_ok_and(|facts| (facts.dev(), facts.ino()) == exe)
                });
                let kind = file.map(|file| self.follower.follow(runtime, &file));
                Some((tgid, kind.filter(|kind| *kind != kind::NONE)))
            }
            Job::Foresee(tgid) => {
                self.follower.foresee_tasks(&self.proc, tgid);
                None
            }
            Job::Tasks(tgid, runtime) => {
                let followed = self.follower.follow_tasks(&self.proc, tgid, runtime);
                let kind = match runtime {
                    Runtime::Rust => kind::TOKIO,
                    _ => kind::TASKS,
                };
                Some((tgid, followed.then_some(kind)))
            }
            Job::Pools(tgid) => {
                self.follower.follow_pools(&self.proc, tgid);
                None
            }
            Job::Wakes(tgid, runtime) => {
                self.follower.follow_wakes(&self.proc, tgid, runtime);
                None
            }
            Job::LetGo(tgid) => {
                self.follower.let_go(tgid);
                None
            }
            Job::Forget(tgid) => {
                self.follower.forget(tgid);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a process is asked about, runs something else that is asked about, then something that need not
    /// be. Guarantees: only what was asked last counts, and only once, and nothing does of a process that is gone.
    #[test]
    fn only_the_last_question_is_answered() {
        let mut questions = Questions::default();
        let (first, other) = (questions.ask(7), questions.ask(8));
        let second = questions.ask(7);
        assert!(!questions.answered(7, first));
        assert!(questions.answered(7, second) && !questions.answered(7, second));
        questions.forget(8);
        assert!(!questions.answered(8, other));
        let again = questions.ask(8);
        assert!(!questions.answered(8, other) && questions.answered(8, again));
        assert!(!questions.answered(9, 0) && questions.asked.is_empty());
    }
}
