//! Writing trace context: from the configuration to the kernel side, and what is said about it.

use crate::causes::chain;
use crate::config::{Config, Propagate};
use crate::kernel::features::{Cgroup, Features};
use crate::kernel::host::Host;
use crate::probes::{Kernel, PropagateOptions, Propagation, SampledFrom, TcpOptions as Options};
use crate::trace::sampling;

/// What the kernel side is loaded with; `None` when nothing is written.
pub fn options(config: &Config) -> Option<PropagateOptions> {
    let mut rng = fastrand::Rng::new();
    if config.propagate == Propagate::Off {
        return None;
    }
    Some(PropagateOptions {
        headers: config.propagate != Propagate::Option,
        options: config.propagate != Propagate::Header,
        despite_faults: config.propagate == Propagate::Always,
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
            say(&propagation);
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

fn say(propagation: &Propagation) {
    let &Propagation {
        ref fault,
        headers,
        ref options,
        ..
    } = propagation;
    match fault {
        Some(fault) if headers => {
            tracing::warn!(%fault, "trace context is written despite a fault of this kernel, as asked for");
        }
        Some(fault) => {
            tracing::warn!(%fault, "this kernel lets no headers be written; TCP options are used instead, which both ends' agents have to do; see docs/propagation.md");
        }
        None => {}
    }
    let options = match options {
        Options::Sent => true,
        Options::NotWanted => false,
        Options::Failed(why) => {
            tracing::warn!(%why, "no trace context in TCP options: none for TLS and HTTP/2");
            false
        }
        Options::Faulty(why) => {
            tracing::warn!(
                why = chain(why),
                "no trace context in TCP options: none for TLS and HTTP/2"
            );
            false
        }
    };
    let ways = match (headers, options) {
        (true, true) => "as headers, or in TCP options",
        (true, false) => "as headers",
        _ => "in TCP options",
    };
    tracing::info!("trace context is written into outgoing requests: {ways}");
}
