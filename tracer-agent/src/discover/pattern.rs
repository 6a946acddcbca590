//! Globs: `*` is any text, `?` any one character; everything else is itself.

/// A glob on a program's path, or on its base name when the pattern has no `/`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(transparent)]
pub struct Glob(Box<str>);

/// A glob on the arguments joined by spaces, or a part of them when it has neither `*` nor `?`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(transparent)]
pub struct Cmdline(Box<str>);

impl Glob {
    /// From its text.
    pub fn new(pattern: &str) -> Self {
        Self(pattern.into())
    }

    /// Whether the program at `path` is meant.
    pub fn matches_path(&self, path: &str) -> bool {
        if self.0.contains('/') {
            return matches(&self.0, path);
        }
        matches(&self.0, path.rsplit('/').next().unwrap_or(path))
    }
}

impl Cmdline {
    /// From its text.
    pub fn new(pattern: &str) -> Self {
        Self(pattern.into())
    }

    /// Whether these arguments are meant.
    pub fn matches(&self, args: &[Box<str>]) -> bool {
        let line = args.join(" ");
        if self.0.contains(['*', '?']) {
            matches(&self.0, &line)
        } else {
            line.contains(&*self.0)
        }
    }
}

/// Whether the whole of `text` is what `pattern` says.
///
/// Time is bounded by the product of both lengths: only the last `*` is ever gone back to.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern.chars(), text.chars());
    let mut retry: Option<(std::str::Chars<'_>, std::str::Chars<'_>)> = None;
    loop {
        match pattern.next() {
            Some('*') => {
                retry = Some((pattern.clone(), text.clone()));
                continue;
            }
            Some(wanted)
                if text
                    .next()
                    .is_some_and(|found| wanted == '?' || wanted == found) =>
            {
                continue;
            }
            None if text.as_str().is_empty() => return true,
            _ => {}
        }
        let Some((after_star, from)) = &mut retry else {
            return false;
        };
        if from.next().is_none() {
            return false;
        }
        pattern = after_star.clone();
        text = from.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("a", "a", true),
            ("a", "ab", false),
            ("ab", "a", false),
            ("*", "", true),
            ("*", "any thing/at all", true),
            ("a*", "abc", true),
            ("*c", "abcbc", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXcYb", false),
            ("?", "é", true),
            ("?", "", false),
            ("a?c", "abc", true),
            ("*?", "", false),
            ("**", "x", true),
            ("python*", "python3.11", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} on {text}");
        }
        let started = std::time::Instant::now();
        assert!(!matches(&"*a".repeat(200), &"a".repeat(199)));
        assert!(!matches(
            &format!("{}b", "a*".repeat(200)),
            &"a".repeat(5000)
        ));
        assert!(started.elapsed().as_secs() < 2);
    }

    #[test]
    fn paths_and_lines() {
        assert!(Glob::new("python*").matches_path("/usr/bin/python3"));
        assert!(!Glob::new("usr").matches_path("/usr/bin/python3"));
        assert!(Glob::new("/usr/*/python3").matches_path("/usr/local/bin/python3"));
        let args = ["java".into(), "-jar".into(), "shop.jar".into()];
        for (pattern, expected) in [
            ("shop.jar", true),
            ("-jar shop", true),
            ("cart", false),
            ("java*.jar", true),
            ("*cart*", false),
        ] {
            assert_eq!(Cmdline::new(pattern).matches(&args), expected, "{pattern}");
        }
    }

    proptest::proptest! {
        #[test]
        fn like_the_definition(pattern in "[ab*?]{0,6}", text in "[ab]{0,8}") {
            fn slow(pattern: &[u8], text: &[u8]) -> bool {
                match (pattern, text) {
                    ([], []) => true,
                    ([b'*', rest @ ..], _) => slow(rest, text) || (!text.is_empty() && slow(pattern, &text[1..])),
                    ([p, pattern @ ..], [t, text @ ..]) => (*p == b'?' || p == t) && slow(pattern, text),
                    _ => false,
                }
            }
            proptest::prop_assert_eq!(matches(&pattern, &text), slow(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
