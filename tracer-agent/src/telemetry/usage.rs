//! What the agent itself costs, from procfs.

/// Resources of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system time so far.
    pub cpu_seconds: f64,
    /// Resident memory.
    pub resident_bytes: u64,
    /// Threads.
    pub threads: u64,
}

impl Usage {
    /// This process now; zeros where `/proc` cannot be read.
    pub fn now() -> Usage {
        let Ok(stat) = procfs::process::Process::myself().and_then(|process| process.stat()) else {
            return Usage::default();
        };
        let ticks = stat.utime.saturating_add(stat.stime);
        Usage {
            cpu_seconds: ticks as f64 / procfs::ticks_per_second() as f64,
            resident_bytes: stat.rss.saturating_mul(procfs::page_size()),
            threads: u64::try_from(stat.num_threads).unwrap_or_default(),
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
