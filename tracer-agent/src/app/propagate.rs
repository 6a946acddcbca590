//! Writing trace context: from the configuration to the kernel side, and what is said about it.

use crate::config::{Config, Propagate};
use crate::kernel::features::{Cgroup, Features};
use crate::kernel::host::Host;
use crate::probes::{Kernel, PropagateOptions, Propagation, SampledFrom};
use crate::trace::sampling;

/// What the kernel side is loaded with; `None` when nothing is written.
pub fn options(config: &Config) -> Option<PropagateOptions> {
    let despite_faults = match config.propagate {
        Propagate::Off => return None,
        Propagate::Tested => false,
        Propagate::Always => true,
    };
    let mut rng = fastrand::Rng::new();
    Some(PropagateOptions {
        despite_faults,
        secret: [rng.u64(..), rng.u64(..)],
    })
}

/// Which traces are sampled, as far as it is decided when they begin.
pub fn sampled_from(settings: &sampling::Settings) -> SampledFrom {
    let sampling::Standard { parent_based, root } = settings.standard;
    SampledFrom {
        threshold: root.value(),
        parent_based,
    }
}

/// Starts it. What cannot be done switches off this alone, and is said.
pub fn start(
    kernel: &mut Kernel,
    options: PropagateOptions,
    settings: &sampling::Settings,
) -> Option<Propagation> {
    let cgroup = match Features::of(&Host::real()).cgroup {
        Cgroup::Unified(point) | Cgroup::Hybrid(point) => Some(point),
        Cgroup::Absent => None,
    };
    match kernel.propagate(options, sampled_from(settings), cgroup.as_deref()) {
        Ok(propagation) => {
            if let Some(fault) = &propagation.fault {
                tracing::warn!(%fault, "trace context is written despite a fault of this kernel, as asked for");
            }
            tracing::info!("trace context is written into outgoing requests");
            Some(propagation)
        }
        Err(error) => {
            let why = anyhow::Error::from(error);
            tracing::warn!(
                "no trace context is written, everything else works: {why:#}; see docs/propagation.md"
            );
            None
        }
    }
}
