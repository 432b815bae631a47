//! The nodes, asked as the operator asks them, over a connector of the plugin's.

use std::collections::BTreeMap;
use std::time::Duration;

use chronicle_client::v1::cluster_client::ClusterClient;
use chronicle_client::{Client, ClientConfig, ClientError, Connector, ErrorKind, Pem, TlsConfig, tls_connector, v1};
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::error::causes;
use crate::admin::{AdminError, AdminResult, Answer, Nodes, Target, combine};
use crate::plan::{CatchUp, ClusterView};

/// Longest wait for one node's status: a port-forward takes several trips through the API server.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a command, retries included.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest comparison of all topics.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for all that a node knows of itself.
const DIAGNOSTICS_TIMEOUT: Duration = Duration::from_secs(60);
/// Topics that are compared at the same time.
const AT_ONCE: usize = 8;
/// Largest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Files by name.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// What the plugin asks of nodes.
pub(super) trait Ask: Send + Sync + 'static {
    /// What a majority of the cluster says about itself.
    fn observe<'a>(&'a self, target: &'a Target) -> AdminResult<'a, ClusterView>;
    /// Whether these nodes have all records that any node has.
    fn catch_up<'a>(&'a self, target: &'a Target, nodes: &'a [String]) -> AdminResult<'a, CatchUp>;
    /// Has a node (UUID) hand over what it leads.
    fn drain<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()>;
    /// Lets a node (UUID) lead again.
    fn undrain<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()>;
    /// What a node at an address knows of itself: at most so many bytes of its log, and of everything.
    fn diagnostics<'a>(&'a self, target: &'a Target, address: &'a str, bytes_max: usize) -> AdminResult<'a, Files>;
}

/// Nodes behind a connector.
pub(super) struct Reach {
    connector: Connector,
}

impl Reach {
    pub(super) fn new(connector: Connector) -> Self {
        Self { connector }
    }

    fn connector(&self, target: &Target) -> Connector {
        match &target.tls {
            None => self.connector.clone(),
            Some(tls) => {
                let (certificate, key) = (Pem::Text(tls.certificate.clone()), Pem::Text(tls.key.clone()));
                let config = TlsConfig::new(Pem::Text(tls.ca.clone())).identity(certificate, key);
                tls_connector(self.connector.clone(), config)
            }
        }
    }

    fn client(&self, target: &Target) -> Result<Client, AdminError> {
        let config = ClientConfig::of(target.nodes.iter().map(|(_, address)| address.clone()));
        let mut config = config.request_timeout(COMMAND_TIMEOUT).connector(self.connector(target));
        config.connect_timeout = STATUS_TIMEOUT;
        Client::connect(config).map_err(refused)
    }

    /// A connection to exactly this node.
    async fn channel(&self, target: &Target, address: &str) -> Result<Channel, String> {
        let connect = self.connector(target);
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
        let endpoint = endpoint.connect_timeout(STATUS_TIMEOUT).timeout(COMMAND_TIMEOUT);
        let address = address.to_owned();
        let service = service_fn(move |_: Uri| {
            let (connect, address) = (connect.clone(), address.clone());
            async move { connect(address).await.map(TokioIo::new) }
        });
        endpoint.connect_with_connector(service).await.map_err(|error| causes(&error))
    }

    async fn status(&self, target: &Target, address: &str) -> Result<v1::GetStatusResponse, String> {
        let ask = async {
            let channel = self.channel(target, address).await?;
            let mut cluster = ClusterClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
            let answer = cluster.get_status(v1::GetStatusRequest {}).await;
            answer.map(tonic::Response::into_inner).map_err(|status| ClientError::from(status).to_string())
        };
        match timeout(STATUS_TIMEOUT, ask).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} ms", STATUS_TIMEOUT.as_millis())),
        }
    }

    /// As [`Nodes::compare_topic`], for all topics.
    async fn compare(&self, target: &Target, nodes: &[String]) -> Result<CatchUp, AdminError> {
        let mut channels = Vec::new();
        for (name, address) in &target.nodes {
            match self.channel(target, address).await {
                Ok(channel) => channels.push((name.clone(), channel)),
                Err(why) if nodes.contains(name) => return Err(AdminError::Failed(format!("{name}: {why}"))),
                Err(_) => {}
            }
        }
        let topics = self.client(target)?.list_topics().await.map_err(refused)?;
        let channels = &channels;
        let compare = |topic: v1::Topic| async move { Nodes::compare_topic(channels, nodes, &topic.name).await };
        let compared = futures::stream::iter(topics).map(compare).buffer_unordered(AT_ONCE);
        let behind: Vec<String> = compared.try_concat().await.map_err(AdminError::Failed)?;
        Ok(match behind.first() {
            None => CatchUp::Done,
            Some(first) => CatchUp::Behind { why: format!("{} partitions, such as {first}", behind.len()) },
        })
    }

    async fn files(&self, target: &Target, address: &str, bytes_max: usize) -> Result<Files, AdminError> {
        let request = v1::GetDiagnosticsRequest { log_bytes_max: bytes_max as u64 };
        let mut parts = self.client(target)?.diagnostics(address, request).await.map_err(refused)?;
        let mut files = Files::new();
        let mut bytes = 0;
        while let Some(part) = parts.try_next().await.map_err(|status| refused(ClientError::from(status)))? {
            bytes += part.data.len();
            if bytes > bytes_max.saturating_mul(4) {
                return Err(AdminError::Failed(format!("the node sends more than {bytes} bytes")));
            }
            files.entry(part.file).or_default().extend_from_slice(&part.data);
        }
        Ok(files)
    }
}

impl Ask for Reach {
    fn observe<'a>(&'a self, target: &'a Target) -> AdminResult<'a, ClusterView> {
        Box::pin(async move {
            let ask = |(name, address): &'a (String, String)| async move {
                let answer: Answer = (name.clone(), self.status(target, address).await);
                answer
            };
            combine(&join_all(target.nodes.iter().map(ask)).await)
        })
    }

    fn catch_up<'a>(&'a self, target: &'a Target, nodes: &'a [String]) -> AdminResult<'a, CatchUp> {
        Box::pin(within(CATCH_UP_TIMEOUT, self.compare(target, nodes)))
    }

    fn drain<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()> {
        Box::pin(async move { self.client(target)?.drain(node_id).await.map(drop).map_err(refused) })
    }

    fn undrain<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()> {
        Box::pin(async move { self.client(target)?.undrain(node_id).await.map(drop).map_err(refused) })
    }

    fn diagnostics<'a>(&'a self, target: &'a Target, address: &'a str, bytes_max: usize) -> AdminResult<'a, Files> {
        Box::pin(within(DIAGNOSTICS_TIMEOUT, self.files(target, address, bytes_max)))
    }
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, AdminError>>) -> Result<T, AdminError> {
    match timeout(limit, call).await {
        Ok(answer) => answer,
        Err(_) => Err(AdminError::Failed(format!("no answer within {} s", limit.as_secs()))),
    }
}

fn refused(error: ClientError) -> AdminError {
    match error.kind {
        ErrorKind::Rejected => AdminError::Refused { reason: error.reason, message: error.message },
        _ => AdminError::Failed(error.to_string()),
    }
}
