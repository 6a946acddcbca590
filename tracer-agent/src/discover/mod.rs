//! Which processes and connections are traced.
//!
//! In: the user's rules, the processes that run, exec and exit records. Out: updates for the kernel
//! side's policy map, and decisions about connections. It cannot see forks: a forked process has
//! the entry of its parent (the kernel side copies it), until it starts another program.
//!
//! Left out without being asked for:
//!
//! | what | why |
//! | --- | --- |
//! | the agent itself | it must never trace the traffic that tracing causes |
//!
//! Nothing else. Programs that speak no HTTP (sshd, databases) cost a map lookup per call, and a
//! collector or another agent is a service like any other to those who run it.

pub mod binary;
mod event_loops;
pub mod pattern;
pub mod policy;
pub mod runtime;
pub mod sdk;
mod updates;

pub use event_loops::EventLoops;
pub use policy::{Decision, Policy, PolicyConfig, PortFilter, PortRange, Reason, Rule};
pub use runtime::{Runtime, Runtimes};
pub use updates::{Discovery, Mode, PolicyUpdate};
