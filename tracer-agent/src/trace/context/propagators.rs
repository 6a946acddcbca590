//! Which formats are read, and in which order.

use super::Format;

/// The formats to look for, most wanted first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Propagators {
    formats: Vec<Format>,
}

impl Default for Propagators {
    /// All formats, in the order of [`Format::ALL`].
    fn default() -> Self {
        Propagators {
            formats: Format::ALL.to_vec(),
        }
    }
}

impl Propagators {
    /// Reads a list as in `OTEL_PROPAGATORS`; also returns the names in it that are not known, to
    /// be warned about (the specification has them ignored). A list in which nothing is known, an
    /// empty one too, is taken for unset. `baggage` and `none` add no format. Both `b3` and
    /// `b3multi` read both forms, the single header first: the names only differ in what is
    /// written (OpenTelemetry, Propagators API, "B3 Extract").
    pub fn parse(list: &str) -> (Propagators, Vec<&str>) {
        let mut formats = Vec::new();
        let mut unknown = Vec::new();
        let mut recognised = false;
        for name in list
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            let added: &[Format] = match name.to_ascii_lowercase().as_str() {
                "tracecontext" => &[Format::TraceContext],
                "b3" | "b3multi" => &[Format::B3Single, Format::B3Multi],
                "jaeger" => &[Format::Jaeger],
                "xray" => &[Format::XRay],
                "datadog" => &[Format::Datadog],
                "baggage" | "none" => &[],
                _ => {
                    unknown.push(name);
                    continue;
                }
            };
            recognised = true;
            for format in added {
                if !formats.contains(format) {
                    formats.push(*format);
                }
            }
        }
        if recognised {
            (Propagators { formats }, unknown)
        } else {
            (Propagators::default(), unknown)
        }
    }

    /// The formats, most wanted first.
    pub fn formats(&self) -> &[Format] {
        &self.formats
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Format::*;

    #[test]
    fn lists() {
        let check = |list, formats: &[Format], unknown: &[&str]| {
            let (propagators, others) = Propagators::parse(list);
            assert_eq!(
                (propagators.formats(), others.as_slice()),
                (formats, unknown),
                "for {list:?}"
            );
        };
        check("", &Format::ALL, &[]);
        check(" , ", &Format::ALL, &[]);
        check("tracecontext,baggage", &[TraceContext], &[]);
        check("baggage", &[], &[]);
        check("none", &[], &[]);
        check("datadog, TraceContext", &[Datadog, TraceContext], &[]);
        check("b3multi", &[B3Single, B3Multi], &[]);
        check("b3,b3multi,b3", &[B3Single, B3Multi], &[]);
        check("jaeger,ottrace,xray", &[Jaeger, XRay], &["ottrace"]);
        check("ottrace", &Format::ALL, &["ottrace"]);
    }
}
