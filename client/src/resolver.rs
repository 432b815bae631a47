//! The resolver: chooses the node for each attempt of a request, and decides when to abandon a node that is silent.
//!
//! Appends go to the leader, reads to followers in turn, anything else to a node that answered before. When the best choice
//! is avoided or was tried already, the next best one is taken; there is always one, if only a configured address.
//!
//! Stands on `metadata_cache.rs` (who leads, who is alive) and its channels. It keeps no record of attempts and makes no
//! pauses; `attempts.rs` does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::sleep;
use tonic::transport::Channel;

use crate::address::Address;
use crate::channels::TrackedChannel;
use crate::config::{ClientConfig, ReadFrom};
use crate::error::ClientError;
use crate::metadata::Lookup;
use crate::metadata_cache::{CacheState, MetadataCache};
use crate::record::Partition;

/// What a request is about. Decides which nodes can take it.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// Any node.
    Any,
    /// The leader of the partition.
    Leader(Partition),
    /// A replica of the partition to read from.
    Reader(Partition),
}

impl Target {
    fn partition(&self) -> Option<(&str, i32)> {
        match self {
            Self::Any => None,
            Self::Leader(partition) | Self::Reader(partition) => Some((partition.topic_name(), partition.partition)),
        }
    }
}

/// The node for one attempt.
#[derive(Clone)]
pub(crate) struct Route {
    pub(crate) address: Address,
    pub(crate) used: TrackedChannel,
    /// The node's word about the partition is final: it is the leader, or no better node is known.
    pub(crate) is_authoritative: bool,
    /// The leader and its term as known when the route was chosen.
    leadership: (Option<Address>, u64),
    /// Metadata refreshes that had ended when the route was chosen.
    refreshes: u64,
}

impl Route {
    pub(crate) fn channel(&self) -> Channel {
        self.used.channel.clone()
    }
}

/// Chooses nodes. Clones share one metadata cache.
#[derive(Clone)]
pub(crate) struct Resolver {
    cache: Arc<MetadataCache>,
    turns: Arc<AtomicUsize>,
}

impl Resolver {
    /// # Errors
    /// `INVALID_ARGUMENT` when a configured address is not `HOST:PORT`, or when there is none.
    pub(crate) fn new(config: Arc<ClientConfig>) -> Result<Self, ClientError> {
        Ok(Self { cache: MetadataCache::start(config)?, turns: Arc::default() })
    }

    /// The next turn in the round of followers, so that readers that start together spread over them.
    pub(crate) fn next_turn(&self) -> usize {
        self.turns.fetch_add(1, Ordering::Relaxed)
    }

    /// A node for an attempt; waits for metadata that is missing. `tried`: addresses to avoid when there are others.
    /// `leader`: take the leader even if it is avoided. `turn`: number of the reader's attempt.
    pub(crate) async fn route(&self, target: &Target, tried: &[Address], leader: bool, turn: usize) -> Route {
        match target.partition() {
            Some((topic, partition)) => self.cache.ensure_known(topic, partition).await,
            None => self.cache.note_use(None),
        }
        self.choose(target, tried, leader, turn)
    }

    /// The route to one address, which a node has named for a request that any node can take.
    pub(crate) fn route_to(&self, address: &Address) -> Route {
        let refreshes = self.cache.state().refreshes;
        let used = self.cache.channels().get(address);
        Route { address: address.clone(), used, is_authoritative: true, leadership: (None, 0), refreshes }
    }

    /// As [`Self::route`], with the metadata at hand.
    pub(crate) fn choose(&self, target: &Target, tried: &[Address], leader: bool, turn: usize) -> Route {
        let channels = self.cache.channels();
        let state = self.cache.state();
        let (leadership, readers) = match target.partition().filter(|_| !state.is_unsupported) {
            None => ((None, 0), Vec::new()),
            Some((topic, partition)) => {
                let reads = matches!(target, Target::Reader(_)) && self.cache.config().read_from == ReadFrom::Followers;
                let mut readers =
                    if reads && !leader { state.metadata.followers(topic, partition) } else { Vec::new() };
                let count = readers.len().max(1);
                readers.rotate_left(turn % count);
                (state.metadata.leadership(topic, partition), readers)
            }
        };
        let known_leader = leadership.0.as_ref();
        let is_good = |address: &Address| !tried.contains(address) && !channels.is_avoided(address);
        let may_take_leader = |address: &Address| leader || is_good(address);
        let address = readers
            .into_iter()
            .find(is_good)
            .or_else(|| known_leader.cloned().filter(may_take_leader))
            .unwrap_or_else(|| self.fallback(&state, tried, known_leader));
        let (refreshes, is_alone) = (state.refreshes, state.metadata.node_count() <= 1);
        drop(state);
        // The only node, perhaps at another address than its advertised one; or no leader is known.
        let is_authoritative = is_alone || known_leader.is_none_or(|leader| *leader == address);
        Route { used: channels.get(&address), address, is_authoritative, leadership, refreshes }
    }

    /// Any node: one that answered before, a configured address, or a known node.
    fn fallback(&self, state: &CacheState, tried: &[Address], leader: Option<&Address>) -> Address {
        let choices = self.cache.choices(state);
        let is_new = |address: &&Address| !tried.contains(address);
        let good = choices.iter().find(|address| is_new(address) && !self.cache.channels().is_avoided(address));
        let new = || choices.iter().find(is_new);
        good.or_else(new).or(leader).unwrap_or(&self.cache.bootstrap()[0]).clone()
    }

    /// A node's redirect named this leader.
    pub(crate) fn set_hint(&self, target: &Target, leader: &Address) {
        if let Some((topic, partition)) = target.partition() {
            self.cache.state().metadata.set_hint(topic, partition, leader);
            // Other partitions that the old leader had may have moved too.
            self.cache.want_refresh();
        }
    }

    /// The node at this address is not the leader, or does not answer.
    pub(crate) fn clear_hint(&self, target: &Target, address: &str) {
        if let Some((topic, partition)) = target.partition() {
            self.cache.state().metadata.clear_hint(topic, partition, address);
        }
    }

    /// The node at this address answered a request: it becomes the first choice where any node will do.
    pub(crate) fn prefer(&self, address: &Address) {
        let mut state = self.cache.state();
        if state.preferred.as_ref() != Some(address) {
            state.preferred = Some(address.clone());
        }
    }

    /// The silence after which a node is suspected to be down.
    pub(crate) fn suspect_after(&self) -> Duration {
        self.cache.config().suspect_after
    }

    /// Whether more than one address is known.
    pub(crate) fn has_choice(&self) -> bool {
        self.cache.bootstrap().len() > 1 || self.cache.state().metadata.node_count() > 1
    }

    pub(crate) fn is_avoided(&self, address: &str) -> bool {
        self.cache.channels().is_avoided(address)
    }

    /// Whether the metadata has the partition and more than one node. Then a node that does not know the partition may just be
    /// behind.
    pub(crate) fn may_be_behind(&self, target: &Target) -> bool {
        let state = self.cache.state();
        !state.is_unsupported
            && state.metadata.node_count() > 1
            && target.partition().is_some_and(|(topic, n)| state.metadata.lookup(topic, n) == Lookup::Known)
    }

    /// The known leader and why connecting to it failed.
    pub(crate) fn unreachable_leader(&self, target: &Target) -> Option<(Address, String)> {
        let (topic, partition) = target.partition()?;
        let leader = self.cache.state().metadata.leader(topic, partition)?.clone();
        self.cache.channels().failure(&leader).map(|why| (leader, why))
    }

    /// Asks another node about one that leaves a request unanswered. True: abandon the route, because another node leads now, or
    /// (for a reader) because the node is not alive or lost its replica.
    ///
    /// `silence`: how long the node has been silent. Metadata that was refreshed in the second half of that time is used as it is.
    pub(crate) async fn is_superseded(&self, target: &Target, route: &Route, silence: Duration) -> bool {
        let Some((topic, partition)) = target.partition() else { return false };
        // An open stream uses the topic too.
        self.cache.note_use(Some(topic));
        let (is_unsupported, refreshes, fresh) = {
            let state = self.cache.state();
            let fresh = state.refreshed.is_some_and(|at| at.elapsed() < silence / 2);
            (state.is_unsupported, state.refreshes, fresh)
        };
        if is_unsupported {
            return false;
        }
        if !fresh {
            if self.cache.is_only_choice(&route.address) {
                // The suspect's own connection is silent. If the address is a service, a new one may lead to another node.
                self.cache.channels().renew(&route.address);
            }
            if self.cache.refresh(refreshes, Some(&route.address)).await.is_err() {
                return false;
            }
        }
        let state = self.cache.state();
        let metadata = &state.metadata;
        let superseded = if matches!(target, Target::Leader(_)) {
            let leadership = metadata.leadership(topic, partition);
            let is_elsewhere = leadership.0.as_ref().is_some_and(|leader| *leader != route.address);
            is_elsewhere && leadership != route.leadership
        } else {
            let is_replica = metadata.is_replica(topic, partition, &route.address);
            metadata.is_alive(&route.address).is_some_and(|alive| !alive || !is_replica)
        };
        drop(state);
        if superseded {
            self.cache.channels().renew(&route.address);
        }
        superseded
    }

    /// Waits until a silent node should be abandoned; for ever when it should not. Checks once per `silence`.
    pub(crate) async fn until_superseded(&self, target: &Target, route: &Route, silence: Duration) {
        if matches!(target, Target::Any) {
            return std::future::pending().await;
        }
        loop {
            sleep(silence).await;
            if self.is_superseded(target, route, silence).await {
                return;
            }
        }
    }

    /// Refreshes the metadata, unless a refresh has ended since the route was chosen. Asks the route's node last.
    pub(crate) async fn refresh_after(&self, route: &Route) -> Result<(), ClientError> {
        self.cache.refresh(route.refreshes, Some(&route.address)).await
    }
}
