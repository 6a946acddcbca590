//! The `ot` member of a `tracestate`: what it says about sampling, and how that is changed.
//!
//! In: a `tracestate` that was validated when it was read (W3C section 3.3). Out: `th` and `rv` of
//! it, or a new `tracestate` in which they are different and all else is as it was: other members in
//! their order, other sub-keys of `ot` untouched. A changed member goes to the front (section 3.5).

use super::threshold::{Randomness, Threshold};

/// Characters that the value of a member may have at most.
const MAX_VALUE: usize = 256;
/// Members that a list may have at most; one that is added pushes the last out (section 3.5).
const MAX_MEMBERS: usize = 32;

/// What `ot` says about sampling. A value that breaks the rules counts as not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ot {
    pub threshold: Option<Threshold>,
    pub randomness: Option<Randomness>,
}

/// The member's value would be longer than allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

pub(super) fn read(state: Option<&str>) -> Ot {
    let mut ot = Ot::default();
    let Some(value) = state.and_then(member) else {
        return ot;
    };
    for part in value.split(';') {
        match part.split_once(':') {
            Some(("th", text)) => ot.threshold = Threshold::parse(text),
            Some(("rv", text)) => ot.randomness = Randomness::parse(text),
            _ => {}
        }
    }
    ot
}

/// `state` with this `th` (or none), and with this `rv` where one is given.
pub(super) fn with(
    state: Option<&str>,
    threshold: Option<Threshold>,
    randomness: Option<Randomness>,
) -> Result<Option<Box<str>>, Full> {
    let old = state.and_then(member).unwrap_or_default();
    let mut value = String::new();
    let mut push = |part: &str| {
        if !value.is_empty() {
            value.push(';');
        }
        value.push_str(part);
    };
    if let Some(threshold) = threshold {
        push(&format!("th:{threshold}"));
    }
    if let Some(randomness) = randomness {
        push(&format!("rv:{randomness}"));
    }
    for part in old.split(';').filter(|part| !part.is_empty()) {
        let key = part.split_once(':').map_or(part, |(key, _)| key);
        if key != "th" && !(key == "rv" && randomness.is_some()) {
            push(part);
        }
    }
    if value.len() > MAX_VALUE {
        return Err(Full);
    }
    let mut list = if value.is_empty() {
        String::new()
    } else {
        format!("ot={value}")
    };
    let room = MAX_MEMBERS - usize::from(!value.is_empty());
    let others = members(state.unwrap_or_default()).filter(|member| !is_ot(member));
    for member in others.take(room) {
        if !list.is_empty() {
            list.push(',');
        }
        list.push_str(member);
    }
    Ok((!list.is_empty()).then(|| list.into_boxed_str()))
}

fn members(state: &str) -> impl Iterator<Item = &str> {
    state
        .split(',')
        .map(|member| member.trim_matches([' ', '\t']))
        .filter(|member| !member.is_empty())
}

fn is_ot(member: &str) -> bool {
    member.starts_with("ot=")
}

/// Value of the `ot` member.
fn member(state: &str) -> Option<&str> {
    members(state).find_map(|member| member.strip_prefix("ot="))
}
