//! The attempts at one thing: which node comes next, and after what pause.
//!
//! Each call, producer and consumer holds an [`Attempts`], asks it for a route, and reports how the attempt went.
//!
//! Promise: a redirect is followed at once; after a failure another node is tried and the metadata is refreshed; when that
//! brings no new node, there is a growing pause. At most [`HOPS_MAX`] attempts follow each other without a pause.
//!
//! Stands on `resolver.rs` (the choice) and `backoff.rs` (the pauses). It sends nothing and does not decide whether a request may
//! be repeated; `retry.rs`, consumers and producers do.

use std::time::Duration;

use crate::address::{Address, parse_address};
use crate::backoff::Backoff;
use crate::config::RetryConfig;
use crate::error::{ClientError, ErrorKind};
use crate::resolver::{Resolver, Route, Target};

/// Most attempts in a row without a pause, while redirects and failures lead from node to node.
const HOPS_MAX: u32 = 5;
/// How many times in a row a node may deny a topic or partition that the metadata has. After that the refusal is final.
const DOUBTS_MAX: u32 = 10;

/// Attempts at one thing.
pub(crate) struct Attempts {
    resolver: Resolver,
    target: Target,
    backoff: Backoff,
    /// Nodes that failed since the last success.
    tried: Vec<Address>,
    /// The node that a redirect named for a request that concerns no partition.
    redirected_to: Option<Address>,
    /// The next attempt must go to the leader.
    ask_leader: bool,
    hops: u32,
    doubts: u32,
    turn: usize,
    /// The error of the last attempt that a node answered or refused, if it failed.
    last: Option<ClientError>,
}

impl Attempts {
    pub(crate) fn new(resolver: Resolver, target: Target, retry: RetryConfig) -> Self {
        let turn = resolver.next_turn();
        Self {
            resolver,
            target,
            backoff: Backoff::new(retry),
            tried: Vec::new(),
            redirected_to: None,
            ask_leader: false,
            hops: 0,
            doubts: 0,
            turn,
            last: None,
        }
    }

    /// A node for the next attempt. May wait for metadata; cancellation-safe.
    pub(crate) async fn route(&mut self) -> Route {
        if let Some(address) = self.redirected_to.take() {
            return self.resolver.route_to(&address);
        }
        self.resolver.route(&self.target, &self.tried, self.ask_leader, self.turn).await
    }

    /// An attempt succeeded.
    pub(crate) fn succeeded(&mut self, route: &Route) {
        route.used.note_answer();
        self.resolver.prefer(&route.address);
        self.progressed();
    }

    /// An attempt that is still running made progress.
    pub(crate) fn progressed(&mut self) {
        self.backoff.reset();
        self.tried.clear();
        (self.hops, self.doubts, self.ask_leader, self.last) = (0, 0, false, None);
    }

    /// The error as the caller should treat it. A refusal becomes retryable when the node may just be behind.
    pub(crate) fn judge(&mut self, route: &Route, mut error: ClientError) -> ClientError {
        if error.kind != ErrorKind::Rejected {
            return error.at(&route.address);
        }
        let is_missing = matches!(error.reason.as_str(), "UNKNOWN_TOPIC" | "UNKNOWN_PARTITION");
        let doubtful = match &self.target {
            Target::Any => false,
            // Any other refusal is about the records or their order, not about the node.
            Target::Leader(_) => is_missing && self.doubts < DOUBTS_MAX && self.resolver.may_be_behind(&self.target),
            // The replica is behind the leader, or ahead of it with its retention. Only the leader knows the range of offsets;
            // a reader that believed another replica could skip records.
            Target::Reader(_) if !route.is_authoritative && error.reason == "OFFSET_OUT_OF_RANGE" => true,
            // The node may have lost its replica. When no leader can be reached, the second refusal is final.
            Target::Reader(_) if !route.is_authoritative => self.doubts < 2,
            Target::Reader(_) => is_missing && self.doubts < DOUBTS_MAX && self.resolver.may_be_behind(&self.target),
        };
        if doubtful {
            self.doubts += 1;
            error.kind = ErrorKind::Retryable;
            return error.at(&route.address);
        }
        error
    }

    /// An attempt failed with a retryable error (from [`Self::judge`]). Returns the pause before the next attempt. May wait for
    /// metadata to learn of another node; cancellation-safe.
    pub(crate) async fn failed(&mut self, route: &Route, error: &ClientError) -> Duration {
        let was_leader_asked = std::mem::take(&mut self.ask_leader);
        self.turn = self.turn.wrapping_add(1);
        self.remember(error);
        match &error.kind {
            ErrorKind::Redirect { leader } => {
                let leader = leader.as_deref().filter(|leader| **leader != *route.address);
                match leader.filter(|leader| parse_address(leader).is_ok()).map(Address::from) {
                    Some(leader) => {
                        self.resolver.set_hint(&self.target, &leader);
                        // Only the leader will do, even if connecting to it has just failed.
                        self.ask_leader = true;
                        let is_reachable = !self.resolver.is_avoided(&leader);
                        if matches!(self.target, Target::Any) {
                            self.redirected_to = Some(leader);
                        }
                        if is_reachable && self.hop() {
                            return Duration::ZERO;
                        }
                    }
                    None => self.resolver.clear_hint(&self.target, &route.address),
                }
            }
            ErrorKind::Transport { sent } => {
                self.resolver.clear_hint(&self.target, &route.address);
                // When an open connection to the leader breaks, no other node is a better choice. When it cannot be
                // established, another one is.
                if !sent || !matches!(self.target, Target::Leader(_)) {
                    self.tried.push(route.address.clone());
                }
            }
            _ => {}
        }
        let refused = !matches!(error.kind, ErrorKind::Transport { .. });
        if refused && matches!(self.target, Target::Reader(_)) && !route.is_authoritative && !was_leader_asked {
            self.ask_leader = true;
            if self.hop() {
                return Duration::ZERO;
            }
        }
        if matches!(self.target, Target::Any) {
            if matches!(error.kind, ErrorKind::Transport { .. }) && self.leads_elsewhere(route) && self.hop() {
                return Duration::ZERO;
            }
        } else {
            // When no node answers, the attempt after the pause reports it.
            let _ = self.resolver.refresh_after(route).await;
            if self.leads_elsewhere(route) && self.hop() {
                return Duration::ZERO;
            }
        }
        self.hops = 0;
        if self.tried.len() > 1 {
            // After the pause every node may be tried again, except the one that failed last.
            self.tried.drain(..self.tried.len() - 1);
        }
        self.backoff.pause()
    }

    /// An attempt failed before it had a node. Returns the pause before the next one.
    pub(crate) fn failed_without_node(&mut self, error: &ClientError) -> Duration {
        self.remember(error);
        self.backoff.pause()
    }

    /// The error to return when there is no further attempt. If this attempt timed out and an earlier one had an answer, it is that
    /// answer. Names the leader if it could not be reached.
    pub(crate) fn give_up(&self, route: Option<&Route>, mut error: ClientError) -> ClientError {
        if let Some(last) = self.last.as_ref().filter(|_| is_timeout(&error)) {
            error = ClientError { message: format!("{}; then: {}", last.message, error.message), ..last.clone() };
        }
        if let Some(route) = route
            && let Some((leader, why)) = self.resolver.unreachable_leader(&self.target)
            && leader != route.address
        {
            error.message = format!("{}; cannot reach the leader {leader}: {why}", error.message);
        }
        error
    }

    /// Keeps the error for [`Self::give_up`], unless it is a timeout: that says less than an earlier answer.
    fn remember(&mut self, error: &ClientError) {
        if !is_timeout(error) {
            self.last = Some(error.clone());
        }
    }

    fn hop(&mut self) -> bool {
        self.hops += 1;
        self.hops <= HOPS_MAX
    }

    /// Whether the next attempt would go to another node, and one that has not just failed.
    fn leads_elsewhere(&self, route: &Route) -> bool {
        let next = self.resolver.choose(&self.target, &self.tried, self.ask_leader, self.turn);
        next.address != route.address && !self.resolver.is_avoided(&next.address)
    }
}

fn is_timeout(error: &ClientError) -> bool {
    error.reason == "DEADLINE_EXCEEDED"
}
