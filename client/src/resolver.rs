//! Which node a request goes to.
//!
//! The resolver learns nodes and partitions by `Cluster.GetMetadata`, for the topics in use only: when a topic is used first,
//! when an attempt went wrong (`attempts.rs` says so), and every `metadata_max_age` while it is used. One refresh is in
//! flight for everybody, and refreshes keep a distance. A cluster whose nodes do not know the call is used through the
//! configured addresses alone.
//!
//! Invariants:
//! - A refresh asks several nodes, the next one when the last has failed or lets wait, and takes the first answer: one silent
//!   node delays nobody for long.
//! - The configured addresses are a choice at all times, because those that nodes advertise may not be reachable from here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use chronicle_proto::v1;
use chronicle_proto::v1::cluster_client::ClusterClient;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::Code;
use tonic::transport::Channel;

use crate::config::{ClientConfig, ReadFrom};
use crate::error::{ClientError, ErrorKind};
use crate::metadata::{Lookup, Metadata};
use crate::nodes::{Address, Nodes, Use, check_address};
use crate::record::Partition;

/// While one node lets a refresh wait this long, the next is asked too.
const HEDGE_AFTER: Duration = Duration::from_millis(200);
/// Distance between refreshes; doubled with each one that fails, up to the maximum.
const DISTANCE_MIN: Duration = Duration::from_millis(20);
const DISTANCE_MAX: Duration = Duration::from_secs(1);
/// A topic that was not used for this many times `metadata_max_age` is no longer asked for.
const TOPIC_IDLE_AGES: u32 = 10;
/// A new topic may be known to one node and not yet to another: how often others are asked, and how long between.
const MISSING_ASKS: u32 = 3;
const MISSING_PAUSE: Duration = Duration::from_millis(30);

/// What a request is about: decides which nodes can take it.
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

/// A node for one attempt.
#[derive(Clone)]
pub(crate) struct Route {
    pub(crate) address: Address,
    pub(crate) node: Use,
    /// What this node says about the partition is final: it leads, or nothing better is known.
    pub(crate) is_authority: bool,
    /// Who was believed to lead when the route was chosen, and in which term.
    leadership: (Option<Address>, u64),
    /// Refreshes ended before the route was chosen.
    pub(crate) refreshes: u64,
}

impl Route {
    pub(crate) fn channel(&self) -> Channel {
        self.node.channel.clone()
    }
}

/// Chooses nodes. Clones share what they know.
#[derive(Clone)]
pub(crate) struct Resolver {
    shared: Arc<Shared>,
}

struct Shared {
    config: Arc<ClientConfig>,
    bootstrap: Vec<Address>,
    nodes: Nodes,
    state: Mutex<State>,
    /// Held by the one refresh in flight.
    refreshing: tokio::sync::Mutex<Pace>,
    /// What is known is old: asks the background task for a refresh.
    wanted: Arc<Notify>,
    turns: AtomicUsize,
    background: Mutex<Option<AbortHandle>>,
}

#[derive(Default)]
struct State {
    metadata: Metadata,
    /// Topics in use, and when they were last.
    used: HashMap<String, Instant>,
    /// Refreshes that ended, well or not.
    refreshes: u64,
    refreshed: Option<Instant>,
    /// The nodes do not know GetMetadata.
    is_older: bool,
    /// A node that answered: the first choice when any will do.
    favourite: Option<Address>,
}

/// Keeps refreshes at a distance.
#[derive(Default)]
struct Pace {
    ended: Option<Instant>,
    distance: Duration,
    last_failure: Option<ClientError>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(task) = self.background.get_mut().take() {
            task.abort();
        }
    }
}

impl Resolver {
    pub(crate) fn new(config: Arc<ClientConfig>) -> Result<Self, ClientError> {
        let mut bootstrap: Vec<Address> = Vec::new();
        for server in &config.servers {
            check_address(server)?;
            if !bootstrap.iter().any(|known| **known == **server) {
                bootstrap.push(server.as_str().into());
            }
        }
        if bootstrap.is_empty() {
            return Err(ClientError::invalid("servers", "none", "must be one HOST:PORT or more"));
        }
        let shared = Arc::new(Shared {
            nodes: Nodes::new(config.clone()),
            config,
            bootstrap,
            state: Mutex::default(),
            refreshing: tokio::sync::Mutex::default(),
            wanted: Arc::default(),
            turns: AtomicUsize::new(0),
            background: Mutex::default(),
        });
        let task = tokio::spawn(refresh_when_wanted(Arc::downgrade(&shared), shared.wanted.clone()));
        *shared.background.lock() = Some(task.abort_handle());
        Ok(Self { shared })
    }

    /// The next turn in the round of followers: readers that begin together spread out.
    pub(crate) fn turn(&self) -> usize {
        self.shared.turns.fetch_add(1, Ordering::Relaxed)
    }

    /// A node for an attempt. `tried`: addresses to pass over when there are others. `leader`: ask the leader itself, however
    /// hard it is to reach. `turn`: number of the reader's attempt.
    pub(crate) async fn route(&self, target: &Target, tried: &[Address], leader: bool, turn: usize) -> Route {
        if let Some((topic, partition)) = target.partition() {
            self.learn(topic, partition).await;
        } else {
            self.note_use(None);
        }
        self.choose(target, tried, leader, turn)
    }

    /// The route to one address, which a node has named for a request that any node may get.
    pub(crate) fn route_to(&self, address: &Address) -> Route {
        let refreshes = self.shared.state.lock().refreshes;
        let node = self.shared.nodes.get(address);
        Route { address: address.clone(), node, is_authority: true, leadership: (None, 0), refreshes }
    }

    /// Makes sure that the partition was asked for.
    async fn learn(&self, topic: &str, partition: i32) {
        self.note_use(Some(topic));
        for ask in 0.. {
            let (lookup, refreshes, nodes) = {
                let state = self.shared.state.lock();
                if state.is_older {
                    return;
                }
                (state.metadata.lookup(topic, partition), state.refreshes, state.metadata.size())
            };
            let mut not_first = None;
            match lookup {
                Lookup::Known => return,
                Lookup::NotAsked if ask == 0 => {}
                Lookup::Missing if ask == 0 || (ask < MISSING_ASKS && nodes > 1) => {
                    if ask > 0 {
                        sleep(MISSING_PAUSE).await;
                    }
                    // The node that answered last is the one that does not know: another comes first.
                    not_first = self.shared.state.lock().favourite.take();
                }
                _ => return,
            }
            if self.refresh(refreshes, not_first.as_ref()).await.is_err() {
                return;
            }
        }
    }

    fn note_use(&self, topic: Option<&str>) {
        let now = Instant::now();
        let mut state = self.shared.state.lock();
        if let Some(topic) = topic {
            match state.used.get_mut(topic) {
                Some(used) => *used = now,
                None => drop(state.used.insert(topic.to_owned(), now)),
            }
        }
        let max_age = self.shared.config.metadata_max_age;
        if state.refreshed.is_none_or(|refreshed| now >= refreshed + max_age) {
            self.shared.wanted.notify_one();
        }
    }

    /// As [`Self::route`], by what is known.
    pub(crate) fn choose(&self, target: &Target, tried: &[Address], leader: bool, turn: usize) -> Route {
        let shared = &self.shared;
        let state = shared.state.lock();
        let (leadership, readers) = match target.partition().filter(|_| !state.is_older) {
            None => ((None, 0), Vec::new()),
            Some((topic, partition)) => {
                let reads = matches!(target, Target::Reader(_)) && shared.config.read_from == ReadFrom::Followers;
                let mut readers =
                    if reads && !leader { state.metadata.followers(topic, partition) } else { Vec::new() };
                let count = readers.len().max(1);
                readers.rotate_left(turn % count);
                (state.metadata.leadership(topic, partition), readers)
            }
        };
        let believed = leadership.0.as_ref();
        let is_good = |address: &Address| !tried.contains(address) && !shared.nodes.is_passed_over(address);
        let leads = |address: &Address| leader || is_good(address);
        let address = readers
            .into_iter()
            .find(is_good)
            .or_else(|| believed.cloned().filter(leads))
            .unwrap_or_else(|| self.fallback(&state, tried, believed));
        let (refreshes, is_alone) = (state.refreshes, state.metadata.size() <= 1);
        drop(state);
        // The only node, perhaps under another address than its own; or nothing better is known.
        let is_authority = is_alone || believed.is_none_or(|leader| *leader == address);
        Route { node: shared.nodes.get(&address), address, is_authority, leadership, refreshes }
    }

    /// Any node: one that answered before, a configured address, or one that is known.
    fn fallback(&self, state: &State, tried: &[Address], leader: Option<&Address>) -> Address {
        let choices = self.shared.choices(state);
        let nodes = &self.shared.nodes;
        let is_new = |address: &&Address| !tried.contains(address);
        let good = choices.iter().find(|address| is_new(address) && !nodes.is_passed_over(address));
        let new = || choices.iter().find(is_new);
        good.or_else(new).or(leader).unwrap_or(&self.shared.bootstrap[0]).clone()
    }

    /// A node said who leads.
    pub(crate) fn hint(&self, target: &Target, leader: &Address) {
        if let Some((topic, partition)) = target.partition() {
            self.shared.state.lock().metadata.hint(topic, partition, leader);
            // What else it led may have moved too.
            self.shared.wanted.notify_one();
        }
    }

    /// The node at this address does not lead, or does not answer.
    pub(crate) fn unhint(&self, target: &Target, address: &str) {
        if let Some((topic, partition)) = target.partition() {
            self.shared.state.lock().metadata.unhint(topic, partition, address);
        }
    }

    /// The node at this address answered a request.
    pub(crate) fn favour(&self, address: &Address) {
        let mut state = self.shared.state.lock();
        if state.favourite.as_ref() != Some(address) {
            state.favourite = Some(address.clone());
        }
    }

    /// After this silence a node is suspected.
    pub(crate) fn suspect_after(&self) -> Duration {
        self.shared.config.suspect_after
    }

    /// Whether there is more than one address to ask.
    pub(crate) fn has_choice(&self) -> bool {
        self.shared.bootstrap.len() > 1 || self.shared.state.lock().metadata.size() > 1
    }

    pub(crate) fn is_passed_over(&self, address: &str) -> bool {
        self.shared.nodes.is_passed_over(address)
    }

    /// Whether the cluster, as last heard, has the partition and more than one node, so that one node that says otherwise may
    /// just be behind.
    pub(crate) fn may_be_behind(&self, target: &Target) -> bool {
        let state = self.shared.state.lock();
        !state.is_older
            && state.metadata.size() > 1
            && target.partition().is_some_and(|(topic, n)| state.metadata.lookup(topic, n) == Lookup::Known)
    }

    /// The believed leader and why it could not be connected to.
    pub(crate) fn unreachable_leader(&self, target: &Target) -> Option<(Address, String)> {
        let (topic, partition) = target.partition()?;
        let leader = self.shared.state.lock().metadata.leader(topic, partition)?.clone();
        self.shared.nodes.failure(&leader).map(|why| (leader, why))
    }

    /// One round of suspicion about a node that lets a request wait: asks another node, and says whether the route should be
    /// given up, because somebody else leads now, or (for a reader) because the node is not alive or lost its replica.
    ///
    /// `silence`: how long the node has been silent; what was heard in the second half of that is fresh enough.
    pub(crate) async fn is_superseded(&self, target: &Target, route: &Route, silence: Duration) -> bool {
        let Some((topic, partition)) = target.partition() else { return false };
        // A stream that is open uses the topic too.
        self.note_use(Some(topic));
        let (is_older, refreshes, fresh) = {
            let state = self.shared.state.lock();
            let fresh = state.refreshed.is_some_and(|at| at.elapsed() < silence / 2);
            (state.is_older, state.refreshes, fresh)
        };
        if is_older {
            return false;
        }
        if !fresh {
            if self.shared.is_only_choice(&route.address) {
                // Its connection is the one that is silent; behind a service, another may lead to another node.
                self.shared.nodes.renew(&route.address);
            }
            if self.refresh(refreshes, Some(&route.address)).await.is_err() {
                return false;
            }
        }
        let state = self.shared.state.lock();
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
            self.shared.nodes.renew(&route.address);
        }
        superseded
    }

    /// Waits until a node that lets a request wait should be given up; for ever when it should not. Looks each time that it
    /// was silent for so long.
    pub(crate) async fn superseded(&self, target: &Target, route: &Route, silence: Duration) {
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

    /// Asks the cluster again, unless somebody has since `seen` refreshes had ended. `not_first`: an address that is asked
    /// last, for it is suspected.
    pub(crate) async fn refresh(&self, seen: u64, not_first: Option<&Address>) -> Result<(), ClientError> {
        self.shared.refresh(seen, not_first).await
    }
}

impl Shared {
    /// Every address, the likeliest to answer first.
    fn choices(&self, state: &State) -> Vec<Address> {
        let known = state.metadata.addresses();
        let mut choices: Vec<Address> = Vec::with_capacity(known.len() + self.bootstrap.len() + 1);
        let dead = |address: &Address| state.metadata.is_alive(address) == Some(false);
        for address in state.favourite.iter().chain(&self.bootstrap).chain(&known) {
            if !choices.contains(address) {
                choices.push(address.clone());
            }
        }
        choices.sort_by_key(|address| (dead(address), self.nodes.is_passed_over(address)));
        choices
    }

    fn is_only_choice(&self, address: &Address) -> bool {
        let known = self.state.lock().metadata.addresses();
        self.bootstrap.iter().chain(&known).all(|choice| choice == address)
    }

    /// Cancellation-safe: whoever waits next takes over.
    async fn refresh(self: &Arc<Self>, seen: u64, not_first: Option<&Address>) -> Result<(), ClientError> {
        let mut pace = self.refreshing.lock().await;
        {
            let state = self.state.lock();
            if state.refreshes > seen {
                return pace.last_failure.clone().map_or(Ok(()), Err);
            }
            // Nodes that do not know the question need not be asked at every failure, only now and then.
            if state.is_older && state.refreshed.is_some_and(|at| at.elapsed() < self.config.metadata_max_age) {
                return Ok(());
            }
        }
        if let Some(ended) = pace.ended {
            sleep_until(ended + pace.distance).await;
        }
        let topics = self.topics();
        let limit = self.config.connect_timeout.max(self.config.suspect_after);
        let answer = timeout(limit, self.ask(topics, not_first)).await.unwrap_or_else(|_| {
            let why = format!("no node said within {} ms where partitions are", limit.as_millis());
            Err(ClientError::new(ErrorKind::Transport { sent: false }, "DEADLINE_EXCEEDED", why))
        });
        let now = Instant::now();
        let mut state = self.state.lock();
        state.refreshes += 1;
        pace.ended = Some(now);
        match answer {
            Ok(answer) => {
                pace.distance = DISTANCE_MIN;
                pace.last_failure = None;
                state.refreshed = Some(now);
                state.is_older = answer.is_none();
                if let Some((from, answer)) = answer {
                    state.favourite.get_or_insert(from);
                    let risen = state.metadata.merge(answer);
                    risen.iter().for_each(|address| self.nodes.forgive(address));
                    let is_used = |address: &str| {
                        self.bootstrap.iter().any(|seed| **seed == *address)
                            || state.metadata.is_alive(address).is_some()
                            || state.metadata.is_hinted(address)
                    };
                    self.nodes.retain(is_used);
                }
                Ok(())
            }
            Err(error) => {
                pace.distance = (pace.distance * 2).clamp(DISTANCE_MIN, DISTANCE_MAX);
                pace.last_failure = Some(error.clone());
                tracing::debug!(%error, "no node answers where partitions are");
                Err(error)
            }
        }
    }

    /// Topics in use.
    fn topics(&self) -> Vec<String> {
        let now = Instant::now();
        let idle = self.config.metadata_max_age.saturating_mul(TOPIC_IDLE_AGES);
        let mut state = self.state.lock();
        let State { used, metadata, .. } = &mut *state;
        used.retain(|topic, at| {
            let keep = *at + idle > now;
            if !keep {
                metadata.forget(topic);
            }
            keep
        });
        used.keys().cloned().collect()
    }

    /// The first answer of several nodes; `None` when the nodes do not know the question.
    async fn ask(
        &self,
        topics: Vec<String>,
        not_first: Option<&Address>,
    ) -> Result<Option<(Address, v1::GetMetadataResponse)>, ClientError> {
        let mut choices = self.choices(&self.state.lock());
        choices.sort_by_key(|address| Some(address) == not_first);
        let mut choices = choices.into_iter();
        let mut asking = FuturesUnordered::new();
        let mut is_older = false;
        let mut failure = None;
        loop {
            if let Some(address) = choices.next() {
                asking.push(self.ask_one(address, topics.clone()));
            } else if asking.is_empty() {
                return match failure {
                    _ if is_older => Ok(None),
                    Some(error) => Err(error),
                    None => Err(ClientError::new(ErrorKind::Transport { sent: false }, "UNREACHABLE", "no node known")),
                };
            }
            let more = choices.len() > 0;
            // Both branches are cancellation-safe: an answer is taken only by the branch that completes.
            tokio::select! {
                Some((address, answer)) = asking.next() => match answer {
                    Ok(answer) => return Ok(Some((address, answer))),
                    Err(status) if status.code() == Code::Unimplemented => is_older = true,
                    Err(status) => failure = Some(ClientError::from(status).at(&address)),
                },
                () = sleep(HEDGE_AFTER), if more => {}
            }
        }
    }

    async fn ask_one(
        &self,
        address: Address,
        topics: Vec<String>,
    ) -> (Address, Result<v1::GetMetadataResponse, tonic::Status>) {
        let node = self.nodes.get(&address);
        let mut cluster =
            ClusterClient::new(node.channel.clone()).max_decoding_message_size(self.config.answer_bytes_max);
        let answer = if topics.is_empty() {
            // An empty list would mean all topics.
            cluster.get_servers(v1::GetServersRequest {}).await.map(|answer| {
                let v1::GetServersResponse { servers, cluster_id } = answer.into_inner();
                v1::GetMetadataResponse { servers, cluster_id, ..Default::default() }
            })
        } else {
            cluster.get_metadata(v1::GetMetadataRequest { topics }).await.map(tonic::Response::into_inner)
        };
        if answer.is_ok() {
            node.answered();
        }
        (address, answer)
    }
}

/// Refreshes whenever somebody wants it, so that nobody has to wait for what is merely old. Ends with the resolver.
async fn refresh_when_wanted(shared: Weak<Shared>, wanted: Arc<Notify>) {
    loop {
        wanted.notified().await;
        let Some(shared) = shared.upgrade() else { return };
        let refreshes = shared.state.lock().refreshes;
        // A failure is told to whoever needs an answer.
        let _ = shared.refresh(refreshes, None).await;
    }
}
