//! Finds connections that ended, or were given up by the kernel side, without a word.
//!
//! That happens when the kernel's table was full, when an event was lost in the ring, and to unix
//! sockets that go by other ways than close(). Only connections that were idle for a while are looked
//! at, a slice of them at a time.

use rustc_hash::{FxHashMap, FxHashSet};

use super::tracked::Tracked;
use super::{End, Host};

/// Time from one round over all connections to the next, and how long one has to be idle.
const ROUND_NS: u64 = 30_000_000_000;
/// Connections looked at in one go.
const SLICE: usize = 512;

/// Where the round is.
#[derive(Default)]
pub struct Sweep {
    begun_ns: u64,
    todo: Vec<u64>,
    /// Sockets of processes, asked for once in a round.
    held: FxHashMap<u32, Option<FxHashSet<u64>>>,
}

impl Sweep {
    /// Looks at the next slice. Returns what ended, and how (`None` if that was missed).
    pub fn step(
        &mut self,
        connections: &FxHashMap<u64, Tracked>,
        now_ns: u64,
        host: &impl Host,
    ) -> Vec<(u64, Option<End>)> {
        if self.todo.is_empty() {
            self.held = FxHashMap::default();
            if now_ns.saturating_sub(self.begun_ns) < ROUND_NS {
                return Vec::new();
            }
            self.begun_ns = now_ns;
            self.todo = connections
                .iter()
                .filter(|(_, tracked)| tracked.idle_since(now_ns.saturating_sub(ROUND_NS)))
                .map(|(id, _)| *id)
                .collect();
        }
        let idle_ns = self.begun_ns.saturating_sub(ROUND_NS);
        let slice = self.todo.len().saturating_sub(SLICE);
        let mut ended = Vec::new();
        for id in self.todo.drain(slice..) {
            let Some(tracked) = connections.get(&id).filter(|t| t.idle_since(idle_ns)) else {
                continue;
            };
            let sockets = self.held.entry(tracked.tgid);
            let sockets = sockets.or_insert_with(|| host.sockets_of(tracked.tgid));
            if !host.tracks(tracked.socket, id) {
                ended.push((id, None));
            } else if !tracked.is_unbound()
                && sockets
                    .as_ref()
                    .is_some_and(|open| !open.contains(&tracked.inode))
            {
                ended.push((id, Some(End::Closed(0))));
            }
        }
        ended
    }
}
