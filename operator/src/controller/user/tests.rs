use std::sync::atomic::Ordering;

use super::*;
use crate::api::ChronicleUserSpec;
use crate::controller::fake_kubernetes::FakeKubernetes;

#[test]
fn a_rule_of_the_spec_becomes_one_for_each_operation_and_each_once() {
    let spec: ChronicleUserSpec = serde_json::from_value(json!({
        "clusterRef": {"name": "c"},
        "authorization": {"acls": [
            {"resource": "Topic", "pattern": "Prefix", "name": "orders", "operations": ["Read", "Write", "Read"]},
            {"resource": "Cluster", "operations": ["Describe"], "effect": "Deny"},
        ]},
    }))
    .unwrap();
    let rules = rules(&ChronicleUser::new("shop", spec), "shop");
    assert_eq!(rules.len(), 3);
    assert!(rules.iter().all(|rule| rule.principal == "shop"));
    assert_eq!(rules[0].pattern(), v1::PatternKind::Prefix);
    assert_eq!((rules[2].name.as_str(), rules[2].effect()), ("cluster", v1::AclEffect::Deny));
}

#[test]
fn a_quota_without_any_bound_is_none() {
    let user = |quotas| {
        let spec = json!({"clusterRef": {"name": "c"}, "quotas": quotas});
        ChronicleUser::new("shop", serde_json::from_value::<ChronicleUserSpec>(spec).unwrap())
    };
    assert_eq!(quota(&user(json!({}))), None);
    assert_eq!(quota(&user(json!({"requests": 5}))).unwrap().requests, 5);
}

fn with_cluster() -> FakeKubernetes {
    let fake = FakeKubernetes::new();
    let cluster = json!({
        "apiVersion": "chronicle.dev/v1alpha1", "kind": "ChronicleCluster", "metadata": {"name": "c"},
        "spec": {"image": "chronicle:1.0.0", "storage": {"size": "1Gi"}},
        "status": {"clusterId": "simulated", "readyReplicas": 3, "replicas": 3, "size": 3},
    });
    fake.put("chronicleclusters", cluster);
    fake.ready_certificates("c");
    fake
}

fn create(fake: &FakeKubernetes, name: &str, spec: serde_json::Value) {
    let mut all = json!({"clusterRef": {"name": "c"}});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let user = json!({
        "apiVersion": "chronicle.dev/v1alpha1", "kind": "ChronicleUser", "metadata": {"name": name}, "spec": all,
    });
    fake.put("chronicleusers", user);
}

async fn settle(fake: &FakeKubernetes, name: &str) -> (String, String) {
    let mut operator = fake.operator();
    for _ in 0..20 {
        let Some(resource) = fake.get("chronicleusers", name) else { return ("Gone".into(), String::new()) };
        let resource: ChronicleUser = serde_json::from_value(resource).unwrap();
        if reconcile(Arc::new(resource), operator.clone()).await.is_err() {
            fake.dies_after.store(usize::MAX, Ordering::Relaxed);
            operator = fake.operator();
        }
        fake.tick();
    }
    let status = fake.get("chronicleusers", name).unwrap()["status"].clone();
    let text = |field: &str| status["conditions"][0][field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

fn read_orders() -> serde_json::Value {
    json!({
        "authorization": {"acls": [{"resource": "Topic", "name": "orders", "operations": ["Read", "Describe"]}]},
        "quotas": {"requests": 100},
    })
}

#[tokio::test]
async fn a_user_gets_a_certificate_rules_and_quotas_and_loses_them_with_its_resource() {
    let fake = with_cluster();
    create(&fake, "shop", read_orders());
    assert_eq!(settle(&fake, "shop").await, ("True".into(), "InSync".into()));
    assert_eq!(fake.cluster.lock().rules.len(), 2);
    assert_eq!(fake.cluster.lock().quotas["shop"].requests, 100);
    let certificate = fake.get("certificates", "shop-chronicle-user").unwrap();
    assert_eq!(certificate["spec"]["commonName"], "shop");
    assert!(fake.get("secrets", "shop-chronicle-user").is_some());
    fake.writes.lock().clear();
    let calls = fake.cluster.lock().calls.len();
    settle(&fake, "shop").await;
    assert_eq!((fake.writes.lock().clone(), fake.cluster.lock().calls.len()), (Vec::new(), calls));
    fake.edit("chronicleusers", "shop", |user| {
        user["spec"]["authorization"]["acls"][0]["operations"] = json!(["Write"]);
        user["spec"]["quotas"] = serde_json::Value::Null;
    });
    settle(&fake, "shop").await;
    let rules = fake.cluster.lock().rules.clone();
    assert_eq!(rules.iter().map(v1::Acl::operation).collect::<Vec<_>>(), [v1::AclOperation::Write]);
    assert!(fake.cluster.lock().quotas.is_empty());
    fake.delete("chronicleusers", "shop");
    settle(&fake, "shop").await;
    assert!(fake.names("chronicleusers").is_empty() && fake.cluster.lock().rules.is_empty());
    assert!(fake.get("secrets", "shop-chronicle-user").is_none(), "the certificate of a deleted user remains");
}

#[tokio::test]
async fn the_principal_of_the_operator_is_reserved_and_a_principal_has_one_user() {
    let fake = with_cluster();
    create(&fake, "evil", json!({"principal": "chronicle-operator"}));
    assert_eq!(settle(&fake, "evil").await, ("False".into(), "PrincipalReserved".into()));
    assert!(fake.names("certificates").is_empty());
    create(&fake, "a", json!({"principal": "shop"}));
    settle(&fake, "a").await;
    create(&fake, "b", json!({"principal": "shop"}));
    assert_eq!(settle(&fake, "b").await, ("False".into(), "Conflict".into()));
}

#[tokio::test]
async fn existing_rules_are_rejected_observed_or_adopted() {
    let fake = with_cluster();
    let foreign = v1::Acl { principal: "shop".into(), name: "other".into(), ..v1::Acl::default() };
    fake.cluster.lock().rules.push(foreign.clone());
    create(&fake, "shop", read_orders());
    assert_eq!(settle(&fake, "shop").await, ("False".into(), "RulesExist".into()));
    fake.edit("chronicleusers", "shop", |user| user["spec"]["managementPolicy"] = "Observe".into());
    assert_eq!(settle(&fake, "shop").await, ("False".into(), "Drifted".into()));
    assert_eq!(fake.cluster.lock().rules, std::slice::from_ref(&foreign));
    fake.edit("chronicleusers", "shop", |user| user["spec"]["managementPolicy"] = "Adopt".into());
    assert_eq!(settle(&fake, "shop").await, ("True".into(), "InSync".into()));
    assert!(!fake.cluster.lock().rules.contains(&foreign));
}

#[tokio::test]
async fn an_operator_killed_after_any_call_is_followed_by_one_that_reaches_the_same_rules() {
    for dies_after in 1..12 {
        let fake = with_cluster();
        fake.dies_after.store(dies_after, Ordering::Relaxed);
        create(&fake, "shop", read_orders());
        assert_eq!(settle(&fake, "shop").await, ("True".into(), "InSync".into()), "killed after call {dies_after}");
        assert_eq!(fake.cluster.lock().rules.len(), 2, "killed after call {dies_after}");
    }
}

#[tokio::test]
async fn certificates_follow_the_nodes_to_another_authority_once_each() {
    let fake = with_cluster();
    let issued = |user: &str| fake.issued_by(&format!("{user}-chronicle-user"));
    let asked = || fake.writes.lock().iter().filter(|write| write.contains("certificates/")).count();
    create(&fake, "early", json!({}));
    assert_eq!(settle(&fake, "early").await, ("True".into(), "InSync".into()));
    let old = issued("early");
    *fake.ca.lock() = "TkVX".into();
    create(&fake, "late", json!({}));
    // The first reconcile requests the certificate.
    settle(&fake, "late").await;
    fake.writes.lock().clear();
    assert_eq!(settle(&fake, "late").await, ("Unknown".into(), "CertificatePending".into()));
    assert_eq!(settle(&fake, "early").await, ("True".into(), "InSync".into()));
    assert_eq!((asked(), issued("early")), (0, old.clone()));
    let new = issued("late");
    assert_ne!(new, old);
    fake.edit("configmaps", "c-trust", |map| map["data"]["ca.crt"] = format!("{old}{new}").into());
    assert_eq!(settle(&fake, "late").await, ("True".into(), "InSync".into()));
    fake.renew_nodes("c");
    for user in ["early", "late"] {
        assert_eq!(settle(&fake, user).await, ("True".into(), "InSync".into()));
        assert_eq!(issued(user), new);
    }
    assert_eq!(asked(), 1);
}

#[tokio::test]
async fn the_certificate_of_a_deleted_user_is_deleted_before_its_secret() {
    let fake = with_cluster();
    create(&fake, "shop", json!({}));
    settle(&fake, "shop").await;
    fake.tick();
    settle(&fake, "shop").await;
    assert!(fake.get("secrets", "shop-chronicle-user").is_some());
    fake.writes.lock().clear();
    fake.delete("chronicleusers", "shop");
    settle(&fake, "shop").await;
    let writes = fake.writes.lock().clone();
    let at = |kind: &str| writes.iter().position(|write| write.starts_with(&format!("DELETE {kind}/"))).unwrap();
    assert!(at("certificates") < at("secrets"), "{writes:?}");
    fake.tick();
    assert!(fake.get("secrets", "shop-chronicle-user").is_none());
}
