//! Where the tasks of Python's asyncio can be seen in an interpreter, stripped or not.
//!
//! In: the file with the interpreter, and those with `_asyncio` and `_queue`. Out: file offsets. Only what Python's
//! C API promises is relied on: exported names, the layout of `PyTypeObject` up to `tp_methods` and that
//! of `PyMethodDef`, through which functions without a name are found by what Python code calls them.

use std::ops::{ControlFlow, Range};

use super::BinaryError;
use super::bytes::until_nul;
use super::code::{self, Convention, Extents};
use super::elf::{self, Elf};
use super::libraries::CExtents;
use super::relocations;
use super::symbols;

/// `PyTypeObject.tp_methods`; the same in every version since 3.7 (not in free-threaded builds).
const TP_METHODS: u64 = 232;
/// `sizeof(PyMethodDef)`: name, function, flags, text.
const METHOD: u64 = 32;
/// Methods of one type; `Context` has six.
const METHODS_MAX: u64 = 64;
/// Places that may be an entry of a table of methods.
const SLOTS_MAX: usize = 16;

const LARGEST_PAGE: u64 = 1 << 16;

/// What happens at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PythonEvent {
    /// `Context.run(self, args, nargs, kwnames)` begins.
    Runs,
    /// `PyContext_Enter(context)` begins.
    Enters,
    /// `PyContext_Exit(context)` begins.
    Exits,
    /// `PyContext_CopyCurrent()` returns.
    Copied,
    /// `Future.set_result(self, result)` of `_asyncio` begins.
    SetsResult,
    /// `SimpleQueue.put(self, args, nargs, kwnames)` of `_queue` begins.
    Puts,
    /// `SimpleQueue.get` or `get_nowait` begins.
    Gets,
    /// One of them returns.
    Got,
}

/// A place to attach to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PythonPoint {
    /// What happens there.
    pub event: PythonEvent,
    /// File offset.
    pub at: u64,
}

/// Points of an interpreter, RETs before entries; `None` if the file is none.
pub fn interpreter(elf: &Elf<'_>) -> Result<Option<Vec<PythonPoint>>, BinaryError> {
    let Some(table) = symbols::dynamic_table(elf) else {
        return Ok(None);
    };
    let symbols = symbols::find(elf, table, &["PyContext_"], &|_| true)?;
    let address = |name: &str| {
        let mut all = symbols.iter();
        all.find(|symbol| symbol.name == name)
            .map(|symbol| symbol.address)
    };
    let Some(context) = address("PyContext_Type") else {
        return Ok(None);
    };
    let (Some(copy), Some(enter), Some(exit)) = (
        address("PyContext_CopyCurrent"),
        address("PyContext_Enter"),
        address("PyContext_Exit"),
    ) else {
        return Err(BinaryError::Unsupported("Python without contexts"));
    };
    let run = method(elf, context, b"run")?;
    let extents = CExtents::new(elf);
    let mut points = Vec::new();
    for at in returns(elf, &extents, copy)? {
        let event = PythonEvent::Copied;
        points.push(PythonPoint { event, at });
    }
    for (event, function) in [
        (PythonEvent::Exits, exit),
        (PythonEvent::Runs, run),
        (PythonEvent::Enters, enter),
    ] {
        let at = entry(elf, function).ok_or(BinaryError::Malformed("function"))?;
        points.push(PythonPoint { event, at });
    }
    Ok(Some(points))
}

/// Where `_PyRuntime` lies in a process that has the file's code from this offset on at this address: all of the interpreter's own
/// variables, among them its lock for all threads.
pub fn runtime(elf: &Elf<'_>, offset: u64, start: u64) -> Result<Option<Range<u64>>, BinaryError> {
    let Some(table) = symbols::dynamic_table(elf) else {
        return Ok(None);
    };
    let symbols = symbols::find(elf, table, &["_PyRuntime"], &|_| true)?;
    let is_it = |symbol: &&symbols::Symbol| symbol.name == "_PyRuntime" && symbol.size != 0;
    let Some(symbol) = symbols.iter().find(is_it) else {
        return Ok(None);
    };
    // Mappings begin with whole pages.
    let behind = |segment: &&elf::Segment| {
        segment.executable && offset <= segment.offset && segment.offset - offset < LARGEST_PAGE
    };
    let Some(segment) = elf.segments.iter().find(behind) else {
        return Ok(None);
    };
    let code = segment.address.wrapping_sub(segment.offset - offset);
    let first = symbol.address.wrapping_add(start.wrapping_sub(code));
    Ok(Some(first..first.saturating_add(symbol.size)))
}

/// `set_result` of the futures in a file: there is one for every type of them.
pub fn futures(elf: &Elf<'_>) -> Result<Vec<PythonPoint>, BinaryError> {
    let mut points = Vec::new();
    for slot in slots(elf, b"set_result")? {
        let function = relocations::value(elf, slot.saturating_add(8))?;
        let point = entry(elf, function).map(|at| PythonPoint {
            event: PythonEvent::SetsResult,
            at,
        });
        points.extend(point.filter(|point| !points.contains(point)));
    }
    Ok(points)
}

/// What puts into queues and takes from them, the latter first.
pub fn queues(elf: &Elf<'_>) -> Result<Vec<PythonPoint>, BinaryError> {
    let extents = CExtents::new(elf);
    let mut points = Vec::new();
    let mut add = |event, at| {
        let point = PythonPoint { event, at };
        if !points.contains(&point) {
            points.push(point);
        }
    };
    for (name, event) in [
        (&b"get"[..], PythonEvent::Gets),
        (b"get_nowait", PythonEvent::Gets),
        (b"put", PythonEvent::Puts),
    ] {
        let mut found = false;
        for slot in slots(elf, name)? {
            let function = relocations::value(elf, slot.saturating_add(8))?;
            let Some(begins) = entry(elf, function) else {
                continue;
            };
            found = true;
            if event == PythonEvent::Gets {
                for at in returns(elf, &extents, function)? {
                    add(PythonEvent::Got, at);
                }
            }
            add(event, begins);
        }
        if !found {
            return Err(BinaryError::Unsupported("Python without SimpleQueue"));
        }
    }
    Ok(points)
}

fn entry(elf: &Elf<'_>, function: u64) -> Option<u64> {
    elf.code_offset(&(function..function.checked_add(1)?))
}

/// File offsets of a function's RETs: all of them.
pub fn returns(
    elf: &Elf<'_>,
    extents: &CExtents<'_>,
    function: u64,
) -> Result<Vec<u64>, BinaryError> {
    let unknown = BinaryError::Unsupported("returns of a function");
    let range = extents.covering(function)?;
    let Some(range) = range.filter(|range| range.start == function) else {
        return Err(unknown);
    };
    let points = code::points(elf, extents, range, Convention::C);
    let Ok(points) = points.and_then(|points| points.offsets(elf)) else {
        return Err(unknown);
    };
    Ok(points.returns)
}

/// The function behind a method of a type.
fn method(elf: &Elf<'_>, object: u64, name: &[u8]) -> Result<u64, BinaryError> {
    let mut entry = relocations::value(elf, object.saturating_add(TP_METHODS))?;
    for _ in 0..METHODS_MAX {
        let text = relocations::value(elf, entry)?;
        let Some(at) = elf.offset(text).filter(|_| text != 0) else {
            break;
        };
        let left = elf.bytes.len().saturating_sub(at).min(32);
        if until_nul(&elf.bytes.read(at, left)?) == Some(name) {
            return relocations::value(elf, entry.saturating_add(8));
        }
        entry = entry.saturating_add(METHOD);
    }
    Err(BinaryError::Unsupported("Python's type of contexts"))
}

/// Addresses of words of data that point to this text.
fn slots(elf: &Elf<'_>, text: &[u8]) -> Result<Vec<u64>, BinaryError> {
    let mut whole = vec![0];
    whole.extend_from_slice(text);
    whole.push(0);
    let mut texts = Vec::new();
    for segment in &elf.segments {
        let range = (segment.offset, segment.size);
        elf.bytes.search(range, &whole, |at, _| {
            texts.extend(segment.address.checked_add(at + 1));
            match texts.len() < SLOTS_MAX {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
    }
    let mut slots = relocations::pointing_to(elf, &texts, SLOTS_MAX)?;
    for segment in elf.segments.iter().filter(|segment| !segment.executable) {
        let range = (segment.offset, segment.size);
        for text in &texts {
            elf.bytes.search(range, &text.to_le_bytes(), |at, _| {
                let slot = segment.address.checked_add(at);
                slots.extend(slot.filter(|slot| slot % 8 == 0 && !slots.contains(slot)));
                match slots.len() < SLOTS_MAX {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            })?;
        }
    }
    Ok(slots)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::Command;

    use super::super::{python_futures, python_interpreter, python_queues};
    use super::*;

    /// Scenario: the Python of this machine, and a program that is none. Guarantees: every point is
    /// found in the first, which runs contexts; nothing in the second.
    #[test]
    fn points_of_this_machines_python() {
        let script = "import _asyncio,_queue,sys,sysconfig,os\n\
            d=sysconfig.get_config_var('LIBDIR') or ''; l=sysconfig.get_config_var('INSTSONAME') or ''\n\
            p=os.path.join(d,l)\n\
            print(p if l.startswith('lib') and '.so' in l and os.path.exists(p) else sys.executable)\n\
            print(getattr(_asyncio,'__file__',sys.executable))\n\
            print(getattr(_queue,'__file__',sys.executable))";
        let output = match Command::new("python3").args(["-c", script]).output() {
            Ok(output) if output.status.success() => output,
            _ => return eprintln!("skipped: there is no python3 with asyncio"),
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut paths = text.lines();
        let mut open = || {
            let file = File::open(paths.next().expect("a path")).expect("a file");
            let len = file.metadata().expect("its length").len();
            (file, len)
        };
        let (file, len) = open();
        let points = python_interpreter(&file, len)
            .expect("understood")
            .expect("an interpreter");
        for event in [
            PythonEvent::Runs,
            PythonEvent::Enters,
            PythonEvent::Exits,
            PythonEvent::Copied,
        ] {
            assert!(
                points.iter().any(|point| point.event == event),
                "{event:?} of {points:?}"
            );
        }
        let (file, len) = open();
        let futures = python_futures(&file, len).expect("understood");
        assert!(!futures.is_empty());
        let (file, len) = open();
        let queues = python_queues(&file, len).expect("understood");
        for event in [PythonEvent::Puts, PythonEvent::Gets, PythonEvent::Got] {
            let found = queues.iter().any(|point| point.event == event);
            assert!(found, "{event:?} of {queues:?}");
        }
        let own = File::open("/proc/self/exe").expect("this program");
        let len = own.metadata().expect("its length").len();
        assert_eq!(python_interpreter(&own, len).expect("an ELF file"), None);
    }
}
