//! What the user says about processes with an SDK.

use std::time::Duration;

use crate::discover::pattern;

/// What is done about exchanges that an SDK may report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// What the process's SDK is seen to report is left to it.
    #[default]
    Auto,
    /// All are reported here, whatever an SDK does.
    Trace,
    /// All are left to the SDK.
    Leave,
}

/// The words of [`Mode`].
pub const MODES: [&str; 3] = ["auto", "trace", "leave"];

impl Mode {
    /// By its word.
    pub fn named(word: &str) -> Option<Mode> {
        match word {
            "auto" => Some(Mode::Auto),
            "trace" => Some(Mode::Trace),
            "leave" => Some(Mode::Leave),
            _ => None,
        }
    }
}

/// The mode of one service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceMode {
    /// Over `service.name`.
    pub service: Box<str>,
    /// What holds for it.
    pub mode: Mode,
}

/// The settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// For services that no rule names.
    pub mode: Mode,
    /// For single services; the first that matches holds.
    pub services: Vec<ServiceMode>,
    /// How long spans of a process wait for signs of what its SDK reports.
    pub wait: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            mode: Mode::Auto,
            services: Vec::new(),
            // SDKs export every 5 s unless told otherwise.
            wait: Duration::from_secs(7),
        }
    }
}

impl Settings {
    /// What holds for a service.
    pub fn mode_of(&self, service: &str) -> Mode {
        let rule = self
            .services
            .iter()
            .find(|rule| pattern::matches(&rule.service, service));
        rule.map_or(self.mode, |rule| rule.mode)
    }
}
