//! The results as people read them.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};

use super::Smoke;
use super::boot::{Outcome, Run};
use crate::sh;

/// One line when a machine is done.
pub fn line(run: &Run) {
    let verdict = if run.verified() {
        "the verifier took"
    } else {
        "the verifier did not take all of"
    };
    eprintln!(
        "vm: {} ({}): {verdict} {} programs; {:.0} s",
        run.kernel,
        run.release,
        run.programs,
        run.took.as_secs_f64()
    );
}

/// An error if they did not all run the same: a table of such would tell of no version that there is.
pub fn same_build(runs: &[Run]) -> Result<()> {
    let Some(first) = runs.first() else {
        return Ok(());
    };
    let others = runs
        .iter()
        .filter(|run| run.build.is_empty() || run.build != first.build);
    let others: Vec<&str> = others.map(|run| run.kernel).collect();
    if !others.is_empty() {
        let (kernel, build) = (first.kernel, &first.build);
        bail!(
            "{kernel} ran build {build}, others did not: {}",
            others.join(", ")
        );
    }
    Ok(())
}

/// A Markdown table.
pub fn table(runs: &[Run], smokes: &[Smoke]) -> String {
    let mut text = String::from("| kernel | programs verified | most instructions |");
    for smoke in smokes {
        let _ = write!(text, " {} |", smoke.name);
    }
    text.push_str(" time, emulated |\n| --- | --- | --- |");
    text.push_str(&" --- |".repeat(smokes.len() + 1));
    text.push('\n');
    for run in runs {
        let release = if run.release.is_empty() {
            "did not boot"
        } else {
            &run.release
        };
        let verified = if run.verified() { "all" } else { "**not all**" };
        let instructions = match run.most_instructions {
            0 => "not told".to_owned(),
            n => n.to_string(),
        };
        let _ = write!(
            text,
            "| {release} | {verified}, {} | {instructions} |",
            run.programs
        );
        for smoke in smokes {
            let word = match run.outcome(smoke.name) {
                Outcome::Passed => "exact",
                Outcome::Failed => "**losses**",
                Outcome::Skipped => "not there",
                Outcome::Missing if !run.wanted.contains(&smoke.name) => "not run",
                Outcome::Missing => "**not run**",
            };
            let _ = write!(text, " {word} |");
        }
        let _ = writeln!(text, " {:.0} s |", run.took.as_secs_f64());
    }
    for run in runs {
        if let Some(known) = run.known {
            let _ = writeln!(text, "\n{}: {known}.", run.release);
        }
    }
    text
}

/// Puts a text into docs/kernels.md, between the markers of the command that writes it.
pub fn write_docs(command: &str, text: &str) -> Result<()> {
    let begin = format!("<!-- results: written by `cargo xtask {command} --docs` -->\n");
    const END: &str = "<!-- end of results -->";
    let path = sh::root().join("docs/kernels.md");
    let page = std::fs::read_to_string(&path).context("cannot read docs/kernels.md")?;
    let (before, rest) = page
        .split_once(&begin)
        .with_context(|| format!("docs/kernels.md has no marker of {command}"))?;
    let (_, after) = rest
        .split_once(END)
        .context("docs/kernels.md has no end marker")?;
    std::fs::write(&path, format!("{before}{begin}\n{text}\n{END}{after}"))
        .context("cannot write docs/kernels.md")?;
    eprintln!("vm: wrote docs/kernels.md");
    Ok(())
}
