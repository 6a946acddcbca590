//! What is known of the traced processes: resource attributes behind a cache.
//!
//! In: exec and exit records of the kernel side, and `/proc` (at an injectable place). Out: one
//! shared, immutable [`Process`] per traced process, by [`ProcessTable::get`]. It cannot see what
//! a process that was gone before its exec record arrived was linked to, nor what a runtime is
//! configured to outside its arguments and its environment.

pub mod attributes;
pub mod command;
pub mod container;
pub mod facts;
pub mod host;
pub mod identity;
pub mod kubernetes;
pub mod language;
pub mod proc_fs;
pub mod rules;
pub mod table;

pub use facts::{ExecInfo, ProcessFacts};
pub use host::Host;
pub use language::Language;
pub use proc_fs::ProcFs;
pub use rules::ServiceRule;
pub use table::{Options, ProcessTable, TableCounts};

/// A process as its spans see it. Shared by all its spans; immutable (a change makes a new one).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process id in the agent's own pid namespace.
    pub pid: u32,
    /// `service.name` by the order of CONVENTIONS.md.
    pub service_name: Box<str>,
    /// All resource attributes, `service.name` included, in the order they are exported.
    pub attributes: Vec<(std::borrow::Cow<'static, str>, AttributeValue)>,
}

/// Value of a resource attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttributeValue {
    /// Text.
    Str(Box<str>),
    /// Integer.
    Int(i64),
    /// List of texts.
    StrList(Vec<Box<str>>),
}
