//! A JSON Schema of the configuration file, for editors and for checks before a roll-out.
//!
//! In: the tables of `keys`, and what is known here of the shapes of values. Out: a schema in which
//! unknown keys are refused. The agent's own parser is the judge: it allows other spellings of some
//! values (`yes` for `true`, `4096` for `4KiB`), and sees more than a schema can say.

use serde_json::{Map, Value, json};

use super::keys::{self, KEYS, Key, LISTS};
use crate::trace::sampling::NAMES;
use crate::trace::sdk::MODES;

/// What the values of a key look like.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Boolean,
    Integer(u32, u32),
    /// From 0.
    IntegerFromZero(u32),
    /// From, to; the lower bound itself is not allowed.
    Above(f64, f64),
    Number(f64, f64),
    Words(&'static [&'static str]),
    /// Text that begins with a slash.
    Path,
    /// A number, or text that says the same with more words.
    IntegerOrText,
    /// Text, or `off`.
    TextOrOff,
    /// Names to texts.
    Headers,
    Text,
}

fn shape(key: &str) -> Shape {
    const MILLISECONDS: Shape = Shape::Integer(1, 3_600_000);
    match key {
        keys::ADMIN | keys::TAKEOVER => Shape::TextOrOff,
        keys::LIMIT_MEMORY => Shape::IntegerOrText,
        keys::LIMIT_CPU => Shape::Above(0.0, 1e4),
        keys::PROPAGATE => Shape::Words(&["false", "true", "header", "option", "always"]),
        keys::TIER => Shape::Words(&["auto", "base", "fast"]),
        keys::CONTAINERS_ONLY
        | keys::TLS
        | keys::COMMAND_ARGS
        | keys::KUBERNETES_PEERS
        | keys::KEEP_ERRORS
        | keys::ROUTE_LEARN => Shape::Boolean,
        keys::INCLUDE_PIDS | keys::EXCLUDE_PIDS => Shape::Integer(1, 4_194_304),
        keys::INCLUDE_PORTS | keys::EXCLUDE_PORTS | keys::RING_SIZE => Shape::IntegerOrText,
        keys::MAX_CONNECTIONS => Shape::Integer(1024, 1_048_576),
        keys::OTLP_HEADERS => Shape::Headers,
        keys::OTLP_TIMEOUT | keys::BATCH_DELAY | keys::KEEP_SLOWER_THAN => MILLISECONDS,
        keys::BATCH_QUEUE => Shape::Integer(1, 10_000_000),
        keys::BATCH_SIZE | keys::MAX_BUFFERED => Shape::Integer(1, 1_000_000),
        keys::SAMPLER => Shape::Words(&NAMES),
        keys::SAMPLER_RATIO => Shape::Number(0.0, 1.0),
        keys::SPANS_PER_SECOND => Shape::Above(0.0, 1e6),
        keys::SDK_MODE => Shape::Words(&MODES),
        keys::DECISION_WAIT | keys::SDK_WAIT => Shape::Integer(100, 60_000),
        keys::ROUTE_MAX => Shape::Integer(1, 10_000),
        keys::KUBERNETES => Shape::TextOrOff,
        keys::KUBERNETES_WAIT => Shape::IntegerFromZero(30_000),
        keys::ROUTE_PATTERNS => Shape::Path,
        _ => Shape::Text,
    }
}

/// Fields of lists have the shapes of the keys that they stand for.
fn field_shape(field: &str) -> Shape {
    match field {
        "keep_slower_than_ms" => shape(keys::KEEP_SLOWER_THAN),
        "spans_per_second" => shape(keys::SPANS_PER_SECOND),
        "mode" => shape(keys::SDK_MODE),
        "route" | "patterns" => Shape::Path,
        _ => Shape::Text,
    }
}

impl Shape {
    fn schema(self) -> Value {
        match self {
            Shape::Boolean => json!({"type": ["boolean", "null"]}),
            Shape::Integer(from, to) => {
                json!({"type": ["integer", "null"], "minimum": from, "maximum": to})
            }
            Shape::IntegerFromZero(to) => {
                json!({"type": ["integer", "null"], "minimum": 0, "maximum": to})
            }
            Shape::Above(from, to) => {
                json!({"type": ["number", "null"], "exclusiveMinimum": from, "maximum": to})
            }
            Shape::Number(from, to) => {
                json!({"type": ["number", "null"], "minimum": from, "maximum": to})
            }
            Shape::Words(words) => json!({"enum": words}),
            Shape::Path => json!({"type": "string", "pattern": "^/"}),
            Shape::IntegerOrText => json!({"type": ["integer", "string", "null"]}),
            Shape::TextOrOff => json!({"type": ["string", "boolean", "null"]}),
            Shape::Headers => {
                json!({"type": ["object", "null"], "additionalProperties": {"type": "string"}})
            }
            Shape::Text => json!({"type": ["string", "null"]}),
        }
    }
}

/// The schema (draft 2020-12).
pub fn schema() -> Value {
    let mut root = section();
    for key in KEYS {
        insert(&mut root, key.name, of_key(key));
    }
    for list in LISTS {
        let mut entry = section();
        for field in list.fields {
            let shape = field_shape(field.name).schema();
            let mut value = match field.list {
                true => json!({"type": "array", "items": shape}),
                false => shape,
            };
            annotate(&mut value, field.help);
            insert(&mut entry, field.name, value);
        }
        let required = list.fields.iter().filter(|field| field.required);
        let required: Vec<_> = required.map(|field| field.name).collect();
        if !required.is_empty() {
            put(&mut entry, "required", json!(required));
        }
        let mut value = json!({"type": "array", "items": entry});
        annotate(&mut value, list.help);
        insert(&mut root, list.name, value);
    }
    put(&mut root, "title", json!("tracer-agent configuration"));
    put(
        &mut root,
        "$schema",
        json!("https://json-schema.org/draft/2020-12/schema"),
    );
    root
}

fn of_key(key: &Key) -> Value {
    let shape = shape(key.name);
    let one = shape.schema();
    let mut value = match (key.list, shape) {
        (true, Shape::Headers) | (false, _) => one,
        (true, _) => json!({"type": ["array", "null"], "items": one}),
    };
    annotate(&mut value, key.help);
    if !key.default.is_empty() {
        put(&mut value, "default", default(key, shape));
    }
    value
}

fn default(key: &Key, shape: Shape) -> Value {
    let one = |text: &str| match shape {
        Shape::Boolean
        | Shape::Integer(..)
        | Shape::IntegerFromZero(_)
        | Shape::Number(..)
        | Shape::Above(..) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        _ => json!(text),
    };
    match key.list {
        true => key.default.split(',').map(one).collect(),
        false => one(key.default),
    }
}

fn section() -> Value {
    json!({"type": "object", "additionalProperties": false, "properties": {}})
}

fn annotate(value: &mut Value, help: &str) {
    put(value, "description", json!(help));
}

fn put(value: &mut Value, name: &str, what: Value) {
    if let Value::Object(object) = value {
        object.insert(name.to_owned(), what);
    }
}

/// Puts a schema at a dotted path of sections.
fn insert(root: &mut Value, path: &str, what: Value) {
    let (first, rest) = match path.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (path, None),
    };
    let Some(Value::Object(properties)) = root.get_mut("properties") else {
        return;
    };
    match rest {
        Some(rest) => insert(entry(properties, first), rest, what),
        None => {
            properties.insert(first.to_owned(), what);
        }
    }
}

fn entry<'a>(properties: &'a mut Map<String, Value>, name: &str) -> &'a mut Value {
    properties.entry(name).or_insert_with(section)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Layers;

    /// What the parser says of one key set to one value.
    fn accepts(key: &str, value: &str) -> bool {
        let mut text = String::new();
        let parts: Vec<_> = key.split('.').collect();
        for (depth, part) in parts.iter().enumerate() {
            text.push_str(&format!("{:1$}{part}:", "", depth * 2));
            text.push_str(if depth + 1 == parts.len() { " " } else { "\n" });
        }
        text.push_str(value);
        // A ratio counts only where a sampler has one.
        if key == keys::SAMPLER_RATIO {
            text.push_str("\n  sampler: traceidratio");
        }
        let layers = Layers::of_text(&text, Path::new("agent.yaml"));
        layers.and_then(|layers| layers.resolve()).is_ok()
    }

    #[test]
    fn bounds_and_words_are_those_of_the_parser() {
        for key in KEYS {
            let check = |value: String, expected: bool| {
                let value = if key.list {
                    format!("[{value}]")
                } else {
                    value
                };
                assert_eq!(accepts(key.name, &value), expected, "{}: {value}", key.name);
            };
            match shape(key.name) {
                Shape::Integer(from, to) => {
                    check(from.to_string(), true);
                    check(to.to_string(), true);
                    check((from - 1).to_string(), false);
                    check((u64::from(to) + 1).to_string(), false);
                }
                Shape::IntegerFromZero(to) => {
                    check("0".to_owned(), true);
                    check(to.to_string(), true);
                    check((u64::from(to) + 1).to_string(), false);
                }
                Shape::Number(from, to) => {
                    check(from.to_string(), true);
                    check(to.to_string(), true);
                    check((from - 0.001).to_string(), false);
                    check((to + 0.001).to_string(), false);
                }
                Shape::Above(from, to) => {
                    check(from.to_string(), false);
                    check((from + 0.001).to_string(), true);
                    check(to.to_string(), true);
                    check((to + 1.0).to_string(), false);
                }
                Shape::Words(words) => {
                    words
                        .iter()
                        .for_each(|word| check((*word).to_owned(), true));
                    check("nonsense".to_owned(), false);
                }
                Shape::Boolean => {
                    check("true".to_owned(), true);
                    check("false".to_owned(), true);
                    check("5".to_owned(), false);
                }
                Shape::Path => {
                    check("\"/a/{b}\"".to_owned(), true);
                    check("a".to_owned(), false);
                }
                Shape::IntegerOrText | Shape::TextOrOff | Shape::Headers | Shape::Text => {}
            }
        }
    }

    /// Every key and list has its place, and the sections allow nothing else.
    #[test]
    fn everything_is_in_it() {
        let schema = schema();
        for name in KEYS
            .iter()
            .map(|key| key.name)
            .chain(LISTS.iter().map(|list| list.name))
        {
            let mut place = &schema;
            for part in name.split('.') {
                assert_eq!(place["additionalProperties"], json!(false), "{name}");
                place = &place["properties"][part];
            }
            assert!(place["description"].is_string(), "{name}");
        }
    }

    /// The Helm chart refuses what the agent would: its values have the file under `config`.
    #[test]
    fn the_schema_of_the_chart_is_up_to_date() {
        let chart = "../deploy/helm/tracer-agent/values.schema.json";
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(chart);
        let text = std::fs::read_to_string(path).expect("the chart's schema");
        let mut values: Value = serde_json::from_str(&text).expect("JSON");
        let mut file = schema();
        if let Value::Object(file) = &mut file {
            file.remove("$schema");
            file.remove("title");
        }
        values["properties"]["config"] = file;
        let text = serde_json::to_string_pretty(&values).expect("JSON");
        crate::telemetry::docs::check(chart, &format!("{text}\n"));
    }

    #[test]
    fn the_schema_is_up_to_date() {
        let text = serde_json::to_string_pretty(&schema()).expect("JSON");
        crate::telemetry::docs::check("configuration.schema.json", &format!("{text}\n"));
    }
}
