//! The two text formats of Prometheus: its own (0.0.4) and OpenMetrics (1.0.0).
//!
//! In: families of samples. Out: a page. What differs: OpenMetrics names counters without `_total`
//! in their descriptions, has units and exemplars, and ends with a line that says so. Names, help
//! texts and label names are constants of this program; label values are escaped.

use std::fmt::{Display, Write as _};

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What a client that sends this `Accept` header prefers; [`Format::Text`] in doubt.
    pub fn negotiate(accept: Option<&str>) -> Format {
        let mut best = [0.0f32; 2];
        let mut any = false;
        for range in accept.unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let quality = parts
                .filter_map(|parameter| parameter.strip_prefix("q="))
                .find_map(|quality| quality.parse::<f32>().ok())
                .unwrap_or(1.0);
            let slot = match kind.to_ascii_lowercase().as_str() {
                "application/openmetrics-text" => 1,
                "text/plain" | "text/*" => 0,
                _ => continue,
            };
            any = true;
            if let Some(best) = best.get_mut(slot) {
                *best = best.max(quality);
            }
        }
        match best {
            [text, open] if any && open > 0.0 && open >= text => Format::OpenMetrics,
            _ => Format::Text,
        }
    }

    /// Value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Type of a metric, as Prometheus names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
    /// Says what is; always 1.
    Info,
}

impl Kind {
    /// As in the documentation.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::Info => "info",
        }
    }
}

/// Writes a page.
#[derive(Debug)]
pub struct Page {
    format: Format,
    text: String,
    /// Where the description of the family begins, and where it ends.
    family: (usize, usize),
}

impl Page {
    /// An empty page.
    pub fn new(format: Format) -> Self {
        Page {
            format,
            text: String::with_capacity(16 * 1024),
            family: (0, 0),
        }
    }

    /// Begins a family. `name` is that of its samples, `_total` of counters and `_info` included.
    /// One that gets no samples is left out.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str) {
        self.close_family();
        let began = self.text.len();
        let (name, shown) = match (self.format, kind) {
            (Format::OpenMetrics, Kind::Counter) => {
                (name.strip_suffix("_total").unwrap_or(name), kind.as_str())
            }
            (Format::OpenMetrics, Kind::Info) => {
                (name.strip_suffix("_info").unwrap_or(name), kind.as_str())
            }
            (Format::Text, Kind::Info) => (name, Kind::Gauge.as_str()),
            (_, Kind::Gauge | Kind::Histogram) | (Format::Text, Kind::Counter) => {
                (name, kind.as_str())
            }
        };
        let _ = writeln!(self.text, "# HELP {name} {help}");
        let _ = writeln!(self.text, "# TYPE {name} {shown}");
        if self.format == Format::OpenMetrics {
            for unit in ["seconds", "bytes"] {
                if name
                    .strip_suffix(unit)
                    .is_some_and(|name| name.ends_with('_'))
                {
                    let _ = writeln!(self.text, "# UNIT {name} {unit}");
                }
            }
        }
        self.family = (began, self.text.len());
    }

    /// Adds a sample of the family; `name` with its suffix.
    pub fn sample<'a>(
        &mut self,
        name: &str,
        labels: impl IntoIterator<Item = (&'a str, &'a str)>,
        value: impl Display,
    ) {
        self.name_and_labels(name, labels);
        let _ = writeln!(self.text, " {value}");
    }

    /// Adds a sample with an example, which OpenMetrics alone has: its labels, value and Unix time.
    pub fn sample_with_exemplar<'a>(
        &mut self,
        name: &str,
        labels: impl IntoIterator<Item = (&'a str, &'a str)>,
        value: impl Display,
        exemplar: Option<(&str, &str, f64, f64)>,
    ) {
        self.name_and_labels(name, labels);
        let _ = write!(self.text, " {value}");
        if let (Format::OpenMetrics, Some((trace_id, span_id, value, unix_seconds))) =
            (self.format, exemplar)
        {
            let _ = write!(
                self.text,
                " # {{trace_id=\"{trace_id}\",span_id=\"{span_id}\"}} {value} {unix_seconds:.3}"
            );
        }
        self.text.push('\n');
    }

    /// A bucket's bound as the format writes it.
    pub fn bound(&self, bound: f64) -> String {
        match self.format {
            Format::Text => bound.to_string(),
            Format::OpenMetrics => format!("{bound:?}"),
        }
    }

    /// The page.
    pub fn finish(mut self) -> String {
        self.close_family();
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }

    fn close_family(&mut self) {
        let (began, described) = self.family;
        if self.text.len() == described {
            self.text.truncate(began);
        }
        self.family = (self.text.len(), usize::MAX);
    }

    fn name_and_labels<'a>(
        &mut self,
        name: &str,
        labels: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) {
        self.text.push_str(name);
        let mut separator = '{';
        for (label, value) in labels {
            self.text.push(separator);
            separator = ',';
            self.text.push_str(label);
            self.text.push_str("=\"");
            escape(value, &mut self.text);
            self.text.push('"');
        }
        if separator == ',' {
            self.text.push('}');
        }
    }
}

/// Label values: backslash, quote and line feed are escaped.
fn escape(value: &str, text: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
}

/// An attribute's name as a label: what Prometheus does not allow becomes an underscore.
pub fn label_name(attribute: &str) -> String {
    let mut name: String = attribute
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        name.insert_str(0, "key_");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_better_quality_wins() {
        let check = |accept: Option<&str>, expected| {
            assert_eq!(Format::negotiate(accept), expected, "{accept:?}");
        };
        check(None, Format::Text);
        check(Some(""), Format::Text);
        check(Some("*/*"), Format::Text);
        check(Some("text/plain"), Format::Text);
        check(Some("application/openmetrics-text"), Format::OpenMetrics);
        check(
            Some(
                "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            ),
            Format::OpenMetrics,
        );
        check(
            Some("application/openmetrics-text;q=0.2, text/plain;q=0.5"),
            Format::Text,
        );
        check(Some("application/openmetrics-text;q=0"), Format::Text);
        check(
            Some("application/openmetrics-text;q=x"),
            Format::OpenMetrics,
        );
    }

    fn page(format: Format) -> String {
        let mut page = Page::new(format);
        page.family("a_total", Kind::Counter, "Help a.");
        page.sample("a_total", [("l", "x\\\"\ny")], 1);
        page.family("empty_total", Kind::Counter, "Nothing.");
        page.family("b_seconds", Kind::Histogram, "Help b.");
        let le = page.bound(1.0);
        page.sample_with_exemplar(
            "b_seconds_bucket",
            [("le", &*le)],
            2,
            Some(("t", "s", 0.5, 7.0)),
        );
        page.family("target_info", Kind::Info, "Help t.");
        page.sample("target_info", [], 1);
        page.finish()
    }

    #[test]
    fn prometheus_text() {
        assert_eq!(
            page(Format::Text),
            "# HELP a_total Help a.\n# TYPE a_total counter\na_total{l=\"x\\\\\\\"\\ny\"} 1\n\
             # HELP b_seconds Help b.\n# TYPE b_seconds histogram\nb_seconds_bucket{le=\"1\"} 2\n\
             # HELP target_info Help t.\n# TYPE target_info gauge\ntarget_info 1\n"
        );
    }

    #[test]
    fn open_metrics() {
        assert_eq!(
            page(Format::OpenMetrics),
            "# HELP a Help a.\n# TYPE a counter\na_total{l=\"x\\\\\\\"\\ny\"} 1\n\
             # HELP b_seconds Help b.\n# TYPE b_seconds histogram\n# UNIT b_seconds seconds\n\
             b_seconds_bucket{le=\"1.0\"} 2 # {trace_id=\"t\",span_id=\"s\"} 0.5 7.000\n\
             # HELP target Help t.\n# TYPE target info\ntarget_info 1\n# EOF\n"
        );
    }

    #[test]
    fn attribute_names_become_labels() {
        assert_eq!(
            label_name("http.response.status_code"),
            "http_response_status_code"
        );
        assert_eq!(label_name("0a"), "key_0a");
        assert_eq!(label_name("ä"), "_");
    }
}
