//! From a pod of the API to what its processes' resources say.
//!
//! In: a [`Pod`] and which labels and annotations are wanted. Out: [`PodFacts`], shared by all of its
//! containers. It cannot see objects above the pod's owner: a Deployment and a CronJob are told by how
//! their controllers name what they make, and only where that cannot be mistaken.

use std::borrow::Cow;
use std::sync::Arc;

use super::model::{ContainerStatus, Pod, Texts};
use crate::discover::pattern;

/// Longest value that is kept of a label or an annotation.
const VALUE_MAX: usize = 1024;
/// Attributes of one pod that come from its labels and annotations.
const CHOSEN_MAX: usize = 64;
/// Annotations with this in front are attributes; OpenTelemetry's semantic conventions define it.
const RESOURCE: &str = "resource.opentelemetry.io/";
/// How long after its time a CronJob's pod may be made.
const CRON_LATE_MINUTES: u64 = 7 * 24 * 60;

/// Which labels and annotations become attributes: globs over their keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// `k8s.pod.label.<key>`.
    pub labels: Vec<String>,
    /// `k8s.pod.annotation.<key>`.
    pub annotations: Vec<String>,
}

/// An attribute and its value.
pub type Attribute = (Cow<'static, str>, Box<str>);

/// What is known of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Its name.
    pub name: Box<str>,
    /// Its namespace.
    pub namespace: Box<str>,
    /// Its `k8s.*` attributes, in the order they are exported.
    pub attributes: Vec<Attribute>,
    /// What its owner declared by annotations: beats what is observed.
    pub declared: Vec<Attribute>,
    /// `service.name` by annotation, label, workload or pod.
    pub service_name: Box<str>,
    /// `service.version` by label.
    pub service_version: Option<Box<str>>,
}

/// What is known of a container: its pod, and its name where that is certain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerFacts {
    /// The pod it belongs to.
    pub pod: Arc<PodFacts>,
    /// `k8s.container.name`.
    pub name: Option<Box<str>>,
}

impl PodFacts {
    /// Reads a pod.
    pub fn new(pod: &Pod, wanted: &Wanted) -> Self {
        let metadata = &pod.metadata;
        let mut attributes: Vec<Attribute> = Vec::new();
        let mut push = |key: &'static str, value: &str| {
            if !value.is_empty() {
                attributes.push((Cow::Borrowed(key), value.into()));
            }
        };
        push("k8s.namespace.name", &metadata.namespace);
        push("k8s.pod.name", &metadata.name);
        push("k8s.pod.uid", &metadata.uid);
        push("k8s.node.name", &pod.spec.node_name);
        let owners = owners(pod);
        for (key, name) in &owners {
            push(key, name);
        }
        let chosen = |prefix: &str, globs: &[String], from: &Texts| {
            let is_wanted = |key: &str| globs.iter().any(|glob| pattern::matches(glob, key));
            let wanted = from.iter().filter(|(key, _)| is_wanted(key));
            let made = wanted.map(|(key, value)| (format!("{prefix}{key}").into(), cut(value)));
            made.take(CHOSEN_MAX).collect::<Vec<Attribute>>()
        };
        attributes.extend(chosen("k8s.pod.label.", &wanted.labels, &metadata.labels));
        attributes.extend(chosen(
            "k8s.pod.annotation.",
            &wanted.annotations,
            &metadata.annotations,
        ));
        let declared: Vec<Attribute> = metadata
            .annotations
            .iter()
            .filter_map(|(key, value)| {
                let key = key.strip_prefix(RESOURCE).filter(|key| !key.is_empty())?;
                let value = Some(value).filter(|value| !value.is_empty())?;
                Some((Cow::Owned(key.to_owned()), cut(value)))
            })
            .take(CHOSEN_MAX)
            .collect();
        let label = |key: &str| metadata.labels.get(key).filter(|value| !value.is_empty());
        let annotated = declared.iter().find(|(key, _)| key == "service.name");
        let service_name = annotated
            .map(|(_, name)| name.clone())
            .or_else(|| label("app.kubernetes.io/instance").cloned())
            .or_else(|| label("app.kubernetes.io/name").cloned())
            // The uppermost owner is the last one.
            .or_else(|| owners.last().map(|(_, name)| name.as_str().into()))
            .unwrap_or_else(|| metadata.name.clone());
        PodFacts {
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            attributes,
            declared: declared
                .into_iter()
                .filter(|(key, _)| key != "service.name")
                .collect(),
            service_name,
            service_version: label("app.kubernetes.io/version").cloned(),
        }
    }
}

/// The containers of a pod that have an id, with their names. Also those that a restart replaced:
/// what they did may be told late.
pub fn containers(pod: &Pod) -> impl Iterator<Item = (&str, &str)> {
    let status = &pod.status;
    let all = status
        .container_statuses
        .iter()
        .chain(&status.init_container_statuses)
        .chain(&status.ephemeral_container_statuses);
    all.flat_map(|container: &ContainerStatus| {
        let ended = container.last_state.terminated.as_ref();
        let ended = ended.and_then(|ended| ended.container_id.as_deref());
        [container.container_id.as_deref(), ended]
            .into_iter()
            .flatten()
            .filter_map(|id| Some((id.split_once("://")?.1, &*container.name)))
            .filter(|(id, _)| !id.is_empty())
    })
}

/// The name of the only container that the pod can have, before its id is known.
pub fn only_container(pod: &Pod) -> Option<&str> {
    let spec = &pod.spec;
    match &spec.containers[..] {
        [only] if spec.init_containers.is_empty() && spec.ephemeral_containers.is_empty() => {
            Some(&only.name)
        }
        _ => None,
    }
}

/// Attributes of the workload that the pod belongs to, from the bottom up.
fn owners(pod: &Pod) -> Vec<(&'static str, String)> {
    let references = &pod.metadata.owner_references;
    let Some(owner) = references.iter().find(|owner| owner.controller) else {
        return Vec::new();
    };
    let name = owner.name.to_string();
    match &*owner.kind {
        "ReplicaSet" => {
            let deployment = deployment(pod, &name).map(str::to_owned);
            let mut owners = vec![("k8s.replicaset.name", name)];
            owners.extend(deployment.map(|name| ("k8s.deployment.name", name)));
            owners
        }
        "Job" => {
            let cron_job = cron_job(pod, &name).map(str::to_owned);
            let mut owners = vec![("k8s.job.name", name)];
            owners.extend(cron_job.map(|name| ("k8s.cronjob.name", name)));
            owners
        }
        "StatefulSet" => vec![("k8s.statefulset.name", name)],
        "DaemonSet" => vec![("k8s.daemonset.name", name)],
        "ReplicationController" => vec![("k8s.replicationcontroller.name", name)],
        // Static pods are owned by their node; other kinds have no name in the conventions.
        _ => Vec::new(),
    }
}

/// A Deployment names its ReplicaSets `<its name>-<hash>` and labels their pods with that hash. Without
/// the label somebody else made the ReplicaSet.
fn deployment<'a>(pod: &Pod, replica_set: &'a str) -> Option<&'a str> {
    let hash = pod.metadata.labels.get("pod-template-hash")?;
    let name = replica_set.strip_suffix(&**hash)?.strip_suffix('-')?;
    (!name.is_empty() && !hash.is_empty()).then_some(name)
}

/// A CronJob names its Jobs `<its name>-<minutes since 1970 of their time>`. A number that is not about
/// when the pod was made is part of a name that somebody chose.
fn cron_job<'a>(pod: &Pod, job: &'a str) -> Option<&'a str> {
    let (name, digits) = job.rsplit_once('-')?;
    let scheduled: u64 = digits.parse().ok()?;
    let made = unix_minutes(pod.metadata.creation_timestamp.as_deref()?)?;
    // A minute for clocks that differ.
    let fits =
        (scheduled.saturating_sub(1)..=scheduled.saturating_add(CRON_LATE_MINUTES)).contains(&made);
    (fits && !name.is_empty()).then_some(name)
}

/// `2026-11-21T05:40:43Z` to minutes since 1970.
fn unix_minutes(time: &str) -> Option<u64> {
    let (date, clock) = time.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut clock = clock.splitn(3, ':').map(|part| part.parse::<u64>().ok());
    let (hour, minute) = (clock.next()??, clock.next()??);
    let valid = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60;
    if !valid {
        return None;
    }
    // Days from a civil date, years beginning in March (Hinnant's algorithm).
    let year = year - u64::from(month <= 2);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year;
    let days = days.checked_sub(719_468)?;
    Some((days * 24 + hour) * 60 + minute)
}

fn cut(value: &str) -> Box<str> {
    value
        .get(..value.floor_char_boundary(VALUE_MAX))
        .unwrap_or(value)
        .into()
}

#[cfg(test)]
mod tests;
