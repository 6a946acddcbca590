//! A small reader of BTF (kernel Documentation/bpf/btf.rst): where is this member of that struct?
//!
//! In: the bytes of `/sys/kernel/btf/vmlinux`. Out: byte offsets of members, looked up by name
//! through anonymous structs and unions; whether there is a function of a name, and those that do system calls.
//! It knows nothing of variables or split BTF.

use rustc_hash::FxHashMap;

/// Why BTF cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// No file, or no right to read it.
    #[error(
        "cannot read the kernel's type information at {path}; it needs a kernel built with CONFIG_DEBUG_INFO_BTF, see `tracer-agent doctor`"
    )]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The bytes make no sense.
    #[error("kernel type information is malformed at byte {0}")]
    Malformed(usize),
}

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_TYPE_TAG: u32 = 18;
const KIND_ENUM64: u32 = 19;

/// Nesting of anonymous members that is followed.
const MAX_DEPTH: u32 = 8;

/// Parsed type information.
pub struct Btf {
    bytes: Vec<u8>,
    strings: usize,
    /// Byte position of every type; index 0 is `void`.
    types: Vec<u32>,
    structs: FxHashMap<Box<str>, u32>,
    /// Functions that do system calls, by the names of the calls: there may be several of one name, which are the same function.
    calls: FxHashMap<Box<str>, Vec<u32>>,
}

/// A function of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its type id.
    pub id: u32,
    /// The type id of its signature: the same types and the same names of arguments.
    pub signature: u32,
}

/// What the names of functions begin with that do system calls; `None` where they are not called by that.
const CALL: Option<&str> = if cfg!(target_arch = "x86_64") {
    Some("__x64_sys_")
} else if cfg!(target_arch = "aarch64") {
    Some("__arm64_sys_")
} else {
    None
};

impl Btf {
    /// The running kernel's.
    pub fn of_running_kernel() -> Result<Self, BtfError> {
        let path = "/sys/kernel/btf/vmlinux";
        let bytes = std::fs::read(path).map_err(|source| BtfError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(bytes)
    }

    /// Reads the header and finds every type.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let word = |at: usize| u32_at(&bytes, at).ok_or(BtfError::Malformed(at));
        if word(0)? as u16 != MAGIC {
            return Err(BtfError::Malformed(0));
        }
        let header = word(4)? as usize;
        let (type_offset, type_len) = (word(8)? as usize, word(12)? as usize);
        let strings = header.saturating_add(word(16)? as usize);
        let mut at = header.saturating_add(type_offset);
        let end = at.saturating_add(type_len).min(bytes.len());
        let mut types = vec![0];
        let mut structs = FxHashMap::default();
        let mut calls: FxHashMap<Box<str>, Vec<u32>> = FxHashMap::default();
        while at < end {
            let (name, info, size) = (word(at)?, word(at + 4)?, at + 8);
            let _ = word(size)?;
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            if kind == KIND_STRUCT
                && name != 0
                && let Some(name) = text(&bytes, strings, name)
            {
                structs.entry(name.into()).or_insert(types.len() as u32);
            }
            if kind == KIND_FUNC
                && let Some(name) = text(&bytes, strings, name)
                && let Some(call) = CALL.and_then(|prefix| name.strip_prefix(prefix))
            {
                let of_call = calls.entry(call.into()).or_default();
                of_call.push(types.len() as u32);
            }
            types.push(at as u32);
            at += 12
                + match kind {
                    KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                    KIND_ARRAY => 12,
                    KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * count,
                    KIND_ENUM | KIND_FUNC_PROTO => 8 * count,
                    _ => 0,
                };
        }
        Ok(Btf {
            bytes,
            strings,
            types,
            structs,
            calls,
        })
    }

    /// The function that does this system call; with this signature if it is there with several.
    pub fn call(&self, name: &str, signature: Option<u32>) -> Option<Function> {
        let found = self.calls.get(name)?.iter().filter_map(|id| {
            let signature = self.word(*id, 2)?;
            Some(Function { id: *id, signature })
        });
        let found: Vec<Function> = found.collect();
        let same = found
            .iter()
            .find(|function| Some(function.signature) == signature);
        same.or(found.first()).copied()
    }

    /// Byte offset of a member of a struct; `path` may go into embedded structs by dots
    /// (`__sk_common.skc_family`). `None` when the kernel does not have it.
    pub fn offset(&self, structure: &str, path: &str) -> Option<u32> {
        let mut id = *self.structs.get(structure)?;
        let mut offset = 0;
        for name in path.split('.') {
            let (bits, member) = self.member(id, name, 0)?;
            offset += bits / 8;
            id = self.strip(member)?;
        }
        Some(offset)
    }

    /// Size in bytes of a struct.
    pub fn size(&self, structure: &str) -> Option<u32> {
        let id = *self.structs.get(structure)?;
        self.word(id, 2)
    }

    /// Whether the kernel has a function of this name.
    pub fn has_function(&self, name: &str) -> bool {
        let is_it = |at: u32| {
            let at = at as usize;
            u32_at(&self.bytes, at + 4).is_some_and(|info| info >> 24 & 0x1f == KIND_FUNC)
                && u32_at(&self.bytes, at)
                    .and_then(|at| text(&self.bytes, self.strings, at))
                    .is_some_and(|found| found == name)
        };
        // The first one is `void`, which has no place.
        self.types.iter().skip(1).any(|at| is_it(*at))
    }

    fn word(&self, id: u32, n: usize) -> Option<u32> {
        u32_at(&self.bytes, *self.types.get(id as usize)? as usize + 4 * n)
    }

    /// Bit offset and type of a member, searched through anonymous members too.
    fn member(&self, id: u32, name: &str, depth: u32) -> Option<(u32, u32)> {
        let info = self.word(id, 1)?;
        let kind = info >> 24 & 0x1f;
        if !matches!(kind, KIND_STRUCT | KIND_UNION) || depth > MAX_DEPTH {
            return None;
        }
        let bitfields = info >> 31 == 1;
        for i in 0..(info & 0xffff) as usize {
            let (text_at, member, bits) = (
                self.word(id, 3 + 3 * i)?,
                self.word(id, 4 + 3 * i)?,
                self.word(id, 5 + 3 * i)?,
            );
            let bits = if bitfields { bits & 0xff_ffff } else { bits };
            if text_at == 0 {
                if let Some((inner, found)) = self.member(self.strip(member)?, name, depth + 1) {
                    return Some((bits + inner, found));
                }
            } else if text(&self.bytes, self.strings, text_at) == Some(name) {
                return Some((bits, member));
            }
        }
        None
    }

    /// Follows typedefs and qualifiers.
    fn strip(&self, mut id: u32) -> Option<u32> {
        for _ in 0..MAX_DEPTH {
            if id == 0 {
                return Some(0);
            }
            match self.word(id, 1)? >> 24 & 0x1f {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_TYPE_TAG => {
                    id = self.word(id, 2)?
                }
                _ => return Some(id),
            }
        }
        None
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn text(bytes: &[u8], strings: usize, at: u32) -> Option<&str> {
    let rest = bytes.get(strings.checked_add(at as usize)?..)?;
    let end = rest.iter().position(|b| *b == 0)?;
    std::str::from_utf8(&rest[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: any bytes. Guarantees: an error or a value, never a panic.
    #[test]
    fn garbage_is_an_error() {
        assert!(matches!(Btf::parse(vec![]), Err(BtfError::Malformed(0))));
        assert!(Btf::parse(vec![0x9f, 0xeb, 1, 0]).is_err());
        let mut bytes = vec![0xff; 200];
        bytes[..2].copy_from_slice(&[0x9f, 0xeb]);
        let _ = Btf::parse(bytes);
    }

    /// Scenario: this machine's kernel, when it has BTF. Guarantees: what `bpftool btf dump` says.
    #[test]
    fn running_kernel() {
        let Ok(btf) = Btf::of_running_kernel() else {
            println!("skipped: no readable /sys/kernel/btf/vmlinux");
            return;
        };
        assert_eq!(btf.offset("sock_common", "skc_daddr"), Some(0));
        assert_eq!(btf.offset("sock_common", "skc_rcv_saddr"), Some(4));
        assert_eq!(btf.offset("sock", "__sk_common.skc_family"), Some(16));
        assert_eq!(btf.offset("sock_common", "no_such_member"), None);
        assert_eq!(btf.offset("no_such_struct", "x"), None);
        assert!(btf.has_function("vfs_read"));
        assert!(!btf.has_function("no_such_function"));
        assert_eq!(btf.size("unix_address").map(|n| n >= 8), Some(true));
    }
}
