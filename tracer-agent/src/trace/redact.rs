//! Takes secrets out of request targets and authorities, before a span holds them.
//!
//! In: a target or an authority as sent. Out: the same with its user information and the values of
//! sensitive query keys replaced, or `None` when there is nothing to hide (the usual case, without
//! an allocation). It cannot see secrets in path segments.

/// Which query keys are sensitive. User information is always taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redaction {
    keys: Box<[Box<str>]>,
}

/// What stands in the place of a value.
const REDACTED: &str = "REDACTED";

/// What stands in the place of user information.
const REDACTED_USERINFO: &str = "REDACTED:REDACTED@";

/// The keys that the semantic conventions list for `url.full` and `url.query`, and the ones that
/// the clouds' signed URLs need beside them.
const DEFAULT_KEYS: [&str; 7] = [
    "X-Amz-Signature",
    "X-Amz-Credential",
    "X-Amz-Security-Token",
    "AWSAccessKeyId",
    "Signature",
    "sig",
    "X-Goog-Signature",
];

impl Default for Redaction {
    fn default() -> Self {
        Redaction::new(DEFAULT_KEYS)
    }
}

impl Redaction {
    /// Hides the values of these keys (compared case-sensitively, as the conventions say, and
    /// after percent-decoding) in place of the default ones.
    pub fn new<K: Into<Box<str>>>(keys: impl IntoIterator<Item = K>) -> Redaction {
        Redaction {
            keys: keys.into_iter().map(Into::into).collect(),
        }
    }

    /// The request target without secrets; `None` if it holds none.
    pub fn target(&self, target: &str) -> Option<String> {
        let query_start = target.find('?').map_or(target.len(), |at| at + 1);
        let (head, query) = target.split_at(query_start);
        // Only an origin-form target is sure to have no authority (RFC 9112, section 3.2).
        let redacted_head = if head.starts_with('/') {
            None
        } else {
            let (scheme, authority) = split_scheme(head);
            self.authority(authority)
                .map(|authority| [scheme, &authority].concat())
        };
        let redacted_query = self.query(query);
        if redacted_head.is_none() && redacted_query.is_none() {
            return None;
        }
        Some(
            [
                redacted_head.as_deref().unwrap_or(head),
                redacted_query.as_deref().unwrap_or(query),
            ]
            .concat(),
        )
    }

    /// The authority (`Host`; what follows it is kept) without user information; `None` if it
    /// holds none.
    pub fn authority(&self, authority: &str) -> Option<String> {
        let end = authority.find(['/', '?', '#']).unwrap_or(authority.len());
        let at = authority[..end].rfind('@')?;
        Some([REDACTED_USERINFO, &authority[at + 1..]].concat())
    }

    /// The query with the values of sensitive keys replaced; `None` if it has no such key.
    fn query(&self, query: &str) -> Option<String> {
        let mut redacted: Option<String> = None;
        let mut kept_from = 0;
        let mut pair_start = 0;
        for pair in query.split('&') {
            if let Some(value_start) = self.sensitive_value(pair) {
                let text = redacted.get_or_insert_with(|| String::with_capacity(query.len() + 8));
                text.push_str(&query[kept_from..pair_start + value_start]);
                text.push_str(REDACTED);
                kept_from = pair_start + pair.len();
            }
            pair_start += pair.len() + 1;
        }
        redacted.map(|text| text + &query[kept_from..])
    }

    /// Where the sensitive value of `pair` begins. Some servers take `;` for a separator too: the
    /// key is looked for after it as well, but the value reaches to the end of the pair, because a
    /// server that does not would take all of it for the value.
    fn sensitive_value(&self, pair: &str) -> Option<usize> {
        let mut start = 0;
        for piece in pair.split(';') {
            if let Some(key_len) = piece.find('=')
                && self.is_sensitive(&piece.as_bytes()[..key_len])
            {
                return Some(start + key_len + 1);
            }
            start += piece.len() + 1;
        }
        None
    }

    fn is_sensitive(&self, key: &[u8]) -> bool {
        let encoded = key.iter().any(|byte| matches!(byte, b'%' | b'+'));
        self.keys.iter().any(|sensitive| {
            sensitive.as_bytes() == key || (encoded && decoded(key).eq(sensitive.bytes()))
        })
    }
}

/// Scheme with its `://`, which may be missing, and what follows it.
fn split_scheme(text: &str) -> (&str, &str) {
    match text.find("://") {
        // Anything else before it is no scheme and may itself be user information.
        Some(at) if !text[..at].contains(['@', '/', '#', ':']) => text.split_at(at + 3),
        _ => ("", text),
    }
}

/// Percent-decoded bytes of a query key (`+` is a space in forms); broken escapes stay as they are.
fn decoded(key: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let mut rest = key;
    std::iter::from_fn(move || {
        let (&first, after) = rest.split_first()?;
        let (byte, after) = match (first, after) {
            (b'%', [high, low, after @ ..]) => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, after),
                _ => (first, &rest[1..]),
            },
            (b'+', after) => (b' ', after),
            (_, after) => (first, after),
        };
        rest = after;
        Some(byte)
    })
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte)
        .to_digit(16)
        .and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(target: &str, expected: &str) {
        let redacted = Redaction::default().target(target);
        assert_eq!(
            redacted.as_deref().unwrap_or(target),
            expected,
            "for {target:?}"
        );
        assert_eq!(redacted.is_some(), target != expected, "for {target:?}");
    }

    #[test]
    fn targets() {
        check("/", "/");
        check("*", "*");
        check("", "");
        check("/a?b=c&d=e", "/a?b=c&d=e");
        check("/a?sig=secret", "/a?sig=REDACTED");
        check("/a?sig=", "/a?sig=REDACTED");
        check("/a?sig", "/a?sig");
        check(
            "/a?x=1&sig=s1&y=2&Signature=s2",
            "/a?x=1&sig=REDACTED&y=2&Signature=REDACTED",
        );
        check("/a?sig=one&sig=two", "/a?sig=REDACTED&sig=REDACTED");
        check("/a?sig=a=b==", "/a?sig=REDACTED");
        check("/a?%73ig=secret", "/a?%73ig=REDACTED");
        check(
            "/a?X%2DAmz%2dSignature=s",
            "/a?X%2DAmz%2dSignature=REDACTED",
        );
        check(
            "/a?X-Amz-Credential=a%2Fb&X-Amz-Security-Token=t",
            "/a?X-Amz-Credential=REDACTED&X-Amz-Security-Token=REDACTED",
        );
        check(
            "/a?AWSAccessKeyId=k&X-Goog-Signature=s",
            "/a?AWSAccessKeyId=REDACTED&X-Goog-Signature=REDACTED",
        );
        check("/a?%73i%=secret&%zz=1&%", "/a?%73i%=secret&%zz=1&%");
        check("/a?x=1;sig=secret;z=2&w=3", "/a?x=1;sig=REDACTED&w=3");
        check(
            "/a?SIG=case+matters&signature=x&xsig=1&sigx=2",
            "/a?SIG=case+matters&signature=x&xsig=1&sigx=2",
        );
        check("/sig=path@host", "/sig=path@host");
        check(
            "http://u:p@h/x?sig=1",
            "http://REDACTED:REDACTED@h/x?sig=REDACTED",
        );
        check("http://u@h:80", "http://REDACTED:REDACTED@h:80");
        check("http://a@b:c@h?x=@", "http://REDACTED:REDACTED@h?x=@");
        check("http://h/u:p@x", "http://h/u:p@x");
        check("u:p@h:443", "REDACTED:REDACTED@h:443");
        check("?u@h&sig=1", "?u@h&sig=REDACTED");
        check("?://@", "?://@");
        check("u:p@h://a@b", "REDACTED:REDACTED@h://a@b");
    }

    #[test]
    fn the_list_is_configurable() {
        let redaction = Redaction::new(["token", "api key"]);
        let redacted = redaction.target("/?token=1&sig=2&api+key=3&api%20key=4");
        assert_eq!(
            redacted.as_deref(),
            Some("/?token=REDACTED&sig=2&api+key=REDACTED&api%20key=REDACTED")
        );
        assert_eq!(Redaction::new([""; 0]).target("/?sig=2"), None);
    }

    #[test]
    fn authorities() {
        let redaction = Redaction::default();
        assert_eq!(redaction.authority("h:80"), None);
        assert_eq!(
            redaction.authority("u:p@h:80").as_deref(),
            Some("REDACTED:REDACTED@h:80")
        );
    }

    proptest! {
        #[test]
        fn any_text_is_taken_and_a_second_pass_changes_nothing(target in "[/?&;=%@:#+a-zé]{0,40}|\\PC*") {
            let redaction = Redaction::new(["a", "é", "sig"]);
            if let Some(once) = redaction.target(&target) {
                prop_assert_eq!(redaction.target(&once).unwrap_or(once.clone()), once);
            }
        }

        #[test]
        fn a_sensitive_value_never_survives(before in "[a-z=&;%?]{0,20}", value in "[A-Z]{12}", after in "[a-z=]{0,9}") {
            let target = format!("/p?{before}&sig={value}&{after}");
            prop_assert!(!Redaction::default().target(&target).unwrap_or(target).contains(&value));
        }
    }
}
