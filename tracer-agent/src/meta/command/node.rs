//! JavaScript: node, bun, deno and the tools that start them.

use std::path::Path;

use super::{Command, paths};

/// Directories above the script that are looked at for a `package.json`.
const LEVELS: usize = 6;
/// Commands that start what the project of the working directory says.
pub(super) const TOOLS: [&str; 8] = [
    "npm", "npx", "yarn", "pnpm", "next", "vite", "nest", "corepack",
];
/// Options of node, ts-node, nodemon and deno whose value is the next word.
const VALUED: [&str; 18] = [
    "-r",
    "--require",
    "--import",
    "--loader",
    "--experimental-loader",
    "-C",
    "--conditions",
    "--env-file",
    "--watch-path",
    "-P",
    "--project",
    "-w",
    "--watch",
    "-x",
    "--exec",
    "--ext",
    "--config",
    "-c",
];

/// `node [options] script`.
pub(super) fn interpreter(command: &Command<'_>, rest: &[&str]) -> Option<String> {
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        if let Some(title) = word
            .strip_prefix("--title=")
            .filter(|title| !title.is_empty())
        {
            return Some(title.to_owned());
        }
        match *word {
            "-e" | "-p" | "-pe" | "--eval" | "--print" | "-" => return None,
            // nodemon and node share names: `--watch` alone is node's.
            "-w" | "--watch"
                if words
                    .as_slice()
                    .first()
                    .is_some_and(|next| looks_like_script(next)) => {}
            option if VALUED.contains(&option) => {
                words.next();
            }
            option if option.starts_with('-') => {}
            script => return named_by_script(command, script),
        }
    }
    None
}

/// `bun run start`, `bun index.ts`, `deno run -A main.ts`, `deno task start`.
pub(super) fn run(command: &Command<'_>, rest: &[&str]) -> Option<String> {
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        match *word {
            "run" | "serve" | "task" | "x" | "start" | "dev" => {}
            "-e" | "--eval" | "-p" | "eval" | "repl" => return None,
            option if VALUED.contains(&option) => {
                words.next();
            }
            option if option.starts_with('-') => {}
            script if looks_like_script(script) => return named_by_script(command, script),
            _ => break,
        }
    }
    if rest.is_empty() {
        None
    } else {
        cwd_package(command).or_else(|| paths::cwd_project(command))
    }
}

/// `npm start`, `next start`: the project of the working directory.
pub(super) fn project(command: &Command<'_>, tool: &str) -> Option<String> {
    cwd_package(command)
        .or_else(|| paths::cwd_project(command))
        .or_else(|| Some(tool.to_owned()))
}

/// Name of the package of the working directory.
pub(super) fn cwd_package(command: &Command<'_>) -> Option<String> {
    package(command, command.cwd?)
}

fn looks_like_script(word: &str) -> bool {
    word.contains(['/', '.'])
}

fn named_by_script(command: &Command<'_>, script: &str) -> Option<String> {
    let stem = paths::stem(script);
    if TOOLS.contains(&stem) {
        return project(command, stem);
    }
    if script.contains("://") {
        return Some(stem.to_owned());
    }
    let path = paths::absolute(command, script);
    // A tool out of node_modules serves the project that it is installed in, or started in.
    if let Some((before, _)) = script.split_once("node_modules/") {
        return paths::absolute(command, before)
            .and_then(|directory| package(command, &directory))
            .or_else(|| cwd_package(command))
            .or_else(|| paths::cwd_project(command))
            .or_else(|| Some(stem.to_owned()));
    }
    path.and_then(|path| package(command, &path))
        .or_else(|| match stem {
            "index" | "main" | "." | "" => paths::file_project(command, script)
                .or_else(|| (!matches!(stem, "." | "")).then(|| stem.to_owned())),
            _ => Some(stem.to_owned()),
        })
}

/// Name in the nearest `package.json` at or above `path` that has one.
fn package(command: &Command<'_>, path: &Path) -> Option<String> {
    path.ancestors()
        .take(LEVELS)
        .find_map(|directory| (command.package_name)(directory))
}
