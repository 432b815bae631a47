//! The node's and the client's seams to the network, on the simulated one.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use chronicle_client::{BoxedIo, Connector};
use chronicle_node::listeners::net::{Acceptor, Listen};
use futures::future::BoxFuture;
use turmoil::net::{TcpListener, TcpStream};

/// Data port of every node.
pub(crate) const PORT: u16 = 7400;

struct Port(TcpListener);

impl Listen for Port {
    fn accept(&self) -> BoxFuture<'_, io::Result<(BoxedIo, SocketAddr)>> {
        Box::pin(async {
            let (stream, from) = self.0.accept().await?;
            Ok((Box::new(stream) as BoxedIo, from))
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Listens on the data port of the host that asks.
pub(crate) async fn listen() -> io::Result<Acceptor> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    Ok(Acceptor::Other(Box::new(Port(listener))))
}

/// Connects from the host that asks.
pub(crate) fn connector() -> Connector {
    Arc::new(|address| {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            Ok(Box::new(stream) as BoxedIo)
        })
    })
}
