//! `cargo xtask vm hooks`: what the ways to see data calls cost, and what each misses: tracepoints of single system
//! calls, which the agent uses; that of the ends of all calls, which it uses where the former can be preempted; and
//! fentry/fexit programs of the socket layer; and the agent itself in both of its tiers.
//!
//! `xtask/hooks/hooks.c` measures, in machines that count instructions, so that the numbers are the same
//! whatever else this machine does.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::kernels::{self, Kernel};
use super::{LIMIT, boot, image, report};
use crate::agent::{self, BuildArgs};
use crate::dist::arch::Arch;
use crate::{setup, sh};

const INIT: &str = "#!/bin/sh\n\
    b=/bin/busybox\n\
    @mounts@\
    $b ifconfig lo 127.0.0.1 up\n\
    echo \"hooks-kernel $($b uname -r)\"\n\
    /hooks /t/target/release/tracer-agent\n\
    $b poweroff -f\n";

/// Measures on each kernel of this machine's architecture.
pub fn run(wanted: &[String], docs: bool) -> Result<()> {
    if docs && !wanted.is_empty() {
        bail!("--docs is written from a run of everything: leave --kernel away");
    }
    let host = Arch::host()?;
    let mut chosen = kernels::chosen(wanted)?;
    chosen.retain(|kernel| kernel.arch == host);
    setup::for_vm()?;
    let image = build(&agent::build(BuildArgs::default())?)?;
    let mut found = Vec::new();
    for kernel in chosen {
        found.push(measure(kernel, &image)?);
    }
    let text = tables(&found);
    println!("{text}");
    if docs {
        report::write_docs("vm hooks", &text)?;
    }
    Ok(())
}

fn build(agent: &Path) -> Result<PathBuf> {
    let root = image::lay_out(agent, &[], "")?;
    let source = sh::root().join("xtask/hooks/hooks.c");
    let mut compile = Command::new("cc");
    compile.args(["-O1", "-static", "-pthread", "-o"]);
    sh::run(compile.arg(root.join("hooks")).arg(source))?;
    image::write(&root.join("init"), &INIT.replace("@mounts@", image::MOUNTS))?;
    image::pack(&root, "initramfs-hooks.gz")
}

/// What one kernel told.
struct Found {
    release: String,
    values: BTreeMap<String, u64>,
}

fn measure(kernel: &Kernel, image: &Path) -> Result<Found> {
    let vmlinuz = kernels::fetch(kernel)?;
    let found = parse(&boot::boot_one(kernel, &vmlinuz, image, LIMIT)?);
    if !found.values.contains_key("done") {
        let name = kernel.name;
        bail!("{name}: not all was measured; see target/vm/console-one-{name}.txt");
    }
    Ok(found)
}

fn parse(console: &str) -> Found {
    let mut found = Found {
        release: String::new(),
        values: BTreeMap::new(),
    };
    for line in console.lines() {
        // The firmware leaves control sequences before the first line.
        if let Some((_, release)) = line.split_once("hooks-kernel ") {
            found.release = release.trim().to_owned();
        } else if let Some((name, value)) = line
            .strip_prefix("hooks ")
            .and_then(|rest| rest.trim().split_once(' '))
            && let Ok(value) = value.parse()
        {
            let least = found.values.entry(name.to_owned()).or_insert(value);
            *least = value.min(*least);
        }
    }
    found
}

impl Found {
    fn value(&self, name: &str) -> Option<u64> {
        self.values.get(name).copied()
    }

    /// What is more with hooks than without.
    fn added(&self, with: &str, what: &str) -> Option<u64> {
        let nothing = self.value(&format!("nothing/{what}"))?;
        Some(
            self.value(&format!("{with}/{what}"))?
                .saturating_sub(nothing),
        )
    }

    /// What hooks and programs cost for a request whose both ends are traced: two writes and two reads.
    fn for_a_request(&self, with: &str) -> Option<u64> {
        Some(self.value("request/base/programs")? + 2 * self.added(with, "tcp")?)
    }

    /// Instructions more of such a request in this tier of the agent, all that the kernel does for it included.
    fn in_tier(&self, tier: &str) -> Option<u64> {
        let alone = self.value(&format!("request/{tier}/alone"))?;
        let traced = self.value(&format!("request/{tier}/traced"))?;
        Some(traced.saturating_sub(alone))
    }

    /// Whether a hook ran for a call.
    fn seen(&self, name: &str) -> &'static str {
        match self.value(name) {
            Some(0) => "**missed**",
            Some(_) => "seen",
            None => "not there",
        }
    }
}

/// A part of a whole, for people.
fn ratio(pair: [Option<u64>; 2]) -> String {
    match pair {
        [Some(whole), Some(part)] if whole > 0 => format!("{:.2}", part as f64 / whole as f64),
        _ => "not there".to_owned(),
    }
}

fn word(value: Option<u64>) -> String {
    value.map_or("not there".to_owned(), |value| value.to_string())
}

fn tables(found: &[Found]) -> String {
    let mut text = String::from(
        "| instructions added | write and read, TCP: tracepoints | fentry/fexit | all calls | write and read, file: tracepoints | fentry/fexit | \
         all calls | another call: tracepoints | all calls | a request, programs included: tracepoints | fentry/fexit | ratio |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for kernel in found {
        let request = ["tracepoints", "functions"].map(|with| kernel.for_a_request(with));
        let ratio = ratio(request);
        let _ = write!(text, "| {} |", kernel.release);
        for (what, hooks) in [
            ("tcp", &["tracepoints", "functions", "all"][..]),
            ("file", &["tracepoints", "functions", "all"]),
            ("other", &["tracepoints", "all"]),
        ] {
            for with in hooks {
                let _ = write!(text, " {} |", word(kernel.added(with, what)));
            }
        }
        let [tracepoints, functions] = request.map(word);
        let _ = writeln!(text, " {tracepoints} | {functions} | {ratio} |");
    }
    text.push_str(
        "\n| missed | call that blocked when it was attached: tracepoint | fexit | runs left out, 8 threads on one CPU: tracepoint | fexit | \
         all calls | one set of programs for reads and writes |\n| --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for kernel in found {
        let seen = |name| kernel.seen(name);
        let share = |name| match kernel.value(name) {
            Some(value) => format!("{:.1}%", value as f64 / 100.0),
            None => "not there".to_owned(),
        };
        let shared = match kernel.value("shared/send") {
            Some(0) => "refused",
            Some(_) => "taken",
            None => "not there",
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {shared} |",
            kernel.release,
            seen("blocked/tracepoint"),
            seen("blocked/function"),
            share("skipped/tracepoint"),
            share("skipped/function"),
            share("skipped/all"),
        );
    }
    text.push_str(
        "\n| the agent's tiers | a request: base | fast | ratio | call in which a thread slept while another program came to the \
         function: fexit | went: fexit |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for kernel in found {
        let request = ["base", "fast"].map(|tier| kernel.in_tier(tier));
        let [base, fast] = request.map(word);
        let _ = writeln!(
            text,
            "| {} | {base} | {fast} | {} | {} | {} |",
            kernel.release,
            ratio(request),
            kernel.seen("blocked/joined"),
            kernel.seen("blocked/gone"),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consoles() {
        let console = "\x1b[2Jhooks-kernel 6.1.0-50\r\nhooks nothing/tcp 19100\r\nhooks nothing/tcp 19300\r\nhooks tracepoints/tcp 20200\r\n\
             hooks functions/tcp 19800\r\nhooks request/base/programs 23000\r\nhooks request/base/alone 20000\r\nhooks request/base/traced 46000\r\n\
             hooks request/fast/alone 20000\r\nhooks request/fast/traced 45220\r\nhooks blocked/joined 0\r\nhooks: no: such\r\nhooks odd x\r\n\
             hooks blocked/function 0\r\nhooks skipped/tracepoint 5012\r\n";
        let found = parse(console);
        assert_eq!(found.release, "6.1.0-50");
        assert_eq!(found.added("tracepoints", "tcp"), Some(1100));
        assert_eq!(found.added("functions", "tcp"), Some(700));
        assert_eq!(found.for_a_request("tracepoints"), Some(25_200));
        assert_eq!(found.added("functions", "file"), None);
        let text = tables(&[found]);
        for part in [
            "| 6.1.0-50 | 1100 | 700 | not there | not there | not there | not there | not there | not there | 25200 | 24400 | 0.97 |",
            "| not there | **missed** | 50.1% | not there | not there | not there |",
            "| 6.1.0-50 | 26000 | 25220 | 0.97 | **missed** | not there |",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
