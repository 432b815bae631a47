//! The node's and the client's seams to the network, on the simulated one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use chronicle_client::{BoxedIo, Connector};
use chronicle_node::host::net::{Acceptor, Listen};
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

thread_local! {
    static CUT: RefCell<BTreeMap<(String, String), u32>> = RefCell::default();
}

/// Forgets every cut line.
pub(crate) fn begin() {
    CUT.take();
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
                Ok(stream) => Ok(Box::new(stream) as BoxedIo),
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
