//! Puts the spans of one trace in the order and the places of a tree.
//!
//! In: span ids, parents and start times. Out: every span once, parents before children, siblings
//! by start. What it is given may be anything: missing parents, doubles, circles, chains without
//! end.

use std::collections::HashMap;

use crate::trace::SpanId;

/// What the tree is made from.
pub(super) struct Node {
    pub(super) id: SpanId,
    pub(super) parent: Option<SpanId>,
    pub(super) start_unix_ns: u64,
}

/// Where a span stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Index of the span in what was given.
    pub(super) index: usize,
    /// Index of the root it hangs below (its own, for a root).
    pub(super) root: usize,
    /// Lines that lead to it.
    pub(super) lines: String,
    /// Nothing hangs below it.
    pub(super) leaf: bool,
}

/// Levels that are drawn; what is deeper is drawn at this one, behind a `…`.
const MAX_LEVELS: usize = 5;

/// A span that waits for its turn, with the lines of its ancestors.
struct Pending {
    index: usize,
    root: usize,
    /// Per level from the top: do siblings follow there?
    siblings_follow: Vec<bool>,
    depth: usize,
}

/// All of `nodes` in the order in which they are printed.
pub(super) fn arrange(nodes: &[Node]) -> Vec<Place> {
    let mut by_id = HashMap::with_capacity(nodes.len());
    for (index, node) in nodes.iter().enumerate() {
        by_id.entry(node.id).or_insert(index);
    }
    let mut by_start: Vec<usize> = (0..nodes.len()).collect();
    by_start.sort_by_key(|&index| nodes[index].start_unix_ns);
    let mut children = vec![Vec::new(); nodes.len()];
    let mut roots = Vec::new();
    for &index in &by_start {
        match nodes[index].parent.and_then(|parent| by_id.get(&parent)) {
            Some(&parent) if parent != index => children[parent].push(index),
            _ => roots.push(index),
        }
    }
    let mut places = Vec::with_capacity(nodes.len());
    let mut placed = vec![false; nodes.len()];
    // Whatever the roots do not lead to is part of a circle, which begins where it started first.
    for root in roots.into_iter().chain(by_start) {
        place(root, &children, &mut placed, &mut places);
    }
    places
}

fn place(root: usize, children: &[Vec<usize>], placed: &mut [bool], places: &mut Vec<Place>) {
    if placed[root] {
        return;
    }
    placed[root] = true;
    let mut stack = vec![Pending {
        index: root,
        root,
        siblings_follow: Vec::new(),
        depth: 0,
    }];
    while let Some(Pending {
        index,
        root,
        siblings_follow,
        depth,
    }) = stack.pop()
    {
        let below: Vec<usize> = children[index]
            .iter()
            .copied()
            .filter(|&child| !std::mem::replace(&mut placed[child], true))
            .collect();
        // The last one goes onto the stack first.
        for (position, &child) in below.iter().rev().enumerate() {
            // Of a deep chain only the last levels are drawn, so only they are kept.
            let skipped = (siblings_follow.len() + 1).saturating_sub(MAX_LEVELS);
            let mut siblings_follow = siblings_follow[skipped..].to_vec();
            siblings_follow.push(position > 0);
            stack.push(Pending {
                index: child,
                root,
                siblings_follow,
                depth: depth + 1,
            });
        }
        places.push(Place {
            index,
            root,
            lines: lines(&siblings_follow, depth),
            leaf: below.is_empty(),
        });
    }
}

fn lines(siblings_follow: &[bool], depth: usize) -> String {
    let Some((last, ancestors)) = siblings_follow.split_last() else {
        return String::new();
    };
    let mut lines = String::with_capacity(siblings_follow.len() * 7);
    if depth > siblings_follow.len() {
        lines.push('…');
    }
    for follows in ancestors {
        lines.push_str(if *follows { "│  " } else { "   " });
    }
    lines.push_str(if *last { "├─ " } else { "└─ " });
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nodes(list: &[(u64, u64)]) -> Vec<Node> {
        let id = |id: u64| SpanId(id.to_be_bytes());
        let node = |(start, &(own, parent)): (usize, &(u64, u64))| Node {
            id: id(own),
            parent: (parent != 0).then(|| id(parent)),
            start_unix_ns: start as u64,
        };
        list.iter().enumerate().map(node).collect()
    }

    /// `list` holds (id, parent or 0) in order of start.
    fn check(list: &[(u64, u64)], expected: &[&str]) {
        let drawn: Vec<_> = arrange(&nodes(list))
            .iter()
            .map(|place| format!("{}{}", place.lines, list[place.index].0))
            .collect();
        assert_eq!(drawn, expected, "for {list:?}");
    }

    #[test]
    fn trees() {
        check(&[], &[]);
        check(&[(1, 0)], &["1"]);
        check(&[(1, 9), (2, 9)], &["1", "2"]);
        check(
            &[(1, 0), (2, 1), (3, 2), (4, 1)],
            &["1", "├─ 2", "│  └─ 3", "└─ 4"],
        );
        check(
            &[(1, 0), (2, 1), (3, 1), (4, 3)],
            &["1", "├─ 2", "└─ 3", "   └─ 4"],
        );
        // A child may start before its parent: clocks of two hosts.
        check(&[(2, 1), (1, 0)], &["1", "└─ 2"]);
        // The same id twice: both are shown, children hang below the first.
        check(&[(1, 0), (1, 0), (2, 1)], &["1", "└─ 2", "1"]);
        check(&[(1, 1)], &["1"]);
        check(&[(1, 2), (2, 1), (3, 2)], &["1", "└─ 2", "   └─ 3"]);
        check(&[(5, 0), (1, 2), (2, 1)], &["5", "1", "└─ 2"]);
    }

    #[test]
    fn a_deep_chain_stays_narrow() {
        let list: Vec<(u64, u64)> = (1..=5_000).map(|id| (id, id - 1)).collect();
        let places = arrange(&nodes(&list));
        assert_eq!(places.len(), list.len());
        let last = places.last().expect("not empty");
        assert_eq!(last.lines, format!("…{}└─ ", "   ".repeat(MAX_LEVELS - 1)));
        assert_eq!((last.root, last.leaf), (0, true));
    }

    proptest! {
        #[test]
        fn every_span_is_placed_once(list in proptest::collection::vec((1u64..12, 0u64..12), 0..30)) {
            let mut indexes: Vec<_> = arrange(&nodes(&list)).iter().map(|place| place.index).collect();
            indexes.sort_unstable();
            prop_assert_eq!(indexes, (0..list.len()).collect::<Vec<_>>());
        }
    }
}
