//! Ruby, PHP, .NET, Erlang and languages whose programs are just scripts.

use super::paths::{self, Word, Words};
use super::{Command, python};

/// `ruby [options] script`.
pub(super) fn ruby(command: &Command<'_>, rest: &[&str]) -> Option<String> {
    let mut words = rest;
    while let Some((word, after)) = words.split_first() {
        match *word {
            "-e" | "-" => return None,
            "-I" | "-r" | "-C" => words = after.get(1..).unwrap_or_default(),
            _ if word.starts_with('-') => words = after,
            script => {
                return ruby_tool(command, script, after)
                    .or_else(|| Some(paths::stem(script).to_owned()));
            }
        }
    }
    None
}

/// Servers and runners that serve the project they are started in; `None` for anything else.
pub(super) fn ruby_tool(command: &Command<'_>, program: &str, rest: &[&str]) -> Option<String> {
    let base = paths::base(program);
    match base {
        "bundle" | "bundler" if rest.first() == Some(&"exec") => {
            let (inner, rest) = rest.get(1..)?.split_first()?;
            return ruby_tool(command, inner, rest).or_else(|| ruby(command, &[inner]));
        }
        "puma" | "unicorn" | "unicorn_rails" | "rackup" | "thin" | "falcon" | "sidekiq"
        | "rails" | "rake" | "resque" | "passenger" | "spring" | "foreman" => {}
        _ => return None,
    }
    // `bin/rails` belongs to the project; commands of the system and of gems do not.
    let own = program.contains("bin/")
        && !program.starts_with("/usr/")
        && !program.contains("/gems/")
        && !program.contains("/shims/")
        && !program.contains("/versions/");
    let project = if own {
        paths::file_project(command, program)
    } else {
        None
    };
    project
        .or_else(|| paths::cwd_project(command))
        .or_else(|| Some(base.to_owned()))
}

/// `php artisan serve`, `php -S address -t public`, `php server.php`.
pub(super) fn php(command: &Command<'_>, rest: &[&str]) -> Option<String> {
    let mut serves = false;
    let mut root = None;
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        match *word {
            "-r" | "-a" | "--run" | "-R" => return None,
            "-S" => serves = words.next().is_some(),
            "-t" => root = words.next(),
            "-d" | "-c" | "-z" | "-f" if *word != "-f" => {
                words.next();
            }
            option if option.starts_with('-') => {}
            script => {
                let stem = paths::stem(script);
                return match stem {
                    "artisan" | "console" | "index" | "spark" | "yii" => {
                        paths::file_project(command, script).or_else(|| Some(stem.to_owned()))
                    }
                    "composer" | "composer.phar" => paths::cwd_project(command),
                    _ => Some(stem.trim_end_matches(".phar").to_owned()),
                };
            }
        }
    }
    match root {
        _ if !serves => None,
        Some(root) => paths::project(&paths::absolute(command, root)?),
        None => paths::cwd_project(command),
    }
}

/// Stem of the first word that is not an option.
pub(super) fn plain(rest: &[&str]) -> Option<String> {
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        match *word {
            "-e" | "-E" | "-" => return None,
            "-I" => {
                words.next();
            }
            option if option.starts_with('-') => {}
            script => return Some(paths::stem(script).to_owned()),
        }
    }
    None
}

/// `dotnet Shop.dll`, `dotnet exec ... Shop.dll`, `dotnet run --project src/Shop`.
pub(super) fn dotnet(command: &Command<'_>, rest: &[&str]) -> Option<String> {
    const FLAGS: [&str; 3] = [
        "--no-build",
        "--no-restore",
        "--roll-forward-on-no-candidate-fx",
    ];
    let project = |path: &str| {
        let base = paths::base(path);
        [".csproj", ".fsproj", ".vbproj"]
            .iter()
            .find_map(|end| base.strip_suffix(end))
            .unwrap_or(base)
            .to_owned()
    };
    if let Some(assembly) = rest
        .iter()
        .find(|word| word.ends_with(".dll") && !word.starts_with('-'))
    {
        return paths::base(assembly)
            .strip_suffix(".dll")
            .map(str::to_owned);
    }
    let given = Words::new(rest, &FLAGS).find_map(|word| match word {
        Word::Option("--project" | "-p", path) if !path.is_empty() => Some(project(path)),
        _ => None,
    });
    given.or_else(|| rest.contains(&"run").then(|| paths::cwd_project(command))?)
}

/// The node name of an Erlang VM: `-sname shop`, `-name shop@10.0.0.1`.
pub(super) fn beam(rest: &[&str]) -> Option<String> {
    let at = rest
        .iter()
        .position(|word| matches!(*word, "-sname" | "-name" | "--sname" | "--name"))?;
    let name = rest.get(at + 1)?.split('@').next()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// `shop.wsgi:app` in a title, with the same rule as on the command line.
pub(super) fn titled_application(command: &Command<'_>, text: &str) -> Option<String> {
    python::application(command, text)
}
