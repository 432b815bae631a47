//! The loop that a node without a cluster runs.

use std::time::Duration;

use rand::Rng;

use super::durable_state::{Origin, OwnCluster};
use super::round::{Failed, Round, Sightings};
use super::{Membership, MembershipError, MembershipOutcome};

/// Pause between rounds in milliseconds while nothing changes and no new node calls `Hello`; random, so that nodes do
/// not run in step.
const PAUSE_MS: std::ops::RangeInclusive<u64> = 100..=300;

/// Pause after a round whose result differs from the previous one: other nodes have to see the same state soon.
const BUSY_PAUSE_MS: std::ops::RangeInclusive<u64> = 10..=30;

impl Membership {
    /// Runs until this node is a member of a cluster. Call it once, when `hello`, `promise` and `found` are being
    /// answered.
    ///
    /// Safe to drop at any time; promises that were made until then stay stored.
    ///
    /// # Errors
    /// When the node cannot become a member, which needs an operator.
    pub async fn establish(&self) -> Result<MembershipOutcome, MembershipError> {
        if let Some(OwnCluster { identity, origin }) = self.state.own_cluster() {
            self.say(format!("member of cluster {} as node {}", identity.cluster_id, identity.raft_id));
            return Ok(MembershipOutcome::Member { identity, origin });
        }
        let mut sightings = Sightings::new();
        let OwnCluster { identity, origin } = loop {
            let waiting = self.round(&mut sightings).await?;
            if let Some(own) = self.state.own_cluster() {
                break own;
            }
            let changed = self.say(waiting);
            self.unless_placed(self.pause(changed)).await;
        };
        let (cluster, node) = (identity.cluster_id, identity.raft_id);
        Ok(match origin {
            Origin::Founded(founders) => {
                self.say(format!("bootstrapped cluster {cluster} as node {node} of {}", founders.len()));
                MembershipOutcome::Founded { identity, founders }
            }
            Origin::Joined(members) => {
                self.say(format!("joined cluster {cluster} as node {node}"));
                MembershipOutcome::Joined { identity, members }
            }
        })
    }

    async fn pause(&self, busy: bool) {
        let (short, long) = {
            let mut jitter = self.jitter.lock();
            (jitter.random_range(BUSY_PAUSE_MS), jitter.random_range(PAUSE_MS))
        };
        tokio::time::sleep(Duration::from_millis(short)).await;
        if !busy {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(long - short)) => {}
                () = self.stranger.notified() => {}
            }
        }
    }

    /// Waits for the future, or until a message has made this node a member. Only for futures that are safe to drop.
    async fn unless_placed<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        let mut identity = self.state.identity();
        tokio::select! {
            done = wait => Some(done),
            _ = identity.wait_for(Option::is_some) => None,
        }
    }

    /// Runs one round. Returns what the node waits for.
    async fn round(&self, sightings: &mut Sightings) -> Result<String, MembershipError> {
        // A peer may have answered before a promise that arrives during the round, so the round contains no information
        // about such a promise.
        let held = self.state.promised();
        let round = if held.is_none() && self.own.bootstrap_expect == 1 && !self.own.seeded {
            Round::default()
        } else {
            match self.unless_placed(self.look_around()).await {
                Some(Ok(round)) => round,
                Some(Err(Failed::Refused(refused))) => return Err(refused),
                Some(Err(Failed::Discovery(error))) => {
                    return Ok(format!("waiting for addresses of other nodes: {error}"));
                }
                None => return Ok("another founder has bootstrapped the cluster".into()),
            }
        };
        let cluster = round.cluster()?;
        let heard = self.state.look(|shown| {
            let without = round.peers.iter().filter(|(_, peer)| peer.cluster.is_none());
            shown.seen = without.map(|(node_id, _)| *node_id).chain([self.own.node_id]).collect();
            shown.in_sight = cluster;
            shown.heard.clone()
        });
        sightings.note(&round, held.as_ref(), &heard);
        if let Some(cluster) = cluster {
            return self.enter(cluster, &round).await;
        }
        match (held, self.state.promised()) {
            (None, None) => self.propose(&round, sightings).await,
            (Some(held), Some(now)) if held == now => self.keep(&held, &round, sightings).await,
            _ => Ok("a proposal has just arrived".into()),
        }
    }
}
