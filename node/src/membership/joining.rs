//! Joins a cluster: asks its nodes to admit this node.

use std::collections::VecDeque;
use std::time::Duration;

use chronicle_proto::internal::{JoinRequest, JoinResponse};
use tokio::time::timeout;
use uuid::Uuid;

use super::durable_state::parse_optional_uuid;
use super::round::Round;
use super::{Founder, Identity, Membership, MembershipError, PROTOCOL, PeerError};

/// Addresses that are asked in one round, redirects counted.
const ASKED_MAX: usize = 6;

/// Longest wait for the answer to `Join`: admitting a node is a command that the controller group must commit.
const JOIN_TIMEOUT: Duration = Duration::from_secs(5);

impl Membership {
    /// Enters the cluster that other nodes are members of: as its founder, when this node holds a promise for it,
    /// otherwise by `Join`. Returns what the node waits for.
    pub(super) async fn enter(&self, cluster_id: Uuid, round: &Round) -> Result<String, MembershipError> {
        if let Some(promised) = self.state.promised() {
            if promised.cluster_id == cluster_id {
                return self.found_self(&promised).await;
            }
            // A cluster exists, so this node's promise must not help to bootstrap another one.
            self.state.change(super::Remembered::forget).await.map_err(MembershipError::Memory)?;
        }
        let members = round.peers.values().filter(|peer| peer.cluster == Some(cluster_id));
        let leaders = members.clone().map(|peer| peer.hello.controller_leader.clone()).filter(|at| !at.is_empty());
        let mut to_ask: VecDeque<String> = leaders.chain(members.map(|peer| peer.reached_at.clone())).collect();
        let greeted = to_ask.back().cloned().unwrap_or_default();
        let mut asked = Vec::new();
        let mut failure = String::new();
        while let Some(address) = to_ask.pop_front() {
            if asked.contains(&address) {
                continue;
            }
            if asked.len() == ASKED_MAX {
                break;
            }
            match self.ask_to_join(&address).await {
                Ok(response) if response.raft_id == 0 && !response.leader.is_empty() => {
                    failure = format!("{address} redirects to the leader {}", response.leader);
                    to_ask.push_front(response.leader);
                }
                Ok(response) => match self.accept(cluster_id, &greeted, &address, response).await? {
                    Ok(joined) => return Ok(joined),
                    Err(useless) => failure = format!("{address}: {useless}"),
                },
                Err(PeerError::Refused(reason, message)) => {
                    return Err(MembershipError::Join { cluster_id, address, reason, message });
                }
                Err(PeerError::Unavailable(why)) => failure = format!("{address}: {why}"),
            }
            asked.push(address);
        }
        Ok(format!("waiting to join cluster {cluster_id}: {failure}"))
    }

    async fn ask_to_join(&self, address: &str) -> Result<JoinResponse, PeerError> {
        let own = &self.own;
        let request = JoinRequest {
            node_id: own.node_id.to_string(),
            name: own.name.clone(),
            address: own.addresses.data().to_owned(),
            addresses: own.addresses.to_message(),
            zone: own.zone.clone(),
            version: own.version.clone(),
            protocol: PROTOCOL,
            cluster_id: String::new(),
            boot: own.start.boot,
            generation: own.start.number,
            lineage: own.start.lineage,
        };
        let late = |_| PeerError::Unavailable(format!("no answer within {} ms", JOIN_TIMEOUT.as_millis()));
        timeout(JOIN_TIMEOUT, self.peers.join(address, request)).await.map_err(late)?
    }

    /// Stores the membership that the answer contains. The inner error: the answer is malformed, or admits no node yet.
    async fn accept(
        &self,
        cluster_id: Uuid,
        greeted: &str,
        address: &str,
        response: JoinResponse,
    ) -> Result<Result<String, String>, MembershipError> {
        let given = match parse_optional_uuid("cluster_id", &response.cluster_id) {
            Ok(Some(given)) => given,
            Ok(None) => return Ok(Err("the node knows no controller leader".into())),
            Err(malformed) => return Ok(Err(malformed)),
        };
        if given != cluster_id {
            return Err(MembershipError::TwoClusters {
                first: cluster_id,
                first_address: greeted.to_owned(),
                second: given,
                second_address: address.to_owned(),
            });
        }
        let members: Result<Vec<_>, _> = response.members.into_iter().map(Founder::try_from).collect();
        let members = match members {
            Ok(members) if response.raft_id > 0 => members,
            Ok(_) => return Ok(Err("the answer has no raft id".into())),
            Err(malformed) => return Ok(Err(malformed)),
        };
        let identity = Identity { cluster_id, raft_id: response.raft_id };
        self.state
            .change(|memory| memory.join(identity, members, &self.own.name))
            .await
            .map_err(MembershipError::Memory)?;
        Ok(Ok(format!("joined cluster {cluster_id}")))
    }
}
