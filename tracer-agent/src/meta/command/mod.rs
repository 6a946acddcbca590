//! A service name made from the command line, for processes that nobody named.
//!
//! In: program path, arguments, working directory. Out: a name a person would give the service,
//! or `None` when the command says nothing beyond its interpreter (`python -c ...`).
//!
//! | command | name | why |
//! | --- | --- | --- |
//! | `python app.py`, `ruby app.rb`, `php server.php` | `app`, `server` | stem of the script, whatever it is |
//! | `python -m shop.server` | `shop.server` | the module; a package may have several programs |
//! | `gunicorn shop.wsgi:app`, `uvicorn shop.main:app` | `shop` | the module without its conventional last part |
//! | `python manage.py runserver`, `bin/rails server` | directory of the project | the script is the same everywhere |
//! | `java -jar shop-1.2.3.jar` | `shop` | the version is not part of the name |
//! | `java com.acme.OrderService` | `OrderService` | simple class name |
//! | `java com.acme.shop.Main` | `shop` | a class called Main, App, ... is named by its package |
//! | `node server/index.js` | nearest `package.json`, else directory or stem | |
//! | anything else | base name of the program | |
//!
//! Wrappers (`sudo`, `tini`, `env`, `sh -c`, ...) are looked through.

mod jvm;
mod node;
mod paths;
mod python;
mod scripts;
mod title;
mod wrapper;

#[cfg(test)]
mod tests;

use std::path::Path;

/// Longest name that is made.
const NAME_MAX: usize = 128;
/// Wrappers inside wrappers that are looked through.
const DEPTH_MAX: u8 = 8;

/// What a name is made from.
#[derive(Clone, Copy)]
pub struct Command<'a> {
    /// Path of the program that runs (of the interpreter, for a script).
    pub exe: Option<&'a str>,
    /// Arguments, the program's own name first.
    pub args: &'a [&'a str],
    /// Working directory, as the process sees it.
    pub cwd: Option<&'a Path>,
    /// A variable of the process's environment.
    pub env: &'a dyn Fn(&str) -> Option<&'a str>,
    /// `name` of the `package.json` in a directory of the process's file system.
    pub package_name: &'a dyn Fn(&Path) -> Option<String>,
}

impl std::fmt::Debug for Command<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Command {
            exe,
            args,
            cwd,
            env: _,
            package_name: _,
        } = self;
        f.debug_struct("Command")
            .field("exe", exe)
            .field("args", args)
            .field("cwd", cwd)
            .finish()
    }
}

/// The name, or `None` when the command has nothing better than its interpreter's name.
pub fn service_name(command: &Command<'_>) -> Option<String> {
    let args: Vec<&str> = command.args.iter().map(|arg| arg.trim()).collect();
    let found = match args.as_slice() {
        [title] if title::is_title(title) => title::name(command, title),
        [] => command.exe.and_then(|exe| name_of(command, &[exe], 0)),
        [first, rest @ ..] => {
            let program = program(command.exe, first);
            let mut words = vec![program];
            words.extend_from_slice(rest);
            name_of(command, &words, 0)
        }
    }?;
    let name: String = found
        .trim()
        .chars()
        .filter(|c| !c.is_control())
        .take(NAME_MAX)
        .collect();
    (!name.is_empty()).then_some(name)
}

/// The program decides, except for programs that are many in one and go by their first argument.
fn program<'a>(exe: Option<&'a str>, first: &'a str) -> &'a str {
    match exe {
        Some(exe) if !matches!(paths::base(exe), "busybox" | "coreutils" | "toybox") => exe,
        _ => first.trim_start_matches('-'),
    }
}

/// The name of the command `words`, its program first.
fn name_of(command: &Command<'_>, words: &[&str], depth: u8) -> Option<String> {
    let (program, rest) = words.split_first()?;
    if depth > DEPTH_MAX {
        return None;
    }
    let base = paths::base(program);
    let family = family(base);
    if let Some(inner) = wrapper::unwrap(family, rest) {
        return inner.name(command, depth + 1);
    }
    match family {
        "sh" | "bash" | "dash" | "zsh" | "ash" | "ksh" | "fish" => {
            wrapper::shell(command, rest, depth + 1)
        }
        "python" | "pypy" => python::interpreter(command, rest, depth + 1),
        "java" => jvm::name(command, rest),
        "node" | "nodejs" | "ts-node" | "tsx" | "nodemon" | "pm2-runtime" => {
            node::interpreter(command, rest)
        }
        tool if node::TOOLS.contains(&tool) => node::project(command, tool),
        "bun" | "deno" => node::run(command, rest),
        "ruby" | "jruby" | "truffleruby" => scripts::ruby(command, rest),
        "php" => scripts::php(command, rest),
        "perl" | "lua" | "luajit" | "Rscript" | "tclsh" => scripts::plain(rest),
        "dotnet" => scripts::dotnet(command, rest),
        "beam.smp" | "erl" | "iex" | "elixir" => scripts::beam(rest),
        "php-fpm" => Some("php-fpm".into()),
        "nginx" | "openresty" => Some(base.to_owned()),
        _ => python::tool(command, base, rest)
            .or_else(|| scripts::ruby_tool(command, program, rest))
            .or_else(|| Some(base.to_owned())),
    }
}

/// `python3.11` is a `python`, `php-fpm8.2` a `php-fpm`, `ruby-3.2` a `ruby`.
fn family(base: &str) -> &str {
    let stem = base
        .trim_end_matches(|c: char| c.is_ascii_digit() || c == '.')
        .trim_end_matches('-');
    if stem.is_empty() { base } else { stem }
}
