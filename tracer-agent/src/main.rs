//! The command line: what was asked, and how it ended.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use tracer_agent::app;
use tracer_agent::config::{CommonFlags, Config, ConfigError, Layers, RunFlags};
use tracer_agent::kernel::doctor;
use tracer_agent::kernel::host::Host;
use tracer_agent::meta::proc_fs::ProcFs;
use tracer_agent::telemetry::logs;

/// Zero-instrumentation distributed tracing for Linux
#[derive(Parser)]
#[command(version, propagate_version = false, arg_required_else_help = true, after_help = EXIT_STATUS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_STATUS: &str =
    "Exit status: 0 clean end, 1 failure at run time, 2 bad usage or configuration.";

#[derive(Subcommand)]
enum Command {
    /// Trace this host until interrupted, or CMD and its children until CMD ends
    Run {
        #[command(flatten)]
        flags: Box<RunFlags>,
        /// Start this command and trace only it and its children; exits with its status
        #[arg(last = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Trace what a capture file (pcap, pcapng) holds; needs no privileges
    Replay {
        /// The capture file
        file: PathBuf,
        #[command(flatten)]
        flags: CommonFlags,
    },
    /// Tell what this host allows, what each missing thing disables and how to get it
    Doctor {
        /// Machine-readable: an array of {check, status, detail, disables, fix}
        #[arg(long)]
        json: bool,
    },
    /// Check or print the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Load every eBPF program and tell what the verifier said
    #[command(hide = true)]
    Verify,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Check a configuration file, or without one the configuration that `run` would have
    Check {
        /// The file
        file: Option<PathBuf>,
    },
    /// Print a JSON Schema of the configuration file
    Schema,
    /// Print the settings in effect, each with where it comes from
    Print {
        #[command(flatten)]
        flags: Box<RunFlags>,
    },
}

/// What ends the agent with a line on stderr.
struct Failure {
    status: u8,
    error: anyhow::Error,
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure {
            status: 2,
            error: error.into(),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure { status: 1, error }
    }
}

impl From<app::AppError> for Failure {
    fn from(error: app::AppError) -> Self {
        Failure {
            status: error.status(),
            error: error.into(),
        }
    }
}

fn main() -> ExitCode {
    tracer_agent::sys::return_large_blocks();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refused(&error),
    };
    match dispatch(cli.command) {
        Ok(status) => status,
        Err(Failure { status, error }) => {
            // `{:#}` joins the chain by ": ". A closed stderr is no reason to panic.
            let line = format!("{error:#}").replace('\n', " ");
            let _ = writeln!(std::io::stderr(), "tracer-agent: error: {line}");
            ExitCode::from(status)
        }
    }
}

/// Bad usage in one line; help and version as clap prints them.
fn refused(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    }
    let message = error.to_string();
    // Paragraphs: what is wrong, tips, usage, a hint at --help. The last two fit no line, and the tip
    // to hide a flag behind `--` would turn a misspelt flag into a command to start.
    let kept = message
        .split("\n\n")
        .filter(|paragraph| !paragraph.starts_with("Usage:") && !paragraph.starts_with("For more"))
        .map(|paragraph| {
            let lines = paragraph
                .lines()
                .map(str::trim)
                .filter(|line| !line.contains(" as a value, use "));
            lines.collect::<Vec<_>>().join(" ")
        });
    let line = kept
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("; ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    let _ = writeln!(
        std::io::stderr(),
        "tracer-agent: error: {line}; see tracer-agent --help"
    );
    ExitCode::from(2)
}

fn dispatch(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Run { flags, command } => {
            let config = configured(&flags)?;
            let command = (!command.is_empty()).then_some(command);
            let load = Box::new(move || Config::load(&flags, &environment));
            Ok(app::start(config, command, load)?)
        }
        Command::Replay { file, flags } => {
            let config = configured(&flags.into())?;
            runtime()?.block_on(app::replay(config, &file))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Doctor { json } => {
            let mut report = doctor::examine(
                &Host::real(),
                app::ebpf_object_size(),
                app::functions_refused(),
            );
            report.look_at_processes(&ProcFs::default());
            let colours = logs::colours(&std::io::stdout());
            print(&if json {
                report.to_json()
            } else {
                report.to_text(colours)
            })?;
            Ok(if report.can_trace() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        Command::Config(ConfigCommand::Check { file: Some(file) }) => {
            Layers::of_file(&file)?.resolve()?;
            print(&format!("{}: ok\n", file.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Config(ConfigCommand::Check { file: None }) => {
            Layers::gather(&RunFlags::default(), &environment)?.resolve()?;
            print("configuration: ok\n")?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Config(ConfigCommand::Schema) => {
            print(&format!("{:#}\n", tracer_agent::config::schema()))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Config(ConfigCommand::Print { flags }) => {
            let layers = Layers::gather(&flags, &environment)?;
            layers.resolve()?;
            print(&layers.to_yaml())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Verify => {
            let mut text = String::new();
            for app::VerifiedProgram {
                name,
                instructions,
                load_time,
            } in app::verify()?
            {
                let milliseconds = load_time.as_secs_f64() * 1e3;
                let _ = writeln!(
                    text,
                    "{name:<32} {instructions:>8} instructions {milliseconds:>8.1} ms"
                );
            }
            print(&text)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The validated configuration, with logging set up by it.
fn configured(flags: &RunFlags) -> Result<Config, Failure> {
    let config = Config::load(flags, &environment)?;
    logs::init(&config.log_level).map_err(anyhow::Error::from)?;
    Ok(config)
}

/// A variable that is not UTF-8 counts as unset: no setting of ours has such a value.
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    Ok(built.map_err(|error| anyhow::Error::from(error).context("cannot start the runtime"))?)
}

/// Prints to stdout; a reader that went away (`| head`) has seen enough.
fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::from(error)
                .context("cannot write to stdout")
                .into())
        }
        _ => Ok(()),
    }
}
