//! Sends bytes as no library would: HTTP/2 frames and header blocks made by hand (RFC 9113, RFC 7541), for tests with
//! malicious clients.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The preface of an HTTP/2 connection.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types.
pub const DATA: u8 = 0;
/// See [`DATA`].
pub const HEADERS: u8 = 1;
/// See [`DATA`].
pub const RST_STREAM: u8 = 3;
/// See [`DATA`].
pub const SETTINGS: u8 = 4;
/// See [`DATA`].
pub const PING: u8 = 6;
/// See [`DATA`].
pub const CONTINUATION: u8 = 9;

/// Flag of the last frame of a stream.
pub const END_STREAM: u8 = 1;
/// Flag of the last frame of a header block.
pub const END_HEADERS: u8 = 4;

/// A frame whose header states its true length.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    [&head(payload.len() as u32, kind, flags, stream), payload].concat()
}

/// The header of a frame that states a length of `bytes` bytes.
pub fn head(bytes: u32, kind: u8, flags: u8, stream: u32) -> [u8; 9] {
    let [_, a, b, c] = bytes.to_be_bytes();
    let [d, e, f, g] = stream.to_be_bytes();
    [a, b, c, kind, flags, d, e, f, g]
}

/// A header block without compression: literals that are not indexed. Names and values of less than 127 bytes.
pub fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "a longer text has a longer prefix");
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// The header block of a gRPC call.
pub fn call(path: &str) -> Vec<u8> {
    headers(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "node"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ])
}

/// The complete frames of an answer over HTTP/2: their types and flags.
pub fn frames(mut answer: &[u8], stream: u32) -> Vec<(u8, u8)> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, flags, d, e, f, g, rest @ ..] = answer {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        if u32::from_be_bytes([*d, *e, *f, *g]) == stream {
            frames.push((*kind, *flags));
        }
        answer = rest.get(length..).unwrap_or_default();
    }
    frames
}

/// How a node reacted to the bytes.
#[derive(Debug)]
pub struct Taken {
    /// Bytes that it accepted before it closed, or all of them.
    pub sent: usize,
    /// The beginning of its answer, at most 64 KiB.
    pub answer: Vec<u8>,
    /// It closed the connection, by itself or after the end of the input.
    pub closed: bool,
}

impl Taken {
    /// The answer as text; bytes that are not text are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.answer).into_owned()
    }
}

/// Sends pieces until all are sent, the node closes, or the time is over, and reads concurrently. Then closes the
/// sending side and waits for the node to close.
///
/// # Errors
/// The port is closed, or the connection stays open after `patience`.
pub fn send(address: SocketAddr, pieces: impl IntoIterator<Item = Vec<u8>>, patience: Duration) -> Result<Taken> {
    let deadline = Instant::now() + patience;
    let mut stream = TcpStream::connect(address)?;
    stream.set_write_timeout(Some(patience))?;
    let mut reader = stream.try_clone()?;
    reader.set_read_timeout(Some(patience))?;
    let reading = std::thread::spawn(move || {
        let (mut answer, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return (answer, true),
                Ok(read) if answer.len() < 64 << 10 => answer.extend_from_slice(&buffer[..read]),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return (answer, true),
                Err(_) => return (answer, false),
            }
        }
    });
    let mut sent = 0;
    for piece in pieces {
        if stream.write_all(&piece).is_err() || Instant::now() > deadline {
            break;
        }
        sent += piece.len();
    }
    let _ = stream.shutdown(Shutdown::Write);
    let Ok((answer, closed)) = reading.join() else { bail!("the reader panicked") };
    Ok(Taken { sent, answer, closed })
}
