//! Connects this node with its cluster: bootstraps or joins it and registers this process, and, on the controller
//! leader, admits other nodes.

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
use tonic::Status;
use tonic::metadata::MetadataValue;
use uuid::Uuid;

use super::Node;
use crate::cluster::{CONTROLLER_LOG, member};
use crate::config::Config;
use crate::controller::Controller;
use crate::host::flushed::journal;
use crate::host::{jitter, now_ms};
use crate::membership::{
    Founder, JoinRefusal, MembershipError, MembershipOutcome, Memory, Origin, PeerError, Remembered,
};
use crate::metadata::{CommandOutcome, ControllerCommand, DiskGeneration, NodeInfo, NodeState, Refusal};
use crate::model::{Addresses, ApiError, NewTopic, Reason};
use crate::peers::{Expulsion, Known, Me, PROTOCOL, Peers};

/// Journal key of the controller's log whose value is the durable state of `membership`, as JSON.
pub(super) const KEY_MEMBERSHIP: u8 = 10;
/// Pause between two attempts to register with the controller.
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(100);
/// How long a join waits while its name, address or UUID seems to be in use: the owner may be a process that has just
/// died.
const DUPLICATE_PATIENCE: Duration = Duration::from_secs(3);

/// The gRPC metadata key whose value is the code of a permanent refusal.
const REFUSAL_KEY: &str = "chronicle-join-refusal";

/// The durable state of `membership`, in the store's journal.
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
        // Started before the future is polled: the write takes effect even when the caller drops the future.
        let put = bytes.map(|bytes| journal(&self.0, CONTROLLER_LOG, KEY_MEMBERSHIP, bytes));
        async move { put?.await.map_err(io::Error::other) }.boxed()
    }
}

/// The calls of `membership` to other nodes, over the transport.
pub(super) struct Calls(pub(super) Arc<Peers>);

fn unavailable(status: Status) -> PeerError {
    PeerError::Unavailable(status.message().to_owned())
}

impl crate::membership::MembershipRpc for Calls {
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

/// Reads the refusals of [`Node::take_in`] back from a status.
fn join_error(status: Status) -> PeerError {
    let code = status.metadata().get(REFUSAL_KEY).and_then(|code| code.to_str().ok());
    match code.and_then(JoinRefusal::from_code) {
        Some(refusal) => {
            let why = status.message().trim_start_matches(refusal.code()).trim_start_matches(": ");
            PeerError::Refused(refusal, why.to_owned())
        }
        None => unavailable(status),
    }
}

/// A permanent refusal: see [`join_error`].
fn refuse(refusal: JoinRefusal, why: impl std::fmt::Display) -> Status {
    // The code in the text is for operators, and for nodes of earlier versions.
    let mut status = Status::failed_precondition(format!("{}: {why}", refusal.code()));
    status.metadata_mut().insert(REFUSAL_KEY, MetadataValue::from_static(refusal.code()));
    status
}

impl Node {
    /// Finds the cluster of this node, bootstraps or joins it if necessary, starts the controller group, and waits
    /// until this process is registered with the controller. The caller must serve peers during this call.
    ///
    /// # Errors
    /// When the cluster permanently refuses the node, discovery finds two clusters, or the controller group does not
    /// start.
    pub async fn establish(&self) -> Result<(), ApiError> {
        let refused = |refused: MembershipError| ApiError::new(Reason::Unavailable, refused.to_string());
        let start = self.inner.membership.establish().await.map_err(refused)?;
        self.inner.discovery.shutdown().await;
        let (identity, founders, known) = match start {
            MembershipOutcome::Founded { identity, founders } => (identity, Some(founders.clone()), founders),
            MembershipOutcome::Joined { identity, members } => (identity, None, members),
            MembershipOutcome::Member { identity, origin } => match origin {
                Origin::Founded(founders) => (identity, Some(founders.clone()), founders),
                Origin::Joined(members) => (identity, None, members),
            },
        };
        let cluster = &self.inner.cluster;
        cluster.peers.identify(Me {
            cluster: identity.cluster_id,
            node: identity.raft_id,
            start: cluster.peers.liveness().generations().at_start(),
        });
        let named = |node: &Founder| (node.raft_id, Known { name: node.name.clone(), address: node.address.clone() });
        cluster.peers.set_known(&known.iter().map(named).collect::<BTreeMap<_, _>>());
        let nodes: Option<Vec<NodeInfo>> =
            founders.map(|founders| founders.iter().map(|node| self.founder(node)).collect());
        let members = nodes.as_ref().map(|nodes| nodes.iter().map(|node| (node.id, member(Some(node)))).collect());
        let controller = Controller::start(cluster.clone(), members).await?;
        let twice = || ApiError::new(Reason::Internal, "the node is already part of a cluster");
        if !self.inner.broker.attach(controller.clone()) {
            return Err(twice());
        }
        if let Some(nodes) = nodes
            && controller.state().cluster_id.is_nil()
        {
            // Every founder proposes the same initialisation; the first one that commits takes effect. Runs
            // concurrently with the registration, which may be refused.
            let command = ControllerCommand::InitCluster { cluster_id: identity.cluster_id, nodes };
            let (node, controller) = (self.clone(), controller.clone());
            self.inner.tasks.spawn(async move {
                while controller.state().cluster_id.is_nil() && node.not_stopping().is_ok() {
                    if let Err(error) = controller.init(command.clone()).await {
                        tracing::debug!(error, "cannot initialise the cluster yet, retrying");
                    }
                    tokio::time::sleep(jitter(ANNOUNCE_PAUSE)).await;
                }
            });
        }
        self.announce().await?;
        // Without a recent checkpoint the group applies its log again. The replicas of this node are compared with the metadata only
        // after that: a placement of the past must not delete them.
        while let Err(error) = controller.sync().await {
            tracing::debug!(%error, "metadata is not up to date yet");
            self.not_stopping()?;
            tokio::time::sleep(jitter(ANNOUNCE_PAUSE)).await;
        }
        self.inner.replicas.environment().reports.set(controller).map_err(|_| twice())?;
        self.create_default_topic().await;
        self.inner.established.send_replace(true);
        Ok(())
    }

    fn founder(&self, founder: &Founder) -> NodeInfo {
        NodeInfo {
            id: founder.raft_id,
            uuid: founder.node_id,
            name: founder.name.clone(),
            // The addresses of its other listeners arrive with its own `Join`.
            addresses: Addresses::of_data(founder.address.clone()),
            zone: founder.zone.clone(),
            version: founder.version.clone(),
            boot: 0,
            state: NodeState::Active,
            joined_ms: 0,
        }
    }

    /// Registers this process with the controller: its name, addresses and zone may have changed, and a drain ends.
    async fn announce(&self) -> Result<(), ApiError> {
        let cluster = &self.inner.cluster;
        loop {
            self.not_stopping()?;
            let request = self.join_request();
            let mut targets: Vec<String> = Vec::new();
            if let Ok(controller) = self.inner.broker.controller() {
                let (leader, _) = controller.leader();
                if leader == Some(cluster.node()) {
                    match self.take_in(request.clone()).await {
                        Ok(answer) if answer.leader.is_empty() => return Ok(()),
                        Ok(_) => {}
                        Err(status) => self.judge(join_error(status))?,
                    }
                }
                targets.extend(leader.and_then(|leader| cluster.peers.address(leader)));
            }
            targets.extend(cluster.peers.known());
            let calls = Calls(cluster.peers.clone());
            for address in targets {
                let asked = crate::membership::MembershipRpc::join(&calls, &address, request.clone());
                match tokio::time::timeout(Duration::from_secs(5), asked).await {
                    Ok(Ok(answer)) if answer.leader.is_empty() => return Ok(()),
                    Ok(Ok(_)) | Err(_) => {}
                    Ok(Err(error)) => self.judge(error)?,
                }
            }
            tokio::time::sleep(jitter(ANNOUNCE_PAUSE)).await;
        }
    }

    /// Returns an error for a permanent refusal, which stops the node; every other error is retried.
    fn judge(&self, error: PeerError) -> Result<(), ApiError> {
        match error {
            PeerError::Refused(refusal, why) => {
                if refusal == JoinRefusal::RolledBack {
                    self.inner.cluster.peers.liveness().expel(Expulsion::RolledBack(why.clone()));
                }
                Err(super::refused(refusal, &why))
            }
            PeerError::Unavailable(why) => {
                tracing::debug!(why, "not registered with the controller yet");
                Ok(())
            }
        }
    }

    fn join_request(&self) -> proto::JoinRequest {
        let config = self.inner.cluster.config();
        let addresses = advertised(&config);
        proto::JoinRequest {
            node_id: self.inner.cluster.store.node_id().to_string(),
            name: config.node.name.clone(),
            address: addresses.data().to_owned(),
            addresses: addresses.to_message(),
            zone: config.cluster.zone.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            protocol: PROTOCOL,
            cluster_id: self.inner.cluster.peers.me().map(|me| me.cluster.to_string()).unwrap_or_default(),
            boot: self.inner.cluster.peers.liveness().boot(),
            generation: self.inner.cluster.peers.liveness().generations().at_start().number,
            lineage: self.inner.cluster.peers.liveness().generations().at_start().lineage,
        }
    }

    /// Admits a node to the cluster, or registers the restart of a member.
    pub(super) async fn take_in(&self, request: proto::JoinRequest) -> Result<proto::JoinResponse, Status> {
        if request.protocol != PROTOCOL {
            return Err(refuse(
                JoinRefusal::Protocol,
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
        let addresses = Addresses::from_message(request.address, request.addresses)
            .map_err(|error| Status::invalid_argument(error.message))?;
        let controller = self.inner.broker.controller().map_err(|e| Status::unavailable(e.message))?;
        let until = Instant::now() + DUPLICATE_PATIENCE;
        loop {
            let (leader, _) = controller.leader();
            let state = controller.state();
            match leader {
                None => return Err(Status::unavailable("no known leader of the controller group")),
                Some(leader) if leader != self.inner.cluster.node() => {
                    let address = state.nodes.get(&leader).map(|node| node.addresses.data().to_owned());
                    let address =
                        address.ok_or_else(|| Status::unavailable("no known address of the controller leader"))?;
                    return Ok(proto::JoinResponse { leader: address, ..Default::default() });
                }
                Some(_) => {}
            }
            let liveness = self.inner.cluster.peers.liveness();
            if let Some(holder) = state.node_of(node)
                && holder.id != self.inner.cluster.node()
                && holder.addresses.data() != addresses.data()
                && liveness.alive(holder.id)
                && liveness.boot_of(holder.id) != request.boot
            {
                if Instant::now() < until {
                    tokio::time::sleep(ANNOUNCE_PAUSE).await;
                    continue;
                }
                let at = holder.addresses.data();
                let why = format!("node {node} is alive at {at}: the joining node has a copy of its data directory");
                return Err(refuse(JoinRefusal::Duplicate, why));
            }
            if let Some(holder) = state.node_of(node).filter(|holder| holder.id != self.inner.cluster.node()) {
                let (number, lineage, boot) = (request.generation, request.lineage, request.boot);
                let shown = DiskGeneration { number, lineage, boot };
                let checked = liveness.generations().check(holder.id, shown);
                checked.map_err(|why| refuse(JoinRefusal::RolledBack, why))?;
            }
            let known = state.node_of(node).is_some();
            if !known && !controller.warmed_up() {
                // A new leader does not know yet which nodes are alive, so a name that seems free may be in use.
                tokio::time::sleep(ANNOUNCE_PAUSE).await;
                continue;
            }
            let alive = controller.alive_within(DUPLICATE_PATIENCE);
            let alive_uuids: Vec<Uuid> =
                state.nodes.values().filter(|node| alive.contains(&node.id)).map(|node| node.uuid).collect();
            let conflict = state.address_conflict(node, &addresses, &alive_uuids);
            let command = ControllerCommand::Join {
                uuid: node,
                name: request.name.clone(),
                addresses: addresses.clone(),
                zone: request.zone.clone(),
                version: request.version.clone(),
                boot: request.boot,
                cluster_id,
                alive_uuids,
                now_ms: now_ms(),
            };
            let outcome = match conflict {
                Some(refusal) => CommandOutcome::Refused(refusal),
                None => controller.command_again(&command).await.map_err(|e| Status::unavailable(e.to_string()))?,
            };
            match outcome {
                CommandOutcome::Node(info) => {
                    tracing::info!(
                        target: "chronicle::audit",
                        event = "join",
                        node = info.id,
                        name = info.name,
                        address = info.addresses.data(),
                        "node is a member"
                    );
                    return Ok(self.taken_in(info.id));
                }
                CommandOutcome::Refused(refusal) => match &refusal {
                    // The owner of the name or address may be a process that has just died.
                    Refusal::Duplicate { .. } if Instant::now() < until => {
                        tokio::time::sleep(ANNOUNCE_PAUSE).await;
                    }
                    Refusal::Duplicate { .. } => return Err(refuse(JoinRefusal::Duplicate, refusal)),
                    Refusal::Removed { .. } => return Err(refuse(JoinRefusal::Removed, refusal)),
                    Refusal::ForeignCluster { .. } => return Err(refuse(JoinRefusal::ForeignCluster, refusal)),
                    other => return Err(Status::unavailable(other.to_string())),
                },
                _ => return Err(Status::internal("controller: unexpected response")),
            }
        }
    }

    fn taken_in(&self, raft_id: u64) -> proto::JoinResponse {
        let state = self.inner.cluster.state();
        let member = |node: &NodeInfo| proto::Founder {
            node_id: node.uuid.to_string(),
            name: node.name.clone(),
            address: node.addresses.data().to_owned(),
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
        let name = self.inner.cluster.config().node.default_topic.clone();
        if name.is_empty() || self.inner.cluster.state().topics.contains_key(&name) {
            return;
        }
        let topic = NewTopic { name, if_not_exists: true, ..NewTopic::default() };
        if let Err(error) = self.inner.broker.create_topic(topic).await {
            tracing::warn!(%error, "cannot create the default topic");
        }
    }
}

/// `HOST:PORT` of each listener that nodes and clients are to use.
pub(super) fn advertised(config: &Config) -> Addresses {
    let data = match config.node.advertised_address.as_str() {
        "" => config.listeners.data.to_string(),
        address => address.to_owned(),
    };
    Addresses::new(data, config.node.advertised_addresses.clone())
}
