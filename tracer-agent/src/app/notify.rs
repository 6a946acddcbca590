//! What a service manager is told: ready, reloading, stopping (sd_notify(3)).
//!
//! In: `NOTIFY_SOCKET`, which systemd and others set for a service of `Type=notify`. Out: one datagram for each
//! state. Without the variable nothing is done; what cannot be sent is no reason to stop, as the manager has
//! its own deadline.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use crate::sys;

/// Where the state is sent to.
#[derive(Debug)]
pub struct Notify {
    to: Option<(UnixDatagram, SocketAddr)>,
}

impl Notify {
    /// The manager that the environment names; nobody, if it names none.
    pub fn from_environment() -> Self {
        Notify::to(std::env::var_os("NOTIFY_SOCKET"))
    }

    fn to(socket: Option<OsString>) -> Self {
        let Some(socket) = socket.filter(|socket| !socket.is_empty()) else {
            return Notify { to: None };
        };
        match connect(&socket) {
            Ok(to) => Notify { to: Some(to) },
            Err(error) => {
                tracing::warn!(%error, socket = %socket.display(), "NOTIFY_SOCKET: the service manager is told nothing");
                Notify { to: None }
            }
        }
    }

    /// All probes are attached.
    pub fn ready(&self) {
        self.send("READY=1\nSTATUS=tracing");
    }

    /// The configuration is read again; [`Notify::ready`] ends it.
    pub fn reloading(&self) {
        // Managers tell a reload by this clock from one that was asked for before.
        let now = sys::clock(libc::CLOCK_MONOTONIC).as_micros();
        self.send(&format!(
            "RELOADING=1\nMONOTONIC_USEC={now}\nSTATUS=reading the configuration"
        ));
    }

    /// The end has begun and takes `at_most`.
    pub fn stopping(&self, at_most: Duration) {
        self.send(&format!(
            "STOPPING=1\nSTATUS=sending the last spans, {:.1} s at most",
            at_most.as_secs_f32()
        ));
    }

    fn send(&self, state: &str) {
        if let Some((socket, manager)) = &self.to
            && let Err(error) = socket.send_to_addr(state.as_bytes(), manager)
        {
            tracing::debug!(%error, "the service manager could not be told");
        }
    }
}

/// A path, or `@` and a name without one.
fn connect(socket: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(socket)?,
        _ => return Err(io::Error::other("neither a path nor an abstract name")),
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not hold up the agent.
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(30);

    /// What `manager` gets when everything is said.
    fn check(manager: &UnixDatagram, name: OsString) {
        manager.set_read_timeout(Some(WAIT)).expect("a timeout");
        let notify = Notify::to(Some(name));
        let mut buffer = [0; 256];
        let mut next = || {
            let length = manager.recv(&mut buffer).expect("a datagram");
            String::from_utf8(buffer[..length].to_vec()).expect("text")
        };
        notify.ready();
        assert_eq!(next(), "READY=1\nSTATUS=tracing");
        notify.reloading();
        let reloading = next();
        let time = reloading
            .lines()
            .find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
        assert!(reloading.starts_with("RELOADING=1\n"), "{reloading}");
        assert!(
            time.is_some_and(|time| time.parse::<u64>().is_ok_and(|time| time > 0)),
            "{reloading}"
        );
        notify.stopping(Duration::from_millis(4500));
        assert_eq!(
            next(),
            "STOPPING=1\nSTATUS=sending the last spans, 4.5 s at most"
        );
    }

    #[test]
    fn by_path_and_by_abstract_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        check(&UnixDatagram::bind(&path).expect("bind"), path.into());
        let name = format!("tracer-agent-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let manager = UnixDatagram::bind_addr(&address).expect("bind");
        check(&manager, format!("@{name}").into());
    }

    #[test]
    fn nobody_to_tell_is_no_error() {
        let long = "/x".repeat(200);
        for name in [
            "",
            "relative",
            "@",
            "vsock:2:1",
            "/nonexistent/socket",
            &long,
        ] {
            let notify = Notify::to(Some(name.into()));
            notify.ready();
            notify.reloading();
            notify.stopping(WAIT);
        }
        Notify::to(None).ready();
    }

    #[test]
    fn a_manager_that_does_not_read_holds_nothing_up() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let _deaf = UnixDatagram::bind(&path).expect("bind");
        let notify = Notify::to(Some(path.into()));
        for _ in 0..10_000 {
            notify.ready();
        }
    }
}
