//! Tracepoints of the calls whose ends are seen at functions: they come and go, by call.
//!
//! In: loaded programs. Out: nothing is attached before it is asked for; all of it is prepared, so that it takes no longer than the kernel needs.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use aya::Ebpf;
use aya::programs::Program;

use super::super::error::{LoadError, failed};
use super::super::parallel;
use super::{Exit, because, perf};
use crate::kernel::prepare;

/// The tracepoint of one call.
pub(super) struct Point {
    /// The call, its program and its function.
    pub(super) exit: Exit,
    /// The tracepoint's number.
    number: u64,
    program: OwnedFd,
    /// While it is attached.
    link: Option<OwnedFd>,
    /// Nobody has looked who is in the call since its function changed.
    pub(super) is_new: bool,
}

/// All of them.
pub(in crate::probes) struct Points(pub(super) Vec<Point>);

impl Points {
    /// Finds them.
    pub(in crate::probes) fn of(ebpf: &Ebpf, exits: &[Exit]) -> Result<Self, LoadError> {
        let points = exits.iter().map(|exit| {
            let name = exit.program;
            let Some(Program::TracePoint(program)) = ebpf.program(name) else {
                return Err(LoadError::Mismatch(name));
            };
            let program = program.fd().map_err(|error| failed("load", name, error))?;
            let program = program.as_fd().try_clone_to_owned();
            Ok(Point {
                exit: *exit,
                number: number(exit.call)?,
                program: program.map_err(|error| because("attach", name, error))?,
                link: None,
                is_new: false,
            })
        });
        Ok(Points(points.collect::<Result<_, _>>()?))
    }

    /// Attaches those that are wanted and are not attached. An error is of the first that could not be.
    pub(in crate::probes) fn attach(
        &mut self,
        is_wanted: impl Fn(&Exit) -> bool,
    ) -> Result<(), LoadError> {
        let wanted = self.0.iter_mut().filter(|point| is_wanted(&point.exit));
        let wanted: Vec<&mut Point> = wanted
            .filter_map(|point| {
                point.is_new = true;
                point.link.is_none().then_some(point)
            })
            .collect();
        let threads = wanted.len();
        let attached = parallel::each(wanted, threads, |point| {
            let link = perf::attach(point.number, point.program.as_fd());
            point.link = Some(link.map_err(|error| because("attach", point.exit.program, error))?);
            Ok(())
        });
        attached.into_iter().collect()
    }

    /// Detaches those that are not needed; how many are left.
    pub(super) fn keep(&mut self, is_needed: impl Fn(&Point) -> bool) -> usize {
        let mut left = 0;
        for point in &mut self.0 {
            if point.link.is_some() && !is_needed(point) {
                // This takes the kernel a while, and nobody waits for it.
                point.link = None;
            }
            left += usize::from(point.link.is_some());
        }
        left
    }
}

fn number(call: &str) -> Result<u64, LoadError> {
    let path = format!("events/syscalls/sys_exit_{call}/id");
    let text = fs::read_to_string(Path::new(prepare::TRACEFS).join(path));
    let number = text.ok().and_then(|text| text.trim().parse().ok());
    number.ok_or_else(|| LoadError::NotFast(format!("there is no tracepoint of {call}")))
}
