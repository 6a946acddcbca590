//! The fast tier: programs at the functions that do the system calls, instead of tracepoints of system calls.
//!
//! In: the loaded object, whose maps they share, and the running kernel's types. Out: the same events from the same code. All these functions
//! have one signature, `long (const struct pt_regs *)`, so the programs that they go on to by tail call are one set for all
//! (kernels since 6.1 let only programs of one signature share such a set; newer ones only programs of one kind too, so what
//! runs at an entry never goes on).
//!
//! It cannot see calls that began before it came, and not those in which threads sleep while others come to the same functions: see
//! [`handover`].

pub(super) mod blocked;
pub(super) mod handover;
mod perf;
mod points;
pub(super) mod sys;
mod watch;

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::Map;

use super::error::LoadError;
use super::load::{OBJECT, TAIL_CALLED, Verified};
use super::{object, parallel};
use crate::causes::chain;
use crate::kernel::btf::{Btf, Function};
use sys::{Code, When};

/// Programs, and the system calls that they are for; where there are several, not every architecture or kernel has all.
pub(super) const PROGRAMS: &[(&str, When, &[&str])] = &[
    ("sys_exit_read", When::Exit, &["read"]),
    ("sys_exit_readv", When::Exit, &["readv"]),
    ("sys_exit_preadv2", When::Exit, &["preadv2"]),
    ("sys_exit_recvfrom", When::Exit, &["recvfrom"]),
    ("sys_exit_recvmsg", When::Exit, &["recvmsg"]),
    ("sys_exit_recvmmsg", When::Exit, &["recvmmsg"]),
    ("sys_exit_write", When::Exit, &["write"]),
    ("sys_exit_writev", When::Exit, &["writev"]),
    ("sys_exit_pwritev2", When::Exit, &["pwritev2"]),
    ("sys_exit_sendto", When::Exit, &["sendto"]),
    ("sys_exit_sendmsg", When::Exit, &["sendmsg"]),
    ("sys_exit_sendmmsg", When::Exit, &["sendmmsg"]),
    ("sys_exit_sendfile64", When::Exit, &["sendfile64"]),
    ("sys_exit_splice", When::Exit, &["splice"]),
    ("sys_exit_mmap", When::Exit, &["mmap"]),
    (
        "sys_exit_epoll_wait",
        When::Exit,
        &["epoll_pwait", "epoll_wait", "epoll_pwait2"],
    ),
    ("sys_exit_poll", When::Exit, &["ppoll", "poll"]),
    ("sys_exit_select", When::Exit, &["pselect6", "select"]),
    ("sys_exit_accept4", When::Exit, &["accept4", "accept"]),
    (
        "sys_enter_write",
        When::Entry,
        &[
            "write",
            "writev",
            "pwritev2",
            "sendto",
            "sendmsg",
            "sendmmsg",
            "sendfile64",
        ],
    ),
    ("sys_enter_close", When::Entry, &["close"]),
    ("sys_enter_shutdown", When::Entry, &["shutdown"]),
];

/// Whether the program of this name is at functions.
pub(super) fn has(name: &str) -> bool {
    PROGRAMS.iter().any(|(program, ..)| *program == name)
}

/// What kernels have that keep the code around a function until all threads have left it, also those that sleep in it (kernel commit
/// e21aa341785c, Linux 5.12, and earlier ones that took it over). Without it, detaching would end the host.
const IMAGE: &str = "bpf_tramp_image";
/// The function that tail-called programs are loaded for; they are attached to none.
const ANY: &str = "read";
/// The maps that they are in, one for each signature that the functions have. They all take `const struct pt_regs *`, but in some
/// kernels the argument has another name where a call can be left out of the kernel (`COND_SYSCALL`), as those of sockets can, and the kernel
/// counts that as another signature.
const TABLES: [&str; 2] = ["FUNCTION_PROGRAMS", "FUNCTION_PROGRAMS_TOO"];
/// Where context in requests is looked for, and the indexes there.
const CONTEXTS: [(&str, u32); 2] = [("propagate_context", 5), ("propagate_blocks", 7)];

/// Whether the kernel takes a program of a function at all, tried with one of two instructions that is attached to
/// nothing: why not, or `None`.
pub fn obstacle(kernel: &Btf) -> Option<String> {
    /// `r0 = 0; exit`.
    const NOTHING: [u64; 2] = [0xb7, 0x95];
    let code = Code {
        instructions: NOTHING.to_vec(),
        ..Code::default()
    };
    let Some(function) = kernel.call(ANY, None) else {
        return Some(chain(&absent(ANY)));
    };
    if kernel.size(IMAGE).is_none() {
        return Some(
            "this kernel may free what a thread returns to that sleeps in such a function"
                .to_owned(),
        );
    }
    match sys::load("nothing", &code, None, When::Exit, function.id) {
        Ok(_) => watch::obstacle(),
        Err(refused) => Some(format!(
            "this kernel refuses programs of functions: {refused}"
        )),
    }
}

/// The same, asked by itself.
pub fn refused() -> Option<String> {
    match super::load::types() {
        Ok(types) => obstacle(&types),
        Err(error) => Some(chain(&error)),
    }
}

/// A loaded program.
struct Loaded {
    /// Its name in the object.
    program: &'static str,
    /// The call; none of those that are tail-called.
    call: Option<&'static str>,
    file: OwnedFd,
    /// While it is attached.
    link: Option<OwnedFd>,
    elapsed: Duration,
}

/// A call whose end is seen at its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exit {
    /// Its name.
    pub call: &'static str,
    /// The program in the object.
    pub program: &'static str,
    /// Type id of the function.
    pub function: u32,
}

/// Programs at functions; detached with it.
pub(super) struct Functions {
    /// What they see the ends of.
    pub(super) exits: Vec<Exit>,
    programs: Vec<Loaded>,
    families: Vec<Family>,
}

/// Programs that go on to each other.
struct Family {
    signature: u32,
    /// A function of this signature.
    function: u32,
    code: HashMap<String, Code>,
    /// Types of the programs.
    types: Option<OwnedFd>,
    /// Those that are tail-called.
    table: OwnedFd,
}

/// What is to be loaded.
struct Wanted {
    program: &'static str,
    when: When,
    call: Option<&'static str>,
    function: u32,
    /// Which family it is of; also the table's number.
    family: usize,
    /// Where it is in that table, if it is.
    index: Option<u32>,
}

impl Functions {
    /// Loads them. The object's maps have to be all there still.
    pub(super) fn load(ebpf: &Ebpf, kernel: &Btf) -> Result<Self, LoadError> {
        let any = kernel.call(ANY, None).ok_or_else(|| absent(ANY))?;
        let mut families = vec![Family::new(ebpf, 0, any)?];
        let mut wanted = Vec::new();
        for (program, when, calls) in PROGRAMS {
            let mut found = false;
            for call in *calls {
                let Some(function) = kernel.call(call, Some(any.signature)) else {
                    continue;
                };
                found = true;
                let mut family = 0;
                // Others never go on.
                if blocked::moves_bytes(program) {
                    let of = |family: &Family| family.signature == function.signature;
                    family = match families.iter().position(of) {
                        Some(family) => family,
                        None => {
                            families.push(Family::new(ebpf, families.len(), function)?);
                            families.len() - 1
                        }
                    };
                }
                wanted.push(Wanted {
                    program,
                    when: *when,
                    call: Some(call),
                    function: function.id,
                    family,
                    index: None,
                });
            }
            if !found {
                return Err(absent(calls.first().copied().unwrap_or(program)));
            }
        }
        let exits = wanted.iter().filter(|wanted| wanted.when == When::Exit);
        let exits = exits.filter_map(|wanted| {
            Some(Exit {
                call: wanted.call?,
                program: wanted.program,
                function: wanted.function,
            })
        });
        let exits = exits.collect();
        for (number, family) in families.iter().enumerate() {
            for (index, program) in (0..).zip(TAIL_CALLED) {
                wanted.push(Wanted {
                    program,
                    when: When::Exit,
                    call: None,
                    function: family.function,
                    family: number,
                    index: Some(index),
                });
            }
        }
        // Those that take long go first.
        wanted.sort_by_key(|wanted| wanted.index.is_none());
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let loaded = parallel::each(wanted, threads.min(8), |wanted| {
            let family = families
                .get(wanted.family)
                .ok_or(LoadError::Mismatch(wanted.program))?;
            let loaded = family.load(wanted.program, wanted.when, wanted.call, wanted.function)?;
            if let Some(index) = wanted.index {
                family.put(index, &loaded)?;
            }
            Ok(loaded)
        });
        let programs: Vec<Loaded> = loaded.into_iter().collect::<Result<_, LoadError>>()?;
        Ok(Functions {
            exits,
            programs,
            families,
        })
    }

    /// Attaches all of them; names of what they are attached to.
    pub(super) fn attach(&mut self) -> Result<Vec<String>, LoadError> {
        let programs = self.programs.iter_mut();
        let programs: Vec<_> = programs
            .filter_map(|loaded| Some((loaded.call?, loaded)))
            .collect();
        let threads = programs.len();
        let attached = parallel::each(programs, threads, |(call, loaded)| {
            let link = sys::attach(loaded.file.as_fd());
            loaded.link = Some(link.map_err(|source| because("attach", loaded.program, source))?);
            Ok(format!("{} at the function of {call}", loaded.program))
        });
        attached.into_iter().collect()
    }

    /// Has context looked for in requests.
    pub(super) fn propagate(&mut self) -> Result<(), LoadError> {
        for family in &self.families {
            for (program, index) in CONTEXTS {
                let loaded = family.load(program, When::Exit, None, family.function)?;
                family.put(index, &loaded)?;
                self.programs.push(loaded);
            }
        }
        Ok(())
    }

    /// What the verifier said of each program.
    pub(super) fn verified(&self) -> impl Iterator<Item = Verified> {
        self.programs.iter().map(|loaded| Verified {
            name: loaded.name(),
            instructions: loaded.info("verified_insns").map(|n| n as u32),
            elapsed: loaded.elapsed,
        })
    }

    /// Name, runs and nanoseconds of each program, as far as the kernel measures.
    pub(super) fn costs(&self) -> impl Iterator<Item = (String, u64, u64)> {
        self.programs.iter().map(|loaded| {
            let value = |name| loaded.info(name).unwrap_or(0);
            (loaded.name(), value("run_cnt"), value("run_time_ns"))
        })
    }
}

impl Family {
    fn new(ebpf: &Ebpf, number: usize, function: Function) -> Result<Self, LoadError> {
        let name = TABLES.get(number).ok_or(LoadError::Mismatch(
            "map for a third signature of functions",
        ))?;
        let table = ebpf.map(name).and_then(descriptor);
        let table = table.ok_or(LoadError::Mismatch(name))?;
        let table = table
            .try_clone_to_owned()
            .map_err(|source| because("load", name, source))?;
        let (code, types) = code(ebpf, name)?;
        Ok(Family {
            signature: function.signature,
            function: function.id,
            code,
            types,
            table,
        })
    }

    fn load(
        &self,
        program: &'static str,
        when: When,
        call: Option<&'static str>,
        function: u32,
    ) -> Result<Loaded, LoadError> {
        let start = Instant::now();
        let code = self.code.get(program).ok_or(LoadError::Mismatch(program))?;
        let types = self.types.as_ref().map(OwnedFd::as_fd);
        let file = sys::load(program, code, types, when, function)
            .map_err(|source| because("load", program, source))?;
        Ok(Loaded {
            program,
            call,
            file,
            link: None,
            elapsed: start.elapsed(),
        })
    }

    fn put(&self, index: u32, loaded: &Loaded) -> Result<(), LoadError> {
        sys::set_program(self.table.as_fd(), index, loaded.file.as_fd())
            .map_err(|source| because("load", loaded.program, source))
    }
}

impl Loaded {
    fn name(&self) -> String {
        match self.call {
            Some(call) => format!("{} ({call})", self.program),
            None => format!("{} (functions)", self.program),
        }
    }

    /// A number that the kernel tells of the program.
    fn info(&self, name: &str) -> Option<u64> {
        let path = format!("/proc/self/fdinfo/{}", self.file.as_raw_fd());
        let text = fs::read_to_string(path).ok()?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().parse().ok()
    }
}

/// All programs as they are for functions, with the maps of the loaded object, and their types.
fn code(ebpf: &Ebpf, table: &str) -> Result<(HashMap<String, Code>, Option<OwnedFd>), LoadError> {
    let bytes =
        object::for_functions(OBJECT, table).ok_or(LoadError::Mismatch("table of symbols"))?;
    let failed = |error: aya_obj::relocation::EbpfRelocationError| LoadError::Object(error.into());
    let mut object =
        aya_obj::Object::parse(&bytes).map_err(|error| LoadError::Object(error.into()))?;
    let types = match aya::features().btf() {
        Some(features) => object
            .fixup_and_sanitize_btf(features)
            .map_err(|error| LoadError::Object(error.into()))?
            .map(aya_obj::btf::Btf::to_bytes),
        None => None,
    };
    let types = types
        .map(|bytes| sys::load_types(&bytes))
        .transpose()
        .map_err(|error| because("load", "types", error))?;
    let maps = std::mem::take(&mut object.maps);
    let mut known = Vec::with_capacity(maps.len());
    for (name, map) in &maps {
        let there = ebpf.map(name).and_then(descriptor);
        let there = there.ok_or(LoadError::Mismatch("map that its programs use"))?;
        known.push((name.as_str(), there.as_raw_fd(), map));
    }
    let texts = object
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect();
    object
        .relocate_maps(known.into_iter(), &texts)
        .map_err(failed)?;
    object.relocate_calls(&texts).map_err(failed)?;
    let wanted = |name: &str| {
        TAIL_CALLED.contains(&name)
            || CONTEXTS.iter().any(|(context, _)| *context == name)
            || PROGRAMS.iter().any(|(program, ..)| *program == name)
    };
    let programs = object.programs.iter().filter(|(name, _)| wanted(name));
    let code = programs.filter_map(|(name, program)| {
        let function = object.functions.get(&program.function_key())?;
        let words = function.instructions.iter().map(|instruction| {
            u64::from(instruction.code)
                | u64::from(instruction.dst_reg()) << 8
                | u64::from(instruction.src_reg()) << 12
                | u64::from(instruction.off.cast_unsigned()) << 16
                | u64::from(instruction.imm.cast_unsigned()) << 32
        });
        let code = Code {
            instructions: words.collect(),
            functions: function.func_info.func_info_bytes(),
            record: u32::try_from(function.func_info_rec_size).unwrap_or(0),
        };
        Some((name.clone(), code))
    });
    Ok((code.collect(), types))
}

/// A map's descriptor.
pub(super) fn descriptor(map: &Map) -> Option<BorrowedFd<'_>> {
    let data = match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::ProgramArray(data)
        | Map::Queue(data)
        | Map::RingBuf(data)
        | Map::SockHash(data)
        | Map::SkStorage(data)
        | Map::Unsupported(data) => data,
        _ => return None,
    };
    Some(data.fd().as_fd())
}

fn absent(call: &str) -> LoadError {
    LoadError::NoFunction(call.to_owned())
}

fn because(
    action: &'static str,
    program: &str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> LoadError {
    LoadError::Function {
        action,
        program: program.to_owned(),
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use ::object::{Object as _, ObjectSymbol as _};

    use super::super::futex;
    use super::super::load::{Options, open, types};
    use super::*;
    use crate::kernel::tier::{Choice, Tier};

    /// Scenario: the object built in, its maps made. Guarantees: there is code for every program that functions get, in which all
    /// maps are known, and it is another code than that of tracepoints.
    #[test]
    fn every_program_has_code() {
        if super::super::check_rights().is_err() {
            return println!("skipped: no kernel side, or no rights to load it");
        }
        let options = Options {
            ring_bytes: 1 << 16,
            max_connections: 1024,
            bpf_stats: false,
            agent_tgid: std::process::id(),
            propagate: None,
            tls: false,
            tier: Choice::Auto,
        };
        let types = types().expect("types");
        let ebpf = open(&options, Tier::Fast, &types).expect("maps");
        let (code, _) = code(&ebpf, TABLES[1]).expect("code");
        let names = PROGRAMS.iter().map(|(program, ..)| *program);
        for name in names
            .chain(TAIL_CALLED)
            .chain(CONTEXTS.map(|(name, _)| name))
        {
            let code = code
                .get(name)
                .unwrap_or_else(|| panic!("no code of {name}"));
            assert!(code.record > 0 && !code.functions.is_empty(), "{name}");
            let code = &code.instructions;
            assert!(code.len() > 2, "{name}: {} instructions", code.len());
            // BPF_LD_IMM64 of a map or of a value in one: by its descriptor.
            let maps = code
                .iter()
                .filter(|word| matches!(*word & 0xf0ff, 0x1018 | 0x2018));
            let maps: Vec<u64> = maps.map(|word| word >> 32).collect();
            assert!(!maps.is_empty() && !maps.contains(&0), "{name}: {maps:?}");
        }
        let file = ::object::File::parse(OBJECT).expect("an object");
        let names = file.symbols().filter_map(|symbol| symbol.name().ok());
        let calls = names.filter(|name| name.starts_with("sys_e") && !futex::HOOKS.contains(name));
        for name in calls {
            let is_there = PROGRAMS.iter().any(|(program, ..)| *program == name);
            assert!(is_there, "{name} is at no function");
        }
        for call in ["read", "write", "sendto", "recvfrom", "close"] {
            assert!(types.call(call, None).is_some(), "no function of {call}");
        }
        assert!(types.call("no_such_call", None).is_none());
        if obstacle(&types).is_some() {
            return println!("not loaded: this kernel takes no programs of functions");
        }
        let functions = Functions::load(&ebpf, &types).expect("programs");
        assert!(functions.verified().count() > 30);
    }
}
