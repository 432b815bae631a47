//! Applies objects with server-side apply, only where they differ, and deletes owned objects that are no longer desired.
//!
//! Server-side apply merges lists by key and keeps the items of other writers. Drift in our fields can therefore survive an apply, or make
//! it invalid (two ports with one name). Then a merge patch overwrites the fields: it replaces whole lists, keeps what the API server has
//! allocated, and fails if the object has changed since it was read. A field that differs even then is reverted by another writer, such
//! as an admission webhook: it is recorded as [`PersistentDrift`] and left alone until either side changes.
//!
//! Invariants: an object of another owner is never changed or deleted; deletions have the UID as a precondition.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind, TypeMeta};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::FIELD_MANAGER;
use super::compare::difference;
use super::error::{ReconcileError, is_not_found};
use crate::build::{CLUSTER_LABEL, KINDS, short_hash};

/// Annotation with the hash of the last applied object. It reveals a field that is no longer desired, which a comparison cannot see.
pub(crate) const APPLIED: &str = "chronicle.dev/applied";

/// Objects that another writer reverts after every apply: by UID, the hashes of the desired and of the resulting object.
pub type PersistentDrift = Arc<Mutex<HashMap<String, (String, String)>>>;

/// Applies the objects of one owner in one namespace.
pub struct Applier {
    client: Client,
    namespace: String,
    owner: OwnerReference,
    persistent_drift: PersistentDrift,
}

/// Kind and name of an object.
pub type ObjectKey = (String, String);

/// The existing objects of a cluster, by kind and name.
pub type LiveObjects = BTreeMap<ObjectKey, DynamicObject>;

impl Applier {
    /// Creates one for the owner of the objects.
    pub fn new(client: Client, namespace: &str, owner: OwnerReference) -> Self {
        Self { client, namespace: namespace.to_owned(), owner, persistent_drift: PersistentDrift::default() }
    }

    /// Shares the record of persistent drift between reconciles.
    #[must_use]
    pub fn with_persistent_drift(self, persistent_drift: PersistentDrift) -> Self {
        Self { persistent_drift, ..self }
    }

    fn api(&self, kind: &str) -> Option<(Api<DynamicObject>, TypeMeta)> {
        let (group, version, kind, plural) = KINDS.iter().find(|(_, _, known, _)| *known == kind)?;
        let gvk = GroupVersionKind::gvk(group, version, kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
        let types = TypeMeta { api_version: gvk.api_version(), kind: gvk.kind };
        Some((Api::namespaced_with(self.client.clone(), &self.namespace, &resource), types))
    }

    /// Returns the existing objects of a cluster by kind and name. `kinds` are those that the API server serves.
    ///
    /// # Errors
    /// The API server did not respond.
    pub async fn live(&self, cluster: &str, kinds: &[&str]) -> Result<LiveObjects, ReconcileError> {
        let mut live = BTreeMap::new();
        let selected = ListParams::default().labels(&format!("{CLUSTER_LABEL}={cluster}"));
        for kind in kinds {
            let Some((api, types)) = self.api(kind) else { continue };
            match api.list(&selected).await {
                Ok(list) => live.extend(list.items.into_iter().map(|mut object| {
                    // List items come without apiVersion and kind.
                    object.types = Some(types.clone());
                    (((*kind).to_owned(), object.name_any()), object)
                })),
                // The CRD was deleted concurrently.
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(ReconcileError::kube(format!("list {kind}"))(error)),
            }
        }
        Ok(live)
    }

    /// Applies an object if it differs. Returns whether it was written.
    ///
    /// # Errors
    /// [`ReconcileError::Foreign`] if the object has another owner; the API server rejected the request or did not respond.
    pub async fn apply(&self, desired: &DynamicObject, live: &LiveObjects) -> Result<bool, ReconcileError> {
        let kind = desired.types.as_ref().map(|types| types.kind.clone()).unwrap_or_default();
        let name = desired.name_any();
        let Some((api, _)) = self.api(&kind) else { return Ok(false) };
        let found;
        let live = match live.get(&(kind.clone(), name.clone())) {
            Some(live) => Some(live),
            None => {
                // It may exist without our label.
                found = api.get_opt(&name).await.map_err(ReconcileError::kube(format!("get {kind} {name}")))?;
                found.as_ref()
            }
        };
        let hash = short_hash(&serde_json::to_vec(desired).unwrap_or_default());
        if let Some(live) = live {
            self.check_owner(&kind, &name, live)?;
            if live.metadata.deletion_timestamp.is_some() {
                return Ok(false);
            }
            let same = live.annotations().get(APPLIED) == Some(&hash);
            match difference(&value(desired), &value(live)) {
                None if same => return Ok(false),
                Some(_) if self.is_persistent_drift(live, &hash) => return Ok(false),
                Some(path) if same => tracing::info!(%kind, %name, %path, "drift corrected"),
                _ => {}
            }
        }
        let mut object = desired.clone();
        object.annotations_mut().insert(APPLIED.into(), hash.clone());
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let applied = match (api.patch(&name, &params, &Patch::Apply(&object)).await, live) {
            (Ok(applied), _) => applied,
            (Err(kube::Error::Api(status)), Some(live)) if status.is_invalid() && kind != "StatefulSet" => live.clone(),
            (Err(error), _) => return Err(ReconcileError::kube(format!("apply {kind} {name}"))(error)),
        };
        if let Some(path) = difference(&value(&object), &value(&applied)) {
            self.overwrite(&api, &kind, &object, &applied, &path, hash).await?;
        }
        Ok(true)
    }

    /// Overwrites drift that survives an apply with a merge patch, which replaces whole lists. Of a StatefulSet only the pod template.
    async fn overwrite(
        &self,
        api: &Api<DynamicObject>,
        kind: &str,
        desired: &DynamicObject,
        live: &DynamicObject,
        path: &str,
        hash: String,
    ) -> Result<(), ReconcileError> {
        let name = desired.name_any();
        let mut patch = match kind {
            "StatefulSet" => json!({"spec": {"template": desired.data["spec"]["template"]}}),
            _ => json!(desired.data),
        };
        patch["metadata"] = json!({
            "annotations": desired.annotations(), "resourceVersion": live.resource_version(), "uid": live.uid(),
        });
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        let patched = api.patch(&name, &params, &Patch::Merge(patch)).await;
        let after = patched.map_err(ReconcileError::kube(format!("overwrite {kind} {name}")))?;
        match (difference(&value(desired), &value(&after)), after.uid()) {
            (Some(path), Some(uid)) => {
                tracing::warn!(kind, name, path, "another writer reverts every apply; leaving the field alone");
                self.persistent_drift.lock().insert(uid, (hash, fingerprint(&after)));
            }
            _ => tracing::info!(kind, name, path, "drift corrected by an overwrite"),
        }
        Ok(())
    }

    /// Returns whether the drift of this object is recorded and neither side has changed since.
    fn is_persistent_drift(&self, live: &DynamicObject, hash: &str) -> bool {
        let known = live.uid().and_then(|uid| self.persistent_drift.lock().get(&uid).cloned());
        known.is_some_and(|(asked, left)| asked == hash && left == fingerprint(live))
    }

    fn check_owner(&self, kind: &str, name: &str, live: &DynamicObject) -> Result<(), ReconcileError> {
        if self.owns(live) {
            return Ok(());
        }
        let (kind, name) = (kind.to_owned(), name.to_owned());
        let former = |owner: &OwnerReference| owner.kind == self.owner.kind && owner.name == self.owner.name;
        if live.owner_references().iter().any(former) {
            return Err(ReconcileError::Former { kind, name });
        }
        let owner = match live.owner_references().first() {
            Some(owner) => format!("{} {}", owner.kind, owner.name),
            None => "none".to_owned(),
        };
        Err(ReconcileError::Foreign { kind, name, owner })
    }

    fn owns(&self, live: &DynamicObject) -> bool {
        live.owner_references().iter().any(|owner| owner.uid == self.owner.uid)
    }

    /// Deletes objects of the owner that are no longer desired. Returns how many.
    ///
    /// # Errors
    /// The API server rejected the request or did not respond.
    pub async fn remove_orphans(&self, desired: &[DynamicObject], live: &LiveObjects) -> Result<usize, ReconcileError> {
        let wanted: HashSet<ObjectKey> = desired
            .iter()
            .map(|object| {
                (object.types.as_ref().map(|types| types.kind.clone()).unwrap_or_default(), object.name_any())
            })
            .collect();
        let mut removed = 0;
        for ((kind, name), object) in live {
            let kept = wanted.contains(&(kind.clone(), name.clone())) || kind == "StatefulSet";
            if kept || !self.owns(object) || object.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let Some((api, _)) = self.api(kind) else { continue };
            let exactly = Preconditions { uid: object.uid(), resource_version: None };
            match api.delete(name, &DeleteParams::default().preconditions(exactly)).await {
                Ok(_) => removed += 1,
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(ReconcileError::kube(format!("delete {kind} {name}"))(error)),
            }
        }
        Ok(removed)
    }
}

fn value(object: &DynamicObject) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

/// Returns a hash of an object without its status and the metadata that the API server changes.
fn fingerprint(object: &DynamicObject) -> String {
    let mut value = value(object);
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = value["metadata"].as_object_mut() {
        for field in ["resourceVersion", "generation", "managedFields"] {
            metadata.remove(field);
        }
    }
    short_hash(value.to_string().as_bytes())
}
