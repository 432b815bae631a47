//! The connections of this node to its peers, and who these are.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chronicle_client::Connector;
use chronicle_log::LogId;
use chronicle_proto::internal as proto;
use chronicle_proto::internal::raft_frame::Message;
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tonic::transport::Channel;

use super::channel::{Client, Me, address, channel, client};
use super::forwarding::{ForwardError, Forwarding};
use super::link::Link;
use super::liveness::Liveness;
use super::protocol::Purpose;
use crate::identity::{NodeClaim, PeerCertificate};
use crate::security::{NodeNames, Tls};
use crate::telemetry::traces;

/// Who a peer is, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Name.
    pub name: String,
    /// `HOST:PORT`.
    pub address: String,
}

/// Why a question to a peer has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Nothing was sent, or it may not have arrived.
    #[error("node {0} cannot be reached: {1}")]
    Unreachable(u64, String),
    /// The peer has no running replica of the group.
    #[error("node {0} refuses: {1}")]
    Refused(u64, String),
    /// No answer in time.
    #[error("node {0} did not answer within {1} ms")]
    Timeout(u64, u64),
}

/// The way to other nodes.
pub struct Peers {
    me: OnceLock<Me>,
    known: RwLock<HashMap<u64, Known>>,
    /// Counts changes of `known`.
    version: AtomicU64,
    /// The same by address, for who connects.
    names: NodeNames,
    tls: Option<Arc<Tls>>,
    links: RwLock<HashMap<u64, Arc<Link>>>,
    calls: RwLock<HashMap<u64, (String, Channel)>>,
    forwarding: RwLock<HashMap<u64, Arc<Forwarding>>>,
    connector: Connector,
    runtime: Handle,
    window_bytes: usize,
    liveness: Arc<Liveness>,
}

impl Peers {
    /// Links live on `runtime`, the one of consensus. With `tls`, connections are encrypted on top of what `connector` opens.
    pub fn new(
        connector: Connector,
        tls: Option<Arc<Tls>>,
        runtime: Handle,
        window_bytes: u64,
        liveness: Arc<Liveness>,
    ) -> Arc<Self> {
        let names = NodeNames::default();
        let connector = match &tls {
            Some(tls) => tls.connector(connector, names.clone()),
            None => connector,
        };
        Arc::new(Self {
            me: OnceLock::new(),
            known: RwLock::default(),
            version: AtomicU64::new(0),
            names,
            tls,
            links: RwLock::default(),
            calls: RwLock::default(),
            forwarding: RwLock::default(),
            connector,
            runtime,
            window_bytes: window_bytes as usize,
            liveness,
        })
    }

    /// This node is part of a cluster from now on; later calls change nothing.
    pub fn identify(&self, me: Me) {
        self.me.get_or_init(|| me);
    }

    /// Who this node is, if it is part of a cluster.
    pub fn me(&self) -> Option<Me> {
        self.me.get().copied()
    }

    /// Who is alive.
    pub fn liveness(&self) -> &Arc<Liveness> {
        &self.liveness
    }

    /// Who and where peers are. Links to nodes that moved are opened anew, those to nodes that are gone end.
    pub fn set_known(&self, nodes: &BTreeMap<u64, Known>) {
        let Some(me) = self.me() else { return };
        let others: HashMap<u64, Known> =
            nodes.iter().filter(|(id, _)| **id != me.node).map(|(id, known)| (*id, known.clone())).collect();
        if *self.known.read() == others {
            return;
        }
        let wanted: HashMap<u64, String> = others.iter().map(|(id, known)| (*id, known.address.clone())).collect();
        *self.names.write() = others.values().map(|known| (known.address.clone(), known.name.clone())).collect();
        *self.known.write() = others;
        self.version.fetch_add(1, Ordering::Release);
        self.links.write().retain(|id, link| wanted.get(id).is_some_and(|address| *address == link.address()));
        self.calls.write().retain(|id, (at, _)| wanted.get(id).is_some_and(|address| address == at));
        self.forwarding.write().retain(|id, open| wanted.get(id).is_some_and(|address| *address == open.address()));
        self.liveness.watch(me, wanted, self.connector.clone());
    }

    /// The node is one of the peers.
    pub fn knows(&self, node: u64) -> bool {
        self.known.read().contains_key(&node)
    }

    /// Where peers are, as far as this node knows.
    pub fn known(&self) -> Vec<String> {
        self.known.read().values().map(|known| known.address.clone()).collect()
    }

    /// Address of a peer, if it is known.
    pub fn address(&self, node: u64) -> Option<String> {
        self.known.read().get(&node).map(|known| known.address.clone())
    }

    /// Who a peer is, if it is known.
    pub fn known_as(&self, node: u64) -> Option<Known> {
        self.known.read().get(&node).cloned()
    }

    /// Changes whenever what [`Peers::known_as`] answers does.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Whether a peer's certificate may speak for a node; without TLS there is none to ask about.
    pub(super) fn judge(&self, certificate: &PeerCertificate, claim: NodeClaim<'_>) -> Result<(), String> {
        self.tls.as_ref().map_or(Ok(()), |tls| tls.judge(certificate, claim))
    }

    /// Asks a peer's replica of a group.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn ask(&self, to: u64, group: LogId, message: Message, timeout: Duration) -> Result<Message, AskError> {
        let link = self.link(to)?;
        match tokio::time::timeout(timeout, link.ask(group, message)).await {
            Ok(Ok(Message::Refused(why))) => Err(AskError::Refused(to, why)),
            Ok(Ok(answer)) => {
                self.liveness.heard(to);
                Ok(answer)
            }
            Ok(Err(why)) => Err(AskError::Unreachable(to, why)),
            Err(_) => Err(AskError::Timeout(to, timeout.as_millis() as u64)),
        }
    }

    fn link(&self, to: u64) -> Result<Arc<Link>, AskError> {
        if let Some(link) = self.links.read().get(&to) {
            return Ok(link.clone());
        }
        let unreachable = |why: &str| AskError::Unreachable(to, why.into());
        let me = self.me().ok_or_else(|| unreachable("this node is not part of a cluster yet"))?;
        let address = self.address(to).ok_or_else(|| unreachable("its address is not known"))?;
        let mut links = self.links.write();
        let link = links
            .entry(to)
            .or_insert_with(|| Link::start(&self.runtime, me, to, address, self.connector.clone(), self.window_bytes));
        Ok(link.clone())
    }

    /// A client for calls to a peer. Connects when it is used.
    ///
    /// # Errors
    /// [`AskError::Unreachable`] when its address is not known.
    pub fn client(&self, to: u64) -> Result<Client, AskError> {
        let address =
            self.address(to).ok_or_else(|| AskError::Unreachable(to, "its address is not known".to_owned()))?;
        if let Some((at, channel)) = self.calls.read().get(&to)
            && *at == address
        {
            return Ok(client(channel.clone()));
        }
        let unreachable = |e: String| AskError::Unreachable(to, e);
        let channel = channel(&address, Purpose::Consensus, self.connector.clone()).map_err(unreachable)?;
        self.calls.write().insert(to, (address, channel.clone()));
        Ok(client(channel))
    }

    /// Has another node answer a client's request, within `patience`.
    ///
    /// # Errors
    /// See [`ForwardError`].
    pub(crate) async fn forward(
        &self,
        to: u64,
        request: proto::ForwardRequest,
        patience: Duration,
    ) -> Result<proto::ForwardResponse, ForwardError> {
        let open = self.forwarding(to).map_err(|e| ForwardError::NotSent(e.to_string()))?;
        // In the trace of the client's request, if it has one.
        let addressed = |request| {
            let mut request = self.request(to, request);
            if let Some(span) = traces::current() {
                chronicle_client::trace::inject(request.metadata_mut(), &span);
            }
            request
        };
        let answer = open.forward(&request, addressed, patience).await;
        answer.inspect(|_| self.liveness.heard(to))
    }

    fn forwarding(&self, to: u64) -> Result<Arc<Forwarding>, AskError> {
        if let Some(open) = self.forwarding.read().get(&to) {
            return Ok(open.clone());
        }
        let unreachable = |why: String| AskError::Unreachable(to, why);
        let address = self.address(to).ok_or_else(|| unreachable("its address is not known".into()))?;
        let channel = channel(&address, Purpose::Forwarding, self.connector.clone()).map_err(unreachable)?;
        let mut forwarding = self.forwarding.write();
        let new = || Arc::new(Forwarding::new(address, client(channel), self.window_bytes));
        Ok(forwarding.entry(to).or_insert_with(new).clone())
    }

    /// A client for a node at an address, whoever it is. Connects when it is used.
    ///
    /// # Errors
    /// A text when the address is none.
    pub fn dial(&self, address: &str) -> Result<Client, String> {
        channel(address, Purpose::Consensus, self.connector.clone()).map(client)
    }

    /// A request that says who calls and who is meant; see `peer.proto`.
    pub fn request<T>(&self, to: u64, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(me) = self.me() {
            address(&mut request, me, to);
        }
        request
    }

    /// Ends every link.
    pub fn close(&self) {
        self.links.write().clear();
        self.calls.write().clear();
        self.forwarding.write().clear();
        self.liveness.close();
    }
}
