//! Where tokio's tasks show, in programs whose symbols were left: see the kernel side's `cause/tokio.rs`.
//!
//! In: a program that a process runs. Out: which program of the kernel side goes where. A stripped one
//! has none, nor has one that was optimised as a whole, with these functions in their callers.
//! Where only some of the calls went into their callers, the kernel side notices.

use std::fs::File;

use super::symbols;

/// Copies of all functions together: one per version of tokio, and per scheduler.
const MOST: usize = 64;

struct Function {
    program: &'static str,
    module: &'static str,
    name: &'static str,
    when: When,
}

/// When a function gets its probe, and whether there has to be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// When the program is met: seldom called, and connections that were made before are not known.
    Early,
    /// When the process was seen to serve with an event loop. Without it nothing can be said.
    Serving,
}

const fn function(
    program: &'static str,
    module: &'static str,
    name: &'static str,
    when: When,
) -> Function {
    Function {
        program,
        module,
        name,
        when,
    }
}

const STATE: &str = "5tokio7runtime4task5state";
const WAKER: &str = "5tokio4sync4task12atomic_waker";
const LIST: &str = "5tokio7runtime4task4list";
const WORKER: &str = "5tokio7runtime9scheduler12multi_thread6worker";
const WANT: &str = "4want";

/// In the order in which they are attached: turns last, since all else asks whose it is.
const FUNCTIONS: &[Function] = &[
    function(
        "tokio_ends",
        STATE,
        "5State22transition_to_complete",
        When::Serving,
    ),
    function(
        "tokio_receives",
        WAKER,
        "11AtomicWaker15register_by_ref",
        When::Serving,
    ),
    function("tokio_sends", WAKER, "11AtomicWaker4wake", When::Serving),
    function("tokio_makes_first", LIST, "10bind_inner", When::Early),
    function(
        "tokio_makes",
        WORKER,
        "34schedule_option_task_without_yield",
        When::Early,
    ),
    function("tokio_connects", WANT, "3new", When::Early),
    function(
        "tokio_pauses",
        STATE,
        "5State18transition_to_idle",
        When::Serving,
    ),
    function(
        "tokio_runs",
        STATE,
        "5State21transition_to_running",
        When::Serving,
    ),
];

/// Program of the kernel side and offset in the file, in the order in which they are attached.
pub(super) fn points(file: &File, when: When) -> Result<Vec<(&'static str, u64)>, String> {
    let mut found = Vec::new();
    symbols::functions(file, |name, offset| {
        let Ok(name) = std::str::from_utf8(name) else {
            return;
        };
        let place = FUNCTIONS.iter().position(|function| is(name, function));
        if let Some(place) = place
            && found.len() < MOST
        {
            found.push((place, offset));
        }
    });
    found.sort_unstable();
    found.dedup();
    for (place, function) in FUNCTIONS.iter().enumerate() {
        let required = when == When::Serving && function.when == when;
        if required && !found.iter().any(|(found, _)| *found == place) {
            let name = function
                .name
                .trim_start_matches(|c: char| c.is_ascii_digit());
            return Err(format!("it has no symbol of tokio's {name}"));
        }
    }
    let points = found
        .into_iter()
        .filter_map(|(place, offset)| Some((FUNCTIONS.get(place)?, offset)))
        .filter(|(function, _)| function.when == when)
        .map(|(function, offset)| (function.program, offset));
    Ok(points.collect())
}

/// True if a symbol, mangled in either of Rust's ways, is the function's.
fn is(symbol: &str, function: &Function) -> bool {
    if let Some(rest) = symbol.strip_prefix("_ZN") {
        // What is generic has its parameters before the name.
        return rest.strip_prefix(function.module).is_some_and(|rest| {
            rest.rfind(function.name).is_some_and(|at| {
                let before = rest.get(..at).unwrap_or_default();
                let behind = rest.get(at + function.name.len()..).unwrap_or_default();
                behind.starts_with("17h") && (at == 0 || before.ends_with("$GT$"))
            })
        });
    }
    // A closure in it begins with `_RNC`.
    (symbol.starts_with("_RNv") || symbol.starts_with("_RINv"))
        && symbol.find(function.module).is_some_and(|at| {
            let rest = symbol.get(at + function.module.len()..).unwrap_or_default();
            rest.contains(function.name)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program_of(symbol: &str) -> Option<&'static str> {
        let function = FUNCTIONS.iter().find(|function| is(symbol, function))?;
        Some(function.program)
    }

    /// Scenario: symbols as compilers write them. Guarantees: those of the functions are found, those
    /// of others with similar names are not.
    #[test]
    fn names() {
        for (symbol, expected) in [
            (
                "_ZN5tokio7runtime4task5state5State21transition_to_running17h423f707723419000E",
                Some("tokio_runs"),
            ),
            (
                "_ZN5tokio7runtime4task4list19OwnedTasks$LT$S$GT$10bind_inner17h799fc40974d6c627E.llvm.46",
                Some("tokio_makes_first"),
            ),
            (
                "_ZN5tokio4sync4task12atomic_waker11AtomicWaker4wake17h7ece13b8af85a33dE",
                Some("tokio_sends"),
            ),
            (
                "_ZN12atomic_waker11AtomicWaker4wake17h746e3cc28f76f486E",
                None,
            ),
            (
                "_ZN5tokio7runtime4task5state5State22transition_to_terminal17heb1d8bcc7160b5e3E",
                None,
            ),
            (
                "_RNvMs_NtNtNtNtCs1x_5tokio7runtime4task5stateNtB4_5State18transition_to_idle",
                Some("tokio_pauses"),
            ),
            (
                "_RNCNvMNtNtNtNtCs1x_5tokio4sync4task12atomic_wakerNtB4_11AtomicWaker4wake0B8_",
                None,
            ),
            (
                "_ZN5tokio7runtime9scheduler12multi_thread6worker73_$LT$impl$u20$tokio..runtime..scheduler..multi_thread..handle..Handle$GT$34schedule_option_task_without_yield17hfb20e2f0e25896b0E",
                Some("tokio_makes"),
            ),
            ("_ZN4want3new17h2c14e1ea575f4a92E", Some("tokio_connects")),
            ("_ZN4want5Giver3new17h2c14e1ea575f4a92E", None),
            ("_RNvCs1x_4want3new", Some("tokio_connects")),
            ("_ZN", None),
            ("main", None),
        ] {
            assert_eq!(program_of(symbol), expected, "{symbol}");
        }
    }
}
