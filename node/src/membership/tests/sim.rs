//! Nodes in one process on simulated time, with a network and disks that fail where a test requests it.
//!
//! The controller group is a stand-in: it admits nodes as long as a majority of the founders is up, and its leader is
//! the first founder that is up.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chronicle_proto::internal::{
    FoundRequest, FoundResponse, HelloRequest, HelloResponse, JoinRequest, JoinResponse, PromiseRequest,
    PromiseResponse,
};
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::super::*;
use crate::discovery::DiscoveryError;

/// A step that can fail, counted while a cluster is bootstrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    Asked,
    Answered,
    Stored,
}

/// The fault at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The message does not arrive; a write fails.
    Lost,
    /// The caller or writer crashes before the step, and restarts after this long, perhaps with an empty disk.
    Crash { down: Duration, wiped: bool },
    /// The called node crashes before the message arrives.
    CrashPeer { down: Duration, wiped: bool },
    /// The message arrives, or the write happens, and then the sender or writer crashes.
    CrashAfter { down: Duration, wiped: bool },
}

/// What the node whose data listener has this address advertises.
fn advertised(address: &str) -> Addresses {
    let kafka = address.replace(":7400", ":9092");
    Addresses::new(address, BTreeMap::from([("kafka".parse().unwrap(), kafka)]))
}

pub(super) struct SimulatedNode {
    pub(super) address: String,
    pub(super) node_id: Uuid,
    disk: Arc<Disk>,
    running: Option<Running>,
    pub(super) outcome: Option<Result<MembershipOutcome, String>>,
    name: String,
}

struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<MembershipOutcome, MembershipError>>,
}

#[derive(Default)]
pub(super) struct Disk {
    stored: Mutex<Remembered>,
}

struct SimulatedCluster {
    founders: Vec<Founder>,
    members: BTreeMap<Uuid, u64>,
    removed: BTreeSet<Uuid>,
}

pub(super) struct Net {
    alive: Mutex<BTreeMap<String, (Arc<Membership>, CancellationToken)>>,
    clusters: Mutex<BTreeMap<Uuid, SimulatedCluster>>,
    /// The addresses that discovery of a node finds; without an entry: all nodes.
    pub(super) names: Mutex<BTreeMap<String, Vec<String>>>,
    everybody: Mutex<Vec<String>>,
    pub(super) cut: Mutex<HashSet<(String, String)>>,
    rng: Mutex<StdRng>,
    /// Longest delay of a message, in milliseconds.
    pub(super) delay: AtomicUsize,
    /// Lost messages per thousand.
    pub(super) loss: AtomicUsize,
    steps: AtomicUsize,
    plan: Mutex<Option<(usize, Fault)>>,
    crashes: mpsc::UnboundedSender<(String, Duration, bool)>,
    pub(super) trace: Mutex<Vec<(Step, String, String)>>,
    /// Every cluster that was ever stored on any disk.
    pub(super) ever: Mutex<BTreeSet<Uuid>>,
}

struct Wire {
    net: Arc<Net>,
    from: String,
}

struct Writer {
    net: Arc<Net>,
    disk: Arc<Disk>,
    at: String,
}

struct Names {
    net: Arc<Net>,
    of: String,
}

impl Net {
    /// Counts a step. `false`: the message is lost.
    async fn step(self: &Arc<Self>, step: Step, from: &str, to: &str) -> bool {
        let number = self.steps.fetch_add(1, Ordering::Relaxed);
        self.trace.lock().push((step, from.to_owned(), to.to_owned()));
        let fault = self.plan.lock().filter(|(at, _)| *at == number).map(|(_, fault)| fault);
        let crash = |who: &str, down, wiped| self.crashes.send((who.to_owned(), down, wiped)).unwrap();
        match fault {
            None => true,
            Some(Fault::Lost) => false,
            Some(Fault::Crash { down, wiped }) => {
                crash(from, down, wiped);
                std::future::pending().await
            }
            Some(Fault::CrashPeer { down, wiped }) => {
                crash(to, down, wiped);
                false
            }
            Some(Fault::CrashAfter { down, wiped }) => {
                let (net, from) = (Arc::clone(self), from.to_owned());
                tokio::spawn(async move {
                    sleep(Duration::from_millis(8)).await;
                    net.crashes.send((from, down, wiped)).unwrap();
                });
                true
            }
        }
    }

    fn chance(&self, of_thousand: usize) -> bool {
        self.rng.lock().random_range(0..1000) < of_thousand
    }

    async fn travel(&self, from: &str, to: &str) {
        let delay = self.rng.lock().random_range(0..=self.delay.load(Ordering::Relaxed));
        sleep(Duration::from_millis(delay as u64)).await;
        let cut = self.cut.lock().contains(&(from.to_owned(), to.to_owned()));
        if cut || self.chance(self.loss.load(Ordering::Relaxed)) {
            std::future::pending::<()>().await;
        }
    }

    /// One call and its answer. The called node continues by itself when the caller is gone.
    async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        counted: bool,
        from: &str,
        to: &str,
        serve: impl FnOnce(Arc<Membership>) -> BoxFuture<'static, Result<T, PeerError>> + Send + 'static,
    ) -> Result<T, PeerError> {
        self.travel(from, to).await;
        if counted && !self.step(Step::Asked, from, to).await {
            return std::future::pending().await;
        }
        let target = self.alive.lock().get(to).cloned();
        let Some((membership, stop)) = target else {
            return Err(PeerError::Unavailable("connection refused".into()));
        };
        let served = tokio::spawn(async move { stop.run_until_cancelled(serve(membership)).await });
        let Some(answer) = served.await.expect("a handler does not panic") else {
            return Err(PeerError::Unavailable("connection reset".into()));
        };
        self.travel(to, from).await;
        if counted && !self.step(Step::Answered, to, from).await {
            return std::future::pending().await;
        }
        answer
    }

    fn join(&self, at: &Membership, request: &JoinRequest) -> Result<JoinResponse, PeerError> {
        let Some(identity) = at.identity() else { return Err(PeerError::Unavailable("no cluster".into())) };
        let in_cluster = |node: &Membership| node.identity().is_some_and(|own| own.cluster_id == identity.cluster_id);
        let alive: BTreeSet<Uuid> =
            self.alive.lock().values().filter(|(node, _)| in_cluster(node)).map(|(node, _)| node.own.node_id).collect();
        let mut clusters = self.clusters.lock();
        let Some(cluster) = clusters.get_mut(&identity.cluster_id) else {
            return Err(PeerError::Unavailable("starting".into()));
        };
        let up: Vec<_> = cluster.founders.iter().filter(|founder| alive.contains(&founder.node_id)).collect();
        if up.len() * 2 <= cluster.founders.len() {
            return Err(PeerError::Unavailable("no leader".into()));
        }
        if up[0].address != at.own.addresses.data() {
            return Ok(JoinResponse { leader: up[0].address.clone(), ..JoinResponse::default() });
        }
        let caller: Uuid = request.node_id.parse().unwrap();
        let (address, addresses) = (request.address.clone(), request.addresses.clone());
        assert_eq!(Addresses::from_message(address, addresses).unwrap(), advertised(&request.address));
        if cluster.removed.contains(&caller) {
            return Err(PeerError::Refused(JoinRefusal::Removed, "removed on request".into()));
        }
        let next = cluster.members.values().max().unwrap() + 1;
        let raft_id = *cluster.members.entry(caller).or_insert(next);
        let members = cluster.founders.iter().cloned().map(Into::into).collect();
        Ok(JoinResponse { cluster_id: identity.cluster_id.to_string(), raft_id, members, leader: String::new() })
    }
}

impl MembershipRpc for Wire {
    fn hello<'a>(&'a self, address: &'a str, request: HelloRequest) -> BoxFuture<'a, Result<HelloResponse, PeerError>> {
        self.net.call(false, &self.from, address, move |node| async move { Ok(node.hello(&request)) }.boxed()).boxed()
    }

    fn promise<'a>(
        &'a self,
        address: &'a str,
        request: PromiseRequest,
    ) -> BoxFuture<'a, Result<PromiseResponse, PeerError>> {
        let serve = move |node: Arc<Membership>| async move { node.promise(request).await.map_err(failed) }.boxed();
        self.net.call(true, &self.from, address, serve).boxed()
    }

    fn found<'a>(&'a self, address: &'a str, request: FoundRequest) -> BoxFuture<'a, Result<FoundResponse, PeerError>> {
        let serve = move |node: Arc<Membership>| async move { node.found(request).await.map_err(failed) }.boxed();
        self.net.call(true, &self.from, address, serve).boxed()
    }

    fn join<'a>(&'a self, address: &'a str, request: JoinRequest) -> BoxFuture<'a, Result<JoinResponse, PeerError>> {
        let net = Arc::clone(&self.net);
        let serve = move |node: Arc<Membership>| async move { net.join(&node, &request) }.boxed();
        self.net.call(false, &self.from, address, serve).boxed()
    }
}

fn failed(error: io::Error) -> PeerError {
    PeerError::Unavailable(error.to_string())
}

impl Memory for Writer {
    fn load(&self) -> BoxFuture<'_, io::Result<Remembered>> {
        async { Ok(self.disk.stored.lock().clone()) }.boxed()
    }

    fn store(&self, remembered: Remembered) -> BoxFuture<'_, io::Result<()>> {
        async move {
            sleep(Duration::from_millis(2)).await;
            if !self.net.step(Step::Stored, &self.at, &self.at).await {
                return Err(io::Error::other("the disk failed"));
            }
            // As on a real disk, the stored state is what a later read returns.
            let text = serde_json::to_vec(&remembered)?;
            if let Some(own) = &remembered.own_cluster {
                self.net.ever.lock().insert(own.identity.cluster_id);
            }
            *self.disk.stored.lock() = serde_json::from_slice(&text)?;
            sleep(Duration::from_millis(2)).await;
            Ok(())
        }
        .boxed()
    }
}

impl Discovery for Names {
    fn lookup(&self) -> BoxFuture<'_, Result<Vec<String>, DiscoveryError>> {
        let own = self.net.names.lock().get(&self.of).cloned();
        let names = own.unwrap_or_else(|| self.net.everybody.lock().clone());
        if names.iter().any(|name| name == "SERVFAIL") {
            return Box::pin(std::future::ready(Err(DiscoveryError::Lookup {
                name: "log.test".into(),
                why: "SERVFAIL".into(),
            })));
        }
        Box::pin(std::future::ready(Ok(names)))
    }
}

/// The simulated cluster.
pub(super) struct World {
    pub(super) net: Arc<Net>,
    pub(super) hosts: Vec<SimulatedNode>,
    expect: u32,
    orders: mpsc::UnboundedReceiver<(String, Duration, bool)>,
    /// Crashed nodes, when they start again, and whether with an empty disk.
    down: Vec<(Instant, usize, bool)>,
    seed: u64,
    starts: u64,
}

impl World {
    /// `count` hosts, none of them started; the UUIDs are in the order of the hosts.
    pub(super) fn new(seed: u64, count: usize, expect: u32) -> Self {
        let (crashes, orders) = mpsc::unbounded_channel();
        let net = Arc::new(Net {
            alive: Mutex::default(),
            clusters: Mutex::default(),
            names: Mutex::default(),
            everybody: Mutex::default(),
            cut: Mutex::default(),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            delay: AtomicUsize::new(4),
            loss: AtomicUsize::new(0),
            steps: AtomicUsize::new(0),
            plan: Mutex::new(None),
            crashes,
            trace: Mutex::default(),
            ever: Mutex::default(),
        });
        let mut world = Self { net, hosts: Vec::new(), expect, orders, down: Vec::new(), seed, starts: 0 };
        for _ in 0..count {
            world.add();
        }
        world
    }

    /// One more host, not started.
    pub(super) fn add(&mut self) -> usize {
        let number = self.hosts.len();
        let address = format!("host-{number}:7400");
        self.net.everybody.lock().push(address.clone());
        self.hosts.push(SimulatedNode {
            node_id: Uuid::from_u128(1000 * (number as u128 + 1)),
            name: format!("chronicle-{number}"),
            address,
            disk: Arc::default(),
            running: None,
            outcome: None,
        });
        number
    }

    /// A copy of the data directory of another host.
    pub(super) fn copy_disk(&mut self, from: usize, to: usize) {
        let (node_id, stored) = (self.hosts[from].node_id, self.hosts[from].disk.stored.lock().clone());
        self.hosts[to].node_id = node_id;
        *self.hosts[to].disk.stored.lock() = stored;
    }

    pub(super) fn outcome(&self, number: usize) -> &Result<MembershipOutcome, String> {
        self.hosts[number].outcome.as_ref().expect("settled")
    }

    pub(super) fn refusal(&self, number: usize) -> String {
        self.outcome(number).as_ref().expect_err("refused").clone()
    }

    pub(super) fn running(&self, number: usize) -> bool {
        self.hosts[number].running.is_some()
    }

    pub(super) fn promised(&self, number: usize) -> Option<Promised> {
        self.hosts[number].disk.stored.lock().promised.clone()
    }

    pub(super) fn fail_at(&self, step: usize, fault: Fault) {
        *self.net.plan.lock() = Some((step, fault));
    }

    /// Changes the configuration of the nodes that are started from now on.
    pub(super) fn expect(&mut self, expect: u32) {
        self.expect = expect;
    }

    pub(super) async fn start(&mut self, number: usize) {
        self.start_seeded(number, true).await;
    }

    pub(super) async fn start_seeded(&mut self, number: usize, seeded: bool) {
        self.starts += 1;
        let (starts, seed, net) = (self.starts, self.seed, Arc::clone(&self.net));
        let host = &mut self.hosts[number];
        let own = Own {
            node_id: host.node_id,
            name: host.name.clone(),
            addresses: advertised(&host.address),
            zone: String::new(),
            version: "0.1.0".into(),
            start: DiskGeneration { number: starts, lineage: starts, boot: starts },
            bootstrap_expect: self.expect,
            seeded,
        };
        let from = host.address.clone();
        let memory = Writer { net: Arc::clone(&net), disk: Arc::clone(&host.disk), at: from.clone() };
        let wire = Wire { net: Arc::clone(&net), from: from.clone() };
        let names = Names { net: Arc::clone(&net), of: from.clone() };
        let ids = AtomicUsize::new(0);
        let chance = Chance {
            seed: seed ^ starts,
            cluster_id: Box::new(move || {
                let count = ids.fetch_add(1, Ordering::Relaxed) as u128;
                Uuid::from_u128((0xC0 << 120) | (u128::from(starts) << 32) | count)
            }),
        };
        let membership = Membership::open(own, Arc::new(memory), Arc::new(wire), Arc::new(names), chance);
        let membership = Arc::new(membership.await.unwrap());
        let stop = CancellationToken::new();
        net.alive.lock().insert(from, (Arc::clone(&membership), stop.clone()));
        let task = tokio::spawn(async move { membership.establish().await });
        host.running = Some(Running { stop, task });
        host.outcome = None;
    }

    /// As `kill -9`.
    pub(super) fn crash(&mut self, number: usize, wiped: bool) {
        let host = &mut self.hosts[number];
        let Some(running) = host.running.take() else { return };
        running.stop.cancel();
        running.task.abort();
        self.net.alive.lock().remove(&host.address);
        host.outcome = None;
        if wiped {
            host.disk = Arc::default();
            host.node_id = Uuid::from_u128(host.node_id.as_u128() + 1);
        }
    }

    pub(super) fn remove(&self, number: usize) {
        let node_id = self.hosts[number].node_id;
        for cluster in self.net.clusters.lock().values_mut() {
            cluster.members.remove(&node_id);
            cluster.removed.insert(node_id);
        }
    }

    pub(super) fn address(&self, number: usize) -> String {
        self.hosts[number].address.clone()
    }

    pub(super) fn find(&self, number: usize, whom: &[usize]) {
        let names = whom.iter().map(|other| self.address(*other)).collect();
        self.net.names.lock().insert(self.address(number), names);
    }

    /// No message arrives between these and those.
    pub(super) fn part(&self, these: &[usize], those: &[usize]) {
        let pairs = these.iter().flat_map(|this| those.iter().map(|that| (self.address(*this), self.address(*that))));
        let mut cut = self.net.cut.lock();
        for (this, that) in pairs {
            cut.insert((that.clone(), this.clone()));
            cut.insert((this, that));
        }
    }

    pub(super) fn heal(&self) {
        self.net.cut.lock().clear();
    }

    /// Messages asked and answered, and writes, with this sender.
    pub(super) fn steps(&self, step: Step, number: usize) -> usize {
        let address = self.address(number);
        self.net.trace.lock().iter().filter(|(other, from, _)| (*other, from) == (step, &address)).count()
    }

    pub(super) fn membership(&self, number: usize) -> Arc<Membership> {
        Arc::clone(&self.net.alive.lock()[&self.hosts[number].address].0)
    }

    pub(super) fn status(&self, number: usize) -> String {
        self.membership(number).status().borrow().clone()
    }

    pub(super) fn identity(&self, number: usize) -> Option<Identity> {
        self.hosts[number].disk.stored.lock().own_cluster.as_ref().map(|own| own.identity)
    }

    /// Carries out crashes and restarts, and records the outcome of each node, for this long.
    pub(super) async fn run(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.tick().await;
        }
    }

    /// As `run`, until each of these nodes has an outcome.
    pub(super) async fn settle(&mut self, whom: &[usize]) {
        let end = Instant::now() + Duration::from_secs(120);
        while !(self.down.is_empty() && whom.iter().all(|number| self.hosts[*number].outcome.is_some())) {
            if Instant::now() >= end {
                let stuck = |number: &usize| {
                    format!(
                        "{number}: {:?}\n",
                        self.net
                            .alive
                            .lock()
                            .get(&self.address(*number))
                            .map(|(node, _)| node.status().borrow().clone())
                    )
                };
                panic!("seed {}: not settled:\n{}", self.seed, whom.iter().map(stuck).collect::<String>());
            }
            self.tick().await;
        }
    }

    pub(super) async fn settle_all(&mut self) {
        let everybody: Vec<_> = (0..self.hosts.len()).collect();
        self.settle(&everybody).await;
    }

    async fn tick(&mut self) {
        if let Ok(Some((address, down, wiped))) = timeout(Duration::from_millis(40), self.orders.recv()).await {
            let number = self.hosts.iter().position(|host| host.address == address).unwrap();
            if self.hosts[number].running.is_some() {
                self.crash(number, wiped);
                self.down.push((Instant::now() + down, number, wiped));
            }
        }
        let (due, later) = std::mem::take(&mut self.down).into_iter().partition(|(at, ..)| *at <= Instant::now());
        self.down = later;
        let due: Vec<(Instant, usize, bool)> = due;
        for (_, number, _) in due {
            self.start(number).await;
        }
        for host in &mut self.hosts {
            let Some(running) = &mut host.running else { continue };
            if host.outcome.is_none() && running.task.is_finished() {
                let outcome = (&mut running.task).await.expect("establish does not panic");
                if let Err(MembershipError::Memory(_)) = outcome {
                    // The process ends and is started again.
                    self.net.crashes.send((host.address.clone(), Duration::from_millis(300), false)).unwrap();
                    host.outcome = Some(Err("its disk failed".into()));
                    continue;
                }
                let founders = match &outcome {
                    Ok(MembershipOutcome::Founded { identity, founders }) => Some((identity, founders)),
                    Ok(MembershipOutcome::Member { identity, origin: Origin::Founded(founders) }) => {
                        Some((identity, founders))
                    }
                    _ => None,
                };
                if let Some((identity, founders)) = founders {
                    self.net.clusters.lock().entry(identity.cluster_id).or_insert_with(|| SimulatedCluster {
                        founders: founders.clone(),
                        members: founders.iter().map(|founder| (founder.node_id, founder.raft_id)).collect(),
                        removed: BTreeSet::new(),
                    });
                }
                host.outcome = Some(outcome.map_err(|refused| refused.to_string()));
            }
        }
    }

    /// The one cluster that all of these nodes are in, each with a different raft id.
    pub(super) fn one_cluster(&self, whom: &[usize]) -> Uuid {
        let identities: Vec<_> = whom.iter().map(|number| self.identity(*number)).collect();
        let clusters: BTreeSet<_> = identities.iter().flatten().map(|identity| identity.cluster_id).collect();
        let ids: BTreeSet<_> = identities.iter().flatten().map(|identity| identity.raft_id).collect();
        assert_eq!((clusters.len(), ids.len()), (1, whom.len()), "seed {}: {identities:?}", self.seed);
        *clusters.first().unwrap()
    }

    pub(super) fn one_cluster_of_all(&self) -> Uuid {
        self.one_cluster(&(0..self.hosts.len()).collect::<Vec<_>>())
    }
}
