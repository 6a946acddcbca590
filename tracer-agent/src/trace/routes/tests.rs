//! Tables for patterns, segments and the learner; its bounds as a property.

use super::classify::placeholder;
use super::*;
use crate::trace::sampling::tests::{Made, span};

#[test]
fn patterns_match_whole_paths() {
    let check = |pattern: &str, path: &str, expected: bool| {
        let pattern = Pattern::parse(pattern).expect(pattern);
        assert_eq!(pattern.matches(path), expected, "{pattern:?} on {path}");
    };
    check("/", "/", true);
    check("/", "/a", false);
    check("/users/{id}", "/users/7", true);
    check("/users/{id}", "/users/7/", true);
    check("/users/{id}", "/users", false);
    check("/users/{id}", "/users/", false);
    check("/users/{id}", "/users/7/orders", false);
    check("/users/*/orders", "/users/7/orders", true);
    check("/users//orders", "/users//orders", true);
    check("/users/*/orders", "/users//orders", false);
    check("/static/*.css", "/static/a.b.css", true);
    check("/static/*.css", "/static/a.js", false);
    check("/files/**", "/files", true);
    check("/files/**", "/files/a/b/c", true);
    check("/files/**", "/file", false);
    check("/**", "/", true);
    check("/a", "a", true);
}

#[test]
fn patterns_that_are_none() {
    for (text, expected) in [
        ("users", PatternError::NoSlash),
        ("", PatternError::NoSlash),
        ("/a?b", PatternError::Query),
        ("/a#b", PatternError::Query),
        ("/**/a", PatternError::Rest),
        ("/a**", PatternError::Rest),
        ("/a{b}", PatternError::Braces),
        ("/{}", PatternError::Braces),
        ("/{a}{b}", PatternError::Braces),
    ] {
        assert_eq!(Pattern::parse(text), Err(expected), "{text}");
    }
    let long = format!("/{}", "a".repeat(256));
    assert_eq!(Pattern::parse(&long), Err(PatternError::Long));
}

#[test]
fn segments_that_are_values() {
    let check = |segment: &str, expected: Option<&str>| {
        assert_eq!(placeholder(segment), expected, "{segment:?}");
    };
    for word in [
        "users",
        "v1",
        "v2beta1",
        "oauth2",
        "index.html",
        "mp4",
        "facade",
        "deadbeef",
        "a",
        "",
        "sign-in",
        "_health",
        "s3",
        "x~y",
    ] {
        check(word, None);
    }
    for id in [
        "0",
        "7",
        "1234567890123",
        "user-17",
        "order_3",
        "order10023",
        "A1B2C3D4x",
    ] {
        check(id, Some("{id}"));
    }
    check("3fa85f64-5717-4562-b3fc-2c963f66afa6", Some("{uuid}"));
    check("2024-05-17", Some("{date}"));
    check("2024-05", Some("{date}"));
    check("2024-05-17T10:20:30.5Z", Some("{date}"));
    check("507f1f77bcf86cd799439011", Some("{hash}"));
    check("d41d8cd98f00b204e9800998ecf8427e", Some("{hash}"));
    check("cus9s6XKzkNRiz8i3abc", Some("{token}"));
    check("eyJhbGciOiJIUzI1NiJ9.eyJzdWIi", Some("{token}"));
    check("how-to-build-a-house-in-the-desert", Some("{value}"));
    check("bob@example.org", Some("{value}"));
    check("a%20b", Some("{value}"));
    check("größe", Some("{value}"));
}

fn learn(learner: &mut Learner, path: &str) -> Option<String> {
    match learner.template(path, true, 200) {
        Outcome::Template(text) => Some(text.to_string()),
        Outcome::Unknown | Outcome::Full => None,
    }
}

#[test]
fn the_learner_folds_values_and_then_words() {
    let mut learner = Learner::default();
    for (path, expected) in [
        ("/", "/"),
        ("/users/17", "/users/{id}"),
        ("/users/18/", "/users/{id}"),
        ("/users/me", "/users/me"),
        ("/a/2024-01-01/b", "/a/{date}/b"),
    ] {
        assert_eq!(learn(&mut learner, path).as_deref(), Some(expected));
    }
    let names = |n: usize| format!("/names/n{}", char::from(b'a' + n as u8));
    for n in 0..24 {
        assert_eq!(learn(&mut learner, &names(n)), Some(names(n)));
    }
    let folded = Some("/names/{value}".to_owned());
    assert_eq!(learn(&mut learner, "/names/more"), folded);
    assert_eq!(learn(&mut learner, "/names/na"), folded);
    assert_eq!(learn(&mut learner, "/names/5"), Some("/names/{id}".into()));
    let unknown = learner.template("/never/seen", false, 200);
    assert_eq!(unknown, Outcome::Unknown);
    let deep = "/a".repeat(17);
    assert_eq!(learner.template(&deep, true, 200), Outcome::Full);
}

#[test]
fn spans_are_named_and_only_when_asked() {
    let pattern = |service: Option<&str>, text: &str| ServicePattern {
        service: service.map(Into::into),
        pattern: Pattern::parse(text).expect(text),
    };
    let patterns = vec![
        pattern(Some("sh?p*"), "/users/{user}"),
        pattern(None, "/any/*"),
    ];
    let both = Settings {
        patterns: patterns.clone(),
        learn: true,
        ..Settings::default()
    };
    let configured = Settings {
        patterns,
        ..Settings::default()
    };
    let check = |settings: &Settings, service: &str, path: &str, status: u16, name: &str| {
        let mut router = Router::new(settings.clone());
        let mut span = span(Made {
            service,
            target: path,
            status,
            ..Made::default()
        });
        router.route(&mut span);
        assert_eq!(span.name(), name, "{service} {path} {status}");
        let mut own = Vec::new();
        span.for_each_attribute(&mut |key, value| {
            assert_ne!(key, "http.route");
            if key.starts_with("tracer.url.template") {
                own.push((key, format!("{value:?}")));
            }
        });
        assert_eq!(own.len(), usize::from(name != "GET"), "{own:?}");
    };
    let off = Settings::default();
    check(&off, "shop", "/users/7", 200, "GET");
    check(
        &configured,
        "shop",
        "/users/7?a=/b",
        200,
        "GET /users/{user}",
    );
    check(&configured, "cart", "/users/7", 200, "GET");
    check(&configured, "cart", "/any/7", 404, "GET /any/*");
    check(&both, "cart", "/users/7", 200, "GET /users/{id}");
    check(&both, "cart", "http://h/users/7", 200, "GET /users/{id}");
    check(&both, "cart", "/users/7", 404, "GET");
    check(&both, "cart", "*", 200, "GET");
    check(&both, "cart", "", 200, "GET");
}

proptest::proptest! {
    /// Whatever is asked for: no more templates than allowed, no more nodes than the bound.
    #[test]
    fn names_and_memory_are_bounded(paths in proptest::collection::vec("(/[a-z0-9%]{0,3}){0,5}", 1..400)) {
        let mut learner = Learner::default();
        let mut seen = std::collections::HashSet::new();
        for path in &paths {
            if let Outcome::Template(text) = learner.template(path, true, 10) {
                seen.insert(text);
            }
        }
        proptest::prop_assert!(seen.len() <= 10);
        proptest::prop_assert!(learner.nodes() <= 4096);
        proptest::prop_assert_eq!(learner.nodes(), learner.size());
    }
}
