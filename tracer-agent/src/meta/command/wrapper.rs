//! Programs that only start another one.

use super::{Command, name_of, paths};

/// The command inside a wrapper.
pub(super) enum Inner<'a> {
    Words(&'a [&'a str]),
    Script(&'a str),
}

impl Inner<'_> {
    pub(super) fn name(self, command: &Command<'_>, depth: u8) -> Option<String> {
        match self {
            Inner::Words(words) => name_of(command, words, depth),
            Inner::Script(text) => script(command, text, depth),
        }
    }
}

/// How a wrapper's own arguments end: options with a value, and words before the command.
struct Wrapper {
    valued: &'static [&'static str],
    words: usize,
    subcommand: &'static str,
}

fn wrapper(name: &str) -> Option<Wrapper> {
    let (valued, words, subcommand): (&'static [&'static str], usize, &'static str) = match name {
        "env" => (&["-u", "--unset", "-C", "--chdir"], 0, ""),
        "sudo" | "doas" => (
            &[
                "-u", "--user", "-g", "--group", "-p", "-C", "-h", "-r", "-t", "-T", "-U", "-D",
                "-R",
            ],
            0,
            "",
        ),
        "tini" | "tini-static" | "docker-init" => (&["-e", "-p"], 0, ""),
        "dumb-init" => (&["-r", "--rewrite"], 0, ""),
        "catatonit"
        | "nohup"
        | "setsid"
        | "exec"
        | "command"
        | "time"
        | "with-contenv"
        | "xvfb-run"
        | "opentelemetry-instrument"
        | "ddtrace-run" => (&["-a"], 0, ""),
        "nice" => (&["-n", "--adjustment"], 0, ""),
        "ionice" => (&["-c", "-n"], 0, ""),
        "stdbuf" => (&["-i", "-o", "-e"], 0, ""),
        "timeout" => (&["-k", "-s", "--kill-after", "--signal"], 1, ""),
        "su-exec" | "gosu" | "s6-setuidgid" | "setuidgid" => (&[], 1, ""),
        "taskset" => (&[], 1, ""),
        "numactl" | "setpriv" => (&["-N", "-m", "-C"], 0, ""),
        "runuser" => (&["-u", "-g", "-G"], 0, ""),
        "newrelic-admin" => (&[], 0, "run-program"),
        "bundle" | "bundler" => (&[], 0, "exec"),
        "poetry" | "pipenv" | "uv" | "pdm" | "hatch" | "rye" | "conda" | "micromamba"
        | "doppler" | "op" => (
            &[
                "-n",
                "-p",
                "--name",
                "--with",
                "--python",
                "--project",
                "--directory",
                "--env-file",
            ],
            0,
            "run",
        ),
        _ => return None,
    };
    Some(Wrapper {
        valued,
        words,
        subcommand,
    })
}

/// The command inside, if `name` is a wrapper and there is one.
pub(super) fn unwrap<'a>(name: &str, rest: &'a [&'a str]) -> Option<Inner<'a>> {
    let Wrapper {
        valued,
        words,
        subcommand,
    } = wrapper(name)?;
    let mut rest = rest;
    let mut words = words;
    let mut wants = subcommand;
    while let Some((word, after)) = rest.split_first() {
        if *word == "--" {
            rest = after;
            break;
        } else if name == "env" && matches!(*word, "-S" | "--split-string") {
            return after.first().map(|text| Inner::Script(text));
        } else if valued.contains(word) {
            rest = after.get(1..).unwrap_or_default();
        } else if word.starts_with('-') || is_assignment(word) {
            rest = after;
        } else if !wants.is_empty() {
            if *word != wants {
                return None;
            }
            wants = "";
            rest = after;
        } else if words > 0 {
            words -= 1;
            rest = after;
        } else {
            break;
        }
    }
    (!rest.is_empty()).then_some(Inner::Words(rest))
}

/// `sh -c 'text'` and `sh script.sh`.
pub(super) fn shell(command: &Command<'_>, rest: &[&str], depth: u8) -> Option<String> {
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        if *word == "-o" || *word == "+o" {
            words.next();
        } else if word.starts_with("--") || word.starts_with('+') {
        } else if let Some(flags) = word.strip_prefix('-') {
            if flags.contains('c') {
                return script(command, words.find(|word| !word.starts_with('-'))?, depth);
            }
        } else {
            return Some(paths::stem(word).to_owned());
        }
    }
    None
}

/// The last command of a line of shell, which is the one that stays.
fn script(command: &Command<'_>, text: &str, depth: u8) -> Option<String> {
    let words = split(text);
    // What a variable stands for is not known; most often it is options.
    let words: Vec<&str> = words
        .iter()
        .map(String::as_str)
        .filter(|word| !word.starts_with('$'))
        .collect();
    let last = words
        .split(|word| matches!(*word, "&&" | "||" | ";" | "|" | "&"))
        .rfind(|part| !part.is_empty())?;
    let start = last
        .iter()
        .position(|word| !is_assignment(word) && *word != "exec")?;
    name_of(command, last.get(start..)?, depth)
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

/// Words of a line of shell: quotes and backslashes; operators are words; no expansion.
fn split(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                while let Some(inner) = chars.next().filter(|inner| *inner != c) {
                    match inner {
                        '\\' if c == '"' => word.extend(chars.next()),
                        _ => word.push(inner),
                    }
                }
            }
            '\\' => word.get_or_insert_default().extend(chars.next()),
            ';' | '&' | '|' => {
                words.extend(word.take());
                let twice = c != ';' && chars.next_if_eq(&c).is_some();
                words.push(if twice { format!("{c}{c}") } else { c.into() });
            }
            _ if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn shell_words() {
        for (text, expected) in [
            ("a b  c", vec!["a", "b", "c"]),
            ("'a b' \"c d\"e f\\ g", vec!["a b", "c de", "f g"]),
            (
                "a&&b||c;d|e&",
                vec!["a", "&&", "b", "||", "c", ";", "d", "|", "e", "&"],
            ),
            ("\"a\\\"b\" ''", vec!["a\"b", ""]),
            ("'open", vec!["open"]),
            ("end\\", vec!["end"]),
            ("", vec![]),
        ] {
            assert_eq!(split(text), expected, "{text}");
        }
    }
}
