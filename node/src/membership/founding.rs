//! Bootstraps a cluster: proposing, promising, completing. The header of `mod.rs` describes the protocol.

use std::io;

use chronicle_proto::internal as wire;
use chronicle_proto::internal::{
    FoundRequest, FoundResponse, HelloRequest, HelloResponse, PromiseRequest, PromiseResponse,
};
use futures::{StreamExt, stream};
use uuid::Uuid;

use super::durable_state::parse_uuid;
use super::round::{Round, Sightings, within};
use super::{Founder, Membership, MembershipError, PEERS_AT_ONCE, PROTOCOL, PeerError, Promised};

/// The answers to other nodes.
impl Membership {
    /// Answers `Hello`: the identity and the state of this node.
    pub fn hello(&self, request: &HelloRequest) -> HelloResponse {
        let own = &self.own;
        let shown = self.state.look(|shown| {
            if let Ok(caller) = parse_uuid("node_id", &request.node_id)
                && caller != own.node_id
                && shown.own_cluster.is_none()
            {
                shown.hear(caller);
                if !shown.seen.contains(&caller) {
                    self.stranger.notify_one();
                }
            }
            shown.clone()
        });
        let identity = shown.own_cluster.as_ref().map(|own| own.identity);
        let seen = if identity.is_some() { Vec::new() } else { shown.seen };
        let promised = shown.promised.filter(|_| shown.giving_up.is_empty());
        HelloResponse {
            node_id: own.node_id.to_string(),
            name: own.name.clone(),
            address: own.addresses.data().to_owned(),
            zone: own.zone.clone(),
            version: own.version.clone(),
            protocol: PROTOCOL,
            cluster_id: identity.map_or_else(String::new, |identity| identity.cluster_id.to_string()),
            raft_id: identity.map_or(0, |identity| identity.raft_id),
            bootstrap_expect: own.bootstrap_expect,
            seen: seen.iter().map(Uuid::to_string).collect(),
            promised: promised.map_or_else(String::new, |promised| promised.cluster_id.to_string()),
            controller_leader: shown.controller_leader,
            boot: own.start.boot,
        }
    }

    /// Promises a proposal, durably, or refuses it permanently.
    ///
    /// # Errors
    /// When the decision could not be made durable: then there is no answer, and the caller may retry.
    pub async fn promise(&self, request: PromiseRequest) -> io::Result<PromiseResponse> {
        let refused = match Promised::try_from(request) {
            Ok(proposal) => self.promise_self(proposal).await?.err(),
            Err(malformed) => Some(malformed),
        };
        Ok(PromiseResponse { refused: refused.unwrap_or_default() })
    }

    /// Makes this node a member of the cluster that it promised. Idempotent.
    ///
    /// # Errors
    /// When the change could not be made durable: then there is no answer, and the caller may retry.
    pub async fn found(&self, request: FoundRequest) -> io::Result<FoundResponse> {
        let refused = match parse_uuid("cluster_id", &request.cluster_id) {
            Ok(cluster_id) => self.state.change(|memory| memory.found(cluster_id, self.own.node_id)).await?.err(),
            Err(malformed) => Some(malformed),
        };
        Ok(FoundResponse { refused: refused.unwrap_or_default() })
    }

    async fn promise_self(&self, proposal: Promised) -> io::Result<Result<(), String>> {
        let (node_id, expected) = (self.own.node_id, self.own.bootstrap_expect);
        let in_sight = self.state.look(|shown| shown.in_sight);
        self.state.change(|memory| memory.promise(proposal, node_id, expected, in_sight)).await
    }
}

/// Returns the status of a promise that waits for founders that do not answer.
fn lack(promised: &Promised, whom: impl Iterator<Item = Uuid>) -> String {
    format!(
        "bootstrapping cluster {}: waiting for {}. If those nodes are permanently lost, start the other nodes with empty \
         data directories; the directories contain no records yet",
        promised.cluster_id,
        addresses(promised, whom)
    )
}

fn addresses(promised: &Promised, whom: impl Iterator<Item = Uuid>) -> String {
    whom.map(|node_id| promised.address_of(node_id)).collect::<Vec<_>>().join(", ")
}

/// The result of calling all founders.
#[derive(Default)]
struct Answers {
    refused: Option<String>,
    missing: Vec<Founder>,
}

impl Membership {
    /// Proposes a cluster when all nodes agree and this node is the coordinator. Returns what the node waits for.
    pub(super) async fn propose(&self, round: &Round, sightings: &Sightings) -> Result<String, MembershipError> {
        let everybody = match round.agreed(self.own.node_id, self.own.bootstrap_expect) {
            Ok(everybody) => everybody,
            Err(waiting) => return Ok(waiting),
        };
        let coordinator = everybody[0];
        if coordinator != self.own.node_id {
            let (at, count) = (round.address_of(coordinator, ""), everybody.len());
            return Ok(format!("waiting for {at} to bootstrap a cluster of {count} nodes"));
        }
        let founders = everybody.into_iter().zip(1..).map(|(node_id, raft_id)| self.founder(node_id, raft_id, round));
        let proposal = Promised { cluster_id: (self.cluster_id)(), coordinator, founders: founders.collect() };
        if let Err(raced) = self.promise_self(proposal.clone()).await.map_err(MembershipError::Memory)? {
            return Ok(format!("not proposing a cluster: {raced}"));
        }
        self.finish(&proposal, round, sightings).await
    }

    /// Acts on a promise that was held before the round began: completes the proposal, aborts it, or waits. Returns
    /// what the node waits for.
    pub(super) async fn keep(
        &self,
        promised: &Promised,
        round: &Round,
        sightings: &Sightings,
    ) -> Result<String, MembershipError> {
        let (id, coordinator) = (promised.cluster_id, promised.coordinator);
        if coordinator == self.own.node_id {
            let others = self.state.look(|shown| shown.giving_up.clone());
            if !others.is_empty() {
                return self.give_up(promised, &others, round).await;
            }
            return self.finish(promised, round, sightings).await;
        }
        let address = promised.address_of(coordinator);
        match round.peers.get(&coordinator) {
            // The coordinator promises before it calls any founder: when it reports no promise, it has aborted the
            // proposal.
            Some(peer) if peer.promised != Some(id) => self.forget(promised, &format!("{address} aborted it")).await,
            Some(_) => Ok(format!("waiting for {address} to bootstrap cluster {id}")),
            None if !sightings.gone(coordinator, round) => {
                Ok(format!("waiting for {address}, the coordinator of the proposal of cluster {id}"))
            }
            None => self.finish(promised, round, sightings).await,
        }
    }

    /// Asks all founders to promise, then bootstraps the cluster and sends `Found` to them. Otherwise returns what the
    /// node waits for.
    async fn finish(
        &self,
        promised: &Promised,
        round: &Round,
        sightings: &Sightings,
    ) -> Result<String, MembershipError> {
        let (id, own, coordinator) = (promised.cluster_id, self.own.node_id, promised.coordinator);
        // The coordinator has promised, whether or not it is reachable.
        let others = |founder: &&Founder| founder.node_id != own && founder.node_id != coordinator;
        let others: Vec<_> = promised.founders.iter().filter(others).collect();
        let asked = self
            .ask(&others, round, |address| async move {
                let response = within(self.peers.promise(&address, promised.clone().into())).await;
                response.map(|response| response.refused)
            })
            .await;
        if let Some(refused) = asked.refused {
            return self.forget(promised, &refused).await;
        }
        let missing = asked.missing;
        let superseded = |node_id: Uuid| round.superseded(node_id, promised);
        let lost = |node_id: Uuid| superseded(node_id) || sightings.gone(node_id, round);
        if coordinator != own && (others.is_empty() || !missing.is_empty()) {
            // Only the coordinator knows whether it bootstrapped, unless its disk is lost too.
            if superseded(coordinator) && missing.iter().all(|founder| superseded(founder.node_id)) {
                return self.forget(promised, "the coordinator and the unreachable founders lost their disks").await;
            }
            return Ok(lack(promised, missing.iter().map(|founder| founder.node_id).chain([coordinator])));
        }
        if !missing.is_empty() {
            let alone = missing.len() == others.len();
            if alone
                && (others.len() == 1 || missing.iter().all(|founder| superseded(founder.node_id)))
                && missing.iter().all(|founder| lost(founder.node_id))
            {
                return self.forget(promised, "no other founder can complete it").await;
            }
            if !alone && missing.iter().all(|founder| lost(founder.node_id)) {
                let absent = |founder: &Founder| missing.iter().any(|other| other.node_id == founder.node_id);
                let present = others.iter().filter(|founder| !absent(founder)).map(|founder| founder.node_id).collect();
                let whom = addresses(promised, missing.iter().map(|founder| founder.node_id));
                self.state.change(|memory| memory.giving_up = present).await.map_err(MembershipError::Memory)?;
                return Ok(format!("aborting the proposal of cluster {id}: no promise from {whom}"));
            }
            return Ok(lack(promised, missing.iter().map(|founder| founder.node_id)));
        }
        // All founders have promised: from here on the cluster exists. A founder that does not receive `Found` now sees
        // the cluster later.
        let founded = self.found_self(promised).await?;
        self.ask(&others, round, |address| async move {
            let request = FoundRequest { cluster_id: id.to_string(), founders: promised.wire_founders() };
            within(self.peers.found(&address, request)).await.map(|response| response.refused)
        })
        .await;
        Ok(founded)
    }

    /// Drops a proposal that this node coordinates and is aborting, once one of the other founders that promised has
    /// released its promise. Until then those founders could complete the proposal without this node. Their answers in
    /// this round are newer than the decision to abort.
    async fn give_up(&self, promised: &Promised, others: &[Uuid], round: &Round) -> Result<String, MembershipError> {
        let id = promised.cluster_id;
        match others.iter().filter_map(|node_id| round.peers.get(node_id)).find(|peer| peer.promised != Some(id)) {
            Some(peer) => self.forget(promised, &format!("{} has released its promise", peer.reached_at)).await,
            None => {
                let whom = addresses(promised, others.iter().copied());
                Ok(format!("aborting the proposal of cluster {id}: waiting for one of {whom} to release its promise"))
            }
        }
    }

    /// Calls each founder at its address. An answer is a refusal, or empty when the founder agrees.
    async fn ask<F>(&self, founders: &[&Founder], round: &Round, call: impl Fn(String) -> F) -> Answers
    where
        F: Future<Output = Result<String, PeerError>>,
    {
        let mut answers = Answers::default();
        let calls = founders.iter().map(|founder| {
            let answer = call(round.address_of(founder.node_id, &founder.address));
            async move { (*founder, answer.await) }
        });
        // Collected first: no call starts before the stream polls it.
        let mut calls = stream::iter(calls.collect::<Vec<_>>()).buffer_unordered(PEERS_AT_ONCE);
        while let Some((founder, answer)) = calls.next().await {
            match answer {
                Ok(refused) if refused.is_empty() => {}
                Ok(refused) => answers.refused = Some(format!("{} refuses: {refused}", founder.address)),
                Err(_) => answers.missing.push(founder.clone()),
            }
        }
        answers
    }

    pub(super) async fn found_self(&self, promised: &Promised) -> Result<String, MembershipError> {
        let id = promised.cluster_id;
        let done =
            self.state.change(|memory| memory.found(id, self.own.node_id)).await.map_err(MembershipError::Memory)?;
        Ok(done.err().map_or_else(
            || format!("bootstrapped cluster {id}"),
            |why| format!("cannot bootstrap cluster {id}: {why}"),
        ))
    }

    async fn forget(&self, promised: &Promised, why: &str) -> Result<String, MembershipError> {
        let id = promised.cluster_id;
        let forget = |memory: &mut super::Remembered| {
            if memory.promised.as_ref() == Some(promised) {
                memory.forget();
            }
        };
        self.state.change(forget).await.map_err(MembershipError::Memory)?;
        Ok(format!("the proposal of cluster {id} is dropped: {why}"))
    }

    fn founder(&self, node_id: Uuid, raft_id: u64, round: &Round) -> Founder {
        match round.peers.get(&node_id).map(|peer| &peer.hello) {
            Some(hello) => Founder {
                node_id,
                raft_id,
                name: hello.name.clone(),
                address: hello.address.clone(),
                zone: hello.zone.clone(),
                version: hello.version.clone(),
            },
            None => Founder {
                node_id,
                raft_id,
                name: self.own.name.clone(),
                address: self.own.addresses.data().to_owned(),
                zone: self.own.zone.clone(),
                version: self.own.version.clone(),
            },
        }
    }
}

impl Promised {
    fn address_of(&self, node_id: Uuid) -> &str {
        self.founders.iter().find(|founder| founder.node_id == node_id).map_or("", |founder| &founder.address)
    }

    fn wire_founders(&self) -> Vec<wire::Founder> {
        self.founders.iter().cloned().map(wire::Founder::from).collect()
    }
}

impl From<Promised> for PromiseRequest {
    fn from(promised: Promised) -> Self {
        Self {
            founders: promised.wire_founders(),
            cluster_id: promised.cluster_id.to_string(),
            coordinator: promised.coordinator.to_string(),
        }
    }
}

impl TryFrom<PromiseRequest> for Promised {
    type Error = String;

    fn try_from(request: PromiseRequest) -> Result<Self, String> {
        Ok(Self {
            cluster_id: parse_uuid("cluster_id", &request.cluster_id)?,
            coordinator: parse_uuid("coordinator", &request.coordinator)?,
            founders: request.founders.into_iter().map(Founder::try_from).collect::<Result<_, _>>()?,
        })
    }
}
