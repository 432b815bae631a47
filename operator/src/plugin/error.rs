//! What went wrong, in words that say what to do, and the exit code that goes with it.

use kube::core::Status;

use crate::admin::AdminError;
use crate::controller::ReconcileError;

/// Why a command did not do what it should. Its text is for people.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// How to reach the API server is not known.
    #[error("cannot set up access to a Kubernetes cluster: {0}")]
    NoWay(String),
    /// The API server does not know the resources.
    #[error(
        "the CRD chronicleclusters.chronicle.dev is not installed: install the chart chronicle-crds, or run kubectl apply --server-side \
         -k deploy/crds"
    )]
    NoDefinitions,
    /// There is no such cluster.
    #[error("no ChronicleCluster {name} in namespace {namespace}{}", hint(.nearest, .known))]
    NoCluster {
        /// As asked for.
        name: String,
        /// Where.
        namespace: String,
        /// The name that is most like it.
        nearest: Option<String>,
        /// All names in the namespace.
        known: Vec<String>,
    },
    /// There is no such pod.
    #[error("ChronicleCluster {cluster} has no pod {pod}; its pods: {}", list(.known))]
    NoPod {
        /// As asked for.
        pod: String,
        /// Of this cluster.
        cluster: String,
        /// Those that it has.
        known: Vec<String>,
    },
    /// The person's rights do not allow it.
    #[error("not allowed: {verb} {resource}{}: {message}", in_namespace(.namespace))]
    Forbidden {
        /// Verb of the right that is missing.
        verb: String,
        /// Resource that it is about.
        resource: String,
        /// Where; `None`: a resource without namespaces.
        namespace: Option<String>,
        /// The API server's words.
        message: String,
    },
    /// The API server refused or did not answer.
    #[error("{action}: {why}")]
    ApiServer {
        /// What was tried.
        action: String,
        /// Its words.
        why: String,
    },
    /// The nodes cannot be asked.
    #[error("cannot query the nodes: {0}")]
    Nodes(String),
    /// What is asked for cannot be done now.
    #[error("{0}")]
    Refused(String),
    /// It was not done in time; it may be yet.
    #[error("{0}")]
    TimedOut(String),
    /// A file or the terminal.
    #[error("{what}: {source}")]
    Io {
        /// What was read or written.
        what: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

impl Failure {
    /// 1: it failed; 3: it was not done in time; 4: the rights do not allow it; 5: the cluster, or its definition, is not there. (2
    /// is a wrong command line.)
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::TimedOut(_) => 3,
            Self::Forbidden { .. } => 4,
            Self::NoDefinitions | Self::NoCluster { .. } | Self::NoPod { .. } => 5,
            _ => 1,
        }
    }

    /// An answer of the API server to `verb` on `resource`.
    pub(super) fn kube(verb: &str, resource: &str, namespace: Option<&str>, error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 403 => Self::Forbidden {
                verb: verb.to_owned(),
                resource: resource.to_owned(),
                namespace: namespace.map(str::to_owned),
                message: words(&status),
            },
            error => Self::ApiServer {
                action: format!("{verb} {resource}{}", in_namespace(&namespace.map(str::to_owned))),
                why: match &error {
                    kube::Error::Api(status) => words(status),
                    error => causes(error),
                },
            },
        }
    }

    /// What the operator's own code could not do with the person's rights.
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

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Self {
        match error {
            AdminError::Refused { reason, message } => {
                Self::Refused(format!("the cluster rejected the request: {reason}: {message}"))
            }
            other => Self::Nodes(other.to_string()),
        }
    }
}

/// An error and what caused it, each said once.
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

fn words(status: &Status) -> String {
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

/// The name that is most like what was asked for, if one is alike at all.
pub(super) fn nearest(asked: &str, known: &[String]) -> Option<String> {
    if let Some(name) = known.iter().find(|name| name.starts_with(asked)) {
        return Some(name.clone());
    }
    let distances = known.iter().map(|name| (distance(asked, name), name));
    let (edits, name) = distances.min()?;
    // Two letters out of place in a name of three are still a slip.
    let alike = edits * 3 <= asked.len().max(name.len()) * 2;
    alike.then(|| name.clone())
}

/// Letters to insert, delete or replace.
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
    fn the_nearest_name_is_offered_and_a_stranger_is_not() {
        let known = ["log".to_owned(), "orders".to_owned()];
        assert_eq!(nearest("lgo", &known).as_deref(), Some("log"));
        assert_eq!(nearest("order", &known).as_deref(), Some("orders"));
        assert_eq!(nearest("or", &known).as_deref(), Some("orders"));
        assert_eq!(nearest("payments-eu", &known), None);
        assert_eq!(nearest("log", &[]), None);
        assert_eq!((distance("", "abc"), distance("kitten", "sitting")), (3, 3));
    }

    #[test]
    fn a_missing_right_is_told_by_verb_and_resource() {
        let status = Status { code: 403, message: "no".into(), ..Status::default() };
        let failure = Failure::kube("get", "secrets", Some("shop"), kube::Error::Api(Box::new(status)));
        assert_eq!(failure.to_string(), "not allowed: get secrets in namespace shop: no");
        assert_eq!(failure.exit_code(), 4);
    }
}
