//! One value each: text in, typed value out, or what is wrong and what is allowed.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::kernel::tier::{Choice, Tier};
use crate::meta::kubernetes::Mode;
use crate::trace::routes::Pattern;

type Parsed<T> = Result<T, String>;

const KIB: u64 = 1024;
const RING_SIZES: RangeInclusive<u64> = 64 * KIB..=1024 * KIB * KIB;
/// The least holds two messages of the largest size for each of several exporters.
const SPOOL_SIZES: RangeInclusive<u64> = 16 * KIB * KIB..=KIB * KIB * KIB * KIB;

/// `true`/`false` as YAML and shells write them.
pub(super) fn boolean(text: &str) -> Parsed<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err(format!(
            "`{text}` is neither yes nor no; allowed: true, false"
        )),
    }
}

/// A whole number within bounds.
pub(super) fn number(bounds: RangeInclusive<u32>) -> impl Fn(&str) -> Parsed<u32> {
    move |text| {
        text.parse()
            .ok()
            .filter(|value| bounds.contains(value))
            .ok_or_else(|| {
                format!(
                    "`{text}` is out of bounds; allowed: a whole number from {} to {}",
                    bounds.start(),
                    bounds.end()
                )
            })
    }
}

/// A share, 0 to 1.
pub(super) fn ratio(text: &str) -> Parsed<f64> {
    decimal(text)
        .filter(|ratio| (0.0..=1.0).contains(ratio))
        .ok_or_else(|| {
            format!("`{text}` is not a ratio; allowed: a number from 0 to 1, such as 0.01")
        })
}

/// So many per second.
pub(super) fn rate(text: &str) -> Parsed<f64> {
    decimal(text)
        .filter(|rate| *rate > 0.0 && *rate <= 1e6)
        .ok_or_else(|| format!("`{text}` is not a rate; allowed: a number above 0, up to 1000000"))
}

/// A number as people write them: not the names that the parser of floats knows as well.
fn decimal(text: &str) -> Option<f64> {
    let plain = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte));
    plain.then(|| text.parse().ok()).flatten()
}

/// Milliseconds within bounds.
pub(super) fn millis(bounds: RangeInclusive<u32>) -> impl Fn(&str) -> Parsed<Duration> {
    let number = number(bounds);
    move |text| number(text).map(|millis| Duration::from_millis(millis.into()))
}

/// A path with places that differ.
pub(super) fn route(text: &str) -> Parsed<Pattern> {
    Pattern::parse(text).map_err(|error| {
        format!("`{text}`: {error}; allowed: a path such as /users/{{id}} or /static/**")
    })
}

/// When the Kubernetes API is asked. YAML has words of its own for on and off.
pub(super) fn kubernetes(text: &str) -> Parsed<Mode> {
    match text.to_ascii_lowercase().as_str() {
        "auto" => Ok(Mode::Auto),
        "on" | "true" => Ok(Mode::On),
        "off" | "false" => Ok(Mode::Off),
        _ => Err(format!("`{text}` is unknown; allowed: auto, on, off")),
    }
}

/// Where system calls are seen.
pub(super) fn tier(text: &str) -> Parsed<Choice> {
    match text {
        "auto" => Ok(Choice::Auto),
        "base" => Ok(Choice::Only(Tier::Base)),
        "fast" => Ok(Choice::Only(Tier::Fast)),
        _ => Err(format!("`{text}` is unknown; allowed: auto, base, fast")),
    }
}

/// A process id.
pub(super) fn pid(text: &str) -> Parsed<u32> {
    // The kernel's PID_MAX_LIMIT.
    number(1..=4_194_304)(text)
}

/// `8080` or `8000-8099`.
pub(super) fn ports(text: &str) -> Parsed<RangeInclusive<u16>> {
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => Err(format!(
            "`{text}` is not a port; allowed: 1 to 65535, or a range such as 8000-8099"
        )),
    }
}

/// A size of the ring buffer. The kernel takes powers of two only (kernel/bpf/ringbuf.c).
pub(super) fn ring_size(text: &str) -> Parsed<u32> {
    let allowed = "allowed: a power of two from 64KiB to 1GiB, such as 8MiB";
    match size(text) {
        None => Err(format!("`{text}` is not a size; {allowed}")),
        Some(size) if !RING_SIZES.contains(&size) => {
            Err(format!("`{text}` is out of bounds; {allowed}"))
        }
        Some(size) if !size.is_power_of_two() => {
            Err(format!("`{text}` is not a power of two; {allowed}"))
        }
        Some(size) => {
            u32::try_from(size).map_err(|_| format!("`{text}` is out of bounds; {allowed}"))
        }
    }
}

/// What the spool may take on disk.
pub(super) fn spool_bytes(text: &str) -> Parsed<u64> {
    let allowed = "allowed: 16MiB to 1TiB, such as 256MiB";
    match size(text) {
        None => Err(format!("`{text}` is not a size; {allowed}")),
        Some(size) if !SPOOL_SIZES.contains(&size) => {
            Err(format!("`{text}` is out of bounds; {allowed}"))
        }
        Some(size) => Ok(size),
    }
}

/// A number of bytes with a unit or without.
fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text
        .get(digits.len()..)
        .unwrap_or_default()
        .to_ascii_lowercase()
        .as_str()
    {
        "" | "b" => 1,
        "k" | "kb" | "kib" => KIB,
        "m" | "mb" | "mib" => KIB * KIB,
        "g" | "gb" | "gib" => KIB * KIB * KIB,
        "t" | "tb" | "tib" => KIB * KIB * KIB * KIB,
        _ => 0,
    };
    digits
        .trim()
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(unit))
        .filter(|size| *size > 0)
}

/// A bound of the agent's memory.
pub(super) fn memory(text: &str) -> Parsed<u64> {
    let allowed = "allowed: 64MiB to 1TiB, such as 512MiB";
    match size(text) {
        None => Err(format!("`{text}` is not a size; {allowed}")),
        Some(size) if !(64 * KIB * KIB..=KIB * KIB * KIB * KIB).contains(&size) => {
            Err(format!("`{text}` is out of bounds; {allowed}"))
        }
        Some(size) => Ok(size),
    }
}

/// A number of CPUs.
pub(super) fn cpus(text: &str) -> Parsed<f64> {
    decimal(text)
        .filter(|number| *number > 0.0 && *number <= 10_000.0)
        .ok_or_else(|| {
            format!("`{text}` is not a number of CPUs; allowed: above 0, up to 10000, such as 0.25")
        })
}

/// A name that agents have in common, or `off`.
pub(super) fn takeover(text: &str) -> Parsed<Option<String>> {
    // As for `admin`.
    if matches!(text, "off" | "false") {
        return Ok(None);
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    match (1..=64).contains(&text.len()) && text.chars().all(allowed) {
        true => Ok(Some(text.to_owned())),
        false => Err(format!(
            "`{text}` is not a name; allowed: up to 64 letters, digits, `.`, `_` and `-`, or off"
        )),
    }
}

/// `IP:PORT`, or `off`.
pub(super) fn admin(text: &str) -> Parsed<Option<SocketAddr>> {
    // YAML 1.1 readers of the same file may have turned `off` into false.
    if matches!(text, "off" | "false") {
        return Ok(None);
    }
    let text_with_host = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    match text_with_host.parse() {
        Ok(address) => Ok(Some(address)),
        Err(_) => Err(format!(
            "`{text}` is not an address; allowed: IP:PORT such as 127.0.0.1:9468, or off"
        )),
    }
}

/// A glob: anything but nothing.
pub(super) fn glob(text: &str) -> Parsed<String> {
    match text.trim().is_empty() {
        true => Err(
            "an empty glob matches nothing; allowed: a pattern such as /usr/bin/* or *.py"
                .to_owned(),
        ),
        false => Ok(text.to_owned()),
    }
}

/// Text that must not be empty.
pub(super) fn non_empty(text: &str) -> Parsed<String> {
    match text.trim().is_empty() {
        true => Err("must not be empty".to_owned()),
        false => Ok(text.to_owned()),
    }
}

/// A directive list of the log filter.
pub(super) fn log_level(text: &str) -> Parsed<String> {
    match crate::telemetry::logs::filter(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!(
            "`{text}` is not a log level; allowed: off, error, warn, info, debug, trace, or directives such as tracer_agent=debug"
        )),
    }
}

/// One of a few words.
pub(super) fn one_of(words: &'static [&'static str]) -> impl Fn(&str) -> Parsed<String> {
    move |text| match words.contains(&text) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "`{text}` is unknown; allowed: {}",
            words.join(", ")
        )),
    }
}

/// A collector's URL.
pub(super) fn endpoint(text: &str) -> Parsed<String> {
    let has_host = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"))
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['/', ':']));
    match has_host && !text.contains(char::is_whitespace) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "`{text}` is not a URL; allowed: http://HOST:PORT or https://HOST:PORT"
        )),
    }
}

/// `name=value` of a header, the value percent-encoded. The value is never repeated in the message.
pub(super) fn header(text: &str) -> Parsed<String> {
    let name = text.split_once('=').map_or(text, |(name, _)| name);
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$&'*+-.^_`|~".contains(c);
    match !name.is_empty() && name.chars().all(is_token) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "`{name}` is not a header name; allowed: letters, digits and !#$&'*+-.^_`|~"
        )),
    }
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
pub(super) fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
