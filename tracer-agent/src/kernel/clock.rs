//! Clocks of this host. Kernel events carry `CLOCK_BOOTTIME` (it goes on during suspend); spans
//! want wall-clock time. The difference is taken anew for every batch, so that a stepped clock is
//! right from the next batch on.

use crate::sys;

/// `CLOCK_BOOTTIME` now, in nanoseconds.
pub fn boot_ns() -> u64 {
    sys::clock(libc::CLOCK_BOOTTIME).as_nanos() as u64
}

/// What has to be added to a `CLOCK_BOOTTIME` value to get nanoseconds since the epoch.
pub fn boot_to_unix_ns() -> i64 {
    // Read wall time between two readings of the boot clock: half their distance is the error.
    let before = boot_ns();
    let wall = sys::clock(libc::CLOCK_REALTIME).as_nanos() as i64;
    let after = boot_ns();
    wall - (before + (after - before) / 2) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_clock_is_found() {
        let offset = boot_to_unix_ns();
        let wall = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos() as i64);
        assert!((boot_ns() as i64 + offset - wall).abs() < 1_000_000_000);
    }
}
