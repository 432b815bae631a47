use std::sync::atomic::Ordering;

use super::*;
use crate::api::ChronicleTopicSpec;
use crate::controller::fake_kubernetes::FakeKubernetes;

fn topic(spec: serde_json::Value) -> ChronicleTopic {
    let mut all = serde_json::json!({"clusterRef": {"name": "c"}});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    ChronicleTopic::new("orders", serde_json::from_value::<ChronicleTopicSpec>(all).unwrap())
}

fn there(partitions: i32) -> v1::Topic {
    let settings = v1::TopicSettings {
        retention_bytes: Some(-1),
        retention_ms: Some(-1),
        segment_bytes: Some(1 << 27),
        max_message_bytes: Some(1 << 20),
        durability: Some(v1::Durability::Fsync.into()),
        flush_interval_ms: Some(100),
    };
    v1::Topic {
        name: "orders".into(),
        partitions,
        replication_factor: 3,
        settings: Some(settings),
        ..v1::Topic::default()
    }
}

#[test]
fn a_topic_with_everything_at_its_default_does_not_differ() {
    assert_eq!(drift(&topic(serde_json::json!({})), &there(1)), Drift::None);
}

#[test]
fn only_what_differs_is_changed() {
    let asked = topic(serde_json::json!({"partitions": 4, "retention": {"ms": 1000}}));
    let Drift::Change { what, request } = drift(&asked, &there(2)) else { panic!("no change") };
    assert_eq!(what, "the topic differs in retention_ms, partitions");
    assert_eq!(request.partitions, 4);
    let settings = request.settings.unwrap();
    assert_eq!((settings.retention_ms, settings.retention_bytes), (Some(1000), None));
}

#[test]
fn an_impossible_change_is_reported() {
    let fewer = drift(&topic(serde_json::json!({"partitions": 1})), &there(2));
    assert!(matches!(fewer, Drift::Impossible(why) if why.contains("cannot have fewer")));
    let other = drift(&topic(serde_json::json!({"replicationFactor": 5})), &there(1));
    assert!(matches!(other, Drift::Impossible(why) if why.contains("replicationFactor: 5")));
}

async fn with_cluster() -> FakeKubernetes {
    let fake = FakeKubernetes::new();
    let spec = serde_json::json!({"image": "chronicle:1.0.0", "storage": {"size": "1Gi"}});
    let cluster = serde_json::json!({
        "apiVersion": "chronicle.dev/v1alpha1", "kind": "ChronicleCluster", "metadata": {"name": "c"}, "spec": spec,
        "status": {"clusterId": "simulated", "readyReplicas": 3, "replicas": 3, "size": 3},
    });
    fake.put("chronicleclusters", cluster);
    fake.ready_certificates("c");
    fake
}

fn create(fake: &FakeKubernetes, name: &str, spec: serde_json::Value) {
    let resource = serde_json::to_value(topic(spec)).unwrap();
    let mut resource = resource;
    resource["metadata"]["name"] = name.into();
    fake.put("chronicletopics", resource);
}

async fn settle(fake: &FakeKubernetes, name: &str) -> (String, String) {
    let mut operator = fake.operator();
    for _ in 0..20 {
        let Some(resource) = fake.get("chronicletopics", name) else { return ("Gone".into(), String::new()) };
        let resource: ChronicleTopic = serde_json::from_value(resource).unwrap();
        if reconcile(Arc::new(resource), operator.clone()).await.is_err() {
            fake.dies_after.store(usize::MAX, Ordering::Relaxed);
            operator = fake.operator();
        }
    }
    let status = fake.get("chronicletopics", name).unwrap()["status"].clone();
    let text = |field: &str| status["conditions"][0][field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

fn ok(reason: &str) -> (String, String) {
    ("True".into(), reason.into())
}

fn not(reason: &str) -> (String, String) {
    ("False".into(), reason.into())
}

#[tokio::test]
async fn a_topic_is_created_altered_and_deleted_by_its_policy() {
    let fake = with_cluster().await;
    create(&fake, "orders", serde_json::json!({"partitions": 2, "deletionPolicy": "Delete"}));
    assert_eq!(settle(&fake, "orders").await, ok("InSync"));
    assert_eq!(fake.cluster.lock().topics["orders"].partitions, 2);
    fake.edit("chronicletopics", "orders", |resource| resource["spec"]["partitions"] = 5.into());
    assert_eq!(settle(&fake, "orders").await, ok("InSync"));
    assert_eq!(fake.cluster.lock().topics["orders"].partitions, 5);
    fake.writes.lock().clear();
    let calls = fake.cluster.lock().calls.len();
    settle(&fake, "orders").await;
    assert_eq!((fake.writes.lock().len(), fake.cluster.lock().calls.len()), (0, calls), "a converged topic is written");
    fake.delete("chronicletopics", "orders");
    settle(&fake, "orders").await;
    assert!(fake.names("chronicletopics").is_empty() && fake.cluster.lock().topics.is_empty());
}

#[tokio::test]
async fn records_outlive_the_resource_unless_it_says_otherwise() {
    let fake = with_cluster().await;
    create(&fake, "orders", serde_json::json!({}));
    settle(&fake, "orders").await;
    fake.delete("chronicletopics", "orders");
    settle(&fake, "orders").await;
    assert!(fake.names("chronicletopics").is_empty());
    assert!(fake.cluster.lock().topics.contains_key("orders"));
}

#[tokio::test]
async fn an_existing_topic_is_rejected_observed_or_adopted() {
    let fake = with_cluster().await;
    fake.cluster.lock().topics.insert("orders".into(), there(3));
    create(&fake, "orders", serde_json::json!({"partitions": 5, "deletionPolicy": "Delete"}));
    assert_eq!(settle(&fake, "orders").await, not("TopicExists"));
    fake.edit("chronicletopics", "orders", |resource| resource["spec"]["managementPolicy"] = "Observe".into());
    assert_eq!(settle(&fake, "orders").await, not("Drifted"));
    assert_eq!(fake.cluster.lock().topics["orders"].partitions, 3, "an observed topic must not change");
    fake.edit("chronicletopics", "orders", |resource| resource["spec"]["managementPolicy"] = "Adopt".into());
    assert_eq!(settle(&fake, "orders").await, ok("InSync"));
    assert_eq!(fake.cluster.lock().topics["orders"].partitions, 5);
}

#[tokio::test]
async fn a_topic_that_is_not_owned_is_never_deleted() {
    let fake = with_cluster().await;
    fake.cluster.lock().topics.insert("orders".into(), there(3));
    create(&fake, "orders", serde_json::json!({"deletionPolicy": "Delete"}));
    settle(&fake, "orders").await;
    fake.delete("chronicletopics", "orders");
    settle(&fake, "orders").await;
    assert!(fake.names("chronicletopics").is_empty());
    assert!(fake.cluster.lock().topics.contains_key("orders"));
}

#[tokio::test]
async fn two_resources_do_not_share_a_topic() {
    let fake = with_cluster().await;
    create(&fake, "first", serde_json::json!({"topicName": "orders"}));
    settle(&fake, "first").await;
    create(&fake, "second", serde_json::json!({"topicName": "orders", "managementPolicy": "Adopt"}));
    assert_eq!(settle(&fake, "second").await, not("Conflict"));
}

#[tokio::test]
async fn an_operator_killed_after_any_call_leaves_a_topic_that_the_next_one_manages() {
    for dies_after in 1..8 {
        let fake = with_cluster().await;
        fake.dies_after.store(dies_after, Ordering::Relaxed);
        create(&fake, "orders", serde_json::json!({"partitions": 2, "deletionPolicy": "Delete"}));
        assert_eq!(settle(&fake, "orders").await, ok("InSync"), "killed after call {dies_after}");
        fake.delete("chronicletopics", "orders");
        settle(&fake, "orders").await;
        assert!(fake.cluster.lock().topics.is_empty(), "killed after call {dies_after}");
    }
}

#[tokio::test]
async fn a_deleted_cluster_does_not_block_the_deletion_of_a_topic() {
    let fake = with_cluster().await;
    create(&fake, "orders", serde_json::json!({"deletionPolicy": "Delete"}));
    settle(&fake, "orders").await;
    fake.delete("chronicleclusters", "c");
    fake.delete("chronicletopics", "orders");
    settle(&fake, "orders").await;
    assert!(fake.names("chronicletopics").is_empty());
}

#[tokio::test]
async fn a_blocked_deletion_reports_why_and_how_to_skip_it() {
    let fake = with_cluster().await;
    create(&fake, "orders", serde_json::json!({"deletionPolicy": "Delete"}));
    settle(&fake, "orders").await;
    fake.edit("chronicleclusters", "c", |cluster| cluster["status"]["readyReplicas"] = 0.into());
    fake.delete("chronicletopics", "orders");
    settle(&fake, "orders").await;
    let resource = fake.get("chronicletopics", "orders").expect("its topic is still there");
    let ready = &resource["status"]["conditions"][0];
    assert_eq!(ready["reason"], "DeletionWaits", "{ready}");
    let message = ready["message"].as_str().unwrap();
    assert!(message.contains("no ready node") && message.contains("deletionPolicy to Retain"), "{message}");
    fake.edit("chronicletopics", "orders", |topic| topic["spec"]["deletionPolicy"] = "Retain".into());
    settle(&fake, "orders").await;
    assert!(fake.get("chronicletopics", "orders").is_none());
}
