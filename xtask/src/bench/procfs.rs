//! What /proc tells of a process: CPU time, memory, BPF maps.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::sys;

/// CPU time of all threads, ended ones included. For a process of one thread to the nanosecond
/// (schedstat), else in clock ticks.
pub fn cpu(pid: u32) -> Result<Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .with_context(|| format!("process {pid} is gone"))?
        .count();
    if threads == 1
        && let Ok(text) = fs::read_to_string(format!("/proc/{pid}/schedstat"))
        && let Some(time) = parse_schedstat(&text)
    {
        return Ok(time);
    }
    let text = read(pid, "stat")?;
    let ticks = parse_ticks(&text).with_context(|| format!("/proc/{pid}/stat is odd"))?;
    let ticks = u32::try_from(ticks).context("more CPU time than can be")?;
    Ok(sys::clock_tick() * ticks)
}

/// A field of /proc/PID/status that is in kB, in bytes: `VmRSS`, `VmHWM`.
pub fn memory(pid: u32, field: &str) -> Result<u64> {
    let text = read(pid, "status")?;
    parse_status(&text, field).with_context(|| format!("/proc/{pid}/status has no {field}"))
}

/// Memory of the BPF maps a process holds, each counted once, and how many they are.
pub fn maps(pid: u32) -> Result<(u64, usize)> {
    let directory = format!("/proc/{pid}/fdinfo");
    let entries = fs::read_dir(&directory).with_context(|| format!("cannot read {directory}"))?;
    let mut maps = BTreeMap::new();
    for entry in entries.flatten() {
        // A descriptor may be closed meanwhile.
        if let Ok(text) = fs::read_to_string(entry.path())
            && let Some((id, bytes)) = parse_fdinfo(&text)
        {
            maps.insert(id, bytes);
        }
    }
    Ok((maps.values().sum(), maps.len()))
}

/// A child of a process, if it has one.
pub fn child_of(parent: u32) -> Option<u32> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        (stat_field(&text, 4)? == u64::from(parent)).then_some(pid)
    })
}

fn read(pid: u32, file: &str) -> Result<String> {
    fs::read_to_string(format!("/proc/{pid}/{file}"))
        .with_context(|| format!("process {pid} is gone"))
}

fn parse_schedstat(text: &str) -> Option<Duration> {
    text.split_whitespace()
        .next()?
        .parse()
        .ok()
        .map(Duration::from_nanos)
}

/// Field `number` of /proc/PID/stat, counted from 1 as in proc(5). The second is the command in
/// brackets, which may contain anything, brackets too.
fn stat_field(text: &str, number: usize) -> Option<u64> {
    let rest = text.get(text.rfind(')')? + 1..)?;
    rest.split_whitespace()
        .nth(number.checked_sub(3)?)?
        .parse()
        .ok()
}

fn parse_ticks(text: &str) -> Option<u64> {
    Some(stat_field(text, 14)? + stat_field(text, 15)?)
}

fn parse_status(text: &str, field: &str) -> Option<u64> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let number: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    number.checked_mul(1024)
}

fn parse_fdinfo(text: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.trim().parse().ok()
    };
    Some((field("map_id")?, field("memlock")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read() {
        let stat = "7 (a) (b c) S 3 7 7 0 -1 4194560 1 0 0 0 120 30 0 0 20 0 1 0 99 1 1";
        assert_eq!(stat_field(stat, 4), Some(3));
        assert_eq!(parse_ticks(stat), Some(150));
        assert_eq!(parse_ticks("7 (a"), None);
        assert_eq!(
            parse_schedstat("1500 20 3\n"),
            Some(Duration::from_nanos(1500))
        );
        assert_eq!(parse_schedstat(""), None);
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(parse_status(status, "VmRSS"), Some(1 << 20));
        assert_eq!(parse_status(status, "VmSwap"), None);
    }

    #[test]
    fn only_maps_are_counted() {
        let check = |text: &str, found| assert_eq!(parse_fdinfo(text), found, "{text}");
        check(
            "pos:\t0\nmap_type:\t27\nmap_id:\t5\nmemlock:\t4096\n",
            Some((5, 4096)),
        );
        check("pos:\t0\nprog_id:\t5\nmemlock:\t4096\n", None);
        check("pos:\t0\n", None);
    }

    #[test]
    fn this_process_has_cpu_time_and_memory() {
        let pid = std::process::id();
        assert!(cpu(pid).is_ok());
        assert!(memory(pid, "VmRSS").is_ok_and(|bytes| bytes > 1 << 16));
        assert!(maps(pid).is_ok());
        assert!(cpu(u32::MAX).is_err());
    }
}
