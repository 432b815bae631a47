//! Distinguishes HTTP/2 (prior knowledge), HTTP/1, TLS and other nodes by the first bytes of a connection. For HTTP and
//! TLS, these bytes are read again from the returned stream.
//!
//! The HTTP/2 preface (RFC 9113, section 3.4) cannot be the start of an HTTP/1 request: its method, `PRI`, is reserved.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::peers::Purpose;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The protocol of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    Http2,
    /// Another node.
    Peer(Purpose),
    /// Another node with another version of the protocol; its first bytes.
    UnknownPeer([u8; 24]),
    /// TLS where plaintext is expected.
    Tls,
}

/// First bytes of a TLS handshake: record type 22, major version 3 (RFC 8446, section 5.1).
const TLS: &[u8] = &[22, 3];

/// First bytes of every version of the protocol between nodes.
const PEER: &[u8] = b"CHRONICLE ";

const PREFACES: [(&[u8; 24], Version); 4] = [
    (PREFACE, Version::Http2),
    (Purpose::Consensus.preface(), Version::Peer(Purpose::Consensus)),
    (Purpose::Liveness.preface(), Version::Peer(Purpose::Liveness)),
    (Purpose::Forwarding.preface(), Version::Peer(Purpose::Forwarding)),
];

/// Reads until the protocol is known. Not cancellation safe: when dropped, the bytes read are lost with the connection.
///
/// # Errors
/// When reading fails, or the client closes the connection before it sends a byte.
pub(crate) async fn sniff<I: AsyncRead + Unpin>(mut io: I) -> io::Result<(Version, Prefixed<I>)> {
    let mut first = [0; PREFACE.len()];
    let mut filled = 0;
    let version = loop {
        let read = io.read(&mut first[filled..]).await?;
        if read == 0 {
            if filled == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            break Version::Http1;
        }
        filled += read;
        let known = PREFACES.iter().find(|(preface, _)| first[..filled] == preface[..filled]);
        match known {
            Some((_, version)) if filled == PREFACE.len() => break *version,
            Some(_) => {}
            None if first[..filled].starts_with(TLS) => break Version::Tls,
            None if filled < TLS.len() && TLS.starts_with(&first[..filled]) => {}
            None if !first.starts_with(PEER) => break Version::Http1,
            None if filled == PREFACE.len() => break Version::UnknownPeer(first),
            None => {}
        }
    };
    // The preface of a peer only selects the protocol: it is not read again.
    let prefix = match version {
        Version::Peer(_) | Version::UnknownPeer(_) => &[],
        Version::Http1 | Version::Http2 | Version::Tls => &first[..filled],
    };
    Ok((version, Prefixed { prefix: Bytes::copy_from_slice(prefix), io }))
}

impl<I> Prefixed<I> {
    /// Returns the stream itself. No bytes may be left to read again.
    pub(crate) fn into_inner(self) -> I {
        debug_assert!(self.prefix.is_empty());
        self.io
    }
}

/// A byte stream that first returns the bytes that [`sniff`] has read, then the rest.
#[derive(Debug)]
pub(crate) struct Prefixed<I> {
    prefix: Bytes,
    io: I,
}

impl<I: AsyncRead + Unpin> AsyncRead for Prefixed<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let n = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..n]);
        self.prefix.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Prefixed<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn first(bytes: &'static [u8]) -> (Version, Vec<u8>) {
        let (mut client, server) = tokio::io::duplex(3);
        let writer = tokio::spawn(async move {
            client.write_all(bytes).await.unwrap();
        });
        let (version, mut io) = sniff(server).await.unwrap();
        let mut rest = Vec::new();
        io.read_to_end(&mut rest).await.unwrap();
        writer.await.unwrap();
        (version, rest)
    }

    #[tokio::test]
    async fn versions_are_distinguished_and_no_byte_is_lost() {
        for (bytes, version) in [
            (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nframes"[..], Version::Http2),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r!", Version::Http1),
            (b"POST / HTTP/1.1\r\n\r\n", Version::Http1),
            (b"P", Version::Http1),
            (b"\x16\x03\x01\x02\x00\x01", Version::Tls),
            (b"\x16", Version::Http1),
            (b"\x16\x02", Version::Http1),
            (b"CHRONICLE PEER", Version::Http1),
            (b"CHRONICLES / HTTP/1.1\r\n\r\n", Version::Http1),
        ] {
            assert_eq!(first(bytes).await, (version, bytes.to_vec()));
        }
    }

    #[tokio::test]
    async fn nodes_are_recognised_by_their_first_bytes_which_are_not_read_again() {
        for (bytes, version) in [
            (b"CHRONICLE PEER 1\r\n\r\n\r\n\r\nframes", Version::Peer(Purpose::Consensus)),
            (b"CHRONICLE BEAT 1\r\n\r\n\r\n\r\nframes", Version::Peer(Purpose::Liveness)),
            (b"CHRONICLE CALL 1\r\n\r\n\r\n\r\nframes", Version::Peer(Purpose::Forwarding)),
            (b"CHRONICLE PEER 2\r\n\r\n\r\n\r\nframes", Version::UnknownPeer(*b"CHRONICLE PEER 2\r\n\r\n\r\n\r\n")),
        ] {
            assert_eq!(first(bytes).await, (version, b"frames".to_vec()));
        }
    }
}
