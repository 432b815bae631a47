//! What nodes make of their configuration file.
//!
//! A file reaches the pods by their kubelets, up to two minutes after its ConfigMap was written, and nodes look at it every few seconds. A
//! node takes up what it can while it runs, names the fields that wait for a restart, and goes on with what it had when the file does not
//! make sense.
//!
//! Invariants:
//! - Nobody waits for a node that does not speak of its file: versions that never will take it when they start.
//! - A node is restarted for the sake of fields only when it has taken the very file that is asked for. One that has started with it
//!   names none, so that this ends.
//! - The word of a node counts against a file only when it is of the image asked for, or of the revision: another version may
//!   not know a field that the next one needs.

use super::{Ask, NodeConfiguration, NodeView, Observed, PodView};
use crate::build::pod_name;

/// Characters of a node's words that are passed on.
const WORDS_MAX: usize = 500;

/// Whether the pod with this number does not run what is asked for: its template is another one, or its node says that fields
/// of the file asked for wait for a restart.
pub fn outdated(ask: &Ask, observed: &Observed, ordinal: i32, pod: &PodView) -> bool {
    let waits = |configuration: &NodeConfiguration| {
        configuration.error.is_empty()
            && !configuration.restart_fields.is_empty()
            && ask.files.contains(&configuration.file_digest)
    };
    pod.revision != ask.revision
        || alive(ask, observed, ordinal).and_then(|node| node.configuration.as_ref()).is_some_and(waits)
}

/// Who refuses the configuration file, and why, for people; `None`: nobody whose word counts.
pub fn refusal(ask: &Ask, observed: &Observed) -> Option<String> {
    let judges = |pod: &PodView| !pod.terminating && (pod.revision == ask.revision || pod.image == ask.image);
    let refuse: Vec<(&str, &str)> = observed
        .pods
        .iter()
        .filter(|(_, pod)| judges(pod))
        .filter_map(|(ordinal, _)| {
            let node = alive(ask, observed, *ordinal)?;
            let error = &node.configuration.as_ref()?.error;
            (!error.is_empty()).then_some((node.name.as_str(), error.as_str()))
        })
        .collect();
    let (first, error) = refuse.first()?;
    let words: String = error.chars().take(WORDS_MAX).collect();
    let others = &refuse[1..];
    let too = match others {
        [] => String::new(),
        _ => format!(" (so do {})", others.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")),
    };
    Some(format!("{first} rejects the configuration file and keeps its previous configuration{too}: {words}"))
}

/// Names of the nodes that have not taken the file asked for and should by themselves: those whose pods are not to be replaced anyway.
pub fn untaken(ask: &Ask, observed: &Observed) -> Vec<String> {
    let waited_for = |node: &&NodeView| match &node.configuration {
        Some(configuration) => configuration.error.is_empty() && !ask.files.contains(&configuration.file_digest),
        None => !node.answered,
    };
    let current = observed.pods.iter().filter(|(_, pod)| pod.revision == ask.revision && !pod.terminating);
    let nodes = current.filter_map(|(ordinal, _)| alive(ask, observed, *ordinal));
    nodes.filter(waited_for).map(|node| node.name.clone()).collect()
}

/// What is told about [`untaken`].
pub(crate) fn pending(names: &[String]) -> String {
    format!(
        "waiting for nodes to load the current configuration file: {}; the kubelet can take up to two minutes to update it",
        names.join(", ")
    )
}

fn alive<'a>(ask: &Ask, observed: &'a Observed, ordinal: i32) -> Option<&'a NodeView> {
    observed.node_named(&pod_name(&ask.name, ordinal)).filter(|node| node.alive)
}
