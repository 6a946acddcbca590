//! What the kernel says of this process's eBPF programs.

use std::fs;

/// Runs of the agent's programs that the kernel left out since they were loaded, because another
/// thread was preempted inside a program on the same CPU (`recursion_misses` in
/// `/proc/self/fdinfo`, since Linux 5.12; 0 where it is not told). Seen with kernels that let programs of
/// system call events be preempted.
pub fn skipped_runs() -> u64 {
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else {
        return 0;
    };
    let is_program = |entry: &fs::DirEntry| {
        fs::read_link(entry.path())
            .is_ok_and(|target| target.as_os_str().as_encoded_bytes() == b"anon_inode:bpf-prog")
    };
    descriptors
        .flatten()
        .filter(is_program)
        .filter_map(|entry| {
            let path = std::path::Path::new("/proc/self/fdinfo").join(entry.file_name());
            skipped_in(&fs::read_to_string(path).ok()?)
        })
        .fold(0, u64::saturating_add)
}

fn skipped_in(info: &str) -> Option<u64> {
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("recursion_misses:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        for (info, expected) in [
            (
                "prog_type:\t5\nrun_cnt:\t1\nrecursion_misses:\t42\n",
                Some(42),
            ),
            ("prog_type:\t5\n", None),
            ("recursion_misses:\tmany\n", None),
            ("", None),
        ] {
            assert_eq!(skipped_in(info), expected, "{info:?}");
        }
    }
}
