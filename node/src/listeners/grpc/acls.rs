//! `chronicle.v1.Access`: access rules and quotas, and the conversions of their messages.

use chronicle_proto::v1 as proto;
use chronicle_proto::v1::access_server;
use tonic::{Request, Response, Status};

use super::caller;
use super::observe::observe;
use crate::listeners::context::Context;
use crate::model::ApiError;
use crate::security::{AclFilter, AclRule, Action, Effect, PatternKind, Quota, ResourceKind};
use crate::telemetry::ApiOperation;

pub(super) struct AccessService {
    context: Context,
}

impl AccessService {
    pub(super) fn new(context: Context) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl access_server::Access for AccessService {
    async fn create_acls(
        &self,
        request: Request<proto::CreateAclsRequest>,
    ) -> Result<Response<proto::CreateAclsResponse>, Status> {
        observe(&self.context, ApiOperation::Access, async {
            let caller = caller(&request)?;
            let numbered = request.into_inner().acls.into_iter().enumerate();
            let rules = numbered.map(|(number, acl)| rule(number, acl)).collect::<Result<_, _>>()?;
            let created = self.context.broker.for_caller(&caller).create_acls(rules).await?;
            Ok(Response::new(proto::CreateAclsResponse { created: created.into_iter().map(acl).collect() }))
        })
        .await
    }

    async fn delete_acls(
        &self,
        request: Request<proto::DeleteAclsRequest>,
    ) -> Result<Response<proto::DeleteAclsResponse>, Status> {
        observe(&self.context, ApiOperation::Access, async {
            let caller = caller(&request)?;
            let filters = request.into_inner().filters.into_iter().map(filter).collect::<Result<_, _>>()?;
            let deleted = self.context.broker.for_caller(&caller).delete_acls(filters).await?;
            Ok(Response::new(proto::DeleteAclsResponse { deleted: deleted.into_iter().map(acl).collect() }))
        })
        .await
    }

    async fn list_acls(
        &self,
        request: Request<proto::ListAclsRequest>,
    ) -> Result<Response<proto::ListAclsResponse>, Status> {
        observe(&self.context, ApiOperation::Access, async {
            let caller = caller(&request)?;
            let filter = filter(request.into_inner().filter.unwrap_or_default())?;
            let rules = self.context.broker.for_caller(&caller).list_acls(&filter).await?;
            Ok(Response::new(proto::ListAclsResponse { acls: rules.into_iter().map(acl).collect() }))
        })
        .await
    }

    async fn set_quota(
        &self,
        request: Request<proto::SetQuotaRequest>,
    ) -> Result<Response<proto::SetQuotaResponse>, Status> {
        observe(&self.context, ApiOperation::Access, async {
            let caller = caller(&request)?;
            let proto::SetQuotaRequest { principal, quota } = request.into_inner();
            let proto::Quota { bytes_in, bytes_out, requests } = quota.unwrap_or_default();
            let quota = Quota { bytes_in, bytes_out, requests };
            self.context.broker.for_caller(&caller).set_quota(principal, quota).await?;
            Ok(Response::new(proto::SetQuotaResponse {}))
        })
        .await
    }

    async fn delete_quota(
        &self,
        request: Request<proto::DeleteQuotaRequest>,
    ) -> Result<Response<proto::DeleteQuotaResponse>, Status> {
        observe(&self.context, ApiOperation::Access, async {
            let caller = caller(&request)?;
            self.context.broker.for_caller(&caller).delete_quota(request.into_inner().principal).await?;
            Ok(Response::new(proto::DeleteQuotaResponse {}))
        })
        .await
    }

    async fn list_quotas(
        &self,
        request: Request<proto::ListQuotasRequest>,
    ) -> Result<Response<proto::ListQuotasResponse>, Status> {
        observe(&self.context, ApiOperation::Access, async {
            let caller = caller(&request)?;
            let (default, quotas) = self.context.broker.for_caller(&caller).list_quotas().await?;
            let one = |(principal, given)| proto::PrincipalQuota { principal, quota: Some(quota(given)) };
            Ok(Response::new(proto::ListQuotasResponse {
                default_quota: default.map(quota),
                quotas: quotas.into_iter().map(one).collect(),
            }))
        })
        .await
    }
}

fn quota(quota: Quota) -> proto::Quota {
    let Quota { bytes_in, bytes_out, requests } = quota;
    proto::Quota { bytes_in, bytes_out, requests }
}

fn acl(rule: AclRule) -> proto::Acl {
    proto::Acl {
        principal: rule.principal,
        resource: resource_out(rule.kind).into(),
        pattern: pattern_out(rule.pattern).into(),
        name: rule.name,
        operation: operation_out(rule.action).into(),
        effect: effect_out(rule.effect).into(),
    }
}

fn rule(number: usize, acl: proto::Acl) -> Result<AclRule, ApiError> {
    let missing = |field: &str| ApiError::invalid(&format!("acls[{number}].{field}"), "unspecified", "must be given");
    Ok(AclRule {
        kind: resource_in(acl.resource)?.ok_or_else(|| missing("resource"))?,
        pattern: pattern_in(acl.pattern)?.unwrap_or(PatternKind::Literal),
        action: operation_in(acl.operation)?.ok_or_else(|| missing("operation"))?,
        effect: effect_in(acl.effect)?.unwrap_or(Effect::Allow),
        principal: acl.principal,
        name: acl.name,
    })
}

fn filter(filter: proto::AclFilter) -> Result<AclFilter, ApiError> {
    Ok(AclFilter {
        kind: resource_in(filter.resource)?,
        pattern: pattern_in(filter.pattern)?,
        action: operation_in(filter.operation)?,
        effect: effect_in(filter.effect)?,
        principal: filter.principal,
        name: filter.name,
    })
}

/// Defines the two conversions between an enum of this node and the enum on the wire with the same variants.
macro_rules! same {
    ($field:literal, $into:ident, $out:ident, $ours:ident, $theirs:ident: $($name:ident),*) => {
        /// `None`: unspecified.
        fn $into(number: i32) -> Result<Option<$ours>, ApiError> {
            match proto::$theirs::try_from(number) {
                Ok(proto::$theirs::Unspecified) => Ok(None),
                $(Ok(proto::$theirs::$name) => Ok(Some($ours::$name)),)*
                Err(_) => Err(ApiError::invalid($field, number, "must be a value that this version supports")),
            }
        }

        fn $out(ours: $ours) -> proto::$theirs {
            match ours {
                $($ours::$name => proto::$theirs::$name,)*
            }
        }
    };
}

same!("resource", resource_in, resource_out, ResourceKind, ResourceKind: Cluster, Topic, Group);
same!("pattern", pattern_in, pattern_out, PatternKind, PatternKind: Literal, Prefix);
same!("operation", operation_in, operation_out, Action, AclOperation:
    Read, Write, Create, Delete, Alter, Describe, Admin, All);
same!("effect", effect_in, effect_out, Effect, AclEffect: Allow, Deny);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_comes_back_as_it_was_sent() {
        for kind in ResourceKind::ALL {
            for action in kind.actions() {
                for (pattern, effect) in [(PatternKind::Literal, Effect::Allow), (PatternKind::Prefix, Effect::Deny)] {
                    let (principal, name) = ("ann".to_owned(), "t".to_owned());
                    let sent = AclRule { principal, kind: *kind, pattern, name, action: *action, effect };
                    assert_eq!(rule(0, acl(sent.clone())), Ok(sent));
                }
            }
        }
    }

    #[test]
    fn what_a_rule_must_have_is_required_by_name() {
        let nothing = proto::Acl::default();
        assert!(rule(3, nothing.clone()).unwrap_err().message.starts_with("acls[3].resource: unspecified"));
        let topic = proto::Acl { resource: proto::ResourceKind::Topic.into(), ..nothing };
        assert!(rule(0, topic.clone()).unwrap_err().message.starts_with("acls[0].operation: unspecified"));
        assert!(rule(0, proto::Acl { operation: 99, ..topic }).unwrap_err().message.starts_with("operation: 99"));
        assert_eq!(filter(proto::AclFilter::default()), Ok(AclFilter::default()));
    }
}
