//! How numbers are printed: aligned, with their targets beside them.

use std::time::Duration;

/// A bound a value is held against.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// Only shown.
    None,
}

/// One line: name, value with unit, target and whether it is met.
pub fn row(name: &str, value: f64, unit: &str, target: Target) -> String {
    let (text, met) = match target {
        Target::AtMost(bound) => (format!("≤ {}", number(bound)), Some(value <= bound)),
        Target::AtLeast(bound) => (format!("≥ {}", number(bound)), Some(value >= bound)),
        Target::None => (String::new(), None),
    };
    let verdict = met.map_or("", |met| if met { "ok" } else { "MISSED" });
    format!(
        "  {name:<40} {:>12} {unit:<10} {text:<12} {verdict}",
        number(value)
    )
    .trim_end()
    .to_owned()
}

/// The middle value; the mean of the middle two of an even number; 0 of none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    if values.len().is_multiple_of(2) {
        (at(middle.wrapping_sub(1)) + at(middle)) / 2.0
    } else {
        at(middle)
    }
}

/// Microseconds of a time for each of `count`; 0 for none.
pub fn micros_per(time: Duration, count: u64) -> f64 {
    if count == 0 {
        0.0
    } else {
        time.as_secs_f64() * 1e6 / count as f64
    }
}

/// Bytes in MiB.
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn number(value: f64) -> String {
    let decimals = if value.fract() == 0.0 || value.abs() >= 1000.0 {
        0
    } else if value.abs() >= 100.0 {
        1
    } else {
        3
    };
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        let left = whole.len() - index;
        if index > 0 && left.is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if fraction.is_empty() {
        grouped
    } else {
        format!("{grouped}.{fraction}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let check = |values: &[f64], middle: f64| assert_eq!(median(values.to_vec()), middle);
        check(&[], 0.0);
        check(&[5.0], 5.0);
        check(&[1.0, 9.0], 5.0);
        check(&[9.0, 1.0, 2.0], 2.0);
    }

    #[test]
    fn numbers_are_short_and_grouped() {
        let check = |value: f64, text: &str| assert_eq!(number(value), text);
        check(0.0, "0");
        check(2.345_6, "2.346");
        check(150.26, "150.3");
        check(81_234.5, "81,234");
        check(1_000_000.0, "1,000,000");
        check(-1234.0, "-1,234");
        check(-0.25, "-0.250");
        check(-123_456.0, "-123,456");
    }

    #[test]
    fn a_row_says_whether_the_target_is_met() {
        assert!(row("a", 2.0, "µs", Target::AtMost(3.0)).ends_with("≤ 3          ok"));
        assert!(row("a", 4.0, "µs", Target::AtMost(3.0)).ends_with("MISSED"));
        assert!(row("a", 4.0, "%", Target::AtLeast(3.0)).ends_with("ok"));
        assert!(row("a", 4.0, "%", Target::None).ends_with('%'));
    }
}
