//! The calls of `chronicle.v1.Cluster` that the command line makes, through the client: it repeats what was not accepted and
//! asks other nodes when one does not answer.

use std::time::Duration;

use chronicle_client::{Client, ClientConfig, ClientError, v1};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

use crate::cli::Encryption;

/// The cluster behind some of its nodes.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Calls {
    client: Client,
}

impl Calls {
    /// Connects when it is first used; must be called inside the runtime.
    ///
    /// # Errors
    /// `server` is not `HOST:PORT`, or only a part of the encryption is given.
    pub(in crate::cli) fn new(server: &str, timeout: Duration, encryption: &Encryption) -> anyhow::Result<Self> {
        let config = encryption.apply(ClientConfig::new(server).request_timeout(timeout))?;
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

    /// UUID of the node that leads afterwards. An empty `topic`: the controller group; an empty `to`: the best replica.
    pub(super) async fn transfer_leadership(&self, topic: &str, partition: i32, to: &str) -> anyhow::Result<String> {
        let request = v1::TransferLeadershipRequest { topic: topic.to_owned(), partition, to: to.to_owned() };
        Ok(self.client.transfer_leadership(request).await?.leader)
    }

    /// One answer per partition, as they are found. The timeout bounds the wait for the first.
    pub(super) async fn verify(
        &self,
        topic: &str,
    ) -> anyhow::Result<BoxStream<'static, anyhow::Result<v1::VerifyResponse>>> {
        Ok(self.client.verify(topic).await?.map_err(|status| ClientError::from(status).into()).boxed())
    }
}
