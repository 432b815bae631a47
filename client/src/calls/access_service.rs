//! The calls of `chronicle.v1.Access`: ACLs and quotas.
//!
//! Methods of [`Client`], each with retries. Stands on `client.rs`.

use std::time::Duration;

use chronicle_proto::v1;
use chronicle_proto::v1::access_client::AccessClient;
use tonic::transport::Channel;

use crate::client::Client;
use crate::error::ClientError;
use crate::resolver::Target;
use crate::retry::Repeat;

impl Client {
    /// Adds ACL rules, all or none (1 to 500). Returns those that did not exist before.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, `PERMISSION_DENIED`, `OVERLOADED` at the limit on the number of rules; `OUTCOME_UNKNOWN` when
    /// they may have been added.
    pub async fn create_acls(&self, acls: Vec<v1::Acl>) -> Result<Vec<v1::Acl>, ClientError> {
        let request = v1::CreateAclsRequest { acls };
        // Adding a rule is idempotent.
        let answer = self.connection().call(Target::Any, Repeat::Always, true, Duration::ZERO, |channel| {
            let (mut access, request) = (self.access(channel), request.clone());
            async move { access.create_acls(request).await }
        });
        Ok(answer.await?.created)
    }

    /// Deletes the rules that any of the filters (1 to 500) matches, and returns them. An empty filter matches every rule.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, `PERMISSION_DENIED`; `OUTCOME_UNKNOWN` when they may have been deleted.
    pub async fn delete_acls(&self, filters: Vec<v1::AclFilter>) -> Result<Vec<v1::Acl>, ClientError> {
        let request = v1::DeleteAclsRequest { filters };
        // A repeated request would not return the rules that the first attempt deleted.
        let answer = self.connection().call(Target::Any, Repeat::NotAccepted, true, Duration::ZERO, |channel| {
            let (mut access, request) = (self.access(channel), request.clone());
            async move { access.delete_acls(request).await }
        });
        Ok(answer.await?.deleted)
    }

    /// The rules that a filter matches, in order.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`; when no node answers within the deadline.
    pub async fn list_acls(&self, filter: v1::AclFilter) -> Result<Vec<v1::Acl>, ClientError> {
        let request = v1::ListAclsRequest { filter: Some(filter) };
        let answer = self.connection().call(Target::Any, Repeat::Always, false, Duration::ZERO, |channel| {
            let (mut access, request) = (self.access(channel), request.clone());
            async move { access.list_acls(request).await }
        });
        Ok(answer.await?.acls)
    }

    /// Sets the quota of a principal, per node and second; `None`: the default quota, of every principal without its own.
    ///
    /// # Errors
    /// `INVALID_REQUEST`, `PERMISSION_DENIED`; `OUTCOME_UNKNOWN` when it may have been set.
    pub async fn set_quota(&self, principal: Option<String>, quota: v1::Quota) -> Result<(), ClientError> {
        let request = v1::SetQuotaRequest { principal, quota: Some(quota) };
        let answer = self.connection().call(Target::Any, Repeat::Always, true, Duration::ZERO, |channel| {
            let (mut access, request) = (self.access(channel), request.clone());
            async move { access.set_quota(request).await }
        });
        answer.await.map(|_| ())
    }

    /// Deletes the quota of a principal; `None`: the default quota.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`; `OUTCOME_UNKNOWN` when it may have been deleted.
    pub async fn delete_quota(&self, principal: Option<String>) -> Result<(), ClientError> {
        let request = v1::DeleteQuotaRequest { principal };
        let answer = self.connection().call(Target::Any, Repeat::Always, true, Duration::ZERO, |channel| {
            let (mut access, request) = (self.access(channel), request.clone());
            async move { access.delete_quota(request).await }
        });
        answer.await.map(|_| ())
    }

    /// The default quota and the quotas of principals.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`; when no node answers within the deadline.
    pub async fn list_quotas(&self) -> Result<v1::ListQuotasResponse, ClientError> {
        self.connection()
            .call(Target::Any, Repeat::Always, false, Duration::ZERO, |channel| {
                let mut access = self.access(channel);
                async move { access.list_quotas(v1::ListQuotasRequest {}).await }
            })
            .await
    }

    fn access(&self, channel: Channel) -> AccessClient<Channel> {
        AccessClient::new(channel).max_decoding_message_size(self.connection().config().answer_bytes_max)
    }
}
