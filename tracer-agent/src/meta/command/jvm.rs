//! Java: jars, main classes, and the containers that host applications.

use super::{Command, paths};

/// Options of the launcher whose value is the next word.
const VALUED: [&str; 15] = [
    "-cp",
    "-classpath",
    "--class-path",
    "-p",
    "--module-path",
    "--upgrade-module-path",
    "--add-modules",
    "--add-opens",
    "--add-exports",
    "--add-reads",
    "--patch-module",
    "--limit-modules",
    "--source",
    "--enable-native-access",
    "--describe-module",
];
/// Simple names of classes that every program has.
const GENERIC: [&str; 14] = [
    "App",
    "Application",
    "Bootstrap",
    "Boot",
    "Daemon",
    "Launcher",
    "Main",
    "MainKt",
    "ApplicationKt",
    "AppKt",
    "Program",
    "Runner",
    "Server",
    "Start",
];
/// Main classes of well-known programs that are not called like them.
const KNOWN: [(&str, &str); 8] = [
    ("kafka.Kafka", "kafka"),
    (
        "org.apache.zookeeper.server.quorum.QuorumPeerMain",
        "zookeeper",
    ),
    ("org.apache.cassandra.service.CassandraDaemon", "cassandra"),
    ("org.elasticsearch.", "elasticsearch"),
    ("org.opensearch.", "opensearch"),
    ("org.eclipse.jetty.start.Main", "jetty"),
    (
        "org.gradle.launcher.daemon.bootstrap.GradleDaemon",
        "gradle-daemon",
    ),
    ("org.logstash.Logstash", "logstash"),
];

/// `java [options] -jar file | class | -m module/class`.
pub(super) fn name(command: &Command<'_>, rest: &[&str]) -> Option<String> {
    if let Some(name) = declared(rest) {
        return Some(name.to_owned());
    }
    let mut class_path = None;
    let mut words = rest.iter();
    while let Some(word) = words.next() {
        match *word {
            "-jar" => return jar(rest, words.next()?),
            "-m" | "--module" => {
                let module = words.next()?;
                return match module.split_once('/') {
                    Some((_, main)) => class(command, rest, class_path, main),
                    None => Some((*module).to_owned()),
                };
            }
            "-cp" | "-classpath" | "--class-path" => class_path = words.next().copied(),
            option if VALUED.contains(&option) => {
                words.next();
            }
            option if option.starts_with('-') || option.starts_with('@') => {}
            source if source.ends_with(".java") => {
                return Some(paths::base(source).trim_end_matches(".java").to_owned());
            }
            main => return class(command, rest, class_path, main),
        }
    }
    None
}

/// A name given to a framework or an SDK on the command line.
fn declared<'a>(rest: &[&'a str]) -> Option<&'a str> {
    const PREFIXES: [&str; 4] = [
        "-Dotel.service.name=",
        "-Dspring.application.name=",
        "--spring.application.name=",
        "-Dquarkus.application.name=",
    ];
    PREFIXES
        .iter()
        .find_map(|prefix| rest.iter().find_map(|word| word.strip_prefix(prefix)))
        .filter(|name| !name.is_empty())
}

fn property<'a>(rest: &[&'a str], name: &str) -> Option<&'a str> {
    rest.iter().find_map(|word| {
        word.strip_prefix("-D")?
            .strip_prefix(name)?
            .strip_prefix('=')
    })
}

fn jar(rest: &[&str], path: &str) -> Option<String> {
    let base = paths::base(path);
    match base {
        "jboss-modules.jar" => {
            return directory(property(rest, "jboss.home.dir")).or_else(|| Some("wildfly".into()));
        }
        "start.jar" => {
            return directory(property(rest, "jetty.base")).or_else(|| Some("jetty".into()));
        }
        _ => {}
    }
    let stem = [".jar", ".war", ".ear"]
        .iter()
        .find_map(|end| base.strip_suffix(end))
        .unwrap_or(base);
    Some(without_version(stem).to_owned())
}

fn class(
    command: &Command<'_>,
    rest: &[&str],
    class_path: Option<&str>,
    main: &str,
) -> Option<String> {
    if main.starts_with("org.apache.catalina.startup.") {
        let base = property(rest, "catalina.base").or_else(|| property(rest, "catalina.home"));
        return directory(base).or_else(|| Some("tomcat".into()));
    }
    // Spring Boot's own launchers run what is on the class path, or the unpacked directory.
    if main.starts_with("org.springframework.boot.loader.") {
        let packed = class_path.filter(|path| path.ends_with(".jar") && !path.contains(':'));
        return packed
            .and_then(|path| jar(rest, path))
            .or_else(|| paths::cwd_project(command))
            .or_else(|| simple(main));
    }
    if main == "org.codehaus.plexus.classworlds.launcher.Launcher" {
        return directory(property(rest, "maven.multiModuleProjectDirectory"))
            .or_else(|| Some("maven".into()));
    }
    if let Some((_, name)) = KNOWN.iter().find(|(known, _)| main.starts_with(known)) {
        return Some((*name).to_owned());
    }
    simple(main)
}

/// `com.acme.OrderService` → `OrderService`; `com.acme.shop.Main` → `shop`; `Main` → `Main`.
fn simple(main: &str) -> Option<String> {
    let mut parts = main.rsplit(['.', '$']);
    let class = parts.next().filter(|class| !class.is_empty())?;
    let package =
        parts.find(|part| !matches!(*part, "main" | "app" | "server" | "bootstrap" | "cli" | ""));
    match package {
        Some(package) if GENERIC.contains(&class) => Some(package.to_owned()),
        _ => Some(class.to_owned()),
    }
}

fn directory(path: Option<&str>) -> Option<String> {
    let base = paths::base(path?);
    (!base.is_empty() && base != "current").then(|| without_version(base).to_owned())
}

/// Cuts `-1.2.3`, `-1.2.3-SNAPSHOT`, `-2.0.0.RELEASE`, `_1.4`, and what packagers append.
fn without_version(stem: &str) -> &str {
    const PACKAGING: [&str; 7] = [
        "-jar-with-dependencies",
        "-SNAPSHOT",
        "-all",
        "-exec",
        "-fat",
        "-shaded",
        "-runner",
    ];
    let mut name = stem;
    while let Some(shorter) = PACKAGING
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))
    {
        name = shorter;
    }
    let version = name
        .char_indices()
        .zip(name.chars().skip(1))
        .find(|((_, c), next)| matches!(c, '-' | '_') && next.is_ascii_digit());
    match version {
        Some(((at, _), _)) if at > 0 && name.get(at..).is_some_and(is_version) => {
            name.get(..at).unwrap_or(name)
        }
        _ if name.is_empty() => stem,
        _ => name,
    }
}

/// `-1.2.3...`: a number with a dot, or only digits (`shop-7.jar`), not `-2fa-service`.
fn is_version(text: &str) -> bool {
    let text = text.trim_start_matches(['-', '_']);
    let digits = text.trim_start_matches(|c: char| c.is_ascii_digit());
    digits.is_empty() || digits.starts_with(['.', '-', '_', '+'])
}
