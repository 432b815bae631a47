//! A cluster of real nodes: processes on loopback, or in dedicated network namespaces whose network can be partitioned.
//!
//! Invariants:
//! - Nodes keep their number, ports and folder as long as the [`Cluster`] exists, also when their process ends.
//! - A cluster that is dropped without [`Cluster::finish`] belongs to a failed test: it prints the output of its nodes.
//!
//! Calls to nodes have a time limit, because a paused or partitioned node accepts connections and sends no answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chronicle_log::LogId;
use chronicle_proto::v1;
use serde_json::{Value, json};

use crate::api;
use crate::faults::FaultyMachine;
use crate::history::History;
use crate::netns::Network;
use crate::node::{Node, PATIENCE, Setup};
use crate::replica::{self, Stored};
use crate::tls::{self, Secured};

/// Longest wait for one call to one node.
const ASK: Duration = Duration::from_secs(3);
/// Pause between two checks of a condition.
const LOOK: Duration = Duration::from_millis(50);
/// Characters of a node's output that are printed when a test fails.
const LOG_SHOWN: usize = 8000;

/// How to make a cluster.
#[derive(Debug)]
pub struct ClusterSetup {
    nodes: usize,
    template: Setup,
    zones: bool,
    folders: BTreeMap<usize, PathBuf>,
    network: Option<Network>,
    secured: bool,
    authority: Option<Arc<Secured>>,
    faulty: bool,
}

impl ClusterSetup {
    /// Gives each node a machine whose disk and clock can fail ([`Node::machine`]).
    #[must_use]
    pub fn faulty(mut self) -> Self {
        self.faulty = true;
        self
    }

    /// Sets one field of every node's configuration, as [`Setup::set`].
    #[must_use]
    pub fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        self.template = self.template.set(path, value);
        self
    }

    /// Enables TLS: every node and the test itself have certificates of one CA, and clients must present theirs.
    #[must_use]
    pub fn secured(mut self) -> Self {
        self.secured = true;
        self
    }

    /// Uses the CA of another cluster for the certificates of the nodes; TLS is enabled when the other cluster uses it.
    #[must_use]
    pub fn trusting(mut self, other: &Cluster) -> Self {
        self.secured = other.secured.is_some();
        self.authority = other.secured.clone();
        self
    }

    /// Gives each node its own zone.
    #[must_use]
    pub fn zones(mut self) -> Self {
        self.zones = true;
        self
    }

    /// Keeps the data of one node in this folder.
    #[must_use]
    pub fn data_dir(mut self, node: usize, dir: impl Into<PathBuf>) -> Self {
        self.folders.insert(node, dir.into());
        self
    }

    /// Gives each node a dedicated network namespace.
    ///
    /// # Errors
    /// They cannot be made, see [`Network::new`].
    pub fn network(mut self) -> Result<Self> {
        self.network = Some(Network::new(self.nodes)?);
        Ok(self)
    }

    /// The nodes, none of them started.
    ///
    /// # Errors
    /// A folder cannot be created.
    pub fn prepare(self) -> Result<Cluster> {
        let Self { nodes, template, zones, mut folders, network, secured, authority, faulty } = self;
        let secured = match authority {
            Some(authority) => Some(authority),
            None => secured.then(Secured::new).transpose()?,
        };
        let mut cluster = Cluster { nodes: Vec::new(), template, zones, network, secured, finished: false };
        let setups = (0..nodes).map(|number| cluster.setup_of(number)).collect::<Result<Vec<Setup>>>()?;
        let seeds: Vec<String> = setups.iter().map(|setup| setup.address().to_string()).collect();
        for (number, setup) in setups.into_iter().enumerate() {
            let mut setup = setup.set("cluster.bootstrap-expect", nodes).set("cluster.seeds", json!(seeds));
            if faulty {
                setup = setup.on(Arc::new(FaultyMachine::new(false)?));
            }
            if let Some(folder) = folders.remove(&number) {
                setup = setup.data_dir(folder);
            }
            cluster.nodes.push(setup.prepare()?);
        }
        Ok(cluster)
    }

    /// Starts all nodes and waits until they are one cluster.
    ///
    /// # Errors
    /// A node does not become ready, or the nodes do not find one another.
    pub async fn start(self) -> Result<Cluster> {
        let mut cluster = self.prepare()?;
        cluster.start_all()?;
        cluster.settled().await?;
        Ok(cluster)
    }
}

/// Several nodes, by number from 0.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    template: Setup,
    zones: bool,
    // Dropped after the nodes: it can be removed only when nothing runs in it.
    network: Option<Network>,
    /// `None`: plaintext.
    secured: Option<Arc<Secured>>,
    finished: bool,
}

impl Cluster {
    /// A cluster of this many nodes, which bootstraps when all of them run.
    pub fn of(nodes: usize) -> ClusterSetup {
        ClusterSetup {
            nodes,
            template: Setup::new(),
            zones: false,
            folders: BTreeMap::new(),
            network: None,
            secured: tls::by_default(),
            authority: None,
            faulty: false,
        }
    }

    fn setup_of(&self, number: usize) -> Result<Setup> {
        // Every node has its own ports: it shares loopback with the other nodes.
        let mut setup = self.template.clone().data_port(crate::node::free_port()).ops_port(crate::node::free_port());
        setup = setup.set("node.name", format!("node-{number}"));
        if self.zones {
            setup = setup.set("cluster.zone", format!("zone-{number}"));
        }
        if let Some(network) = &self.network {
            setup = setup.inside(network.namespace(number), network.address(number));
        }
        self.encrypt(setup, &format!("node-{number}"))
    }

    /// Gives a node certificates with this name, when the cluster uses TLS.
    ///
    /// # Errors
    /// `chronicle cert` fails.
    pub fn encrypt(&self, setup: Setup, name: &str) -> Result<Setup> {
        let Some(secured) = &self.secured else { return Ok(setup) };
        tls::register(setup.address(), secured);
        let mounted = secured.node(name, &setup.address().ip().to_string())?;
        Ok(setup
            .set("security.tls.mode", "enabled")
            .set("security.tls.cert-file", json!(mounted.file("tls.crt")))
            .set("security.tls.key-file", json!(mounted.file("tls.key")))
            .set("security.tls.ca-file", json!(mounted.file("ca.crt")))
            .set("security.tls.client-auth", "required")
            .set("security.tls.reload-ms", 200))
    }

    /// Number of nodes, running or not.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// A node.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number]
    }

    /// A node, mutable.
    pub fn node_mut(&mut self, number: usize) -> &mut Node {
        &mut self.nodes[number]
    }

    /// The network between the nodes.
    ///
    /// # Panics
    /// The cluster was made without [`ClusterSetup::network`].
    pub fn network(&self) -> &Network {
        self.network.as_ref().expect("the cluster has a network of its own")
    }

    /// Addresses of all nodes, separated by commas, as a client is configured with.
    pub fn servers(&self) -> String {
        let addresses: Vec<String> = self.nodes.iter().map(|node| node.address().to_string()).collect();
        addresses.join(",")
    }

    /// What secures the cluster.
    ///
    /// # Panics
    /// It is not secured.
    pub fn secured(&self) -> &Arc<Secured> {
        self.secured.as_ref().expect("the cluster is secured")
    }

    /// The `chronicle` program, as a client of a node.
    ///
    /// # Errors
    /// The program cannot be built.
    pub fn program(&self, number: usize) -> Result<Command> {
        let mut command = crate::node::program()?;
        let address = self.nodes[number].address();
        command.env("CHRONICLE_SERVER", address.to_string());
        tls::encrypt(&mut command, address);
        Ok(command)
    }

    /// Numbers of the nodes whose process runs.
    pub fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|number| self.nodes[*number].is_running()).collect()
    }

    /// Starts every node that does not run and waits until each is ready. They need one another to become ready.
    ///
    /// # Errors
    /// One does not become ready.
    pub fn start_all(&mut self) -> Result<()> {
        let started: Vec<usize> = (0..self.nodes.len()).filter(|number| !self.nodes[*number].is_running()).collect();
        for number in &started {
            self.nodes[*number].launch()?;
        }
        self.wait_ready(&started)
    }

    /// Waits until each of these nodes is ready.
    ///
    /// # Errors
    /// One ends or is not ready in time.
    pub fn wait_ready(&mut self, numbers: &[usize]) -> Result<()> {
        blocking(|| {
            numbers
                .iter()
                .try_for_each(|number| self.nodes[*number].wait_ready().with_context(|| format!("node-{number}")))
        })
    }

    /// Kills a node (`kill -9`).
    pub fn kill(&mut self, number: usize) {
        blocking(|| self.nodes[number].kill());
    }

    /// Kills every node, all at once.
    pub fn kill_all(&mut self) {
        // A stopped process acknowledges nothing, so no node acknowledges records while the others are being killed.
        for node in &self.nodes {
            let _ = node.pause();
        }
        blocking(|| self.nodes.iter_mut().for_each(Node::kill));
    }

    /// Starts a node again and waits until it is ready.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn restart(&mut self, number: usize) -> Result<()> {
        blocking(|| self.nodes[number].restart()).with_context(|| format!("node-{number}"))
    }

    /// Stops a node cleanly.
    ///
    /// # Errors
    /// It does not stop, or not with success.
    pub fn terminate(&mut self, number: usize) -> Result<()> {
        let (status, log) = blocking(|| self.nodes[number].terminate())?;
        ensure!(status.success(), "SIGTERM ends node-{number} with {status}:\n{log}");
        Ok(())
    }

    /// Adds a node that joins the cluster, and waits until it is ready; returns its number. `change` modifies its
    /// setup.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn add_node(&mut self, change: impl FnOnce(Setup) -> Setup) -> Result<usize> {
        let number = self.nodes.len();
        if let Some(network) = &mut self.network {
            network.add()?;
        }
        let setup = self.setup_of(number)?;
        let mut seeds: Vec<String> = self.nodes.iter().map(|node| node.address().to_string()).collect();
        seeds.push(setup.address().to_string());
        // The node must never bootstrap a cluster: alone it never sees this many nodes.
        let setup = setup.set("cluster.bootstrap-expect", number + 1).set("cluster.seeds", json!(seeds));
        let mut node = change(setup).prepare()?;
        blocking(|| node.restart()).with_context(|| format!("node-{number}"))?;
        self.nodes.push(node);
        Ok(number)
    }

    /// Changes the setup of a node from its next start on: `setup` receives its current one ([`Node::setup`]).
    ///
    /// # Errors
    /// The node runs.
    pub fn replace_setup(&mut self, number: usize, setup: Setup) -> Result<()> {
        if let Some(secured) = &self.secured {
            tls::register(setup.address(), secured);
        }
        self.nodes[number].replace_setup(setup)
    }

    /// `GetStatus` of one node.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn status(&self, number: usize) -> Result<v1::GetStatusResponse> {
        let address = self.nodes[number].address();
        ask(async { Ok(api::cluster(address).await?.get_status(v1::GetStatusRequest {}).await?.into_inner()) }).await
    }

    /// `GetMetadata` of one node, for one topic.
    ///
    /// # Errors
    /// It does not answer, or does not know the topic.
    pub async fn metadata(&self, number: usize, topic: &str) -> Result<(v1::TopicMetadata, Vec<v1::Server>)> {
        let address = self.nodes[number].address();
        let request = v1::GetMetadataRequest { topics: vec![topic.to_owned()] };
        let mut answer =
            ask(async { Ok(api::cluster(address).await?.get_metadata(request).await?.into_inner()) }).await?;
        let found = answer.topics.pop().with_context(|| format!("node-{number} does not know topic {topic}"))?;
        Ok((found, answer.servers))
    }

    /// `DescribeTopic` of one node.
    ///
    /// # Errors
    /// It does not answer, or does not know the topic.
    pub async fn describe(&self, number: usize, topic: &str) -> Result<v1::DescribeTopicResponse> {
        let address = self.nodes[number].address();
        let request = v1::DescribeTopicRequest { name: topic.to_owned() };
        ask(async { Ok(api::admin(address).await?.describe_topic(request).await?.into_inner()) }).await
    }

    /// Creates a topic through the first running node that accepts.
    ///
    /// # Errors
    /// The last node's refusal.
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        replication_factor: i32,
        settings: Option<v1::TopicSettings>,
    ) -> Result<()> {
        let request = v1::CreateTopicRequest {
            name: name.to_owned(),
            partitions,
            replication_factor,
            settings,
            if_not_exists: true,
        };
        let mut last = None;
        for number in self.running() {
            let address = self.nodes[number].address();
            match ask(async { Ok(api::admin(address).await?.create_topic(request.clone()).await?) }).await {
                Ok(_) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no node runs")?).with_context(|| format!("creating topic {name}"))
    }

    /// Waits until a condition holds; the error of the last check describes what was missing.
    ///
    /// # Errors
    /// It does not hold in time.
    pub async fn eventually<T>(&self, what: &str, mut look: impl AsyncFnMut(&Self) -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match look(self).await {
                Ok(found) => return Ok(found),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| format!("not within {PATIENCE:?}: {what}"));
                }
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Waits until every running node reports the same cluster and controller leader, and receives heartbeats from
    /// every running node.
    ///
    /// # Errors
    /// It does not happen in time.
    pub async fn settled(&self) -> Result<()> {
        self.eventually("one cluster with a controller leader, all nodes alive", async |cluster| {
            let running = cluster.running();
            let mut seen = None;
            for number in &running {
                let status = cluster.status(*number).await.with_context(|| format!("node-{number}"))?;
                ensure!(!status.controller_leader.is_empty(), "node-{number} knows no controller leader");
                for other in &running {
                    let address = cluster.nodes[*other].address().to_string();
                    let mut servers = status.servers.iter().filter(|server| server.address == address);
                    ensure!(
                        servers.any(|server| server.alive && server.state() != v1::ServerState::Removed),
                        "node-{number} receives no heartbeat from node-{other}"
                    );
                }
                let here = (status.cluster_id, status.controller_leader);
                ensure!(*seen.get_or_insert(here.clone()) == here, "node-{number} reports another state: {here:?}");
            }
            Ok(())
        })
        .await
    }

    /// Number of the leader of a partition: waits until a node reports itself as the leader.
    ///
    /// # Errors
    /// None does in time.
    pub async fn leader(&self, topic: &str, partition: i32) -> Result<usize> {
        self.eventually("a leader that reports itself", async |cluster| {
            let mut last = None;
            for number in cluster.running() {
                match cluster.leader_as_known_to(number, topic, partition).await {
                    Ok(leader) if leader == number => return Ok(number),
                    Ok(leader) => last = Some(anyhow::anyhow!("node-{number} reports node-{leader} as the leader")),
                    Err(error) => last = Some(error.context(format!("node-{number}"))),
                }
            }
            Err(last.context("no node runs")?)
        })
        .await
    }

    /// Number of the leader of a partition, as one node reports it.
    ///
    /// # Errors
    /// It does not answer, or knows none.
    pub async fn leader_as_known_to(&self, number: usize, topic: &str, partition: i32) -> Result<usize> {
        let (topic, servers) = self.metadata(number, topic).await?;
        let index = usize::try_from(partition)?;
        let leader = &topic.partitions.get(index).context("no such partition")?.leader;
        let server = servers.iter().find(|server| server.node_id == *leader).context("no leader is known")?;
        self.by_address(&server.address)
    }

    /// Numbers of the nodes that hold a replica of a partition, the preferred leader first.
    ///
    /// # Errors
    /// No running node knows.
    pub async fn replicas(&self, topic: &str, partition: i32) -> Result<Vec<usize>> {
        let any = *self.running().first().context("no node runs")?;
        let (topic, servers) = self.metadata(any, topic).await?;
        let found = topic.partitions.get(usize::try_from(partition)?).context("no such partition")?;
        let number = |node_id: &String| {
            let server = servers.iter().find(|server| server.node_id == *node_id);
            self.by_address(&server.with_context(|| format!("no server has id {node_id}"))?.address)
        };
        found.replicas.iter().map(number).collect()
    }

    /// The log of a partition, for [`replica`].
    ///
    /// # Errors
    /// No running node knows the topic.
    pub async fn log_id(&self, topic: &str, partition: i32) -> Result<LogId> {
        let any = *self.running().first().context("no node runs")?;
        let (topic, _) = self.metadata(any, topic).await?;
        Ok(LogId { topic: topic.id.parse()?, partition: u32::try_from(partition)? })
    }

    fn by_address(&self, address: &str) -> Result<usize> {
        let address: SocketAddr = address.parse().with_context(|| format!("{address} is no address"))?;
        let number = self.nodes.iter().position(|node| node.address() == address);
        number.with_context(|| format!("no node of this test has address {address}"))
    }

    /// Waits until every replica of every partition of a topic is on a running node and has applied the same end.
    ///
    /// # Errors
    /// They do not in time.
    pub async fn caught_up(&self, topic: &str) -> Result<()> {
        self.eventually("every replica at the same end", async |cluster| {
            for (partition, ends) in cluster.ends(topic).await?.iter().enumerate() {
                let same = ends.values().all(|end| Some(end) == ends.values().next());
                ensure!(same, "ends of partition {partition} by node: {ends:?}");
            }
            Ok(())
        })
        .await
    }

    /// Waits until every replica of every partition has what some replica has now: while writers continue, the ends are
    /// never equal.
    ///
    /// # Errors
    /// One of them stays behind, or a replica is not usable.
    pub async fn keeps_up(&self, topic: &str) -> Result<()> {
        let goals: Vec<i64> = self
            .eventually("every replica usable", async |cluster| cluster.ends(topic).await)
            .await?
            .iter()
            .map(|ends| ends.values().copied().max().unwrap_or(0))
            .collect();
        self.eventually("every replica at what there was", async |cluster| {
            for (partition, (ends, goal)) in cluster.ends(topic).await?.iter().zip(&goals).enumerate() {
                ensure!(ends.values().all(|end| end >= goal), "ends of partition {partition}, {goal} wanted: {ends:?}");
            }
            Ok(())
        })
        .await
    }

    /// The next offset of each partition by the nodes that have a replica of it.
    async fn ends(&self, topic: &str) -> Result<Vec<BTreeMap<usize, i64>>> {
        let any = *self.running().first().context("no node runs")?;
        let (metadata, _) = self.metadata(any, topic).await?;
        let mut described = BTreeMap::new();
        for number in self.running() {
            described.insert(number, self.describe(number, topic).await?.partitions);
        }
        let mut all = Vec::new();
        for partition in 0..metadata.partitions.len() {
            let mut ends = BTreeMap::new();
            for number in self.replicas(topic, i32::try_from(partition)?).await? {
                let here = described.get(&number).and_then(|partitions| partitions.get(partition));
                let here = here.with_context(|| format!("node-{number} has a replica and does not run"))?;
                let usable = ["active", "dormant"].contains(&here.state.as_str());
                ensure!(usable, "partition {partition} on node-{number} is {}", here.state);
                ends.insert(number, here.next);
            }
            all.push(ends);
        }
        Ok(all)
    }

    /// Waits until all replicas have caught up, stops every node, and reads each replica from its disk: they must be the
    /// same, record for record, and agree with the history. Answers the records by partition.
    ///
    /// # Errors
    /// The first difference or contradiction.
    pub async fn check_disks(&mut self, topic: &str, history: &History) -> Result<Vec<Vec<Stored>>> {
        self.caught_up(topic).await?;
        let any = *self.running().first().context("no node runs")?;
        let partitions = i32::try_from(self.metadata(any, topic).await?.0.partitions.len())?;
        let mut places = Vec::new();
        for partition in 0..partitions {
            places.push((self.log_id(topic, partition).await?, self.replicas(topic, partition).await?));
        }
        for number in self.running() {
            self.terminate(number)?;
        }
        let mut all = Vec::new();
        for (partition, (log, replicas)) in (0..).zip(places) {
            let mut first: Option<(usize, Vec<Stored>)> = None;
            for number in replicas {
                let read = replica::read(self.nodes[number].data_dir(), log);
                let read = read.with_context(|| format!("partition {partition} on node-{number}"))?;
                match &first {
                    None => first = Some((number, read)),
                    Some((other, expected)) => same(expected, &read).with_context(|| {
                        format!("partition {partition}: node-{other} and node-{number} hold different records")
                    })?,
                }
            }
            let (number, stored) = first.context("a partition without replicas")?;
            history.check(partition, &stored).with_context(|| format!("partition {partition} on node-{number}"))?;
            all.push(stored);
        }
        Ok(all)
    }

    /// Ends a successful test: stops the nodes and prints nothing.
    ///
    /// # Errors
    /// A node does not stop cleanly.
    pub fn finish(mut self) -> Result<()> {
        for number in self.running() {
            self.terminate(number)?;
        }
        self.finished = true;
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.iter().for_each(|node| tls::forget(node.address()));
        if self.finished {
            return;
        }
        for (number, node) in self.nodes.iter().enumerate() {
            let log = node.whole_log();
            let cut = log.len().saturating_sub(LOG_SHOWN);
            let start = (cut..=log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(0);
            eprintln!("--- node-{number} on {}, the end of its output ---\n{}", node.address(), &log[start..]);
        }
    }
}

/// Compares two lists; the error names the first difference, not the whole content.
fn same(expected: &[Stored], found: &[Stored]) -> Result<()> {
    for (a, b) in expected.iter().zip(found) {
        ensure!(a == b, "offset {} and offset {}", a.offset, b.offset);
    }
    ensure!(expected.len() == found.len(), "{} records and {} records", expected.len(), found.len());
    Ok(())
}

async fn ask<T>(question: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(ASK, question).await {
        Ok(answer) => answer,
        Err(_) => bail!("no answer within {ASK:?}"),
    }
}

/// Runs blocking work so that waiting for a process does not block writers on the same runtime.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}
