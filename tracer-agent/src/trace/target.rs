//! Request targets and authorities, cut into their parts without copying.
//!
//! In: a method and target as sent (RFC 9112, section 3.2), or the value of `Host`. Out: borrowed
//! parts. It decodes nothing and accepts anything: what has no known form is taken for a path.

/// Parts of a request target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// Scheme, of an absolute-form target only.
    pub scheme: Option<&'a str>,
    /// Authority, of absolute form and authority form; may hold user information.
    pub authority: Option<&'a str>,
    /// Path; `*` for the asterisk form, empty for the authority form.
    pub path: &'a str,
    /// What follows the first `?`, which is not part of it.
    pub query: Option<&'a str>,
}

impl<'a> Target<'a> {
    /// Cuts `target` up; the method decides between authority form (`CONNECT` only) and others.
    pub fn parse(method: &str, target: &'a str) -> Target<'a> {
        if target.starts_with('/') {
            return Target::of_path(None, None, target);
        }
        if method == "CONNECT" {
            return Target {
                scheme: None,
                authority: Some(target),
                path: "",
                query: None,
            };
        }
        match target.split_once("://") {
            Some((scheme, rest)) if is_scheme(scheme) => {
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                let (authority, path) = rest.split_at(end);
                Target::of_path(Some(scheme), Some(authority), path)
            }
            _ => Target::of_path(None, None, target),
        }
    }

    fn of_path(scheme: Option<&'a str>, authority: Option<&'a str>, rest: &'a str) -> Target<'a> {
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        // The empty path of an http URI is the same as "/" (RFC 9110, section 4.2.3).
        let path = if path.is_empty() { "/" } else { path };
        Target {
            scheme,
            authority,
            path,
            query,
        }
    }
}

/// Host and port of an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    /// Name or address, without the brackets of an IPv6 address.
    pub host: &'a str,
    /// Port, if given.
    pub port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Cuts `authority` up, without its user information; `None` if it is not one (empty host, a
    /// port that is no number, a list from repeated headers).
    pub fn parse(authority: &'a str) -> Option<Authority<'a>> {
        let text = authority
            .rsplit_once('@')
            .map_or(authority, |(_, text)| text);
        let (host, port) = match text.strip_prefix('[') {
            Some(text) => {
                let (host, rest) = text.split_once(']')?;
                let port = if rest.is_empty() {
                    ""
                } else {
                    rest.strip_prefix(':')?
                };
                (host, port)
            }
            None => text.split_once(':').unwrap_or((text, "")),
        };
        if host.is_empty() || host.contains([',', ' ', '\t', '/']) {
            return None;
        }
        let port = match port {
            "" => None,
            // `parse` alone would take a sign.
            port if port.bytes().all(|byte| byte.is_ascii_digit()) => Some(port.parse().ok()?),
            _ => return None,
        };
        Some(Authority { host, port })
    }
}

/// RFC 3986, section 3.1.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let check = |method, target, scheme, authority, path, query| {
            assert_eq!(
                Target::parse(method, target),
                Target {
                    scheme,
                    authority,
                    path,
                    query
                },
                "for {method} {target}"
            );
        };
        check("GET", "/", None, None, "/", None);
        check("GET", "/a/b?c=d?e", None, None, "/a/b", Some("c=d?e"));
        check("GET", "/a?", None, None, "/a", Some(""));
        check("GET", "//h/a", None, None, "//h/a", None);
        check("GET", "/http://h/a", None, None, "/http://h/a", None);
        check(
            "GET",
            "http://h:1/a?b",
            Some("http"),
            Some("h:1"),
            "/a",
            Some("b"),
        );
        check("GET", "http://h", Some("http"), Some("h"), "/", None);
        check(
            "GET",
            "https://h?q",
            Some("https"),
            Some("h"),
            "/",
            Some("q"),
        );
        check("GET", "://h/a", None, None, "://h/a", None);
        check("GET", "1a://h/a", None, None, "1a://h/a", None);
        check("OPTIONS", "*", None, None, "*", None);
        check("CONNECT", "h:443", None, Some("h:443"), "", None);
        check("GET", "h:443", None, None, "h:443", None);
        check("GET", "", None, None, "/", None);
        check("GET", "?x", None, None, "/", Some("x"));
    }

    #[test]
    fn authorities() {
        let check = |text, expected: Option<(&str, Option<u16>)>| {
            let expected = expected.map(|(host, port)| Authority { host, port });
            assert_eq!(Authority::parse(text), expected, "for {text:?}");
        };
        check("h", Some(("h", None)));
        check("h:", Some(("h", None)));
        check("h:8080", Some(("h", Some(8080))));
        check("u:p@h:8080", Some(("h", Some(8080))));
        check("[::1]", Some(("::1", None)));
        check("[::1]:8080", Some(("::1", Some(8080))));
        check("[::1]8080", None);
        check("[::1", None);
        check("::1", None);
        check("h:65536", None);
        check("h:+80", None);
        check("h:x", None);
        check("", None);
        check(":80", None);
        check("a, b", None);
    }
}
