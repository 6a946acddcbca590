//! File, environment and flags on top of each other, every value with the place it came from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::keys::{self, KEYS};
use super::{ConfigError, RunFlags, file, flags};

/// Looks an environment variable up.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Settings of one layer by key.
pub(super) type Values = BTreeMap<&'static str, Vec<Sourced>>;

/// A value as it was written, and where.
#[derive(Clone, Debug)]
pub(super) struct Sourced {
    pub text: String,
    pub place: Place,
}

/// Where a value was written.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Default,
    File { path: PathBuf, line: u64 },
    Env(&'static str),
    Flag(&'static str),
}

impl Place {
    /// How an error about `key` begins.
    pub(super) fn naming(&self, key: &str) -> String {
        match self {
            Place::File { .. } => format!("{self}: {key}"),
            Place::Default => format!("{key} ({self})"),
            Place::Env(_) | Place::Flag(_) => self.to_string(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Default => f.write_str("default"),
            Place::File { path, line } => write!(f, "{} line {line}", path.display()),
            Place::Env(name) | Place::Flag(name) => f.write_str(name),
        }
    }
}

/// A `service_names` entry as written.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub exe: Option<String>,
    pub cmdline: Option<String>,
    pub name: Option<String>,
    pub place: Place,
}

/// An entry of one of [`keys::LISTS`] as written: the fields that it has.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub fields: Vec<(&'static str, Vec<Sourced>)>,
    pub place: Place,
}

/// Entries by list.
pub(super) type Items = BTreeMap<&'static str, Vec<Item>>;

impl Item {
    /// Values of a field; none if the entry does not have it.
    pub(super) fn values(&self, field: &str) -> &[Sourced] {
        let found = self.fields.iter().find(|(name, _)| *name == field);
        found.map_or(&[], |(_, values)| values)
    }
}

/// All layers, not yet validated.
#[derive(Debug, Default)]
pub struct Layers {
    pub(super) flags: Values,
    pub(super) env: Values,
    pub(super) file: Values,
    pub(super) service_names: Vec<Rule>,
    pub(super) items: Items,
}

impl Layers {
    /// Reads the configuration file if one is named, then lays environment and flags over it.
    pub fn gather(flags: &RunFlags, env: Environment<'_>) -> Result<Layers, ConfigError> {
        let set = |name: &str| env(name).filter(|value| !value.is_empty());
        let path = flags
            .common
            .config
            .clone()
            .or_else(|| set("TRACER_CONFIG").map(PathBuf::from));
        let mut layers = match path {
            Some(path) => Layers::of_file(&path)?,
            None => Layers::default(),
        };
        layers.flags = flags::values(flags);
        layers.env = env_values(&set);
        Ok(layers)
    }

    /// The layers of a file alone, as `config check` looks at it.
    pub fn of_file(path: &Path) -> Result<Layers, ConfigError> {
        Layers::of_text(&file::read(path)?, path)
    }

    /// The layers of a file's text; `path` is for messages.
    pub fn of_text(text: &str, path: &Path) -> Result<Layers, ConfigError> {
        let parsed = file::parse(text, path)?;
        Ok(Layers {
            file: parsed.values,
            service_names: parsed.service_names,
            items: parsed.items,
            ..Layers::default()
        })
    }

    /// The values of a key that count; `None` when nobody set it.
    pub(super) fn set(&self, key: &str) -> Option<&[Sourced]> {
        [&self.flags, &self.env, &self.file]
            .into_iter()
            .find_map(|layer| layer.get(key))
            .map(Vec::as_slice)
    }

    /// The values of a key that count, its default included.
    pub(super) fn effective(&self, key: &str) -> Vec<Sourced> {
        self.set(key).map_or_else(
            || {
                let default = keys::key(key).map_or("", |key| key.default);
                let texts = default.split(',').filter(|text| !text.is_empty());
                texts
                    .map(|text| Sourced {
                        text: text.to_owned(),
                        place: Place::Default,
                    })
                    .collect()
            },
            <[Sourced]>::to_vec,
        )
    }
}

fn env_values(set: Environment<'_>) -> Values {
    let mut values = Values::new();
    for key in KEYS {
        let Some((name, value)) = key.env.iter().find_map(|name| Some((*name, set(name)?))) else {
            continue;
        };
        let texts: Vec<&str> = match key.list {
            true => value
                .split(',')
                .map(str::trim)
                .filter(|text| !text.is_empty())
                .collect(),
            false => vec![value.trim()],
        };
        let sourced = |text: &str| Sourced {
            text: text.to_owned(),
            place: Place::Env(name),
        };
        values.insert(key.name, texts.into_iter().map(sourced).collect());
    }
    values
}
