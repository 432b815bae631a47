use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::reconcile;
use crate::api::{ChronicleCluster, MemberState};
use crate::controller::fake_kubernetes::{FakeKubernetes, NEW_FIELD, NONSENSE, pem};
use crate::controller::{Context, ReconcileError};

const NAME: &str = "log";

fn spec(replicas: i32) -> Value {
    json!({
        "image": "chronicle:1.0.0",
        "replicas": replicas,
        "storage": {"size": "1Gi"},
    })
}

fn with_cluster(replicas: i32) -> FakeKubernetes {
    let fake = FakeKubernetes::new();
    create(&fake, spec(replicas));
    fake
}

fn create(fake: &FakeKubernetes, spec: Value) {
    let resource = json!({
        "apiVersion": "chronicle.dev/v1alpha1", "kind": "ChronicleCluster",
        "metadata": {"name": NAME}, "spec": spec,
    });
    fake.put("chronicleclusters", resource);
}

fn edit(fake: &FakeKubernetes, change: impl FnOnce(&mut Value)) {
    fake.edit("chronicleclusters", NAME, |resource| change(&mut resource["spec"]));
}

/// Runs one reconcile.
async fn reconcile_once(fake: &FakeKubernetes, context: &Context) -> Result<(), ReconcileError> {
    let Some(resource) = fake.get("chronicleclusters", NAME) else { return Ok(()) };
    let resource: ChronicleCluster = serde_json::from_value(resource).unwrap();
    reconcile(Arc::new(resource), context.clone()).await.map(drop)
}

fn status(fake: &FakeKubernetes) -> Value {
    fake.get("chronicleclusters", NAME).unwrap()["status"].clone()
}

fn condition(fake: &FakeKubernetes, kind: &str) -> (String, String) {
    let status = status(fake);
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|condition| condition["type"] == kind).cloned().unwrap_or_default();
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

/// Alternates reconciles and ticks until `done`. A new operator follows one that died.
async fn until(fake: &FakeKubernetes, what: &str, done: impl Fn(&FakeKubernetes) -> bool) {
    let mut operator = fake.operator();
    for _ in 0..600 {
        if done(fake) {
            return;
        }
        if reconcile_once(fake, &operator).await.is_err() && fake.dies_after.load(Ordering::Relaxed) != usize::MAX {
            fake.dies_after.store(usize::MAX, Ordering::Relaxed);
            operator = fake.operator();
        }
        fake.tick();
    }
    let status = serde_json::to_string_pretty(&status(fake)).unwrap();
    panic!("not {what} after 600 reconciles; pods {:?}; status {status}", fake.names("pods"));
}

/// Returns whether the status describes the latest spec.
fn up_to_date(fake: &FakeKubernetes) -> bool {
    let resource = fake.get("chronicleclusters", NAME).unwrap();
    resource["status"]["observedGeneration"] == resource["metadata"]["generation"]
}

fn stopped(fake: &FakeKubernetes) -> bool {
    up_to_date(fake) && fake.names("pods").is_empty() && condition(fake, "Progressing").1 == "Stopped"
}

fn settled(fake: &FakeKubernetes, nodes: usize) -> bool {
    let members = fake.cluster.lock().nodes.values().filter(|node| !node.removed && node.running).count();
    members == nodes
        && fake.names("pods").len() == nodes
        && up_to_date(fake)
        && status(fake)["operation"].is_null()
        && condition(fake, "Progressing") == ("False".into(), "Settled".into())
        && condition(fake, "UpToDate").0 == "True"
}

async fn settle(fake: &FakeKubernetes, nodes: usize) {
    until(fake, &format!("settled with {nodes} nodes"), |fake| settled(fake, nodes)).await;
}

#[tokio::test]
async fn a_cluster_is_created_and_reports_what_it_is() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    let status = status(&fake);
    assert_eq!(status["clusterId"], "simulated");
    assert_eq!((&status["size"], &status["readyReplicas"]), (&json!(3), &json!(3)));
    assert_eq!(status["quorum"], json!({"voters": 3, "healthy": 3, "needed": 2, "faultTolerance": 1}));
    for (kind, holds) in
        [("Available", "True"), ("Quorate", "True"), ("Degraded", "False"), ("CertificatesValid", "True")]
    {
        assert_eq!(condition(&fake, kind).0, holds, "{kind}");
    }
    assert_eq!(fake.names("services"), ["log", "log-nodes"]);
    let config = fake.get("configmaps", "log-config").unwrap()["data"]["chronicle.yaml"].as_str().unwrap().to_owned();
    assert!(config.contains("bootstrap-expect: 99"), "an existing cluster must not bootstrap again: {config}");
}

#[tokio::test]
async fn a_converged_cluster_costs_no_write() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    fake.writes.lock().clear();
    let operator = fake.operator();
    for _ in 0..20 {
        reconcile_once(&fake, &operator).await.unwrap();
        fake.tick();
    }
    assert_eq!(*fake.writes.lock(), Vec::<String>::new());
}

#[tokio::test]
async fn nodes_join_one_by_one_and_leave_with_their_volumes() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    edit(&fake, |spec| spec["replicas"] = 5.into());
    settle(&fake, 5).await;
    edit(&fake, |spec| spec["replicas"] = 3.into());
    settle(&fake, 3).await;
    assert_eq!(fake.names("persistentvolumeclaims"), ["data-log-0", "data-log-1", "data-log-2"]);
    let calls = fake.cluster.lock().calls.clone();
    assert_eq!(calls.iter().filter(|call| call.starts_with("decommission")).count(), 2, "{calls:?}");
    edit(&fake, |spec| spec["replicas"] = 4.into());
    settle(&fake, 4).await;
}

#[tokio::test]
async fn a_kept_volume_blocks_scaling_up_and_the_message_has_the_command() {
    let fake = FakeKubernetes::new();
    let mut kept = spec(4);
    kept["storage"]["retention"] = json!({"whenScaled": "Retain"});
    create(&fake, kept);
    settle(&fake, 4).await;
    edit(&fake, |spec| spec["replicas"] = 3.into());
    settle(&fake, 3).await;
    let claim = fake.get("persistentvolumeclaims", "data-log-3").unwrap();
    assert!(claim["metadata"]["annotations"]["chronicle.dev/removed-node"].is_string());
    edit(&fake, |spec| spec["replicas"] = 4.into());
    until(&fake, "blocked", |fake| condition(fake, "Degraded").1 == "VolumeInTheWay").await;
    let command = "kubectl delete persistentvolumeclaim data-log-3 --namespace ns";
    assert!(status(&fake).to_string().contains(command), "{}", status(&fake));
    fake.delete("persistentvolumeclaims", "data-log-3");
    settle(&fake, 4).await;
}

#[tokio::test]
async fn a_roll_takes_the_leader_last() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    let leader = status(&fake)["leader"].as_str().unwrap().to_owned();
    fake.writes.lock().clear();
    edit(&fake, |spec| spec["image"] = "chronicle:1.1.0".into());
    let reported = Mutex::new(BTreeSet::new());
    until(&fake, "rolled", |fake| {
        reported.lock().insert(condition(fake, "Degraded"));
        fake.images() == ["chronicle:1.1.0"; 3] && settled(fake, 3)
    })
    .await;
    let reported = reported.into_inner();
    assert!(
        reported.iter().all(|(degraded, _)| degraded == "False"),
        "a planned restart is reported as Degraded: {reported:?}"
    );
    let deleted: Vec<String> =
        fake.writes.lock().iter().filter(|write| write.starts_with("DELETE pods/")).cloned().collect();
    assert_eq!(deleted.len(), 3, "{deleted:?}");
    assert!(deleted[2].contains(&leader), "{deleted:?} with leader {leader}");
    assert_eq!(fake.images(), ["chronicle:1.1.0"; 3]);
    assert_eq!(fake.revisions().len(), 1);
}

fn configure(fake: &FakeKubernetes, config: Value) {
    edit(fake, |spec| spec["config"] = config);
}

fn uids(fake: &FakeKubernetes) -> Vec<Value> {
    fake.names("pods").iter().map(|pod| fake.get("pods", pod).unwrap()["metadata"]["uid"].clone()).collect()
}

fn deleted_pods(fake: &FakeKubernetes) -> usize {
    fake.writes.lock().iter().filter(|write| write.starts_with("DELETE pods/")).count()
}

#[tokio::test]
async fn a_live_setting_reaches_the_nodes_without_a_restart() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    let (before, template) = (uids(&fake), fake.get("statefulsets", NAME).unwrap()["spec"]["template"].clone());
    fake.writes.lock().clear();
    configure(&fake, json!({"limits": {"connections-max": 1000}}));
    let operator = fake.operator();
    reconcile_once(&fake, &operator).await.unwrap();
    let file = fake.get("configmaps", "log-config").unwrap()["data"]["chronicle.yaml"].to_string();
    assert!(file.contains("connections-max: 1000"), "{file}");
    assert_eq!(*fake.writes.lock(), ["PATCH configmaps/log-config ", "PUT chronicleclusters/log status"]);
    assert_eq!(condition(&fake, "UpToDate"), ("False".into(), "ConfigurationPending".into()));
    assert_eq!(condition(&fake, "Progressing"), ("True".into(), "ConfigurationPending".into()));
    assert_eq!(condition(&fake, "Degraded").0, "False");
    assert!(
        status(&fake).to_string().contains("current configuration file: log-0, log-1, log-2;"),
        "{}",
        status(&fake)
    );
    let resource: ChronicleCluster = serde_json::from_value(fake.get("chronicleclusters", NAME).unwrap()).unwrap();
    let again = format!("{:?}", reconcile(Arc::new(resource), operator.clone()).await.unwrap());
    assert!(again.contains("5s"), "there is no watch for the files that nodes have loaded: {again}");
    settle(&fake, 3).await;
    assert_eq!((uids(&fake), &fake.get("statefulsets", NAME).unwrap()["spec"]["template"]), (before, &template));
    fake.writes.lock().clear();
    for _ in 0..20 {
        reconcile_once(&fake, &operator).await.unwrap();
        fake.tick();
    }
    assert_eq!(*fake.writes.lock(), Vec::<String>::new());
}

#[tokio::test]
async fn the_operator_does_not_wait_for_nodes_that_do_not_report_their_file() {
    let fake = with_cluster(3);
    fake.mute.store(true, Ordering::Relaxed);
    settle(&fake, 3).await;
    let before = uids(&fake);
    configure(&fake, json!({"limits": {"connections-max": 1000}}));
    reconcile_once(&fake, &fake.operator()).await.unwrap();
    assert!(settled(&fake, 3), "{}", status(&fake));
    assert_eq!(uids(&fake), before);
}

#[tokio::test]
async fn an_unreachable_cluster_is_not_up_to_date() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    configure(&fake, json!({"limits": {"connections-max": 1000}}));
    fake.cluster.lock().failing_reads = 1;
    let operator = fake.operator();
    reconcile_once(&fake, &operator).await.unwrap();
    assert_eq!(condition(&fake, "UpToDate"), ("Unknown".into(), "ClusterUnknown".into()));
    reconcile_once(&fake, &operator).await.unwrap();
    assert_eq!(condition(&fake, "UpToDate"), ("False".into(), "ConfigurationPending".into()));
}

#[tokio::test]
async fn a_rejected_setting_is_reported_once_and_restarts_no_node() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    let before = uids(&fake);
    configure(&fake, json!({"limits": {"connections-max": NONSENSE}}));
    let refused = ("True".to_owned(), "ConfigurationRefused".to_owned());
    until(&fake, "reported", |fake| condition(fake, "Degraded") == refused).await;
    assert_eq!(condition(&fake, "UpToDate"), ("False".into(), "ConfigurationRefused".into()));
    assert!(status(&fake).to_string().contains("log-0 rejects") && status(&fake).to_string().contains(NONSENSE));
    // Together with a field that needs a restart.
    configure(&fake, json!({"limits": {"connections-max": NONSENSE}, "partitions": {"queue-bytes-max": "32MiB"}}));
    fake.writes.lock().clear();
    let operator = fake.operator();
    for _ in 0..200 {
        reconcile_once(&fake, &operator).await.unwrap();
        fake.tick();
    }
    assert_eq!((deleted_pods(&fake), uids(&fake)), (0, before.clone()));
    assert_eq!(condition(&fake, "Progressing"), ("False".into(), "ConfigurationRefused".into()));
    assert_eq!(condition(&fake, "Available").0, "True");
    let events = fake.events.lock().iter().filter(|reason| *reason == "ConfigurationRefused").count();
    assert_eq!(events, 1, "{:?}", fake.events.lock());
    // A dead node is more urgent, also if the rejection blocks further operations.
    configure(&fake, json!({"limits": {"connections-max": NONSENSE}}));
    edit(&fake, |spec| spec["replicas"] = 4.into());
    fake.edit("pods", "log-2", |pod| pod["metadata"]["annotations"]["stuck"] = "yes".into());
    fake.tick();
    for _ in 0..20 {
        reconcile_once(&fake, &operator).await.unwrap();
    }
    assert_eq!(condition(&fake, "Degraded").1, "NodesDead");
    assert_eq!(condition(&fake, "Progressing").1, "ConfigurationRefused");
    let events = fake.events.lock().iter().filter(|reason| *reason == "ConfigurationRefused").count();
    assert_eq!(events, 1, "{:?}", fake.events.lock());
    edit(&fake, |spec| spec["replicas"] = 3.into());
    fake.edit("pods", "log-2", |pod| drop(pod["metadata"]["annotations"].as_object_mut().unwrap().remove("stuck")));

    configure(&fake, json!({"limits": {"connections-max": 1000}, "partitions": {"queue-bytes-max": "32MiB"}}));
    settle(&fake, 3).await;
    assert!(uids(&fake).iter().all(|uid| !before.contains(uid)), "fields that need a restart are rolled out now");
}

#[tokio::test]
async fn a_value_that_prevents_a_start_reaches_one_pod_at_most_and_can_be_corrected() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    let before = uids(&fake);
    configure(&fake, json!({"partitions": {"queue-bytes-max": NONSENSE}}));
    until(&fake, "restarted", |fake| uids(fake) != before).await;
    let operator = fake.operator();
    for _ in 0..200 {
        let _ = reconcile_once(&fake, &operator).await;
        fake.tick();
    }
    assert_eq!(uids(&fake).iter().filter(|uid| !before.contains(uid)).count(), 1);
    let refuses = |fake: &FakeKubernetes| {
        let nodes = &fake.cluster.lock().nodes;
        nodes.values().filter(|node| node.configuration.as_ref().is_some_and(|known| !known.error.is_empty())).count()
    };
    assert!(refuses(&fake) >= 2, "the others have loaded it by now");
    assert_eq!(condition(&fake, "Quorate").0, "True");
    configure(&fake, json!({"partitions": {"queue-bytes-max": "32MiB"}}));
    settle(&fake, 3).await;
    assert_eq!(refuses(&fake), 0);
}

#[tokio::test]
async fn the_next_version_is_rolled_out_over_nodes_that_reject_its_fields() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    edit(&fake, |spec| {
        spec["config"] = json!({"partitions": {NEW_FIELD: true}});
        spec["image"] = "chronicle:1.1.0".into();
    });
    reconcile_once(&fake, &fake.operator()).await.unwrap();
    for _ in 0..100 {
        fake.tick();
    }
    let refuses =
        |node: &crate::admin::fake::FakeNode| node.configuration.as_ref().is_some_and(|known| !known.error.is_empty());
    assert!(fake.cluster.lock().nodes.values().all(refuses), "the nodes have read the new file before the roll");
    settle(&fake, 3).await;
    assert_eq!(fake.images(), ["chronicle:1.1.0"; 3]);
}

#[tokio::test]
async fn nodes_that_cannot_apply_a_live_setting_are_restarted_once_each() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    let before = uids(&fake);
    fake.writes.lock().clear();
    fake.stubborn.lock().insert("limits.connections-max".into());
    configure(&fake, json!({"limits": {"connections-max": 1000}}));
    settle(&fake, 3).await;
    assert!(uids(&fake).iter().all(|uid| !before.contains(uid)));
    assert_eq!(deleted_pods(&fake), 3);
}

#[tokio::test]
async fn an_image_that_does_not_start_stops_the_roll_at_one_pod_and_can_be_corrected() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    fake.broken_images.lock().insert("chronicle:broken".into());
    edit(&fake, |spec| spec["image"] = "chronicle:broken".into());
    until(&fake, "stuck", |fake| fake.images().contains(&"chronicle:broken".to_owned())).await;
    let operator = fake.operator();
    for _ in 0..50 {
        let _ = reconcile_once(&fake, &operator).await;
        fake.tick();
    }
    assert_eq!(fake.images().iter().filter(|image| *image == "chronicle:broken").count(), 1);
    assert_eq!(condition(&fake, "Quorate").0, "True");
    until(&fake, "reported", |fake| condition(fake, "Degraded") == ("True".into(), "NodesDead".into())).await;
    edit(&fake, |spec| spec["image"] = "chronicle:1.1.0".into());
    settle(&fake, 3).await;
    assert_eq!(fake.images(), ["chronicle:1.1.0"; 3]);
}

#[tokio::test]
async fn a_cluster_that_never_started_can_be_corrected() {
    let fake = FakeKubernetes::new();
    fake.broken_images.lock().insert("chronicle:broken".into());
    let mut broken = spec(3);
    broken["image"] = "chronicle:broken".into();
    create(&fake, broken);
    until(&fake, "started", |fake| fake.names("pods").len() == 3).await;
    edit(&fake, |spec| spec["image"] = "chronicle:1.0.0".into());
    settle(&fake, 3).await;
}

#[tokio::test]
async fn volumes_grow_even_while_no_node_runs() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    for ordinal in 0..3 {
        fake.edit("pods", &format!("log-{ordinal}"), |pod| pod["metadata"]["annotations"]["stuck"] = "yes".into());
    }
    fake.tick();
    edit(&fake, |spec| spec["storage"]["size"] = "2Gi".into());
    let grown = |fake: &FakeKubernetes| {
        let size = |name: String| {
            fake.get("persistentvolumeclaims", &name).unwrap()["spec"]["resources"]["requests"]["storage"].clone()
        };
        fake.names("persistentvolumeclaims").into_iter().all(|name| size(name) == "2Gi")
            && fake.get("statefulsets", NAME).is_some_and(|set| {
                set["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] == "2Gi"
            })
    };
    until(&fake, "grown", grown).await;
    assert_eq!(fake.names("pods").len(), 3, "pods survive the recreation of the StatefulSet");
}

#[tokio::test]
async fn a_storage_class_that_does_not_grow_is_reported_and_stops_nothing_else() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    fake.no_growth.store(true, Ordering::Relaxed);
    edit(&fake, |spec| {
        spec["storage"]["size"] = "2Gi".into();
        spec["image"] = "chronicle:1.1.0".into();
    });
    until(&fake, "rolled", |fake| fake.images() == ["chronicle:1.1.0"; 3]).await;
    until(&fake, "reported", |fake| condition(fake, "StorageHealthy") == ("False".into(), "GrowthRefused".into()))
        .await;
}

#[tokio::test]
async fn all_nodes_stop_and_start_again_with_their_data() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    let before: Vec<String> = fake.cluster.lock().nodes.keys().cloned().collect();
    edit(&fake, |spec| spec["replicas"] = 0.into());
    until(&fake, "stopped", stopped).await;
    assert_eq!(fake.names("persistentvolumeclaims").len(), 3);
    edit(&fake, |spec| spec["replicas"] = 3.into());
    settle(&fake, 3).await;
    assert_eq!(fake.cluster.lock().nodes.keys().cloned().collect::<Vec<_>>(), before);
}

#[tokio::test]
async fn a_paused_cluster_is_only_reported() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    edit(&fake, |spec| {
        spec["reconciliation"] = "Paused".into();
        spec["replicas"] = 5.into();
    });
    fake.writes.lock().clear();
    let operator = fake.operator();
    for _ in 0..20 {
        reconcile_once(&fake, &operator).await.unwrap();
        fake.tick();
    }
    let writes = fake.writes.lock().clone();
    assert!(writes.iter().all(|write| write.contains("chronicleclusters")), "{writes:?}");
    assert_eq!(condition(&fake, "Progressing").1, "Paused");
    edit(&fake, |spec| spec["reconciliation"] = "Active".into());
    settle(&fake, 5).await;
}

#[tokio::test]
async fn drift_is_corrected_and_foreign_objects_are_left_alone() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    fake.edit("services", "log-nodes", |service| service["spec"]["publishNotReadyAddresses"] = false.into());
    fake.delete("configmaps", "log-config");
    reconcile_once(&fake, &fake.operator()).await.unwrap();
    assert_eq!(fake.get("services", "log-nodes").unwrap()["spec"]["publishNotReadyAddresses"], true);
    assert!(fake.get("configmaps", "log-config").is_some());

    let other = FakeKubernetes::new();
    other.put(
        "services",
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "log"}, "spec": {"mine": true}}),
    );
    create(&other, spec(3));
    let operator = other.operator();
    let _ = reconcile_once(&other, &operator).await;
    let refused = reconcile_once(&other, &operator).await;
    assert!(matches!(refused, Err(ReconcileError::Foreign { .. })), "{refused:?}");
    assert_eq!(condition(&other, "Degraded"), ("True".into(), "ForeignObject".into()));
    assert_eq!(other.get("services", "log").unwrap()["spec"], json!({"mine": true}));
    assert!(other.names("statefulsets").is_empty());
}

#[tokio::test]
async fn a_renumbered_port_is_corrected_without_a_new_service() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    let before = fake.get("services", "log").unwrap();
    fake.edit("services", "log", |service| {
        service["spec"]["ports"][0]["port"] = 7401.into();
        service["spec"]["clusterIP"] = "10.0.0.7".into();
    });
    let operator = fake.operator();
    reconcile_once(&fake, &operator).await.unwrap();
    let after = fake.get("services", "log").unwrap();
    assert_eq!(after["spec"]["ports"], before["spec"]["ports"]);
    assert_eq!(after["spec"]["clusterIP"], "10.0.0.7", "what the API server allocated stays");
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    fake.writes.lock().clear();
    for _ in 0..5 {
        reconcile_once(&fake, &operator).await.unwrap();
    }
    assert_eq!(*fake.writes.lock(), Vec::<String>::new());
}

#[tokio::test]
async fn additions_to_the_pod_template_are_removed_without_a_restart() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    fake.edit("statefulsets", NAME, |set| {
        let containers = set["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap();
        containers.push(json!({"name": "sidecar", "image": "other"}));
    });
    fake.writes.lock().clear();
    let operator = fake.operator();
    for _ in 0..5 {
        reconcile_once(&fake, &operator).await.unwrap();
        fake.tick();
    }
    let set = fake.get("statefulsets", NAME).unwrap();
    assert_eq!(set["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 1);
    let writes = fake.writes.lock().clone();
    assert_eq!(
        writes,
        ["PATCH statefulsets/log ", "PATCH statefulsets/log "],
        "an apply, and the overwrite of what it keeps"
    );
}

#[tokio::test]
async fn a_webhook_that_reverts_every_write_does_not_cause_endless_writes() {
    let fake = with_cluster(3);
    *fake.webhook.lock() = Some(|plural, object| {
        if plural == "configmaps" && object["metadata"]["name"] == "log-config" {
            object["data"]["chronicle.yaml"] = "mine".into();
        }
    });
    // The file that nodes read does not match the spec.
    until(&fake, "reported", |fake| condition(fake, "UpToDate") == ("False".into(), "ConfigurationPending".into()))
        .await;
    for _ in 0..100 {
        fake.tick();
    }
    let operator = fake.operator();
    reconcile_once(&fake, &operator).await.unwrap();
    reconcile_once(&fake, &operator).await.unwrap();
    fake.writes.lock().clear();
    for _ in 0..5 {
        reconcile_once(&fake, &operator).await.unwrap();
    }
    assert_eq!(*fake.writes.lock(), Vec::<String>::new());
    *fake.webhook.lock() = None;
    fake.edit("configmaps", "log-config", |map| map["data"]["chronicle.yaml"] = "yours".into());
    reconcile_once(&fake, &operator).await.unwrap();
    let text = fake.get("configmaps", "log-config").unwrap()["data"]["chronicle.yaml"].clone();
    assert!(text.as_str().unwrap().contains("bootstrap-expect"), "{text}");
}

#[tokio::test]
async fn objects_that_are_no_longer_desired_are_deleted() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    assert_eq!(fake.names("networkpolicies"), ["log"]);
    edit(&fake, |spec| spec["networkPolicy"] = json!({"mode": "Disabled"}));
    settle(&fake, 3).await;
    assert!(fake.names("networkpolicies").is_empty());
}

#[tokio::test]
async fn a_deleted_cluster_keeps_its_data_and_a_new_one_uses_it() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    let before: Vec<String> = fake.cluster.lock().nodes.keys().cloned().collect();
    fake.delete("chronicleclusters", NAME);
    until(&fake, "gone", |fake| fake.get("chronicleclusters", NAME).is_none() && fake.names("pods").is_empty()).await;
    assert_eq!(fake.names("persistentvolumeclaims").len(), 3);
    create(&fake, spec(3));
    settle(&fake, 3).await;
    assert_eq!(fake.cluster.lock().nodes.keys().cloned().collect::<Vec<_>>(), before);
}

#[tokio::test]
async fn a_deleted_cluster_deletes_its_data_under_the_policy_delete() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    edit(&fake, |spec| spec["storage"]["retention"] = json!({"whenDeleted": "Delete"}));
    fake.delete("chronicleclusters", NAME);
    until(&fake, "gone", |fake| {
        fake.get("chronicleclusters", NAME).is_none() && fake.names("persistentvolumeclaims").is_empty()
    })
    .await;
}

#[tokio::test]
async fn an_invalid_spec_waits_for_an_edit_and_changes_nothing() {
    let fake = FakeKubernetes::new();
    let mut wrong = spec(3);
    wrong["config"] = json!({"listeners": {"data": "0.0.0.0:1"}});
    create(&fake, wrong);
    let operator = fake.operator();
    for _ in 0..3 {
        reconcile_once(&fake, &operator).await.unwrap();
    }
    assert_eq!(condition(&fake, "Degraded"), ("True".into(), "InvalidSpec".into()));
    assert!(fake.names("services").is_empty());
    edit(&fake, |spec| spec["config"] = json!({"limits": {"topics-max": 5}}));
    settle(&fake, 3).await;
}

#[tokio::test]
async fn a_disk_that_was_deleted_with_its_pod_is_replaced_by_an_empty_one() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    fake.delete("persistentvolumeclaims", "data-log-1");
    fake.delete("pods", "log-1");
    until(&fake, "lost", |fake| fake.cluster.lock().nodes.values().any(|node| node.removed)).await;
    settle(&fake, 3).await;
    assert_eq!(fake.cluster.lock().nodes.values().filter(|node| node.removed).count(), 1);
}

#[tokio::test]
async fn a_lost_node_is_replaced_on_request() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    let old = fake.get("persistentvolumeclaims", "data-log-2").unwrap()["metadata"]["uid"].clone();
    fake.edit("pods", "log-2", |pod| pod["metadata"]["annotations"]["stuck"] = "yes".into());
    fake.tick();
    let operator = fake.operator();
    for _ in 0..20 {
        reconcile_once(&fake, &operator).await.unwrap();
        fake.tick();
    }
    assert_eq!(
        fake.get("persistentvolumeclaims", "data-log-2").unwrap()["metadata"]["uid"],
        old,
        "there was no request"
    );
    fake.edit("chronicleclusters", NAME, |resource| {
        resource["metadata"]["annotations"] = json!({"chronicle.dev/replace": "log-2"});
    });
    settle(&fake, 3).await;
    assert_ne!(fake.get("persistentvolumeclaims", "data-log-2").unwrap()["metadata"]["uid"], old);
    let asked =
        fake.get("chronicleclusters", NAME).unwrap()["metadata"]["annotations"]["chronicle.dev/replace"].clone();
    assert!(asked.is_null(), "the request would also apply to the next failure");
}

#[tokio::test]
async fn a_request_to_replace_a_healthy_node_is_removed() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    fake.edit("chronicleclusters", NAME, |resource| {
        resource["metadata"]["annotations"] = json!({"chronicle.dev/replace": "log-2"});
    });
    settle(&fake, 3).await;
    let resource = fake.get("chronicleclusters", NAME).unwrap();
    assert!(resource["metadata"]["annotations"]["chronicle.dev/replace"].is_null());
    assert!(fake.cluster.lock().nodes.values().all(|node| !node.removed));
}

#[tokio::test]
async fn nodes_of_another_cluster_than_before_block_everything() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    fake.edit("chronicleclusters", NAME, |resource| resource["status"]["clusterId"] = "another".into());
    edit(&fake, |spec| spec["image"] = "chronicle:1.1.0".into());
    until(&fake, "blocked", |fake| condition(fake, "Degraded").1 == "ClusterIdMismatch").await;
    assert_eq!(fake.images(), ["chronicle:1.0.0"; 3]);
}

#[tokio::test]
async fn a_version_two_minors_ahead_is_not_rolled_out() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    edit(&fake, |spec| {
        spec["image"] = "chronicle:1.2.0".into();
        spec["version"] = "1.2.0".into();
    });
    until(&fake, "blocked", |fake| condition(fake, "Degraded").1 == "VersionGate").await;
    assert_eq!(fake.images(), ["chronicle:1.0.0"; 3]);
}

#[tokio::test]
async fn an_image_with_another_version_than_the_spec_stops_the_roll_at_one_pod() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    edit(&fake, |spec| {
        spec["image"] = "chronicle:1.0.7".into();
        spec["version"] = "1.1.0".into();
    });
    until(&fake, "blocked", |fake| condition(fake, "Degraded").1 == "VersionMismatch").await;
    assert_eq!(fake.images().iter().filter(|image| *image == "chronicle:1.0.7").count(), 1);
    edit(&fake, |spec| spec["version"] = "1.0.7".into());
    settle(&fake, 3).await;
}

#[tokio::test]
async fn a_new_certificate_authority_is_trusted_before_it_signs_and_the_former_one_for_a_day() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    for _ in 0..200 {
        fake.tick();
    }
    let (old, new) = (pem("T0xE"), pem("TkVX"));
    let trust = |fake: &FakeKubernetes| fake.get("configmaps", "log-trust").unwrap()["data"]["ca.crt"].clone();
    assert_eq!(trust(&fake), old);
    // As a person does: cert-manager then issues a new CA.
    *fake.ca.lock() = "TkVX".into();
    fake.delete("secrets", "log-ca");
    let began = fake.seconds.load(Ordering::Relaxed);
    until(&fake, "trusted", |fake| trust(fake) == format!("{old}{new}")).await;
    // The fake panics if a node does not trust a CA that is about to sign.
    until(&fake, "signed", |fake| fake.issued_by("log-node-tls") == new && fake.issued_by("log-operator-tls") == new)
        .await;
    until(&fake, "at rest", |fake| condition(fake, "CertificatesValid") == ("True".into(), "Valid".into())).await;
    let took = fake.seconds.load(Ordering::Relaxed) - began;
    assert!(took >= 150, "after {took} s some clients do not trust it yet");
    let operator = fake.operator();
    for _ in 0..10 {
        reconcile_once(&fake, &operator).await.unwrap();
        fake.tick();
    }
    assert_eq!(trust(&fake), format!("{old}{new}"), "the simulated nodes do not report what they serve");
    assert_eq!(fake.images().len(), 3);
    assert!(settled(&fake, 3), "a rotation restarts no node");
}

#[tokio::test]
async fn an_issuer_that_is_missing_or_not_ready_is_named() {
    let fake = FakeKubernetes::new();
    let mut given = spec(3);
    given["security"] = json!({"tls": {"issuerRef": {"name": "corporate"}}});
    create(&fake, given);
    fake.no_certificates.store(true, Ordering::Relaxed);
    let certificates = |fake: &FakeKubernetes| condition(fake, "CertificatesValid");
    until(&fake, "reported", |fake| certificates(fake) == ("False".into(), "IssuerMissing".into())).await;
    let not_ready = json!({"conditions": [{"type": "Ready", "status": "False", "message": "the vault is sealed"}]});
    fake.put(
        "issuers",
        json!({
            "apiVersion": "cert-manager.io/v1", "kind": "Issuer", "metadata": {"name": "corporate"}, "status": not_ready,
        }),
    );
    until(&fake, "reported", |fake| certificates(fake) == ("False".into(), "IssuerNotReady".into())).await;
    assert!(status(&fake).to_string().contains("the vault is sealed"));
    fake.edit("issuers", "corporate", |issuer| issuer["status"] = json!({}));
    fake.no_certificates.store(false, Ordering::Relaxed);
    settle(&fake, 3).await;
}

#[tokio::test]
async fn a_storage_class_that_does_not_exist_is_named() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    fake.edit("persistentvolumeclaims", "data-log-1", |claim| {
        claim["spec"]["storageClassName"] = "fast".into();
        claim["status"] = json!({"phase": "Pending"});
    });
    let storage = |fake: &FakeKubernetes| condition(fake, "StorageHealthy");
    until(&fake, "reported", |fake| storage(fake) == ("False".into(), "StorageClassMissing".into())).await;
    assert!(status(&fake).to_string().contains("requests StorageClass fast"));
    fake.put("storageclasses", json!({"metadata": {"name": "fast"}}));
    until(&fake, "reported", |fake| storage(fake) == ("True".into(), "Healthy".into())).await;
}

#[tokio::test]
async fn a_step_without_effect_is_repeated_with_back_off() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    fake.broken_images.lock().insert("chronicle:broken".into());
    edit(&fake, |spec| spec["image"] = "chronicle:broken".into());
    until(&fake, "stuck", |fake| fake.images().contains(&"chronicle:broken".to_owned())).await;
    fake.tick();
    edit(&fake, |spec| spec["image"] = "chronicle:1.1.0".into());
    let operator = fake.operator();
    // The deletion of the pod has no effect.
    fake.forbidden.lock().insert("404 pods".into());
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let resource: ChronicleCluster = serde_json::from_value(fake.get("chronicleclusters", NAME).unwrap()).unwrap();
        pauses.push(format!("{:?}", reconcile(Arc::new(resource), operator.clone()).await.unwrap()));
    }
    assert!(pauses.last().unwrap().contains("6.4s"), "{pauses:?}");
}

#[tokio::test]
async fn an_api_server_that_keeps_failing_is_reported() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    let operator = fake.operator();
    fake.forbidden.lock().insert("503 networkpolicies".into());
    for _ in 0..6 {
        // As the controller does.
        if reconcile_once(&fake, &operator).await.is_err() {
            operator.failed("ChronicleCluster/ns/log");
        }
    }
    assert_eq!(condition(&fake, "Progressing"), ("True".into(), "ApiServerFailed".into()));
    assert!(status(&fake).to_string().contains("list NetworkPolicy"));
    fake.forbidden.lock().clear();
    settle(&fake, 3).await;
}

/// The state after a change.
#[derive(Debug, PartialEq)]
struct FinalState {
    pods: Vec<String>,
    images: Vec<String>,
    claims: Vec<String>,
    members: usize,
    removed: usize,
}

/// Makes a change in a copy of `start` and waits for its end. The operator dies after `dies_after` effective calls.
async fn run_change(
    start: &FakeKubernetes,
    change: &dyn Fn(&FakeKubernetes),
    done: &dyn Fn(&FakeKubernetes) -> bool,
    dies_after: usize,
) -> (FinalState, FakeKubernetes) {
    let fake = start.fork();
    fake.dies_after.store(dies_after, Ordering::Relaxed);
    change(&fake);
    until(&fake, "done", done).await;
    let end = {
        let cluster = fake.cluster.lock();
        FinalState {
            pods: fake.names("pods"),
            images: fake.images(),
            claims: fake.names("persistentvolumeclaims"),
            members: cluster.nodes.values().filter(|node| !node.removed).count(),
            removed: cluster.nodes.values().filter(|node| node.removed).count(),
        }
    };
    (end, fake)
}

/// Kills the operator after each single call of the change. Its successor must reach the same final state.
async fn killed_anywhere(
    start: &FakeKubernetes,
    what: &str,
    change: &dyn Fn(&FakeKubernetes),
    done: &dyn Fn(&FakeKubernetes) -> bool,
) -> FakeKubernetes {
    let (end, after) = run_change(start, change, done, usize::MAX).await;
    let calls = after.calls.load(Ordering::Relaxed);
    assert!(calls > 1, "{what}: {calls} calls");
    for dies_after in 1..=calls {
        let (other, _) = run_change(start, change, done, dies_after).await;
        assert_eq!(other, end, "{what}: killed after call {dies_after} of {calls}");
    }
    after
}

#[tokio::test]
async fn an_operator_killed_after_any_call_is_followed_by_one_that_comes_to_the_same_end() {
    let scale = |fake: &FakeKubernetes, replicas: i32| edit(fake, |spec| spec["replicas"] = replicas.into());
    let begun = FakeKubernetes::new();
    let fake = killed_anywhere(&begun, "create", &|fake| create(fake, spec(3)), &|fake| settled(fake, 3)).await;
    let fake = killed_anywhere(&fake, "scale up", &|fake| scale(fake, 4), &|fake| settled(fake, 4)).await;
    let roll = |fake: &FakeKubernetes| edit(fake, |spec| spec["image"] = "chronicle:1.1.0".into());
    let fake = killed_anywhere(&fake, "roll", &roll, &|fake| settled(fake, 4)).await;
    let grow = |fake: &FakeKubernetes| edit(fake, |spec| spec["storage"]["size"] = "2Gi".into());
    let fake = killed_anywhere(&fake, "grow", &grow, &|fake| settled(fake, 4)).await;
    let fake = killed_anywhere(&fake, "scale down", &|fake| scale(fake, 3), &|fake| settled(fake, 3)).await;
    let replace = |fake: &FakeKubernetes| {
        fake.edit("pods", "log-2", |pod| pod["metadata"]["annotations"]["stuck"] = "yes".into());
        fake.tick();
        fake.edit("chronicleclusters", NAME, |resource| {
            resource["metadata"]["annotations"] = json!({"chronicle.dev/replace": "log-2"});
        });
    };
    let fake = killed_anywhere(&fake, "replace", &replace, &|fake| settled(fake, 3)).await;
    let fake = killed_anywhere(&fake, "stop", &|fake| scale(fake, 0), &stopped).await;
    let fake = killed_anywhere(&fake, "start", &|fake| scale(fake, 3), &|fake| settled(fake, 3)).await;
    let delete = |fake: &FakeKubernetes| {
        edit(fake, |spec| spec["storage"]["retention"] = json!({"whenDeleted": "Delete"}));
        fake.delete("chronicleclusters", NAME);
    };
    let gone = |fake: &FakeKubernetes| {
        fake.names("persistentvolumeclaims").is_empty() && fake.names("chronicleclusters").is_empty()
    };
    killed_anywhere(&fake, "delete", &delete, &gone).await;
}

#[derive(Debug, Clone)]
enum Disturbance {
    Scale(i32),
    Image(u8),
    Grow,
    KillPod(u8),
    Die(usize),
    FailReads(u32),
    Refuse(usize),
    LoseDisk(u8),
    Configure(u8),
    Stubborn,
    Reconcile(u8),
}

fn disturbance() -> impl Strategy<Value = Disturbance> {
    prop_oneof![
        (0..6i32).prop_map(Disturbance::Scale),
        (0..3u8).prop_map(Disturbance::Image),
        Just(Disturbance::Grow),
        (0..5u8).prop_map(Disturbance::KillPod),
        (1..12usize).prop_map(Disturbance::Die),
        (1..10u32).prop_map(Disturbance::FailReads),
        (1..60usize).prop_map(Disturbance::Refuse),
        (0..5u8).prop_map(Disturbance::LoseDisk),
        (0..5u8).prop_map(Disturbance::Configure),
        Just(Disturbance::Stubborn),
        (1..40u8).prop_map(Disturbance::Reconcile),
        (1..40u8).prop_map(Disturbance::Reconcile),
    ]
}

/// Runs disturbances in any order. The invariants hold (the fake panics otherwise), and afterwards the cluster converges to its spec.
async fn run_disturbances(disturbances: Vec<Disturbance>) {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    let mut operator = fake.operator();
    let mut size = 1;
    for disturbance in disturbances {
        match disturbance {
            Disturbance::Scale(replicas) => edit(&fake, |spec| spec["replicas"] = replicas.into()),
            Disturbance::Image(patch) => edit(&fake, |spec| spec["image"] = format!("chronicle:1.0.{patch}").into()),
            Disturbance::Grow => {
                size += 1;
                edit(&fake, |spec| spec["storage"]["size"] = format!("{size}Gi").into());
            }
            Disturbance::KillPod(ordinal) => fake.delete("pods", &format!("log-{ordinal}")),
            Disturbance::Die(after) => {
                let calls = fake.calls.load(Ordering::Relaxed);
                fake.dies_after.store(calls + after, Ordering::Relaxed);
            }
            Disturbance::FailReads(reads) => fake.cluster.lock().failing_reads = reads,
            Disturbance::Refuse(calls) => fake.refusals.store(calls, Ordering::Relaxed),
            Disturbance::LoseDisk(ordinal) => {
                // One disk at a time, of a healthy cluster: losing more would lose the cluster.
                let whole = {
                    let cluster = fake.cluster.lock();
                    let members = cluster.nodes.values().filter(|node| !node.removed);
                    members.clone().all(|node| node.running) && members.filter(|node| node.voter).count() >= 3
                };
                if whole {
                    fake.delete("persistentvolumeclaims", &format!("data-log-{ordinal}"));
                    fake.delete("pods", &format!("log-{ordinal}"));
                    fake.tick();
                }
            }
            Disturbance::Configure(which) => {
                let all = [
                    json!({"limits": {"connections-max": 1000}}),
                    json!({"limits": {"connections-max": NONSENSE}}),
                    json!({"partitions": {"queue-bytes-max": "32MiB"}}),
                    json!({"partitions": {"queue-bytes-max": NONSENSE}}),
                    json!({}),
                ];
                configure(&fake, all[usize::from(which)].clone());
            }
            Disturbance::Stubborn => _ = fake.stubborn.lock().insert("limits.connections-max".into()),
            Disturbance::Reconcile(times) => {
                for _ in 0..times {
                    if reconcile_once(&fake, &operator).await.is_err()
                        && fake.dies_after.load(Ordering::Relaxed) != usize::MAX
                    {
                        fake.dies_after.store(usize::MAX, Ordering::Relaxed);
                        operator = fake.operator();
                    }
                    fake.tick();
                }
            }
        }
    }
    fake.dies_after.store(usize::MAX, Ordering::Relaxed);
    edit(&fake, |spec| spec["replicas"] = 3.into());
    configure(&fake, json!({"limits": {"connections-max": 2000}}));
    settle(&fake, 3).await;
    let image = fake.get("chronicleclusters", NAME).unwrap()["spec"]["image"].as_str().unwrap().to_owned();
    assert_eq!(fake.images(), [image.as_str(); 3]);
}

#[tokio::test]
async fn no_node_is_removed_while_the_others_would_lose_the_majority() {
    let fake = with_cluster(3);
    settle(&fake, 3).await;
    // A node that has lost its disk does not start with this configuration; two of three are left.
    configure(&fake, json!({"limits": {"connections-max": NONSENSE}}));
    fake.delete("persistentvolumeclaims", "data-log-0");
    fake.delete("pods", "log-0");
    fake.tick();
    edit(&fake, |spec| spec["replicas"] = 1.into());
    until(&fake, "waits", |fake| condition(fake, "Progressing").1 == "ScaleWaits").await;
    assert!(status(&fake).to_string().contains("1 of 3 voters would be alive, 2 are needed"), "{}", status(&fake));
    configure(&fake, json!({}));
    settle(&fake, 1).await;
}

#[tokio::test]
async fn a_node_that_dies_before_a_recorded_removal_starts_stops_it() {
    for ticks in 0..4 {
        let fake = with_cluster(3);
        settle(&fake, 3).await;
        edit(&fake, |spec| spec["replicas"] = 1.into());
        let operator = fake.operator();
        for _ in 0..ticks {
            reconcile_once(&fake, &operator).await.unwrap();
        }
        configure(&fake, json!({"limits": {"connections-max": NONSENSE}}));
        if fake.cluster.lock().nodes.values().any(|node| node.state == MemberState::Decommissioning) {
            break;
        }
        fake.delete("persistentvolumeclaims", "data-log-0");
        fake.delete("pods", "log-0");
        for _ in 0..50 {
            fake.tick();
            reconcile_once(&fake, &operator).await.unwrap();
        }
        assert_eq!(condition(&fake, "Quorate").0, "True", "after {ticks} reconciles");
        configure(&fake, json!({}));
        settle(&fake, 1).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn after_any_disturbances_the_cluster_converges_and_the_invariants_held(
        disturbances in proptest::collection::vec(disturbance(), 1..14)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run_disturbances(disturbances));
    }
}
