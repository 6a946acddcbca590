//! The resource attributes of one process, in the order they are exported.
//!
//! What the process declares itself (`OTEL_RESOURCE_ATTRIBUTES`) wins over what the agent was told
//! for all processes, which wins over what is observed; `telemetry.*` says who made the telemetry
//! and is always the agent's.

use std::borrow::Cow;

use super::facts::ProcessFacts;
use super::identity::service_instance_id;
use super::kubernetes::ContainerFacts;
use super::language::Language;
use super::proc_fs::NS_PER_TICK;
use super::{AttributeValue, Host, Process};

/// Longest value that is taken from a declaration or an argument.
const VALUE_MAX: usize = 1024;
/// Attributes that a process may declare.
const DECLARED_MAX: usize = 64;
/// Arguments that are exported when that is switched on.
const ARGS_MAX: usize = 64;

/// What is known of a process when its attributes are made.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The process.
    pub facts: &'a ProcessFacts,
    /// Its arguments, as many as are known.
    pub args: &'a [String],
    /// Name by the user's rules.
    pub ruled_name: Option<&'a str>,
    /// Name made from the command.
    pub command_name: Option<&'a str>,
    /// Name of its user.
    pub owner: Option<&'a str>,
    /// Its language.
    pub language: Option<Language>,
    /// What Kubernetes says of its container.
    pub place: Option<&'a ContainerFacts>,
}

/// Makes the process. `common` are the agent's own `OTEL_RESOURCE_ATTRIBUTES`; the service they
/// name is the agent, so service.name and service.instance.id are not taken from there.
pub fn process(
    subject: &Subject<'_>,
    host: &Host,
    common: &[(String, String)],
    with_args: bool,
) -> Process {
    let Subject {
        facts,
        args,
        ruled_name,
        command_name,
        owner,
        language,
        place,
    } = *subject;
    let pod = place.map(|place| &*place.pod);
    let environment = &facts.environment;
    let declared = parse_list(
        environment
            .resource_attributes
            .as_deref()
            .unwrap_or_default(),
    );
    let own = |key: &str| {
        declared
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    };
    let exe_name = facts.exe_name();
    let service_name: Box<str> = match environment
        .service_name
        .as_deref()
        .or_else(|| own("service.name").filter(|name| !name.is_empty()))
        .or(ruled_name)
        .or(pod
            .map(|pod| &*pod.service_name)
            .filter(|name| !name.is_empty()))
        .or(command_name)
    {
        Some(name) => name.into(),
        None if exe_name.is_empty() => "unknown_service".into(),
        None => format!("unknown_service:{exe_name}").into(),
    };

    let mut list = List(Vec::with_capacity(24));
    list.text("service.name", Some(&service_name));
    // Own values are set below; the namespace of a service is that of its pod unless somebody says.
    list.text(
        "service.namespace",
        own("service.namespace").or(pod.map(|pod| &*pod.namespace)),
    );
    list.text(
        "service.version",
        own("service.version").or(pod.and_then(|pod| pod.service_version.as_deref())),
    );
    let instance_place = facts
        .container_id
        .as_deref()
        .or(host.id.as_deref())
        .or(host.name.as_deref());
    let instance = facts
        .start_ticks
        .map(|start| service_instance_id(instance_place.unwrap_or_default(), facts.pid, start));
    list.text("service.instance.id", instance.as_deref());
    list.push("process.pid", AttributeValue::Int(facts.pid.into()));
    let created = facts.start_ticks.map(|ticks| {
        iso8601(
            host.boot_unix_ns
                .saturating_add(ticks.saturating_mul(NS_PER_TICK)),
        )
    });
    list.text("process.creation.time", created.as_deref());
    list.text("process.executable.name", Some(exe_name));
    list.text("process.executable.path", facts.exe.as_deref());
    list.text("process.command", args.first().map(String::as_str));
    if with_args && !args.is_empty() {
        let args = args
            .iter()
            .take(ARGS_MAX)
            .map(|arg| cut(arg).into())
            .collect();
        list.push("process.command_args", AttributeValue::StrList(args));
    }
    list.text("process.owner", owner);
    list.text(
        "process.runtime.name",
        language.and_then(|language| language.runtime(exe_name)),
    );
    list.text("telemetry.sdk.language", language.map(Language::as_str));
    list.text("telemetry.distro.name", Some("tracer-agent"));
    list.text("telemetry.distro.version", Some(env!("CARGO_PKG_VERSION")));
    list.text("host.name", host.name.as_deref());
    list.text("host.id", host.id.as_deref());
    list.text("os.type", Some("linux"));
    list.text("container.id", facts.container_id.as_deref());
    for (key, value) in pod.iter().flat_map(|pod| &pod.attributes) {
        list.set(key, value);
    }
    list.text(
        "k8s.container.name",
        place.and_then(|place| place.name.as_deref()),
    );

    let agents = common
        .iter()
        .filter(|(key, _)| !matches!(key.as_str(), "service.name" | "service.instance.id"));
    let agents = agents.map(|(key, value)| (key.as_str(), value.as_str()));
    let annotated = pod.iter().flat_map(|pod| &pod.declared);
    let annotated = annotated.map(|(key, value)| (&**key, &**value));
    let declared = declared
        .iter()
        .filter(|(key, _)| key != "service.name")
        .map(|(key, value)| (key.as_str(), value.as_str()));
    for (key, value) in agents.chain(annotated).chain(declared) {
        if !key.starts_with("telemetry.") {
            list.set(key, value);
        }
    }
    Process {
        pid: facts.pid,
        service_name,
        attributes: list.0,
    }
}

struct List(Vec<(Cow<'static, str>, AttributeValue)>);

impl List {
    fn push(&mut self, key: &'static str, value: AttributeValue) {
        self.0.push((Cow::Borrowed(key), value));
    }

    fn text(&mut self, key: &'static str, value: Option<&str>) {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            self.push(key, AttributeValue::Str(cut(value).into()));
        }
    }

    fn set(&mut self, key: &str, value: &str) {
        let value = AttributeValue::Str(cut(value).into());
        match self.0.iter_mut().find(|(name, _)| name == key) {
            Some((_, slot)) => *slot = value,
            None => self.0.push((Cow::Owned(key.to_owned()), value)),
        }
    }
}

fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(VALUE_MAX))
        .unwrap_or(text)
}

/// `OTEL_RESOURCE_ATTRIBUTES`: `key=value` pairs between commas, percent-encoded where needed.
/// Pairs that are none are left out; what is not valid percent-encoding stands as it is.
pub fn parse_list(text: &str) -> Vec<(String, String)> {
    text.split(',')
        .filter_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            let (key, value) = (decode(key.trim()), decode(value.trim()));
            (!key.is_empty()).then_some((key, value))
        })
        .take(DECLARED_MAX)
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = |byte: u8| {
            char::from(byte)
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        };
        match (first, after) {
            (b'%', [high, low, tail @ ..]) if hex(*high).is_some() && hex(*low).is_some() => {
                bytes.push(hex(*high).unwrap_or(0) << 4 | hex(*low).unwrap_or(0));
                rest = tail;
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

/// `2026-11-21T05:40:43.120Z`.
fn iso8601(unix_ns: u64) -> String {
    let (seconds, ms) = (unix_ns / 1_000_000_000, unix_ns / 1_000_000 % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Civil date from a day count: eras of 400 years that begin on March 1st (Hinnant's algorithm).
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::ProcFs;
    use crate::meta::facts::Environment;

    #[test]
    fn attribute_lists() {
        for (text, expected) in [
            ("", vec![]),
            ("a=b,c=d", vec![("a", "b"), ("c", "d")]),
            (
                " a = b%20c , k%3Dey=%C3%A9 ",
                vec![("a", "b c"), ("k=ey", "é")],
            ),
            ("a=b=c,=x,novalue,e=", vec![("a", "b=c"), ("e", "")]),
            (
                "a=100%,b=%zz,c=%ff",
                vec![("a", "100%"), ("b", "%zz"), ("c", "%ff")],
            ),
        ] {
            let expected: Vec<_> = expected
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect();
            assert_eq!(parse_list(text), expected, "{text}");
        }
    }

    #[test]
    fn times() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000Z"),
            (1_795_239_643, "2026-11-21T05:40:43.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(iso8601(seconds * 1_000_000_000), text);
        }
        assert_eq!(iso8601(1_234_567_890), "1970-01-01T00:00:01.234Z");
    }

    fn make(
        edit: impl FnOnce(&mut ProcessFacts),
        ruled: Option<&str>,
        command: Option<&str>,
        common: &str,
    ) -> Process {
        let mut host = Host::read(&ProcFs::new("/nonexistent"));
        host.boot_unix_ns = 1_000_000_000;
        host.id = Some("machine".into());
        let mut facts = ProcessFacts {
            pid: 7,
            start_ticks: Some(150),
            exe: Some("/usr/bin/python3.11".into()),
            ..ProcessFacts::default()
        };
        edit(&mut facts);
        let args = ["python".to_owned(), "secret".to_owned()];
        let subject = Subject {
            facts: &facts,
            args: &args,
            ruled_name: ruled,
            command_name: command,
            owner: Some("www"),
            language: Some(Language::Python),
            place: None,
        };
        process(&subject, &host, &parse_list(common), false)
    }

    fn text<'a>(process: &'a Process, key: &str) -> Option<&'a str> {
        let mut found = process.attributes.iter().filter(|(name, _)| name == key);
        let value = found.next();
        assert!(found.next().is_none(), "{key} twice");
        match value {
            Some((_, AttributeValue::Str(text))) => Some(text),
            _ => None,
        }
    }

    #[test]
    fn the_order_of_service_names() {
        let declares = |name: Option<&str>, attributes: Option<&str>| Environment {
            service_name: name.map(Into::into),
            resource_attributes: attributes.map(Into::into),
            ..Environment::default()
        };
        for (environment, ruled, command, expected) in [
            (
                declares(Some("own"), Some("service.name=attr")),
                Some("rule"),
                Some("cmd"),
                "own",
            ),
            (
                declares(None, Some("service.name=attr")),
                Some("rule"),
                Some("cmd"),
                "attr",
            ),
            (
                declares(None, Some("service.name=")),
                Some("rule"),
                Some("cmd"),
                "rule",
            ),
            (declares(None, None), None, Some("cmd"), "cmd"),
            (
                declares(None, None),
                None,
                None,
                "unknown_service:python3.11",
            ),
        ] {
            let process = make(
                |facts| facts.environment = environment,
                ruled,
                command,
                "service.name=agent",
            );
            assert_eq!(&*process.service_name, expected);
            assert_eq!(text(&process, "service.name"), Some(expected));
        }
    }

    #[test]
    fn all_attributes() {
        let process = make(
            |facts| {
                facts.environment.resource_attributes =
                    Some("service.version=1.2,team=a%2Cb,telemetry.distro.name=x,deployment.environment.name=own".into());
                facts.container_id = Some("c1".into());
            },
            None,
            Some("shop"),
            "deployment.environment.name=agent,region=eu,service.instance.id=1",
        );
        let keys: Vec<&str> = process.attributes.iter().map(|(key, _)| &**key).collect();
        assert_eq!(
            keys,
            [
                "service.name",
                "service.version",
                "service.instance.id",
                "process.pid",
                "process.creation.time",
                "process.executable.name",
                "process.executable.path",
                "process.command",
                "process.owner",
                "process.runtime.name",
                "telemetry.sdk.language",
                "telemetry.distro.name",
                "telemetry.distro.version",
                "os.type",
                "container.id",
                "deployment.environment.name",
                "region",
                "team",
            ]
            .into_iter()
            .flat_map(|key| if key == "os.type" {
                vec!["host.id", key]
            } else {
                vec![key]
            })
            .collect::<Vec<_>>()
        );
        for (key, value) in [
            ("service.version", "1.2"),
            ("service.instance.id", &*service_instance_id("c1", 7, 150)),
            ("process.creation.time", "1970-01-01T00:00:02.500Z"),
            ("process.command", "python"),
            ("process.runtime.name", "cpython"),
            ("telemetry.distro.name", "tracer-agent"),
            ("team", "a,b"),
            ("deployment.environment.name", "own"),
            ("region", "eu"),
        ] {
            assert_eq!(text(&process, key), Some(value), "{key}");
        }
    }
}
