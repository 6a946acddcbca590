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
    best_of(|| {
        let before = boot_ns();
        let wall = sys::clock(libc::CLOCK_REALTIME).as_nanos() as i64;
        Sample {
            before,
            wall,
            after: boot_ns(),
        }
    })
}

/// Wall time between two readings of the boot clock: half their distance is the error.
#[derive(Clone, Copy)]
struct Sample {
    before: u64,
    wall: i64,
    after: u64,
}

impl Sample {
    fn distance_ns(self) -> u64 {
        self.after.saturating_sub(self.before)
    }

    fn offset_ns(self) -> i64 {
        self.wall - (self.before + self.distance_ns() / 2) as i64
    }
}

/// Readings taken at most. A thread that has to wait for a CPU between them (and a machine that waits for
/// its host's) would move all spans of a batch by half of that.
const TRIES: usize = 8;
/// As good as any.
const GOOD_NS: u64 = 5_000;

fn best_of(mut read: impl FnMut() -> Sample) -> i64 {
    let mut best = read();
    for _ in 1..TRIES {
        if best.distance_ns() <= GOOD_NS {
            break;
        }
        let next = read();
        if next.distance_ns() < best.distance_ns() {
            best = next;
        }
    }
    best.offset_ns()
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

    /// Scenario: the thread loses its CPU between readings, for 80 ms before the wall clock's.
    /// Guarantees: those readings are not what is used, unless there are no better ones; nobody waits for ever.
    #[test]
    fn an_interrupted_reading_is_taken_again() {
        const WALL: i64 = 1_000_000_000_000;
        let at = |boot: u64, distance: u64| Sample {
            before: boot,
            wall: WALL + (boot + distance) as i64,
            after: boot + distance,
        };
        for (distances, expected, readings) in [
            (vec![1_000], 500, 1),
            (vec![80_000_000, 1_000, 1], 500, 2),
            (vec![80_000_000, 80_000_000, 9_000, 4_000], 2_000, 4),
            (vec![80_000_000; TRIES + 1], 40_000_000, TRIES),
            (
                vec![9_000, 8_000, 9_000, 9_000, 9_000, 9_000, 9_000, 9_000],
                4_000,
                TRIES,
            ),
        ] {
            let mut taken = 0;
            let offset = best_of(|| {
                let sample = at(taken as u64 * 1_000_000_000, distances[taken]);
                taken += 1;
                sample
            });
            assert_eq!(
                (offset - WALL, taken),
                (expected, readings),
                "{distances:?}"
            );
        }
    }
}
