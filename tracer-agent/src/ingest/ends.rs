//! What ends, and what is given up: processes, connections whose end nobody told of, and everything.

use rustc_hash::FxHashMap;

use super::{HELD_NS, Host, Ingest, LINGER_NS, TLS_LATE_NS, hand_on};
use crate::protocol::{At, Connection, Direction, End, Input, Parser};

impl Ingest {
    /// A process ended: its unix connections ended with it (TCP ones are told by the kernel).
    pub fn exit(&mut self, tgid: u32, time_ns: u64, host: &mut impl Host) {
        let ended: Vec<u64> = self
            .endless
            .iter()
            .filter(|id| {
                self.connections
                    .get(id)
                    .is_some_and(|tracked| tracked.tgid == tgid)
            })
            .copied()
            .collect();
        for id in ended {
            self.finish(id, Some(End::Closed(0)), time_ns, host);
        }
    }

    /// Finishes what the kernel finished a while ago, and what ended without a word; to be called
    /// every so often.
    pub fn tick(&mut self, now_ns: u64, host: &mut impl Host) {
        while let Some(&(due_ns, id)) = self.binding.front() {
            if due_ns > now_ns {
                break;
            }
            self.binding.pop_front();
            if let Some(tracked) = self.connections.get_mut(&id) {
                self.unbound += tracked.give_up_waiting(host);
            }
        }
        while let Some(&(due_ns, id)) = self.shutting.front() {
            if due_ns > now_ns {
                break;
            }
            self.shutting.pop_front();
            // A connection that is closing brings it along.
            if let Some(tracked) = self.connections.get_mut(&id)
                && tracked.closed.is_none()
            {
                tracked.shut_down(&mut self.bytes, &mut self.outputs);
                self.unbound += hand_on(&mut self.outputs, &mut self.abandoned, tracked, host);
                self.unbound += tracked.give_up_waiting(host);
            }
        }
        // Asking what a process holds is slow: once per process and tick.
        let mut held = FxHashMap::default();
        while let Some(&(due_ns, id)) = self.closing.front() {
            if due_ns > now_ns {
                break;
            }
            self.closing.pop_front();
            let Some(tracked) = self.connections.get(&id) else {
                continue;
            };
            let Some(closed) = tracked.closed else {
                continue;
            };
            let waiting =
                tracked.in_flight() > 0 && now_ns < closed.time_ns.saturating_add(HELD_NS);
            let late =
                tracked.connection.tls && now_ns < closed.time_ns.saturating_add(TLS_LATE_NS);
            if waiting
                && (late
                    || held
                        .entry(tracked.tgid)
                        .or_insert_with(|| host.sockets_of(tracked.tgid))
                        .as_ref()
                        .is_some_and(|sockets| sockets.contains(&tracked.inode)))
            {
                self.closing
                    .push_back((now_ns.saturating_add(LINGER_NS), id));
                continue;
            }
            self.finish(id, Some(End::Closed(closed.errno)), now_ns, host);
        }
        for (id, how) in self.sweep.step(&self.connections, now_ns, host) {
            let ended_ns = self
                .connections
                .get(&id)
                .map_or(0, |tracked| tracked.last_ns);
            self.finish(id, how, ended_ns, host);
        }
    }

    /// Gives up the connections that are not traced any more (by process and connection), for `reason`, and has the
    /// kernel side forget them: should they be traced again, they are joined in the middle. Returns how
    /// many exchanges were open.
    pub fn forget(
        &mut self,
        is_ignored: impl Fn(u32, &Connection) -> bool,
        reason: &'static str,
        host: &mut impl Host,
    ) -> u64 {
        let mut open = 0;
        let (by_socket, endless) = (&mut self.by_socket, &mut self.endless);
        let unbound = &mut self.unbound;
        self.connections.retain(|id, tracked| {
            if !is_ignored(tracked.tgid, &tracked.connection) {
                return true;
            }
            let n = tracked.in_flight() as u64;
            if n > 0 {
                host.abandoned(tracked.tgid, reason, n);
                open += n;
            }
            endless.remove(id);
            *unbound += tracked.give_up_waiting(host);
            if by_socket.get(&tracked.socket) == Some(id) {
                by_socket.remove(&tracked.socket);
                host.forget(tracked.socket, *id);
            }
            false
        });
        open
    }

    /// Gives up everything still open, for `reason`. Returns how many exchanges had no end.
    pub fn abandon_all(&mut self, reason: &'static str, host: &mut impl Host) -> u64 {
        let mut open = 0;
        for tracked in self.connections.values() {
            let n = tracked.in_flight() as u64;
            if n > 0 {
                host.abandoned(tracked.tgid, reason, n);
                open += n;
            }
        }
        self.connections.clear();
        self.by_socket.clear();
        self.closing.clear();
        self.binding.clear();
        self.endless.clear();
        open
    }

    /// Ends a connection; `None` when what became of it is not known. What the kernel said goes
    /// before what the caller believes.
    pub(super) fn finish(&mut self, id: u64, how: Option<End>, time_ns: u64, host: &mut impl Host) {
        let Some(mut tracked) = self.connections.remove(&id) else {
            return;
        };
        self.endless.remove(&id);
        // Not there when the address was used again.
        if self.by_socket.get(&tracked.socket) == Some(&id) {
            self.by_socket.remove(&tracked.socket);
            host.forget(tracked.socket, id);
        }
        self.unbound += tracked.give_up_waiting(host);
        tracked.shut_down(&mut self.bytes, &mut self.outputs);
        let session = &mut tracked.parser;
        if matches!(session, Parser::None) {
            return;
        };
        // An end that nobody read is the time the kernel saw it.
        let time_ns = tracked
            .closed
            .map_or(time_ns, |closed| closed.time_ns.max(tracked.last_ns));
        let at = At {
            time_ns,
            start_ns: time_ns,
            tgid: tracked.tgid,
            tid: 0,
            cause: None,
        };
        let out = &mut self.outputs;
        if let Some(closed) = tracked.closed {
            for (side, direction, position) in [
                (&mut tracked.read, Direction::Read, closed.read_position),
                (&mut tracked.write, Direction::Write, closed.write_position),
            ] {
                side.catch_up(position, 0, &mut self.bytes, |input| {
                    session.receive(direction, input, &at, out);
                });
            }
        }
        let how = match (tracked.closed, how) {
            (Some(closed), _) => End::Closed(closed.errno),
            (None, Some(End::Closed(0))) => End::Closed(tracked.write_errno),
            (None, Some(how)) => how,
            (None, None) => {
                for direction in [Direction::Read, Direction::Write] {
                    session.receive(direction, Input::Lost(1), &at, out);
                }
                End::Closed(0)
            }
        };
        session.end(how, &at, out);
        self.unbound += hand_on(out, &mut self.abandoned, &mut tracked, host);
        self.unbound += tracked.give_up_waiting(host);
    }
}
