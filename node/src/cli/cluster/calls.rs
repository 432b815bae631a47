//! The calls of `chronicle.v1.Cluster` that the command line makes.
//!
//! One place, so that whoever changes how they are made changes this file only. A call is not repeated here: operations
//! answer when they have begun, and what waits for their end asks again by itself (`wait.rs`).

use std::time::Duration;

use anyhow::{Context, anyhow};
use chronicle_client::v1;
use chronicle_client::v1::cluster_client::ClusterClient;
use futures::StreamExt;
use futures::stream::BoxStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The cluster behind one of its nodes.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Calls {
    server: String,
    client: ClusterClient<Channel>,
    timeout: Duration,
}

impl Calls {
    /// Connects when it is first used; must be called inside the runtime.
    ///
    /// # Errors
    /// `server` is not `HOST:PORT`.
    pub(in crate::cli) fn new(server: &str, timeout: Duration) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{server}"))
            .with_context(|| format!("--server: {server}: must be HOST:PORT"))?
            .connect_timeout(timeout);
        let client = ClusterClient::new(endpoint.connect_lazy()).max_decoding_message_size(64 << 20);
        Ok(Self { server: server.to_owned(), client, timeout })
    }

    /// A call within the timeout; its error is one line with the reason.
    async fn call<T>(&self, answer: impl Future<Output = Result<tonic::Response<T>, Status>>) -> anyhow::Result<T> {
        match tokio::time::timeout(self.timeout, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.error(&status)),
            Err(_) => Err(anyhow!("DEADLINE_EXCEEDED: {}: no answer within {:?}", self.server, self.timeout)),
        }
    }

    fn error(&self, status: &Status) -> anyhow::Error {
        match status.get_details_error_info() {
            Some(info) => anyhow!("{}: {}", info.reason, status.message()),
            None if status.code() == Code::Unavailable => anyhow!("UNREACHABLE: {}: {}", self.server, status.message()),
            None => anyhow!("{:?}: {}: {}", status.code(), self.server, status.message()),
        }
    }

    pub(in crate::cli) async fn servers(&self) -> anyhow::Result<v1::GetServersResponse> {
        self.call(self.client.clone().get_servers(v1::GetServersRequest {})).await
    }

    pub(in crate::cli) async fn status(&self) -> anyhow::Result<v1::GetStatusResponse> {
        self.call(self.client.clone().get_status(v1::GetStatusRequest {})).await
    }

    pub(super) async fn decommission(&self, node: &str) -> anyhow::Result<v1::Operation> {
        let request = v1::NodeRequest { node: node.to_owned() };
        Ok(self.call(self.client.clone().decommission(request)).await?.operation.unwrap_or_default())
    }

    pub(super) async fn drain(&self, node: &str) -> anyhow::Result<v1::Operation> {
        let request = v1::NodeRequest { node: node.to_owned() };
        Ok(self.call(self.client.clone().drain(request)).await?.operation.unwrap_or_default())
    }

    pub(super) async fn undrain(&self, node: &str) -> anyhow::Result<v1::Operation> {
        let request = v1::NodeRequest { node: node.to_owned() };
        Ok(self.call(self.client.clone().undrain(request)).await?.operation.unwrap_or_default())
    }

    pub(super) async fn cancel_operation(&self, id: u64) -> anyhow::Result<v1::Operation> {
        let request = v1::CancelOperationRequest { id };
        Ok(self.call(self.client.clone().cancel_operation(request)).await?.operation.unwrap_or_default())
    }

    /// UUID of the node that leads afterwards. An empty `topic`: the controller group; an empty `to`: the best replica.
    pub(super) async fn transfer_leadership(&self, topic: &str, partition: i32, to: &str) -> anyhow::Result<String> {
        let request = v1::TransferLeadershipRequest { topic: topic.to_owned(), partition, to: to.to_owned() };
        Ok(self.call(self.client.clone().transfer_leadership(request)).await?.leader)
    }

    /// One answer per partition, as they are found. The timeout bounds the wait for the first.
    pub(super) async fn verify(
        &self,
        topic: &str,
    ) -> anyhow::Result<BoxStream<'static, anyhow::Result<v1::VerifyResponse>>> {
        let request = v1::VerifyRequest { topic: topic.to_owned() };
        let answers = self.call(self.client.clone().verify(request)).await?;
        let this = self.clone();
        Ok(answers.map(move |answer| answer.map_err(|status| this.error(&status))).boxed())
    }
}
