//! The API server of the fake: get, list, watch, server-side apply, merge patch, replace, create and delete, with finalizers, owner
//! references, preconditions and resource versions.
//!
//! Neighbours: `invariants.rs` checks every write of the operator before it takes effect.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use http::{Method, Response, StatusCode};
use kube::client::Body;
use serde_json::{Value, json};

use super::{FakeKubernetes, NAMESPACE, StoreKey};
use crate::controller::FIELD_MANAGER;

impl FakeKubernetes {
    pub(super) fn answer(
        &self,
        method: &Method,
        uri: &str,
        content: &str,
        body: Value,
    ) -> Result<Response<Body>, tower::BoxError> {
        if self.dead().is_err() {
            return Err("the operator is dead".into());
        }
        if self.refusals.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            return Ok(refuse(503, "ServiceUnavailable"));
        }
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        if path.ends_with("/version") {
            let text = |name: &str| (name.to_owned(), Value::from(""));
            let fields = [
                "buildDate",
                "compiler",
                "gitCommit",
                "gitTreeState",
                "gitVersion",
                "goVersion",
                "major",
                "minor",
                "platform",
            ];
            return Ok(reply(200, &Value::Object(fields.iter().map(|name| text(name)).collect())));
        }
        let path = path.find("/api").map_or(path, |at| &path[at..]);
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        if let ["apis", group, version] = parts.as_slice() {
            let group = format!("{group}/{version}");
            return Ok(match self.served.lock().get(&group) {
                Some(kinds) => {
                    let one = |kind: &String| {
                        json!({
                            "name": format!("{}s", kind.to_lowercase()), "kind": kind, "namespaced": true,
                            "singularName": "", "verbs": ["get", "list"],
                        })
                    };
                    let resources: Vec<Value> = kinds.iter().map(one).collect();
                    reply(200, &json!({"kind": "APIResourceList", "groupVersion": group, "resources": resources}))
                }
                None => refuse(404, "NotFound"),
            });
        }
        let parts = match parts.as_slice() {
            ["api", _, rest @ ..] | ["apis", _, _, rest @ ..] => rest,
            _ => return Ok(refuse(404, "NotFound")),
        };
        let parts = match parts {
            ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
            rest => rest,
        };
        let (plural, name, sub) = match parts {
            [plural] => (*plural, None, ""),
            [plural, name] => (*plural, Some(*name), ""),
            [plural, name, sub] => (*plural, Some(*name), *sub),
            _ => return Ok(refuse(404, "NotFound")),
        };
        if plural == "events" {
            self.events.lock().push(body["reason"].as_str().unwrap_or_default().to_owned());
            return Ok(reply(201, &body));
        }
        if self.forbidden.lock().contains(&format!("{method} {plural}")) {
            return Ok(refuse(403, "Forbidden"));
        }
        let response = match (method, name) {
            (&Method::GET, None) => return Ok(self.list(plural, query)),
            (&Method::GET, Some(name)) => {
                return Ok(match self.get(plural, name) {
                    Some(object) => reply(200, &object),
                    None => refuse(404, "NotFound"),
                });
            }
            (&Method::PATCH, Some(name)) => self.patch(plural, name, sub, content, body),
            (&Method::PUT, Some(name)) => self.replace(plural, name, sub, body),
            (&Method::POST, None) => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                match self.get(plural, &name) {
                    Some(_) => refuse(409, "AlreadyExists"),
                    None => {
                        self.put(plural, body);
                        reply(201, &self.get(plural, &name).unwrap_or_default())
                    }
                }
            }
            (&Method::DELETE, Some(name)) => self.delete_call(plural, name, &body),
            _ => refuse(405, "MethodNotAllowed"),
        };
        if response.status().is_success() {
            self.writes.lock().push(format!("{method} {plural}/{} {sub}", name.unwrap_or("")));
            if self.changed().is_err() {
                return Err("the operator is dead".into());
            }
        }
        Ok(response)
    }

    fn list(&self, plural: &str, query: &str) -> Response<Body> {
        if self.forbidden.lock().contains(plural) {
            return refuse(403, "Forbidden");
        }
        if self.forbidden.lock().contains(&format!("503 {plural}")) {
            return refuse(503, "ServiceUnavailable");
        }
        let items = self.selected(plural, query);
        let version = self.counter.load(Ordering::Relaxed) - 1;
        let metadata = json!({"resourceVersion": version.to_string()});
        reply(200, &json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}))
    }

    /// Returns the items of a list. Items of built-in kinds come without apiVersion and kind.
    fn selected(&self, plural: &str, query: &str) -> Vec<Value> {
        let wanted = query.split('&').find_map(|part| part.strip_prefix("labelSelector="));
        let wanted = wanted.map(|text| text.replace("%2F", "/").replace("%3D", "="));
        let selected = |object: &Value| match wanted.as_ref().map(|text| text.split_once('=').ok_or(text)) {
            Some(Ok((key, value))) => object["metadata"]["labels"][key] == value,
            Some(Err(key)) => !object["metadata"]["labels"][key].is_null(),
            None => true,
        };
        let objects = self.objects.lock();
        let chosen = objects.iter().filter(|((kind, _), object)| kind == plural && selected(object));
        chosen
            .map(|(_, object)| {
                let mut object = object.clone();
                let builtin = object["apiVersion"].as_str().is_none_or(|version| {
                    !["chronicle.dev/", "cert-manager.io/", "monitoring.coreos.com/"]
                        .iter()
                        .any(|group| version.starts_with(group))
                });
                if builtin && let Some(fields) = object.as_object_mut() {
                    fields.remove("apiVersion");
                    fields.remove("kind");
                }
                object
            })
            .collect()
    }

    /// Streams the changes since a resource version, polled ten times per second.
    pub(super) fn watch(&self, plural: &str, query: &str) -> Response<axum::body::Body> {
        let (fake, plural, query) = (self.clone(), plural.to_owned(), query.to_owned());
        let since = query.split('&').find_map(|part| part.strip_prefix("resourceVersion=")?.parse().ok());
        let version =
            |object: &Value| object["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok());
        let seen: BTreeMap<String, Value> = BTreeMap::new();
        let events = futures::stream::unfold((seen, since.unwrap_or(0_usize), true), move |(seen, since, first)| {
            let (fake, plural, query) = (fake.clone(), plural.clone(), query.clone());
            async move {
                if !first {
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
                let name = |object: &Value| object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let now: BTreeMap<String, Value> =
                    fake.selected(&plural, &query).into_iter().map(|object| (name(&object), object)).collect();
                let mut text = String::new();
                let mut send = |kind: &str, object: &Value| {
                    text.push_str(&json!({"type": kind, "object": object}).to_string());
                    text.push('\n');
                };
                for (name, object) in &now {
                    let known = match seen.get(name) {
                        Some(old) => version(old) == version(object),
                        None => first && version(object).is_some_and(|version: usize| version <= since),
                    };
                    if !known {
                        send("MODIFIED", object);
                    }
                }
                seen.iter()
                    .filter(|(name, _)| !now.contains_key(*name))
                    .for_each(|(_, object)| send("DELETED", object));
                Some((Ok::<_, std::io::Error>(text), (now, since, false)))
            }
        });
        Response::new(axum::body::Body::from_stream(events))
    }

    fn patch(&self, plural: &str, name: &str, sub: &str, content: &str, patch: Value) -> Response<Body> {
        let existing = self.get(plural, name);
        let apply = content.contains("apply");
        if existing.is_none() && !apply {
            return refuse(404, "NotFound");
        }
        let old = existing.unwrap_or_else(|| {
            let created = self.now().to_string();
            json!({"metadata": {"uid": format!("uid-{}", self.fresh()), "creationTimestamp": created}})
        });
        for field in ["resourceVersion", "uid"] {
            let asked = &patch["metadata"][field];
            if !asked.is_null() && *asked != old["metadata"][field] {
                return refuse(409, "Conflict");
            }
        }
        if plural == "persistentvolumeclaims" && !patch["spec"].is_null() && self.no_growth.load(Ordering::Relaxed) {
            return refuse(403, "Forbidden");
        }
        if plural == "statefulsets" {
            self.guard_scale(&old, &patch);
        }
        if plural == "certificates" && sub == "status" {
            self.guard_reissue(name);
        }
        let mut new = old.clone();
        let key = (plural.to_owned(), name.to_owned());
        if apply {
            let before = self.applied.lock().get(&key).cloned().unwrap_or_default();
            apply_to(plural, "", &mut new, &before, &patch);
            if let Some(why) = invalid(plural, &new) {
                return refuse_with(422, "Invalid", &why);
            }
            self.applied.lock().insert(key, patch.clone());
        } else {
            merge(&mut new, &patch);
        }
        if apply {
            // The time in managedFields changes only with the fields, not with every write.
            let mut before = old.clone();
            before["metadata"]["managedFields"] = new["metadata"]["managedFields"].clone();
            if before != new || new["metadata"]["managedFields"].is_null() {
                new["metadata"]["managedFields"] =
                    json!([{"manager": FIELD_MANAGER, "operation": "Apply", "time": self.now().to_string()}]);
            }
        }
        self.store(plural, &old, new.clone());
        let gone = new["metadata"]["finalizers"].as_array().is_some_and(Vec::is_empty)
            && !new["metadata"]["deletionTimestamp"].is_null();
        if gone {
            let mut objects = self.objects.lock();
            objects.remove(&(plural.to_owned(), name.to_owned()));
            collect_garbage(&mut objects, &new["metadata"]["uid"]);
        }
        reply(200, &self.get(plural, name).unwrap_or(new))
    }

    fn store(&self, plural: &str, old: &Value, mut new: Value) {
        new["metadata"]["namespace"] = NAMESPACE.into();
        if let Some(webhook) = *self.webhook.lock() {
            webhook(plural, &mut new);
        }
        let changed = old["spec"] != new["spec"];
        if changed {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0);
            new["metadata"]["generation"] = (generation + 1).into();
        }
        new["metadata"]["resourceVersion"] = self.fresh().to_string().into();
        let name = new["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        self.objects.lock().insert((plural.to_owned(), name), new);
    }

    fn replace(&self, plural: &str, name: &str, sub: &str, body: Value) -> Response<Body> {
        let Some(old) = self.get(plural, name) else { return refuse(404, "NotFound") };
        if body["metadata"]["resourceVersion"] != old["metadata"]["resourceVersion"] {
            return refuse(409, "Conflict");
        }
        let mut new = if sub == "status" { old.clone() } else { body.clone() };
        if sub == "status" {
            new["status"] = body["status"].clone();
        }
        self.store(plural, &old, new.clone());
        reply(200, &self.get(plural, name).unwrap_or(new))
    }

    fn delete_call(&self, plural: &str, name: &str, body: &Value) -> Response<Body> {
        let gone = self.forbidden.lock().contains(&format!("404 {plural}"));
        let Some(object) = self.get(plural, name).filter(|_| !gone) else { return refuse(404, "NotFound") };
        for field in ["resourceVersion", "uid"] {
            let asked = &body["preconditions"][field];
            if !asked.is_null() && *asked != object["metadata"][field] {
                return refuse(409, "Conflict");
            }
        }
        assert!(
            !body["preconditions"]["uid"].is_null(),
            "{plural}/{name} is deleted without its UID as a precondition"
        );
        self.guard_delete(plural, &object);
        if plural == "statefulsets" && body["propagationPolicy"] == "Orphan" {
            self.objects.lock().remove(&(plural.to_owned(), name.to_owned()));
        } else {
            self.begin_delete(plural, name);
        }
        reply(200, &object)
    }

    pub(super) fn begin_delete(&self, plural: &str, name: &str) {
        let mut objects = self.objects.lock();
        let key = (plural.to_owned(), name.to_owned());
        let Some(object) = objects.get_mut(&key) else { return };
        let held = object["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty())
            || matches!(plural, "pods" | "persistentvolumeclaims");
        if held {
            object["metadata"]["deletionTimestamp"] = "2027-01-01T00:00:00Z".into();
            object["metadata"]["resourceVersion"] = self.fresh().to_string().into();
        } else {
            let uid = object["metadata"]["uid"].clone();
            objects.remove(&key);
            collect_garbage(&mut objects, &uid);
        }
    }
}

fn collect_garbage(objects: &mut BTreeMap<StoreKey, Value>, owner: &Value) {
    let owned = |object: &Value| {
        object["metadata"]["ownerReferences"].as_array().is_some_and(|all| all.iter().any(|one| one["uid"] == *owner))
    };
    let gone: Vec<(StoreKey, Value)> = objects
        .iter()
        .filter(|(_, object)| owned(object))
        .map(|(key, object)| (key.clone(), object["metadata"]["uid"].clone()))
        .collect();
    for (key, uid) in gone {
        objects.remove(&key);
        collect_garbage(objects, &uid);
    }
}

/// Server-side apply: removes fields that were applied before and are not any more, and merges keyed lists.
fn apply_to(plural: &str, field: &str, target: &mut Value, before: &Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for name in before.as_object().into_iter().flat_map(|before| before.keys()) {
                if !patch.contains_key(name) {
                    target.remove(name);
                }
            }
            for (name, value) in patch {
                let there = target.entry(name.clone()).or_insert(Value::Null);
                apply_to(plural, name, there, &before[name], value);
            }
        }
        (Value::Array(target), Value::Array(patch))
            if patch.iter().all(|item| key_of(plural, field, item).is_some()) =>
        {
            let key = |item: &Value| key_of(plural, field, item);
            let of = |all: &Value, wanted: &Option<String>| {
                let mut found = all.as_array().into_iter().flatten().filter(|item| key(item) == *wanted);
                found.next().cloned()
            };
            let applied: BTreeSet<Option<String>> = patch.iter().map(key).collect();
            target.retain(|item| applied.contains(&key(item)) || of(before, &key(item)).is_none());
            for item in patch {
                let at = target.iter().position(|there| key(there) == key(item));
                let at = at.unwrap_or_else(|| {
                    target.push(json!({}));
                    target.len() - 1
                });
                apply_to(plural, "", &mut target[at], &of(before, &key(item)).unwrap_or_default(), item);
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

/// Returns the key of a list item, for keyed lists.
fn key_of(plural: &str, field: &str, item: &Value) -> Option<String> {
    let text = |value: &Value| (!value.is_null()).then(|| value.to_string());
    let protocol = item["protocol"].as_str().unwrap_or("TCP");
    match field {
        "ports" if plural == "services" => Some(format!("{} {protocol}", text(&item["port"])?)),
        "ports" if plural == "statefulsets" => Some(format!("{} {protocol}", text(&item["containerPort"])?)),
        "containers" | "env" | "volumes" if plural == "statefulsets" => text(&item["name"]),
        "volumeMounts" => text(&item["mountPath"]),
        "ownerReferences" => text(&item["uid"]),
        _ => None,
    }
}

/// Returns why the API server rejects an object.
fn invalid(plural: &str, object: &Value) -> Option<String> {
    if plural != "services" {
        return None;
    }
    let mut names = BTreeSet::new();
    let ports = object["spec"]["ports"].as_array().into_iter().flatten();
    let twice = ports.map(|port| port["name"].to_string()).find(|name| !names.insert(name.clone()))?;
    Some(format!("spec.ports: Duplicate value: {twice}"))
}

fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (name, value) in patch {
                if value.is_null() {
                    target.remove(name);
                } else {
                    merge(target.entry(name.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

fn reply(code: u16, body: &Value) -> Response<Body> {
    let status = StatusCode::from_u16(code).unwrap();
    Response::builder().status(status).body(Body::from(serde_json::to_vec(body).unwrap())).unwrap()
}

fn refuse(code: u16, reason: &str) -> Response<Body> {
    refuse_with(code, reason, reason)
}

fn refuse_with(code: u16, reason: &str, message: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    reply(code, &status)
}
