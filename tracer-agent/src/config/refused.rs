//! What is said of a file that cannot be read as a configuration.

use std::path::Path;

use super::ConfigError;

/// The parser's complaint as one line: file, line, key, problem.
pub(super) fn refused(error: &serde_saphyr::Error, text: &str, path: &Path) -> ConfigError {
    let line = error
        .location()
        .map_or(1, |location| location.line().max(1));
    let message = error.to_string();
    let message = message.lines().next().unwrap_or("not YAML");
    // The line is told once, in front; hints meant for callers of the parser are of no use here.
    let message = message
        .rsplit_once(" at line ")
        .map_or(message, |(message, _)| message);
    let message = message
        .split_once(", set DuplicateKeyPolicy")
        .map_or(message, |(message, _)| message);
    let key = key_path(text, line);
    let problem = match (
        message
            .strip_prefix("unknown field `")
            .and_then(|rest| rest.split_once('`')),
        key,
    ) {
        (Some((field, rest)), key) => {
            // In flow style the line begins with the section and not with the field.
            let section = key.filter(|key| key.rsplit('.').next() != Some(field));
            let key = section.map_or_else(
                || key_path(text, line),
                |section| Some(format!("{section}.{field}")),
            );
            let allowed = rest
                .trim_start_matches(", expected ")
                .trim_start_matches("one of ");
            format!(
                "unknown key `{}`; allowed here: {allowed}",
                key.as_deref().unwrap_or(field)
            )
        }
        (None, Some(key)) => format!("{key}: {}", plain(message)),
        (None, None) => plain(message).to_owned(),
    };
    ConfigError::File {
        path: path.to_owned(),
        line,
        problem,
    }
}

/// YAML's own words, said for people who write configuration files.
fn plain(message: &str) -> &str {
    match message {
        "expected string scalar" => "one value is expected here, not a list or a section",
        "expected mapping start" => "a section of `key: value` lines is expected here",
        "expected sequence start" => "a list is expected here, such as [a, b]",
        other => other,
    }
}

/// Dotted path of the key on a line, from the indentation of the lines above it. Only for messages:
/// flow style shows the outermost key of its line.
fn key_path(text: &str, line: u64) -> Option<String> {
    let last = usize::try_from(line).ok()?;
    let mut path: Vec<&str> = Vec::new();
    let mut limit = usize::MAX;
    for line in text
        .lines()
        .take(last)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
    {
        // An item's fields stand below each other, so the dash counts as indentation.
        let content = line.trim_start().trim_start_matches("- ").trim_start();
        let indent = line.len() - content.len();
        if indent >= limit || content.starts_with('#') {
            continue;
        }
        let Some((key, _)) = content.split_once(':') else {
            continue;
        };
        path.push(key.trim().trim_matches(['"', '\'']));
        limit = indent;
        if indent == 0 {
            break;
        }
    }
    path.reverse();
    (!path.is_empty()).then(|| path.join("."))
}
