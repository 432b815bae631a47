//! The configuration file of the nodes: the same for all of them. What differs comes by environment (see `stateful_set.rs`).

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

/// A node waits this long for its predecessor on the same volume: as long as Kubernetes gives a container to end, unless told otherwise.
const LOCK_WAIT_MS: u64 = 30_000;

pub(super) fn config_map(cluster: &Cluster) -> ConfigMap {
    let expect = if cluster.founded { FOUND_NEVER } else { i64::from(cluster.founders.max(1)) };
    ConfigMap {
        metadata: cluster.metadata(format!("{}-config", cluster.name)),
        data: Some(BTreeMap::from([(FILE.to_owned(), render(cluster, expect))])),
        ..ConfigMap::default()
    }
}

/// Hash of the configuration that matters to a node that runs: without the number of founders, which only matters to one that
/// belongs nowhere yet.
pub fn config_hash(cluster: &Cluster) -> String {
    short_hash(render(cluster, 0).as_bytes())
}

fn render(cluster: &Cluster, bootstrap_expect: i64) -> String {
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
    // Keys of a serde_json map are sorted, so that the text depends on what it says and nothing else.
    serde_yaml::to_string(&root).unwrap_or_default()
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
