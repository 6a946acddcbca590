//! The user's patterns: `/users/{id}`, `/static/*.css`, `/files/**`.

use std::sync::Arc;

use super::segments;
use crate::discover::pattern::matches;

/// A path with places that differ. `{name}` and `*` stand for one segment, `*` and `?` within a
/// segment for any text and any character, `**` at the end for any rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: Arc<str>,
    segments: Box<[Segment]>,
    /// Ends in `**`.
    open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Exact(Box<str>),
    Any,
    Glob(Box<str>),
}

/// Why a pattern is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It is no path.
    #[error("a route begins with `/`")]
    NoSlash,
    /// Queries are not part of routes.
    #[error("a route has no query and no fragment")]
    Query,
    /// `**` in the middle.
    #[error("`**` can only be the last segment")]
    Rest,
    /// `{` and `}` that are not a whole segment.
    #[error("`{{name}}` stands for a whole segment")]
    Braces,
    /// Longer than any name should be.
    #[error("a route has at most 256 characters")]
    Long,
}

/// Characters of a pattern.
const MAX_LENGTH: usize = 256;

impl Pattern {
    /// From its text.
    pub fn parse(text: &str) -> Result<Pattern, PatternError> {
        if !text.starts_with('/') {
            return Err(PatternError::NoSlash);
        }
        if text.len() > MAX_LENGTH {
            return Err(PatternError::Long);
        }
        if text.contains(['?', '#']) {
            return Err(PatternError::Query);
        }
        let mut parsed = Vec::new();
        let mut open = false;
        for segment in segments(text) {
            if open {
                return Err(PatternError::Rest);
            }
            let name = segment
                .strip_prefix('{')
                .and_then(|rest| rest.strip_suffix('}'));
            match segment {
                "**" => open = true,
                "*" => parsed.push(Segment::Any),
                _ if segment.contains("**") => return Err(PatternError::Rest),
                _ if name.is_some_and(|name| !name.is_empty() && !name.contains(['{', '}'])) => {
                    parsed.push(Segment::Any);
                }
                _ if segment.contains(['{', '}']) => return Err(PatternError::Braces),
                _ if segment.contains('*') => parsed.push(Segment::Glob(segment.into())),
                _ => parsed.push(Segment::Exact(segment.into())),
            }
        }
        Ok(Pattern {
            text: text.into(),
            segments: parsed.into(),
            open,
        })
    }

    /// As the user wrote it, which is what it names spans.
    pub fn text(&self) -> Arc<str> {
        Arc::clone(&self.text)
    }

    /// Whether it stands for this path (without its query).
    pub fn matches(&self, path: &str) -> bool {
        let mut found = segments(path);
        for segment in &self.segments {
            let Some(part) = found.next() else {
                return false;
            };
            let same = match segment {
                Segment::Exact(text) => **text == *part,
                Segment::Any => !part.is_empty(),
                Segment::Glob(glob) => matches(glob, part),
            };
            if !same {
                return false;
            }
        }
        self.open || found.next().is_none()
    }
}
