//! What is known of the traced processes: resource attributes behind a cache. (room to be filled)

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
