//! What a segment of a path looks like, when it looks like a value and not like a word.

/// Values this long are no words of a router.
const LONG: usize = 32;
/// From here on letters mixed with digits are a token.
const TOKEN: usize = 20;
/// From here on hex digits are a hash, if not all are letters.
const HASH: usize = 8;
/// So many decimal digits make an id of any text.
const ID_DIGITS: usize = 4;

/// The placeholder of a segment that looks like a value; `None` for one that may be a word.
pub(super) fn placeholder(segment: &str) -> Option<&'static str> {
    let bytes = segment.as_bytes();
    let digits = bytes.iter().filter(|byte| byte.is_ascii_digit()).count();
    if is_uuid(bytes) {
        return Some("{uuid}");
    }
    if is_date(bytes) {
        return Some("{date}");
    }
    // Anything escaped, quoted or put together was made by a program: no router has such words.
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    if !bytes.iter().all(plain) {
        return Some("{value}");
    }
    if digits > 0 && digits == bytes.len() {
        return Some("{id}");
    }
    if digits > 0 && bytes.len() >= HASH && bytes.iter().all(u8::is_ascii_hexdigit) {
        return Some("{hash}");
    }
    if digits > 0 && bytes.len() >= TOKEN && bytes.iter().any(u8::is_ascii_alphabetic) {
        return Some("{token}");
    }
    if bytes.len() >= LONG {
        return Some("{value}");
    }
    if digits >= ID_DIGITS || ends_in_number(bytes) {
        return Some("{id}");
    }
    None
}

/// `user-17`, `order_3`.
fn ends_in_number(bytes: &[u8]) -> bool {
    let number = bytes
        .iter()
        .rev()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let before = bytes.len().checked_sub(number + 1);
    number > 0 && before.is_some_and(|before| bytes.get(before).is_some_and(|b| b"-_".contains(b)))
}

/// 8-4-4-4-12 hex digits.
fn is_uuid(bytes: &[u8]) -> bool {
    bytes.len() == 36
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// `2024-05`, `2024-05-17`, with or without a time of day behind it (ISO 8601).
fn is_date(bytes: &[u8]) -> bool {
    let shape = |text: &[u8], shape: &[u8]| {
        text.len() == shape.len()
            && text.iter().zip(shape).all(|(byte, wanted)| match wanted {
                b'0' => byte.is_ascii_digit(),
                other => byte == other,
            })
    };
    if shape(bytes, b"0000-00") || shape(bytes, b"0000-00-00") {
        return true;
    }
    bytes.split_at_checked(11).is_some_and(|(date, time)| {
        (shape(date, b"0000-00-00T") || shape(date, b"0000-00-00t"))
            && time
                .iter()
                .all(|byte| byte.is_ascii_digit() || b":.,+-zZ".contains(byte))
    })
}
