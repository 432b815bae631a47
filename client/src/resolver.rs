//! Which node a request goes to.
//!
//! Today that is always the configured server. Following leaders and spreading reads over replicas belongs here: callers
//! ask per partition and report redirects, so that they need not change then.

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::config::ClientConfig;
use crate::error::ClientError;

/// HTTP/2 flow-control window of one stream: what a reader lets the node send ahead.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// HTTP/2 flow-control window of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Hands out channels. Connections are opened on first use and again after a failure.
#[derive(Clone)]
pub(crate) struct Resolver {
    seed: Channel,
}

impl Resolver {
    pub(crate) fn new(config: &ClientConfig) -> Result<Self, ClientError> {
        Ok(Self { seed: channel(config, &config.server)? })
    }

    /// Where calls that concern no partition go.
    pub(crate) fn any(&self) -> Channel {
        self.seed.clone()
    }
}

fn channel(config: &ClientConfig, address: &str) -> Result<Channel, ClientError> {
    const RULE: &str = "must be HOST:PORT";
    let invalid = || ClientError::invalid("server", address, RULE);
    let uri: Uri = format!("http://{address}").parse().map_err(|_| invalid())?;
    if uri.host().is_none_or(str::is_empty) || uri.port_u16().is_none_or(|port| port == 0) || uri.path() != "/" {
        return Err(invalid());
    }
    let connector = config.connector.clone();
    let target = address.to_owned();
    let connect = service_fn(move |_: Uri| {
        let connecting = connector(target.clone());
        async move { connecting.await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from(uri)
        .connect_timeout(config.connect_timeout)
        .http2_keep_alive_interval(config.keep_alive)
        .keep_alive_timeout(config.keep_alive)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    Ok(endpoint.connect_with_connector_lazy(connect))
}
