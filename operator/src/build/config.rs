//! The configuration file of the nodes: the same for all of them. What differs comes by environment (see `stateful_set.rs`).
//!
//! A node looks at its file while it runs and takes up what can be taken up then: the fields of `node/src/config/live-fields.txt`.
//! Only what the others say is part of [`config_hash`], and so of the pod template: a change of live fields alone reaches the pods by
//! their kubelets and restarts nobody.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Map, Value, json};

use super::{Cluster, DATA_PORT, FOUND_NEVER, OPERATOR_PRINCIPAL, OPS_PORT, short_hash};
use crate::api::{AuthorizationMode, ClientAuth};

/// Name of the file, in the ConfigMap and below `/etc/chronicle`.
pub(super) const FILE: &str = "chronicle.yaml";
/// Where the ConfigMap is mounted.
pub(super) const CONFIG_DIR: &str = "/etc/chronicle";
/// Where `tls.crt`, `tls.key` and `ca.crt` are mounted.
pub(super) const TLS_DIR: &str = "/etc/chronicle-tls";
/// Where the volume is mounted; the data directory itself, so that the node sees that it is a volume of its own.
pub(super) const DATA_DIR: &str = "/var/lib/chronicle";

/// The node's own list of the fields that it takes up while it runs, one path a line.
pub const LIVE_FIELDS: &str = include_str!("../../../node/src/config/live-fields.txt");

/// A node waits this long for its predecessor on the same volume: as long as Kubernetes gives a container to end, unless told otherwise.
const LOCK_WAIT_MS: u64 = 30_000;

pub(super) fn config_map(cluster: &Cluster) -> ConfigMap {
    let expect = if cluster.founded { FOUND_NEVER } else { founding(cluster) };
    ConfigMap {
        metadata: cluster.metadata(cluster.config_map()),
        data: Some(BTreeMap::from([(FILE.to_owned(), text(&render(cluster, expect)))])),
        ..ConfigMap::default()
    }
}

/// BLAKE3 digest (lower-case hexadecimal) of each file that says what is asked for: the one that pods are given now, and the one that
/// founders were given. They differ in the number of founders, which matters to nobody who belongs to a cluster: that a new cluster
/// has not read its second file yet is nothing to wait for.
pub fn config_files(cluster: &Cluster) -> Vec<String> {
    let digest = |expect| blake3::hash(text(&render(cluster, expect)).as_bytes()).to_hex().to_string();
    [FOUND_NEVER, founding(cluster)].map(digest).to_vec()
}

/// Hash of what a node takes from its configuration only when it starts.
pub fn config_hash(cluster: &Cluster) -> String {
    let mut root = render(cluster, FOUND_NEVER);
    LIVE_FIELDS.lines().for_each(|path| remove(&mut root, path));
    prune(&mut root);
    short_hash(text(&root).as_bytes())
}

fn founding(cluster: &Cluster) -> i64 {
    i64::from(cluster.founders.max(1))
}

fn remove(section: &mut Map<String, Value>, path: &str) {
    match path.split_once('.') {
        None => _ = section.remove(path),
        Some((name, rest)) => {
            if let Some(Value::Object(inner)) = section.get_mut(name) {
                remove(inner, rest);
            }
        }
    }
}

/// Takes sections away that hold nothing: they say as much as those that are not there.
fn prune(section: &mut Map<String, Value>) {
    section.retain(|_, value| {
        if let Value::Object(inner) = value {
            prune(inner);
        }
        value.as_object().is_none_or(|inner| !inner.is_empty())
    });
}

/// Keys of a serde_json map are sorted, so that the text depends on what it says and nothing else.
fn text(root: &Map<String, Value>) -> String {
    serde_yaml::to_string(root).unwrap_or_default()
}

fn render(cluster: &Cluster, bootstrap_expect: i64) -> Map<String, Value> {
    let mut root: Map<String, Value> = cluster.spec.config.clone().into_iter().collect();
    merge(&mut root, "log", json!({"format": "json"}), false);
    // A pod that was deleted by force, or whose machine was silent, may still run when its successor starts.
    merge(&mut root, "storage", json!({"lock-wait-ms": LOCK_WAIT_MS}), false);
    merge(&mut root, "node", json!({"data-dir": DATA_DIR}), true);
    merge(
        &mut root,
        "cluster",
        json!({
            "bootstrap-expect": bootstrap_expect,
            "discovery": "dns",
            "dns-name": format!("{}.{}.svc:{DATA_PORT}", cluster.nodes_service(), cluster.namespace),
            "voters": cluster.spec.consensus.voters,
        }),
        true,
    );
    let any = |port: i32| format!("0.0.0.0:{port}");
    merge(&mut root, "listeners", json!({"data": any(DATA_PORT), "ops": any(OPS_PORT)}), true);
    merge(&mut root, "security", security(cluster), true);
    root
}

fn security(cluster: &Cluster) -> Value {
    let asked = &cluster.spec.security;
    if !cluster.encrypted() {
        return json!({"tls": {"mode": "disabled"}, "authorization": {"enabled": false}});
    }
    let client_auth = match asked.tls.client_auth {
        ClientAuth::Optional => "optional",
        ClientAuth::Required => "required",
    };
    let mut super_users = vec![OPERATOR_PRINCIPAL.to_owned()];
    super_users.extend(asked.authorization.super_users.iter().map(|user| user.0.clone()));
    // First, so that no rule of the spec can make somebody else of the operator.
    let mut rules = vec![format!("{OPERATOR_PRINCIPAL} -> {OPERATOR_PRINCIPAL}")];
    rules.extend(asked.principal_rules.iter().cloned());
    json!({
        "tls": {
            "mode": "enabled",
            "cert-file": format!("{TLS_DIR}/tls.crt"),
            "key-file": format!("{TLS_DIR}/tls.key"),
            "ca-file": format!("{TLS_DIR}/ca.crt"),
            "client-auth": client_auth,
            // Nodes find one another by the addresses of pods, which no certificate holds.
            "peer-server-name": format!("{}.{}.svc", cluster.nodes_service(), cluster.namespace),
        },
        "principal-rules": rules,
        "authorization": {
            "enabled": asked.authorization.mode == AuthorizationMode::Enabled,
            "super-users": super_users,
        },
    })
}

/// Adds fields to a section; those that are there stay unless `force`.
fn merge(root: &mut Map<String, Value>, section: &str, fields: Value, force: bool) {
    let target = root.entry(section.to_owned()).or_insert_with(|| json!({}));
    if let (Value::Object(target), Value::Object(fields)) = (target, fields) {
        for (name, value) in fields {
            if force || !target.contains_key(&name) {
                target.insert(name, value);
            }
        }
    }
}
