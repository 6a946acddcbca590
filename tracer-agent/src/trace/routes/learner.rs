//! Guesses templates from the paths that one side of one service uses.
//!
//! In: paths. Out: the same paths with what looks like a value folded, and with what turned out to
//! be one: where more than [`MAX_WORDS`] different words stood at the same place they are values.
//! Bounds: nodes of the tree, depth, words of a place, and templates ever given out, so that a
//! service has at most that many names for the life of the agent, whatever it is asked for.

use std::sync::Arc;

use super::classify::placeholder;
use super::segments;

/// Different words at one place before they count as values.
const MAX_WORDS: usize = 24;
/// Nodes of one tree.
const MAX_NODES: usize = 4096;
/// Segments of a path; deeper ones have no template.
const MAX_DEPTH: usize = 16;
/// Placeholder of words that turned out to be values.
const VALUE: &str = "{value}";

/// The tree of one side of one service.
#[derive(Debug, Default)]
pub(super) struct Learner {
    root: Node,
    /// Nodes below the root.
    nodes: usize,
    /// Templates given out so far.
    templates: usize,
}

#[derive(Debug, Default)]
struct Node {
    children: Vec<(Box<str>, Node)>,
    /// Words here are values.
    folded: bool,
    template: Option<Arc<str>>,
}

/// What the learner says of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// This is its template.
    Template(Arc<str>),
    /// Nothing is known of such a path.
    Unknown,
    /// There might be a template, but a bound was reached.
    Full,
}

impl Learner {
    /// The template of `path`; a path of a new kind is taken in only if `learns`.
    pub(super) fn template(&mut self, path: &str, learns: bool, max_templates: usize) -> Outcome {
        let mut keys: [&str; MAX_DEPTH] = [""; MAX_DEPTH];
        let mut depth = 0;
        let mut node = &mut self.root;
        for segment in segments(path) {
            let value = placeholder(segment);
            if value.is_none() && node.is_full_for(segment) {
                if !learns {
                    return Outcome::Unknown;
                }
                self.nodes -= node.fold();
            }
            let key = value.unwrap_or(if node.folded { VALUE } else { segment });
            let Some(slot) = keys.get_mut(depth) else {
                return Outcome::Full;
            };
            *slot = key;
            depth += 1;
            let at = node.children.iter().position(|(name, _)| **name == *key);
            let at = match at {
                Some(at) => at,
                None if !learns => return Outcome::Unknown,
                None if self.nodes >= MAX_NODES => return Outcome::Full,
                None => {
                    self.nodes += 1;
                    node.children.push((key.into(), Node::default()));
                    node.children.len() - 1
                }
            };
            // The position was found or made just now.
            let Some((_, child)) = node.children.get_mut(at) else {
                return Outcome::Unknown;
            };
            node = child;
        }
        if let Some(template) = &node.template {
            return Outcome::Template(Arc::clone(template));
        }
        if !learns {
            return Outcome::Unknown;
        }
        if self.templates >= max_templates {
            return Outcome::Full;
        }
        self.templates += 1;
        let mut text = String::new();
        for key in keys.iter().take(depth) {
            text.push('/');
            text.push_str(key);
        }
        if text.is_empty() {
            text.push('/');
        }
        let template: Arc<str> = text.into();
        node.template = Some(Arc::clone(&template));
        Outcome::Template(template)
    }

    /// Nodes in the tree.
    #[cfg(test)]
    pub(super) fn nodes(&self) -> usize {
        self.nodes
    }

    /// The same, counted anew.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.root.size()
    }
}

impl Node {
    /// One more word than may stand here.
    fn is_full_for(&self, word: &str) -> bool {
        !self.folded
            && self.words() >= MAX_WORDS
            && !self.children.iter().any(|(name, _)| **name == *word)
    }

    fn words(&self) -> usize {
        let is_word = |(name, _): &&(Box<str>, Node)| !name.starts_with('{');
        self.children.iter().filter(is_word).count()
    }

    /// Words here are values from now on. Returns how many nodes that frees.
    fn fold(&mut self) -> usize {
        let before = self.size();
        self.folded = true;
        self.children.retain(|(name, _)| name.starts_with('{'));
        before - self.size()
    }

    /// Nodes below this one; the depth is bounded, so this recursion is.
    fn size(&self) -> usize {
        let below = |(_, child): &(Box<str>, Node)| 1 + child.size();
        self.children.iter().map(below).sum()
    }
}
