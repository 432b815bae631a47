//! Renders the configuration file of the nodes. All nodes have the same file; `stateful_set.rs` sets what differs by environment
//! variables.
//!
//! Invariant: live fields (`node/src/config/live-fields.txt`) are not part of [`config_hash`], and so not of the pod template. Nodes load
//! them while they run: a change of live fields alone restarts no node.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Map, Value, json};

use super::{Cluster, DATA_PORT, NEVER_BOOTSTRAP, OPERATOR_PRINCIPAL, OPS_PORT, short_hash};
use crate::api::{AuthorizationMode, ClientAuth};

/// Name of the file, in the ConfigMap and below `/etc/chronicle`.
pub(super) const FILE: &str = "chronicle.yaml";
/// Where the ConfigMap is mounted.
pub(super) const CONFIG_DIR: &str = "/etc/chronicle";
/// Where `tls.crt`, `tls.key` and `ca.crt` are mounted.
pub(super) const TLS_DIR: &str = "/etc/chronicle-tls";
/// Where the volume is mounted: the data directory itself, so that the node can check that it is a dedicated volume.
pub(super) const DATA_DIR: &str = "/var/lib/chronicle";

/// The live fields of the node: those that it applies while it runs, one path per line.
pub const LIVE_FIELDS: &str = include_str!("../../../node/src/config/live-fields.txt");

/// Longest wait of a node for the lock of a previous process on the same volume: the default grace period of Kubernetes.
const LOCK_WAIT_MS: u64 = 30_000;

pub(super) fn config_map(cluster: &Cluster) -> ConfigMap {
    let expect = if cluster.bootstrapped { NEVER_BOOTSTRAP } else { initial_members(cluster) };
    ConfigMap {
        metadata: cluster.metadata(cluster.config_map()),
        data: Some(BTreeMap::from([(FILE.to_owned(), text(&render(cluster, expect)))])),
        ..ConfigMap::default()
    }
}

/// Returns the BLAKE3 digest (lower-case hexadecimal) of each up-to-date configuration file: the current one, and the one from the
/// bootstrap of the cluster. They differ only in the number of initial nodes, which members ignore. A new cluster therefore does not
/// have to load the second file.
pub fn config_files(cluster: &Cluster) -> Vec<String> {
    let digest = |expect| blake3::hash(text(&render(cluster, expect)).as_bytes()).to_hex().to_string();
    [NEVER_BOOTSTRAP, initial_members(cluster)].map(digest).to_vec()
}

/// Returns the hash of the fields that a node reads only at its start.
pub fn config_hash(cluster: &Cluster) -> String {
    let mut root = render(cluster, NEVER_BOOTSTRAP);
    LIVE_FIELDS.lines().for_each(|path| remove(&mut root, path));
    prune(&mut root);
    short_hash(text(&root).as_bytes())
}

fn initial_members(cluster: &Cluster) -> i64 {
    i64::from(cluster.initial_nodes.max(1))
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

/// Removes empty sections, which are equivalent to absent ones.
fn prune(section: &mut Map<String, Value>) {
    section.retain(|_, value| {
        if let Value::Object(inner) = value {
            prune(inner);
        }
        value.as_object().is_none_or(|inner| !inner.is_empty())
    });
}

/// Keys of a serde_json map are sorted, so that the text depends only on the content.
fn text(root: &Map<String, Value>) -> String {
    serde_yaml::to_string(root).unwrap_or_default()
}

fn render(cluster: &Cluster, bootstrap_expect: i64) -> Map<String, Value> {
    let mut root: Map<String, Value> = cluster.spec.config.clone().into_iter().collect();
    merge(&mut root, "log", json!({"format": "json"}), false);
    // A pod that was deleted by force, or whose machine was unreachable, may still be running when its successor starts.
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
    // First, so that no rule of the spec can map the operator to another principal.
    let mut rules = vec![format!("{OPERATOR_PRINCIPAL} -> {OPERATOR_PRINCIPAL}")];
    rules.extend(asked.principal_rules.iter().cloned());
    json!({
        "tls": {
            "mode": "enabled",
            "cert-file": format!("{TLS_DIR}/tls.crt"),
            "key-file": format!("{TLS_DIR}/tls.key"),
            "ca-file": format!("{TLS_DIR}/ca.crt"),
            "client-auth": client_auth,
            // Nodes connect to the IP addresses of pods, for which no certificate is valid.
            "peer-server-name": format!("{}.{}.svc", cluster.nodes_service(), cluster.namespace),
        },
        "principal-rules": rules,
        "authorization": {
            "enabled": asked.authorization.mode == AuthorizationMode::Enabled,
            "super-users": super_users,
        },
    })
}

/// Adds fields to a section. Existing fields stay unless `force`.
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
