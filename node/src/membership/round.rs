//! One look around: whom discovery leads to, and what they say.

use std::collections::BTreeMap;
use std::fmt::Write;

use chronicle_proto::internal::{HelloRequest, HelloResponse};
use futures::StreamExt;
use futures::stream;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::state::{parse_optional_uuid, parse_uuid};
use super::{
    ANSWER_TIMEOUT, FOUNDERS_MAX, GONE_AFTER, Membership, PEERS_AT_ONCE, PROTOCOL, PeerError, Promised, Refused,
};
use crate::discovery::DiscoveryError;

/// Names and addresses that a status mentions; of more only the number.
const MENTIONED_MAX: usize = 8;

/// What another node said.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// Where it answered.
    pub(super) reached_at: String,
    pub(super) cluster: Option<Uuid>,
    pub(super) promised: Option<Uuid>,
    /// Nodes without a cluster that it sees, sorted; itself among them.
    pub(super) seen: Vec<Uuid>,
    pub(super) hello: HelloResponse,
}

/// What one look around found.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// Other nodes.
    pub(super) peers: BTreeMap<Uuid, Peer>,
    /// Addresses where nobody answered, or nothing of use, and why.
    unreachable: Vec<(String, String)>,
    /// Two processes with the same UUID, or one that restarted between two greetings.
    clash: Option<(Uuid, String, String)>,
}

/// Why a look around failed.
pub(super) enum Failed {
    Discovery(DiscoveryError),
    Refused(Refused),
}

impl Membership {
    /// Says hello to every address that discovery finds.
    pub(super) async fn look_around(&self) -> Result<Round, Failed> {
        let addresses = self.discovery.lookup().await.map_err(Failed::Discovery)?;
        let greetings = addresses.into_iter().map(|address| async {
            let said = self.greet(&address).await;
            (address, said)
        });
        // Collected: none of them begins before the stream asks for it.
        let mut answers = stream::iter(greetings.collect::<Vec<_>>()).buffered(PEERS_AT_ONCE);
        let mut round = Round::default();
        while let Some((address, said)) = answers.next().await {
            match said {
                Err(why) => round.unreachable.push((address, why)),
                Ok((node_id, peer)) if node_id == self.own.node_id => {
                    if peer.hello.boot != self.own.boot {
                        return Err(Failed::Refused(Refused::Duplicate { node_id, address }));
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
    fn parse(address: &str, hello: HelloResponse) -> Result<(Uuid, Self), String> {
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
    /// The cluster that anybody belongs to. Two of them are more than this node may choose from.
    pub(super) fn cluster(&self) -> Result<Option<Uuid>, Refused> {
        let mut members = self.peers.values().filter_map(|peer| Some((peer.cluster?, peer)));
        let Some((first, member)) = members.next() else { return Ok(None) };
        match members.find(|(cluster, _)| *cluster != first) {
            None => Ok(Some(first)),
            Some((second, other)) => Err(Refused::TwoClusters {
                first,
                first_address: member.reached_at.clone(),
                second,
                second_address: other.reached_at.clone(),
            }),
        }
    }

    /// Where to reach a founder: where it answered, else where it said it would be.
    pub(super) fn address_of(&self, node_id: Uuid, otherwise: &str) -> String {
        self.peers.get(&node_id).map_or(otherwise, |peer| &peer.reached_at).to_owned()
    }

    /// Another node is where this founder said it would be: the founder's disk is lost.
    pub(super) fn superseded(&self, node_id: Uuid, promised: &Promised) -> bool {
        let Some(founder) = promised.founders.iter().find(|founder| founder.node_id == node_id) else { return false };
        let is_founder = |other: &Uuid| promised.founders.iter().any(|founder| founder.node_id == *other);
        !self.peers.contains_key(&node_id)
            && self.peers.iter().any(|(other, peer)| !is_founder(other) && peer.hello.address == founder.address)
    }

    /// Nothing keeps this node and these peers from founding a cluster together, or what does. `own` sees what the peers
    /// should see as well.
    pub(super) fn agreed(&self, own: Uuid, expected: u32) -> Result<Vec<Uuid>, String> {
        let mut everybody: Vec<Uuid> = self.peers.keys().copied().chain([own]).collect();
        everybody.sort_unstable();
        if let Some((node_id, first, second)) = &self.clash {
            return Err(format!(
                "the nodes at {first} and {second} both say that they are {node_id}; one must be a copy"
            ));
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
                return Err(format!("waiting for {}, which has promised itself to {promised}", peer.reached_at));
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

/// An answer, or that there was none in time.
pub(super) async fn within<T>(call: impl Future<Output = Result<T, PeerError>>) -> Result<T, PeerError> {
    let late = |_| PeerError::Unavailable(format!("no answer within {} ms", ANSWER_TIMEOUT.as_millis()));
    timeout(ANSWER_TIMEOUT, call).await.map_err(late)?
}

/// When others were seen, over the rounds.
pub(super) struct Sightings {
    seen: BTreeMap<Uuid, Instant>,
    /// The promise that is waited on, and since when.
    waiting: (Option<Uuid>, Instant),
}

impl Sightings {
    pub(super) fn new() -> Self {
        Self { seen: BTreeMap::new(), waiting: (None, Instant::now()) }
    }

    pub(super) fn note(&mut self, round: &Round, promised: Option<&Promised>, heard: &BTreeMap<Uuid, Instant>) {
        let now = Instant::now();
        // What is older says no more than absence does.
        self.seen.retain(|_, seen| now.duration_since(*seen) < GONE_AFTER);
        self.seen.extend(heard.iter().map(|(node_id, heard)| (*node_id, *heard)));
        self.seen.extend(round.peers.keys().map(|node_id| (*node_id, now)));
        let promised = promised.map(|promised| promised.cluster_id);
        if self.waiting.0 != promised {
            self.waiting = (promised, now);
        }
    }

    /// Neither answered nor called for [`GONE_AFTER`], all the time that the promise was held, and nobody here sees it.
    pub(super) fn gone(&self, node_id: Uuid, round: &Round) -> bool {
        let seen = self.seen.get(&node_id).map_or(self.waiting.1, |seen| (*seen).max(self.waiting.1));
        seen.elapsed() >= GONE_AFTER && !round.peers.values().any(|peer| peer.seen.contains(&node_id))
    }
}
