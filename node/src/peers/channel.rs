//! Makes channels to a peer, which begin with a preface, and adds caller and callee to requests.

use std::io;
use std::time::Duration;

use chronicle_client::Connector;
use chronicle_proto::internal::peer_client::PeerClient;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;
use uuid::Uuid;

use super::generations::show;
use super::protocol::{MESSAGE_BYTES_MAX, Purpose, WINDOW_BYTES};
use crate::metadata::DiskGeneration;

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Identity of this node, once it is a member of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Me {
    /// The cluster.
    pub cluster: Uuid,
    /// Raft id.
    pub node: u64,
    /// Generation of the data directory when this process started, with the random number of the process.
    pub start: DiskGeneration,
}

/// A client for calls to one peer.
pub type Client = PeerClient<Channel>;

pub(super) fn client(channel: Channel) -> Client {
    PeerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(usize::MAX)
}

/// Adds caller and callee to a request's metadata.
pub(super) fn address<T>(request: &mut tonic::Request<T>, me: Me, to: u64) {
    let metadata = request.metadata_mut();
    let cluster = MetadataValue::try_from(me.cluster.to_string()).expect("a UUID is ASCII");
    metadata.insert("chronicle-cluster", cluster);
    metadata.insert("chronicle-from", MetadataValue::from(me.node));
    show(metadata, me.start);
    metadata.insert("chronicle-to", MetadataValue::from(to));
}

/// Returns a channel whose connections begin with the preface of `purpose`. Connects on first use.
pub(super) fn channel(address: &str, purpose: Purpose, connector: Connector) -> Result<Channel, String> {
    let uri: Uri = format!("http://{address}").parse().map_err(|e| format!("{address}: must be HOST:PORT: {e}"))?;
    let target = address.to_owned();
    let connect = service_fn(move |_: Uri| {
        let connecting = connector(target.clone());
        async move {
            let mut io = connecting.await?;
            io.write_all(purpose.preface()).await?;
            Ok::<_, io::Error>(TokioIo::new(io))
        }
    });
    Ok(Endpoint::from(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .connect_with_connector_lazy(connect))
}
