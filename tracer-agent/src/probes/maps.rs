//! The doors from user space to the loaded kernel side, all of them maps: policy, and its counters.

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use rustc_hash::FxHashSet;
use tracer_common::abi::{connection_entry, drop_reason, exchanges, policy, setting};

use super::error::LoadError;

/// What the kernel side looks at by itself; can be changed while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// Ask the process table for every call.
    pub policy_active: bool,
    /// `abi::policy` flags for processes without an entry.
    pub policy_default: u32,
    /// Look at new programs until their policy is set.
    pub new_undecided: bool,
    /// Some ports are ignored.
    pub ports_active: bool,
}

impl Switches {
    /// The default goes first: between two of the writes nothing that is traced before and after
    /// must be overlooked.
    pub(super) fn write<M: std::borrow::BorrowMut<MapData>>(
        self,
        settings: &mut Array<M, u32>,
    ) -> Result<(), aya::maps::MapError> {
        let Switches {
            policy_active,
            policy_default,
            new_undecided: _,
            ports_active,
        } = self;
        settings.set(setting::POLICY_DEFAULT, policy_default, 0)?;
        let active = if policy_active { setting::ASK } else { 0 };
        settings.set(setting::POLICY_ACTIVE, active | self.undecided(), 0)?;
        settings.set(setting::PORTS_ACTIVE, u32::from(ports_active), 0)
    }

    fn undecided(self) -> u32 {
        if self.new_undecided {
            setting::NEW_UNDECIDED
        } else {
            0
        }
    }
}

/// Maps shared with the kernel side: the two doors from user space (policy) and its counters.
pub struct Maps {
    drops: PerCpuArray<MapData, u64>,
    counts: PerCpuArray<MapData, u64>,
    processes: HashMap<MapData, u32, u32>,
    ports: HashMap<MapData, u32, u8>,
    settings: Array<MapData, u32>,
    connections: HashMap<MapData, u64, ConnectionValue>,
    kinds: HashMap<MapData, u32, u32>,
    exchanges: Array<MapData, [u64; 2]>,
}

/// Only update what is there (`BPF_EXIST`).
const BPF_EXIST: u64 = 2;

/// Value of the kernel's connection table; only its id (the first field) is of interest here.
type ConnectionValue = [u64; connection_entry::WORDS];

/// Counters of the kernel side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelCounts {
    /// Records submitted.
    pub submitted: u64,
    /// Connections not parsed: TLS, HTTP/2, anything else.
    pub unparsed_connections: [(&'static str, u64); 3],
    /// Most bytes that ever were pending in the ring.
    pub ring_highest: u64,
    /// By `abi::drop_reason`.
    pub drops: [u64; drop_reason::COUNT as usize],
}

impl Maps {
    /// Takes them from the loaded object, once.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let mut take = |name| ebpf.take_map(name).ok_or(LoadError::Mismatch(name));
        Ok(Maps {
            drops: PerCpuArray::try_from(take("DROPS")?)?,
            counts: PerCpuArray::try_from(take("COUNTS")?)?,
            processes: HashMap::try_from(take("PROCESSES")?)?,
            ports: HashMap::try_from(take("IGNORED_PORTS")?)?,
            settings: Array::try_from(take("SETTINGS")?)?,
            connections: HashMap::try_from(take("CONNECTIONS")?)?,
            kinds: HashMap::try_from(take("KINDS")?)?,
            exchanges: Array::try_from(take("EXCHANGES")?)?,
        })
    }

    /// Sums the per-CPU counters.
    pub fn counts(&self) -> Result<KernelCounts, aya::maps::MapError> {
        let sum = |map: &PerCpuArray<MapData, u64>, index| {
            Ok::<u64, aya::maps::MapError>(map.get(&index, 0)?.iter().sum())
        };
        let mut drops = [0; drop_reason::COUNT as usize];
        for (index, slot) in drops.iter_mut().enumerate() {
            *slot = sum(&self.drops, index as u32)?;
        }
        Ok(KernelCounts {
            submitted: sum(&self.counts, 0)?,
            unparsed_connections: [
                ("tls", sum(&self.counts, 1)?),
                ("http2", sum(&self.counts, 2)?),
                ("other", sum(&self.counts, 3)?),
            ],
            ring_highest: self.counts.get(&4, 0)?.iter().copied().max().unwrap_or(0),
            drops,
        })
    }

    /// Sets one process's policy (`abi::policy` flags).
    pub fn set_process(&mut self, tgid: u32, flags: u32) -> Result<(), aya::maps::MapError> {
        self.processes.insert(tgid, flags, 0)
    }

    /// Says how a process runs what it serves (`abi::kind_of_process`).
    pub fn set_kind(&mut self, tgid: u32, kind: u32) -> Result<(), aya::maps::MapError> {
        self.kinds.insert(tgid, kind, 0)
    }

    /// Forgets how a process ran that ended: the kernel side did, perhaps before it was said.
    pub fn remove_kind(&mut self, tgid: u32) {
        // Not having had an entry is the usual case.
        let _ = self.kinds.remove(&tgid);
    }

    /// How a process runs what it serves, with what was learnt of it; `None` if it has no entry.
    pub fn kind(&self, tgid: u32) -> Option<u32> {
        self.kinds.get(&tgid, 0).ok()
    }

    /// Forgets a process that ended.
    pub fn remove_process(&mut self, tgid: u32) {
        // Not having had an entry is the usual case.
        let _ = self.processes.remove(&tgid);
    }

    /// True for a process forked by one of whose program it was not yet decided whether it is traced.
    pub fn is_undecided_child(&self, tgid: u32) -> bool {
        let flags = self.processes.get(&tgid, 0);
        flags.is_ok_and(|flags| flags & policy::UNDECIDED_CHILD != 0)
    }

    /// True for a process whose newest program is undecided and was not started at `time_ns`.
    pub fn has_newer_program(&self, tgid: u32, time_ns: u64) -> bool {
        let started = policy::started(time_ns);
        self.processes.get(&tgid, 0).is_ok_and(|flags| {
            flags & policy::UNDECIDED != 0 && flags & policy::started(u64::MAX) != started
        })
    }

    /// Before the first look at what runs: programs that start from now on are undecided where `switches`
    /// says so. Nothing is looked at yet.
    pub fn begin(&mut self, switches: Switches) -> Result<(), aya::maps::MapError> {
        let closed = setting::CLOSED | switches.undecided();
        self.settings.set(setting::POLICY_ACTIVE, closed, 0)
    }

    /// Has the kernel side follow other switches from now on.
    pub fn switch(&mut self, switches: Switches) -> Result<(), aya::maps::MapError> {
        switches.write(&mut self.settings)
    }

    /// Has the kernel side look at nothing until it is told otherwise.
    pub fn close(&mut self) -> Result<(), aya::maps::MapError> {
        self.settings
            .set(setting::POLICY_ACTIVE, setting::CLOSED, 0)
    }

    /// Looks at all ports but these, local and remote; applies to connections made from now on.
    pub fn ignore_ports(&mut self, ports: &[u16]) -> Result<(), aya::maps::MapError> {
        let keys = |port: u16| [u32::from(port) << 1, u32::from(port) << 1 | 1];
        let wanted: FxHashSet<u32> = ports.iter().copied().flat_map(keys).collect();
        let present: Vec<u32> = self.ports.keys().filter_map(Result::ok).collect();
        for key in present.iter().filter(|key| !wanted.contains(key)) {
            // Gone in between is as good.
            let _ = self.ports.remove(key);
        }
        for key in wanted {
            self.ports.insert(key, 1, 0)?;
        }
        Ok(())
    }

    /// Takes every connection out of the kernel's table that was there before `time_ns` and is not
    /// `known`: what is not told of was not looked at, so where it stands is not known either. If it
    /// speaks again it is joined in the middle.
    pub fn forget_connections(&mut self, time_ns: u64, known: impl Fn(u64) -> bool) {
        let sockets: Vec<u64> = self.connections.keys().filter_map(Result::ok).collect();
        for socket in sockets {
            if let Ok(value) = self.connections.get(&socket, 0)
                && value[connection_entry::SINCE_WORD] < time_ns
                && !known(value[0])
            {
                let _ = self.connections.remove(&socket);
                self.end_exchange(&value);
            }
        }
    }

    /// When the exchange of a forgotten connection ends is not seen any more: what is called from now on is not taken for its own.
    /// Among those that are in flight it still counts: it may well be.
    fn end_exchange(&mut self, value: &ConnectionValue) {
        let exchange = [value[0], value[connection_entry::OPEN_KEY_WORD]];
        let first = exchanges::first_slot(exchange[0], exchange[1]);
        for slot in first..first + exchanges::WAYS {
            if self
                .exchanges
                .get(&slot, 0)
                .is_ok_and(|held| held == exchange)
            {
                // Another one that takes the slot meanwhile loses it, and calls for it have no parent.
                let _ = self.exchanges.set(slot, [0, 0], 0);
            }
        }
    }

    /// True when a connection is in the kernel's table.
    pub fn tracks_connection(&self, socket: u64, id: u64) -> bool {
        self.connections
            .get(&socket, 0)
            .is_ok_and(|value| value[0] == id)
    }

    /// Takes a connection out of the kernel's table, if it still is the one meant.
    pub fn forget_connection(&mut self, socket: u64, id: u64) {
        if let Ok(value) = self.connections.get(&socket, 0)
            && value[0] == id
        {
            let _ = self.connections.remove(&socket);
            self.end_exchange(&value);
        }
    }

    /// Has a connection only counted from now on, if it still is the one meant. A call that is under
    /// way may overwrite this; then the connection is met again and this is done again.
    pub fn ignore_connection(&mut self, socket: u64, id: u64) {
        if let Ok(mut value) = self.connections.get(&socket, 0)
            && value[0] == id
        {
            let shift = 8 * (connection_entry::VERDICT_BYTE % 8);
            let word = &mut value[connection_entry::VERDICT_BYTE / 8];
            *word = *word & !(0xff << shift) | u64::from(connection_entry::IGNORED) << shift;
            // Gone in between is as good.
            let _ = self.connections.insert(socket, value, BPF_EXIST);
        }
    }
}
