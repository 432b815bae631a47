//! Metadata of the cluster as last received: nodes, and the leaders and replicas of the partitions in use.
//!
//! Answers come from any node, and a node may be behind. Rules of [`Metadata::merge`]:
//! - Of two answers about one partition, the one with the higher term wins. A topic that was deleted and created again (with
//!   another id) starts over.
//! - Without a term (0) the answering node names the designated leader of a dormant partition. It replaces the known leader
//!   only when that one is not alive.
//! - A redirect ([`Metadata::set_hint`]) stays in force until an answer has another leader than the one that it corrected, or
//!   a higher term.
//!
//! Plain data without I/O. Names only `address.rs`; `metadata_cache.rs` above it asks the nodes.

use std::collections::{HashMap, HashSet};

use chronicle_proto::v1;

use crate::address::{Address, parse_address};

/// Nodes and partitions as last received.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    servers: HashMap<String, Server>,
    topics: HashMap<String, Topic>,
    /// Topics that were asked for and do not exist on the answering node.
    unknown: HashSet<String>,
}

#[derive(Debug, Clone)]
struct Server {
    address: Address,
    alive: bool,
}

#[derive(Debug)]
struct Topic {
    id: String,
    partitions: HashMap<i32, Partition>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Partition {
    leader: Option<Address>,
    term: u64,
    replicas: Vec<Address>,
    /// The leader that a redirect named.
    hint: Option<Address>,
}

/// What the metadata says about a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// It exists.
    Known,
    /// A node was asked and has no such topic or partition.
    Missing,
    /// No node was asked about the topic yet.
    NotAsked,
}

impl Metadata {
    /// Merges an answer. Returns the addresses of new leaders.
    pub(crate) fn merge(&mut self, answer: v1::GetMetadataResponse) -> Vec<Address> {
        self.merge_servers(answer.servers);
        let mut new_leaders = Vec::new();
        for name in answer.unknown {
            self.topics.remove(&name);
            self.unknown.insert(name);
        }
        for topic in answer.topics {
            self.unknown.remove(&topic.name);
            let known = self
                .topics
                .entry(topic.name)
                .or_insert_with(|| Topic { id: topic.id.clone(), partitions: HashMap::new() });
            if known.id != topic.id {
                *known = Topic { id: topic.id, partitions: HashMap::new() };
            }
            for update in topic.partitions {
                let address = |id: &String| self.servers.get(id).map(|server| server.address.clone());
                let partition = known.partitions.entry(update.partition).or_default();
                partition.replicas = update.replicas.iter().filter_map(address).collect();
                let leader = address(&update.leader);
                let was_alive = partition.leader.as_ref().is_some_and(|leader| {
                    self.servers.values().any(|server| server.alive && server.address == *leader)
                });
                let wins = match update.term {
                    0 => partition.term == 0 || !was_alive,
                    term => term >= partition.term,
                };
                if wins && leader.is_some() && (partition.leader != leader || update.term > partition.term) {
                    new_leaders.extend(leader.clone());
                    partition.leader = leader;
                    partition.term = update.term.max(partition.term);
                    partition.hint = None;
                }
            }
        }
        new_leaders
    }

    /// Replaces the nodes.
    pub(crate) fn merge_servers(&mut self, servers: Vec<v1::Server>) {
        if servers.is_empty() {
            return;
        }
        let usable =
            |server: &v1::Server| server.state() != v1::ServerState::Removed && parse_address(&server.address).is_ok();
        self.servers = servers
            .into_iter()
            .filter(usable)
            .map(|server| (server.node_id, Server { address: server.address.into(), alive: server.alive }))
            .collect();
    }

    /// Forgets a topic that is no longer used.
    pub(crate) fn forget(&mut self, topic: &str) {
        self.topics.remove(topic);
        self.unknown.remove(topic);
    }

    pub(crate) fn lookup(&self, topic: &str, partition: i32) -> Lookup {
        match self.topics.get(topic) {
            Some(topic) if topic.partitions.contains_key(&partition) => Lookup::Known,
            Some(_) => Lookup::Missing,
            None if self.unknown.contains(topic) => Lookup::Missing,
            None => Lookup::NotAsked,
        }
    }

    fn partition(&self, topic: &str, partition: i32) -> Option<&Partition> {
        self.topics.get(topic)?.partitions.get(&partition)
    }

    /// The node to send appends to.
    pub(crate) fn leader(&self, topic: &str, partition: i32) -> Option<&Address> {
        let partition = self.partition(topic, partition)?;
        partition.hint.as_ref().or(partition.leader.as_ref())
    }

    /// The node to send appends to, and the last known term. Comparing them shows that leadership moved, even when it has come
    /// back to the same node.
    pub(crate) fn leadership(&self, topic: &str, partition: i32) -> (Option<Address>, u64) {
        let term = self.partition(topic, partition).map_or(0, |partition| partition.term);
        (self.leader(topic, partition).cloned(), term)
    }

    /// Live nodes with a replica that are not the leader, the preferred leader first.
    pub(crate) fn followers(&self, topic: &str, partition: i32) -> Vec<Address> {
        let leader = self.leader(topic, partition);
        let replicas = self.partition(topic, partition).map_or(&[][..], |partition| &partition.replicas);
        let follows = |address: &&Address| Some(*address) != leader && self.is_alive(address) != Some(false);
        replicas.iter().filter(follows).cloned().collect()
    }

    /// Whether the node at this address holds a replica.
    pub(crate) fn is_replica(&self, topic: &str, partition: i32, address: &str) -> bool {
        self.partition(topic, partition).is_some_and(|known| known.replicas.iter().any(|replica| **replica == *address))
    }

    /// Whether the node at this address is alive; `None`: no node has this address.
    pub(crate) fn is_alive(&self, address: &str) -> Option<bool> {
        self.servers.values().find(|server| *server.address == *address).map(|server| server.alive)
    }

    /// Addresses of all nodes: live ones first, then by address.
    pub(crate) fn addresses(&self) -> Vec<Address> {
        let mut servers: Vec<&Server> = self.servers.values().collect();
        servers.sort_by(|a, b| b.alive.cmp(&a.alive).then_with(|| a.address.cmp(&b.address)));
        servers.into_iter().map(|server| server.address.clone()).collect()
    }

    /// Number of known nodes.
    pub(crate) fn node_count(&self) -> usize {
        self.servers.len()
    }

    /// A node's redirect named this leader.
    pub(crate) fn set_hint(&mut self, topic: &str, partition: i32, leader: &Address) {
        if let Some(known) = self.topics.get_mut(topic).and_then(|topic| topic.partitions.get_mut(&partition)) {
            known.hint = (known.leader.as_ref() != Some(leader)).then(|| leader.clone());
        }
    }

    /// The node that a redirect named is not the leader, or does not answer.
    pub(crate) fn clear_hint(&mut self, topic: &str, partition: i32, address: &str) {
        if let Some(known) = self.topics.get_mut(topic).and_then(|topic| topic.partitions.get_mut(&partition))
            && known.hint.as_deref() == Some(address)
        {
            known.hint = None;
        }
    }

    /// Whether a redirect names this address.
    pub(crate) fn is_hinted(&self, address: &str) -> bool {
        let mut partitions = self.topics.values().flat_map(|topic| topic.partitions.values());
        partitions.any(|partition| partition.hint.as_deref() == Some(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes 0, 1, 2 at `n0:1`, ...; those in `dead` are not alive. One topic with one partition.
    fn answer(id: &str, leader: &str, term: u64, dead: &[usize]) -> v1::GetMetadataResponse {
        let server = |n: usize| v1::Server {
            node_id: n.to_string(),
            address: format!("n{n}:1"),
            alive: !dead.contains(&n),
            ..Default::default()
        };
        let partition = v1::PartitionMetadata {
            partition: 0,
            leader: leader.into(),
            term,
            replicas: ["0", "1", "2"].map(str::to_owned).into(),
        };
        let topic = v1::TopicMetadata { name: "t".into(), id: id.into(), partitions: vec![partition] };
        v1::GetMetadataResponse { topics: vec![topic], servers: (0..3).map(server).collect(), ..Default::default() }
    }

    fn leader(metadata: &Metadata) -> &str {
        metadata.leader("t", 0).map_or("", |leader| leader)
    }

    #[test]
    fn an_older_term_does_not_bring_the_old_leader_back() {
        let mut metadata = Metadata::default();
        assert_eq!(metadata.merge(answer("a", "1", 5, &[]))[0].as_ref(), "n1:1");
        assert!(metadata.merge(answer("a", "0", 4, &[])).is_empty());
        assert_eq!(leader(&metadata), "n1:1");
        metadata.merge(answer("a", "2", 6, &[]));
        assert_eq!(leader(&metadata), "n2:1");
        metadata.merge(answer("b", "0", 1, &[]));
        assert_eq!(leader(&metadata), "n0:1", "a topic that was created again starts over");
    }

    #[test]
    fn a_designated_leader_counts_only_when_the_leader_is_not_alive() {
        let mut metadata = Metadata::default();
        metadata.merge(answer("a", "1", 5, &[]));
        metadata.merge(answer("a", "0", 0, &[]));
        assert_eq!(leader(&metadata), "n1:1");
        metadata.merge(answer("a", "0", 0, &[1]));
        assert_eq!(leader(&metadata), "n0:1");
        metadata.merge(answer("a", "1", 4, &[]));
        assert_eq!(leader(&metadata), "n0:1", "an older term does not win");
        metadata.merge(answer("a", "", 7, &[]));
        assert_eq!(leader(&metadata), "n0:1", "an answer without a leader changes nothing");
    }

    #[test]
    fn a_redirect_stays_until_an_answer_names_another_leader() {
        let mut metadata = Metadata::default();
        metadata.merge(answer("a", "0", 5, &[]));
        metadata.set_hint("t", 0, &"n1:1".into());
        assert_eq!((leader(&metadata), metadata.is_hinted("n1:1")), ("n1:1", true));
        metadata.merge(answer("a", "0", 5, &[]));
        assert_eq!(leader(&metadata), "n1:1", "the leader that the redirect corrected does not come back");
        metadata.merge(answer("a", "2", 6, &[]));
        assert_eq!(leader(&metadata), "n2:1");
        metadata.set_hint("t", 0, &"n1:1".into());
        metadata.clear_hint("t", 0, "n0:1");
        assert_eq!(leader(&metadata), "n1:1");
        metadata.clear_hint("t", 0, "n1:1");
        assert_eq!(leader(&metadata), "n2:1");
    }

    #[test]
    fn followers_are_live_replicas_that_do_not_lead() {
        let mut metadata = Metadata::default();
        metadata.merge(answer("a", "1", 5, &[2]));
        assert_eq!(metadata.followers("t", 0), [Address::from("n0:1")]);
        assert_eq!(metadata.addresses().last().unwrap().as_ref(), "n2:1");
        assert_eq!((metadata.is_alive("n2:1"), metadata.is_alive("x:1")), (Some(false), None));
        assert!(metadata.is_replica("t", 0, "n2:1") && !metadata.is_replica("t", 1, "n2:1"));
    }

    #[test]
    fn missing_is_not_the_same_as_never_requested() {
        let mut metadata = Metadata::default();
        assert_eq!(metadata.lookup("t", 0), Lookup::NotAsked);
        metadata.merge(answer("a", "1", 5, &[]));
        assert_eq!((metadata.lookup("t", 0), metadata.lookup("t", 1)), (Lookup::Known, Lookup::Missing));
        metadata.merge(v1::GetMetadataResponse { unknown: vec!["t".into()], ..Default::default() });
        assert_eq!((metadata.lookup("t", 0), metadata.node_count()), (Lookup::Missing, 3));
        metadata.forget("t");
        assert_eq!(metadata.lookup("t", 0), Lookup::NotAsked);
    }

    #[test]
    fn servers_that_are_removed_or_have_no_usable_address_are_left_out() {
        let mut metadata = Metadata::default();
        let mut broken = answer("a", "1", 5, &[]);
        broken.servers[1].address = "nowhere".into();
        broken.servers[2].state = v1::ServerState::Removed.into();
        metadata.merge(broken);
        assert_eq!((leader(&metadata), metadata.node_count()), ("", 1));
    }
}
