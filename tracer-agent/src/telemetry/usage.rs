//! What the agent itself costs, from procfs.

/// Resources of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system time so far.
    pub cpu_seconds: f64,
    /// Resident memory.
    pub resident_bytes: u64,
    /// Virtual memory.
    pub virtual_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// File descriptors it may open.
    pub max_fds: u64,
    /// When it started, Unix time.
    pub start_unix_seconds: f64,
}

impl Usage {
    /// This process now; zeros where `/proc` cannot be read.
    pub fn now() -> Usage {
        let Ok(process) = procfs::process::Process::myself() else {
            return Usage::default();
        };
        let Ok(stat) = process.stat() else {
            return Usage::default();
        };
        let ticks = stat.utime.saturating_add(stat.stime);
        let per_second = procfs::ticks_per_second() as f64;
        let max_fds = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let boot = procfs::boot_time_secs().unwrap_or_default();
        Usage {
            cpu_seconds: ticks as f64 / per_second,
            resident_bytes: stat.rss.saturating_mul(procfs::page_size()),
            virtual_bytes: stat.vsize,
            threads: u64::try_from(stat.num_threads).unwrap_or_default(),
            open_fds: process.fd_count().unwrap_or_default() as u64,
            // No limit at all is none that matters.
            max_fds: max_fds.unwrap_or(u64::MAX),
            start_unix_seconds: boot as f64 + stat.starttime as f64 / per_second,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let usage = Usage::now();
        assert!(usage.resident_bytes > 0 && usage.threads > 0, "{usage:?}");
    }
}
