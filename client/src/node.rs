//! The calls to one node about itself: they go to the address given and nowhere else, once.

use chronicle_proto::v1;
use chronicle_proto::v1::node_client::NodeClient;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::client::Client;
use crate::error::{ClientError, ErrorKind};
use crate::nodes::check_address;

impl Client {
    /// What a node (`HOST:PORT`) logs.
    ///
    /// # Errors
    /// When the node does not answer within the deadline.
    pub async fn log_filter(&self, address: &str) -> Result<v1::LogFilter, ClientError> {
        let mut node = self.node(address)?;
        self.once(address, node.get_log_filter(v1::GetLogFilterRequest {})).await
    }

    /// Changes what a node (`HOST:PORT`) logs.
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

    /// What support needs to know of a node (`HOST:PORT`), as parts of files.
    ///
    /// # Errors
    /// When the stream cannot be opened within the deadline; errors of the open stream come as gRPC statuses, which convert
    /// into [`ClientError`].
    pub async fn diagnostics(
        &self,
        address: &str,
        request: v1::GetDiagnosticsRequest,
    ) -> Result<tonic::Streaming<v1::DiagnosticsPart>, ClientError> {
        let mut node = self.node(address)?;
        self.once(address, node.get_diagnostics(request)).await
    }

    fn node(&self, address: &str) -> Result<NodeClient<Channel>, ClientError> {
        check_address(address)?;
        let channel = self.channel_to(address);
        Ok(NodeClient::new(channel).max_decoding_message_size(self.config().answer_bytes_max))
    }

    async fn once<T>(
        &self,
        address: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, ClientError> {
        let limit = self.config().request_timeout;
        match timeout(limit, call).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => {
                let message = format!("{address}: no answer within {} ms", limit.as_millis());
                Err(ClientError::new(ErrorKind::Transport { sent: true }, "DEADLINE_EXCEEDED", message))
            }
        }
    }
}
