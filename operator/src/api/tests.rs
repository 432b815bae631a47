use super::*;

fn schema_of(kind: &str) -> serde_json::Value {
    let crd = crds().into_iter().find(|crd| crd.spec.names.kind == kind).unwrap();
    serde_json::to_value(&crd.spec.versions[0].schema).unwrap()["openAPIV3Schema"].clone()
}

/// Walks every field of a schema that is ours; types of Kubernetes document themselves.
fn undocumented(path: &str, schema: &serde_json::Value, found: &mut Vec<String>) {
    let foreign = ["affinity", "tolerations", "resources", "allowFrom", "conditions", "imagePullSecrets"];
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        if field["description"].as_str().is_none_or(str::is_empty) {
            found.push(path.clone());
        }
        if !foreign.contains(&name.as_str()) {
            undocumented(&path, field, found);
            undocumented(&format!("{path}[]"), &field["items"], found);
        }
    }
}

#[test]
fn every_field_is_documented() {
    for kind in ["ChronicleCluster", "ChronicleTopic", "ChronicleUser"] {
        let (schema, mut found) = (schema_of(kind), Vec::new());
        for part in ["spec", "status"] {
            undocumented(&format!("{kind}.{part}"), &schema["properties"][part], &mut found);
        }
        assert_eq!(found, Vec::<String>::new());
    }
}

#[test]
fn defaults_of_the_schema_are_those_of_an_empty_spec() {
    let spec: ChronicleClusterSpec =
        serde_json::from_value(serde_json::json!({"image": "chronicle:1", "storage": {"size": "1Gi"}})).unwrap();
    assert_eq!((spec.replicas, spec.consensus.voters), (3, 3));
    assert_eq!(spec.security.tls.mode, TlsMode::Enabled);
    assert_eq!(spec.security.authorization.mode, AuthorizationMode::Enabled);
    assert_eq!(spec.storage.retention.when_deleted, RetentionPolicy::Retain);
    let schema = schema_of("ChronicleCluster");
    let defaults = &schema["properties"]["spec"]["properties"];
    assert_eq!(defaults["replicas"]["default"], 3);
    assert_eq!(defaults["consensus"]["default"]["voters"], 3);
    assert_eq!(defaults["security"]["default"]["tls"]["mode"], "Enabled");
}

#[test]
fn rules_that_cannot_be_checked_from_one_object_alone_are_transition_rules() {
    let text = serde_json::to_string(&crds()).unwrap();
    for message in [
        "storage.size: volumes cannot shrink",
        "storage.storageClassName: cannot be changed",
        "security.tls.mode: cannot be changed",
        "consensus.voters: must be 1, 3, 5 or 7",
        "consensus.voters: at most two more or two fewer at a time",
        "version: at most one minor version up at a time",
        "version: must not go back to an older minor version",
        "version: the major version cannot be changed",
        "partitions: can only grow",
        "topicName: cannot be changed",
        "principal: cannot be changed",
    ] {
        assert!(text.contains(message), "no rule has the message {message:?}");
    }
}

#[test]
fn clusters_can_be_scaled_and_their_status_is_a_resource_of_its_own() {
    for crd in crds() {
        let subresources = crd.spec.versions[0].subresources.clone().unwrap();
        assert!(subresources.status.is_some());
        assert_eq!(subresources.scale.is_some(), crd.spec.names.kind == "ChronicleCluster");
    }
}

#[test]
fn a_condition_keeps_the_time_of_its_last_transition_while_its_status_stays() {
    use k8s_openapi::jiff::Timestamp;
    let (mut conditions, early, late) =
        (Conditions::new(), Timestamp::from_second(1000).unwrap(), Timestamp::from_second(2000).unwrap());
    set_condition(&mut conditions, ConditionType::Quorate, Some(true), "Quorate", "", Some(1), early);
    set_condition(&mut conditions, ConditionType::Quorate, Some(true), "StillQuorate", "", Some(2), late);
    assert_eq!(conditions.len(), 1);
    assert_eq!(conditions[0].last_transition_time.0, early);
    assert_eq!(conditions[0].reason, "StillQuorate");
    set_condition(&mut conditions, ConditionType::Quorate, None, "Unknown", "", Some(2), late);
    assert_eq!((conditions[0].status.as_str(), conditions[0].last_transition_time.0), ("Unknown", late));
}

#[test]
fn the_definitions_under_deploy_are_those_of_the_code() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds/chronicle.dev.yaml");
    let text = crate::cli::crd_text().unwrap();
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == text, "run `chronicle-operator crd > deploy/crds/chronicle.dev.yaml`");
}
