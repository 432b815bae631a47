//! Evaluates the configuration state that nodes report: which file a node has loaded, whether it rejects the current one, and which
//! fields need a restart.
//!
//! Kubelets update the mounted file up to two minutes after a change of the ConfigMap, and nodes check it every few seconds. A node
//! applies live fields while it runs, lists the fields that need a restart, and keeps its previous configuration if the file is invalid.
//!
//! Invariants:
//! - The operator does not wait for a node whose version does not report its file: such versions read it at their start only.
//! - A node is restarted for the sake of fields only if it has loaded the current file. A node that started with the current file lists no
//!   fields, so the restarts end.
//! - A rejection counts only from a node with the requested image or revision: another version may not know a field of the next one.

use super::{DesiredState, NodeConfiguration, NodeView, ObservedState, PodView};
use crate::build::pod_name;

/// Maximum length of a node's error message in a condition, in characters.
const ERROR_MAX: usize = 500;

/// Returns whether the pod with this ordinal is outdated: it has another template, or its node reports that fields of the current file
/// need a restart.
pub fn outdated(desired: &DesiredState, observed: &ObservedState, ordinal: i32, pod: &PodView) -> bool {
    let waits = |configuration: &NodeConfiguration| {
        configuration.error.is_empty()
            && !configuration.restart_fields.is_empty()
            && desired.files.contains(&configuration.file_digest)
    };
    pod.revision != desired.revision
        || alive(desired, observed, ordinal).and_then(|node| node.configuration.as_ref()).is_some_and(waits)
}

/// Returns a message with the nodes that reject the configuration file, and the first error; `None`: no node whose rejection counts.
pub fn rejection(desired: &DesiredState, observed: &ObservedState) -> Option<String> {
    let counts = |pod: &PodView| !pod.terminating && (pod.revision == desired.revision || pod.image == desired.image);
    let rejecting: Vec<(&str, &str)> = observed
        .pods
        .iter()
        .filter(|(_, pod)| counts(pod))
        .filter_map(|(ordinal, _)| {
            let node = alive(desired, observed, *ordinal)?;
            let error = &node.configuration.as_ref()?.error;
            (!error.is_empty()).then_some((node.name.as_str(), error.as_str()))
        })
        .collect();
    let (first, error) = rejecting.first()?;
    let error: String = error.chars().take(ERROR_MAX).collect();
    let others = &rejecting[1..];
    let too = match others {
        [] => String::new(),
        _ => format!(" (also rejected by {})", others.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")),
    };
    Some(format!("{first} rejects the configuration file and keeps its previous configuration{too}: {error}"))
}

/// Returns the names of the nodes that have not loaded the current file, without those whose pods will be restarted anyway.
pub fn not_loaded(desired: &DesiredState, observed: &ObservedState) -> Vec<String> {
    let stale = |node: &&NodeView| match &node.configuration {
        Some(configuration) => configuration.error.is_empty() && !desired.files.contains(&configuration.file_digest),
        None => !node.answered,
    };
    let current = observed.pods.iter().filter(|(_, pod)| pod.revision == desired.revision && !pod.terminating);
    let nodes = current.filter_map(|(ordinal, _)| alive(desired, observed, *ordinal));
    nodes.filter(stale).map(|node| node.name.clone()).collect()
}

/// Returns the message for [`not_loaded`] nodes.
pub(crate) fn pending_message(names: &[String]) -> String {
    format!(
        "waiting for nodes to load the current configuration file: {}; the kubelet can take up to two minutes to update it",
        names.join(", ")
    )
}

fn alive<'a>(desired: &DesiredState, observed: &'a ObservedState, ordinal: i32) -> Option<&'a NodeView> {
    observed.node_named(&pod_name(&desired.name, ordinal)).filter(|node| node.alive)
}
