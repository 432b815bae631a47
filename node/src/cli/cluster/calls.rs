//! Calls of `chronicle.v1.Cluster` through the client, which retries calls that were not accepted and calls other nodes
//! when one does not answer.

use std::time::Duration;

use chronicle_client::{Client, ClientConfig, ClientError, v1};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

use crate::cli::TlsOptions;

/// A client for cluster operations.
#[derive(Debug, Clone)]
pub(in crate::cli) struct ClusterCalls {
    client: Client,
}

impl ClusterCalls {
    /// Returns a client that connects on first use. Must be called inside the runtime.
    ///
    /// # Errors
    /// `server` is not `HOST:PORT`, or the TLS options are incomplete.
    pub(in crate::cli) fn new(server: &str, timeout: Duration, tls: &TlsOptions) -> anyhow::Result<Self> {
        let config = tls.apply(ClientConfig::new(server).request_timeout(timeout))?;
        Ok(Self { client: Client::connect(config)? })
    }

    pub(in crate::cli) async fn servers(&self) -> anyhow::Result<v1::GetServersResponse> {
        Ok(self.client.get_servers().await?)
    }

    pub(in crate::cli) async fn status(&self) -> anyhow::Result<v1::GetStatusResponse> {
        Ok(self.client.cluster_status().await?)
    }

    pub(super) async fn decommission(&self, node: &str) -> anyhow::Result<v1::Operation> {
        Ok(self.client.decommission(node).await?)
    }

    pub(super) async fn drain(&self, node: &str) -> anyhow::Result<v1::Operation> {
        Ok(self.client.drain(node).await?)
    }

    pub(super) async fn undrain(&self, node: &str) -> anyhow::Result<v1::Operation> {
        Ok(self.client.undrain(node).await?)
    }

    pub(super) async fn cancel_operation(&self, id: u64) -> anyhow::Result<v1::Operation> {
        Ok(self.client.cancel_operation(id).await?)
    }

    /// Transfers leadership. Returns the UUID of the new leader. An empty `topic`: the controller group; an empty `to`:
    /// the best replica.
    pub(super) async fn transfer_leadership(&self, topic: &str, partition: i32, to: &str) -> anyhow::Result<String> {
        let request = v1::TransferLeadershipRequest { topic: topic.to_owned(), partition, to: to.to_owned() };
        Ok(self.client.transfer_leadership(request).await?.leader)
    }

    pub(super) async fn recover(&self, request: v1::RecoverRequest) -> anyhow::Result<v1::RecoverResponse> {
        Ok(self.client.recover(request).await?)
    }

    /// Returns one response per partition, as they arrive. The timeout bounds the wait for the first.
    pub(super) async fn verify(
        &self,
        topic: &str,
    ) -> anyhow::Result<BoxStream<'static, anyhow::Result<v1::VerifyResponse>>> {
        Ok(self.client.verify(topic).await?.map_err(|status| ClientError::from(status).into()).boxed())
    }
}
