//! Checks what the operator does against its invariants, and panics on a violation.
//!
//! Neighbours: `api_server.rs` calls the checks before a write, and the access to the simulated nodes before a command.

use serde_json::Value;

use super::{FakeKubernetes, pem};
use crate::admin::fake::{FakeCluster, FakeNode};

impl FakeKubernetes {
    /// Returns the UUID of the node on the disk of a pod.
    pub(super) fn node_of(&self, pod: &str) -> Option<String> {
        let claim = self.get("persistentvolumeclaims", &format!("data-{pod}"))?;
        Some(format!("node-{}", claim["metadata"]["uid"].as_str()?))
    }

    fn recorded(&self, target: &str) -> Value {
        let operation = self.resource()["status"]["operation"].clone();
        if operation["target"] == target { operation } else { Value::Null }
    }

    /// Checks a deletion by the operator. The pod of a live node is deleted only with a recorded operation, after its leadership was
    /// transferred, and while the others have a majority. A claim is deleted only if its node was removed, or is dead and being replaced.
    pub(super) fn guard_delete(&self, plural: &str, object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap();
        let deleting = !self.resource()["metadata"]["deletionTimestamp"].is_null();
        match plural {
            "pods" => {
                let Some(node) = self.node_of(name) else { return };
                let cluster = self.cluster.lock();
                let Some(known) = cluster.nodes.get(&node).filter(|known| known.running && !known.removed) else {
                    return;
                };
                assert!(
                    !self.recorded(name).is_null(),
                    "pod {name} is deleted without a record: {}",
                    self.resource()["status"]
                );
                let members = cluster.nodes.values().filter(|node| !node.removed).count();
                if members > 2 {
                    assert!(cluster.quorate_without(Some(&node)), "the deletion of pod {name} loses the majority");
                    assert_ne!(cluster.leader.as_ref(), Some(&node), "pod {name} is deleted while its node leads");
                    let dead =
                        cluster.nodes.iter().find(|(id, known)| **id != node && !known.removed && !known.running);
                    assert!(dead.is_none(), "pod {name} is deleted while {dead:?} is dead");
                    let behind =
                        cluster.nodes.iter().find(|(id, known)| **id != node && !known.removed && known.behind > 0);
                    assert!(behind.is_none(), "pod {name} is deleted while {behind:?} is behind");
                    let (same, running) = (known.version.clone(), |known: &&FakeNode| known.running && !known.removed);
                    let refuses = |known: &&FakeNode| {
                        known.version == same && known.configuration.as_ref().is_some_and(|it| !it.error.is_empty())
                    };
                    let asked = self.resource()["spec"]["image"].as_str().is_some_and(|image| image.ends_with(&same));
                    let refused = cluster.nodes.values().filter(running).find(refuses).filter(|_| asked);
                    assert!(refused.is_none(), "pod {name} is deleted while {refused:?} rejects the configuration");
                }
            }
            "persistentvolumeclaims" if !deleting => {
                let pod = name.strip_prefix("data-").unwrap();
                let node = self.node_of(pod).unwrap();
                let cluster = self.cluster.lock();
                let record = self.recorded(pod);
                assert!(!record.is_null(), "claim {name} is deleted without a record");
                match record["kind"].as_str() {
                    Some("ScaleDown") => {
                        // A node may never have started on a disk that replaced a lost one.
                        let member = cluster.nodes.get(&node).is_some_and(|known| !known.removed);
                        assert!(!member, "claim {name} holds a node that is a member");
                        assert!(self.get("pods", pod).is_none(), "claim {name} is deleted before its pod");
                    }
                    Some("Replace") => {
                        let runs = cluster.nodes.get(&node).is_some_and(|known| known.running);
                        assert!(!runs, "claim {name} holds a node that runs");
                    }
                    other => panic!("claim {name} is deleted in the operation {other:?}"),
                }
            }
            _ => {}
        }
    }

    /// Checks a change of the number of pods: a pod is removed only after its node, unless all nodes are being stopped.
    pub(super) fn guard_scale(&self, old: &Value, patch: &Value) {
        let (Some(from), Some(to)) = (old["spec"]["replicas"].as_i64(), patch["spec"]["replicas"].as_i64()) else {
            return;
        };
        let stop = self.resource()["status"]["operation"]["kind"] == "Stop";
        for ordinal in to..from {
            let pod = format!("{}-{ordinal}", old["metadata"]["name"].as_str().unwrap());
            let member = self
                .node_of(&pod)
                .is_some_and(|node| self.cluster.lock().nodes.get(&node).is_some_and(|known| !known.removed));
            assert!(stop || !member, "{pod} is removed while its node is a member");
        }
    }

    /// Checks a reissue: every node must trust the CA that issues the certificate.
    pub(super) fn guard_reissue(&self, name: &str) {
        if name.ends_with("-node") || name.ends_with("-operator") {
            let ca = pem(&self.ca.lock());
            for (pod, mounted) in self.mounted.lock().iter() {
                assert!(mounted.trust.contains(&ca), "{name} is reissued by a CA that {pod} does not trust yet");
            }
        }
    }

    /// Checks a command to the cluster: the operation must be recorded.
    pub(super) fn guard_call(&self, cluster: &FakeCluster, call: &str, about: &str) {
        let Some(node) = cluster.nodes.get(about) else { return };
        let record = self.recorded(&node.name);
        assert!(!record.is_null(), "{call} of {} without a record", node.name);
        if call == "decommission" {
            assert_eq!(record["nodeId"], about, "the node to remove was not recorded");
        }
    }
}
