//! Tables of rules and what they decide.

use super::*;

fn facts(pid: u32, exe: &str, line: &str, container: bool) -> ProcessFacts {
    ProcessFacts {
        pid,
        exe: Some(exe.into()),
        args: line.split(' ').map(Into::into).collect(),
        container_id: container.then(|| "c".into()),
        ..ProcessFacts::default()
    }
}

fn policy(yaml: &str) -> Policy {
    Policy::new(serde_saphyr::from_str(yaml).expect("valid rules"), 99)
}

const NOT_INCLUDED: Decision = Decision::Ignore(Reason::NotIncluded);
const EXCLUDED: Decision = Decision::Ignore(Reason::Excluded);

#[test]
fn processes() {
    let shop = facts(7, "/usr/bin/python3", "python3 shop.py", true);
    for (yaml, expected) in [
        ("{}", Decision::Trace),
        ("include: [{exe: 'python*'}]", Decision::Trace),
        ("include: [{exe: java}]", NOT_INCLUDED),
        (
            "include: [{exe: java}, {cmdline: shop.py}]",
            Decision::Trace,
        ),
        (
            "include: [{exe: 'python*', cmdline: cart.py}]",
            NOT_INCLUDED,
        ),
        ("include: [{pid: 7}]", Decision::Trace),
        ("include: [{pid: 8}]", NOT_INCLUDED),
        ("include: [{containers_only: true}]", Decision::Trace),
        ("include: [{ports: [80]}]", Decision::Trace),
        ("exclude: [{exe: '/usr/bin/*'}]", EXCLUDED),
        (
            "exclude: [{exe: '/usr/bin/*', ports: [80]}]",
            Decision::Trace,
        ),
        (
            "include: [{pid: 7}]\nexclude: [{cmdline: '*shop*'}]",
            EXCLUDED,
        ),
        (
            "exclude: [{containers_only: true, exe: java}]",
            Decision::Trace,
        ),
    ] {
        assert_eq!(policy(yaml).decide(&shop), expected, "{yaml}");
    }
    let bare = facts(7, "/usr/bin/python3", "python3 shop.py", false);
    assert_eq!(
        policy("include: [{containers_only: true}]").decide(&bare),
        NOT_INCLUDED
    );
    let agent = facts(99, "/usr/bin/tracer-agent", "tracer-agent run", false);
    for yaml in [
        "{}",
        "include: [{pid: 99}]",
        "include: [{pid: 1}]",
        "exclude: [{pid: 99}]",
    ] {
        assert_eq!(
            policy(yaml).decide(&agent),
            Decision::Ignore(Reason::Agent),
            "{yaml}"
        );
    }
}

#[test]
fn connections() {
    let shop = facts(7, "/usr/bin/python3", "python3 shop.py", true);
    let (server, client) = (Some(Role::Server), Some(Role::Client));
    for (yaml, local, remote, role, expected) in [
        ("{}", 80, 5000, server, Decision::Trace),
        (
            "include: [{ports: [80, '8000-8099']}]",
            8050,
            5000,
            server,
            Decision::Trace,
        ),
        ("include: [{ports: [80]}]", 5000, 80, server, NOT_INCLUDED),
        (
            "include: [{ports: [80]}]",
            5000,
            80,
            client,
            Decision::Trace,
        ),
        ("include: [{ports: [80]}]", 5000, 80, None, Decision::Trace),
        ("include: [{ports: [80]}]", 5000, 81, None, NOT_INCLUDED),
        (
            "include: [{ports: [80]}, {pid: 7}]",
            5000,
            81,
            None,
            Decision::Trace,
        ),
        (
            "include: [{ports: [80], exe: java}]",
            80,
            1,
            server,
            NOT_INCLUDED,
        ),
        (
            "exclude: [{ports: ['4317-4318']}]",
            5000,
            4318,
            client,
            EXCLUDED,
        ),
        (
            "exclude: [{ports: [4318], exe: java}]",
            5000,
            4318,
            client,
            Decision::Trace,
        ),
        (
            "include: [{ports: [80]}]\nexclude: [{ports: [80], cmdline: shop}]",
            80,
            1,
            server,
            EXCLUDED,
        ),
    ] {
        assert_eq!(
            policy(yaml).decide_ports(&shop, local, remote, role),
            expected,
            "{yaml}"
        );
    }
    assert_eq!(policy("include: [{pid: 7}]").ports(&shop), None);
}

#[test]
fn refused() {
    for (yaml, word) in [
        ("include: [{}]", "at least one"),
        ("include: [{containers_only: false}]", "at least one"),
        ("include: [{prots: [80]}]", "prots"),
        ("includes: []", "includes"),
        ("include: [{ports: ['90-80']}]", "90-80"),
        ("include: [{ports: [70000]}]", "port"),
        ("include: [{ports: ['a']}]", "neither"),
    ] {
        let error = serde_saphyr::from_str::<PolicyConfig>(yaml)
            .expect_err(yaml)
            .to_string();
        assert!(error.contains(word), "{yaml}: {error}");
    }
}
