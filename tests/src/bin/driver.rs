//! The traced client of the live tests: a plan on the command line, a JSON report on stdout.

use std::io::{Read, Write, stdin, stdout};

use clap::Parser;
use tracer_tests::driver::{Plan, run};

#[derive(Parser)]
#[command(name = "tracer-driver")]
struct Arguments {
    #[command(flatten)]
    plan: Plan,
    /// End at once after the report instead of waiting for the end of stdin.
    #[arg(long)]
    once: bool,
}

fn main() -> anyhow::Result<()> {
    let Arguments { plan, once } = Arguments::parse();
    let report = run(&plan, || {
        if plan.preopen {
            let mut line = String::new();
            // A closed stdin means go as well: then nobody will ever say it.
            if writeln!(stdout(), "ready").is_ok() {
                let _ = stdin().read_line(&mut line);
            }
        }
    });
    writeln!(stdout(), "{}", serde_json::to_string(&report)?)?;
    if !once {
        // Stay, so that the connections' owner can still be looked at.
        let _ = stdin().read_to_end(&mut Vec::new());
    }
    Ok(())
}
