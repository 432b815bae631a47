//! One round: calls `Hello` at every discovered address and collects the answers.

use std::collections::BTreeMap;
use std::fmt::Write;

use chronicle_proto::internal::{HelloRequest, HelloResponse};
use futures::StreamExt;
use futures::stream;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::durable_state::{parse_optional_uuid, parse_uuid};
use super::{
    ANSWER_TIMEOUT, FOUNDERS_MAX, GONE_AFTER, Membership, MembershipError, PEERS_AT_ONCE, PROTOCOL, PeerError, Promised,
};
use crate::discovery::DiscoveryError;

/// Names and addresses that a status lists; the others are only counted.
const MENTIONED_MAX: usize = 8;

/// The answer of another node.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// The address at which it answered.
    pub(super) reached_at: String,
    pub(super) cluster: Option<Uuid>,
    pub(super) promised: Option<Uuid>,
    /// Nodes without a cluster that it sees, itself included; sorted.
    pub(super) seen: Vec<Uuid>,
    pub(super) hello: HelloResponse,
}

/// The result of one round.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// Other nodes.
    pub(super) peers: BTreeMap<Uuid, Peer>,
    /// Addresses without a valid answer, and why.
    unreachable: Vec<(String, String)>,
    /// Two processes with the same UUID, or one that restarted between two calls of `Hello`.
    clash: Option<(Uuid, String, String)>,
}

/// Why a round failed.
pub(super) enum Failed {
    Discovery(DiscoveryError),
    Refused(MembershipError),
}

impl Membership {
    /// Calls `Hello` at every address that discovery finds.
    pub(super) async fn look_around(&self) -> Result<Round, Failed> {
        let addresses = self.discovery.lookup().await.map_err(Failed::Discovery)?;
        let greetings = addresses.into_iter().map(|address| async {
            let said = self.greet(&address).await;
            (address, said)
        });
        // Collected first: no call starts before the stream polls it.
        let mut answers = stream::iter(greetings.collect::<Vec<_>>()).buffered(PEERS_AT_ONCE);
        let mut round = Round::default();
        while let Some((address, said)) = answers.next().await {
            match said {
                Err(why) => round.unreachable.push((address, why)),
                Ok((node_id, peer)) if node_id == self.own.node_id => {
                    if peer.hello.boot != self.own.start.boot {
                        return Err(Failed::Refused(MembershipError::Duplicate { node_id, address }));
                    }
                }
                Ok((node_id, peer)) => match round.peers.get(&node_id) {
                    Some(known) if known.hello.boot != peer.hello.boot => {
                        round.clash = Some((node_id, known.reached_at.clone(), address));
                    }
                    Some(_) => {}
                    None => {
                        round.peers.insert(node_id, peer);
                    }
                },
            }
        }
        Ok(round)
    }

    async fn greet(&self, address: &str) -> Result<(Uuid, Peer), String> {
        let request = HelloRequest {
            node_id: self.own.node_id.to_string(),
            protocol: PROTOCOL,
            name: self.own.name.clone(),
            address: self.own.addresses.data().to_owned(),
        };
        let hello = within(self.peers.hello(address, request)).await.map_err(|error| error.to_string())?;
        Peer::parse(address, hello)
    }
}

impl Peer {
    pub(super) fn parse(address: &str, hello: HelloResponse) -> Result<(Uuid, Self), String> {
        let node_id = parse_uuid("node_id", &hello.node_id)?;
        let cluster = parse_optional_uuid("cluster_id", &hello.cluster_id)?;
        let promised = parse_optional_uuid("promised", &hello.promised)?;
        if hello.seen.len() > FOUNDERS_MAX {
            return Err(format!("seen: {} nodes: must be at most {FOUNDERS_MAX}", hello.seen.len()));
        }
        let mut seen = hello.seen.iter().map(|uuid| parse_uuid("seen", uuid)).collect::<Result<Vec<_>, _>>()?;
        seen.sort_unstable();
        seen.dedup();
        Ok((node_id, Self { reached_at: address.to_owned(), cluster, promised, seen, hello }))
    }
}

impl Round {
    /// Returns the cluster that any peer is a member of. With two clusters this node must not choose, which is an
    /// error.
    pub(super) fn cluster(&self) -> Result<Option<Uuid>, MembershipError> {
        let mut members = self.peers.values().filter_map(|peer| Some((peer.cluster?, peer)));
        let Some((first, member)) = members.next() else { return Ok(None) };
        match members.find(|(cluster, _)| *cluster != first) {
            None => Ok(Some(first)),
            Some((second, other)) => Err(MembershipError::TwoClusters {
                first,
                first_address: member.reached_at.clone(),
                second,
                second_address: other.reached_at.clone(),
            }),
        }
    }

    /// Returns the address of a founder: where it answered, otherwise the address that it advertised.
    pub(super) fn address_of(&self, node_id: Uuid, otherwise: &str) -> String {
        self.peers.get(&node_id).map_or(otherwise, |peer| &peer.reached_at).to_owned()
    }

    /// Returns whether another node answers at the advertised address of this founder: the founder's disk is lost.
    pub(super) fn superseded(&self, node_id: Uuid, promised: &Promised) -> bool {
        let Some(founder) = promised.founders.iter().find(|founder| founder.node_id == node_id) else { return false };
        let is_founder = |other: &Uuid| promised.founders.iter().any(|founder| founder.node_id == *other);
        !self.peers.contains_key(&node_id)
            && self.peers.iter().any(|(other, peer)| !is_founder(other) && peer.hello.address == founder.address)
    }

    /// Returns the nodes that can bootstrap a cluster together, or what prevents it. The peers must see the same nodes
    /// as this node (`own`).
    pub(super) fn agreed(&self, own: Uuid, expected: u32) -> Result<Vec<Uuid>, String> {
        let mut everybody: Vec<Uuid> = self.peers.keys().copied().chain([own]).collect();
        everybody.sort_unstable();
        if let Some((node_id, first, second)) = &self.clash {
            return Err(format!("the nodes at {first} and {second} both report UUID {node_id}; one must be a copy"));
        }
        for peer in self.peers.values() {
            let (at, hello) = (&peer.reached_at, &peer.hello);
            if hello.protocol != PROTOCOL {
                let theirs = hello.protocol;
                return Err(format!(
                    "{at} speaks version {theirs} of the protocol between nodes, this node {PROTOCOL}"
                ));
            }
            if hello.bootstrap_expect != expected {
                let theirs = hello.bootstrap_expect;
                return Err(format!(
                    "cluster.bootstrap-expect is {theirs} at {at} and {expected} here; it must be the same"
                ));
            }
        }
        if everybody.len() < expected as usize {
            return Err(format!("waiting for {expected} nodes: {}", self.summary()));
        }
        for peer in self.peers.values() {
            if let Some(promised) = peer.promised {
                return Err(format!("waiting for {}, which holds a promise for cluster {promised}", peer.reached_at));
            }
        }
        match self.peers.values().find(|peer| peer.seen != everybody) {
            None => Ok(everybody),
            Some(peer) => {
                let (at, count) = (&peer.reached_at, peer.seen.len());
                Err(format!("waiting until all see the same nodes: {at} sees {count}; here: {}", self.summary()))
            }
        }
    }

    /// "seen 2 (self, b:7400); unreachable: c:7400 (connection refused)"
    fn summary(&self) -> String {
        let reached = self.peers.values().map(|peer| peer.reached_at.clone());
        let mut text =
            format!("seen {} ({})", self.peers.len() + 1, list(["this node".to_owned()].into_iter().chain(reached)));
        if !self.unreachable.is_empty() {
            let failed = self.unreachable.iter().map(|(address, why)| format!("{address} ({why})"));
            write!(text, "; unreachable: {}", list(failed)).expect("a String takes everything");
        }
        text
    }
}

fn list(items: impl Iterator<Item = String>) -> String {
    let mut items = items.peekable();
    let mentioned: Vec<_> = items.by_ref().take(MENTIONED_MAX).collect();
    let rest = items.count();
    let mentioned = mentioned.join(", ");
    if rest == 0 { mentioned } else { format!("{mentioned} and {rest} more") }
}

/// Waits for an answer; returns an error when it does not arrive in time.
pub(super) async fn within<T>(call: impl Future<Output = Result<T, PeerError>>) -> Result<T, PeerError> {
    let late = |_| PeerError::Unavailable(format!("no answer within {} ms", ANSWER_TIMEOUT.as_millis()));
    timeout(ANSWER_TIMEOUT, call).await.map_err(late)?
}

/// When other nodes were last seen, over all rounds.
pub(super) struct Sightings {
    seen: BTreeMap<Uuid, Instant>,
    /// The promise that this node holds, and since when.
    waiting: (Option<Uuid>, Instant),
}

impl Sightings {
    pub(super) fn new() -> Self {
        Self { seen: BTreeMap::new(), waiting: (None, Instant::now()) }
    }

    pub(super) fn note(&mut self, round: &Round, promised: Option<&Promised>, heard: &BTreeMap<Uuid, Instant>) {
        let now = Instant::now();
        // An older sighting has the same meaning as none.
        self.seen.retain(|_, seen| now.duration_since(*seen) < GONE_AFTER);
        self.seen.extend(heard.iter().map(|(node_id, heard)| (*node_id, *heard)));
        self.seen.extend(round.peers.keys().map(|node_id| (*node_id, now)));
        let promised = promised.map(|promised| promised.cluster_id);
        if self.waiting.0 != promised {
            self.waiting = (promised, now);
        }
    }

    /// Returns whether the node has neither answered nor called for [`GONE_AFTER`], counted from the promise at the
    /// earliest, and no node that answers sees it.
    pub(super) fn gone(&self, node_id: Uuid, round: &Round) -> bool {
        let seen = self.seen.get(&node_id).map_or(self.waiting.1, |seen| (*seen).max(self.waiting.1));
        seen.elapsed() >= GONE_AFTER && !round.peers.values().any(|peer| peer.seen.contains(&node_id))
    }
}
