//! Brings objects to the API server: server-side apply by one field manager, only where something differs; removes what the
//! cluster no longer consists of.
//!
//! Server-side apply merges lists by key and leaves in them what others have put there. So what others did to our fields may stay after
//! an apply, or make it invalid (two ports of one name). Then the fields are overwritten by a merge patch, which takes lists whole, keeps
//! what the API server has allocated, and holds only for the state that was looked at. What differs even then is somebody else's
//! deliberate doing, such as an admission webhook's: it is noted ([`Unmended`]) and left alone until either side changes.

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

/// Annotation with the hash of what was applied last: tells that a field is no longer wanted, which a comparison cannot see.
pub(crate) const APPLIED: &str = "chronicle.dev/applied";

/// What was written and is not so all the same: by UID, the hashes of what was asked for and of what came of it. One entry per
/// object at most.
pub type Unmended = Arc<Mutex<HashMap<String, (String, String)>>>;

/// Applies objects of one owner in one namespace.
pub struct Applier {
    client: Client,
    namespace: String,
    owner: OwnerReference,
    unmended: Unmended,
}

type Key = (String, String);

impl Applier {
    /// For the resource that owns the objects.
    pub fn new(client: Client, namespace: &str, owner: OwnerReference) -> Self {
        Self { client, namespace: namespace.to_owned(), owner, unmended: Unmended::default() }
    }

    /// Remembers from pass to pass what cannot be put right.
    #[must_use]
    pub fn remembering(self, unmended: Unmended) -> Self {
        Self { unmended, ..self }
    }

    fn api(&self, kind: &str) -> Option<(Api<DynamicObject>, TypeMeta)> {
        let (group, version, kind, plural) = KINDS.iter().find(|(_, _, known, _)| *known == kind)?;
        let gvk = GroupVersionKind::gvk(group, version, kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
        let types = TypeMeta { api_version: gvk.api_version(), kind: gvk.kind };
        Some((Api::namespaced_with(self.client.clone(), &self.namespace, &resource), types))
    }

    /// Every object of a cluster that is there, by kind and name. `kinds`: those that the API server has.
    ///
    /// # Errors
    /// The API server did not answer.
    pub async fn live(&self, cluster: &str, kinds: &[&str]) -> Result<BTreeMap<Key, DynamicObject>, ReconcileError> {
        let mut live = BTreeMap::new();
        let selected = ListParams::default().labels(&format!("{CLUSTER_LABEL}={cluster}"));
        for kind in kinds {
            let Some((api, types)) = self.api(kind) else { continue };
            match api.list(&selected).await {
                Ok(list) => live.extend(list.items.into_iter().map(|mut object| {
                    // The API server leaves them out of the items of a list.
                    object.types = Some(types.clone());
                    (((*kind).to_owned(), object.name_any()), object)
                })),
                // The kind has gone in the meantime.
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(ReconcileError::kube(format!("list {kind}"))(error)),
            }
        }
        Ok(live)
    }

    /// Makes an object what it should be; says whether it had to be written.
    ///
    /// # Errors
    /// [`ReconcileError::Foreign`] when it belongs to somebody else; the API server refused or did not answer.
    pub async fn apply(
        &self,
        desired: &DynamicObject,
        live: &BTreeMap<Key, DynamicObject>,
    ) -> Result<bool, ReconcileError> {
        let kind = desired.types.as_ref().map(|types| types.kind.clone()).unwrap_or_default();
        let name = desired.name_any();
        let Some((api, _)) = self.api(&kind) else { return Ok(false) };
        let found;
        let live = match live.get(&(kind.clone(), name.clone())) {
            Some(live) => Some(live),
            None => {
                // Without our label: it may be there all the same.
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
                Some(_) if self.is_unmended(live, &hash) => return Ok(false),
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

    /// Overwrites what others have done to our fields and an apply leaves as it is: lists as a whole. Of a StatefulSet only the
    /// template of its pods.
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
                self.unmended.lock().insert(uid, (hash, fingerprint(&after)));
            }
            _ => tracing::info!(kind, name, path, "drift corrected by an overwrite"),
        }
        Ok(())
    }

    /// Whether nothing has changed since this was written and did not become so.
    fn is_unmended(&self, live: &DynamicObject, hash: &str) -> bool {
        let known = live.uid().and_then(|uid| self.unmended.lock().get(&uid).cloned());
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

    /// Deletes what is the owner's and not wanted any more; says how many.
    ///
    /// # Errors
    /// The API server refused or did not answer.
    pub async fn remove_orphans(
        &self,
        desired: &[DynamicObject],
        live: &BTreeMap<Key, DynamicObject>,
    ) -> Result<usize, ReconcileError> {
        let wanted: HashSet<Key> = desired
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

/// Hash of an object without what changes by itself.
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
