//! Which hooks for system calls this kernel has programs of, without ever leaving one out.

use super::btf::Btf;
use super::offsets;

/// Whether programs of single system calls (`syscalls:*`) run with preemption enabled: the kernel has a function of
/// its own for that since 7.x. A thread that is preempted in one makes the kernel skip that program for all others of
/// its CPU. Programs of all calls together (`raw_syscalls:*`) run as they always did. They have to tell calls of 32
/// bits from others, so it has to be known where a task says that.
pub fn come_by_number(btf: &Btf) -> bool {
    btf.has_function("trace_call_bpf_faultable")
        && btf.offset("task_struct", offsets::COMPAT.0).is_some()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Type information of a kernel with one function and the word of a task that tells calls of 32 bits.
    pub fn kernel_with(function: &str) -> Vec<u8> {
        let mut strings = vec![0];
        let mut types: Vec<u32> = Vec::new();
        let mut name = |text: &str| {
            let at = strings.len() as u32;
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
            at
        };
        let mut structure = |members: &[(&str, u32)], named: &str| {
            types.extend([name(named), 4 << 24 | members.len() as u32, 16]);
            for (member, kind) in members {
                types.extend([name(member), *kind, 64]);
            }
        };
        structure(&[("thread_info", 2)], "task_struct");
        structure(&[("flags", 0), ("status", 0)], "thread_info");
        types.extend([name(function), 12 << 24, 0]);
        let length = types.len() as u32 * 4;
        let header = [
            1 << 16 | 0xeb9f,
            24,
            0,
            length,
            length,
            strings.len() as u32,
        ];
        let words = header.iter().chain(&types);
        let mut bytes: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(strings);
        bytes
    }

    /// Scenario: kernels of either kind. Guarantees: the function tells.
    #[test]
    fn the_function_tells() {
        for (function, expected) in [
            ("trace_call_bpf_faultable", true),
            ("trace_call_bpf", false),
        ] {
            let btf = Btf::parse(kernel_with(function)).expect("type information");
            assert_eq!(come_by_number(&btf), expected, "{function}");
        }
    }
}
