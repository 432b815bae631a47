//! Collects the state of a node for support, as files: the contents of `chronicle debug bundle`.
//!
//! Invariants:
//! - The files contain no secrets. Values of fields with the name of a secret are masked ([`masked`]), key files are
//!   never read, and log lines contain no secrets.
//! - The files contain no records.
//! - Everything is bounded: [`GROUPS_MAX`] raft groups, the log lines that are in memory, one scrape.
//! - When the data of a file is not available, the file contains the reason. The other files are complete.

use serde_json::json;
use serde_yaml::Value;

use crate::broker::Broker;
use crate::telemetry::{Metrics, logging};

/// Largest number of raft groups that are reported.
const GROUPS_MAX: usize = 5000;

/// Words in the name of a field whose value is a secret.
const SECRET_WORDS: [&str; 7] = ["password", "passphrase", "secret", "token", "credential", "authorization", "api-key"];
/// Replaces a secret.
const MASK: &str = "(masked)";

/// One file of a bundle.
pub(crate) struct File {
    /// Has only letters, digits, `.`, `-` and `_`.
    pub(crate) name: &'static str,
    pub(crate) contents: Vec<u8>,
}

/// Returns all files of this node. `log_bytes_max` limits the log lines, in bytes.
pub(crate) async fn files(broker: &Broker, metrics: &Metrics, log_bytes_max: usize) -> Vec<File> {
    let config = broker.config();
    let configuration = match serde_yaml::to_value(&*config) {
        Ok(value) => serde_yaml::to_string(&masked(value)).unwrap_or_else(|error| format!("# {error}\n")),
        Err(error) => format!("# {error}\n"),
    };
    let status = match broker.status().await {
        Ok(status) => format!("{status:#?}\n"),
        Err(error) => format!("not available: {error}\n"),
    };
    let version = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "node_id": broker.store().node_id(),
        "name": config.node.name,
        "operating_system": std::env::consts::OS,
        "architecture": std::env::consts::ARCH,
        "now_ms": crate::host::now_ms(),
        "readiness": format!("{:?}", broker.readiness()),
        "partitions": format!("{:?}", broker.partition_totals()),
        "controller": format!("{:?}", broker.controller_view()),
    });
    let (groups, open) = broker.replicas().group_reports(GROUPS_MAX);
    let raft = json!({ "open": open, "reported": groups.len(), "groups": groups });
    let log = match logging::control() {
        Some(control) => control.recent(log_bytes_max),
        None => "not available: the node did not set up the log of this process\n".to_owned(),
    };
    let pretty = |value: &serde_json::Value| serde_json::to_vec_pretty(value).unwrap_or_default();
    vec![
        File { name: "config.yaml", contents: configuration.into_bytes() },
        File { name: "node.json", contents: pretty(&version) },
        File { name: "status.txt", contents: status.into_bytes() },
        File { name: "metrics.txt", contents: metrics.encode().into_bytes() },
        File { name: "raft.json", contents: pretty(&raft) },
        File { name: "log.txt", contents: log.into_bytes() },
    ]
}

/// Returns a configuration with its secrets masked: values of fields with the name of a secret, keys in PEM, and
/// passwords in URLs.
fn masked(value: Value) -> Value {
    match value {
        Value::Mapping(fields) => {
            let fields = fields.into_iter().map(|(name, value)| {
                let secret = name.as_str().is_some_and(is_secret) && !value.is_null() && value.as_str() != Some("");
                let value = if secret { Value::from(MASK) } else { masked(value) };
                (name, value)
            });
            Value::Mapping(fields.collect())
        }
        Value::Sequence(values) => Value::Sequence(values.into_iter().map(masked).collect()),
        Value::String(text) if text.contains("-----BEGIN") => Value::from(MASK),
        Value::String(text) => Value::from(without_password(text)),
        other => other,
    }
}

/// Returns whether a field with this name contains a secret. The path of a file that contains a secret is not a secret.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('_', "-");
    let names_a_file = ["-file", "-path", "-dir"].iter().any(|end| name.ends_with(end));
    !names_a_file && SECRET_WORDS.iter().any(|word| name.contains(word))
}

/// Returns the URL `scheme://user:password@host` with user and password masked.
fn without_password(text: String) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((user, _)) => format!("{scheme}://{MASK}{}", &rest[user.len()..]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_wherever_they_are_and_the_rest_is_left() {
        let text = "
tls: {certificate-file: /certs/tls.crt, key-file: /certs/tls.key, key-password: hunter2, ca: '-----BEGIN PRIVATE KEY-----'}
traces:
  endpoint: https://user:hunter2@collector:4317/v1?x=@
  headers: [{authorization: hunter2}, {name: plain}]
  api_key: hunter2
store: {secret-access-key: hunter2, session_token: hunter2, token-file: /run/token, password: '', size: 7}
";
        let masked = serde_yaml::to_string(&masked(serde_yaml::from_str(text).unwrap())).unwrap();
        assert!(!masked.contains("hunter2") && !masked.contains("BEGIN"), "{masked}");
        for kept in [
            "key-file: /certs/tls.key",
            "https://(masked)@collector:4317/v1?x=@",
            "name: plain",
            "token-file: /run/token",
            "password: ''",
            "size: 7",
        ] {
            assert!(masked.contains(kept), "{kept} not in\n{masked}");
        }
        assert_eq!(masked.matches(MASK).count(), 7, "{masked}");
    }
}
