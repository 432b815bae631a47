//! The metadata cache: the cluster's metadata for the topics in use, and the requests that keep it up to date.
//!
//! The cache refreshes by `Cluster.GetMetadata`: when a topic is used first, when a caller found that the metadata is out of
//! date, and every `metadata_max_age` while it is used. At most one refresh is in flight, and refreshes keep a minimum
//! distance. A cluster whose nodes do not implement the call is used through the configured addresses alone.
//!
//! Invariants:
//! - A refresh asks several nodes, the next one when the last has failed or is slow, and takes the first answer. So one silent
//!   node delays callers for at most [`HEDGE_AFTER`].
//! - The configured addresses stay in use, because the advertised ones may not be reachable from this host.
//!
//! Stands on `metadata.rs` (the data) and `channels.rs` (the way to a node). It does not choose nodes for requests;
//! `resolver.rs` does.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use chronicle_proto::v1;
use chronicle_proto::v1::cluster_client::ClusterClient;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::Code;

use crate::address::{Address, parse_address};
use crate::channels::Channels;
use crate::config::ClientConfig;
use crate::error::{ClientError, ErrorKind};
use crate::metadata::{Lookup, Metadata};

/// When one node leaves a refresh unanswered this long, the next one is asked too.
const HEDGE_AFTER: Duration = Duration::from_millis(200);
/// Distance between refreshes; doubled with each failure up to the maximum.
const DISTANCE_MIN: Duration = Duration::from_millis(20);
const DISTANCE_MAX: Duration = Duration::from_secs(1);
/// A topic that was not used for this many times `metadata_max_age` is dropped from the cache.
const TOPIC_IDLE_AGES: u32 = 10;
/// One node may know a new topic while another does not yet: how many refreshes look for it, and how long between them.
const MISSING_REFRESHES: u32 = 3;
const MISSING_PAUSE: Duration = Duration::from_millis(30);

/// The cache, with the channels to the nodes that it knows.
pub(crate) struct MetadataCache {
    config: Arc<ClientConfig>,
    bootstrap: Vec<Address>,
    channels: Channels,
    state: Mutex<CacheState>,
    /// Held by the one refresh in flight.
    refreshing: tokio::sync::Mutex<Pace>,
    /// Asks the background task for a refresh.
    wanted: Arc<Notify>,
    background: Mutex<Option<AbortHandle>>,
}

/// What the cache holds.
#[derive(Default)]
pub(crate) struct CacheState {
    pub(crate) metadata: Metadata,
    /// Topics in use, and when each was used last.
    used: HashMap<String, Instant>,
    /// Refreshes that ended, with success or not.
    pub(crate) refreshes: u64,
    /// When the last refresh succeeded.
    pub(crate) refreshed: Option<Instant>,
    /// The nodes do not implement GetMetadata.
    pub(crate) is_unsupported: bool,
    /// A node that answered: the first choice for requests that any node can take.
    pub(crate) preferred: Option<Address>,
}

/// Keeps refreshes at a distance.
#[derive(Default)]
struct Pace {
    ended: Option<Instant>,
    distance: Duration,
    last_failure: Option<ClientError>,
}

impl Drop for MetadataCache {
    fn drop(&mut self) {
        if let Some(task) = self.background.get_mut().take() {
            task.abort();
        }
    }
}

impl MetadataCache {
    /// An empty cache, and the task that refreshes it.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when a configured address is not `HOST:PORT`, or when there is none.
    pub(crate) fn start(config: Arc<ClientConfig>) -> Result<Arc<Self>, ClientError> {
        let mut bootstrap: Vec<Address> = Vec::new();
        for server in &config.servers {
            parse_address(server)?;
            if !bootstrap.iter().any(|known| **known == **server) {
                bootstrap.push(server.as_str().into());
            }
        }
        if bootstrap.is_empty() {
            return Err(ClientError::invalid("servers", "empty", "must list at least one HOST:PORT"));
        }
        let cache = Arc::new(Self {
            channels: Channels::new(config.clone()),
            config,
            bootstrap,
            state: Mutex::default(),
            refreshing: tokio::sync::Mutex::default(),
            wanted: Arc::default(),
            background: Mutex::default(),
        });
        let task = tokio::spawn(refresh_when_wanted(Arc::downgrade(&cache), cache.wanted.clone()));
        *cache.background.lock() = Some(task.abort_handle());
        Ok(cache)
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// The configured addresses; there is at least one.
    pub(crate) fn bootstrap(&self) -> &[Address] {
        &self.bootstrap
    }

    pub(crate) fn channels(&self) -> &Channels {
        &self.channels
    }

    /// What the cache holds. The lock must not be held across an `await`.
    pub(crate) fn state(&self) -> MutexGuard<'_, CacheState> {
        self.state.lock()
    }

    /// Asks the background task for a refresh, without waiting for it.
    pub(crate) fn want_refresh(&self) {
        self.wanted.notify_one();
    }

    /// Makes sure that a node was asked about the partition. Returns without metadata when no node answers.
    pub(crate) async fn ensure_known(&self, topic: &str, partition: i32) {
        self.note_use(Some(topic));
        for asked in 0.. {
            let (lookup, refreshes, nodes) = {
                let state = self.state.lock();
                if state.is_unsupported {
                    return;
                }
                (state.metadata.lookup(topic, partition), state.refreshes, state.metadata.node_count())
            };
            let mut ask_last = None;
            match lookup {
                Lookup::Known => return,
                Lookup::NotAsked if asked == 0 => {}
                Lookup::Missing if asked == 0 || (asked < MISSING_REFRESHES && nodes > 1) => {
                    if asked > 0 {
                        sleep(MISSING_PAUSE).await;
                    }
                    // The node that answered last does not know the topic: ask another one first.
                    ask_last = self.state.lock().preferred.take();
                }
                _ => return,
            }
            if self.refresh(refreshes, ask_last.as_ref()).await.is_err() {
                return;
            }
        }
    }

    /// Notes that the cache is used, for this topic. Asks for a refresh when the metadata is too old.
    pub(crate) fn note_use(&self, topic: Option<&str>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        if let Some(topic) = topic {
            match state.used.get_mut(topic) {
                Some(used) => *used = now,
                None => drop(state.used.insert(topic.to_owned(), now)),
            }
        }
        if state.refreshed.is_none_or(|refreshed| now >= refreshed + self.config.metadata_max_age) {
            self.want_refresh();
        }
    }

    /// Every known address, the most likely to answer first.
    pub(crate) fn choices(&self, state: &CacheState) -> Vec<Address> {
        let known = state.metadata.addresses();
        let mut choices: Vec<Address> = Vec::with_capacity(known.len() + self.bootstrap.len() + 1);
        let dead = |address: &Address| state.metadata.is_alive(address) == Some(false);
        for address in state.preferred.iter().chain(&self.bootstrap).chain(&known) {
            if !choices.contains(address) {
                choices.push(address.clone());
            }
        }
        choices.sort_by_key(|address| (dead(address), self.channels.is_avoided(address)));
        choices
    }

    /// Whether there is no other address than this one.
    pub(crate) fn is_only_choice(&self, address: &Address) -> bool {
        let known = self.state.lock().metadata.addresses();
        self.bootstrap.iter().chain(&known).all(|choice| choice == address)
    }

    /// Refreshes the metadata, unless a refresh has ended after the first `seen` ones. `ask_last`: an address that is asked
    /// after all others, because it is suspected.
    ///
    /// Cancellation-safe: the next caller that waits takes over.
    pub(crate) async fn refresh(&self, seen: u64, ask_last: Option<&Address>) -> Result<(), ClientError> {
        let mut pace = self.refreshing.lock().await;
        {
            let state = self.state.lock();
            if state.refreshes > seen {
                return pace.last_failure.clone().map_or(Ok(()), Err);
            }
            // Nodes that do not implement the call are asked again only now and then, not at every failure.
            if state.is_unsupported && state.refreshed.is_some_and(|at| at.elapsed() < self.config.metadata_max_age) {
                return Ok(());
            }
        }
        if let Some(ended) = pace.ended {
            sleep_until(ended + pace.distance).await;
        }
        let topics = self.topics();
        let limit = self.config.connect_timeout.max(self.config.suspect_after);
        let answer = timeout(limit, self.ask(topics, ask_last)).await.unwrap_or_else(|_| {
            let why = format!("no node answered the metadata request within {} ms", limit.as_millis());
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
                state.is_unsupported = answer.is_none();
                if let Some((from, answer)) = answer {
                    state.preferred.get_or_insert(from);
                    let new_leaders = state.metadata.merge(answer);
                    new_leaders.iter().for_each(|address| self.channels.clear_failures(address));
                    let is_used = |address: &str| {
                        self.bootstrap.iter().any(|seed| **seed == *address)
                            || state.metadata.is_alive(address).is_some()
                            || state.metadata.is_hinted(address)
                    };
                    self.channels.retain(is_used);
                }
                Ok(())
            }
            Err(error) => {
                pace.distance = (pace.distance * 2).clamp(DISTANCE_MIN, DISTANCE_MAX);
                pace.last_failure = Some(error.clone());
                tracing::debug!(%error, "cannot refresh metadata");
                Err(error)
            }
        }
    }

    /// Topics in use. Drops the idle ones.
    fn topics(&self) -> Vec<String> {
        let now = Instant::now();
        let idle = self.config.metadata_max_age.saturating_mul(TOPIC_IDLE_AGES);
        let mut state = self.state.lock();
        let CacheState { used, metadata, .. } = &mut *state;
        used.retain(|topic, at| {
            let keep = *at + idle > now;
            if !keep {
                metadata.forget(topic);
            }
            keep
        });
        used.keys().cloned().collect()
    }

    /// The first answer of several nodes; `None` when the nodes do not implement the call.
    async fn ask(
        &self,
        topics: Vec<String>,
        ask_last: Option<&Address>,
    ) -> Result<Option<(Address, v1::GetMetadataResponse)>, ClientError> {
        let mut choices = self.choices(&self.state.lock());
        choices.sort_by_key(|address| Some(address) == ask_last);
        let mut choices = choices.into_iter();
        let mut asking = FuturesUnordered::new();
        let mut is_unsupported = false;
        let mut failure = None;
        loop {
            if let Some(address) = choices.next() {
                asking.push(self.ask_one(address, topics.clone()));
            } else if asking.is_empty() {
                let kind = ErrorKind::Transport { sent: false };
                return match failure {
                    _ if is_unsupported => Ok(None),
                    Some(error) => Err(error),
                    None => Err(ClientError::new(kind, "UNREACHABLE", "no node address is known")),
                };
            }
            let more = choices.len() > 0;
            // Both branches are cancellation-safe: an answer is taken only by the branch that completes.
            tokio::select! {
                Some((address, answer)) = asking.next() => match answer {
                    Ok(answer) => return Ok(Some((address, answer))),
                    Err(status) if status.code() == Code::Unimplemented => is_unsupported = true,
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
        let used = self.channels.get(&address);
        let mut cluster =
            ClusterClient::new(used.channel.clone()).max_decoding_message_size(self.config.answer_bytes_max);
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
            used.note_answer();
        }
        (address, answer)
    }
}

/// Refreshes on demand, so that callers do not wait for a refresh of metadata that is merely old. Ends with the cache.
async fn refresh_when_wanted(cache: Weak<MetadataCache>, wanted: Arc<Notify>) {
    loop {
        wanted.notified().await;
        let Some(cache) = cache.upgrade() else { return };
        let refreshes = cache.state.lock().refreshes;
        // A caller that needs an answer refreshes by itself and gets the error.
        let _ = cache.refresh(refreshes, None).await;
    }
}
