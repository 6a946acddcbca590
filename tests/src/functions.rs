//! Programs of others at functions of the kernel: they do nothing, and come and go.
//!
//! In: names of system calls. Out: a program at the end of each one's function, until it is dropped.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use crate::sys;

/// Programs that are loaded.
#[derive(Debug)]
pub struct Others {
    /// Of each call. Some kernels have a function several times among their types, and take programs for one of them at a time.
    programs: Vec<Vec<OwnedFd>>,
}

impl Others {
    /// Loads them; an error where the kernel has no such functions, or takes no such programs.
    pub fn load(calls: &[&str]) -> io::Result<Self> {
        let types = fs::read("/sys/kernel/btf/vmlinux")?;
        let programs = calls.iter().map(|call| {
            let numbers = functions(&types, &format!("__x64_sys_{call}")).unwrap_or_default();
            if numbers.is_empty() {
                return Err(io::ErrorKind::NotFound.into());
            }
            numbers.into_iter().map(sys::load_for_function).collect()
        });
        Ok(Others {
            programs: programs.collect::<io::Result<_>>()?,
        })
    }

    /// Attaches one after the other; detached when they are dropped.
    pub fn attach(&self) -> io::Result<Vec<OwnedFd>> {
        let attach = |programs: &Vec<OwnedFd>| {
            let mut last = io::ErrorKind::NotFound.into();
            for program in programs {
                match sys::attach_to_function(program.as_fd()) {
                    Ok(link) => return Ok(link),
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        self.programs.iter().map(attach).collect()
    }
}

/// The numbers of a function among the kernel's types (include/uapi/linux/btf.h).
fn functions(types: &[u8], name: &str) -> Option<Vec<u32>> {
    /// Bytes behind a type by its kind, and for each of its members.
    const FIXED: [usize; 20] = [0, 4, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 4, 0, 0];
    const EACH: [usize; 20] = [
        0, 0, 0, 0, 12, 12, 8, 0, 0, 0, 0, 0, 0, 8, 0, 12, 0, 0, 0, 12,
    ];
    const FUNCTION: usize = 12;
    let word = |at: usize| {
        let bytes = types.get(at..)?.first_chunk::<4>()?;
        Some(u32::from_ne_bytes(*bytes))
    };
    let header = word(4)? as usize;
    let mut at = header + word(8)? as usize;
    let end = at + word(12)? as usize;
    let strings = header + word(16)? as usize;
    let mut id = 0;
    let mut found = Vec::new();
    while at < end {
        id += 1;
        let info = word(at + 4)? as usize;
        let kind = info >> 24 & 0x1f;
        let text = types.get(strings + word(at)? as usize..)?;
        let rest = text.strip_prefix(name.as_bytes());
        if kind == FUNCTION && rest.is_some_and(|rest| rest.first() == Some(&0)) {
            found.push(id);
        }
        at += 12 + FIXED.get(kind)? + EACH.get(kind)? * (info & 0xffff);
    }
    Some(found)
}
