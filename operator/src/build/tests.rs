use std::path::PathBuf;

use kube::ResourceExt;
use serde_json::{Value, json};

use super::fixtures::{cluster, resource};
use super::*;

const ALL: OptionalApis = OptionalApis { cert_manager: true, pod_monitor: true };

fn built(spec: Value) -> RenderedObjects {
    build(&cluster(spec), &Settings::default(), ALL, 3, Some("ca"))
}

fn named(desired: &RenderedObjects) -> Vec<String> {
    let kind = |object: &DynamicObject| object.types.as_ref().unwrap().kind.clone();
    desired.objects.iter().map(|object| format!("{} {}", kind(object), object.name_any())).collect()
}

fn config(cluster: &Cluster) -> Value {
    let map = config::config_map(cluster);
    serde_yaml::from_str(&map.data.unwrap()["chronicle.yaml"]).unwrap()
}

/// Compares with the objects that former versions rendered: an update of the operator must not restart pods. For an intended change,
/// `UPDATE_FIXTURES=1` rewrites the file, and the changelog mentions it.
fn same_as_before(file: &str, now: &Value) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join(file);
    let text = format!("{}\n", serde_json::to_string_pretty(now).unwrap());
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(before == text, "{} differs from the rendered objects:\n{text}", path.display());
}

#[test]
fn pod_templates_are_what_they_were_in_every_version_of_the_operator() {
    let plain = json!({"security": {"tls": {"mode": "Disabled"}, "authorization": {"mode": "Disabled"}}});
    let rich = json!({
        "imagePullPolicy": "Always", "imagePullSecrets": [{"name": "pull"}],
        "consensus": {"voters": 5},
        "resources": {"requests": {"cpu": "2", "memory": "4Gi"}},
        "scheduling": {"nodeSelector": {"disk": "fast"}, "whenUnsatisfiable": "DoNotSchedule", "priorityClassName": "high"},
        "security": {"tls": {"clientAuth": "Required"}, "authorization": {"superUsers": ["root"]},
            "principalRules": ["CN=(.*) -> $1"]},
        "config": {"limits": {"topics-max": 5}},
    });
    let templates: serde_json::Map<String, Value> = [("default", json!({})), ("plain", plain), ("rich", rich)]
        .into_iter()
        .map(|(name, spec)| (name.to_owned(), json!(built(spec).stateful_set.spec.unwrap().template)))
        .collect();
    same_as_before("pod-template.json", &Value::Object(templates));
}

#[test]
fn objects_are_what_they_were() {
    let desired = built(json!({}));
    let mut objects: Vec<Value> = desired.objects.iter().map(|object| json!(object)).collect();
    let mut set = json!(dynamic(&desired.stateful_set));
    set["spec"]["template"] = "see pod-template.json".into();
    objects.push(set);
    same_as_before("objects.json", &Value::Array(objects));
}

#[test]
fn every_object_is_labelled_and_owned() {
    for object in &built(json!({})).objects {
        let name = object.name_any();
        assert_eq!(object.labels().get(CLUSTER_LABEL).map(String::as_str), Some("log"), "{name}");
        assert_eq!(object.owner_references()[0].uid, "uid-1", "{name}");
        assert_eq!(object.namespace().as_deref(), Some("prod"), "{name}");
    }
}

#[test]
fn every_cluster_is_a_job_of_its_own_that_alerts_look_for() {
    let job = |spec: Value| {
        let desired = built(spec);
        let monitor = desired.objects.iter().find(|object| object.types.as_ref().unwrap().kind == "PodMonitor");
        let endpoint = monitor.unwrap().data["spec"]["podMetricsEndpoints"][0].clone();
        let sets = |label: &str| {
            let rules = endpoint["relabelings"].as_array().unwrap();
            rules.iter().find(|rule| rule["targetLabel"] == label).unwrap().clone()
        };
        assert_eq!(sets("instance")["sourceLabels"], json!(["__meta_kubernetes_pod_name"]));
        sets("job")["replacement"].clone()
    };
    assert_eq!(job(json!({})), "chronicle/prod/log");
    let alerts = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/alerts/chronicle.yaml"));
    assert!(alerts.unwrap().contains(r#"up{job=~"chronicle.*"} == 0"#));
}

#[test]
fn claims_outlive_the_cluster() {
    let spec = built(json!({})).stateful_set.spec.unwrap();
    let claim = &spec.volume_claim_templates.unwrap()[0];
    assert!(claim.metadata.owner_references.is_none());
    let policy = spec.persistent_volume_claim_retention_policy.unwrap();
    assert_eq!((policy.when_deleted.as_deref(), policy.when_scaled.as_deref()), (Some("Retain"), Some("Retain")));
}

#[test]
fn pods_are_confined() {
    let template = built(json!({})).stateful_set.spec.unwrap().template.spec.unwrap();
    assert_eq!(template.automount_service_account_token, Some(false));
    let pod = template.security_context.unwrap();
    assert_eq!((pod.run_as_non_root, pod.run_as_user), (Some(true), Some(65_532)));
    assert_eq!(pod.seccomp_profile.unwrap().type_, "RuntimeDefault");
    let container = template.containers[0].security_context.clone().unwrap();
    assert_eq!(container.read_only_root_filesystem, Some(true));
    assert_eq!(container.allow_privilege_escalation, Some(false));
    assert_eq!(container.capabilities.unwrap().drop, Some(vec!["ALL".to_owned()]));
}

#[test]
fn the_number_of_pods_and_bootstrap_fields_do_not_change_the_revision() {
    let (young, mut old) = (cluster(json!({})), cluster(json!({"replicas": 7})));
    (old.bootstrapped, old.initial_nodes) = (true, 7);
    let revision = |cluster: &Cluster, pods| build(cluster, &Settings::default(), ALL, pods, None).revision;
    assert_eq!(revision(&young, 3), revision(&old, 7));
    assert_eq!(config(&young)["cluster"]["bootstrap-expect"], 3);
    assert_eq!(config(&old)["cluster"]["bootstrap-expect"], 99);
    for change in [
        json!({"image": "other:2"}),
        json!({"config": {"partitions": {"queue-bytes-max": "32MiB"}}}),
        json!({"security": {"tls": {"clientAuth": "Required"}}}),
    ] {
        assert_ne!(revision(&young, 3), revision(&cluster(change.clone()), 3), "{change}");
    }
    for change in [
        json!({"storage": {"size": "20Gi"}}),
        json!({"version": "1.0.0"}),
        json!({"networkPolicy": {"mode": "Disabled"}}),
    ] {
        assert_eq!(revision(&young, 3), revision(&cluster(change.clone()), 3), "{change}");
    }
}

#[test]
fn live_fields_change_the_file_and_not_the_revision() {
    let revision = |spec: &Value| built(spec.clone()).revision;
    let file = |spec: &Value| config_files(&cluster(spec.clone())).remove(0);
    let plain = json!({});
    let mut tried = 0;
    for path in LIVE_FIELDS.lines() {
        let (section, rest) = path.split_once('.').unwrap();
        let value = rest.rsplit('.').fold(json!(7), |value, name| json!({name: value}));
        let live = json!({"config": {section: value}});
        if validate(&resource(live.clone()), 3, false).is_ok() {
            assert_eq!(revision(&live), revision(&plain), "{path}");
            assert_ne!(file(&live), file(&plain), "{path}");
            tried += 1;
        }
    }
    assert!(tried > 20, "{tried} live fields can be set in spec.config");
    for decided in [
        json!({"consensus": {"voters": 5}}),
        json!({"security": {"authorization": {"superUsers": ["root"]}}}),
        json!({"security": {"principalRules": ["CN=(.*) -> $1"]}}),
    ] {
        assert_eq!(revision(&decided), revision(&plain), "{decided}");
        assert_ne!(file(&decided), file(&plain), "{decided}");
    }
    let empty = json!({"config": {"limits": {}, "partitions": {}}});
    assert_eq!(revision(&empty), revision(&plain), "an empty section changes nothing");
    let more = json!({"config": {"limits": {"topics-max": 7}, "partitions": {"queue-bytes-max": "32MiB"}}});
    assert_ne!(revision(&more), revision(&plain), "one field of several waits for a restart");
    let less = json!({"config": {"partitions": {"queue-bytes-max": "32MiB"}}});
    assert_eq!(revision(&more), revision(&less));
}

#[test]
fn the_hash_of_the_file_is_that_of_the_bytes_that_a_pod_gets() {
    let hash = |cluster: &Cluster| {
        let text = config::config_map(cluster).data.unwrap().remove("chronicle.yaml").unwrap();
        blake3::hash(text.as_bytes()).to_hex().to_string()
    };
    let (young, mut old) = (cluster(json!({})), cluster(json!({})));
    old.bootstrapped = true;
    assert_ne!(hash(&young), hash(&old));
    for file in [hash(&young), hash(&old)] {
        assert!(config_files(&young).contains(&file) && config_files(&old).contains(&file), "{file}");
    }
    let other = cluster(json!({"config": {"limits": {"topics-max": 7}}}));
    assert!(!config_files(&young).contains(&hash(&other)));
}

#[test]
fn the_configuration_is_the_specs_under_the_operators() {
    let rich = cluster(json!({
        "config": {"cluster": {"replication-factor": 5}, "log": {"filter": "debug"}, "node": {"default-topic": ""}},
        "security": {"authorization": {"superUsers": ["root"]}, "principalRules": ["CN=(.*) -> $1"]},
    }));
    let config = config(&rich);
    assert_eq!(config["cluster"]["replication-factor"], 5);
    assert_eq!(config["cluster"]["dns-name"], "log-nodes.prod.svc:7400");
    assert_eq!(config["log"], json!({"filter": "debug", "format": "json"}));
    assert_eq!(config["node"], json!({"default-topic": "", "data-dir": "/var/lib/chronicle"}));
    assert_eq!(
        config["security"]["authorization"],
        json!({"enabled": true, "super-users": ["chronicle-operator", "root"]})
    );
    assert_eq!(config["security"]["principal-rules"][0], "chronicle-operator -> chronicle-operator");
    assert_eq!(config["security"]["tls"]["peer-server-name"], "log-nodes.prod.svc");
}

#[test]
fn fields_that_the_operator_manages_cannot_be_configured() {
    for (config, field) in [
        (json!({"listeners": {"data": "0.0.0.0:1"}}), "config.listeners"),
        (json!({"security": {}}), "config.security"),
        (json!({"node": {"name": "x"}}), "config.node.name"),
        (json!({"node": {"advertised-addresses": {"kafka": "x:1"}}}), "config.node.advertised-addresses"),
        (json!({"cluster": {"discovery": "static"}}), "config.cluster.discovery"),
        (json!({"limits": 5}), "config.limits"),
    ] {
        let invalid = validate(&resource(json!({"config": config})), 3, false).unwrap_err();
        assert_eq!(invalid.field, field);
    }
    let invalid = validate(&resource(json!({"image": "a b"})), 3, false).unwrap_err();
    assert_eq!(invalid.to_string(), "spec.image: \"a b\": must be REPOSITORY:TAG or REPOSITORY@DIGEST");
}

#[test]
fn certificates_come_from_the_own_ca_a_given_issuer_or_given_secrets() {
    let of = |tls: Value| {
        let desired = built(json!({"security": {"tls": tls}}));
        let kinds = named(&desired);
        kinds
            .into_iter()
            .filter(|name| name.starts_with("Issuer") || name.starts_with("Certificate"))
            .collect::<Vec<_>>()
    };
    let own = [
        "Issuer log-selfsigned",
        "Certificate log-ca",
        "Issuer log-ca",
        "Certificate log-node",
        "Certificate log-operator",
    ];
    assert_eq!(of(json!({})), own);
    assert_eq!(of(json!({"issuerRef": {"name": "corp"}})), ["Certificate log-node", "Certificate log-operator"]);
    assert!(of(json!({"secrets": {"node": "a", "operator": "b"}})).is_empty());
    let none = build(&cluster(json!({})), &Settings::default(), OptionalApis::default(), 3, None);
    assert!(!named(&none).iter().any(|name| name.starts_with("Certificate") || name.starts_with("PodMonitor")));
}

#[test]
fn the_nodes_certificate_is_valid_for_every_pod_and_the_name_that_peers_expect() {
    let desired = built(json!({}));
    let node = desired
        .objects
        .iter()
        .find(|object| object.name_any() == "log-node" && object.data["spec"]["dnsNames"].is_array());
    let names: Vec<String> = serde_json::from_value(node.unwrap().data["spec"]["dnsNames"].clone()).unwrap();
    for name in ["*.log-nodes.prod.svc", "log-nodes.prod.svc", "log.prod.svc", "log.prod.svc.cluster.local"] {
        assert!(names.iter().any(|known| known == name), "{name} is not in {names:?}");
    }
    assert_eq!(cluster(json!({})).pod_address("log-1"), "log-1.log-nodes.prod.svc:7400");
}

fn pem(name: &str) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{name}\n-----END CERTIFICATE-----\n")
}

#[test]
fn a_former_ca_is_trusted_until_every_node_serves_a_certificate_of_the_new_one() {
    let (old, new) = (pem("old"), pem("new"));
    let bundle = |current: &[&String], trusted: Option<&String>, settled: bool| {
        let current = current.iter().map(|text| (*text).clone()).collect();
        trust_bundle(&TrustInput { current, trusted: trusted.cloned(), settled })
    };
    assert_eq!(bundle(&[], None, false), None);
    assert_eq!(bundle(&[&old, &old], None, false), Some(old.clone()));
    let both = bundle(&[&new, &old], Some(&old), false).unwrap();
    assert_eq!(both, format!("{old}{new}"), "known CAs keep their order");
    assert_eq!(bundle(&[&new, &new], Some(&both), false).as_ref(), Some(&both));
    assert_eq!(bundle(&[&new, &new], Some(&both), true), Some(new));
}

#[test]
fn numbers_are_read_from_names_and_from_nothing_else() {
    assert_eq!(ordinal_of("log", "log-12"), Some(12));
    assert_eq!(ordinal_of("log", "data-log-3"), Some(3));
    for other in ["log", "log-", "log-x", "log-01", "log--1", "log-nodes-1", "logs-1", "other-1"] {
        assert_eq!(ordinal_of("log", other), None, "{other}");
    }
}
