use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::reconcile;
use crate::api::{ChronicleCluster, MemberState};
use crate::controller::world::{NEW_FIELD, NONSENSE, World, pem};
use crate::controller::{Context, ReconcileError};

const NAME: &str = "log";

fn spec(replicas: i32) -> Value {
    json!({
        "image": "chronicle:1.0.0",
        "replicas": replicas,
        "storage": {"size": "1Gi"},
    })
}

fn world(replicas: i32) -> World {
    let world = World::new();
    create(&world, spec(replicas));
    world
}

fn create(world: &World, spec: Value) {
    let resource = json!({
        "apiVersion": "chronicle.dev/v1alpha1", "kind": "ChronicleCluster",
        "metadata": {"name": NAME}, "spec": spec,
    });
    world.put("chronicleclusters", resource);
}

fn edit(world: &World, change: impl FnOnce(&mut Value)) {
    world.edit("chronicleclusters", NAME, |resource| change(&mut resource["spec"]));
}

/// Runs one reconcile.
async fn pass(world: &World, context: &Context) -> Result<(), ReconcileError> {
    let Some(resource) = world.get("chronicleclusters", NAME) else { return Ok(()) };
    let resource: ChronicleCluster = serde_json::from_value(resource).unwrap();
    reconcile(Arc::new(resource), context.clone()).await.map(drop)
}

fn status(world: &World) -> Value {
    world.get("chronicleclusters", NAME).unwrap()["status"].clone()
}

fn condition(world: &World, kind: &str) -> (String, String) {
    let status = status(world);
    let all = status["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|condition| condition["type"] == kind).cloned().unwrap_or_default();
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

/// Alternates reconciles and ticks until `done`. A new operator follows one that died.
async fn until(world: &World, what: &str, done: impl Fn(&World) -> bool) {
    let mut operator = world.operator();
    for _ in 0..600 {
        if done(world) {
            return;
        }
        if pass(world, &operator).await.is_err() && world.dies_after.load(Ordering::Relaxed) != usize::MAX {
            world.dies_after.store(usize::MAX, Ordering::Relaxed);
            operator = world.operator();
        }
        world.tick();
    }
    let status = serde_json::to_string_pretty(&status(world)).unwrap();
    panic!("not {what} after 600 reconciles; pods {:?}; status {status}", world.names("pods"));
}

/// Returns whether the status describes the latest spec.
fn up_to_date(world: &World) -> bool {
    let resource = world.get("chronicleclusters", NAME).unwrap();
    resource["status"]["observedGeneration"] == resource["metadata"]["generation"]
}

fn stopped(world: &World) -> bool {
    up_to_date(world) && world.names("pods").is_empty() && condition(world, "Progressing").1 == "Stopped"
}

fn settled(world: &World, nodes: usize) -> bool {
    let members = world.cluster.lock().nodes.values().filter(|node| !node.removed && node.running).count();
    members == nodes
        && world.names("pods").len() == nodes
        && up_to_date(world)
        && status(world)["operation"].is_null()
        && condition(world, "Progressing") == ("False".into(), "Settled".into())
        && condition(world, "UpToDate").0 == "True"
}

async fn settle(world: &World, nodes: usize) {
    until(world, &format!("settled with {nodes} nodes"), |world| settled(world, nodes)).await;
}

#[tokio::test]
async fn a_cluster_is_created_and_reports_what_it_is() {
    let world = world(3);
    settle(&world, 3).await;
    let status = status(&world);
    assert_eq!(status["clusterId"], "simulated");
    assert_eq!((&status["size"], &status["readyReplicas"]), (&json!(3), &json!(3)));
    assert_eq!(status["quorum"], json!({"voters": 3, "healthy": 3, "needed": 2, "faultTolerance": 1}));
    for (kind, holds) in
        [("Available", "True"), ("Quorate", "True"), ("Degraded", "False"), ("CertificatesValid", "True")]
    {
        assert_eq!(condition(&world, kind).0, holds, "{kind}");
    }
    assert_eq!(world.names("services"), ["log", "log-nodes"]);
    let config = world.get("configmaps", "log-config").unwrap()["data"]["chronicle.yaml"].as_str().unwrap().to_owned();
    assert!(config.contains("bootstrap-expect: 99"), "an existing cluster must not bootstrap again: {config}");
}

#[tokio::test]
async fn a_converged_cluster_costs_no_write() {
    let world = world(3);
    settle(&world, 3).await;
    world.writes.lock().clear();
    let operator = world.operator();
    for _ in 0..20 {
        pass(&world, &operator).await.unwrap();
        world.tick();
    }
    assert_eq!(*world.writes.lock(), Vec::<String>::new());
}

#[tokio::test]
async fn nodes_join_one_by_one_and_leave_with_their_volumes() {
    let world = world(3);
    settle(&world, 3).await;
    edit(&world, |spec| spec["replicas"] = 5.into());
    settle(&world, 5).await;
    edit(&world, |spec| spec["replicas"] = 3.into());
    settle(&world, 3).await;
    assert_eq!(world.names("persistentvolumeclaims"), ["data-log-0", "data-log-1", "data-log-2"]);
    let calls = world.cluster.lock().calls.clone();
    assert_eq!(calls.iter().filter(|call| call.starts_with("decommission")).count(), 2, "{calls:?}");
    edit(&world, |spec| spec["replicas"] = 4.into());
    settle(&world, 4).await;
}

#[tokio::test]
async fn a_kept_volume_blocks_scaling_up_and_the_message_has_the_command() {
    let world = World::new();
    let mut kept = spec(4);
    kept["storage"]["retention"] = json!({"whenScaled": "Retain"});
    create(&world, kept);
    settle(&world, 4).await;
    edit(&world, |spec| spec["replicas"] = 3.into());
    settle(&world, 3).await;
    let claim = world.get("persistentvolumeclaims", "data-log-3").unwrap();
    assert!(claim["metadata"]["annotations"]["chronicle.dev/removed-node"].is_string());
    edit(&world, |spec| spec["replicas"] = 4.into());
    until(&world, "blocked", |world| condition(world, "Degraded").1 == "VolumeInTheWay").await;
    let command = "kubectl delete persistentvolumeclaim data-log-3 --namespace ns";
    assert!(status(&world).to_string().contains(command), "{}", status(&world));
    world.delete("persistentvolumeclaims", "data-log-3");
    settle(&world, 4).await;
}

#[tokio::test]
async fn a_roll_takes_the_leader_last() {
    let world = world(3);
    settle(&world, 3).await;
    let leader = status(&world)["leader"].as_str().unwrap().to_owned();
    world.writes.lock().clear();
    edit(&world, |spec| spec["image"] = "chronicle:1.1.0".into());
    let reported = Mutex::new(BTreeSet::new());
    until(&world, "rolled", |world| {
        reported.lock().insert(condition(world, "Degraded"));
        world.images() == ["chronicle:1.1.0"; 3] && settled(world, 3)
    })
    .await;
    let reported = reported.into_inner();
    assert!(
        reported.iter().all(|(degraded, _)| degraded == "False"),
        "a planned restart is reported as Degraded: {reported:?}"
    );
    let deleted: Vec<String> =
        world.writes.lock().iter().filter(|write| write.starts_with("DELETE pods/")).cloned().collect();
    assert_eq!(deleted.len(), 3, "{deleted:?}");
    assert!(deleted[2].contains(&leader), "{deleted:?} with leader {leader}");
    assert_eq!(world.images(), ["chronicle:1.1.0"; 3]);
    assert_eq!(world.revisions().len(), 1);
}

fn configure(world: &World, config: Value) {
    edit(world, |spec| spec["config"] = config);
}

fn uids(world: &World) -> Vec<Value> {
    world.names("pods").iter().map(|pod| world.get("pods", pod).unwrap()["metadata"]["uid"].clone()).collect()
}

fn deleted_pods(world: &World) -> usize {
    world.writes.lock().iter().filter(|write| write.starts_with("DELETE pods/")).count()
}

#[tokio::test]
async fn a_live_setting_reaches_the_nodes_without_a_restart() {
    let world = world(3);
    settle(&world, 3).await;
    let (before, template) = (uids(&world), world.get("statefulsets", NAME).unwrap()["spec"]["template"].clone());
    world.writes.lock().clear();
    configure(&world, json!({"limits": {"connections-max": 1000}}));
    let operator = world.operator();
    pass(&world, &operator).await.unwrap();
    let file = world.get("configmaps", "log-config").unwrap()["data"]["chronicle.yaml"].to_string();
    assert!(file.contains("connections-max: 1000"), "{file}");
    assert_eq!(*world.writes.lock(), ["PATCH configmaps/log-config ", "PUT chronicleclusters/log status"]);
    assert_eq!(condition(&world, "UpToDate"), ("False".into(), "ConfigurationPending".into()));
    assert_eq!(condition(&world, "Progressing"), ("True".into(), "ConfigurationPending".into()));
    assert_eq!(condition(&world, "Degraded").0, "False");
    assert!(
        status(&world).to_string().contains("current configuration file: log-0, log-1, log-2;"),
        "{}",
        status(&world)
    );
    let resource: ChronicleCluster = serde_json::from_value(world.get("chronicleclusters", NAME).unwrap()).unwrap();
    let again = format!("{:?}", reconcile(Arc::new(resource), operator.clone()).await.unwrap());
    assert!(again.contains("5s"), "there is no watch for the files that nodes have loaded: {again}");
    settle(&world, 3).await;
    assert_eq!((uids(&world), &world.get("statefulsets", NAME).unwrap()["spec"]["template"]), (before, &template));
    world.writes.lock().clear();
    for _ in 0..20 {
        pass(&world, &operator).await.unwrap();
        world.tick();
    }
    assert_eq!(*world.writes.lock(), Vec::<String>::new());
}

#[tokio::test]
async fn the_operator_does_not_wait_for_nodes_that_do_not_report_their_file() {
    let world = world(3);
    world.mute.store(true, Ordering::Relaxed);
    settle(&world, 3).await;
    let before = uids(&world);
    configure(&world, json!({"limits": {"connections-max": 1000}}));
    pass(&world, &world.operator()).await.unwrap();
    assert!(settled(&world, 3), "{}", status(&world));
    assert_eq!(uids(&world), before);
}

#[tokio::test]
async fn an_unreachable_cluster_is_not_up_to_date() {
    let world = world(3);
    settle(&world, 3).await;
    configure(&world, json!({"limits": {"connections-max": 1000}}));
    world.cluster.lock().silent = 1;
    let operator = world.operator();
    pass(&world, &operator).await.unwrap();
    assert_eq!(condition(&world, "UpToDate"), ("Unknown".into(), "ClusterUnknown".into()));
    pass(&world, &operator).await.unwrap();
    assert_eq!(condition(&world, "UpToDate"), ("False".into(), "ConfigurationPending".into()));
}

#[tokio::test]
async fn a_rejected_setting_is_reported_once_and_restarts_no_node() {
    let world = world(3);
    settle(&world, 3).await;
    let before = uids(&world);
    configure(&world, json!({"limits": {"connections-max": NONSENSE}}));
    let refused = ("True".to_owned(), "ConfigurationRefused".to_owned());
    until(&world, "reported", |world| condition(world, "Degraded") == refused).await;
    assert_eq!(condition(&world, "UpToDate"), ("False".into(), "ConfigurationRefused".into()));
    assert!(status(&world).to_string().contains("log-0 rejects") && status(&world).to_string().contains(NONSENSE));
    // Together with a field that needs a restart.
    configure(&world, json!({"limits": {"connections-max": NONSENSE}, "partitions": {"queue-bytes-max": "32MiB"}}));
    world.writes.lock().clear();
    let operator = world.operator();
    for _ in 0..200 {
        pass(&world, &operator).await.unwrap();
        world.tick();
    }
    assert_eq!((deleted_pods(&world), uids(&world)), (0, before.clone()));
    assert_eq!(condition(&world, "Progressing"), ("False".into(), "ConfigurationRefused".into()));
    assert_eq!(condition(&world, "Available").0, "True");
    let events = world.events.lock().iter().filter(|reason| *reason == "ConfigurationRefused").count();
    assert_eq!(events, 1, "{:?}", world.events.lock());
    // A dead node is more urgent, also if the rejection blocks further operations.
    configure(&world, json!({"limits": {"connections-max": NONSENSE}}));
    edit(&world, |spec| spec["replicas"] = 4.into());
    world.edit("pods", "log-2", |pod| pod["metadata"]["annotations"]["stuck"] = "yes".into());
    world.tick();
    for _ in 0..20 {
        pass(&world, &operator).await.unwrap();
    }
    assert_eq!(condition(&world, "Degraded").1, "NodesDead");
    assert_eq!(condition(&world, "Progressing").1, "ConfigurationRefused");
    let events = world.events.lock().iter().filter(|reason| *reason == "ConfigurationRefused").count();
    assert_eq!(events, 1, "{:?}", world.events.lock());
    edit(&world, |spec| spec["replicas"] = 3.into());
    world.edit("pods", "log-2", |pod| drop(pod["metadata"]["annotations"].as_object_mut().unwrap().remove("stuck")));

    configure(&world, json!({"limits": {"connections-max": 1000}, "partitions": {"queue-bytes-max": "32MiB"}}));
    settle(&world, 3).await;
    assert!(uids(&world).iter().all(|uid| !before.contains(uid)), "fields that need a restart are rolled out now");
}

#[tokio::test]
async fn a_value_that_prevents_a_start_reaches_one_pod_at_most_and_can_be_corrected() {
    let world = world(3);
    settle(&world, 3).await;
    let before = uids(&world);
    configure(&world, json!({"partitions": {"queue-bytes-max": NONSENSE}}));
    until(&world, "restarted", |world| uids(world) != before).await;
    let operator = world.operator();
    for _ in 0..200 {
        let _ = pass(&world, &operator).await;
        world.tick();
    }
    assert_eq!(uids(&world).iter().filter(|uid| !before.contains(uid)).count(), 1);
    let refuses = |world: &World| {
        let nodes = &world.cluster.lock().nodes;
        nodes.values().filter(|node| node.configuration.as_ref().is_some_and(|known| !known.error.is_empty())).count()
    };
    assert!(refuses(&world) >= 2, "the others have loaded it by now");
    assert_eq!(condition(&world, "Quorate").0, "True");
    configure(&world, json!({"partitions": {"queue-bytes-max": "32MiB"}}));
    settle(&world, 3).await;
    assert_eq!(refuses(&world), 0);
}

#[tokio::test]
async fn the_next_version_is_rolled_out_over_nodes_that_reject_its_fields() {
    let world = world(3);
    settle(&world, 3).await;
    edit(&world, |spec| {
        spec["config"] = json!({"partitions": {NEW_FIELD: true}});
        spec["image"] = "chronicle:1.1.0".into();
    });
    pass(&world, &world.operator()).await.unwrap();
    for _ in 0..100 {
        world.tick();
    }
    let refuses =
        |node: &crate::admin::fake::FakeNode| node.configuration.as_ref().is_some_and(|known| !known.error.is_empty());
    assert!(world.cluster.lock().nodes.values().all(refuses), "the nodes have read the new file before the roll");
    settle(&world, 3).await;
    assert_eq!(world.images(), ["chronicle:1.1.0"; 3]);
}

#[tokio::test]
async fn nodes_that_cannot_apply_a_live_setting_are_restarted_once_each() {
    let world = world(3);
    settle(&world, 3).await;
    let before = uids(&world);
    world.writes.lock().clear();
    world.stubborn.lock().insert("limits.connections-max".into());
    configure(&world, json!({"limits": {"connections-max": 1000}}));
    settle(&world, 3).await;
    assert!(uids(&world).iter().all(|uid| !before.contains(uid)));
    assert_eq!(deleted_pods(&world), 3);
}

#[tokio::test]
async fn an_image_that_does_not_start_stops_the_roll_at_one_pod_and_can_be_corrected() {
    let world = world(3);
    settle(&world, 3).await;
    world.broken_images.lock().insert("chronicle:broken".into());
    edit(&world, |spec| spec["image"] = "chronicle:broken".into());
    until(&world, "stuck", |world| world.images().contains(&"chronicle:broken".to_owned())).await;
    let operator = world.operator();
    for _ in 0..50 {
        let _ = pass(&world, &operator).await;
        world.tick();
    }
    assert_eq!(world.images().iter().filter(|image| *image == "chronicle:broken").count(), 1);
    assert_eq!(condition(&world, "Quorate").0, "True");
    until(&world, "reported", |world| condition(world, "Degraded") == ("True".into(), "NodesDead".into())).await;
    edit(&world, |spec| spec["image"] = "chronicle:1.1.0".into());
    settle(&world, 3).await;
    assert_eq!(world.images(), ["chronicle:1.1.0"; 3]);
}

#[tokio::test]
async fn a_cluster_that_never_started_can_be_corrected() {
    let world = World::new();
    world.broken_images.lock().insert("chronicle:broken".into());
    let mut broken = spec(3);
    broken["image"] = "chronicle:broken".into();
    create(&world, broken);
    until(&world, "started", |world| world.names("pods").len() == 3).await;
    edit(&world, |spec| spec["image"] = "chronicle:1.0.0".into());
    settle(&world, 3).await;
}

#[tokio::test]
async fn volumes_grow_even_while_no_node_runs() {
    let world = world(3);
    settle(&world, 3).await;
    for ordinal in 0..3 {
        world.edit("pods", &format!("log-{ordinal}"), |pod| pod["metadata"]["annotations"]["stuck"] = "yes".into());
    }
    world.tick();
    edit(&world, |spec| spec["storage"]["size"] = "2Gi".into());
    let grown = |world: &World| {
        let size = |name: String| {
            world.get("persistentvolumeclaims", &name).unwrap()["spec"]["resources"]["requests"]["storage"].clone()
        };
        world.names("persistentvolumeclaims").into_iter().all(|name| size(name) == "2Gi")
            && world.get("statefulsets", NAME).is_some_and(|set| {
                set["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] == "2Gi"
            })
    };
    until(&world, "grown", grown).await;
    assert_eq!(world.names("pods").len(), 3, "pods survive the recreation of the StatefulSet");
}

#[tokio::test]
async fn a_storage_class_that_does_not_grow_is_reported_and_stops_nothing_else() {
    let world = world(3);
    settle(&world, 3).await;
    world.no_growth.store(true, Ordering::Relaxed);
    edit(&world, |spec| {
        spec["storage"]["size"] = "2Gi".into();
        spec["image"] = "chronicle:1.1.0".into();
    });
    until(&world, "rolled", |world| world.images() == ["chronicle:1.1.0"; 3]).await;
    until(&world, "reported", |world| condition(world, "StorageHealthy") == ("False".into(), "GrowthRefused".into()))
        .await;
}

#[tokio::test]
async fn all_nodes_stop_and_start_again_with_their_data() {
    let world = world(3);
    settle(&world, 3).await;
    let before: Vec<String> = world.cluster.lock().nodes.keys().cloned().collect();
    edit(&world, |spec| spec["replicas"] = 0.into());
    until(&world, "stopped", stopped).await;
    assert_eq!(world.names("persistentvolumeclaims").len(), 3);
    edit(&world, |spec| spec["replicas"] = 3.into());
    settle(&world, 3).await;
    assert_eq!(world.cluster.lock().nodes.keys().cloned().collect::<Vec<_>>(), before);
}

#[tokio::test]
async fn a_paused_cluster_is_only_reported() {
    let world = world(3);
    settle(&world, 3).await;
    edit(&world, |spec| {
        spec["reconciliation"] = "Paused".into();
        spec["replicas"] = 5.into();
    });
    world.writes.lock().clear();
    let operator = world.operator();
    for _ in 0..20 {
        pass(&world, &operator).await.unwrap();
        world.tick();
    }
    let writes = world.writes.lock().clone();
    assert!(writes.iter().all(|write| write.contains("chronicleclusters")), "{writes:?}");
    assert_eq!(condition(&world, "Progressing").1, "Paused");
    edit(&world, |spec| spec["reconciliation"] = "Active".into());
    settle(&world, 5).await;
}

#[tokio::test]
async fn drift_is_corrected_and_foreign_objects_are_left_alone() {
    let world = world(3);
    settle(&world, 3).await;
    world.edit("services", "log-nodes", |service| service["spec"]["publishNotReadyAddresses"] = false.into());
    world.delete("configmaps", "log-config");
    pass(&world, &world.operator()).await.unwrap();
    assert_eq!(world.get("services", "log-nodes").unwrap()["spec"]["publishNotReadyAddresses"], true);
    assert!(world.get("configmaps", "log-config").is_some());

    let other = World::new();
    other.put(
        "services",
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "log"}, "spec": {"mine": true}}),
    );
    create(&other, spec(3));
    let operator = other.operator();
    let _ = pass(&other, &operator).await;
    let refused = pass(&other, &operator).await;
    assert!(matches!(refused, Err(ReconcileError::Foreign { .. })), "{refused:?}");
    assert_eq!(condition(&other, "Degraded"), ("True".into(), "ForeignObject".into()));
    assert_eq!(other.get("services", "log").unwrap()["spec"], json!({"mine": true}));
    assert!(other.names("statefulsets").is_empty());
}

#[tokio::test]
async fn a_renumbered_port_is_corrected_without_a_new_service() {
    let world = world(3);
    settle(&world, 3).await;
    let before = world.get("services", "log").unwrap();
    world.edit("services", "log", |service| {
        service["spec"]["ports"][0]["port"] = 7401.into();
        service["spec"]["clusterIP"] = "10.0.0.7".into();
    });
    let operator = world.operator();
    pass(&world, &operator).await.unwrap();
    let after = world.get("services", "log").unwrap();
    assert_eq!(after["spec"]["ports"], before["spec"]["ports"]);
    assert_eq!(after["spec"]["clusterIP"], "10.0.0.7", "what the API server allocated stays");
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    world.writes.lock().clear();
    for _ in 0..5 {
        pass(&world, &operator).await.unwrap();
    }
    assert_eq!(*world.writes.lock(), Vec::<String>::new());
}

#[tokio::test]
async fn additions_to_the_pod_template_are_removed_without_a_restart() {
    let world = world(3);
    settle(&world, 3).await;
    world.edit("statefulsets", NAME, |set| {
        let containers = set["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap();
        containers.push(json!({"name": "sidecar", "image": "other"}));
    });
    world.writes.lock().clear();
    let operator = world.operator();
    for _ in 0..5 {
        pass(&world, &operator).await.unwrap();
        world.tick();
    }
    let set = world.get("statefulsets", NAME).unwrap();
    assert_eq!(set["spec"]["template"]["spec"]["containers"].as_array().unwrap().len(), 1);
    let writes = world.writes.lock().clone();
    assert_eq!(
        writes,
        ["PATCH statefulsets/log ", "PATCH statefulsets/log "],
        "an apply, and the overwrite of what it keeps"
    );
}

#[tokio::test]
async fn a_webhook_that_reverts_every_write_does_not_cause_endless_writes() {
    let world = world(3);
    *world.webhook.lock() = Some(|plural, object| {
        if plural == "configmaps" && object["metadata"]["name"] == "log-config" {
            object["data"]["chronicle.yaml"] = "mine".into();
        }
    });
    // The file that nodes read does not match the spec.
    until(&world, "reported", |world| condition(world, "UpToDate") == ("False".into(), "ConfigurationPending".into()))
        .await;
    for _ in 0..100 {
        world.tick();
    }
    let operator = world.operator();
    pass(&world, &operator).await.unwrap();
    pass(&world, &operator).await.unwrap();
    world.writes.lock().clear();
    for _ in 0..5 {
        pass(&world, &operator).await.unwrap();
    }
    assert_eq!(*world.writes.lock(), Vec::<String>::new());
    *world.webhook.lock() = None;
    world.edit("configmaps", "log-config", |map| map["data"]["chronicle.yaml"] = "yours".into());
    pass(&world, &operator).await.unwrap();
    let text = world.get("configmaps", "log-config").unwrap()["data"]["chronicle.yaml"].clone();
    assert!(text.as_str().unwrap().contains("bootstrap-expect"), "{text}");
}

#[tokio::test]
async fn objects_that_are_no_longer_desired_are_deleted() {
    let world = world(3);
    settle(&world, 3).await;
    assert_eq!(world.names("networkpolicies"), ["log"]);
    edit(&world, |spec| spec["networkPolicy"] = json!({"mode": "Disabled"}));
    settle(&world, 3).await;
    assert!(world.names("networkpolicies").is_empty());
}

#[tokio::test]
async fn a_deleted_cluster_keeps_its_data_and_a_new_one_uses_it() {
    let world = world(3);
    settle(&world, 3).await;
    let before: Vec<String> = world.cluster.lock().nodes.keys().cloned().collect();
    world.delete("chronicleclusters", NAME);
    until(&world, "gone", |world| world.get("chronicleclusters", NAME).is_none() && world.names("pods").is_empty())
        .await;
    assert_eq!(world.names("persistentvolumeclaims").len(), 3);
    create(&world, spec(3));
    settle(&world, 3).await;
    assert_eq!(world.cluster.lock().nodes.keys().cloned().collect::<Vec<_>>(), before);
}

#[tokio::test]
async fn a_deleted_cluster_deletes_its_data_if_the_policy_says_so() {
    let world = world(3);
    settle(&world, 3).await;
    edit(&world, |spec| spec["storage"]["retention"] = json!({"whenDeleted": "Delete"}));
    world.delete("chronicleclusters", NAME);
    until(&world, "gone", |world| {
        world.get("chronicleclusters", NAME).is_none() && world.names("persistentvolumeclaims").is_empty()
    })
    .await;
}

#[tokio::test]
async fn an_invalid_spec_waits_for_an_edit_and_changes_nothing() {
    let world = World::new();
    let mut wrong = spec(3);
    wrong["config"] = json!({"listeners": {"data": "0.0.0.0:1"}});
    create(&world, wrong);
    let operator = world.operator();
    for _ in 0..3 {
        pass(&world, &operator).await.unwrap();
    }
    assert_eq!(condition(&world, "Degraded"), ("True".into(), "InvalidSpec".into()));
    assert!(world.names("services").is_empty());
    edit(&world, |spec| spec["config"] = json!({"limits": {"topics-max": 5}}));
    settle(&world, 3).await;
}

#[tokio::test]
async fn a_disk_that_was_deleted_with_its_pod_is_replaced_by_an_empty_one() {
    let world = world(3);
    settle(&world, 3).await;
    world.delete("persistentvolumeclaims", "data-log-1");
    world.delete("pods", "log-1");
    until(&world, "lost", |world| world.cluster.lock().nodes.values().any(|node| node.removed)).await;
    settle(&world, 3).await;
    assert_eq!(world.cluster.lock().nodes.values().filter(|node| node.removed).count(), 1);
}

#[tokio::test]
async fn a_lost_node_is_replaced_on_request() {
    let world = world(3);
    settle(&world, 3).await;
    let old = world.get("persistentvolumeclaims", "data-log-2").unwrap()["metadata"]["uid"].clone();
    world.edit("pods", "log-2", |pod| pod["metadata"]["annotations"]["stuck"] = "yes".into());
    world.tick();
    let operator = world.operator();
    for _ in 0..20 {
        pass(&world, &operator).await.unwrap();
        world.tick();
    }
    assert_eq!(
        world.get("persistentvolumeclaims", "data-log-2").unwrap()["metadata"]["uid"],
        old,
        "there was no request"
    );
    world.edit("chronicleclusters", NAME, |resource| {
        resource["metadata"]["annotations"] = json!({"chronicle.dev/replace": "log-2"});
    });
    settle(&world, 3).await;
    assert_ne!(world.get("persistentvolumeclaims", "data-log-2").unwrap()["metadata"]["uid"], old);
    let asked =
        world.get("chronicleclusters", NAME).unwrap()["metadata"]["annotations"]["chronicle.dev/replace"].clone();
    assert!(asked.is_null(), "the request would also apply to the next failure");
}

#[tokio::test]
async fn a_request_to_replace_a_healthy_node_is_removed() {
    let world = world(3);
    settle(&world, 3).await;
    world.edit("chronicleclusters", NAME, |resource| {
        resource["metadata"]["annotations"] = json!({"chronicle.dev/replace": "log-2"});
    });
    settle(&world, 3).await;
    let resource = world.get("chronicleclusters", NAME).unwrap();
    assert!(resource["metadata"]["annotations"]["chronicle.dev/replace"].is_null());
    assert!(world.cluster.lock().nodes.values().all(|node| !node.removed));
}

#[tokio::test]
async fn nodes_of_another_cluster_than_before_block_everything() {
    let world = world(3);
    settle(&world, 3).await;
    world.edit("chronicleclusters", NAME, |resource| resource["status"]["clusterId"] = "another".into());
    edit(&world, |spec| spec["image"] = "chronicle:1.1.0".into());
    until(&world, "blocked", |world| condition(world, "Degraded").1 == "ClusterIdMismatch").await;
    assert_eq!(world.images(), ["chronicle:1.0.0"; 3]);
}

#[tokio::test]
async fn a_version_two_minors_ahead_is_not_rolled_out() {
    let world = world(3);
    settle(&world, 3).await;
    edit(&world, |spec| {
        spec["image"] = "chronicle:1.2.0".into();
        spec["version"] = "1.2.0".into();
    });
    until(&world, "blocked", |world| condition(world, "Degraded").1 == "VersionGate").await;
    assert_eq!(world.images(), ["chronicle:1.0.0"; 3]);
}

#[tokio::test]
async fn an_image_with_another_version_than_the_spec_stops_the_roll_at_one_pod() {
    let world = world(3);
    settle(&world, 3).await;
    edit(&world, |spec| {
        spec["image"] = "chronicle:1.0.7".into();
        spec["version"] = "1.1.0".into();
    });
    until(&world, "blocked", |world| condition(world, "Degraded").1 == "VersionMismatch").await;
    assert_eq!(world.images().iter().filter(|image| *image == "chronicle:1.0.7").count(), 1);
    edit(&world, |spec| spec["version"] = "1.0.7".into());
    settle(&world, 3).await;
}

#[tokio::test]
async fn a_new_certificate_authority_is_trusted_before_it_signs_and_the_former_one_for_a_day() {
    let world = world(3);
    settle(&world, 3).await;
    for _ in 0..200 {
        world.tick();
    }
    let (old, new) = (pem("T0xE"), pem("TkVX"));
    let trust = |world: &World| world.get("configmaps", "log-trust").unwrap()["data"]["ca.crt"].clone();
    assert_eq!(trust(&world), old);
    // As a person does: cert-manager then issues a new CA.
    *world.ca.lock() = "TkVX".into();
    world.delete("secrets", "log-ca");
    let began = world.seconds.load(Ordering::Relaxed);
    until(&world, "trusted", |world| trust(world) == format!("{old}{new}")).await;
    // The fake panics if a node does not trust a CA that is about to sign.
    until(&world, "signed", |world| {
        world.issued_by("log-node-tls") == new && world.issued_by("log-operator-tls") == new
    })
    .await;
    until(&world, "at rest", |world| condition(world, "CertificatesValid") == ("True".into(), "Valid".into())).await;
    let took = world.seconds.load(Ordering::Relaxed) - began;
    assert!(took >= 150, "after {took} s some clients do not trust it yet");
    let operator = world.operator();
    for _ in 0..10 {
        pass(&world, &operator).await.unwrap();
        world.tick();
    }
    assert_eq!(trust(&world), format!("{old}{new}"), "the simulated nodes do not report what they serve");
    assert_eq!(world.images().len(), 3);
    assert!(settled(&world, 3), "a rotation restarts no node");
}

#[tokio::test]
async fn an_issuer_that_is_missing_or_not_ready_is_named() {
    let world = World::new();
    let mut given = spec(3);
    given["security"] = json!({"tls": {"issuerRef": {"name": "corporate"}}});
    create(&world, given);
    world.no_certificates.store(true, Ordering::Relaxed);
    let certificates = |world: &World| condition(world, "CertificatesValid");
    until(&world, "reported", |world| certificates(world) == ("False".into(), "IssuerMissing".into())).await;
    let not_ready = json!({"conditions": [{"type": "Ready", "status": "False", "message": "the vault is sealed"}]});
    world.put(
        "issuers",
        json!({
            "apiVersion": "cert-manager.io/v1", "kind": "Issuer", "metadata": {"name": "corporate"}, "status": not_ready,
        }),
    );
    until(&world, "reported", |world| certificates(world) == ("False".into(), "IssuerNotReady".into())).await;
    assert!(status(&world).to_string().contains("the vault is sealed"));
    world.edit("issuers", "corporate", |issuer| issuer["status"] = json!({}));
    world.no_certificates.store(false, Ordering::Relaxed);
    settle(&world, 3).await;
}

#[tokio::test]
async fn a_storage_class_that_does_not_exist_is_named() {
    let world = world(3);
    settle(&world, 3).await;
    world.edit("persistentvolumeclaims", "data-log-1", |claim| {
        claim["spec"]["storageClassName"] = "fast".into();
        claim["status"] = json!({"phase": "Pending"});
    });
    let storage = |world: &World| condition(world, "StorageHealthy");
    until(&world, "reported", |world| storage(world) == ("False".into(), "StorageClassMissing".into())).await;
    assert!(status(&world).to_string().contains("requests StorageClass fast"));
    world.put("storageclasses", json!({"metadata": {"name": "fast"}}));
    until(&world, "reported", |world| storage(world) == ("True".into(), "Healthy".into())).await;
}

#[tokio::test]
async fn a_step_without_effect_is_repeated_with_back_off() {
    let world = world(3);
    settle(&world, 3).await;
    world.broken_images.lock().insert("chronicle:broken".into());
    edit(&world, |spec| spec["image"] = "chronicle:broken".into());
    until(&world, "stuck", |world| world.images().contains(&"chronicle:broken".to_owned())).await;
    world.tick();
    edit(&world, |spec| spec["image"] = "chronicle:1.1.0".into());
    let operator = world.operator();
    // The deletion of the pod has no effect.
    world.forbidden.lock().insert("404 pods".into());
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let resource: ChronicleCluster = serde_json::from_value(world.get("chronicleclusters", NAME).unwrap()).unwrap();
        pauses.push(format!("{:?}", reconcile(Arc::new(resource), operator.clone()).await.unwrap()));
    }
    assert!(pauses.last().unwrap().contains("6.4s"), "{pauses:?}");
}

#[tokio::test]
async fn an_api_server_that_keeps_failing_is_reported() {
    let world = world(3);
    settle(&world, 3).await;
    let operator = world.operator();
    world.forbidden.lock().insert("503 networkpolicies".into());
    for _ in 0..6 {
        // As the controller does.
        if pass(&world, &operator).await.is_err() {
            operator.failed("ChronicleCluster/ns/log");
        }
    }
    assert_eq!(condition(&world, "Progressing"), ("True".into(), "ApiServerFailed".into()));
    assert!(status(&world).to_string().contains("list NetworkPolicy"));
    world.forbidden.lock().clear();
    settle(&world, 3).await;
}

/// The state after a change.
#[derive(Debug, PartialEq)]
struct End {
    pods: Vec<String>,
    images: Vec<String>,
    claims: Vec<String>,
    members: usize,
    removed: usize,
}

/// Makes a change in a copy of `start` and waits for its end. The operator dies after `dies_after` effective calls.
async fn unfold_from(
    start: &World,
    change: &dyn Fn(&World),
    done: &dyn Fn(&World) -> bool,
    dies_after: usize,
) -> (End, World) {
    let world = start.fork();
    world.dies_after.store(dies_after, Ordering::Relaxed);
    change(&world);
    until(&world, "done", done).await;
    let end = {
        let cluster = world.cluster.lock();
        End {
            pods: world.names("pods"),
            images: world.images(),
            claims: world.names("persistentvolumeclaims"),
            members: cluster.nodes.values().filter(|node| !node.removed).count(),
            removed: cluster.nodes.values().filter(|node| node.removed).count(),
        }
    };
    (end, world)
}

/// Kills the operator after each single call of the change. Its successor must reach the same final state.
async fn killed_anywhere(start: &World, what: &str, change: &dyn Fn(&World), done: &dyn Fn(&World) -> bool) -> World {
    let (end, after) = unfold_from(start, change, done, usize::MAX).await;
    let calls = after.calls.load(Ordering::Relaxed);
    assert!(calls > 1, "{what}: {calls} calls");
    for dies_after in 1..=calls {
        let (other, _) = unfold_from(start, change, done, dies_after).await;
        assert_eq!(other, end, "{what}: killed after call {dies_after} of {calls}");
    }
    after
}

#[tokio::test]
async fn an_operator_killed_after_any_call_is_followed_by_one_that_comes_to_the_same_end() {
    let scale = |world: &World, replicas: i32| edit(world, |spec| spec["replicas"] = replicas.into());
    let begun = World::new();
    let world = killed_anywhere(&begun, "create", &|world| create(world, spec(3)), &|world| settled(world, 3)).await;
    let world = killed_anywhere(&world, "scale up", &|world| scale(world, 4), &|world| settled(world, 4)).await;
    let roll = |world: &World| edit(world, |spec| spec["image"] = "chronicle:1.1.0".into());
    let world = killed_anywhere(&world, "roll", &roll, &|world| settled(world, 4)).await;
    let grow = |world: &World| edit(world, |spec| spec["storage"]["size"] = "2Gi".into());
    let world = killed_anywhere(&world, "grow", &grow, &|world| settled(world, 4)).await;
    let world = killed_anywhere(&world, "scale down", &|world| scale(world, 3), &|world| settled(world, 3)).await;
    let replace = |world: &World| {
        world.edit("pods", "log-2", |pod| pod["metadata"]["annotations"]["stuck"] = "yes".into());
        world.tick();
        world.edit("chronicleclusters", NAME, |resource| {
            resource["metadata"]["annotations"] = json!({"chronicle.dev/replace": "log-2"});
        });
    };
    let world = killed_anywhere(&world, "replace", &replace, &|world| settled(world, 3)).await;
    let world = killed_anywhere(&world, "stop", &|world| scale(world, 0), &stopped).await;
    let world = killed_anywhere(&world, "start", &|world| scale(world, 3), &|world| settled(world, 3)).await;
    let delete = |world: &World| {
        edit(world, |spec| spec["storage"]["retention"] = json!({"whenDeleted": "Delete"}));
        world.delete("chronicleclusters", NAME);
    };
    let gone =
        |world: &World| world.names("persistentvolumeclaims").is_empty() && world.names("chronicleclusters").is_empty();
    killed_anywhere(&world, "delete", &delete, &gone).await;
}

#[derive(Debug, Clone)]
enum Happening {
    Scale(i32),
    Image(u8),
    Grow,
    KillPod(u8),
    Die(usize),
    Silence(u32),
    Refuse(usize),
    LoseDisk(u8),
    Configure(u8),
    Stubborn,
    Pass(u8),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        (0..6i32).prop_map(Happening::Scale),
        (0..3u8).prop_map(Happening::Image),
        Just(Happening::Grow),
        (0..5u8).prop_map(Happening::KillPod),
        (1..12usize).prop_map(Happening::Die),
        (1..10u32).prop_map(Happening::Silence),
        (1..60usize).prop_map(Happening::Refuse),
        (0..5u8).prop_map(Happening::LoseDisk),
        (0..5u8).prop_map(Happening::Configure),
        Just(Happening::Stubborn),
        (1..40u8).prop_map(Happening::Pass),
        (1..40u8).prop_map(Happening::Pass),
    ]
}

/// Runs disturbances in any order. The invariants hold (the fake panics otherwise), and afterwards the cluster converges to its spec.
async fn unfold(happenings: Vec<Happening>) {
    let world = world(3);
    settle(&world, 3).await;
    let mut operator = world.operator();
    let mut size = 1;
    for happening in happenings {
        match happening {
            Happening::Scale(replicas) => edit(&world, |spec| spec["replicas"] = replicas.into()),
            Happening::Image(patch) => edit(&world, |spec| spec["image"] = format!("chronicle:1.0.{patch}").into()),
            Happening::Grow => {
                size += 1;
                edit(&world, |spec| spec["storage"]["size"] = format!("{size}Gi").into());
            }
            Happening::KillPod(ordinal) => world.delete("pods", &format!("log-{ordinal}")),
            Happening::Die(after) => {
                let calls = world.calls.load(Ordering::Relaxed);
                world.dies_after.store(calls + after, Ordering::Relaxed);
            }
            Happening::Silence(reads) => world.cluster.lock().silent = reads,
            Happening::Refuse(calls) => world.refusals.store(calls, Ordering::Relaxed),
            Happening::LoseDisk(ordinal) => {
                // One disk at a time, of a healthy cluster: losing more would lose the cluster.
                let whole = {
                    let cluster = world.cluster.lock();
                    let members = cluster.nodes.values().filter(|node| !node.removed);
                    members.clone().all(|node| node.running) && members.filter(|node| node.voter).count() >= 3
                };
                if whole {
                    world.delete("persistentvolumeclaims", &format!("data-log-{ordinal}"));
                    world.delete("pods", &format!("log-{ordinal}"));
                    world.tick();
                }
            }
            Happening::Configure(which) => {
                let all = [
                    json!({"limits": {"connections-max": 1000}}),
                    json!({"limits": {"connections-max": NONSENSE}}),
                    json!({"partitions": {"queue-bytes-max": "32MiB"}}),
                    json!({"partitions": {"queue-bytes-max": NONSENSE}}),
                    json!({}),
                ];
                configure(&world, all[usize::from(which)].clone());
            }
            Happening::Stubborn => _ = world.stubborn.lock().insert("limits.connections-max".into()),
            Happening::Pass(times) => {
                for _ in 0..times {
                    if pass(&world, &operator).await.is_err() && world.dies_after.load(Ordering::Relaxed) != usize::MAX
                    {
                        world.dies_after.store(usize::MAX, Ordering::Relaxed);
                        operator = world.operator();
                    }
                    world.tick();
                }
            }
        }
    }
    world.dies_after.store(usize::MAX, Ordering::Relaxed);
    edit(&world, |spec| spec["replicas"] = 3.into());
    configure(&world, json!({"limits": {"connections-max": 2000}}));
    settle(&world, 3).await;
    let image = world.get("chronicleclusters", NAME).unwrap()["spec"]["image"].as_str().unwrap().to_owned();
    assert_eq!(world.images(), [image.as_str(); 3]);
}

#[tokio::test]
async fn no_node_is_removed_while_the_others_would_lose_the_majority() {
    let world = world(3);
    settle(&world, 3).await;
    // A node that has lost its disk does not start with this configuration; two of three are left.
    configure(&world, json!({"limits": {"connections-max": NONSENSE}}));
    world.delete("persistentvolumeclaims", "data-log-0");
    world.delete("pods", "log-0");
    world.tick();
    edit(&world, |spec| spec["replicas"] = 1.into());
    until(&world, "waits", |world| condition(world, "Progressing").1 == "ScaleWaits").await;
    assert!(status(&world).to_string().contains("1 of 3 voters would be alive, 2 are needed"), "{}", status(&world));
    configure(&world, json!({}));
    settle(&world, 1).await;
}

#[tokio::test]
async fn a_node_that_dies_before_a_recorded_removal_starts_stops_it() {
    for ticks in 0..4 {
        let world = world(3);
        settle(&world, 3).await;
        edit(&world, |spec| spec["replicas"] = 1.into());
        let operator = world.operator();
        for _ in 0..ticks {
            pass(&world, &operator).await.unwrap();
        }
        configure(&world, json!({"limits": {"connections-max": NONSENSE}}));
        if world.cluster.lock().nodes.values().any(|node| node.state == MemberState::Decommissioning) {
            break;
        }
        world.delete("persistentvolumeclaims", "data-log-0");
        world.delete("pods", "log-0");
        for _ in 0..50 {
            world.tick();
            pass(&world, &operator).await.unwrap();
        }
        assert_eq!(condition(&world, "Quorate").0, "True", "after {ticks} passes");
        configure(&world, json!({}));
        settle(&world, 1).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn after_any_disturbances_the_cluster_converges_and_the_invariants_held(
        happenings in proptest::collection::vec(happening(), 1..14)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(unfold(happenings));
    }
}
