//! Errors of the plugin: messages for people, and exit codes.

use kube::core::Status;

use crate::admin::AdminError;
use crate::controller::ReconcileError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// No usable kubeconfig.
    #[error("cannot set up access to a Kubernetes cluster: {0}")]
    NoKubeconfig(String),
    /// The CRDs are not installed.
    #[error(
        "the CRD chronicleclusters.chronicle.dev is not installed: install the chart chronicle-crds, or run kubectl apply --server-side \
         -k deploy/crds"
    )]
    NoCrds,
    /// The cluster does not exist.
    #[error("no ChronicleCluster {name} in namespace {namespace}{}", hint(.nearest, .known))]
    NoCluster {
        /// Requested name.
        name: String,
        /// Namespace.
        namespace: String,
        /// Most similar name.
        nearest: Option<String>,
        /// All names in the namespace.
        known: Vec<String>,
    },
    /// The cluster has no such pod.
    #[error("ChronicleCluster {cluster} has no pod {pod}; its pods: {}", list(.known))]
    NoPod {
        /// Requested name.
        pod: String,
        /// Name of the cluster.
        cluster: String,
        /// Pods of the cluster.
        known: Vec<String>,
    },
    /// A right is missing.
    #[error("not allowed: {verb} {resource}{}: {message}", in_namespace(.namespace))]
    Forbidden {
        /// Verb of the missing right.
        verb: String,
        /// Resource of the missing right.
        resource: String,
        /// Namespace; `None`: a cluster-scoped resource.
        namespace: Option<String>,
        /// Message of the API server.
        message: String,
    },
    /// The API server rejected a request or did not respond.
    #[error("{action}: {why}")]
    ApiServer {
        /// Action that failed.
        action: String,
        /// Cause.
        why: String,
    },
    /// The nodes cannot be reached.
    #[error("cannot query the nodes: {0}")]
    Nodes(String),
    /// The request cannot be fulfilled now.
    #[error("{0}")]
    Refused(String),
    /// The time limit passed. The action may still finish.
    #[error("{0}")]
    TimedOut(String),
    /// Reading or writing a file or the terminal failed.
    #[error("{what}: {source}")]
    Io {
        /// Name of the file or stream.
        what: String,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
}

impl PluginError {
    /// Returns the exit code. 1: failure; 3: timeout; 4: a right is missing; 5: the cluster, pod or CRD does not exist. (2 is an invalid
    /// command line.)
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::TimedOut(_) => 3,
            Self::Forbidden { .. } => 4,
            Self::NoCrds | Self::NoCluster { .. } | Self::NoPod { .. } => 5,
            _ => 1,
        }
    }

    /// Converts an error of the API server for `verb` on `resource`.
    pub(super) fn kube(verb: &str, resource: &str, namespace: Option<&str>, error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 403 => Self::Forbidden {
                verb: verb.to_owned(),
                resource: resource.to_owned(),
                namespace: namespace.map(str::to_owned),
                message: message_of(&status),
            },
            error => Self::ApiServer {
                action: format!("{verb} {resource}{}", in_namespace(&namespace.map(str::to_owned))),
                why: match &error {
                    kube::Error::Api(status) => message_of(status),
                    error => causes(error),
                },
            },
        }
    }

    /// Converts an error of the code that is shared with the operator.
    pub(super) fn reconcile(namespace: &str, error: ReconcileError) -> Self {
        match error {
            ReconcileError::Kube { action, source } => {
                let (verb, resource) = action.split_once(' ').unwrap_or((&action, ""));
                Self::kube(verb, resource, Some(namespace), source)
            }
            ReconcileError::Admin { source, .. } => source.into(),
            other => Self::Refused(other.to_string()),
        }
    }

    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

impl From<AdminError> for PluginError {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Refused { reason, message } => {
                Self::Refused(format!("the cluster rejected the request: {reason}: {message}"))
            }
            other => Self::Nodes(other.to_string()),
        }
    }
}

/// Returns an error with its causes, without duplicates.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = source.source();
    }
    text
}

fn message_of(status: &Status) -> String {
    if status.message.is_empty() { status.reason.clone() } else { status.message.clone() }
}

fn in_namespace(namespace: &Option<String>) -> String {
    namespace.as_ref().map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default()
}

fn list(names: &[String]) -> String {
    match names {
        [] => "none".into(),
        some => some.join(", "),
    }
}

fn hint(nearest: &Option<String>, known: &[String]) -> String {
    match (nearest, known) {
        (Some(nearest), _) => format!("; did you mean {nearest}?"),
        (None, []) => String::new(),
        (None, some) => format!("; found: {}", some.iter().take(10).cloned().collect::<Vec<_>>().join(", ")),
    }
}

/// Returns the name that is most similar to the requested one, if one is similar at all.
pub(super) fn nearest(asked: &str, known: &[String]) -> Option<String> {
    if let Some(name) = known.iter().find(|name| name.starts_with(asked)) {
        return Some(name.clone());
    }
    let distances = known.iter().map(|name| (distance(asked, name), name));
    let (edits, name) = distances.min()?;
    // Two wrong letters in a name of three still count as a typing error.
    let alike = edits * 3 <= asked.len().max(name.len()) * 2;
    alike.then(|| name.clone())
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_offered_and_a_distant_one_is_not() {
        let known = ["log".to_owned(), "orders".to_owned()];
        assert_eq!(nearest("lgo", &known).as_deref(), Some("log"));
        assert_eq!(nearest("order", &known).as_deref(), Some("orders"));
        assert_eq!(nearest("or", &known).as_deref(), Some("orders"));
        assert_eq!(nearest("payments-eu", &known), None);
        assert_eq!(nearest("log", &[]), None);
        assert_eq!((distance("", "abc"), distance("kitten", "sitting")), (3, 3));
    }

    #[test]
    fn a_missing_right_is_reported_with_verb_and_resource() {
        let status = Status { code: 403, message: "no".into(), ..Status::default() };
        let failure = PluginError::kube("get", "secrets", Some("shop"), kube::Error::Api(Box::new(status)));
        assert_eq!(failure.to_string(), "not allowed: get secrets in namespace shop: no");
        assert_eq!(failure.exit_code(), 4);
    }
}
