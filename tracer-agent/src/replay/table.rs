//! The bounded set of connections, least recently used first out.
//!
//! Connections are in one of two rings: *live* ones, whose loss would cost exchanges, and *quiet*
//! ones (closed or ignored), which are only remembered. Room is made among the quiet ones first.

use rustc_hash::FxHashMap;

use super::packet::Address;
use super::tcp::Side;

/// The two ends of a connection, the smaller address first: the same for both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    a: Address,
    b: Address,
}

impl Key {
    /// The key of a packet's connection and the side that sent the packet.
    pub(super) fn new(source: Address, destination: Address) -> (Key, Side) {
        if source <= destination {
            (
                Key {
                    a: source,
                    b: destination,
                },
                Side::A,
            )
        } else {
            (
                Key {
                    a: destination,
                    b: source,
                },
                Side::B,
            )
        }
    }

    pub(super) fn address(&self, side: Side) -> Address {
        match side {
            Side::A => self.a,
            Side::B => self.b,
        }
    }
}

/// Which ring an entry is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ring {
    Live,
    Quiet,
}

/// Place of an entry; valid until it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(u32);

const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Node<T> {
    key: Key,
    ring: Ring,
    last_ns: u64,
    newer: u32,
    older: u32,
    value: T,
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    newest: u32,
    oldest: u32,
}

/// At most `capacity` connections.
#[derive(Debug)]
pub(super) struct Table<T> {
    capacity: usize,
    index: FxHashMap<Key, u32>,
    nodes: Vec<Option<Node<T>>>,
    free: Vec<u32>,
    live: Ends,
    quiet: Ends,
}

impl<T> Table<T> {
    pub(super) fn new(capacity: usize) -> Self {
        let empty = Ends {
            newest: NONE,
            oldest: NONE,
        };
        let capacity = capacity.clamp(1, NONE as usize - 1);
        Table {
            capacity,
            index: FxHashMap::default(),
            nodes: Vec::new(),
            free: Vec::new(),
            live: empty,
            quiet: empty,
        }
    }

    pub(super) fn find(&self, key: &Key) -> Option<Slot> {
        self.index.get(key).copied().map(Slot)
    }

    pub(super) fn is_full(&self) -> bool {
        self.index.len() >= self.capacity
    }

    pub(super) fn value_mut(&mut self, slot: Slot) -> Option<(&Key, &mut T)> {
        self.node_mut(slot.0)
            .map(|node| (&node.key, &mut node.value))
    }

    /// Adds a connection to the live ring. The key must not be in the table; the caller makes room.
    pub(super) fn insert(&mut self, key: Key, now_ns: u64, value: T) -> Slot {
        let node = Node {
            key,
            ring: Ring::Live,
            last_ns: now_ns,
            newer: NONE,
            older: NONE,
            value,
        };
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                self.nodes.push(None);
                u32::try_from(self.nodes.len() - 1).unwrap_or(NONE)
            }
        };
        if let Some(place) = self.nodes.get_mut(at as usize) {
            *place = Some(node);
        }
        self.index.insert(key, at);
        self.link(at);
        Slot(at)
    }

    /// The connection was seen just now.
    pub(super) fn touch(&mut self, slot: Slot, now_ns: u64) {
        let Some(node) = self.node_mut(slot.0) else {
            return;
        };
        node.last_ns = now_ns;
        if node.newer != NONE {
            self.unlink(slot.0);
            self.link(slot.0);
        }
    }

    /// Moves a connection to the other ring.
    pub(super) fn move_to(&mut self, slot: Slot, ring: Ring) {
        if self.node_mut(slot.0).is_some_and(|node| node.ring != ring) {
            self.unlink(slot.0);
            if let Some(node) = self.node_mut(slot.0) {
                node.ring = ring;
            }
            self.link(slot.0);
        }
    }

    /// The connection that was not seen for longest in a ring, and when it was.
    pub(super) fn oldest(&self, ring: Ring) -> Option<(Slot, u64)> {
        let at = self.ends(ring).oldest;
        let node = self.nodes.get(at as usize)?.as_ref()?;
        Some((Slot(at), node.last_ns))
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<(Key, T)> {
        self.unlink(slot.0);
        let node = self.nodes.get_mut(slot.0 as usize)?.take()?;
        self.index.remove(&node.key);
        self.free.push(slot.0);
        Some((node.key, node.value))
    }

    fn node_mut(&mut self, at: u32) -> Option<&mut Node<T>> {
        self.nodes.get_mut(at as usize)?.as_mut()
    }

    fn ends(&self, ring: Ring) -> Ends {
        match ring {
            Ring::Live => self.live,
            Ring::Quiet => self.quiet,
        }
    }

    fn ends_mut(&mut self, ring: Ring) -> &mut Ends {
        match ring {
            Ring::Live => &mut self.live,
            Ring::Quiet => &mut self.quiet,
        }
    }

    /// Puts a node that is in no ring to the new end of its own.
    fn link(&mut self, at: u32) {
        let Some(ring) = self.node_mut(at).map(|node| node.ring) else {
            return;
        };
        let before = std::mem::replace(&mut self.ends_mut(ring).newest, at);
        if let Some(node) = self.node_mut(at) {
            node.newer = NONE;
            node.older = before;
        }
        match self.node_mut(before) {
            Some(node) => node.newer = at,
            None => self.ends_mut(ring).oldest = at,
        }
    }

    fn unlink(&mut self, at: u32) {
        let Some((ring, newer, older)) = self
            .node_mut(at)
            .map(|node| (node.ring, node.newer, node.older))
        else {
            return;
        };
        match self.node_mut(newer) {
            Some(node) => node.older = older,
            None => self.ends_mut(ring).newest = older,
        }
        match self.node_mut(older) {
            Some(node) => node.newer = newer,
            None => self.ends_mut(ring).oldest = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;

    fn key(port: u16) -> Key {
        let end = |port| Address::new(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        Key::new(end(port), end(80)).0
    }

    #[test]
    fn both_directions_have_one_key_and_different_sides() {
        let end = |port| Address::new(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let (there, sender) = Key::new(end(1), end(2));
        let (back, answerer) = Key::new(end(2), end(1));
        assert_eq!((there, sender), (back, answerer.other()));
        assert_eq!(there.address(sender).port(), 1);
    }

    #[test]
    fn oldest_follows_use_and_rings() {
        let mut table = Table::new(3);
        let [a, b, c] = [1, 2, 3].map(|port| table.insert(key(port), u64::from(port), port));
        assert!(table.is_full());
        let oldest = |table: &Table<u16>, ring| table.oldest(ring).map(|(slot, _)| slot);
        assert_eq!(oldest(&table, Ring::Live), Some(a));
        table.touch(a, 10);
        assert_eq!(oldest(&table, Ring::Live), Some(b));
        table.move_to(b, Ring::Quiet);
        table.move_to(a, Ring::Quiet);
        assert_eq!(
            (oldest(&table, Ring::Live), oldest(&table, Ring::Quiet)),
            (Some(c), Some(b))
        );
        assert_eq!(table.remove(b).map(|(_, port)| port), Some(2));
        assert_eq!(table.find(&key(2)), None);
        assert_eq!(oldest(&table, Ring::Quiet), Some(a));
        assert_eq!(table.remove(a).map(|(_, port)| port), Some(1));
        assert_eq!(oldest(&table, Ring::Quiet), None);
        let d = table.insert(key(4), 20, 4);
        assert_eq!(oldest(&table, Ring::Live), Some(c));
        assert_eq!(table.remove(c).map(|(_, port)| port), Some(3));
        assert_eq!(oldest(&table, Ring::Live), Some(d));
        assert!(!table.is_full());
    }
}
