//! Layers to the validated [`Config`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::layers::{Layers, Place, Rule, Sourced};
use super::{
    Capture, Config, ConfigError, Discovery, Export, Limits, ProcessSettings, Propagate, Redaction,
    Rules, ServiceNameRule, TelemetrySettings, keys, parse,
};
use crate::meta::kubernetes;

impl Layers {
    /// Validates every value. The first wrong one is the error.
    pub fn resolve(&self) -> Result<Config, ConfigError> {
        let config = Config {
            log_level: self.one(keys::LOG_LEVEL, parse::log_level)?,
            admin: self.one(keys::ADMIN, parse::admin)?,
            takeover: self.one(keys::TAKEOVER, parse::takeover)?,
            limits: Limits {
                memory: self.optional(keys::LIMIT_MEMORY, parse::memory)?,
                cpu: self.optional(keys::LIMIT_CPU, parse::cpus)?,
            },
            discovery: Discovery {
                include: Rules {
                    exe: self.many(keys::INCLUDE_EXE, parse::glob)?,
                    cmdline: self.many(keys::INCLUDE_CMDLINE, parse::glob)?,
                    ports: self.many(keys::INCLUDE_PORTS, parse::ports)?,
                    pids: self.many(keys::INCLUDE_PIDS, parse::pid)?,
                },
                exclude: Rules {
                    exe: self.many(keys::EXCLUDE_EXE, parse::glob)?,
                    cmdline: self.many(keys::EXCLUDE_CMDLINE, parse::glob)?,
                    ports: self.many(keys::EXCLUDE_PORTS, parse::ports)?,
                    pids: self.many(keys::EXCLUDE_PIDS, parse::pid)?,
                },
                containers_only: self.one(keys::CONTAINERS_ONLY, parse::boolean)?,
            },
            capture: Capture {
                ring_size: self.one(keys::RING_SIZE, parse::ring_size)?,
                max_connections: self
                    .one(keys::MAX_CONNECTIONS, parse::number(1024..=1_048_576))?,
                tls: self.one(keys::TLS, parse::boolean)?,
                tier: self.one(keys::TIER, parse::tier)?,
            },
            export: self.export()?,
            propagate: self.propagate()?,
            propagators: self.propagators()?,
            service_names: self
                .service_names
                .iter()
                .map(service_name)
                .collect::<Result<_, _>>()?,
            sampling: self.sampling()?,
            routes: self.routes()?,
            sdk: self.sdk()?,
            redaction: Redaction {
                query_keys: self.many(keys::QUERY_KEYS, parse::non_empty)?,
            },
            process: ProcessSettings {
                command_args: self.one(keys::COMMAND_ARGS, parse::boolean)?,
            },
            kubernetes: kubernetes::Settings {
                mode: self.one(keys::KUBERNETES, parse::kubernetes)?,
                node_name: self.optional(keys::KUBERNETES_NODE, parse::non_empty)?,
                wanted: kubernetes::Wanted {
                    labels: self.many(keys::KUBERNETES_LABELS, parse::glob)?,
                    annotations: self.many(keys::KUBERNETES_ANNOTATIONS, parse::glob)?,
                },
                peers: self.one(keys::KUBERNETES_PEERS, parse::boolean)?,
                wait: self.one(keys::KUBERNETES_WAIT, parse::millis(0..=30_000))?,
            },
            telemetry: TelemetrySettings {
                bpf_stats: self.one(keys::BPF_STATS, parse::boolean)?,
            },
        };
        Ok(config)
    }

    /// What is written has to be read by the agent at the other end.
    fn propagate(&self) -> Result<Propagate, ConfigError> {
        let reads = self
            .effective(keys::PROPAGATORS)
            .iter()
            .flat_map(|value| value.text.split(','))
            .any(|name| name.trim() == "tracecontext");
        self.one(keys::PROPAGATE, |text| {
            let wanted = match text {
                "always" => Propagate::Always,
                "header" => Propagate::Header,
                "option" => Propagate::Option,
                _ if parse::boolean(text)? => Propagate::Tested,
                _ => Propagate::Off,
            };
            if wanted != Propagate::Off && !reads {
                return Err("needs `tracecontext` among the propagators".to_owned());
            }
            Ok(wanted)
        })
    }

    /// OpenTelemetry wants unknown names of the variable ignored with a warning, which the trace room
    /// does; in the file of this program they are mistakes.
    fn propagators(&self) -> Result<String, ConfigError> {
        let known = parse::one_of(&[
            "tracecontext",
            "b3",
            "b3multi",
            "jaeger",
            "xray",
            "datadog",
            "baggage",
            "none",
        ]);
        let values = self.effective(keys::PROPAGATORS);
        let names = values.iter().map(|value| match value.place {
            Place::File { .. } => accept(keys::PROPAGATORS, value, &known),
            Place::Default | Place::Env(_) | Place::Flag(_) => Ok(value.text.clone()),
        });
        Ok(names.collect::<Result<Vec<_>, _>>()?.join(","))
    }

    /// The file's export settings are validated here, where the line is known; those of the
    /// environment by the export room, which owns the variables.
    fn export(&self) -> Result<Export, ConfigError> {
        const MILLISECONDS: std::ops::RangeInclusive<u32> = 1..=3_600_000;
        let mut from_file = BTreeMap::new();
        let mut take = |key: &'static str, parse: &dyn Fn(&str) -> Result<String, String>| {
            let Some(values) = self.file.get(key) else {
                return Ok(());
            };
            let values = values
                .iter()
                .map(|value| accept(key, value, parse))
                .collect::<Result<Vec<_>, _>>()?;
            if let (false, Some(key)) = (values.is_empty(), keys::key(key)) {
                from_file.extend(key.env.iter().map(|name| (*name, values.join(","))));
            }
            Ok(())
        };
        let whole = |bounds| {
            let number = parse::number(bounds);
            move |text: &str| number(text).map(|value| value.to_string())
        };
        take(
            keys::EXPORTERS,
            &parse::one_of(&["otlp", "zipkin", "console", "none"]),
        )?;
        take(
            keys::METRICS_EXPORTERS,
            &parse::one_of(&["otlp", "prometheus", "none"]),
        )?;
        take(keys::METRICS_INTERVAL, &whole(MILLISECONDS))?;
        take(keys::OTLP_ENDPOINT, &parse::endpoint)?;
        take(
            keys::OTLP_PROTOCOL,
            &parse::one_of(&["grpc", "http/protobuf", "http/json"]),
        )?;
        take(keys::OTLP_HEADERS, &parse::header)?;
        take(keys::OTLP_COMPRESSION, &parse::one_of(&["gzip", "none"]))?;
        take(keys::OTLP_TIMEOUT, &whole(MILLISECONDS))?;
        take(keys::OTLP_INSECURE, &|text| {
            parse::boolean(text).map(|value| value.to_string())
        })?;
        for file in [
            keys::OTLP_CERTIFICATE,
            keys::OTLP_CLIENT_KEY,
            keys::OTLP_CLIENT_CERTIFICATE,
        ] {
            take(file, &parse::non_empty)?;
        }
        take(keys::ZIPKIN_ENDPOINT, &parse::endpoint)?;
        take(keys::ZIPKIN_TIMEOUT, &whole(MILLISECONDS))?;
        take(keys::BATCH_DELAY, &whole(MILLISECONDS))?;
        take(keys::BATCH_QUEUE, &whole(1..=10_000_000))?;
        take(keys::BATCH_SIZE, &whole(1..=1_000_000))?;
        let size = |name| {
            from_file
                .get(name)
                .and_then(|value: &String| value.parse::<u32>().ok())
        };
        let queue = size("OTEL_BSP_MAX_QUEUE_SIZE").unwrap_or(u32::MAX);
        if size("OTEL_BSP_MAX_EXPORT_BATCH_SIZE").is_some_and(|batch| batch > queue) {
            let fits = |text: &str| {
                Err(format!(
                    "`{text}` is more than {} ({queue})",
                    keys::BATCH_QUEUE
                ))
            };
            let batch = self
                .file
                .get(keys::BATCH_SIZE)
                .and_then(|values| values.first());
            batch.map_or(Ok(()), |batch| accept(keys::BATCH_SIZE, batch, fits))?;
        }
        Ok(Export {
            otlp_file: self
                .optional(keys::OTLP_FILE, parse::non_empty)?
                .map(PathBuf::from),
            spool: self
                .optional(keys::SPOOL, parse::non_empty)?
                .map(PathBuf::from),
            spool_max_bytes: self.one(keys::SPOOL_MAX_BYTES, parse::spool_bytes)?,
            from_file,
        })
    }

    pub(super) fn one<T>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        self.optional(key, parse)?
            .ok_or_else(|| ConfigError::Value {
                place: key.to_owned(),
                problem: "a value is needed".to_owned(),
            })
    }

    pub(super) fn optional<T>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        self.effective(key)
            .first()
            .map(|value| accept(key, value, &parse))
            .transpose()
    }

    pub(super) fn many<T>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, ConfigError> {
        self.effective(key)
            .iter()
            .map(|value| accept(key, value, &parse))
            .collect()
    }
}

pub(super) fn accept<T>(
    key: &str,
    value: &Sourced,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, ConfigError> {
    parse(&value.text).map_err(|problem| ConfigError::Value {
        place: value.place.naming(key),
        // What was refused is in it, and a value of YAML may have several lines.
        problem: problem.replace(['\n', '\r'], " "),
    })
}

fn service_name(rule: &Rule) -> Result<ServiceNameRule, ConfigError> {
    let refused = |problem: &str| ConfigError::Value {
        place: rule.place.naming("service_names"),
        problem: problem.to_owned(),
    };
    let given = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
    let (exe, cmdline) = (given(&rule.exe), given(&rule.cmdline));
    if exe.is_none() && cmdline.is_none() {
        return Err(refused(
            "the rule matches nothing; give it `exe` or `cmdline`, a glob",
        ));
    }
    let name = given(&rule.name)
        .ok_or_else(|| refused("the rule has no `name`; give the service's name"))?;
    Ok(ServiceNameRule { exe, cmdline, name })
}
