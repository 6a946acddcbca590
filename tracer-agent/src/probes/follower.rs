//! Attaches probes to what processes run: their runtimes, and the tasks of their event loops.
//!
//! In: processes. Out: of which kind they are then (`abi::kind_of_process`). Attaching takes the kernel a
//! while; the caller has a thread of its own for it.

use std::fs::File;
use std::sync::Arc;

use rustc_hash::FxHashSet;
use tracer_common::abi::kind_of_process as kind;

use super::futex::{self, FutexHooks, Settings};
use super::runtime::RuntimeProbes;
use super::shared::SharedEbpf;
use super::tasks::{self, TaskProbes};
use crate::discover::Runtime;
use crate::meta::ProcFs;

/// The kind of processes of a runtime that needs no probes for it.
pub fn immediate(runtime: Runtime) -> Option<u32> {
    match runtime {
        Runtime::Kind(kind) => Some(kind),
        Runtime::Python => Some(kind::THREADS | kind::WOKEN | kind::ONE_LOCK),
        Runtime::Rust => Some(kind::BLOCKING | kind::WOKEN),
        Runtime::Node | Runtime::Go => None,
    }
}

/// See the module's text.
pub struct Follower {
    ebpf: Arc<SharedEbpf>,
    runtimes: RuntimeProbes,
    tasks: TaskProbes,
    futexes: FutexHooks,
}

impl Follower {
    pub(super) fn new(ebpf: Arc<SharedEbpf>, settings: Option<Settings>) -> Self {
        Follower {
            ebpf,
            runtimes: RuntimeProbes::new(crate::rights::can_place_uprobes() != Some(false)),
            tasks: TaskProbes::default(),
            futexes: FutexHooks::new(settings),
        }
    }

    /// Attaches what a runtime needs to a program, once per program, where it is not [`immediate`]; returns the kind
    /// that processes then are of.
    pub fn follow(&mut self, runtime: Runtime, exe: &File) -> u32 {
        self.runtimes.follow(&self.ebpf, runtime, exe)
    }

    /// Attaches what shows the tasks of a process that serves with an event loop; true if its calls can
    /// have parents then.
    pub fn follow_tasks(&mut self, proc: &ProcFs, tgid: u32, runtime: Runtime) -> bool {
        self.tasks
            .follow(&mut self.ebpf.lock_first(), proc, tgid, runtime)
    }

    /// Attaches what has to be seen of a process that may serve with tokio before it does.
    pub fn foresee_tasks(&mut self, proc: &ProcFs, tgid: u32) {
        self.tasks.foresee(&self.ebpf, proc, tgid);
    }

    /// Attaches what shows the work of executors in a process of Python that has loaded them.
    pub fn follow_pools(&mut self, proc: &ProcFs, tgid: u32) {
        self.tasks.follow_pools(&self.ebpf, proc, tgid);
    }

    /// Attaches what shows which threads of a process wake which.
    pub fn follow_wakes(&mut self, proc: &ProcFs, tgid: u32, runtime: Runtime) {
        if runtime == Runtime::Python {
            // Without it nobody of this process is followed.
            let told = tasks::one_lock(proc, tgid)
                .and_then(|range| futex::set_lock(&mut self.ebpf.lock_first(), tgid, range));
            if let Err(why) = told {
                tracing::debug!(
                    tgid,
                    why,
                    "its own lock is not known: queues are not followed"
                );
                return;
            }
        }
        self.futexes.follow(&mut self.ebpf.lock_first(), tgid);
    }

    /// How often a process was not followed because too many are.
    pub fn left_out(&self) -> u64 {
        self.tasks.left_out() + self.futexes.left_out()
    }

    /// Gives back what was attached to processes that are there no more, of which nobody said so. What follows
    /// wakes is told by who asked for it.
    pub fn sweep(&mut self, proc: &ProcFs) {
        let followed = self.tasks.processes();
        let gone: FxHashSet<u32> = followed.filter(|tgid| !proc.may_be_there(*tgid)).collect();
        for tgid in gone {
            self.tasks.forget(&mut self.ebpf.lock_first(), tgid);
        }
    }

    /// Waits and wakes of a process need not be seen any more.
    pub fn let_go(&mut self, tgid: u32) {
        if self.futexes.follows(tgid) {
            self.futexes.forget(&mut self.ebpf.lock_first(), tgid);
        }
    }

    /// Gives back what was attached to a process that ended, or runs something else now.
    pub fn forget(&mut self, tgid: u32) {
        if self.tasks.follows(tgid) {
            self.tasks.forget(&mut self.ebpf.lock_first(), tgid);
        }
        self.let_go(tgid);
    }
}
