//! The metrics page and the ledger of services, as a reader sees them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::http::Connection;

/// One sample of the page.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
    /// What stands behind ` # `: an exemplar.
    pub exemplar: Option<String>,
}

/// The samples of a page; lines that are none are an error.
pub fn parse(page: &str) -> Result<Vec<Sample>, String> {
    let lines = page
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| sample(line).ok_or_else(|| format!("not a sample: {line}")))
        .collect()
}

fn sample(line: &str) -> Option<Sample> {
    let (line, exemplar) = match line.split_once(" # ") {
        Some((line, exemplar)) => (line, Some(exemplar.to_owned())),
        None => (line, None),
    };
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let (name, labels) = match series.split_once('{') {
        None => (series, ""),
        Some((name, labels)) => (name, labels.strip_suffix('}')?),
    };
    let mut found = BTreeMap::new();
    // Values of the tests hold no quotes and no commas within them.
    for label in labels.split("\",").filter(|label| !label.is_empty()) {
        let (key, value) = label.split_once("=\"")?;
        let value = value.strip_suffix('"').unwrap_or(value);
        found.insert(key.to_owned(), value.to_owned());
    }
    Some(Sample {
        name: name.to_owned(),
        labels: found,
        value,
        exemplar,
    })
}

/// Sum of the samples `name` that have all of `labels`.
pub fn sum(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let fits = |sample: &&Sample| {
        sample.name == name
            && labels
                .iter()
                .all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
    };
    samples.iter().filter(fits).map(|sample| sample.value).sum()
}

/// The page as OpenMetrics.
pub fn open_metrics(admin: SocketAddr) -> String {
    let mut connection = Connection::open(admin).expect("the admin endpoint");
    let request = "GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.1\r\n\r\n";
    let answer = connection.exchange(&[request.as_bytes()], false);
    let answer = answer.expect("the metrics page").response;
    assert_eq!(answer.status, 200);
    String::from_utf8(answer.body).expect("metrics are text")
}

/// `/ledger/services`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Details {
    /// Bytes of traced connections.
    pub bytes: Bytes,
    /// By `service.name`.
    pub services: BTreeMap<String, Service>,
}

/// Bytes of traced connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the agent's documentation has them")]
pub struct Bytes {
    pub seen: u64,
    pub parsed: u64,
    pub skipped: u64,
    pub lost: u64,
}

/// One service.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the agent's documentation has them")]
pub struct Service {
    pub seen: u64,
    pub exported: u64,
    pub sampled_out: u64,
    pub dropped: BTreeMap<String, u64>,
    pub unknown: u64,
    pub pending: u64,
}

impl Details {
    /// Parses the page.
    pub fn parse(body: &[u8]) -> Self {
        serde_json::from_slice(body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(body)))
    }

    /// What does not add up.
    pub fn wrong_sums(&self) -> Vec<String> {
        let Bytes {
            seen,
            parsed,
            skipped,
            lost,
        } = self.bytes;
        let mut wrong = Vec::new();
        if seen != parsed + skipped + lost {
            wrong.push(format!("bytes do not add up: {:?}", self.bytes));
        }
        for (name, row) in &self.services {
            let done = row.exported + row.sampled_out + row.dropped.values().sum::<u64>();
            if row.seen != done + row.unknown + row.pending {
                wrong.push(format!("{name} does not add up: {row:?}"));
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read() {
        let page = "# HELP a x\na_total{k=\"v\",l=\"w\"} 2\na_total{k=\"v\",l=\"y\"} 3 # {t=\"1\"} 0.5 7\nb 1.5\n";
        let samples = parse(page).expect("a page");
        assert_eq!(sum(&samples, "a_total", &[("k", "v")]), 5.0);
        assert_eq!(sum(&samples, "a_total", &[("l", "y")]), 3.0);
        assert_eq!(sum(&samples, "b", &[]), 1.5);
        assert!(samples[1].exemplar.is_some());
        assert!(parse("a{k=\"v\" 2").is_err());
    }
}
