//! What is known of a process before anything is made of it.
//!
//! From the kernel's exec record where there was one (it is there even when the process is already
//! gone), else from `/proc`. Cheap enough to be taken for every exec on the host.

use tracer_common::abi::ExecEvent;

use super::container::Place;
use super::proc_fs::{NS_PER_TICK, ProcFs};

/// Bytes of arguments that are kept per process.
const ARGS_KEPT: usize = 1024;
/// Bytes of one environment variable that are kept.
const VARIABLE_KEPT: usize = 2048;

/// An exec record of the kernel side.
#[derive(Clone, Copy, Debug)]
pub struct ExecInfo<'a> {
    /// When it happened, `CLOCK_BOOTTIME`.
    pub time_ns: u64,
    /// The process.
    pub tgid: u32,
    /// Its parent.
    pub parent: u32,
    /// Its user.
    pub uid: u32,
    /// Start of the process, `CLOCK_BOOTTIME`.
    pub start_ns: u64,
    /// Name of the main thread, NUL-padded.
    pub comm: &'a [u8],
    /// NUL-separated arguments; cut when they do not end in NUL.
    pub args: &'a [u8],
    /// NUL-separated environment; cut when it does not end in NUL.
    pub env: &'a [u8],
    /// Its cgroup (v2) id.
    pub cgroup: u64,
}

impl<'a> ExecInfo<'a> {
    /// The record `event` with the bytes that followed it. Lengths that say more than there is
    /// mean what there is.
    pub fn new(event: &'a ExecEvent, tail: &'a [u8]) -> Self {
        let (args, rest) = tail.split_at(usize::from(event.args_len).min(tail.len()));
        let env = rest.get(..usize::from(event.env_len)).unwrap_or(rest);
        Self {
            time_ns: event.time_ns,
            tgid: event.tgid,
            parent: event.parent_tgid,
            uid: event.uid,
            start_ns: event.start_ns,
            comm: &event.comm,
            args,
            env,
            cgroup: event.cgroup,
        }
    }
}

/// The variables of a process's environment that mean something here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `OTEL_SERVICE_NAME`, if not empty.
    pub service_name: Option<Box<str>>,
    /// `OTEL_RESOURCE_ATTRIBUTES`, if not empty.
    pub resource_attributes: Option<Box<str>>,
    /// `FLASK_APP`, if not empty.
    pub flask_app: Option<Box<str>>,
    /// There may be more variables than were seen.
    pub cut: bool,
}

impl Environment {
    /// Out of NUL-separated `NAME=value` pairs. A value that may have been cut is not taken.
    pub fn parse(bytes: &[u8]) -> Self {
        let cut = !bytes.is_empty() && bytes.last() != Some(&0);
        let mut environment = Self {
            cut,
            ..Self::default()
        };
        let whole = if cut {
            bytes
                .iter()
                .rposition(|byte| *byte == 0)
                .map_or(0, |at| at + 1)
        } else {
            bytes.len()
        };
        for pair in bytes
            .get(..whole)
            .unwrap_or_default()
            .split(|byte| *byte == 0)
        {
            let Some(at) = pair.iter().position(|byte| *byte == b'=') else {
                continue;
            };
            let (name, value) = pair.split_at(at);
            let slot = match name {
                b"OTEL_SERVICE_NAME" => &mut environment.service_name,
                b"OTEL_RESOURCE_ATTRIBUTES" => &mut environment.resource_attributes,
                b"FLASK_APP" => &mut environment.flask_app,
                _ => continue,
            };
            let value = String::from_utf8_lossy(value.get(1..).unwrap_or_default());
            let value = value.trim();
            if slot.is_none() && !value.is_empty() && value.len() <= VARIABLE_KEPT {
                *slot = Some(value.into());
            }
        }
        environment
    }

    /// Whether it says who the service is.
    pub fn declares(&self) -> bool {
        self.service_name.is_some() || self.resource_attributes.is_some()
    }
}

/// A process before anything is made of it. About 1 KiB at most, but for the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Process id.
    pub pid: u32,
    /// Its parent.
    pub parent: u32,
    /// Real user id.
    pub uid: Option<u32>,
    /// Start in ticks since boot: with the pid, the identity of the process.
    pub start_ticks: Option<u64>,
    /// Name of the main thread.
    pub comm: Box<str>,
    /// Path of the program.
    pub exe: Option<Box<str>>,
    /// First arguments, the program's own name first.
    pub args: Vec<Box<str>>,
    /// There may be more arguments than are kept.
    pub args_cut: bool,
    /// Container it runs in.
    pub container_id: Option<Box<str>>,
    /// Pod it runs in, as its cgroup says.
    pub pod_uid: Option<Box<str>>,
    /// What its environment says.
    pub environment: Environment,
}

impl ProcessFacts {
    /// From `/proc`; `None` when the process is gone.
    pub fn read(proc: &ProcFs, pid: u32) -> Option<Self> {
        let stat = proc.stat(pid)?;
        let (args, args_cut) = keep(&arguments(&proc.arguments(pid).unwrap_or_default()));
        let Place {
            container_id,
            pod_uid,
        } = Place::of(proc, pid);
        Some(Self {
            pid,
            parent: stat.parent,
            uid: proc.uid(pid),
            start_ticks: Some(stat.start_ticks),
            comm: stat.comm.into(),
            exe: proc.exe(pid).map(Into::into),
            args,
            args_cut,
            container_id,
            pod_uid,
            environment: Environment::parse(&proc.environment(pid).unwrap_or_default()),
        })
    }

    /// From an exec record; what the kernel does not tell comes from `/proc` while it is there.
    pub fn from_exec(proc: &ProcFs, info: &ExecInfo<'_>) -> Self {
        let comm = info
            .comm
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default();
        let start_ticks = info.start_ns / NS_PER_TICK;
        // The pid may belong to a later process by now: its start time tells.
        let alive = proc
            .stat(info.tgid)
            .is_some_and(|stat| stat.start_ticks == start_ticks);
        let mut all = arguments(info.args);
        let cut = !info.args.is_empty() && info.args.last() != Some(&0);
        if cut && all.len() > 1 {
            all.pop();
        }
        let (args, more) = keep(&all);
        let Place {
            container_id,
            pod_uid,
        } = if alive {
            Place::of(proc, info.tgid)
        } else {
            Place::default()
        };
        let mut environment = Environment::parse(info.env);
        // Nothing at all is more likely unreadable memory than an empty environment.
        environment.cut |= info.env.is_empty();
        Self {
            pid: info.tgid,
            parent: info.parent,
            uid: Some(info.uid),
            start_ticks: Some(start_ticks),
            comm: String::from_utf8_lossy(comm).into(),
            exe: if alive {
                proc.exe(info.tgid).map(Into::into)
            } else {
                None
            },
            args,
            args_cut: cut || more || info.args.is_empty(),
            container_id,
            pod_uid,
            environment,
        }
    }

    /// Whether the process is still there, and still the same.
    pub fn is_alive(&self, proc: &ProcFs) -> bool {
        proc.stat(self.pid)
            .is_some_and(|stat| Some(stat.start_ticks) == self.start_ticks && stat.state != 'Z')
    }

    /// Base name of the program; without its path, of its first argument, else the thread's name.
    pub fn exe_name(&self) -> &str {
        let path = self
            .exe
            .as_deref()
            .or_else(|| self.args.first().map(|first| &**first));
        path.and_then(|path| path.rsplit('/').next())
            .filter(|name| !name.is_empty())
            .unwrap_or(&self.comm)
    }

    /// A kernel thread or a process that ended: neither program nor arguments.
    pub fn is_bare(&self) -> bool {
        self.exe.is_none() && self.args.is_empty()
    }
}

/// Arguments out of their NUL-separated form; padding behind a rewritten title is left out.
pub fn arguments(bytes: &[u8]) -> Vec<String> {
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at + 1);
    if end == 0 {
        return Vec::new();
    }
    bytes
        .get(..end)
        .unwrap_or_default()
        .split(|byte| *byte == 0)
        .map(|arg| String::from_utf8_lossy(arg).into_owned())
        .collect()
}

fn keep(args: &[String]) -> (Vec<Box<str>>, bool) {
    let mut kept = Vec::new();
    let mut bytes = 0;
    for arg in args {
        bytes += arg.len() + 1;
        if bytes > ARGS_KEPT {
            return (kept, true);
        }
        kept.push(arg.as_str().into());
    }
    (kept, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environments() {
        let environment = Environment::parse(b"A=b\0OTEL_SERVICE_NAME=shop\0OTEL_SERVICE_NAME=second\0OTEL_RESOURCE_ATTRIBUTES=a=b\0");
        assert_eq!(environment.service_name.as_deref(), Some("shop"));
        assert_eq!(environment.resource_attributes.as_deref(), Some("a=b"));
        assert!(!environment.cut && environment.declares());
        // A cut value may be half a name.
        let environment = Environment::parse(b"A=b\0OTEL_SERVICE_NAME=sho");
        assert!(environment.cut && !environment.declares());
        for nothing in [
            &b""[..],
            b"\0\0",
            b"OTEL_SERVICE_NAME=\0",
            b"OTEL_SERVICE_NAME\0",
            b"=\0",
            b"\xff\xfe=\0",
        ] {
            assert!(!Environment::parse(nothing).declares(), "{nothing:?}");
        }
    }

    #[test]
    fn argument_forms() {
        for (bytes, expected) in [
            (&b"a\0b\0"[..], &["a", "b"][..]),
            (b"a\0\0c\0", &["a", "", "c"]),
            (b"nginx: worker process\0\0\0\0", &["nginx: worker process"]),
            (b"cut\0of", &["cut", "of"]),
            (b"\0\0", &[]),
            (b"", &[]),
        ] {
            assert_eq!(arguments(bytes), expected);
        }
    }

    #[test]
    fn exec_records_with_lying_lengths() {
        use zerocopy::FromZeros;
        let mut event = ExecEvent::new_zeroed();
        event.args_len = 4;
        event.env_len = 100;
        let info = ExecInfo::new(&event, b"a\0b\0X=1\0");
        assert_eq!((info.args, info.env), (&b"a\0b\0"[..], &b"X=1\0"[..]));
        event.args_len = 100;
        let info = ExecInfo::new(&event, b"a\0b\0");
        assert_eq!((info.args, info.env), (&b"a\0b\0"[..], &b""[..]));
    }

    #[test]
    fn a_cut_argument_is_dropped() {
        let root = tempfile::tempdir().expect("tempdir");
        let info = ExecInfo {
            time_ns: 0,
            tgid: 7,
            parent: 1,
            uid: 0,
            start_ns: 5 * NS_PER_TICK + 1,
            comm: b"python3\0\0",
            args: b"python3\0sho",
            env: b"",
            cgroup: 0,
        };
        let facts = ProcessFacts::from_exec(&ProcFs::new(root.path()), &info);
        assert_eq!(facts.args, ["python3".into()]);
        assert!(facts.args_cut);
        assert_eq!(
            (facts.start_ticks, &*facts.comm, facts.exe_name()),
            (Some(5), "python3", "python3")
        );
    }
}
