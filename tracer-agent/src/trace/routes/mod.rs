//! Low-cardinality names for paths, only when the user asks for them.
//!
//! In: finished spans. Out: the same spans, some with a [`Template`] that goes into the span's name
//! and into an attribute of our own. Configured patterns come first; what none of them matches is
//! given to the learner, if it is switched on. gRPC spans are left as they are: their method is a
//! low-cardinality name already.
//!
//! It cannot see the router of the traced program. So nothing from here ever becomes `http.route`,
//! which is for templates that the framework itself told.

mod classify;
mod learner;
mod pattern;

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::span::{Span, SpanKind};
use super::target::Target;
use crate::discover::pattern::matches;
use learner::{Learner, Outcome};
pub use pattern::{Pattern, PatternError};

/// Services that the learner knows at a time; of further ones nothing is learnt.
const MAX_SERVICES: usize = 512;

/// The template of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Such as `/users/{id}`.
    pub text: Arc<str>,
    /// Made by the learner, not by the user.
    pub guessed: bool,
}

/// What the user asked for; nothing by default.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Patterns in order, the first that matches is taken.
    pub patterns: Vec<ServicePattern>,
    /// Guess templates of what no pattern matches.
    pub learn: bool,
    /// Templates that may be guessed for one service.
    pub max_per_service: usize,
}

/// A pattern and the services it is for.
#[derive(Clone, Debug, PartialEq)]
pub struct ServicePattern {
    /// Glob over `service.name`; any service without one.
    pub service: Option<Box<str>>,
    /// The pattern.
    pub pattern: Pattern,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            patterns: Vec::new(),
            learn: false,
            max_per_service: 200,
        }
    }
}

/// What became of paths, for whoever shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteCounts {
    /// Spans named by a pattern of the user.
    pub configured: u64,
    /// Spans named by the learner.
    pub guessed: u64,
    /// Spans left without a template because a bound of the learner was reached.
    pub overflow: u64,
}

/// Gives templates to spans.
#[derive(Debug, Default)]
pub struct Router {
    settings: Settings,
    /// By service; servers and clients see different paths.
    learners: FxHashMap<Box<str>, [Learner; 2]>,
    counts: RouteCounts,
}

impl Router {
    /// A router that has learnt nothing yet.
    pub fn new(settings: Settings) -> Router {
        Router {
            settings,
            ..Router::default()
        }
    }

    /// Follows other settings from now on. What was learnt is kept, unless learning ends.
    pub fn reload(&mut self, settings: Settings) {
        if !settings.learn {
            self.learners = FxHashMap::default();
        }
        self.settings = settings;
    }

    /// What was counted so far.
    pub fn counts(&self) -> RouteCounts {
        self.counts
    }

    /// Gives `span` a template if there is one for its path.
    pub fn route(&mut self, span: &mut Span) {
        let Settings {
            patterns,
            learn,
            max_per_service,
        } = &self.settings;
        if patterns.is_empty() && !learn || span.exchange.grpc.is_some() {
            return;
        }
        let request = &span.exchange.request;
        let path = Target::parse(&request.method, &request.target).path;
        // `*` and the authority form have no path, and one that was not seen has no template.
        if request.target.is_empty() || !path.starts_with('/') {
            return;
        }
        let service = &*span.process.service_name;
        let configured = patterns.iter().find(|entry| {
            let meant = |glob: &str| matches(glob, service);
            entry.service.as_deref().is_none_or(meant) && entry.pattern.matches(path)
        });
        if let Some(entry) = configured {
            self.counts.configured += 1;
            span.template = Some(Template {
                text: entry.pattern.text(),
                guessed: false,
            });
            return;
        }
        if !learn {
            return;
        }
        let status = span.exchange.response.as_ref().map_or(0, |r| r.status);
        // What a server refuses may be anything that somebody tried: nothing is learnt from that.
        let learns = (100..400).contains(&status) || status >= 500;
        if !self.learners.contains_key(service) {
            if !learns {
                return;
            }
            if self.learners.len() >= MAX_SERVICES {
                self.counts.overflow += 1;
                return;
            }
            self.learners.insert(service.into(), Default::default());
        }
        let Some(learners) = self.learners.get_mut(service) else {
            return;
        };
        let [server, client] = learners;
        let learner = match span.kind {
            SpanKind::Server => server,
            SpanKind::Client => client,
        };
        match learner.template(path, learns, *max_per_service) {
            Outcome::Template(text) => {
                self.counts.guessed += 1;
                span.template = Some(Template {
                    text,
                    guessed: true,
                });
            }
            Outcome::Unknown => {}
            Outcome::Full => self.counts.overflow += 1,
        }
    }
}

/// Segments of a path; a slash at the end is not one.
fn segments(path: &str) -> impl Iterator<Item = &str> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    path.split('/').filter(move |_| !path.is_empty())
}

#[cfg(test)]
mod tests;
