//! The node's and the client's seams to the network, on the simulated one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};

use chronicle_client::{BoxedIo, Connector};
use chronicle_node::host::net::{Acceptor, Listen};
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
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

thread_local! {
    static CUT: RefCell<BTreeMap<(String, String), u32>> = RefCell::default();
    static CONNECTIONS: RefCell<Vec<Weak<Connection>>> = RefCell::default();
}

/// Forgets every cut line and every connection.
pub(crate) fn begin() {
    CUT.take();
    CONNECTIONS.take();
}

/// What happens to one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Fate {
    /// All is well.
    Open = 0,
    /// What is sent to the side that connected does not arrive yet.
    Deaf = 1,
    /// What that side sends does not leave yet.
    Mute = 2,
    /// Both.
    Silent = 3,
    /// It is broken, as both sides notice.
    Reset = 4,
}

/// A connection between two nodes. There are several between each pair, and each may fail alone: the one for heartbeats of nodes
/// while the one for raft goes on, and the other way round.
#[derive(Debug)]
pub(crate) struct Connection {
    /// Who connected.
    from: Arc<str>,
    /// To whom.
    to: String,
    fate: AtomicU8,
    waiting: Mutex<Vec<Waker>>,
}

impl Connection {
    /// Its two ends.
    pub(crate) fn ends(&self) -> String {
        format!("{} to {}", self.from, self.to)
    }

    /// Decides what happens to it from now on.
    pub(crate) fn set(&self, fate: Fate) {
        self.fate.store(fate as u8, Ordering::Relaxed);
        let waiting = self.waiting.lock().map(|mut waiting| std::mem::take(&mut *waiting));
        waiting.unwrap_or_default().into_iter().for_each(Waker::wake);
    }

    /// Whether it goes on in the direction that `stalled` and [`Fate::Silent`] stop.
    fn poll(&self, stalled: Fate, context: &Context<'_>) -> Poll<io::Result<()>> {
        let fate = self.fate.load(Ordering::Relaxed);
        if fate == Fate::Reset as u8 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if fate == stalled as u8 || fate == Fate::Silent as u8 {
            if let Ok(mut waiting) = self.waiting.lock() {
                waiting.push(context.waker().clone());
            }
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

/// The connections between nodes that are in use, in the order in which they were made.
pub(crate) fn connections() -> Vec<Arc<Connection>> {
    CONNECTIONS.with_borrow_mut(|all| {
        all.retain(|connection| connection.strong_count() > 0);
        all.iter().filter_map(Weak::upgrade).collect()
    })
}

/// The stream of a [`Connection`].
struct Line {
    stream: TcpStream,
    connection: Arc<Connection>,
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.connection.poll(Fate::Deaf, context))?;
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.connection.poll(Fate::Mute, context))?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.connection.poll(Fate::Mute, context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Nothing, or not everything, arrives between these two.
pub(crate) fn cut(a: &str, b: &str) {
    CUT.with_borrow_mut(|cut| *cut.entry((a.into(), b.into())).or_default() += 1);
}

/// Mends what [`cut`] cut. True: nothing is wrong with the line any more.
pub(crate) fn mend(a: &str, b: &str) -> bool {
    CUT.with_borrow_mut(|cut| {
        if let Some(times) = cut.get_mut(&(a.into(), b.into())) {
            *times = times.saturating_sub(1);
        }
        cut.retain(|_, times| *times > 0);
        !is_cut(cut, a, b)
    })
}

fn is_cut(cut: &BTreeMap<(String, String), u32>, a: &str, b: &str) -> bool {
    cut.contains_key(&(a.into(), b.into())) || cut.contains_key(&(b.into(), a.into()))
}

/// Connects from the host of this name. The simulated network refuses at once what cannot arrive; here, as in a real one, such
/// an attempt hears nothing until somebody gives it up.
pub(crate) fn connector(from: &str) -> Connector {
    let from: Arc<str> = from.into();
    Arc::new(move |address| {
        let from = from.clone();
        Box::pin(async move {
            match TcpStream::connect(&address).await {
                Ok(stream) => {
                    let to = address.split(':').next().unwrap_or_default().to_owned();
                    let (fate, waiting) = (AtomicU8::new(Fate::Open as u8), Mutex::default());
                    let connection = Arc::new(Connection { from, to, fate, waiting });
                    if &*connection.from != "client" {
                        CONNECTIONS.with_borrow_mut(|all| all.push(Arc::downgrade(&connection)));
                    }
                    Ok(Box::new(Line { stream, connection }) as BoxedIo)
                }
                Err(error) => {
                    let to = address.split(':').next().unwrap_or_default();
                    if CUT.with_borrow(|cut| is_cut(cut, &from, to)) {
                        std::future::pending::<()>().await;
                    }
                    Err(error)
                }
            }
        })
    })
}
