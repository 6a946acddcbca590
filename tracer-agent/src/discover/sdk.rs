//! Signs of an OpenTelemetry SDK in a process: what it was started with, and which files it has.
//!
//! In: a process. Out: a [`Sign`]. Signs decide nothing by themselves; they make spans wait for the
//! first export. One look per process, when its first exchange begins.
//!
//! It cannot see an SDK that is compiled into a program, or one that a script loads by its own code from
//! a place that is not looked at; those show by the contexts they write.

use std::fs;
use std::path::{Path, PathBuf};

use crate::meta::ProcFs;
use crate::trace::sdk::Sign;

/// What the names of SDKs' files have in common.
const NAME: &str = "opentelemetry";
/// Process context that an SDK publishes (OTEP 4719).
const PROCESS_CONTEXT: &str = "OTEL_CTX";
/// Descriptors of a process that are looked at; a Java program has hundreds of archives open.
const MOST_DESCRIPTORS: usize = 4096;
/// Directories above a script in which its packages may be.
const MOST_ABOVE: usize = 6;

/// Looks at a process. What is gone gives no sign. `own` says what of the environment is this agent's
/// and was inherited from it.
pub fn sign(proc: &ProcFs, pid: u32, own: impl Fn(&str, &str) -> bool) -> Sign {
    let environment_bytes = proc.environment(pid).unwrap_or_default();
    let environment = from_environment(&environment_bytes, own);
    if environment.is_none() {
        return Sign::None;
    }
    let arguments = arguments(&proc.arguments(pid).unwrap_or_default());
    let Some(from_arguments) = from_arguments(&arguments) else {
        return Sign::None;
    };
    match environment.unwrap_or_default().max(from_arguments) {
        Sign::None => {}
        Sign::Activated if exports_over_tls(&environment_bytes, &arguments) => return Sign::Hidden,
        sign => return sign,
    }
    let has =
        has_mapping(proc, pid) || has_archive(proc, pid) || has_package(proc, pid, &arguments);
    if has { Sign::Maybe } else { Sign::None }
}

fn arguments(bytes: &[u8]) -> Vec<String> {
    let words = bytes.split(|byte| *byte == 0).take(256);
    words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

/// `None` if it says that there is to be none.
fn from_environment(bytes: &[u8], own: impl Fn(&str, &str) -> bool) -> Option<Sign> {
    let mut sign = Sign::None;
    for pair in bytes.split(|byte| *byte == 0) {
        let Ok(pair) = std::str::from_utf8(pair) else {
            continue;
        };
        let Some((name, value)) = pair.split_once('=') else {
            continue;
        };
        let value = value.trim();
        let seen = match name {
            "OTEL_SDK_DISABLED" if value.eq_ignore_ascii_case("true") => return None,
            "OTEL_TRACES_EXPORTER" if value == "none" => return None,
            // These load the SDK itself.
            "JAVA_TOOL_OPTIONS"
            | "_JAVA_OPTIONS"
            | "JDK_JAVA_OPTIONS"
            | "NODE_OPTIONS"
            | "PYTHONPATH"
            | "RUBYOPT"
            | "CORECLR_PROFILER_PATH"
            | "DOTNET_STARTUP_HOOKS"
                if value.to_ascii_lowercase().contains(NAME) =>
            {
                Sign::Activated
            }
            "OTEL_TRACES_EXPORTER"
            | "OTEL_EXPORTER_OTLP_ENDPOINT"
            | "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
                if !value.is_empty() && !own(name, value) =>
            {
                Sign::Maybe
            }
            _ => Sign::None,
        };
        sign = sign.max(seen);
    }
    Some(sign)
}

/// `-javaagent:…/opentelemetry-javaagent.jar`, `--require @opentelemetry/…`, `opentelemetry-instrument`.
///
/// `None` if they say that there is to be none.
fn from_arguments(arguments: &[String]) -> Option<Sign> {
    const OFF: [&str; 3] = [
        "-Dotel.traces.exporter=none",
        "-Dotel.javaagent.enabled=false",
        "-Dotel.sdk.disabled=true",
    ];
    if arguments.iter().any(|word| OFF.contains(&&**word)) {
        return None;
    }
    let names = |word: &String| word.to_ascii_lowercase().contains(NAME);
    let loads = |word: &String| word.starts_with('-') || word.ends_with("opentelemetry-instrument");
    let required = arguments
        .windows(2)
        .any(|pair| matches!(&*pair[0], "-r" | "--require" | "--import") && names(&pair[1]));
    let activated = required || arguments.iter().any(|word| names(word) && loads(word));
    Some(match activated {
        true => Sign::Activated,
        false if arguments.iter().any(names) => Sign::Maybe,
        false => Sign::None,
    })
}

/// Whether its exporter was given an endpoint with TLS.
fn exports_over_tls(environment: &[u8], arguments: &[String]) -> bool {
    let variables = environment
        .split(|byte| *byte == 0)
        .filter_map(|pair| std::str::from_utf8(pair).ok())
        .filter(|pair| pair.starts_with("OTEL_EXPORTER_OTLP_"));
    let properties = arguments
        .iter()
        .map(String::as_str)
        .filter(|word| word.starts_with("-Dotel.exporter.otlp."));
    let mut both = variables.chain(properties);
    both.any(|pair| pair.to_ascii_lowercase().contains("endpoint=https://"))
}

/// Libraries (.NET's assemblies too) and the published process context.
fn has_mapping(proc: &ProcFs, pid: u32) -> bool {
    let maps = proc.maps(pid).unwrap_or_default();
    maps.lines().any(|line| {
        // Address, permissions, offset, device, inode; the rest is the name.
        let name = line.splitn(6, ' ').last().unwrap_or_default();
        name.contains(PROCESS_CONTEXT)
            || name.contains('/') && name.to_ascii_lowercase().contains(NAME)
    })
}

/// `/proc/PID`.
fn directory(proc: &ProcFs, pid: u32) -> PathBuf {
    let mut path = proc.exe_path(pid);
    path.pop();
    path
}

/// Archives that a Java program keeps open.
fn has_archive(proc: &ProcFs, pid: u32) -> bool {
    let exe = proc.exe(pid).unwrap_or_default();
    if !exe.ends_with("/java") {
        return false;
    }
    let Ok(descriptors) = fs::read_dir(directory(proc, pid).join("fd")) else {
        return false;
    };
    descriptors.flatten().take(MOST_DESCRIPTORS).any(|entry| {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        name.ends_with(".jar") && name.contains(NAME)
    })
}

/// The SDK's package where the program's interpreter finds it.
fn has_package(proc: &ProcFs, pid: u32, arguments: &[String]) -> bool {
    let exe = proc.exe(pid).unwrap_or_default();
    let name = exe.rsplit('/').next().unwrap_or_default();
    let root = directory(proc, pid).join("root");
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    if name.starts_with("node") {
        let modules = "node_modules/@opentelemetry/sdk-trace-base";
        return program_directories(proc, pid, arguments)
            .iter()
            .any(|directory| inside(&directory.join(modules)).is_dir());
    }
    if name.starts_with("python") {
        // The interpreter's own name says its version, its path the prefix; in a virtual environment the
        // path it was started by does.
        let started = arguments.first().map(PathBuf::from).unwrap_or_default();
        return [Path::new(&exe), &started].into_iter().any(|interpreter| {
            let Some(prefix) = interpreter.parent().and_then(Path::parent) else {
                return false;
            };
            let packages = prefix.join("lib").join(name).join("site-packages");
            inside(&packages.join("opentelemetry/sdk")).is_dir()
        });
    }
    false
}

/// Where a script is, where it was started, and what is above both.
fn program_directories(proc: &ProcFs, pid: u32, arguments: &[String]) -> Vec<PathBuf> {
    let cwd = proc.cwd(pid).unwrap_or_default();
    let mut scripts = arguments.iter().skip(1);
    let script = scripts.find(|word| !word.starts_with('-'));
    let mut directories = Vec::new();
    let starts = [
        Some(cwd.clone()),
        script.and_then(|script| cwd.join(script).parent().map(Path::to_owned)),
    ];
    for start in starts.into_iter().flatten() {
        directories.extend(start.ancestors().take(MOST_ABOVE).map(Path::to_owned));
    }
    directories
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environments() {
        let check = |text: &str, expected| {
            let own = |_: &str, value: &str| value == "http://own:4318";
            let found = from_environment(text.replace(' ', "\0").as_bytes(), own);
            assert_eq!(found, expected, "{text}");
        };
        check("", Some(Sign::None));
        check("A=b OTEL_SERVICE_NAME=shop", Some(Sign::None));
        check(
            "OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318",
            Some(Sign::Maybe),
        );
        check(
            "OTEL_EXPORTER_OTLP_ENDPOINT=http://own:4318",
            Some(Sign::None),
        );
        check("OTEL_EXPORTER_OTLP_ENDPOINT=", Some(Sign::None));
        check("OTEL_TRACES_EXPORTER=otlp", Some(Sign::Maybe));
        check("OTEL_TRACES_EXPORTER=none", None);
        check("OTEL_SDK_DISABLED=true OTEL_TRACES_EXPORTER=otlp", None);
        check("OTEL_SDK_DISABLED=false", Some(Sign::None));
        check(
            "JAVA_TOOL_OPTIONS=-javaagent:/otel/opentelemetry-javaagent.jar",
            Some(Sign::Activated),
        );
        check(
            "PYTHONPATH=/p/opentelemetry/instrumentation/auto_instrumentation:/app",
            Some(Sign::Activated),
        );
        check("NODE_OPTIONS=--max-old-space-size=100", Some(Sign::None));
    }

    #[test]
    fn exports_over_tls_are_told() {
        let check = |environment: &str, argument: &str, expected| {
            let environment = environment.replace(' ', "\0");
            let found = exports_over_tls(environment.as_bytes(), &[argument.to_owned()]);
            assert_eq!(found, expected, "{environment} {argument}");
        };
        check(
            "A=https://x OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318",
            "",
            false,
        );
        check("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=https://c", "", true);
        check("", "-Dotel.exporter.otlp.endpoint=https://c", true);
        check("", "https://c", false);
    }

    /// This test's own process is no program with an SDK, and a process that is gone gives no sign.
    #[test]
    fn processes() {
        let proc = ProcFs::default();
        let own = |_: &str, _: &str| true;
        assert_eq!(sign(&proc, std::process::id(), own), Sign::None);
        assert_eq!(sign(&proc, u32::MAX, own), Sign::None);
    }

    #[test]
    fn argument_lists() {
        for (line, expected) in [
            ("java -jar shop.jar", Sign::None),
            (
                "java -javaagent:/x/opentelemetry-javaagent.jar -jar shop.jar",
                Sign::Activated,
            ),
            (
                "node --require @opentelemetry/auto-instrumentations-node/register app.js",
                Sign::Activated,
            ),
            ("node -r ./opentelemetry.js app.js", Sign::Activated),
            (
                "python /venv/bin/opentelemetry-instrument python app.py",
                Sign::Activated,
            ),
            ("node opentelemetry-demo.js", Sign::Maybe),
            ("", Sign::None),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(from_arguments(&words), Some(expected), "{line}");
        }
        let off = [
            "-javaagent:opentelemetry.jar",
            "-Dotel.traces.exporter=none",
        ];
        assert_eq!(from_arguments(&off.map(str::to_owned)), None);
    }
}
