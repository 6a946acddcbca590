//! Python: scripts, modules, and the servers that are given an application.

use super::paths::{self, Word, Words};
use super::{Command, name_of};

/// Options of the servers below that take no value.
const FLAGS: [&str; 25] = [
    "-D",
    "-R",
    "--access-log",
    "--capture-output",
    "--check-config",
    "--daemon",
    "--debug",
    "--dev",
    "--do-handshake-on-connect",
    "--enable-stdio-inheritance",
    "--factory",
    "--log-syslog",
    "--master",
    "--preload",
    "--print-config",
    "--proxy-headers",
    "--proxy-protocol",
    "--reload",
    "--server-header",
    "--spew",
    "--strip-header-spaces",
    "--suppress-ragged-eofs",
    "--use-colors",
    "--date-header",
    "--version",
];
/// Last parts of a module path that say what it is, not whose.
const ROLES: [&str; 10] = [
    "__main__",
    "app",
    "application",
    "asgi",
    "celery",
    "celery_app",
    "factory",
    "main",
    "server",
    "wsgi",
];
/// Packages of project templates that are called the same everywhere.
const TEMPLATES: [&str; 3] = ["config", "core", "project"];

/// `python [options] script | -m module | -c code`.
pub(super) fn interpreter(command: &Command<'_>, rest: &[&str], depth: u8) -> Option<String> {
    let mut rest = rest;
    while let Some((word, after)) = rest.split_first() {
        match *word {
            "-W" | "-X" | "--check-hash-based-pycs" => rest = after.get(1..).unwrap_or_default(),
            "-" => return None,
            _ if word.starts_with("--") => rest = after,
            _ if word.starts_with("-W") || word.starts_with("-X") => rest = after,
            _ if word.starts_with('-') => match word.find(['m', 'c']) {
                // The rest of the word, or the next one, is the module or the code.
                Some(at) if word.as_bytes().get(at) == Some(&b'm') => {
                    let joined = word.get(at + 1..).filter(|joined| !joined.is_empty());
                    return match joined {
                        Some(name) => module(command, name, after),
                        None => after
                            .split_first()
                            .and_then(|(name, after)| module(command, name, after)),
                    };
                }
                Some(_) => return None,
                None => rest = after,
            },
            _ => return script(command, rest, depth),
        }
    }
    None
}

fn module(command: &Command<'_>, name: &str, rest: &[&str]) -> Option<String> {
    let name = name.strip_suffix(".__main__").unwrap_or(name);
    tool(command, name, rest).or_else(|| Some(name.to_owned()))
}

fn script(command: &Command<'_>, words: &[&str], depth: u8) -> Option<String> {
    let path = words.first()?;
    let stem = paths::stem(path);
    match stem {
        "manage" | "__main__" => {
            paths::file_project(command, path).or_else(|| Some(stem.to_owned()))
        }
        // Installed commands have no extension: gunicorn, ddtrace-run, ...
        _ if stem == paths::base(path) => name_of(command, words, depth),
        _ => Some(stem.to_owned()),
    }
}

/// Servers and runners that are told which application to serve; `None` for anything else.
pub(super) fn tool(command: &Command<'_>, name: &str, rest: &[&str]) -> Option<String> {
    let project = || paths::cwd_project(command);
    let found = match name {
        "gunicorn" | "uvicorn" | "hypercorn" | "daphne" | "granian" | "waitress-serve"
        | "waitress" | "sanic" => option(rest, &["-n", "--name", "--process-name"])
            .filter(|_| name == "gunicorn" || name == "granian")
            .map(str::to_owned)
            .or_else(|| {
                application(
                    command,
                    option(rest, &["--call"]).or_else(|| positional(rest))?,
                )
            })
            .or_else(project),
        "celery" => option(rest, &["-A", "--app"])
            .and_then(|app| application(command, app))
            .or_else(project),
        "flask" => option(rest, &["-A", "--app"])
            .or_else(|| (command.env)("FLASK_APP"))
            .and_then(|app| application(command, app))
            .or_else(project),
        "django-admin" => option(rest, &["--settings"])
            .map(|settings| settings.split('.').next().unwrap_or(settings).to_owned())
            .or_else(project),
        "fastapi" => match words(rest).nth(1) {
            Some(path) if paths::stem(path) == "main" => {
                paths::file_project(command, path).or(Some("main".into()))
            }
            Some(path) => Some(paths::stem(path).to_owned()),
            None => project(),
        },
        "streamlit" => words(rest)
            .nth(1)
            .map(|path| paths::stem(path).to_owned())
            .or_else(project),
        "uwsgi" => option(rest, &["-w", "--module", "--wsgi"])
            .or_else(|| option(rest, &["--wsgi-file", "--file"]))
            .and_then(|app| application(command, app))
            .or_else(|| {
                let stem =
                    paths::base(option(rest, &["--ini", "--yaml"]).or_else(|| positional(rest))?);
                let stem = stem.split('.').next().unwrap_or(stem);
                (stem != "uwsgi").then(|| stem.to_owned())
            })
            .or_else(project),
        _ => return None,
    };
    found.or_else(|| Some(name.to_owned()))
}

/// `shop.wsgi:app`, `shop:create_app()`, `src/shop.py`: whose application that is.
pub(super) fn application(command: &Command<'_>, text: &str) -> Option<String> {
    let path = text.split(':').next()?;
    if path.is_empty() {
        return None;
    }
    if path.contains('/') || path.ends_with(".py") {
        let stem = paths::stem(path);
        return match stem {
            "wsgi" | "asgi" => paths::file_project(command, path).or_else(|| Some(stem.to_owned())),
            _ => Some(stem.to_owned()),
        };
    }
    let mut parts: Vec<&str> = path.split('.').collect();
    while parts.len() > 1 && parts.last().is_some_and(|last| ROLES.contains(last)) {
        parts.pop();
    }
    if parts.len() > 1 && parts.first() == Some(&"src") {
        parts.remove(0);
    }
    let name = parts.join(".");
    if TEMPLATES.contains(&name.as_str()) && name != path {
        return paths::cwd_project(command).or(Some(name));
    }
    Some(name)
}

fn option<'a>(rest: &'a [&'a str], names: &[&str]) -> Option<&'a str> {
    Words::new(rest, &FLAGS).find_map(|word| match word {
        Word::Option(name, value) if names.contains(&name) && !value.is_empty() => Some(value),
        _ => None,
    })
}

fn words<'a>(rest: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    Words::new(rest, &FLAGS).filter_map(|word| match word {
        Word::Positional(word) => Some(word),
        Word::Option(..) => None,
    })
}

fn positional<'a>(rest: &'a [&'a str]) -> Option<&'a str> {
    words(rest).last()
}
