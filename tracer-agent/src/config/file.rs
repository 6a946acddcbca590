//! The configuration file: YAML to settings that remember their line.

use std::io::Read as _;
use std::path::Path;

use serde_saphyr::Spanned;

use super::layers::{Item, Items, Place, Rule, Sourced, Values};
use super::refused::refused;
use super::shape::{
    Batch, Capture, Discovery, Export, File, Kubernetes, Limits, List, Otlp, Process, Redaction,
    RouteService, Routes, Rules, Sampling, SamplingRule, Scalar, Sdk, SdkService, ServiceName,
    Spool, Telemetry, Zipkin,
};
use super::{ConfigError, keys, parse};

/// Longer than any configuration; keeps a wrong path (a log, a device) from being read into memory.
const MAX_BYTES: u64 = 1024 * 1024;

/// Reads the file's text.
pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
            limit: MAX_BYTES,
        });
    }
    Ok(text)
}

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub values: Values,
    pub service_names: Vec<Rule>,
    pub items: Items,
}

/// Parses the file's text; `path` is for messages.
pub(super) fn parse(text: &str, path: &Path) -> Result<Parsed, ConfigError> {
    // The snippet would spread the message over several lines and could show a secret.
    let options = serde_saphyr::options! { with_snippet: false };
    let file: File = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| refused(&error, text, path))?;
    Ok(Lowering {
        path,
        values: Values::new(),
        items: Items::new(),
    }
    .file(file))
}

struct Lowering<'a> {
    path: &'a Path,
    values: Values,
    items: Items,
}

impl Lowering<'_> {
    fn file(mut self, file: File) -> Parsed {
        let File {
            log_level,
            admin,
            takeover,
            limits: Limits { memory, cpu },
            propagate,
            propagators,
            discovery:
                Discovery {
                    include,
                    exclude,
                    containers_only,
                },
            capture:
                Capture {
                    ring_size,
                    max_connections,
                    tls,
                    tier,
                },
            export:
                Export {
                    exporters,
                    metrics,
                    otlp_file,
                    otlp,
                    zipkin,
                    batch,
                    spool,
                },
            service_names,
            sampling,
            routes,
            sdk,
            redaction: Redaction { query_keys },
            process: Process { command_args },
            kubernetes,
            telemetry: Telemetry { bpf_stats },
        } = file;
        self.scalar(keys::LOG_LEVEL, log_level);
        self.scalar(keys::ADMIN, admin);
        self.scalar(keys::TAKEOVER, takeover);
        self.scalar(keys::LIMIT_MEMORY, memory);
        self.scalar(keys::LIMIT_CPU, cpu);
        self.scalar(keys::PROPAGATE, propagate);
        self.list(keys::PROPAGATORS, propagators);
        let Rules {
            exe,
            cmdline,
            ports,
            pids,
        } = include;
        self.list(keys::INCLUDE_EXE, exe);
        self.list(keys::INCLUDE_CMDLINE, cmdline);
        self.list(keys::INCLUDE_PORTS, ports);
        self.list(keys::INCLUDE_PIDS, pids);
        let Rules {
            exe,
            cmdline,
            ports,
            pids,
        } = exclude;
        self.list(keys::EXCLUDE_EXE, exe);
        self.list(keys::EXCLUDE_CMDLINE, cmdline);
        self.list(keys::EXCLUDE_PORTS, ports);
        self.list(keys::EXCLUDE_PIDS, pids);
        self.scalar(keys::CONTAINERS_ONLY, containers_only);
        self.scalar(keys::RING_SIZE, ring_size);
        self.scalar(keys::MAX_CONNECTIONS, max_connections);
        self.scalar(keys::TLS, tls);
        self.scalar(keys::TIER, tier);
        self.list(keys::EXPORTERS, exporters);
        self.list(keys::METRICS_EXPORTERS, metrics.exporters);
        self.scalar(keys::METRICS_INTERVAL, metrics.interval_ms);
        self.scalar(keys::OTLP_FILE, otlp_file);
        let Otlp {
            endpoint,
            protocol,
            headers,
            compression,
            timeout_ms,
            insecure,
            certificate,
            client_key,
            client_certificate,
        } = otlp;
        self.scalar(keys::OTLP_ENDPOINT, endpoint);
        self.scalar(keys::OTLP_PROTOCOL, protocol);
        if let Some(headers) = headers {
            // The variable's syntax, so that the export room need not know of two.
            let headers = headers.into_iter().map(|(name, value)| Sourced {
                text: format!("{name}={}", parse::percent_encode(&value.value)),
                place: self.place(value.referenced.line()),
            });
            let headers = headers.collect();
            self.values.insert(keys::OTLP_HEADERS, headers);
        }
        self.scalar(keys::OTLP_COMPRESSION, compression);
        self.scalar(keys::OTLP_TIMEOUT, timeout_ms);
        self.scalar(keys::OTLP_INSECURE, insecure);
        self.scalar(keys::OTLP_CERTIFICATE, certificate);
        self.scalar(keys::OTLP_CLIENT_KEY, client_key);
        self.scalar(keys::OTLP_CLIENT_CERTIFICATE, client_certificate);
        let Zipkin {
            endpoint,
            timeout_ms,
        } = zipkin;
        self.scalar(keys::ZIPKIN_ENDPOINT, endpoint);
        self.scalar(keys::ZIPKIN_TIMEOUT, timeout_ms);
        let Spool {
            directory,
            max_bytes,
        } = spool;
        self.scalar(keys::SPOOL, directory);
        self.scalar(keys::SPOOL_MAX_BYTES, max_bytes);
        let Batch {
            delay_ms,
            max_queue,
            max_batch,
        } = batch;
        self.scalar(keys::BATCH_DELAY, delay_ms);
        self.scalar(keys::BATCH_QUEUE, max_queue);
        self.scalar(keys::BATCH_SIZE, max_batch);
        self.sampling(sampling);
        self.routes(routes);
        self.sdk(sdk);
        self.list(keys::QUERY_KEYS, query_keys);
        self.scalar(keys::COMMAND_ARGS, command_args);
        let Kubernetes {
            metadata,
            node_name,
            labels,
            annotations,
            peers,
            wait_ms,
        } = kubernetes;
        self.scalar(keys::KUBERNETES, metadata);
        self.scalar(keys::KUBERNETES_NODE, node_name);
        self.list(keys::KUBERNETES_LABELS, labels);
        self.list(keys::KUBERNETES_ANNOTATIONS, annotations);
        self.scalar(keys::KUBERNETES_PEERS, peers);
        self.scalar(keys::KUBERNETES_WAIT, wait_ms);
        self.scalar(keys::BPF_STATS, bpf_stats);

        let rules = service_names.into_iter().map(|rule| {
            let place = self.place(rule.referenced.line());
            let ServiceName { exe, cmdline, name } = rule.value;
            Rule {
                exe,
                cmdline,
                name,
                place,
            }
        });
        let service_names = rules.collect();
        Parsed {
            values: self.values,
            service_names,
            items: self.items,
        }
    }

    fn sampling(&mut self, sampling: Sampling) {
        let Sampling {
            sampler,
            ratio,
            keep_errors,
            keep_slower_than_ms,
            spans_per_second,
            decision_wait_ms,
            max_buffered_spans,
            rules,
        } = sampling;
        self.scalar(keys::SAMPLER, sampler);
        self.scalar(keys::SAMPLER_RATIO, ratio);
        self.scalar(keys::KEEP_ERRORS, keep_errors);
        self.scalar(keys::KEEP_SLOWER_THAN, keep_slower_than_ms);
        self.scalar(keys::SPANS_PER_SECOND, spans_per_second);
        self.scalar(keys::DECISION_WAIT, decision_wait_ms);
        self.scalar(keys::MAX_BUFFERED, max_buffered_spans);
        for rule in rules {
            let SamplingRule {
                service,
                route,
                keep_slower_than_ms,
                spans_per_second,
            } = rule.value;
            let fields = [
                ("service", one(service)),
                ("route", one(route)),
                ("keep_slower_than_ms", one(keep_slower_than_ms)),
                ("spans_per_second", one(spans_per_second)),
            ];
            self.item(keys::SAMPLING_RULES, rule.referenced.line(), fields);
        }
    }

    fn routes(&mut self, routes: Routes) {
        let Routes {
            patterns,
            learn,
            max_per_service,
            services,
        } = routes;
        self.list(keys::ROUTE_PATTERNS, patterns);
        self.scalar(keys::ROUTE_LEARN, learn);
        self.scalar(keys::ROUTE_MAX, max_per_service);
        for entry in services {
            let RouteService { service, patterns } = entry.value;
            let fields = [("service", one(service)), ("patterns", patterns)];
            self.item(keys::ROUTE_SERVICES, entry.referenced.line(), fields);
        }
    }

    fn sdk(&mut self, sdk: Sdk) {
        let Sdk {
            mode,
            wait_ms,
            services,
        } = sdk;
        self.scalar(keys::SDK_MODE, mode);
        self.scalar(keys::SDK_WAIT, wait_ms);
        for entry in services {
            let SdkService { service, mode } = entry.value;
            let fields = [("service", one(service)), ("mode", one(mode))];
            self.item(keys::SDK_SERVICES, entry.referenced.line(), fields);
        }
    }

    fn item(
        &mut self,
        list: &'static str,
        line: u64,
        fields: impl IntoIterator<Item = (&'static str, List)>,
    ) {
        let sourced = |value: Spanned<String>| Sourced {
            place: self.place(value.referenced.line()),
            text: value.value,
        };
        let fields = fields
            .into_iter()
            .filter_map(|(name, values)| {
                let values: Vec<_> = values?.into_iter().map(sourced).collect();
                (!values.is_empty()).then_some((name, values))
            })
            .collect();
        let place = self.place(line);
        self.items
            .entry(list)
            .or_default()
            .push(Item { fields, place });
    }

    fn scalar(&mut self, key: &'static str, value: Scalar) {
        self.list(key, one(value));
    }

    fn list(&mut self, key: &'static str, values: List) {
        let Some(values) = values else { return };
        let values = values.into_iter().map(|value| Sourced {
            place: self.place(value.referenced.line()),
            text: value.value,
        });
        let values = values.collect();
        self.values.insert(key, values);
    }

    fn place(&self, line: u64) -> Place {
        Place::File {
            path: self.path.to_owned(),
            line,
        }
    }
}

fn one(value: Scalar) -> List {
    value.map(|value| vec![value])
}
