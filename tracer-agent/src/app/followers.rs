//! The thread that attaches probes to what processes run, so that the kernel side knows what their calls
//! are made for.
//!
//! In: processes that start, serve with an event loop, and end. Out: of which kind a process is from
//! now on. Attaching takes milliseconds to seconds, all the longer while another agent's hooks go: never
//! on the capture thread, which would hear of new programs late.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use tracer_common::abi::kind_of_process as kind;

use super::AppError;
use crate::discover::Runtime;
use crate::meta::ProcFs;
use crate::probes::{Follower, immediate};

/// Processes that may wait for the thread; calls of more of them have no parents.
const MOST: usize = 4096;
/// Longest wait for those that run already.
const LONGEST: Duration = Duration::from_secs(15);

enum Job {
    /// A process runs this from now on.
    Program(u32, Runtime, PathBuf),
    /// It may serve with tokio later.
    Foresee(u32),
    /// It serves with an event loop.
    Tasks(u32, Runtime),
    /// It ended, or runs something else.
    Forget(u32),
}

/// The kind of a process, with the number of the question; `None` if nothing was found out.
type Answer = (u32, u64, Option<u32>);

/// The capture thread's end.
pub struct Followers {
    jobs: Sender<(u64, Job)>,
    answers: Receiver<Answer>,
    waiting: Arc<AtomicUsize>,
    /// By process the last question; older ones are about what it ran before.
    asked: FxHashMap<u32, u64>,
    last: u64,
}

impl Followers {
    /// Starts the thread, which ends with this.
    pub fn start(follower: Follower, proc: ProcFs) -> Result<Self, AppError> {
        let (jobs, to_do) = channel();
        let (answer, answers) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let done = Arc::clone(&waiting);
        std::thread::Builder::new()
            .name("followers".into())
            .spawn(move || {
                let mut worker = Worker { follower, proc };
                while let Ok((number, job)) = to_do.recv() {
                    let answered = worker.work(job).map(|(tgid, kind)| (tgid, number, kind));
                    // The receiver is gone only when the agent is ending.
                    let heard = answered.is_none_or(|answered| answer.send(answered).is_ok());
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
            asked: FxHashMap::default(),
            last: 0,
        })
    }

    /// A process runs this from now on, and its program can be opened at `exe`. Returns its kind, if
    /// that is known at once; else it is an answer later.
    pub fn program(
        &mut self,
        tgid: u32,
        runtime: Runtime,
        exe: impl FnOnce() -> PathBuf,
    ) -> Option<u32> {
        if runtime == Runtime::Rust {
            self.tell(Job::Foresee(tgid));
        }
        let known = immediate(runtime);
        if known.is_none() {
            self.ask(tgid, Job::Program(tgid, runtime, exe()));
        }
        known
    }

    /// A process serves with an event loop: its kind is an answer later.
    pub fn tasks(&mut self, tgid: u32, runtime: Runtime) {
        self.ask(tgid, Job::Tasks(tgid, runtime));
    }

    /// A process ended, or runs something else from now on.
    pub fn forget(&mut self, tgid: u32) {
        self.asked.remove(&tgid);
        // Beyond the limit too: probes of a process that is gone would stay.
        self.send(0, Job::Forget(tgid));
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
        if self.asked.get(&tgid) != Some(&number) {
            return None;
        }
        self.asked.remove(&tgid);
        Some((tgid, kind?))
    }

    fn ask(&mut self, tgid: u32, job: Job) {
        self.last += 1;
        if self.tell_numbered(self.last, job) {
            self.asked.insert(tgid, self.last);
        }
    }

    fn tell(&mut self, job: Job) {
        self.tell_numbered(0, job);
    }

    fn tell_numbered(&mut self, number: u64, job: Job) -> bool {
        if self.waiting.load(Ordering::Acquire) >= MOST {
            tracing::debug!("too many processes wait to be followed");
            return false;
        }
        self.send(number, job);
        true
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
                let kind = self.follower.follow(runtime, &exe);
                Some((tgid, (kind != kind::NONE).then_some(kind)))
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
            Job::Forget(tgid) => {
                self.follower.forget(tgid);
                None
            }
        }
    }
}
