//! Why a configuration was refused, in one line.

use std::path::PathBuf;

/// A configuration that cannot be used. Always the user's to repair: exit status 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is larger than any configuration.
    #[error("configuration file {} is larger than {limit} bytes; is it the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound.
        limit: u64,
    },
    /// The file is not YAML, or has a key that does not exist, or a list where a value belongs.
    #[error("{} line {line}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// What is wrong there.
        problem: String,
    },
    /// A value is not allowed.
    #[error("{place}: {problem}")]
    Value {
        /// Where it was set: `agent.yaml line 3: admin`, `TRACER_ADMIN` or `--admin`.
        place: String,
        /// What is wrong and what is allowed.
        problem: String,
    },
}
