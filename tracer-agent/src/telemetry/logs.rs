//! The agent's log: one plain line per event on stderr, coloured only on a terminal.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level or its directives are wrong.
    #[error("wrong log level")]
    Filter(#[from] ParseError),
    /// A log was set up before.
    #[error("logging is set up twice")]
    Twice,
}

/// Sends the log to stderr from here on. `level` is a word such as `info`, or filter directives.
pub fn init(level: &str) -> Result<(), LogError> {
    tracing_subscriber::fmt()
        .with_env_filter(filter(level)?)
        .with_writer(std::io::stderr)
        // A line that cannot be written would be told of on stderr, and that failing is a panic.
        .log_internal_errors(false)
        .with_ansi(colours(&std::io::stderr()))
        .with_target(false)
        .compact()
        .try_init()
        .map_err(|_| LogError::Twice)
}

/// Whether a stream should be coloured: a terminal, and nobody asked for `NO_COLOR`.
pub fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The filter of a level. A bare level is the agent's own and the kernel side's (`tracer`); libraries speak up from `warn` on, since
/// their `debug` tells about our connections and not about what the user traces.
pub fn filter(level: &str) -> Result<EnvFilter, ParseError> {
    let directives = match level.trim().to_ascii_lowercase().as_str() {
        "off" | "none" => "off".to_owned(),
        "error" => "error".to_owned(),
        "warn" | "warning" => "warn".to_owned(),
        own @ ("info" | "debug" | "trace") => format!("warn,tracer_agent={own},tracer={own}"),
        "all" | "verbose" => "warn,tracer_agent=trace,tracer=trace".to_owned(),
        _ => level.to_owned(),
    };
    EnvFilter::builder().parse(directives)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_become_filters() {
        let check = |level: &str, expected: Option<&str>| {
            let mut found = filter(level).ok().map(|filter| filter.to_string());
            // The order of directives is the filter's own business.
            if let Some(found) = &mut found {
                let mut directives: Vec<&str> = found.split(',').collect();
                directives.sort_unstable();
                *found = directives.join(",");
            }
            assert_eq!(found.as_deref(), expected, "{level:?}");
        };
        check("info", Some("tracer=info,tracer_agent=info,warn"));
        check("DEBUG", Some("tracer=debug,tracer_agent=debug,warn"));
        check("warning", Some("warn"));
        check("none", Some("off"));
        check("verbose", Some("tracer=trace,tracer_agent=trace,warn"));
        check("h2=trace,error", Some("error,h2=trace"));
        check("a=b=c", None);
    }
}
