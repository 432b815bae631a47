//! Failure detector: heartbeats between nodes, on a dedicated thread.
//!
//! A node sends each peer a heartbeat per interval, and the peer responds. Any other message from a peer counts as
//! well. A peer without a message for `suspect_after` is suspected; a peer whose process has ended (connection refused)
//! already after [`REFUSED_AFTER`]. Time during which this node itself did not run (stopped, starved) does not count
//! against its peers.
//!
//! Every pair of nodes always has a heartbeat stream. So this is also where a node finds out that it was removed while
//! it was not connected, or that its data directory was rolled back: its peers reject its heartbeats with that reason.
//! Heartbeats also say which replicas of a live node are not in service, what the node's clock shows, and what its release can do.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chronicle_client::Connector;
use chronicle_log::LogId;
use chronicle_proto::internal::BeatMessage;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::channel::{Me, address, channel, client};
use super::generations::Generations;
use super::protocol::{Expulsion, Purpose, expulsion, group_id, is_refusal, wire_id};
use super::repeats::Repeats;
use crate::host::now_ms;
use crate::identity::PortEncryption;
use crate::metadata::DiskGeneration;
use crate::security::Tls;

/// Time without a message after which a peer whose port refuses connections is suspected. Longer than the time for which
/// voters keep the lease of a leader (`raft/lease.rs`), so that a fail-over does not have to wait for that.
pub(crate) const REFUSED_AFTER: Duration = Duration::from_millis(200);

/// A peer that receives this node's own heartbeats gets a response to one in this many of its heartbeats.
const ANSWER_EVERY: u64 = 5;
/// Most replicas that a heartbeat reports as not in service.
const OUT_OF_SERVICE_MAX: usize = 1000;
/// Bit of a heartbeat's features: the node knows control entries in the logs of partitions.
const CONTROL_ENTRIES: u64 = 1;
/// The features of this release.
const FEATURES: u64 = CONTROL_ENTRIES;

/// Settings of the failure detector.
#[derive(Debug, Clone, Copy)]
pub struct LivenessConfig {
    /// Interval between heartbeats.
    pub interval: Duration,
    /// Time without a message after which a peer is suspected.
    pub suspect_after: Duration,
    /// Generation of the data directory when the process started, with the number of the process: random, new with every start.
    pub start: DiskGeneration,
}

/// The failure detector: knows which peers are alive.
pub struct Liveness {
    config: LivenessConfig,
    tls: Option<Arc<Tls>>,
    runtime: Handle,
    peers: Mutex<HashMap<u64, PeerState>>,
    changed: watch::Sender<u64>,
    /// This node should lead nothing at present; sent in its heartbeats.
    unfit: AtomicBool,
    /// Groups whose replica on this node is not in service; sent in its heartbeats.
    out_of_service: Mutex<BTreeSet<LogId>>,
    /// Why this node must stop, once a peer has reported it.
    expelled: watch::Sender<Option<Expulsion>>,
    generations: Generations,
    watching: Mutex<HashMap<u64, (String, CancellationToken)>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Debug, Clone)]
struct PeerState {
    last_heard: Option<Instant>,
    /// Its port refuses connections.
    refused: bool,
    boot: u64,
    alive: bool,
    /// This node's own heartbeats have a stream to it.
    beating: bool,
    /// It reports that it should lead nothing at present.
    unfit: bool,
    /// Groups whose replica on the peer is not in service, as it reports.
    out_of_service: BTreeSet<LogId>,
    /// Encryption of its data port, as last reported; `None`: not reported yet.
    encryption: Option<PortEncryption>,
    /// Its wall clock, in milliseconds since the Unix epoch, and when that arrived.
    clock: Option<(i64, Instant)>,
    /// What its release can do.
    features: u64,
    /// When it was last suspected.
    dead_since: Option<Instant>,
    /// When it was first monitored.
    since: Instant,
}

impl Liveness {
    /// Starts the failure detector on `runtime`. Heartbeats contain the certificate of `tls`.
    pub fn new(config: LivenessConfig, tls: Option<Arc<Tls>>, runtime: Handle) -> Arc<Self> {
        let liveness = Arc::new(Self {
            config,
            tls,
            runtime,
            peers: Mutex::default(),
            changed: watch::Sender::new(0),
            unfit: AtomicBool::new(false),
            out_of_service: Mutex::default(),
            expelled: watch::Sender::new(None),
            generations: Generations::new(config.start),
            watching: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let sweeping = liveness.clone();
        liveness.tasks.spawn_on(async move { sweeping.sweep().await }, &liveness.runtime);
        liveness
    }

    /// Returns the random number of this process, which its heartbeats contain.
    pub fn boot(&self) -> u64 {
        self.config.start.boot
    }

    /// Returns the generations of data directories: this node's, and those that others have shown.
    pub fn generations(&self) -> &Generations {
        &self.generations
    }

    /// Returns the runtime that serves heartbeats.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Whether a message from the peer arrived within the suspicion time. False if none ever arrived.
    pub fn alive(&self, node: u64) -> bool {
        self.peers.lock().get(&node).is_some_and(|peer| peer.alive)
    }

    /// Whether the peer reports that it should lead nothing at present.
    pub fn unfit(&self, node: u64) -> bool {
        self.peers.lock().get(&node).is_some_and(|peer| peer.unfit)
    }

    /// Sets whether this node should lead nothing at present. Heartbeats report it to peers.
    pub fn set_unfit(&self, unfit: bool) {
        self.unfit.store(unfit, Ordering::Relaxed);
    }

    /// Whether this node should lead nothing at present.
    pub fn is_unfit(&self) -> bool {
        self.unfit.load(Ordering::Relaxed)
    }

    /// Sets whether this node's replica of a group is in service: open, or dormant and not known to be faulty. Heartbeats report the
    /// others to peers.
    pub fn set_in_service(&self, group: LogId, in_service: bool) {
        let mut out = self.out_of_service.lock();
        if in_service {
            out.remove(&group);
        } else {
            out.insert(group);
        }
    }

    /// Whether this node's replica of a group is in service.
    pub fn is_in_service(&self, group: LogId) -> bool {
        !self.out_of_service.lock().contains(&group)
    }

    /// Whether the peer's replica of a group is in service, as far as it reports. Does not check whether the peer is alive.
    pub fn in_service(&self, node: u64, group: LogId) -> bool {
        !self.peers.lock().get(&node).is_some_and(|peer| peer.out_of_service.contains(&group))
    }

    /// Returns how many replicas of the peer are not in service, as far as it reports. For this node's own, see
    /// [`Liveness::own_out_of_service`].
    pub fn out_of_service(&self, node: u64) -> usize {
        self.peers.lock().get(&node).map_or(0, |peer| peer.out_of_service.len())
    }

    /// Returns how many replicas of this node are not in service.
    pub fn own_out_of_service(&self) -> usize {
        self.out_of_service.lock().len()
    }

    /// Returns a heartbeat of this node.
    pub(super) fn own_beat(&self, sequence: u64) -> BeatMessage {
        let PortEncryption { certificate_serial, certificate_not_after_s } = self.own_encryption();
        BeatMessage {
            sequence,
            boot: self.config.start.boot,
            leaving: false,
            unfit: self.is_unfit(),
            certificate_serial,
            certificate_not_after_s,
            out_of_service: self.out_of_service.lock().iter().take(OUT_OF_SERVICE_MAX).map(|id| wire_id(*id)).collect(),
            clock_ms: Some(now_ms()),
            features: FEATURES,
            generation: self.generations.own().number,
            lineage: self.config.start.lineage,
        }
    }

    /// Returns what the clocks of the peers show now, in milliseconds since the Unix epoch: of each live peer whose clock arrived in
    /// the last `age_max`. Never ahead of the peer's own clock, behind it by the time that the heartbeat took.
    pub fn peer_clocks(&self, age_max: Duration) -> Vec<i64> {
        let clock = |peer: &PeerState| {
            let (clock_ms, at) = peer.clock.filter(|_| peer.alive)?;
            let age = at.elapsed();
            (age <= age_max).then(|| clock_ms.saturating_add(age.as_millis() as i64))
        };
        self.peers.lock().values().filter_map(clock).collect()
    }

    /// Whether the peer is alive and its release knows control entries in the logs of partitions.
    pub fn knows_control_entries(&self, node: u64) -> bool {
        self.peers.lock().get(&node).is_some_and(|peer| peer.alive && peer.features & CONTROL_ENTRIES != 0)
    }

    /// Returns the last heartbeat of this node: it stops.
    pub(super) fn leaving_beat(&self) -> BeatMessage {
        let DiskGeneration { number, lineage, boot } = self.generations.own();
        BeatMessage { leaving: true, boot, generation: number, lineage, ..Default::default() }
    }

    /// Returns the encryption of this node's data port.
    pub fn own_encryption(&self) -> PortEncryption {
        self.tls.as_ref().map(|tls| PortEncryption::from(tls.served())).unwrap_or_default()
    }

    /// Returns the encryption of a peer's data port, as last reported; `None`: not reported yet.
    pub fn encryption(&self, node: u64) -> Option<PortEncryption> {
        self.peers.lock().get(&node).and_then(|peer| peer.encryption.clone())
    }

    /// Returns the response to a heartbeat, if one is due. A peer that receives this node's own heartbeats needs
    /// responses only to detect that its stream is stuck: one in five.
    pub(super) fn answer(&self, node: u64, sequence: u64) -> Option<BeatMessage> {
        let beating = self.peers.lock().get(&node).is_some_and(|peer| peer.beating);
        (!beating || sequence.is_multiple_of(ANSWER_EVERY)).then(|| self.own_beat(sequence))
    }

    fn set_beating(&self, node: u64, beating: bool) {
        if let Some(peer) = self.peers.lock().get_mut(&node) {
            peer.beating = beating;
        }
    }

    /// Returns the number of the peer's process in its last heartbeat; 0: none.
    pub fn boot_of(&self, node: u64) -> u64 {
        self.peers.lock().get(&node).map(|peer| peer.boot).unwrap_or(0)
    }

    /// Returns for how long the peer has been dead, in milliseconds; 0: it is alive.
    pub fn dead_for_ms(&self, node: u64) -> u64 {
        let peers = self.peers.lock();
        let Some(peer) = peers.get(&node) else { return 0 };
        match (peer.alive, peer.dead_since) {
            (true, _) => 0,
            (false, since) => since.unwrap_or(peer.since).elapsed().as_millis() as u64,
        }
    }

    /// Returns a counter that increases whenever a peer dies, comes back or restarts.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Returns why this node must stop, once a peer has reported it; `None` until then. Final: a removed node is never admitted
    /// again, and nor is a data directory that was rolled back.
    pub fn expelled(&self) -> watch::Receiver<Option<Expulsion>> {
        self.expelled.subscribe()
    }

    /// Records why this node must stop; the first reason counts.
    pub fn expel(&self, why: Expulsion) {
        self.expelled.send_if_modified(|expelled| {
            let news = expelled.is_none();
            expelled.get_or_insert(why);
            news
        });
    }

    /// Classifies the error of a heartbeat stream, and records when it says that this node must stop.
    fn stream_failure(&self, status: &tonic::Status) -> StreamFailure {
        if let Some(why) = expulsion(status) {
            self.expel(why);
        }
        match is_refusal(status) {
            true => StreamFailure::Refused(status.message().to_owned()),
            false => StreamFailure::Lost(causes(status)),
        }
    }

    /// Records that a message from the peer arrived.
    pub fn heard(&self, node: u64) {
        let mut peers = self.peers.lock();
        if let Some(peer) = peers.get_mut(&node) {
            peer.last_heard = Some(Instant::now());
            peer.refused = false;
        }
    }

    /// Records a heartbeat from the peer, whose generation the caller has checked.
    pub(super) fn beat(&self, node: u64, beat: &BeatMessage) {
        let boot = beat.boot;
        let mut peers = self.peers.lock();
        let now = Instant::now();
        let peer = peers.entry(node).or_insert_with(|| PeerState::new(now));
        peer.last_heard = Some(now);
        peer.refused = false;
        let news = !peer.alive || peer.boot != boot;
        if news {
            tracing::info!(node, boot, restarted = peer.alive && peer.boot != 0, "peer is alive");
        }
        peer.alive = true;
        peer.unfit = beat.unfit;
        let out = beat.out_of_service.iter().take(OUT_OF_SERVICE_MAX);
        peer.out_of_service = out.filter_map(|group| group_id(Some(group.clone())).ok()).collect();
        peer.encryption = Some(PortEncryption {
            certificate_serial: beat.certificate_serial.clone(),
            certificate_not_after_s: beat.certificate_not_after_s,
        });
        peer.clock = beat.clock_ms.map(|clock_ms| (clock_ms, now));
        peer.features = beat.features;
        peer.dead_since = None;
        peer.boot = boot;
        drop(peers);
        if news {
            self.changed.send_modify(|version| *version += 1);
        }
    }

    fn refused(&self, node: u64) {
        if let Some(peer) = self.peers.lock().get_mut(&node) {
            peer.refused = true;
        }
    }

    /// Records that the peer stops: it counts as dead at once.
    pub(super) fn left(&self, node: u64) {
        let mut peers = self.peers.lock();
        let Some(peer) = peers.get_mut(&node) else { return };
        if !peer.alive {
            return;
        }
        tracing::info!(node, "peer is leaving");
        peer.alive = false;
        peer.dead_since = Some(Instant::now());
        drop(peers);
        self.changed.send_modify(|version| *version += 1);
    }

    /// Monitors these peers and no others.
    pub(super) fn watch(self: &Arc<Self>, me: Me, addresses: HashMap<u64, String>, connector: Connector) {
        if self.stop.is_cancelled() {
            return;
        }
        let mut watching = self.watching.lock();
        watching.retain(|node, (at, stop)| {
            let keep = addresses.get(node) == Some(at);
            if !keep {
                stop.cancel();
            }
            keep
        });
        let now = Instant::now();
        {
            let mut peers = self.peers.lock();
            peers.retain(|node, _| addresses.contains_key(node));
            for node in addresses.keys() {
                peers.entry(*node).or_insert_with(|| PeerState::new(now));
            }
        }
        for (node, at) in addresses {
            if watching.contains_key(&node) {
                continue;
            }
            let stop = self.stop.child_token();
            watching.insert(node, (at.clone(), stop.clone()));
            let (liveness, connector) = (self.clone(), connector.clone());
            let task = async move {
                stop.run_until_cancelled_owned(liveness.beats(me, node, at, connector)).await;
            };
            self.tasks.spawn_on(task, &self.runtime);
        }
    }

    /// Stops all monitoring.
    pub(super) fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
    }

    /// Sends heartbeats to one peer. Does not end.
    async fn beats(&self, me: Me, node: u64, at: String, connector: Connector) {
        let mut tick = interval(self.config.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let logged = Repeats::default();
        loop {
            tick.tick().await;
            let ended = self.stream(me, node, &at, &connector).await;
            self.set_beating(node, false);
            match ended {
                Ok(()) => {}
                Err(StreamFailure::Refused(why)) if logged.is_news(&why) => {
                    tracing::warn!(node, address = at, why, "this node is refused");
                }
                Err(StreamFailure::Distrusted(why)) if logged.is_news(&why) => {
                    tracing::warn!(node, address = at, why, "answers of a node are refused");
                }
                Err(StreamFailure::Refused(_) | StreamFailure::Distrusted(_)) => {}
                Err(StreamFailure::Lost(error)) => {
                    // The kernel refuses connections to a closed port: the process has ended.
                    if error.contains("refused") {
                        self.refused(node);
                    }
                    tracing::debug!(node, address = at, error, "heartbeat stream ended");
                }
            }
        }
    }

    /// Runs one heartbeat stream until it ends.
    async fn stream(&self, me: Me, node: u64, at: &str, connector: &Connector) -> Result<(), StreamFailure> {
        let mut client = client(channel(at, Purpose::Liveness, connector.clone()).map_err(StreamFailure::Lost)?);
        let (beats, outgoing) = mpsc::channel(4);
        let mut request = tonic::Request::new(ReceiverStream::new(outgoing));
        address(&mut request, me, node);
        let opening = timeout(self.config.suspect_after, client.beat(request)).await;
        let answers = opening.map_err(|_| StreamFailure::Lost("no response in time".into()))?;
        let mut answers = answers.map_err(|status| self.stream_failure(&status))?.into_inner();
        self.set_beating(node, true);
        let mut tick = interval(self.config.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sequence = 0;
        let mut last_answer = Instant::now();
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    // A connection without responses is closed, so that a new one may reach the peer.
                    if last_answer.elapsed() > 4 * self.config.suspect_after {
                        return Err(StreamFailure::Lost("no response on an open connection".into()));
                    }
                    sequence += 1;
                    let beat = self.own_beat(sequence);
                    // A full queue means that the peer reads nothing: dropping this heartbeat is harmless, the next one
                    // repeats its content.
                    let _ = beats.try_send(beat);
                }
                answer = answers.message() => match answer.map_err(|status| self.stream_failure(&status))? {
                    Some(answer) if answer.leaving => {
                        // An older directory counts as dead in any case.
                        let _ = self.generations.observe(node, shown_in(&answer));
                        self.left(node);
                    }
                    Some(answer) => {
                        let checked = self.generations.observe(node, shown_in(&answer));
                        checked.map_err(|why| StreamFailure::Distrusted(why.to_string()))?;
                        // It answers only a caller that it has checked.
                        self.generations.accepted_by(shown_in(&answer));
                        last_answer = Instant::now();
                        self.beat(node, &answer);
                    }
                    None => return Err(StreamFailure::Lost("the peer closed the stream".into())),
                },
            }
        }
    }

    /// Suspects peers without a message for too long.
    async fn sweep(&self) {
        let every = self.config.interval;
        let mut tick = interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Instant::now();
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let now = Instant::now();
            let missed = (now - last).saturating_sub(2 * every);
            last = now;
            let mut dead = Vec::new();
            {
                let mut peers = self.peers.lock();
                for (node, peer) in peers.iter_mut() {
                    let Some(heard) = &mut peer.last_heard else { continue };
                    if !missed.is_zero() {
                        *heard = (*heard + missed).min(now);
                    }
                    let patience = if peer.refused { REFUSED_AFTER } else { self.config.suspect_after };
                    if peer.alive && now - *heard > patience {
                        peer.alive = false;
                        peer.dead_since = Some(now);
                        dead.push((*node, (now - *heard).as_millis() as u64));
                    }
                }
            }
            for (node, silent_ms) in &dead {
                tracing::warn!(node, silent_ms, "peer is suspected");
            }
            if !dead.is_empty() {
                self.changed.send_modify(|version| *version += 1);
            }
        }
    }
}

/// Why a heartbeat stream has ended.
enum StreamFailure {
    /// The peer rejects this node.
    Refused(String),
    /// The peer's data directory was rolled back.
    Distrusted(String),
    /// The connection failed or was lost.
    Lost(String),
}

impl PeerState {
    fn new(now: Instant) -> Self {
        Self {
            last_heard: None,
            refused: false,
            boot: 0,
            alive: false,
            beating: false,
            unfit: false,
            out_of_service: BTreeSet::new(),
            encryption: None,
            clock: None,
            features: 0,
            dead_since: None,
            since: now,
        }
    }
}

/// Returns the generation in a heartbeat.
pub(super) fn shown_in(beat: &BeatMessage) -> DiskGeneration {
    DiskGeneration { number: beat.generation, lineage: beat.lineage, boot: beat.boot }
}

/// Returns a status with its causes: tonic reports a refused connection only in the source.
fn causes(status: &tonic::Status) -> String {
    let mut text = status.to_string();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn a_peer_serves_the_groups_that_its_last_heartbeat_does_not_name() {
        let millis = Duration::from_millis;
        let process = |boot| DiskGeneration { number: 1, lineage: boot, boot };
        let config = LivenessConfig { interval: millis(100), suspect_after: millis(1000), start: process(1) };
        let (here, there) = (
            Liveness::new(config, None, Handle::current()),
            Liveness::new(LivenessConfig { start: process(2), ..config }, None, Handle::current()),
        );
        let group = |partition| LogId { topic: Uuid::from_u128(7), partition };
        assert!(here.in_service(2, group(0)), "nothing is known of it");
        there.set_in_service(group(0), false);
        there.set_in_service(group(1), false);
        there.set_in_service(group(1), true);
        let mut beat = there.own_beat(1);
        // Not an id of this version.
        beat.out_of_service.push(chronicle_proto::internal::GroupId { topic: vec![1].into(), partition: 0 });
        here.beat(2, &beat);
        assert!(!here.in_service(2, group(0)) && here.in_service(2, group(1)) && here.in_service(3, group(0)));
        assert_eq!((here.out_of_service(2), there.own_out_of_service()), (1, 1));
        there.set_in_service(group(0), true);
        here.beat(2, &there.own_beat(2));
        assert!(here.in_service(2, group(0)));
        assert!(here.knows_control_entries(2) && here.peer_clocks(millis(3000)).len() == 1);
        let earlier = BeatMessage { clock_ms: None, features: 0, ..there.own_beat(3) };
        here.beat(2, &earlier);
        assert!(!here.knows_control_entries(2) && here.peer_clocks(millis(3000)).is_empty(), "an earlier release");
        for group in 0..OUT_OF_SERVICE_MAX as u32 + 1 {
            there.set_in_service(LogId { topic: Uuid::from_u128(7), partition: group }, false);
        }
        assert_eq!(there.own_beat(3).out_of_service.len(), OUT_OF_SERVICE_MAX, "a heartbeat is bounded");
        here.close();
        there.close();
    }
}
