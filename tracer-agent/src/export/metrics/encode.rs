//! What was recorded to OTLP messages, and what is delivered when a message is.

use std::collections::HashMap;
use std::sync::Arc;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as ProtoValue;
use opentelemetry_proto::tonic::common::v1::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar as ProtoExemplar, Gauge, Histogram as ProtoHistogram,
    HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, exemplar,
    metric, number_data_point,
};
use prost::Message as _;

use crate::export::proto::{key_value, resource};
use crate::export::resource::{ResourceDefaults, SCHEMA_URL, SCOPE_NAME, SCOPE_VERSION};
use crate::export::settings::Temporality;
use crate::meta::Process;
use crate::metrics::page::{GRAPH_CLIENT, GRAPH_FAILED, GRAPH_HELP, GRAPH_REQUESTS, GRAPH_SERVER};
use crate::metrics::{BOUNDS, Counts, Edge, Histogram, Recorded, SeriesKey};
use crate::telemetry::exposition::Kind;
use crate::telemetry::metrics::{METRICS, Number};
use crate::telemetry::snapshot::Snapshot;
use crate::trace::Value;
use crate::trace::semconv::metric::Instrument;

/// Receivers refuse gRPC messages of more than 4 MiB unless told otherwise.
const MAX_MESSAGE_BYTES: usize = 3 * 1024 * 1024;

/// How long a counter that is not delivered any more is remembered, in time that deliveries cover.
const KEEP_COUNTERS_NS: u64 = 2 * 24 * 3600 * 1_000_000_000;

/// Makes messages; knows what was delivered of the counters.
#[derive(Debug)]
pub struct Encoder {
    defaults: Arc<ResourceDefaults>,
    agent: Process,
    temporality: Temporality,
    started_unix_ns: u64,
    counters: HashMap<CounterKey, (Number, u64)>,
}

type CounterKey = (&'static str, Vec<String>);

/// One export request and what it delivers.
#[derive(Debug, Default)]
pub struct Message {
    /// The request.
    pub request: ExportMetricsServiceRequest,
    unix_ns: u64,
    bytes: usize,
    histograms: Vec<(Origin, Counts)>,
    counters: Vec<(CounterKey, Number)>,
}

/// Keeps a histogram alive until it is delivered.
#[derive(Debug)]
enum Origin {
    Series(Arc<crate::metrics::Series>),
    Client(Arc<Edge>),
    Server(Arc<Edge>),
}

impl Origin {
    fn histogram(&self) -> &Histogram {
        match self {
            Origin::Series(series) => &series.histogram,
            Origin::Client(edge) => &edge.client,
            Origin::Server(edge) => &edge.server,
        }
    }

    fn start_unix_ns(&self) -> u64 {
        match self {
            Origin::Series(series) => series.start_unix_ns,
            Origin::Client(edge) | Origin::Server(edge) => edge.start_unix_ns,
        }
    }
}

impl Encoder {
    /// Nothing was delivered yet. `agent` is the resource of what no traced process says.
    pub fn new(
        defaults: Arc<ResourceDefaults>,
        agent: Process,
        temporality: Temporality,
        started_unix_ns: u64,
    ) -> Self {
        Encoder {
            defaults,
            agent,
            temporality,
            started_unix_ns,
            counters: HashMap::new(),
        }
    }

    /// Everything there is to say at `unix_ns`, in messages of bounded size.
    pub fn encode(&self, recorded: &Recorded, own: &Snapshot, unix_ns: u64) -> Vec<Message> {
        let mut messages = vec![Message::at(unix_ns)];
        for process in recorded.processes() {
            let mut part = Message::at(unix_ns);
            let series = process.series();
            let mut metrics = Vec::new();
            for instrument in Instrument::ALL {
                let points = series
                    .iter()
                    .filter(|series| series.key.instrument() == instrument)
                    .filter_map(|series| {
                        let attributes = attributes(&series.key);
                        self.histogram_point(
                            &mut part,
                            Origin::Series(Arc::clone(series)),
                            attributes,
                        )
                    });
                let points = points.collect();
                metrics.extend(self.histogram(instrument.name(), instrument.description(), points));
            }
            self.add(&mut messages, part, &process.process, metrics);
        }
        let mut part = Message::at(unix_ns);
        let mut metrics = self.graph(&recorded.edges(), &mut part);
        metrics.extend(self.own(own, &mut part));
        self.add(&mut messages, part, &self.agent, metrics);
        messages.retain(|message| !message.request.resource_metrics.is_empty());
        messages
    }

    /// The backend has it: differences begin anew.
    pub fn delivered(&mut self, message: Message) {
        for (origin, counts) in message.histograms {
            origin.histogram().deliver(counts, message.unix_ns);
        }
        for (key, number) in message.counters {
            self.counters.insert(key, (number, message.unix_ns));
        }
        // What exists is delivered at every interval; what is not is gone for good.
        let forget = message.unix_ns.saturating_sub(KEEP_COUNTERS_NS);
        self.counters.retain(|_, (_, until)| *until >= forget);
    }

    /// Puts the metrics of one resource into the last message, or into a new one.
    fn add(
        &self,
        messages: &mut Vec<Message>,
        mut part: Message,
        process: &Process,
        metrics: Vec<Metric>,
    ) {
        if metrics.is_empty() {
            return;
        }
        let resource_metrics = ResourceMetrics {
            resource: Some(resource(process, &self.defaults)),
            scope_metrics: vec![ScopeMetrics {
                scope: Some(InstrumentationScope {
                    name: SCOPE_NAME.to_owned(),
                    version: SCOPE_VERSION.to_owned(),
                    ..InstrumentationScope::default()
                }),
                metrics,
                schema_url: SCHEMA_URL.to_owned(),
            }],
            schema_url: SCHEMA_URL.to_owned(),
        };
        part.bytes = resource_metrics.encoded_len();
        part.request.resource_metrics.push(resource_metrics);
        match messages.last_mut() {
            Some(last) if last.bytes + part.bytes <= MAX_MESSAGE_BYTES => last.append(part),
            _ => messages.push(part),
        }
    }

    fn histogram(
        &self,
        name: &str,
        description: &str,
        data_points: Vec<HistogramDataPoint>,
    ) -> Option<Metric> {
        let temporality = match self.temporality {
            Temporality::Cumulative => AggregationTemporality::Cumulative,
            Temporality::Delta | Temporality::LowMemory => AggregationTemporality::Delta,
        };
        (!data_points.is_empty()).then(|| Metric {
            name: name.to_owned(),
            description: description.to_owned(),
            unit: "s".to_owned(),
            data: Some(metric::Data::Histogram(ProtoHistogram {
                data_points,
                aggregation_temporality: temporality.into(),
            })),
            ..Metric::default()
        })
    }

    fn histogram_point(
        &self,
        part: &mut Message,
        origin: Origin,
        attributes: Vec<KeyValue>,
    ) -> Option<HistogramDataPoint> {
        let histogram = origin.histogram();
        let total = histogram.counts();
        let start = origin.start_unix_ns();
        let (counts, start_unix_ns) = match (self.temporality, histogram.delivered()) {
            (Temporality::Delta | Temporality::LowMemory, Some((before, until))) => {
                (total.since(&before), until)
            }
            (Temporality::Delta | Temporality::LowMemory, None) | (Temporality::Cumulative, _) => {
                (total, start)
            }
        };
        if counts.count() == 0 {
            return None;
        }
        let exemplars = histogram.exemplars();
        let exemplars = exemplars
            .iter()
            // An old example of a bucket that counted nothing since belongs to another point.
            .filter(|exemplar| exemplar.unix_ns >= start_unix_ns)
            .map(|exemplar| ProtoExemplar {
                time_unix_nano: exemplar.unix_ns,
                trace_id: exemplar.trace_id.0.to_vec(),
                span_id: exemplar.span_id.0.to_vec(),
                value: Some(exemplar::Value::AsDouble(exemplar.duration_ns as f64 / 1e9)),
                ..ProtoExemplar::default()
            });
        let point = HistogramDataPoint {
            attributes,
            start_time_unix_nano: start_unix_ns.min(part.unix_ns),
            time_unix_nano: part.unix_ns,
            count: counts.count(),
            sum: Some(counts.sum_seconds()),
            bucket_counts: counts.buckets.to_vec(),
            explicit_bounds: BOUNDS.to_vec(),
            exemplars: exemplars.collect(),
            ..HistogramDataPoint::default()
        };
        part.histograms.push((origin, total));
        Some(point)
    }

    fn graph(&self, edges: &[Arc<Edge>], part: &mut Message) -> Vec<Metric> {
        let services: Vec<Vec<KeyValue>> = edges
            .iter()
            .map(|edge| match &edge.services {
                Some((client, server)) => vec![text("client", client), text("server", server)],
                None => vec![overflow()],
            })
            .collect();
        let key = |edge: &Edge| match &edge.services {
            Some((client, server)) => vec![client.to_string(), server.to_string()],
            None => Vec::new(),
        };
        let mut requests = Vec::new();
        let mut failed = Vec::new();
        let mut server = Vec::new();
        let mut client = Vec::new();
        for (edge, attributes) in edges.iter().zip(&services) {
            let counts = [
                (GRAPH_REQUESTS, edge.requests(), &mut requests),
                (GRAPH_FAILED, edge.failed(), &mut failed),
            ];
            for (name, count, points) in counts {
                let key = (name, key(edge));
                let number = Number::Count(count);
                let start = edge.start_unix_ns;
                points.extend(self.counter_point(part, key, number, start, attributes.clone()));
            }
            let origin = Origin::Server(Arc::clone(edge));
            server.extend(self.histogram_point(part, origin, attributes.clone()));
            let origin = Origin::Client(Arc::clone(edge));
            client.extend(self.histogram_point(part, origin, attributes.clone()));
        }
        let [about_requests, about_failed, about_server, about_client] = GRAPH_HELP;
        let mut metrics = Vec::new();
        metrics.extend(self.counter(GRAPH_REQUESTS, about_requests, "{request}", requests));
        metrics.extend(self.counter(GRAPH_FAILED, about_failed, "{request}", failed));
        metrics.extend(self.histogram(GRAPH_SERVER, about_server, server));
        metrics.extend(self.histogram(GRAPH_CLIENT, about_client, client));
        metrics
    }

    fn own(&self, now: &Snapshot, part: &mut Message) -> Vec<Metric> {
        let mut metrics = Vec::new();
        for metric in METRICS {
            let (name, unit) = plain_name(metric.name);
            let mut points = Vec::new();
            for point in metric.points(now) {
                let attributes = metric
                    .labels
                    .iter()
                    .zip(&point.labels)
                    .map(|(label, value)| text(label, value))
                    .collect();
                match metric.kind {
                    Kind::Counter => {
                        let key = (metric.name, point.labels);
                        let start = self.started_unix_ns;
                        points.extend(self.counter_point(
                            part,
                            key,
                            point.value,
                            start,
                            attributes,
                        ));
                    }
                    Kind::Gauge | Kind::Histogram | Kind::Info => points.push(NumberDataPoint {
                        attributes,
                        time_unix_nano: part.unix_ns,
                        value: Some(number(point.value)),
                        ..NumberDataPoint::default()
                    }),
                }
            }
            match metric.kind {
                Kind::Counter => metrics.extend(self.counter(name, metric.help, unit, points)),
                Kind::Gauge | Kind::Histogram | Kind::Info if !points.is_empty() => {
                    metrics.push(Metric {
                        name: name.to_owned(),
                        description: metric.help.to_owned(),
                        unit: unit.to_owned(),
                        data: Some(metric::Data::Gauge(Gauge {
                            data_points: points,
                        })),
                        ..Metric::default()
                    });
                }
                Kind::Gauge | Kind::Histogram | Kind::Info => {}
            }
        }
        metrics
    }

    fn counter(
        &self,
        name: &str,
        description: &str,
        unit: &str,
        data_points: Vec<NumberDataPoint>,
    ) -> Option<Metric> {
        let temporality = match self.temporality {
            Temporality::Cumulative | Temporality::LowMemory => AggregationTemporality::Cumulative,
            Temporality::Delta => AggregationTemporality::Delta,
        };
        (!data_points.is_empty()).then(|| Metric {
            name: name.to_owned(),
            description: description.to_owned(),
            unit: unit.to_owned(),
            data: Some(metric::Data::Sum(Sum {
                data_points,
                aggregation_temporality: temporality.into(),
                is_monotonic: true,
            })),
            ..Metric::default()
        })
    }

    fn counter_point(
        &self,
        part: &mut Message,
        key: CounterKey,
        total: Number,
        start_unix_ns: u64,
        attributes: Vec<KeyValue>,
    ) -> Option<NumberDataPoint> {
        let mut point = NumberDataPoint {
            attributes,
            start_time_unix_nano: start_unix_ns.min(part.unix_ns),
            time_unix_nano: part.unix_ns,
            value: Some(number(total)),
            ..NumberDataPoint::default()
        };
        if self.temporality == Temporality::Delta {
            if let Some((before, until)) = self.counters.get(&key) {
                let more = match (total, *before) {
                    // An edge that was forgotten and came again counts from its new beginning.
                    (Number::Count(total), Number::Count(before)) => {
                        Number::Count(total.checked_sub(before).unwrap_or(total))
                    }
                    (Number::Float(total), Number::Float(before)) => {
                        Number::Float((total - before).max(0.0))
                    }
                    (total, _) => total,
                };
                point.value = Some(number(more));
                point.start_time_unix_nano = (*until).min(part.unix_ns);
            }
            part.counters.push((key, total));
        }
        Some(point)
    }
}

impl Message {
    fn at(unix_ns: u64) -> Self {
        Message {
            unix_ns,
            ..Message::default()
        }
    }

    fn append(&mut self, other: Message) {
        let Message {
            request,
            unix_ns: _,
            bytes,
            histograms,
            counters,
        } = other;
        self.request
            .resource_metrics
            .extend(request.resource_metrics);
        self.bytes += bytes;
        self.histograms.extend(histograms);
        self.counters.extend(counters);
    }

    /// As protobuf.
    pub fn protobuf(&self) -> Vec<u8> {
        self.request.encode_to_vec()
    }

    /// As OTLP/JSON. What is absent is left out: not every reader takes `null` for it.
    pub fn json(&self) -> serde_json::Result<Vec<u8>> {
        let mut value = serde_json::to_value(&self.request)?;
        remove_nulls(&mut value);
        serde_json::to_vec(&value)
    }
}

fn remove_nulls(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => {}
    }
}

fn attributes(key: &SeriesKey) -> Vec<KeyValue> {
    let SeriesKey::Set(set) = key else {
        return vec![overflow()];
    };
    let mut attributes = Vec::new();
    set.for_each(|name, value| {
        let value = match value {
            Value::Str(text) => ProtoValue::StringValue(text.into_owned()),
            Value::Int(number) => ProtoValue::IntValue(number),
            Value::StrList(texts) => ProtoValue::StringValue(texts.join(",")),
        };
        attributes.push(key_value(name, value));
    });
    attributes
}

fn overflow() -> KeyValue {
    key_value("otel.metric.overflow", ProtoValue::BoolValue(true))
}

fn text(key: &str, value: &str) -> KeyValue {
    key_value(key, ProtoValue::StringValue(value.to_owned()))
}

fn number(number: Number) -> number_data_point::Value {
    match number {
        Number::Count(count) => {
            number_data_point::Value::AsInt(i64::try_from(count).unwrap_or(i64::MAX))
        }
        Number::Float(number) => number_data_point::Value::AsDouble(number),
    }
}

/// A Prometheus name without what OTLP says otherwise: type and unit.
fn plain_name(name: &'static str) -> (&'static str, &'static str) {
    let name = name.strip_suffix("_total").unwrap_or(name);
    if let Some(name) = name.strip_suffix("_seconds") {
        (name, "s")
    } else if let Some(name) = name.strip_suffix("_bytes") {
        (name, "By")
    } else {
        (name, "1")
    }
}
