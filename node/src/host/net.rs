//! The one place that touches sockets: bind, accept, connect.
//!
//! Everything else in the node sees [`Acceptor`] and [`Socket`], so that a simulation can put its own network here.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use chronicle_client::BoxedIo;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

/// A port that cannot be listened on.
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

/// A listening port that is not the operating system's.
pub trait Listen: Send + Sync + 'static {
    /// The next connection, and where it comes from. Cancellation safe.
    fn accept(&self) -> BoxFuture<'_, io::Result<(BoxedIo, SocketAddr)>>;
    /// The address in force.
    ///
    /// # Errors
    /// As the network says.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// A connected byte stream.
pub enum Socket {
    /// The operating system's.
    System(tokio::net::TcpStream),
    /// Another network's.
    Other(BoxedIo),
    /// One of the others, encrypted; the handshake is done.
    Tls(Box<TlsStream<Socket>>),
}

/// A listening port.
pub enum Acceptor {
    /// The operating system's.
    System(tokio::net::TcpListener),
    /// Another network's.
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
    /// As the operating system says: the address is taken, is not this host's, or needs a privilege.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        tokio::net::TcpListener::bind(address).await.map(Self::System)
    }

    /// The address in force.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::System(listener) => listener.local_addr(),
            Self::Other(listener) => listener.local_addr(),
        }
    }

    /// The next connection, with Nagle's algorithm off. Cancellation safe.
    ///
    /// # Errors
    /// As the operating system says; running out of file descriptors is one that passes.
    pub async fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        match self {
            Self::System(listener) => {
                let (socket, peer) = listener.accept().await?;
                // Fails only when the peer is gone already, which the first read tells as well.
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
/// As the operating system says.
pub async fn connect(address: SocketAddr) -> io::Result<Socket> {
    let socket = tokio::net::TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    Ok(Socket::System(socket))
}

/// A connection on its way from one runtime to another.
pub enum Released {
    /// The operating system's, of no runtime.
    System(std::net::TcpStream),
    /// Another network's, which knows no runtimes.
    Other(BoxedIo),
    /// What TLS knows of a connection, apart from the connection itself.
    Tls(Box<TlsStream<Socket>>, Box<Released>),
}

/// Gives a connection to the runtime that the caller runs on.
///
/// # Errors
/// As the operating system says.
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

/// Takes a connection away from the runtime that accepted it; see [`adopt`].
///
/// # Errors
/// As the operating system says.
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
