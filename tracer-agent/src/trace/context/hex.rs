//! Hexadecimal ids.

/// Exactly `2 * N` lower-case digits (W3C and B3 forbid upper case).
pub(super) fn lower<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.iter().any(u8::is_ascii_uppercase) {
        None
    } else {
        exact(text)
    }
}

/// Exactly `2 * N` digits of either case.
pub(super) fn exact<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() == 2 * N {
        padded(text)
    } else {
        None
    }
}

/// One to `2 * N` digits of either case, padded with zeros on the left.
pub(super) fn padded<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.is_empty() || text.len() > 2 * N {
        return None;
    }
    let mut id = [0; N];
    for (position, &byte) in text.iter().rev().enumerate() {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => return None,
        };
        id[N - 1 - position / 2] |= digit << (4 * (position % 2));
    }
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits() {
        assert_eq!(lower(b"00ff"), Some([0, 0xff]));
        assert_eq!(lower::<2>(b"00FF"), None);
        assert_eq!(lower::<2>(b"0ff"), None);
        assert_eq!(lower::<2>(b"00fff"), None);
        assert_eq!(lower::<2>(b"00fg"), None);
        assert_eq!(padded(b"fFf"), Some([0x0f, 0xff]));
        assert_eq!(padded(b"1"), Some([0, 1]));
        assert_eq!(padded::<2>(b""), None);
        assert_eq!(padded::<2>(b"00001"), None);
        assert_eq!(padded::<2>(b"+1"), None);
    }
}
