//! Rejection thresholds and randomness, both 56 bits wide (OpenTelemetry, probability sampling).
//!
//! In: probabilities, ids, the texts of `th` and `rv`. Out: numbers to compare. A trace is kept when
//! its randomness is not below the threshold, so whoever has the higher threshold keeps a subset of
//! what others keep, and equal thresholds keep the same traces without anybody talking.

use std::fmt;

use crate::trace::TraceId;

/// Digits of a full threshold or randomness.
const DIGITS: u32 = 14;
/// One more than the largest value.
const RANGE: u64 = 1 << 56;
/// Significant digits of thresholds made from probabilities: what the specification recommends to
/// SDKs, so that agents and SDKs given the same ratio have the same threshold to the last bit.
const PRECISION: i32 = 4;

/// How many of 2^56 equally likely traces are not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Threshold(u64);

/// The random part of a trace that thresholds are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Randomness(u64);

impl Threshold {
    /// Keeps everything.
    pub const ALWAYS: Threshold = Threshold(0);
    /// Keeps nothing. It has no text: no kept span carries it.
    pub const NEVER: Threshold = Threshold(RANGE);

    /// Keeps this share of all traces; what is not above 2^-56 keeps none.
    pub fn of_probability(probability: f64) -> Threshold {
        if probability >= 1.0 {
            return Threshold::ALWAYS;
        }
        if probability.is_nan() || probability < 1.0 / RANGE as f64 {
            return Threshold::NEVER;
        }
        // The leading `f` digits of small probabilities are not significant ones.
        let exponent = ((probability.to_bits() >> 52) & 0x7ff) as i32 - 1022;
        let digits = (PRECISION + (-exponent).div_euclid(4)).clamp(1, 12) as u32;
        let unit = 1u64 << (4 * (DIGITS - digits));
        let exact = ((1.0 - probability) * RANGE as f64) as u64;
        Threshold(((exact + unit / 2) / unit * unit).min(RANGE - unit))
    }

    /// Lowest randomness that is kept; `2^56` if none is.
    pub fn value(self) -> u64 {
        self.0
    }

    /// The share of traces that are kept.
    pub fn probability(self) -> f64 {
        (RANGE - self.0) as f64 / RANGE as f64
    }

    /// How many spans one kept span stands for. Infinite for [`Threshold::NEVER`].
    pub fn adjusted_count(self) -> f64 {
        1.0 / self.probability()
    }

    /// Whether a trace of this randomness is kept.
    pub fn keeps(self, randomness: Randomness) -> bool {
        randomness.0 >= self.0
    }

    /// From the value of `th`: 1 to 14 hex digits, zeros left out at the end.
    pub fn parse(text: &str) -> Option<Threshold> {
        let missing = DIGITS.checked_sub(u32::try_from(text.len()).ok()?)?;
        hex(text).map(|value| Threshold(value << (4 * missing)))
    }
}

/// The value of `th`.
impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:014x}", self.0);
        match digits.trim_end_matches('0') {
            "" => f.write_str("0"),
            digits => f.write_str(digits),
        }
    }
}

impl Randomness {
    /// The low 56 bits of the trace id (W3C Trace Context level 2, random-trace-id).
    pub fn of_trace(TraceId(id): TraceId) -> Randomness {
        let mut low = [0; 8];
        low[1..].copy_from_slice(&id[9..]);
        Randomness(u64::from_be_bytes(low))
    }

    /// From the value of `rv`: exactly 14 hex digits.
    pub fn parse(text: &str) -> Option<Randomness> {
        (text.len() == DIGITS as usize)
            .then(|| hex(text))
            .flatten()
            .map(Randomness)
    }
}

/// The value of `rv`.
impl fmt::Display for Randomness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:014x}", self.0)
    }
}

/// Digits only: the standard parser takes a sign as well.
fn hex(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}
