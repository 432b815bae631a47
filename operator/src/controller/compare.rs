//! Compares a desired object with the live one, without writing it. All desired fields must be there; fields that the API server or other
//! writers added do not matter.

use serde_json::Value;

use crate::quantity;

/// Returns the first path at which `live` differs from `desired`; `None`: it does not differ.
pub(crate) fn difference(desired: &Value, live: &Value) -> Option<String> {
    compare("", desired, live)
}

fn compare(path: &str, desired: &Value, live: &Value) -> Option<String> {
    match (desired, live) {
        (Value::Null, _) => None,
        (Value::Object(wanted), Value::Object(there)) => wanted.iter().find_map(|(name, value)| {
            let path = format!("{path}.{name}");
            match there.get(name) {
                // An additional entry in a selector excludes objects.
                Some(live) if SELECTORS.contains(&name.as_str()) && more(value, live) => Some(path),
                Some(live) => compare(&path, value, live),
                // The API server omits empty values.
                None if is_empty(value) => None,
                None => Some(path),
            }
        }),
        // An object may have further owners.
        (Value::Array(wanted), Value::Array(there)) if path == ".metadata.ownerReferences" => {
            let missing = |wanted: &&Value| there.iter().all(|live| compare(path, wanted, live).is_some());
            wanted.iter().find(missing).map(|_| path.to_owned())
        }
        (Value::Array(wanted), Value::Array(there)) if wanted.len() == there.len() => wanted
            .iter()
            .zip(there)
            .enumerate()
            .find_map(|(at, (wanted, there))| compare(&format!("{path}[{at}]"), wanted, there)),
        (Value::String(wanted), Value::String(there)) if wanted != there => {
            let quantity = [".resources.", ".requests.", ".limits."].iter().any(|part| path.contains(part));
            (!quantity || !quantity::same(wanted, there)).then(|| path.to_owned())
        }
        _ => (desired != live).then(|| path.to_owned()),
    }
}

/// Fields in which every entry narrows a selection.
const SELECTORS: [&str; 3] = ["matchLabels", "nodeSelector", "selector"];

/// Returns whether an object has entries that are not desired.
fn more(desired: &Value, live: &Value) -> bool {
    let (Value::Object(desired), Value::Object(live)) = (desired, live) else { return false };
    live.keys().any(|name| !desired.contains_key(name))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.values().all(is_empty),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Bool(true) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_the_server_adds_is_no_difference() {
        let desired = json!({"spec": {"ports": [{"port": 1}], "flag": false, "empty": {}, "none": null}});
        let live = json!({"spec": {"ports": [{"port": 1, "protocol": "TCP"}], "clusterIP": "10.0.0.1"}, "status": {}});
        assert_eq!(difference(&desired, &live), None);
    }

    #[test]
    fn other_owners_are_no_difference() {
        let of = |uids: &[&str]| {
            let owners: Vec<Value> = uids.iter().map(|uid| json!({"uid": uid})).collect();
            json!({"metadata": {"ownerReferences": owners}})
        };
        assert_eq!(difference(&of(&["a"]), &of(&["b", "a"])), None);
        assert_eq!(difference(&of(&["a"]), &of(&["b"])).unwrap(), ".metadata.ownerReferences");
    }

    #[test]
    fn the_path_of_a_changed_field_is_returned() {
        let desired = json!({"spec": {"ports": [{"port": 1}], "type": "ClusterIP"}});
        let path = |live| difference(&desired, &live);
        assert_eq!(
            path(json!({"spec": {"ports": [{"port": 2}], "type": "ClusterIP"}})).unwrap(),
            ".spec.ports[0].port"
        );
        assert_eq!(path(json!({"spec": {"ports": [], "type": "ClusterIP"}})).unwrap(), ".spec.ports");
        assert_eq!(path(json!({"spec": {"ports": [{"port": 1}]}})).unwrap(), ".spec.type");
    }

    #[test]
    fn an_addition_to_a_selector_is_a_difference() {
        let desired = json!({"spec": {"podSelector": {"matchLabels": {"app": "a"}}, "selector": {"app": "a"}}});
        let live = |labels, selector| json!({"spec": {"podSelector": {"matchLabels": labels}, "selector": selector}});
        let one = json!({"app": "a"});
        let two = json!({"app": "a", "evil": "yes"});
        assert_eq!(difference(&desired, &live(one.clone(), one.clone())), None);
        assert_eq!(difference(&desired, &live(two.clone(), one.clone())).unwrap(), ".spec.podSelector.matchLabels");
        assert_eq!(difference(&desired, &live(one, two)).unwrap(), ".spec.selector");
    }

    #[test]
    fn quantities_are_compared_by_value_where_there_are_quantities() {
        let of = |text: &str| json!({"resources": {"requests": {"memory": text}}});
        assert_eq!(difference(&of("1024Mi"), &of("1Gi")), None);
        assert!(difference(&of("1025Mi"), &of("1Gi")).is_some());
        assert!(difference(&json!({"name": "1024Mi"}), &json!({"name": "1Gi"})).is_some());
    }
}
