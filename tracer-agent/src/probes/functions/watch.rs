//! Does somebody else's program come to functions of the kernel, or go from them?
//!
//! In: the kernel's records of code that it makes (`PERF_RECORD_KSYMBOL`), one ring for each CPU. For each change of the programs at
//! a function it makes the code around that function anew, and tells the name, `bpf_trampoline_KEY`, before it lets threads that
//! sleep in the old code skip the programs at the function's end. Out: which functions, by their numbers in the kernel's types. What
//! is lost on the way counts as a change of all.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::perf::{Ring, wait};

/// From one look at which CPUs there are to the next, at most.
const CPUS: Duration = Duration::from_secs(5);

/// Functions that programs came to, or went from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Their numbers.
    pub functions: Vec<u32>,
    /// Nobody knows which: any.
    pub any: bool,
}

/// Rings of all CPUs.
pub struct Watch {
    cpus: Vec<u32>,
    rings: Vec<Ring>,
    bytes: Vec<u8>,
}

impl Watch {
    /// Opens it; from then on nothing is missed.
    pub fn open() -> io::Result<Self> {
        let cpus = cpus()?;
        let rings = cpus
            .iter()
            .map(|cpu| Ring::open(*cpu))
            .collect::<io::Result<_>>()?;
        Ok(Watch {
            cpus,
            rings,
            bytes: Vec::new(),
        })
    }

    /// Waits for changes that others make, for so long; `None` when the other end of `stop` has gone.
    pub fn wait(&mut self, stop: BorrowedFd<'_>, limit: Duration) -> Option<Changed> {
        let all = std::iter::once(stop).chain(self.rings.iter().map(AsFd::as_fd));
        let told = wait(all, limit.min(CPUS));
        let mut changed = Changed::default();
        match told {
            Ok(told) if told.first() == Some(&true) => return None,
            Ok(told) if told.contains(&true) => {}
            // Time has passed, without anything to read.
            Ok(_) => self.look_at_cpus(&mut changed),
            Err(_) => {
                std::thread::sleep(Duration::from_millis(10));
                changed.any = true;
            }
        }
        self.bytes.clear();
        for ring in &mut self.rings {
            ring.take(&mut self.bytes);
        }
        read(&self.bytes, std::process::id(), &mut changed);
        Some(changed)
    }

    /// A CPU that came has done what nobody has seen.
    fn look_at_cpus(&mut self, changed: &mut Changed) {
        let Ok(now) = cpus() else { return };
        if now == self.cpus {
            return;
        }
        changed.any = true;
        if let Ok(new) = Watch::open() {
            // What the old ones have to tell yet is nothing to what `any` says.
            *self = new;
        }
    }
}

fn cpus() -> io::Result<Vec<u32>> {
    aya::util::online_cpus().map_err(|(_, error)| error)
}

/// Why there can be none; `None` if there can.
pub fn obstacle() -> Option<String> {
    let error = Watch::open().err()?;
    Some(format!(
        "it cannot be seen when other programs come to functions: {error}"
    ))
}

/// Goes over records; what `own` did is left out.
fn read(bytes: &[u8], own: u32, changed: &mut Changed) {
    const LOST: u32 = 2;
    const KSYMBOL: u32 = 17;
    const HEADER: usize = 8;
    let mut rest = bytes;
    while let Some((header, _)) = rest.split_first_chunk::<HEADER>() {
        let [a, b, c, d, _, _, low, high] = *header;
        let size = usize::from(u16::from_ne_bytes([low, high]));
        let (Some(record), true) = (rest.get(HEADER..size), size >= HEADER) else {
            changed.any = true;
            return;
        };
        rest = rest.get(size..).unwrap_or_default();
        match u32::from_ne_bytes([a, b, c, d]) {
            LOST => changed.any = true,
            KSYMBOL => match symbol(record) {
                Some((function, pid)) if pid != own => changed.functions.push(function),
                _ => {}
            },
            _ => {}
        }
    }
}

/// The function that code was made for, and by whom; `None` of other code, and of code that goes.
fn symbol(record: &[u8]) -> Option<(u32, u32)> {
    const BPF: u16 = 1;
    const GOES: u16 = 1;
    // Address, length, kind, flags, name; process and thread.
    let (fixed, rest) = record.split_first_chunk::<16>()?;
    let (name, id) = rest.split_last_chunk::<8>()?;
    let half = |at: usize| Some(u16::from_ne_bytes([*fixed.get(at)?, *fixed.get(at + 1)?]));
    if half(12)? != BPF || half(14)? & GOES != 0 {
        return None;
    }
    let [a, b, c, d, ..] = *id;
    let name = name.split(|byte| *byte == 0).next()?;
    let function = function(std::str::from_utf8(name).ok()?)?;
    Some((function, u32::from_ne_bytes([a, b, c, d])))
}

/// The kernel's function that the code of this name is around: `bpf_trampoline_KEY`, in some kernels with `_N` behind it.
fn function(name: &str) -> Option<u32> {
    /// Of functions, as against programs that others replace.
    const FUNCTION: u64 = 1 << 31;
    let key = name.strip_prefix("bpf_trampoline_")?;
    let key: u64 = key.split('_').next()?.parse().ok()?;
    // The number of the types is above it: those of a module count as well, which costs little.
    (key & FUNCTION != 0).then_some((key & (FUNCTION - 1)) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u32 = 77;

    fn record(kind: u32, body: &[u8]) -> Vec<u8> {
        let size = u16::try_from(body.len() + 8).expect("small");
        let mut record = kind.to_ne_bytes().to_vec();
        record.extend([0, 0]);
        record.extend(size.to_ne_bytes());
        record.extend(body);
        record
    }

    fn code(name: &str, kind: u16, flags: u16, pid: u32) -> Vec<u8> {
        let mut body = vec![0xaa; 12];
        body.extend(kind.to_ne_bytes());
        body.extend(flags.to_ne_bytes());
        body.extend(name.as_bytes());
        body.push(0);
        body.resize(body.len().next_multiple_of(8), 0);
        body.extend(pid.to_ne_bytes());
        body.extend((pid + 1).to_ne_bytes());
        record(17, &body)
    }

    fn changed(bytes: &[u8]) -> Changed {
        let mut changed = Changed::default();
        read(bytes, OWN, &mut changed);
        changed
    }

    /// Scenario: records of programs at functions, of other code, of code that goes, and of our own.
    /// Guarantees: what others change is told, by its number, and nothing else.
    #[test]
    fn records() {
        // Types number 1, function 4321.
        let key = 1u64 << 32 | 1 << 31 | 4321;
        let name = format!("bpf_trampoline_{key}");
        let mut bytes = code("bpf_prog_0123456789abcdef_x", 1, 0, 5);
        bytes.extend(code(&name, 1, 0, OWN));
        bytes.extend(code(&name, 1, 1, 5));
        bytes.extend(code(&name, 2, 0, 5));
        bytes.extend(code("bpf_trampoline_4294967298", 1, 0, 5));
        bytes.extend(record(1, &[1; 24]));
        assert_eq!(changed(&bytes), Changed::default());
        bytes.extend(code(&name, 1, 0, 5));
        bytes.extend(code(&format!("bpf_trampoline_{}_3", key + 1), 1, 0, 6));
        let expected = Changed {
            functions: vec![4321, 4322],
            any: false,
        };
        assert_eq!(changed(&bytes), expected);
    }

    /// Scenario: the kernel had no room, or what is there is no row of records.
    /// Guarantees: that counts as a change of everything, and reading ends.
    #[test]
    fn what_is_lost() {
        assert!(changed(&record(2, &[0; 24])).any);
        let whole = code("bpf_trampoline_6442455265", 1, 0, 5);
        for length in 8..whole.len() {
            assert!(changed(&whole[..length]).any, "{length}");
        }
        assert!(!changed(&whole).any);
        assert!(changed(&[0; 8]).any);
        assert!(!changed(&[0; 7]).any);
    }

    /// Scenario: this machine, with the rights for it; another thread has gone.
    /// Guarantees: rings can be had, and waiting ends when it is to end.
    #[test]
    fn rings_of_this_machine() {
        let mut watch = match Watch::open() {
            Ok(watch) => watch,
            Err(error) => return println!("skipped: {error}"),
        };
        let (stop, other) = io::pipe().expect("a pipe");
        let moment = Duration::from_millis(1);
        assert!(watch.wait(stop.as_fd(), moment).is_some());
        drop(other);
        assert_eq!(watch.wait(stop.as_fd(), CPUS), None);
    }
}
