//! The list of this node's peers and the connections to them.

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
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;

use super::channel::{Client, Me, address, channel, client};
use super::forwarding::{ForwardError, Forwarding};
use super::generations::shown;
use super::link::Link;
use super::liveness::Liveness;
use super::protocol::Purpose;
use crate::identity::{NodeClaim, PeerCertificate};
use crate::security::{NodeNames, Tls};
use crate::telemetry::traces;

/// Name and address of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Name.
    pub name: String,
    /// `HOST:PORT`.
    pub address: String,
}

/// Why a request to a peer has no response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The request was not sent, or may not have arrived.
    #[error("node {0} cannot be reached: {1}")]
    Unreachable(u64, String),
    /// The peer has no running replica of the group, or its response must not be relied on.
    #[error("node {0} rejected the request: {1}")]
    Refused(u64, String),
    /// No response in time.
    #[error("node {0} did not respond within {1} ms")]
    Timeout(u64, u64),
}

/// Connections to other nodes.
pub struct Peers {
    me: OnceLock<Me>,
    known: RwLock<HashMap<u64, Known>>,
    /// Counts changes of `known`.
    version: AtomicU64,
    /// Names of peers by address, for verifying certificates on connect.
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
    /// Runs links on `runtime`, the consensus runtime. With `tls`, connections of `connector` are encrypted.
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

    /// Sets this node's identity, once it is a member of a cluster. Later calls have no effect.
    pub fn identify(&self, me: Me) {
        self.me.get_or_init(|| me);
    }

    /// Returns this node's identity, if it is a member of a cluster.
    pub fn me(&self) -> Option<Me> {
        self.me.get().copied()
    }

    /// Returns the failure detector.
    pub fn liveness(&self) -> &Arc<Liveness> {
        &self.liveness
    }

    /// Sets the names and addresses of the peers. Closes connections to nodes that were removed or whose address has
    /// changed; the latter are opened again on use.
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

    /// Whether the node is one of the peers.
    pub fn knows(&self, node: u64) -> bool {
        self.known.read().contains_key(&node)
    }

    /// Returns the raft ids of the known peers, in order.
    pub fn known_ids(&self) -> Vec<u64> {
        let mut ids: Vec<u64> = self.known.read().keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// Returns the known addresses of the peers.
    pub fn known(&self) -> Vec<String> {
        self.known.read().values().map(|known| known.address.clone()).collect()
    }

    /// Returns the address of a peer, if known.
    pub fn address(&self, node: u64) -> Option<String> {
        self.known.read().get(&node).map(|known| known.address.clone())
    }

    /// Returns name and address of a peer, if known.
    pub fn known_as(&self, node: u64) -> Option<Known> {
        self.known.read().get(&node).cloned()
    }

    /// Returns a number that changes whenever the result of [`Peers::known_as`] does.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Checks that a peer's certificate is valid for the claimed node; always succeeds without TLS.
    pub(super) fn judge(&self, certificate: &PeerCertificate, claim: NodeClaim<'_>) -> Result<(), String> {
        self.tls.as_ref().map_or(Ok(()), |tls| tls.judge(certificate, claim))
    }

    /// Sends a request to a peer's replica of a group and waits for the response.
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
        let link = links.entry(to).or_insert_with(|| {
            let liveness = self.liveness.clone();
            Link::start(&self.runtime, me, to, address, self.connector.clone(), self.window_bytes, liveness)
        });
        Ok(link.clone())
    }

    /// Returns a client for calls to a peer. Connects on first use.
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

    /// Forwards a client's request to another node and returns its response, within `patience`.
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
        // As part of the trace of the client's request, if it has one.
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

    /// Returns a client for the node at an address, whichever node that is. Connects on first use.
    ///
    /// # Errors
    /// A text when the address is not valid.
    pub fn dial(&self, address: &str) -> Result<Client, String> {
        channel(address, Purpose::Consensus, self.connector.clone()).map(client)
    }

    /// Returns a request with caller and callee in its metadata; see `peer.proto`.
    pub fn request<T>(&self, to: u64, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(me) = self.me() {
            address(&mut request, me, to);
        }
        request
    }

    /// Checks the metadata of a peer's response.
    ///
    /// # Errors
    /// [`AskError::Refused`]: the peer's data directory was rolled back, and what it says must not be relied on.
    pub fn recognise(&self, node: u64, metadata: &MetadataMap) -> Result<(), AskError> {
        let checked = self.liveness.generations().check(node, shown(metadata));
        checked.map_err(|why| AskError::Refused(node, why.to_string()))
    }

    /// Closes every connection.
    pub fn close(&self) {
        self.links.write().clear();
        self.calls.write().clear();
        self.forwarding.write().clear();
        self.liveness.close();
    }
}
