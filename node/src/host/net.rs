//! The only code that uses sockets: bind, accept, connect.
//!
//! All other code of the node uses [`Acceptor`] and [`Socket`], so that a simulation can provide its own network.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use chronicle_client::BoxedIo;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

/// The node cannot listen on a port.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {address}: cannot listen: {source}")]
pub struct BindError {
    /// The field of the configuration.
    pub field: &'static str,
    /// Its value.
    pub address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

/// A listening port of a simulated network.
pub trait Listen: Send + Sync + 'static {
    /// Returns the next connection and the address of its peer. Cancellation safe.
    fn accept(&self) -> BoxFuture<'_, io::Result<(BoxedIo, SocketAddr)>>;
    /// Returns the local address.
    ///
    /// # Errors
    /// As reported by the network.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// A connected byte stream.
pub enum Socket {
    /// A socket of the operating system.
    System(tokio::net::TcpStream),
    /// A socket of a simulated network.
    Other(BoxedIo),
    /// One of the others with TLS on top, after the handshake.
    Tls(Box<TlsStream<Socket>>),
}

/// A listening port.
pub enum Acceptor {
    /// A port of the operating system.
    System(tokio::net::TcpListener),
    /// A port of a simulated network.
    Other(Box<dyn Listen>),
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Acceptor").field(&self.local_addr()).finish()
    }
}

impl Acceptor {
    /// Listens on `address`; port 0 picks a free one.
    ///
    /// # Errors
    /// As reported by the operating system: the address is in use, is not this host's, or needs a privilege.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        tokio::net::TcpListener::bind(address).await.map(Self::System)
    }

    /// Returns the local address.
    ///
    /// # Errors
    /// As reported by the operating system.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::System(listener) => listener.local_addr(),
            Self::Other(listener) => listener.local_addr(),
        }
    }

    /// Returns the next connection, with Nagle's algorithm off. Cancellation safe.
    ///
    /// # Errors
    /// As reported by the operating system. Running out of file descriptors is temporary.
    pub async fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        match self {
            Self::System(listener) => {
                let (socket, peer) = listener.accept().await?;
                // Fails only when the peer has closed the connection already, which the first read reports as well.
                let _ = socket.set_nodelay(true);
                Ok((Socket::System(socket), peer))
            }
            Self::Other(listener) => listener.accept().await.map(|(io, peer)| (Socket::Other(io), peer)),
        }
    }
}

/// Opens a connection, with Nagle's algorithm off.
///
/// # Errors
/// As reported by the operating system.
pub async fn connect(address: SocketAddr) -> io::Result<Socket> {
    let socket = tokio::net::TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    Ok(Socket::System(socket))
}

/// A connection that is being moved from one runtime to another.
pub enum Released {
    /// A socket of the operating system, registered with no runtime.
    System(std::net::TcpStream),
    /// A socket of a simulated network, which does not depend on a runtime.
    Other(BoxedIo),
    /// The TLS session of a connection, and separately the connection itself.
    Tls(Box<TlsStream<Socket>>, Box<Released>),
}

/// Registers a connection with the runtime that the caller runs on.
///
/// # Errors
/// As reported by the operating system.
pub fn adopt(socket: Released) -> io::Result<Socket> {
    match socket {
        Released::System(socket) => tokio::net::TcpStream::from_std(socket).map(Socket::System),
        Released::Other(io) => Ok(Socket::Other(io)),
        Released::Tls(mut tls, carrier) => {
            *tls.get_mut().0 = adopt(*carrier)?;
            Ok(Socket::Tls(tls))
        }
    }
}

/// Deregisters a connection from the runtime that accepted it; see [`adopt`].
///
/// # Errors
/// As reported by the operating system.
pub fn release(socket: Socket) -> io::Result<Released> {
    match socket {
        Socket::System(socket) => socket.into_std().map(Released::System),
        Socket::Other(io) => Ok(Released::Other(io)),
        Socket::Tls(mut tls) => {
            let carrier = std::mem::replace(tls.get_mut().0, Socket::Other(Box::new(tokio::io::empty())));
            Ok(Released::Tls(tls, Box::new(release(carrier)?)))
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::System(io) => Pin::new(io).poll_read(cx, buf),
            Self::Other(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::System(io) => Pin::new(io).poll_write(cx, buf),
            Self::Other(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::System(io) => Pin::new(io).poll_flush(cx),
            Self::Other(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::System(io) => Pin::new(io).poll_shutdown(cx),
            Self::Other(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::System(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Other(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::System(io) => io.is_write_vectored(),
            Self::Other(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }
}
