//! Versions and libraries by the texts that a file contains.
//!
//! Only texts of a form that nothing else has count: a version with the date of its release, the path
//! of a source file. These survive `strip`.

use std::ops::ControlFlow;

use super::BinaryError;
use super::bytes::until_nul;
use super::elf::Elf;
use super::types::TlsLibrary;

/// The first answer of `judge` to the texts from each occurrence of the needle on.
fn first<T>(
    elf: &Elf<'_>,
    needle: &str,
    mut judge: impl FnMut(&str) -> Option<T>,
) -> Result<Option<T>, BinaryError> {
    let mut found = None;
    for range in elf.constants() {
        let Some(range) = cut(elf, range) else {
            continue;
        };
        elf.bytes.search(range, needle.as_bytes(), |_, tail| {
            let tail = tail.get(..tail.len().min(256)).unwrap_or_default();
            // Rust's texts have no end: what follows belongs to the next one.
            let text = until_nul(tail).unwrap_or(tail);
            let text = String::from_utf8_lossy(text);
            found = judge(&text);
            match found.is_some() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        if found.is_some() {
            break;
        }
    }
    Ok(found)
}

/// What a damaged header claims beyond the end of the file has no texts.
fn cut(elf: &Elf<'_>, (at, size): (u64, u64)) -> Option<(u64, u64)> {
    let left = elf.bytes.len().checked_sub(at)?;
    Some((at, size.min(left)))
}

/// `3.0.19`, `1.1.1w`, `3.0.16+quic` at the begin of a text.
fn version(text: &str) -> Option<&str> {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-')));
    let version = text.get(..end.unwrap_or(text.len()))?;
    let mut parts = version.splitn(3, '.');
    let number = |part: Option<&str>| {
        part.is_some_and(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let fits = number(parts.next())
        && number(parts.next())
        && parts
            .next()
            .is_some_and(|part| part.starts_with(|c: char| c.is_ascii_digit()));
    (fits && version.len() < 40).then_some(version)
}

/// Which of the family wrote `OpenSSL 3.0.19 27 Jan 2026` or `OpenSSL 1.1.1 (compatible; BoringSSL)`.
pub fn openssl(elf: &Elf<'_>) -> Result<Option<TlsLibrary>, BinaryError> {
    first(elf, "OpenSSL ", openssl_text)
}

fn openssl_text(text: &str) -> Option<TlsLibrary> {
    let text = text.strip_prefix("OpenSSL ")?;
    let version = version(text)?;
    let rest = text.get(version.len()..)?.trim_start();
    if rest.starts_with("(compatible; BoringSSL") || rest.starts_with("(compatible; AWS-LC") {
        return Some(TlsLibrary::BoringSsl);
    }
    // The date: day, month, year. Builds put words before it (`FIPS`, `(Library: …`).
    let year = rest.split(' ').any(|word| {
        let digits = word.get(..4).unwrap_or_default();
        digits.len() == 4 && digits.starts_with("20") && digits.bytes().all(|b| b.is_ascii_digit())
    });
    let version = Some(version.to_owned());
    year.then_some(TlsLibrary::OpenSsl { version })
}

/// `LibreSSL 4.1.0`.
pub fn libressl(elf: &Elf<'_>) -> Result<Option<String>, BinaryError> {
    first(elf, "LibreSSL ", |text| {
        version(text.strip_prefix("LibreSSL ")?).map(str::to_owned)
    })
}

/// GnuTLS keeps its version as a text of its own, `3.7.9`: taken only if there is no second one.
pub fn gnutls(elf: &Elf<'_>) -> Result<Option<String>, BinaryError> {
    let mut found: Option<String> = None;
    let mut several = false;
    for range in elf.constants() {
        let Some(range) = cut(elf, range) else {
            continue;
        };
        elf.bytes.search(range, b"\x003.", |_, tail| {
            let text = tail.get(1..).and_then(until_nul);
            let text = text.and_then(|text| std::str::from_utf8(text).ok());
            if let Some(text) = text.filter(|text| version(text) == Some(text)) {
                several |= found.as_deref().is_some_and(|found| found != text);
                found = Some(text.to_owned());
            }
            ControlFlow::Continue(())
        })?;
    }
    Ok(found.filter(|_| !several))
}

/// A copy of OpenSSL's or BoringSSL's TLS code whose symbols were removed: its error messages carry the
/// path of their source file.
pub fn openssl_without_symbols(elf: &Elf<'_>) -> Result<Option<TlsLibrary>, BinaryError> {
    let boring = first(elf, "ssl/ssl_lib.c", |text| {
        match text.strip_prefix("ssl/ssl_lib.c")? {
            "" => Some(false),
            "c" => Some(true),
            _ => None,
        }
    })?;
    match boring {
        None => Ok(None),
        Some(true) => Ok(Some(TlsLibrary::BoringSsl)),
        Some(false) => {
            let library = openssl(elf)?;
            Ok(Some(
                library.unwrap_or(TlsLibrary::OpenSsl { version: None }),
            ))
        }
    }
}

/// rustls, by the source paths in panics: `…/rustls-0.23.35/src/…`. Its version, if the path has one.
pub fn rustls(elf: &Elf<'_>) -> Result<Option<Option<String>>, BinaryError> {
    first(elf, "/rustls-", |text| {
        let text = text.strip_prefix("/rustls-")?;
        let version = version(text)?;
        let source = text.get(version.len()..)?.starts_with("/src/");
        source.then(|| Some(version.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openssl_texts() {
        let openssl = |version: &str| {
            Some(TlsLibrary::OpenSsl {
                version: Some(version.into()),
            })
        };
        for (text, expected) in [
            ("OpenSSL 3.0.19 27 Jan 2026", openssl("3.0.19")),
            ("OpenSSL 1.1.1w  11 Sep 2023", openssl("1.1.1w")),
            ("OpenSSL 1.1.1k  FIPS 25 Mar 2021", openssl("1.1.1k")),
            ("OpenSSL 3.0.16+quic 11 Feb 2025", openssl("3.0.16+quic")),
            ("OpenSSL 3.5.0-beta1 25 Mar 2025", openssl("3.5.0-beta1")),
            (
                "OpenSSL 1.1.1 (compatible; BoringSSL)",
                Some(TlsLibrary::BoringSsl),
            ),
            (
                "OpenSSL 1.1.1 (compatible; AWS-LC 1.44.0)",
                Some(TlsLibrary::BoringSsl),
            ),
            ("OpenSSL 3.0 or later is needed", None),
            ("OpenSSL 3.0.0 is needed", None),
            ("OpenSSL default", None),
            ("OpenSSL ", None),
        ] {
            assert_eq!(openssl_text(text), expected, "{text}");
        }
    }
}
