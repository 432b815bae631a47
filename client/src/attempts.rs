//! The way from one attempt to the next: which node, and after what pause.
//!
//! Calls, producers and consumers each hold an [`Attempts`]: they ask it for a route, and tell it how the attempt went. It
//! follows redirects at once, turns to another node when one fails, has the resolver ask the cluster again, and pauses when
//! that leads nowhere new.

use std::time::Duration;

use crate::config::RetryConfig;
use crate::error::{ClientError, ErrorKind};
use crate::nodes::{Address, check_address};
use crate::resolver::{Resolver, Route, Target};
use crate::retry::Backoff;

/// Attempts in a row without a pause between them, as redirects and failures lead from node to node.
const HOPS_MAX: u32 = 5;
/// Refusals in a row of a topic or partition that the cluster is known to have: after these they are believed.
const DOUBTS_MAX: u32 = 10;

/// Attempts at one thing.
pub(crate) struct Attempts {
    resolver: Resolver,
    target: Target,
    backoff: Backoff,
    /// Nodes that failed since the last success.
    tried: Vec<Address>,
    /// Where a node sent a request that concerns no partition.
    named: Option<Address>,
    /// The leader itself must be asked next.
    ask_leader: bool,
    hops: u32,
    doubts: u32,
    turn: usize,
    /// What the last attempt came to that was answered, if it failed.
    last: Option<ClientError>,
}

impl Attempts {
    pub(crate) fn new(resolver: Resolver, target: Target, retry: RetryConfig) -> Self {
        let turn = resolver.turn();
        Self {
            resolver,
            target,
            backoff: Backoff::new(retry),
            tried: Vec::new(),
            named: None,
            ask_leader: false,
            hops: 0,
            doubts: 0,
            turn,
            last: None,
        }
    }

    /// A node for the next attempt. May wait for metadata; cancellation-safe.
    pub(crate) async fn route(&mut self) -> Route {
        if let Some(address) = self.named.take() {
            return self.resolver.route_to(&address);
        }
        self.resolver.route(&self.target, &self.tried, self.ask_leader, self.turn).await
    }

    /// An attempt succeeded.
    pub(crate) fn succeeded(&mut self, route: &Route) {
        route.node.answered();
        self.resolver.favour(&route.address);
        self.progressed();
    }

    /// Something came of an attempt that goes on.
    pub(crate) fn progressed(&mut self) {
        self.backoff.reset();
        self.tried.clear();
        (self.hops, self.doubts, self.ask_leader, self.last) = (0, 0, false, None);
    }

    /// The error as it should be taken: one that may only say that the node is behind becomes retryable.
    pub(crate) fn judge(&mut self, route: &Route, mut error: ClientError) -> ClientError {
        if error.kind != ErrorKind::Rejected {
            return error.at(&route.address);
        }
        let is_missing = matches!(error.reason.as_str(), "UNKNOWN_TOPIC" | "UNKNOWN_PARTITION");
        let doubtful = match &self.target {
            Target::Any => false,
            // The records or the order of them are at fault, not the node.
            Target::Leader(_) => is_missing && self.doubts < DOUBTS_MAX && self.resolver.may_be_behind(&self.target),
            // Behind the leader, or ahead of it with its retention: the end and the beginning are the leader's to tell, and
            // who believed them of anybody else could skip records.
            Target::Reader(_) if !route.is_authority && error.reason == "OFFSET_OUT_OF_RANGE" => true,
            // It may not have the replica any more. Without a leader that can be reached, the second answer is believed.
            Target::Reader(_) if !route.is_authority => self.doubts < 2,
            Target::Reader(_) => is_missing && self.doubts < DOUBTS_MAX && self.resolver.may_be_behind(&self.target),
        };
        if doubtful {
            self.doubts += 1;
            error.kind = ErrorKind::Retryable;
            return error.at(&route.address);
        }
        error
    }

    /// An attempt failed with an error that asks for another (as [`Self::judge`] gave it). Gives the pause before it. Waits
    /// for metadata where another node may be known by then; cancellation-safe.
    pub(crate) async fn failed(&mut self, route: &Route, error: &ClientError) -> Duration {
        let was_leader_asked = std::mem::take(&mut self.ask_leader);
        self.turn = self.turn.wrapping_add(1);
        self.remember(error);
        match &error.kind {
            ErrorKind::Redirect { leader } => {
                let leader = leader.as_deref().filter(|leader| **leader != *route.address);
                match leader.filter(|leader| check_address(leader).is_ok()).map(Address::from) {
                    Some(leader) => {
                        self.resolver.hint(&self.target, &leader);
                        // Nobody but the leader will do, even if he was hard to reach just now.
                        self.ask_leader = true;
                        let is_reachable = !self.resolver.is_passed_over(&leader);
                        if matches!(self.target, Target::Any) {
                            self.named = Some(leader);
                        }
                        if is_reachable && self.hop() {
                            return Duration::ZERO;
                        }
                    }
                    None => self.resolver.unhint(&self.target, &route.address),
                }
            }
            ErrorKind::Transport { sent } => {
                self.resolver.unhint(&self.target, &route.address);
                // A broken connection to the leader does not make another node better; one that cannot be had does.
                if !sent || !matches!(self.target, Target::Leader(_)) {
                    self.tried.push(route.address.clone());
                }
            }
            _ => {}
        }
        let refused = !matches!(error.kind, ErrorKind::Transport { .. });
        if refused && matches!(self.target, Target::Reader(_)) && !route.is_authority && !was_leader_asked {
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
            // When nobody answers, the attempt after the pause finds that out again.
            let _ = self.resolver.refresh(route.refreshes, Some(&route.address)).await;
            if self.leads_elsewhere(route) && self.hop() {
                return Duration::ZERO;
            }
        }
        self.hops = 0;
        if self.tried.len() > 1 {
            // Everybody gets another chance after the pause, but for the last.
            self.tried.drain(..self.tried.len() - 1);
        }
        self.backoff.pause()
    }

    /// An attempt failed that concerned no node in particular. Gives the pause before the next one.
    pub(crate) fn failed_nowhere(&mut self, error: &ClientError) -> Duration {
        self.remember(error);
        self.backoff.pause()
    }

    /// What to say when there will be no further attempt: the error, or the one of an earlier attempt if this one had no
    /// answer, and who could not be reached.
    pub(crate) fn give_up(&self, route: Option<&Route>, mut error: ClientError) -> ClientError {
        if let Some(last) = self.last.as_ref().filter(|_| is_unanswered(&error)) {
            error = ClientError { message: format!("{}; after that: {}", last.message, error.message), ..last.clone() };
        }
        if let Some(route) = route
            && let Some((leader, why)) = self.resolver.unreachable_leader(&self.target)
            && leader != route.address
        {
            error.message = format!("{}; the leader {leader} could not be reached: {why}", error.message);
        }
        error
    }

    /// That an attempt had no answer in time says less than what an earlier one was told.
    fn remember(&mut self, error: &ClientError) {
        if !is_unanswered(error) {
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
        next.address != route.address && !self.resolver.is_passed_over(&next.address)
    }
}

fn is_unanswered(error: &ClientError) -> bool {
    error.reason == "DEADLINE_EXCEEDED"
}
