//! The calls of `chronicle.v1.Node`: logging and diagnostics of one node.
//!
//! Methods of [`Client`]. Each goes to the given address only, and is not retried. Stands on `client.rs`.

use chronicle_proto::v1;
use chronicle_proto::v1::node_client::NodeClient;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::address::parse_address;
use crate::client::Client;
use crate::error::{ClientError, ErrorKind};

impl Client {
    /// The log filter of a node (`HOST:PORT`).
    ///
    /// # Errors
    /// When the node does not answer within the deadline.
    pub async fn log_filter(&self, address: &str) -> Result<v1::LogFilter, ClientError> {
        let mut node = self.node(address)?;
        self.once(address, node.get_log_filter(v1::GetLogFilterRequest {})).await
    }

    /// Changes the log filter of a node (`HOST:PORT`).
    ///
    /// # Errors
    /// `INVALID_REQUEST` when the filter does not parse; when the node does not answer within the deadline.
    pub async fn set_log_filter(
        &self,
        address: &str,
        request: v1::SetLogFilterRequest,
    ) -> Result<v1::LogFilter, ClientError> {
        let mut node = self.node(address)?;
        self.once(address, node.set_log_filter(request)).await
    }

    /// The diagnostics bundle of a node (`HOST:PORT`), as a stream of parts of files.
    ///
    /// # Errors
    /// When the stream cannot be opened within the deadline. Errors of the open stream are gRPC statuses, which convert into
    /// [`ClientError`].
    pub async fn diagnostics(
        &self,
        address: &str,
        request: v1::GetDiagnosticsRequest,
    ) -> Result<tonic::Streaming<v1::DiagnosticsPart>, ClientError> {
        let mut node = self.node(address)?;
        self.once(address, node.get_diagnostics(request)).await
    }

    fn node(&self, address: &str) -> Result<NodeClient<Channel>, ClientError> {
        parse_address(address)?;
        let channel = self.connection().channel_to(address);
        Ok(NodeClient::new(channel).max_decoding_message_size(self.connection().config().answer_bytes_max))
    }

    async fn once<T>(
        &self,
        address: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, ClientError> {
        let limit = self.connection().config().request_timeout;
        match timeout(limit, call).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => {
                let message = format!("{address}: no answer within {} ms", limit.as_millis());
                Err(ClientError::new(ErrorKind::Transport { sent: true }, "DEADLINE_EXCEEDED", message))
            }
        }
    }
}
