//! Reconciles a ChronicleUser: its certificate (issued by cert-manager), access rules and quotas.
//!
//! Invariants:
//! - `status.owned` is written before the first rule, so that an operator that is killed in between still manages the rules.
//! - One principal has one resource. A second one, or one for the principal of the operator, reports an error and changes nothing.
//! - Rules that are not in the spec are removed before missing ones are added.

use std::collections::BTreeSet;
use std::sync::Arc;

use chronicle_client::v1;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Preconditions};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::controller::Action;
use serde_json::json;

use super::apply::Applier;
use super::child::{self, Blocker, ChildResource, ReadyState, resolve_cluster, resolve_for_deletion};
use super::cluster::{issued_at, reissue, secret_text};
use super::{Context, ReconcileError, is_not_found};
use crate::admin::Target;
use crate::api::{
    AccessEffect, AccessOperation, AccessPattern, AccessResource, ChronicleUser, Conditions, DeletionPolicy,
    ManagementPolicy, UserAuthenticationType, UserStatus,
};
use crate::build::{Cluster, DURATION, OPERATOR_PRINCIPAL, RENEW_BEFORE, from_value, issuer_ref, trusts};

/// Maximum number of rules in one request.
const RULES_AT_ONCE: usize = 500;

/// Reconciles one user.
///
/// # Errors
/// The failure; [`ReconcileError::retry_delay`] has the delay of the retry.
pub async fn reconcile(resource: Arc<ChronicleUser>, context: Context) -> Result<Action, ReconcileError> {
    child::reconcile(&*resource, &context).await
}

impl ChildResource for ChronicleUser {
    type Status = UserStatus;

    fn status(&self) -> UserStatus {
        self.status.clone().unwrap_or_default()
    }

    fn with_status(self, status: UserStatus) -> Self {
        Self { status: Some(status), ..self }
    }

    fn conditions_mut(status: &mut UserStatus) -> (&mut Conditions, &mut Option<i64>) {
        (&mut status.conditions, &mut status.observed_generation)
    }

    async fn advance(&self, context: &Context, status: &mut UserStatus) -> Result<ReadyState, ReconcileError> {
        reconcile_user(context, self, status).await
    }

    async fn finalize(&self, context: &Context) -> Result<Option<Blocker>, ReconcileError> {
        delete(context, self).await
    }
}

fn principal_of(resource: &ChronicleUser) -> String {
    resource.spec.principal.clone().unwrap_or_else(|| resource.name_any())
}

async fn reconcile_user(
    context: &Context,
    resource: &ChronicleUser,
    status: &mut UserStatus,
) -> Result<ReadyState, ReconcileError> {
    let spec = &resource.spec;
    let namespace = resource.namespace().unwrap_or_default();
    let principal = principal_of(resource);
    if principal == OPERATOR_PRINCIPAL || principal == "*" {
        return Ok(ReadyState::not_ready("PrincipalReserved", format!("principal: {principal}: is reserved")));
    }
    if let Some(other) = other_owner(context, resource, &namespace, &principal).await? {
        return Ok(ReadyState::not_ready(
            "Conflict",
            format!("principal {principal} is managed by ChronicleUser {other}"),
        ));
    }
    let (target, cluster) = match resolve_cluster(context, &namespace, &spec.cluster_ref.name).await? {
        Ok(resolved) => resolved,
        Err((reason, message)) => return Ok(ReadyState::unknown(reason, message)),
    };
    status.principal = Some(principal.clone());
    let pending = certificate(context, resource, &cluster, &principal, status).await?;
    let (missing, extra) = differences(context, resource, &target, &principal, status).await?;
    let there = context.admin().quota(&target, &principal).await.map_err(ReconcileError::admin("read the quotas"))?;
    let asked = quota(resource);
    let same = missing.is_empty() && extra.is_empty() && there == asked;
    if spec.management_policy == ManagementPolicy::Observe {
        status.owned = false;
        return Ok(match (same, pending) {
            (_, Some(ready)) => ready,
            (true, None) => ReadyState::ready("Observed"),
            (false, None) => {
                ReadyState::not_ready("Drifted", format!("access rules or quotas of {principal} differ from the spec"))
            }
        });
    }
    if !status.owned {
        let others = !extra.is_empty() || (there.is_some() && there != asked);
        if others && spec.management_policy == ManagementPolicy::Manage {
            let rule = "set managementPolicy to Adopt to take them over, or to Observe to only report on them";
            return Ok(ReadyState::not_ready(
                "RulesExist",
                format!("{principal} already has access rules or quotas that this resource does not manage: {rule}"),
            ));
        }
        // Recorded before the first rule is written.
        status.owned = true;
        return Ok(ReadyState::step_done("Creating"));
    }
    let admin = context.admin();
    // Remove first.
    for some in extra.chunks(RULES_AT_ONCE) {
        admin.remove_rules(&target, some.to_vec()).await.map_err(ReconcileError::admin("remove rules"))?;
    }
    for some in missing.chunks(RULES_AT_ONCE) {
        admin.add_rules(&target, some.to_vec()).await.map_err(ReconcileError::admin("add rules"))?;
    }
    if there != asked {
        admin.set_quota(&target, &principal, asked).await.map_err(ReconcileError::admin("set the quota"))?;
    }
    Ok(pending.unwrap_or_else(|| ReadyState::ready("InSync")))
}

async fn other_owner(
    context: &Context,
    resource: &ChronicleUser,
    namespace: &str,
    principal: &str,
) -> Result<Option<String>, ReconcileError> {
    let users: Api<ChronicleUser> = Api::namespaced(context.client(), namespace);
    let all = users.list(&ListParams::default()).await.map_err(ReconcileError::kube("list ChronicleUsers"))?;
    let older = |other: &&ChronicleUser| {
        let key = |user: &ChronicleUser| (user.metadata.creation_timestamp.clone().map(|time| time.0), user.name_any());
        key(other) < key(resource)
    };
    let same = all.items.iter().filter(|other| {
        other.uid() != resource.uid()
            && other.spec.cluster_ref == resource.spec.cluster_ref
            && principal_of(other) == principal
    });
    Ok(same.filter(older).map(ResourceExt::name_any).next())
}

/// Returns the name of the Certificate and of its Secret.
fn secret_name(resource: &ChronicleUser) -> String {
    let asked = resource.spec.authentication.secret_name.clone();
    asked.unwrap_or_else(|| format!("{}-chronicle-user", resource.name_any()))
}

/// Applies the Certificate of the client. Returns the state to report while it is not issued or not trusted yet.
async fn certificate(
    context: &Context,
    resource: &ChronicleUser,
    cluster: &Cluster,
    principal: &str,
    status: &mut UserStatus,
) -> Result<Option<ReadyState>, ReconcileError> {
    if resource.spec.authentication.kind == UserAuthenticationType::External {
        status.secret_name = None;
        return Ok(None);
    }
    if !cluster.encrypted() {
        let why = format!("ChronicleCluster {} has no TLS: authentication.type must be External", cluster.name);
        return Ok(Some(ReadyState::not_ready("NoTls", why)));
    }
    if cluster.spec.security.tls.secrets.is_some() {
        let why = format!("ChronicleCluster {} has no issuer: authentication.type must be External", cluster.name);
        return Ok(Some(ReadyState::not_ready("NoIssuer", why)));
    }
    if !context.optional_apis().await.cert_manager {
        return Ok(Some(ReadyState::not_ready(
            "CertManagerMissing",
            "cert-manager is not installed, so client certificates cannot be issued: install it, or set authentication.type to External",
        )));
    }
    let (namespace, secret) = (&cluster.namespace, secret_name(resource));
    let owner = OwnerReference {
        api_version: "chronicle.dev/v1alpha1".into(),
        kind: "ChronicleUser".into(),
        name: resource.name_any(),
        uid: resource.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    };
    let object = from_value(json!({
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": {
            "name": secret,
            "namespace": namespace,
            "ownerReferences": [owner],
            "labels": {"app.kubernetes.io/managed-by": "chronicle-operator", USER_LABEL: resource.name_any()},
        },
        "spec": {
            "secretName": secret,
            "commonName": principal,
            "duration": DURATION,
            "renewBefore": RENEW_BEFORE,
            "usages": ["digital signature", "client auth"],
            "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
            "secretTemplate": {"labels": {USER_LABEL: resource.name_any()}},
            "issuerRef": issuer_ref(cluster),
        },
    }));
    let applier = Applier::new(context.client(), namespace, owner).with_persistent_drift(context.persistent_drift());
    applier.apply(&object, &Default::default()).await?;
    status.secret_name = Some(secret.clone());
    let secrets: Api<Secret> = Api::namespaced(context.client(), namespace);
    let get =
        async |name: &str| secrets.get_opt(name).await.map_err(ReconcileError::kube(format!("get Secret {name}")));
    let Some(there) = get(&secret).await? else {
        let why = format!("waiting for cert-manager to issue Secret {secret}");
        return Ok(Some(ReadyState::unknown("CertificatePending", why)));
    };
    // Clients get a certificate of a new CA once nodes serve one. A client certificate that is newer than theirs is left alone: reissuing
    // it would return another certificate of the same CA, again and again.
    let node = get(&cluster.node_secret()).await?;
    let ca = |secret: &Secret| secret_text(secret, "ca.crt").map(|text| text.trim().to_owned());
    let Some(node) = node.filter(|node| ca(node).is_some() && ca(&there) != ca(node)) else { return Ok(None) };
    if matches!((issued_at(&there), issued_at(&node)), (Some(this), Some(nodes)) if this < nodes) {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("cert-manager.io", "v1", "Certificate"));
        let api: Api<DynamicObject> = Api::namespaced_with(context.client(), namespace, &resource);
        let live = api.get(&secret).await.map_err(ReconcileError::kube(format!("get Certificate {secret}")))?;
        reissue(context, namespace, &live).await?;
        let why = format!("waiting for cert-manager to reissue Secret {secret} with the new CA");
        return Ok(Some(ReadyState::unknown("CertificatePending", why)));
    }
    let (maps, name): (Api<ConfigMap>, _) = (Api::namespaced(context.client(), namespace), cluster.trust_config_map());
    let map = maps.get_opt(&name).await.map_err(ReconcileError::kube(format!("get ConfigMap {name}")))?;
    let trusted = map.and_then(|map| map.data?.remove("ca.crt")).unwrap_or_default();
    Ok((!trusts(&trusted, &ca(&there).unwrap_or_default())).then(|| {
        let why = format!(
            "nodes do not trust the CA that issued Secret {secret} yet; if spec.security.tls.issuerRef names an issuer whose CA has \
             changed, renew Certificate {0}-operator, then {0}-node",
            cluster.name
        );
        ReadyState::unknown("CertificatePending", why)
    }))
}

/// Label of the objects of a user: its name.
pub(crate) const USER_LABEL: &str = "chronicle.dev/user";

type RuleKey = (i32, i32, String, i32, i32);

fn key(rule: &v1::Acl) -> RuleKey {
    (rule.resource, rule.pattern, rule.name.clone(), rule.operation, rule.effect)
}

/// Returns the missing rules and the rules that are not in the spec.
async fn differences(
    context: &Context,
    resource: &ChronicleUser,
    target: &Target,
    principal: &str,
    status: &mut UserStatus,
) -> Result<(Vec<v1::Acl>, Vec<v1::Acl>), ReconcileError> {
    let there = context.admin().rules(target, principal).await.map_err(ReconcileError::admin("list rules"))?;
    status.rules = i32::try_from(there.len()).ok();
    let asked = rules(resource, principal);
    let (there_keys, asked_keys): (BTreeSet<RuleKey>, BTreeSet<RuleKey>) =
        (there.iter().map(key).collect(), asked.iter().map(key).collect());
    let missing = asked.into_iter().filter(|rule| !there_keys.contains(&key(rule))).collect();
    let extra = there.into_iter().filter(|rule| !asked_keys.contains(&key(rule))).collect();
    Ok((missing, extra))
}

/// Returns the rules of the spec, one per operation, without duplicates.
fn rules(resource: &ChronicleUser, principal: &str) -> Vec<v1::Acl> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for asked in &resource.spec.authorization.acls {
        for operation in &asked.operations {
            let (kind, name) = match asked.resource {
                AccessResource::Cluster => (v1::ResourceKind::Cluster, "cluster".to_owned()),
                AccessResource::Topic => (v1::ResourceKind::Topic, asked.name.clone().unwrap_or_default()),
                AccessResource::Group => (v1::ResourceKind::Group, asked.name.clone().unwrap_or_default()),
            };
            let rule = v1::Acl {
                principal: principal.to_owned(),
                resource: kind.into(),
                pattern: match asked.pattern {
                    AccessPattern::Literal => v1::PatternKind::Literal.into(),
                    AccessPattern::Prefix => v1::PatternKind::Prefix.into(),
                },
                name,
                operation: match operation {
                    AccessOperation::Read => v1::AclOperation::Read.into(),
                    AccessOperation::Write => v1::AclOperation::Write.into(),
                    AccessOperation::Create => v1::AclOperation::Create.into(),
                    AccessOperation::Delete => v1::AclOperation::Delete.into(),
                    AccessOperation::Alter => v1::AclOperation::Alter.into(),
                    AccessOperation::Describe => v1::AclOperation::Describe.into(),
                    AccessOperation::Admin => v1::AclOperation::Admin.into(),
                    AccessOperation::All => v1::AclOperation::All.into(),
                },
                effect: match asked.effect {
                    AccessEffect::Allow => v1::AclEffect::Allow.into(),
                    AccessEffect::Deny => v1::AclEffect::Deny.into(),
                },
            };
            if seen.insert(key(&rule)) {
                all.push(rule);
            }
        }
    }
    all
}

fn quota(resource: &ChronicleUser) -> Option<v1::Quota> {
    let asked = resource.spec.quotas?;
    let number = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).unwrap_or(0);
    let quota = v1::Quota {
        bytes_in: number(asked.bytes_in),
        bytes_out: number(asked.bytes_out),
        requests: number(asked.requests),
    };
    (quota != v1::Quota::default()).then_some(quota)
}

/// Removes rules, quota and certificate. Returns what blocks that.
async fn delete(context: &Context, resource: &ChronicleUser) -> Result<Option<Blocker>, ReconcileError> {
    let (spec, status) = (&resource.spec, ChildResource::status(resource));
    let namespace = resource.namespace().unwrap_or_default();
    let goes = spec.deletion_policy == DeletionPolicy::Delete
        && spec.management_policy != ManagementPolicy::Observe
        && status.owned;
    if goes && let Some(target) = resolve_for_deletion(context, &namespace, &spec.cluster_ref.name).await? {
        let target = match target {
            Ok(target) => target,
            Err((_, why)) => return Ok(Some(("DeletionWaits", why))),
        };
        let (admin, principal) = (context.admin(), principal_of(resource));
        let rules = admin.rules(&target, &principal).await.map_err(ReconcileError::admin("list rules"))?;
        for some in rules.chunks(RULES_AT_ONCE) {
            admin.remove_rules(&target, some.to_vec()).await.map_err(ReconcileError::admin("remove rules"))?;
        }
        if admin.quota(&target, &principal).await.map_err(ReconcileError::admin("read the quotas"))?.is_some() {
            admin.set_quota(&target, &principal, None).await.map_err(ReconcileError::admin("remove the quota"))?;
        }
    }
    if let Some(name) = &status.secret_name {
        delete_certificate(context, resource, &namespace, name).await?;
    }
    // cert-manager keeps the Secret, with a certificate that is valid for weeks.
    let secrets: Api<Secret> = Api::namespaced(context.client(), &namespace);
    if let Some(name) = &status.secret_name {
        let found = secrets.get_opt(name).await.map_err(ReconcileError::kube(format!("get Secret {name}")))?;
        let label = Some(resource.name_any());
        if let Some(secret) = found.filter(|secret| secret.labels().get(USER_LABEL) == label.as_ref()) {
            let exactly = Preconditions { uid: secret.uid(), resource_version: None };
            match secrets.delete(name, &DeleteParams::default().preconditions(exactly)).await {
                Err(error) if !is_not_found(&error) => {
                    return Err(ReconcileError::kube(format!("delete Secret {name}"))(error));
                }
                _ => {}
            }
        }
    }
    Ok(None)
}

/// Deletes the Certificate of a user. This comes before the Secret, which cert-manager would recreate otherwise.
async fn delete_certificate(
    context: &Context,
    resource: &ChronicleUser,
    namespace: &str,
    name: &str,
) -> Result<(), ReconcileError> {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("cert-manager.io", "v1", "Certificate"));
    let certificates: Api<DynamicObject> = Api::namespaced_with(context.client(), namespace, &kind);
    // The result is also empty if cert-manager is not installed.
    let found = certificates.get_opt(name).await.map_err(ReconcileError::kube(format!("get Certificate {name}")))?;
    let uid = resource.uid().unwrap_or_default();
    let ours = |object: &DynamicObject| object.owner_references().iter().any(|owner| owner.uid == uid);
    let Some(certificate) = found.filter(ours) else { return Ok(()) };
    let exactly = Preconditions { uid: certificate.uid(), resource_version: None };
    match certificates.delete(name, &DeleteParams::default().preconditions(exactly)).await {
        Err(error) if !is_not_found(&error) => Err(ReconcileError::kube(format!("delete Certificate {name}"))(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
