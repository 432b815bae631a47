//! How this node comes to its cluster and how the cluster takes note of it, from both sides.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chronicle_log::Store;
use chronicle_proto::internal as proto;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;
use tonic::{Code, Status};
use uuid::Uuid;

use super::{Broker, BrokerError, NewTopic, Reason, now_ms};
use crate::controller::{CONTROLLER_LOG, Command, Controller, NodeInfo, NodeState, Outcome, Refusal};
use crate::flushed::journal;
use crate::membership::{Founder, JoinRefusal, Memory, Origin, PeerError, Refused, Remembered, Start};
use crate::partition::{jitter, member};
use crate::peers::{Known, Me, PROTOCOL, Peers};

/// Journal key of the controller's log that holds what `membership` remembers, as JSON.
const KEY_MEMBERSHIP: u8 = 10;
/// Pause between two attempts to tell the cluster of this node.
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(100);
/// A name that seems to be taken may belong to a process that has just died.
const DUPLICATE_PATIENCE: Duration = Duration::from_secs(3);

/// What `membership` remembers, in the store's journal.
pub(super) struct JournalMemory(pub(super) Arc<Store>);

impl Memory for JournalMemory {
    fn load(&self) -> BoxFuture<'_, io::Result<Remembered>> {
        let found = match self.0.journal_get(CONTROLLER_LOG, KEY_MEMBERSHIP) {
            None => Ok(Remembered::default()),
            Some(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
        };
        std::future::ready(found).boxed()
    }

    fn store(&self, remembered: Remembered) -> BoxFuture<'_, io::Result<()>> {
        let bytes = serde_json::to_vec(&remembered).map(Bytes::from).map_err(io::Error::other);
        // Begun here: it takes effect even when nobody waits for it.
        let put = bytes.map(|bytes| journal(&self.0, CONTROLLER_LOG, KEY_MEMBERSHIP, bytes));
        async move { put?.await.map_err(io::Error::other) }.boxed()
    }
}

/// What `membership` says to other nodes, over the transport.
pub(super) struct Calls(pub(super) Arc<Peers>);

fn unavailable(status: Status) -> PeerError {
    PeerError::Unavailable(status.message().to_owned())
}

impl crate::membership::Peers for Calls {
    fn hello<'a>(
        &'a self,
        address: &'a str,
        request: proto::HelloRequest,
    ) -> BoxFuture<'a, Result<proto::HelloResponse, PeerError>> {
        async move {
            let mut client = self.0.dial(address).map_err(PeerError::Unavailable)?;
            client.hello(request).await.map(tonic::Response::into_inner).map_err(unavailable)
        }
        .boxed()
    }

    fn promise<'a>(
        &'a self,
        address: &'a str,
        request: proto::PromiseRequest,
    ) -> BoxFuture<'a, Result<proto::PromiseResponse, PeerError>> {
        async move {
            let mut client = self.0.dial(address).map_err(PeerError::Unavailable)?;
            client.promise(request).await.map(tonic::Response::into_inner).map_err(unavailable)
        }
        .boxed()
    }

    fn found<'a>(
        &'a self,
        address: &'a str,
        request: proto::FoundRequest,
    ) -> BoxFuture<'a, Result<proto::FoundResponse, PeerError>> {
        async move {
            let mut client = self.0.dial(address).map_err(PeerError::Unavailable)?;
            client.found(request).await.map(tonic::Response::into_inner).map_err(unavailable)
        }
        .boxed()
    }

    fn join<'a>(
        &'a self,
        address: &'a str,
        request: proto::JoinRequest,
    ) -> BoxFuture<'a, Result<proto::JoinResponse, PeerError>> {
        async move {
            let mut client = self.0.dial(address).map_err(PeerError::Unavailable)?;
            client.join(request).await.map(tonic::Response::into_inner).map_err(join_error)
        }
        .boxed()
    }
}

/// The refusals of [`Broker::take_in`], read back.
fn join_error(status: Status) -> PeerError {
    let (word, rest) = status.message().split_once(": ").unwrap_or((status.message(), ""));
    let refusal = match word {
        "REMOVED" => JoinRefusal::Removed,
        "FOREIGN_CLUSTER" => JoinRefusal::ForeignCluster,
        "DUPLICATE" => JoinRefusal::Duplicate,
        "PROTOCOL" => JoinRefusal::Protocol,
        _ => return unavailable(status),
    };
    match status.code() {
        Code::FailedPrecondition => PeerError::Refused(refusal, rest.to_owned()),
        _ => unavailable(status),
    }
}

/// A refusal for good: see [`join_error`].
fn refuse(word: &str, why: impl std::fmt::Display) -> Status {
    Status::failed_precondition(format!("{word}: {why}"))
}

impl Broker {
    /// Finds out which cluster the node is part of, founds or joins it if need be, starts the controller group, and waits
    /// until the cluster knows of this process. Peers must be served meanwhile.
    ///
    /// # Errors
    /// When the cluster refuses the node for good, discovery leads to two clusters, or the controller group does not start.
    pub async fn establish(&self) -> Result<(), BrokerError> {
        let refused = |refused: Refused| BrokerError::new(Reason::Unavailable, refused.to_string());
        let start = self.inner.membership.establish().await.map_err(refused)?;
        self.inner.discovery.shutdown().await;
        let (identity, founders, known) = match start {
            Start::Founded { identity, founders } => (identity, Some(founders.clone()), founders),
            Start::Joined { identity, members } => (identity, None, members),
            Start::Member { identity, origin } => match origin {
                Origin::Founded(founders) => (identity, Some(founders.clone()), founders),
                Origin::Joined(members) => (identity, None, members),
            },
        };
        let env = &self.inner.env;
        env.peers.identify(Me {
            cluster: identity.cluster_id,
            node: identity.raft_id,
            boot: env.peers.liveness().boot(),
        });
        let named = |node: &Founder| (node.raft_id, Known { name: node.name.clone(), address: node.address.clone() });
        env.peers.set_known(&known.iter().map(named).collect::<BTreeMap<_, _>>());
        let nodes: Option<Vec<NodeInfo>> =
            founders.map(|founders| founders.iter().map(|node| self.founder(node)).collect());
        let members = nodes.as_ref().map(|nodes| nodes.iter().map(|node| (node.id, member(Some(node)))).collect());
        let controller = Controller::start(env.clone(), members).await?;
        if env.controller.set(controller.clone()).is_err() {
            return Err(BrokerError::new(Reason::Internal, "the node is established already"));
        }
        if let Some(nodes) = nodes
            && controller.state().cluster_id.is_nil()
        {
            // Every founder says the same; the first one counts. Beside the announcement, which may be refused.
            let command = Command::InitCluster { cluster_id: identity.cluster_id, nodes };
            let broker = self.clone();
            self.inner.tasks.spawn(async move {
                while controller.state().cluster_id.is_nil() && broker.not_stopping().is_ok() {
                    if let Err(error) = controller.init(command.clone()).await {
                        tracing::debug!(error, "the cluster has no controller yet");
                    }
                    tokio::time::sleep(jitter(ANNOUNCE_PAUSE)).await;
                }
            });
        }
        self.announce().await?;
        self.create_default_topic().await;
        self.inner.established.send_replace(true);
        Ok(())
    }

    fn founder(&self, founder: &Founder) -> NodeInfo {
        NodeInfo {
            id: founder.raft_id,
            uuid: founder.node_id,
            name: founder.name.clone(),
            address: founder.address.clone(),
            zone: founder.zone.clone(),
            version: founder.version.clone(),
            boot: 0,
            state: NodeState::Active,
            joined_ms: 0,
        }
    }

    /// Tells the cluster of this process: its name, address and zone may have changed, and a drain has ended.
    async fn announce(&self) -> Result<(), BrokerError> {
        let env = &self.inner.env;
        loop {
            self.not_stopping()?;
            let request = self.join_request();
            let mut targets: Vec<String> = Vec::new();
            if let Some(controller) = env.controller.get() {
                let (leader, _) = controller.leader();
                if leader == Some(env.node()) {
                    match self.take_in(request.clone()).await {
                        Ok(answer) if answer.leader.is_empty() => return Ok(()),
                        Ok(_) => {}
                        Err(status) => self.judge(join_error(status))?,
                    }
                }
                targets.extend(leader.and_then(|leader| env.peers.address(leader)));
            }
            targets.extend(env.peers.known());
            let calls = Calls(env.peers.clone());
            for address in targets {
                let asked = crate::membership::Peers::join(&calls, &address, request.clone());
                match tokio::time::timeout(Duration::from_secs(5), asked).await {
                    Ok(Ok(answer)) if answer.leader.is_empty() => return Ok(()),
                    Ok(Ok(_)) | Err(_) => {}
                    Ok(Err(error)) => self.judge(error)?,
                }
            }
            tokio::time::sleep(jitter(ANNOUNCE_PAUSE)).await;
        }
    }

    /// A refusal for good ends the node; anything else is tried again.
    fn judge(&self, error: PeerError) -> Result<(), BrokerError> {
        match error {
            PeerError::Refused(refusal, why) => Err(super::refused(refusal, &why)),
            PeerError::Unavailable(why) => {
                tracing::debug!(why, "the cluster has not taken note of this node yet");
                Ok(())
            }
        }
    }

    fn join_request(&self) -> proto::JoinRequest {
        let config = self.config();
        proto::JoinRequest {
            node_id: self.inner.store.node_id().to_string(),
            name: config.node.name.clone(),
            address: self.address(),
            zone: config.cluster.zone.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            protocol: PROTOCOL,
            cluster_id: self.inner.env.peers.me().map(|me| me.cluster.to_string()).unwrap_or_default(),
            boot: self.inner.env.peers.liveness().boot(),
        }
    }

    /// `HOST:PORT` that others are told to use.
    pub(super) fn address(&self) -> String {
        advertised(&self.config())
    }

    /// Takes a node into the cluster, or takes note that it is back.
    pub(super) async fn take_in(&self, request: proto::JoinRequest) -> Result<proto::JoinResponse, Status> {
        if request.protocol != PROTOCOL {
            return Err(refuse(
                "PROTOCOL",
                format!("the node speaks version {}, this cluster {PROTOCOL}", request.protocol),
            ));
        }
        let uuid = |field: &str, text: &str| {
            text.parse::<Uuid>().map_err(|_| Status::invalid_argument(format!("{field}: {text:?}: must be a UUID")))
        };
        let node = uuid("node_id", &request.node_id)?;
        let cluster_id = match request.cluster_id.as_str() {
            "" => Uuid::nil(),
            text => uuid("cluster_id", text)?,
        };
        let controller = self.controller().map_err(|e| Status::unavailable(e.message))?;
        let until = Instant::now() + DUPLICATE_PATIENCE;
        loop {
            let (leader, _) = controller.leader();
            let state = controller.state();
            match leader {
                None => return Err(Status::unavailable("the controller group has no leader that is known")),
                Some(leader) if leader != self.inner.env.node() => {
                    let address = state.nodes.get(&leader).map(|node| node.address.clone());
                    let address = address.ok_or_else(|| Status::unavailable("the controller leader is not known"))?;
                    return Ok(proto::JoinResponse { leader: address, ..Default::default() });
                }
                Some(_) => {}
            }
            let liveness = self.inner.env.peers.liveness();
            if let Some(holder) = state.node_of(node)
                && holder.id != self.inner.env.node()
                && holder.address != request.address
                && liveness.alive(holder.id)
                && liveness.boot_of(holder.id) != request.boot
            {
                if Instant::now() < until {
                    tokio::time::sleep(ANNOUNCE_PAUSE).await;
                    continue;
                }
                let why = format!("node {node} is alive at {}: its data directory is a copy", holder.address);
                return Err(refuse("DUPLICATE", why));
            }
            let known = state.node_of(node).is_some();
            if !known && !controller.calm() {
                // Who has just begun to lead does not know yet who is alive, and a name that seems free may not be.
                tokio::time::sleep(ANNOUNCE_PAUSE).await;
                continue;
            }
            let alive = controller.heard_lately(DUPLICATE_PATIENCE);
            let command = Command::Join {
                uuid: node,
                name: request.name.clone(),
                address: request.address.clone(),
                zone: request.zone.clone(),
                version: request.version.clone(),
                boot: request.boot,
                cluster_id,
                alive_uuids: state
                    .nodes
                    .values()
                    .filter(|node| alive.contains(&node.id))
                    .map(|node| node.uuid)
                    .collect(),
                now_ms: now_ms(),
            };
            match controller.command_again(&command).await.map_err(|e| Status::unavailable(e.message))? {
                Outcome::Node(info) => {
                    tracing::info!(
                        target: "chronicle::audit",
                        event = "join",
                        node = info.id,
                        name = info.name,
                        address = info.address,
                        "node is a member"
                    );
                    return Ok(self.taken_in(info.id));
                }
                Outcome::Refused(refusal) => match &refusal {
                    // Its owner may be a process that has just died.
                    Refusal::Duplicate { .. } if Instant::now() < until => {
                        tokio::time::sleep(ANNOUNCE_PAUSE).await;
                    }
                    Refusal::Duplicate { .. } => return Err(refuse("DUPLICATE", refusal)),
                    Refusal::Removed { .. } => return Err(refuse("REMOVED", refusal)),
                    Refusal::ForeignCluster { .. } => return Err(refuse("FOREIGN_CLUSTER", refusal)),
                    other => return Err(Status::unavailable(other.to_string())),
                },
                _ => return Err(Status::internal("controller: unexpected answer")),
            }
        }
    }

    fn taken_in(&self, raft_id: u64) -> proto::JoinResponse {
        let state = self.inner.env.state();
        let member = |node: &NodeInfo| proto::Founder {
            node_id: node.uuid.to_string(),
            name: node.name.clone(),
            address: node.address.clone(),
            zone: node.zone.clone(),
            version: node.version.clone(),
            raft_id: node.id,
        };
        proto::JoinResponse {
            cluster_id: state.cluster_id.to_string(),
            raft_id,
            members: state.nodes.values().filter(|node| node.state != NodeState::Removed).map(member).collect(),
            leader: String::new(),
        }
    }

    async fn create_default_topic(&self) {
        let name = self.config().node.default_topic.clone();
        if name.is_empty() || self.inner.env.state().topics.contains_key(&name) {
            return;
        }
        let topic = NewTopic { name, if_not_exists: true, ..NewTopic::default() };
        if let Err(error) = self.create_topic(topic).await {
            tracing::warn!(%error, "the default topic is not created");
        }
    }
}

/// `HOST:PORT` that others are told to use.
pub(super) fn advertised(config: &crate::config::Config) -> String {
    match config.node.advertised_address.as_str() {
        "" => config.listeners.data.to_string(),
        address => address.to_owned(),
    }
}
