//! The calls of `chronicle.v1.Access`: rules and quotas.

use std::time::Duration;

use chronicle_proto::v1;
use chronicle_proto::v1::access_client::AccessClient;
use tonic::transport::Channel;

use crate::client::Client;
use crate::error::ClientError;
use crate::resolver::Target;
use crate::retry::Repeat;

impl Client {
    /// Adds rules, all or none (1 to 500); answers those that were not there.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, `PERMISSION_DENIED`, `OVERLOADED` at the limits of rules; `OUTCOME_UNKNOWN` when they may be there.
    pub async fn create_acls(&self, acls: Vec<v1::Acl>) -> Result<Vec<v1::Acl>, ClientError> {
        let request = v1::CreateAclsRequest { acls };
        // A rule is there once, however often it is added.
        let answer = self.call(Target::Any, Repeat::Always, true, Duration::ZERO, |channel| {
            let (mut access, request) = (self.access(channel), request.clone());
            async move { access.create_acls(request).await }
        });
        Ok(answer.await?.created)
    }

    /// Takes away the rules that any of the filters (1 to 500) means; answers them. An empty filter means every rule.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, `PERMISSION_DENIED`; `OUTCOME_UNKNOWN` when they may be gone.
    pub async fn delete_acls(&self, filters: Vec<v1::AclFilter>) -> Result<Vec<v1::Acl>, ClientError> {
        let request = v1::DeleteAclsRequest { filters };
        // Repeated, the answer would not name what the first attempt took away.
        let answer = self.call(Target::Any, Repeat::NotAccepted, true, Duration::ZERO, |channel| {
            let (mut access, request) = (self.access(channel), request.clone());
            async move { access.delete_acls(request).await }
        });
        Ok(answer.await?.deleted)
    }

    /// The rules that a filter means, in order.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`; when no node answers within the deadline.
    pub async fn list_acls(&self, filter: v1::AclFilter) -> Result<Vec<v1::Acl>, ClientError> {
        let request = v1::ListAclsRequest { filter: Some(filter) };
        let answer = self.call(Target::Any, Repeat::Always, false, Duration::ZERO, |channel| {
            let (mut access, request) = (self.access(channel), request.clone());
            async move { access.list_acls(request).await }
        });
        Ok(answer.await?.acls)
    }

    /// Sets what a principal may do on each node, per second; `None`: every principal without a quota of its own.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, `PERMISSION_DENIED`; `OUTCOME_UNKNOWN` when it may be set.
    pub async fn set_quota(&self, principal: Option<String>, quota: v1::Quota) -> Result<(), ClientError> {
        let request = v1::SetQuotaRequest { principal, quota: Some(quota) };
        let answer = self.call(Target::Any, Repeat::Always, true, Duration::ZERO, |channel| {
            let (mut access, request) = (self.access(channel), request.clone());
            async move { access.set_quota(request).await }
        });
        answer.await.map(|_| ())
    }

    /// Removes the quota of a principal; `None`: the default one.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`; `OUTCOME_UNKNOWN` when it may be gone.
    pub async fn delete_quota(&self, principal: Option<String>) -> Result<(), ClientError> {
        let request = v1::DeleteQuotaRequest { principal };
        let answer = self.call(Target::Any, Repeat::Always, true, Duration::ZERO, |channel| {
            let (mut access, request) = (self.access(channel), request.clone());
            async move { access.delete_quota(request).await }
        });
        answer.await.map(|_| ())
    }

    /// The default quota, and those of principals.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`; when no node answers within the deadline.
    pub async fn list_quotas(&self) -> Result<v1::ListQuotasResponse, ClientError> {
        self.call(Target::Any, Repeat::Always, false, Duration::ZERO, |channel| {
            let mut access = self.access(channel);
            async move { access.list_quotas(v1::ListQuotasRequest {}).await }
        })
        .await
    }

    fn access(&self, channel: Channel) -> AccessClient<Channel> {
        AccessClient::new(channel).max_decoding_message_size(self.config().answer_bytes_max)
    }
}
