//! What is in effect, and why, as a file that would say the same.

use std::fmt::Write as _;

use super::keys::{self, KEYS, LISTS};
use super::layers::{Item, Layers, Sourced};

impl Layers {
    /// The effective settings as YAML, each with where it came from. Values of headers are secrets
    /// and come out as `REDACTED`.
    pub fn to_yaml(&self) -> String {
        let mut text = String::new();
        let mut open: Vec<&str> = Vec::new();
        for (index, key) in KEYS.iter().enumerate() {
            let values = self.effective(key.name);
            let mut path: Vec<&str> = key.name.split('.').collect();
            let Some(leaf) = path.pop() else { continue };
            let shared = open.iter().zip(&path).take_while(|(a, b)| a == b).count();
            for (depth, section) in path.iter().enumerate().skip(shared) {
                let _ = writeln!(text, "{:1$}{section}:", "", depth * 2);
            }
            let indent = path.len() * 2;
            open = path;
            let value = match (key.list, values.is_empty()) {
                _ if key.name == keys::OTLP_HEADERS => headers(&values),
                _ if key.name.ends_with(".endpoint") => {
                    let shown = values
                        .first()
                        .map(|value| quoted(&without_user(&value.text)));
                    shown.unwrap_or_else(|| "~".to_owned())
                }
                (true, _) => {
                    let items: Vec<String> =
                        values.iter().map(|value| quoted(&value.text)).collect();
                    format!("[{}]", items.join(", "))
                }
                (false, true) => "~".to_owned(),
                (false, false) => values.iter().map(|value| quoted(&value.text)).collect(),
            };
            let from = values
                .first()
                .map_or_else(|| "not set".to_owned(), |value| value.place.to_string());
            let _ = writeln!(text, "{:indent$}{leaf}: {value}  # {from}", "");
            // The lists of a section follow its last key.
            let section = key.name.split('.').next().unwrap_or_default();
            let goes_on = KEYS
                .get(index + 1)
                .is_some_and(|next| next.name.split('.').next() == Some(section));
            for list in LISTS.iter().filter(|_| !goes_on) {
                let (Some((of, leaf)), Some(items)) =
                    (list.name.split_once('.'), self.items.get(list.name))
                else {
                    continue;
                };
                if of == section {
                    let _ = writeln!(text, "  {leaf}:");
                    items
                        .iter()
                        .for_each(|item| write_item(&mut text, list, item));
                }
            }
        }
        if !self.service_names.is_empty() {
            text.push_str("service_names:\n");
        }
        for rule in &self.service_names {
            let fields = [
                ("exe", &rule.exe),
                ("cmdline", &rule.cmdline),
                ("name", &rule.name),
            ];
            let fields: Vec<String> = fields
                .iter()
                .filter_map(|(field, value)| {
                    value
                        .as_ref()
                        .map(|value| format!("{field}: {}", quoted(value)))
                })
                .collect();
            let _ = writeln!(text, "  - {{{}}}  # {}", fields.join(", "), rule.place);
        }
        text
    }
}

fn write_item(text: &mut String, list: &keys::List, item: &Item) {
    let fields = list.fields.iter().filter_map(|field| {
        let values = item.values(field.name);
        let texts: Vec<String> = values.iter().map(|value| quoted(&value.text)).collect();
        (!texts.is_empty()).then(|| match field.list {
            true => format!("{}: [{}]", field.name, texts.join(", ")),
            false => format!("{}: {}", field.name, texts.concat()),
        })
    });
    let fields: Vec<String> = fields.collect();
    let _ = writeln!(text, "    - {{{}}}  # {}", fields.join(", "), item.place);
}

fn headers(values: &[Sourced]) -> String {
    let names = values
        .iter()
        .map(|value| value.text.split_once('=').map_or("?", |(name, _)| name));
    let fields: Vec<String> = names
        .map(|name| format!("{}: REDACTED", quoted(name)))
        .collect();
    format!("{{{}}}", fields.join(", "))
}

/// A URL without the name and the password in it, as in spans.
fn without_user(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((user, _)) => {
            let rest = rest.get(user.len()..).unwrap_or_default();
            format!("{scheme}://REDACTED:REDACTED{rest}")
        }
        None => url.to_owned(),
    }
}

/// A scalar, in JSON's quotes (which YAML reads) wherever a plain one could mean something else.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let starts_plain = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/');
    match starts_plain && text.chars().all(plain) {
        true => text.to_owned(),
        false => serde_json::Value::from(text).to_string(),
    }
}
