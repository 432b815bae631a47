//! The connector: a closure that opens a byte stream to an address.
//!
//! All network traffic of the client goes through it, so a test or a simulation can replace the network. Names no other
//! file of the crate.

use std::io;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A byte stream in both directions.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// A boxed [`Io`].
pub type BoxedIo = Box<dyn Io>;

/// Opens a connection to `HOST:PORT`.
pub type Connector = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<BoxedIo>> + Send + Sync>;

/// Connects over TCP with `TCP_NODELAY` set.
pub fn tcp_connector() -> Connector {
    Arc::new(|address| {
        Box::pin(async move {
            let stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as BoxedIo)
        })
    })
}
