//! The one place that touches sockets: bind, accept, connect.
//!
//! Everything else in the node sees [`Acceptor`] and [`Socket`], so that a simulation can put its own network here.

use std::io;
use std::net::SocketAddr;

/// A connected byte stream.
pub type Socket = tokio::net::TcpStream;

/// A listening port.
#[derive(Debug)]
pub struct Acceptor(tokio::net::TcpListener);

impl Acceptor {
    /// Listens on `address`; port 0 picks a free one.
    ///
    /// # Errors
    /// As the operating system says: the address is taken, is not this host's, or needs a privilege.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        tokio::net::TcpListener::bind(address).await.map(Self)
    }

    /// The address in force.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// The next connection, with Nagle's algorithm off. Cancellation safe.
    ///
    /// # Errors
    /// As the operating system says; running out of file descriptors is one that passes.
    pub async fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        let (socket, peer) = self.0.accept().await?;
        // Fails only when the peer is gone already, which the first read tells as well.
        let _ = socket.set_nodelay(true);
        Ok((socket, peer))
    }
}

/// Opens a connection, with Nagle's algorithm off.
///
/// # Errors
/// As the operating system says.
pub async fn connect(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::connect(address).await?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Gives a connection to the runtime that the caller runs on.
///
/// # Errors
/// As the operating system says.
pub fn adopt(socket: std::net::TcpStream) -> io::Result<Socket> {
    Socket::from_std(socket)
}

/// Takes a connection away from the runtime that accepted it; see [`adopt`].
///
/// # Errors
/// As the operating system says.
pub fn release(socket: Socket) -> io::Result<std::net::TcpStream> {
    socket.into_std()
}
