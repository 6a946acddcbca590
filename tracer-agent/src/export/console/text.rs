//! Text that is safe and fits: escaping, width, shortening, durations, times of day.
//!
//! In: text from the wire. Out: text that cannot move the cursor, change colours or hide behind
//! writing direction, cut in the middle to so many terminal cells. Widths are those of common
//! terminals; it cannot see the font.

/// Would this character do something to a terminal other than take its place?
fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            // Writing direction, zero width, line separators, byte order mark, tags.
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
                | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}'
        )
}

/// Cells that the character takes once escaped. Combining marks count as one, so that no number
/// of them is free.
fn width(character: char) -> usize {
    if is_unsafe(character) {
        return character.escape_default().count();
    }
    // Wide in East Asian scripts, and emoji (Unicode Standard Annex 11).
    let wide = matches!(
        u32::from(character),
        0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe6f
            | 0xff00..=0xff60 | 0xffe0..=0xffe6 | 0x1f300..=0x1faff | 0x20000..=0x3fffd
    );
    if wide { 2 } else { 1 }
}

/// Cells of a text.
pub(super) fn cells(text: &str) -> usize {
    text.chars().map(width).sum()
}

fn push_escaped(line: &mut String, text: &str) {
    for character in text.chars() {
        if is_unsafe(character) {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
}

/// The text escaped and, if it takes more than `most` cells, with its middle replaced by `…`.
/// Looks at no more of a long text than it keeps.
pub(super) fn fit(text: &str, most: usize) -> String {
    let (whole, _) = prefix(text.chars(), most);
    let mut fitted = String::with_capacity(whole.min(4 * most));
    if whole == text.len() {
        push_escaped(&mut fitted, text);
        return fitted;
    }
    let kept = most.saturating_sub(1);
    let (head, head_cells) = prefix(text.chars(), kept.div_ceil(2));
    let (tail, _) = prefix(text.chars().rev(), kept - head_cells);
    push_escaped(&mut fitted, &text[..head]);
    if most > 0 {
        fitted.push('…');
    }
    push_escaped(&mut fitted, &text[text.len() - tail..]);
    fitted
}

/// Bytes and cells of the longest start of `characters` that fits.
fn prefix(characters: impl Iterator<Item = char>, most: usize) -> (usize, usize) {
    let (mut bytes, mut cells) = (0, 0);
    for character in characters {
        let width = width(character);
        if cells + width > most {
            break;
        }
        cells += width;
        bytes += character.len_utf8();
    }
    (bytes, cells)
}

/// Three digits and a unit: `873 µs`, `1.23 ms`, `45.6 ms`, `789 ms`, `1.23 s`, `3600 s`.
pub(super) fn duration(nanoseconds: u64) -> String {
    let microseconds = nanoseconds / 1_000;
    match microseconds {
        0 => "<1 µs".to_string(),
        1..1_000 => format!("{microseconds} µs"),
        // The limits are where rounding would add a digit.
        1_000..9_995 => format!("{:.2} ms", microseconds as f64 / 1e3),
        9_995..99_950 => format!("{:.1} ms", microseconds as f64 / 1e3),
        99_950..999_500 => format!("{:.0} ms", microseconds as f64 / 1e3),
        999_500..9_995_000 => format!("{:.2} s", microseconds as f64 / 1e6),
        9_995_000..99_950_000 => format!("{:.1} s", microseconds as f64 / 1e6),
        _ => format!("{:.0} s", microseconds as f64 / 1e6),
    }
}

/// Time of day in UTC, as `12:34:56.789Z`.
pub(super) fn time_of_day(unix_ns: u64) -> String {
    let milliseconds = unix_ns / 1_000_000;
    let (seconds, milliseconds) = (milliseconds / 1_000, milliseconds % 1_000);
    let (hours, minutes, seconds) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{milliseconds:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_fit() {
        let check =
            |text, most, expected| assert_eq!(fit(text, most), expected, "for {text:?} in {most}");
        check("", 5, "");
        check("abcde", 5, "abcde");
        check("abcdef", 5, "ab…ef");
        check("abcdef", 4, "ab…f");
        check("abcdef", 1, "…");
        check("abcdef", 0, "");
        check("日本語日本", 6, "日…本");
        check("日本", 4, "日本");
        check("a\x1b[31mb", 40, "a\\u{1b}[31mb");
        check("a\r\n\t\0b", 40, "a\\r\\n\\t\\u{0}b");
        check("\u{9b}31m", 40, "\\u{9b}31m");
        check("\u{202e}gpj\u{2066}", 40, "\\u{202e}gpj\\u{2066}");
        check("\x1b\x1b\x1b", 6, "…");
        check("\x1b\x1b\x1b", 8, "…\\u{1b}");
        check("\x1b\x1b\x1b", 13, "\\u{1b}…\\u{1b}");
    }

    #[test]
    fn durations() {
        let check = |nanoseconds, expected| {
            assert_eq!(duration(nanoseconds), expected, "for {nanoseconds}")
        };
        check(0, "<1 µs");
        check(999, "<1 µs");
        check(1_000, "1 µs");
        check(999_999, "999 µs");
        check(1_000_000, "1.00 ms");
        check(9_994_999, "9.99 ms");
        check(9_995_000, "10.0 ms");
        check(99_949_000, "99.9 ms");
        check(99_950_000, "100 ms");
        check(999_499_000, "999 ms");
        check(999_500_000, "1.00 s");
        check(12_345_678_901, "12.3 s");
        check(3_600_000_000_000, "3600 s");
    }

    #[test]
    fn times() {
        assert_eq!(time_of_day(0), "00:00:00.000Z");
        assert_eq!(time_of_day(1_700_000_000_123_456_789), "22:13:20.123Z");
    }

    proptest! {
        #[test]
        fn what_fits_is_safe_and_never_wider(text in "\\PC*|[\\x00-\\u{ff}\\u{2000}-\\u{2070}日]*", most in 0usize..40) {
            let fitted = fit(&text, most);
            prop_assert!(cells(&fitted) <= most);
            prop_assert!(!fitted.chars().any(is_unsafe));
        }
    }
}
