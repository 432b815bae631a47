//! The output of `chronicle cluster`: the same data for programs (`Serialize`) and, in tables, for people.

use std::collections::BTreeMap;

use chronicle_client::v1;
use serde::Serialize;

use crate::cli::output::{Format, Table, print};
use crate::cli::time::format_rfc3339;

/// Names of nodes by UUID.
#[derive(Debug, Default)]
pub(in crate::cli) struct ServerNames(BTreeMap<String, String>);

impl ServerNames {
    pub(in crate::cli) fn new(servers: &[v1::Server]) -> Self {
        Self(servers.iter().map(|server| (server.node_id.clone(), server.name.clone())).collect())
    }

    /// Returns the name of a node, or its UUID when the name is unknown.
    pub(in crate::cli) fn of<'a>(&'a self, node_id: &'a str) -> &'a str {
        self.0.get(node_id).filter(|name| !name.is_empty()).map_or(node_id, String::as_str)
    }
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct ServerOutput {
    pub(super) name: String,
    pub(super) node_id: String,
    pub(super) raft_id: u64,
    /// Of the data listener.
    pub(super) address: String,
    /// Of every listener, by its name.
    pub(super) addresses: BTreeMap<String, String>,
    /// Role in the controller group: `leader`, `voter` or `learner`.
    pub(super) role: &'static str,
    pub(super) state: &'static str,
    pub(super) alive: bool,
    pub(super) zone: String,
    pub(super) replicas: u32,
    /// Of those, replicas that cannot be opened or whose log is being filled.
    pub(super) replicas_out_of_service: u32,
    pub(super) preferred_leaders: u32,
    /// Encryption of its data port: `tls`, `plaintext`, or `unknown` when the answering node has received no heartbeat
    /// from it.
    pub(super) encryption: &'static str,
    /// Serial number of its certificate; empty without one.
    pub(super) certificate_serial: String,
    /// Expiry of that certificate; `null` without one.
    pub(super) certificate_expires: Option<String>,
    pub(super) version: String,
}

impl From<v1::Server> for ServerOutput {
    fn from(server: v1::Server) -> Self {
        let role = match server.role() {
            _ if server.controller_leader => "leader",
            v1::ServerRole::Voter => "voter",
            v1::ServerRole::Learner => "learner",
            v1::ServerRole::Unspecified => "none",
        };
        let state = match server.state() {
            v1::ServerState::Active | v1::ServerState::Unspecified => "active",
            v1::ServerState::Draining => "draining",
            v1::ServerState::Decommissioning => "decommissioning",
            v1::ServerState::Removed => "removed",
        };
        let encryption = match &server.encryption {
            None => "unknown",
            Some(encryption) if encryption.certificate_serial.is_empty() => "plaintext",
            Some(_) => "tls",
        };
        let certificate = server.encryption.unwrap_or_default();
        Self {
            role,
            state,
            encryption,
            certificate_expires: (encryption == "tls")
                .then(|| format_rfc3339(certificate.certificate_not_after_s.saturating_mul(1000))),
            certificate_serial: certificate.certificate_serial,
            name: server.name,
            node_id: server.node_id,
            raft_id: server.raft_id,
            // The data listener's also where the answering node sends only `address`.
            addresses: [("data".to_owned(), server.address.clone())].into_iter().chain(server.addresses).collect(),
            address: server.address,
            alive: server.alive,
            zone: server.zone,
            replicas: server.replicas,
            replicas_out_of_service: server.replicas_out_of_service,
            preferred_leaders: server.preferred_leaders,
            version: server.version,
        }
    }
}

pub(super) fn members_table(servers: &[ServerOutput]) -> Table {
    let mut table = Table::new(&[
        "NAME", "ADDRESS", "ROLE", "STATE", "ALIVE", "ZONE", "REPLICAS", "LEADERS", "VERSION", "TLS", "ID",
    ]);
    for server in servers {
        table.row(vec![
            server.name.clone(),
            server.address.clone(),
            server.role.to_owned(),
            server.state.to_owned(),
            if server.alive { "yes" } else { "no" }.to_owned(),
            or_dash(&server.zone),
            match server.replicas_out_of_service {
                0 => server.replicas.to_string(),
                out => format!("{} ({out} out of service)", server.replicas),
            },
            server.preferred_leaders.to_string(),
            server.version.clone(),
            server
                .certificate_expires
                .as_ref()
                .map_or_else(|| server.encryption.to_owned(), |end| format!("until {end}")),
            server.node_id.clone(),
        ]);
    }
    table
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.to_owned() }
}

/// The state of the cluster.
#[derive(Debug, Serialize)]
pub(super) struct StatusOutput {
    cluster_id: String,
    /// Name of the leader; `null`: the controller group has no leader.
    controller_leader: Option<String>,
    controller_term: u64,
    partitions: u32,
    under_replicated: u32,
    offline: u32,
    moving: u32,
    pub(super) servers: Vec<ServerOutput>,
    operations: Vec<OperationOutput>,
}

impl From<v1::GetStatusResponse> for StatusOutput {
    fn from(answer: v1::GetStatusResponse) -> Self {
        let names = ServerNames::new(&answer.servers);
        let leader = &answer.controller_leader;
        let mut servers: Vec<ServerOutput> = answer.servers.into_iter().map(Into::into).collect();
        servers.sort_by(|a, b| (&a.name, a.raft_id).cmp(&(&b.name, b.raft_id)));
        Self {
            controller_leader: (!leader.is_empty()).then(|| names.of(leader).to_owned()),
            cluster_id: answer.cluster_id,
            controller_term: answer.controller_term,
            partitions: answer.partitions,
            under_replicated: answer.under_replicated,
            offline: answer.offline,
            moving: answer.moving,
            servers,
            operations: answer.operations.into_iter().map(|o| OperationOutput::new(o, &names)).collect(),
        }
    }
}

impl StatusOutput {
    fn pairs(&self) -> Table {
        let leader = self
            .controller_leader
            .as_deref()
            .unwrap_or("none (no changes are possible until a majority of the voters is available)");
        Table::pairs(vec![
            ("Cluster", self.cluster_id.clone()),
            ("Controller", format!("{leader}, term {}", self.controller_term)),
            ("Partitions", self.partitions.to_string()),
            ("Under-replicated", self.under_replicated.to_string()),
            ("Offline", self.offline.to_string()),
            ("Moving", self.moving.to_string()),
        ])
    }

    /// Prints tables: counts, nodes that are not removed, operations.
    pub(super) fn print_tables(&self) -> anyhow::Result<()> {
        print(Format::Table, &(), || self.pairs())?;
        println!();
        let present: Vec<ServerOutput> = self.servers.iter().filter(|s| s.state != "removed").cloned().collect();
        print(Format::Table, &(), || members_table(&present))?;
        let open: Vec<&str> = present.iter().filter(|s| s.encryption == "plaintext").map(|s| s.name.as_str()).collect();
        if !open.is_empty() {
            let open = open.join(", ");
            println!(
                "\nwarning: plaintext data port, any client that can connect can read and write everything: {open}"
            );
        }
        if !self.operations.is_empty() {
            println!();
            print(Format::Table, &(), || operations_table(&self.operations))?;
        }
        Ok(())
    }
}

/// An operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct OperationOutput {
    id: u64,
    kind: String,
    node: String,
    node_id: String,
    state: String,
    reason: String,
    started: String,
    started_ms: i64,
    /// 0: still running.
    finished_ms: i64,
    total: u32,
    remaining: u32,
}

impl OperationOutput {
    pub(super) fn new(operation: v1::Operation, names: &ServerNames) -> Self {
        Self {
            node: names.of(&operation.node_id).to_owned(),
            started: format_rfc3339(operation.started_ms),
            id: operation.id,
            kind: operation.kind,
            node_id: operation.node_id,
            state: operation.state,
            reason: operation.reason,
            started_ms: operation.started_ms,
            finished_ms: operation.finished_ms,
            total: operation.total,
            remaining: operation.remaining,
        }
    }

    fn done(&self) -> String {
        format!("{}/{}", self.total.saturating_sub(self.remaining), self.total)
    }

    pub(super) fn pairs(&self) -> Table {
        let mut pairs = vec![
            ("Operation", format!("{} ({})", self.id, self.kind)),
            ("Node", self.node.clone()),
            ("State", self.state.clone()),
            ("Partitions done", self.done()),
            ("Started", self.started.clone()),
        ];
        if !self.reason.is_empty() {
            pairs.push(("Reason", self.reason.clone()));
        }
        Table::pairs(pairs)
    }
}

fn operations_table(operations: &[OperationOutput]) -> Table {
    let mut table = Table::new(&["OPERATION", "KIND", "NODE", "STATE", "DONE", "STARTED", "REASON"]);
    for operation in operations {
        table.row(vec![
            operation.id.to_string(),
            operation.kind.clone(),
            operation.node.clone(),
            operation.state.clone(),
            operation.done(),
            operation.started.clone(),
            or_dash(&operation.reason),
        ]);
    }
    table
}

/// A transfer of leadership.
#[derive(Debug, Serialize)]
pub(super) struct TransferOutput {
    /// `null`: the controller group.
    topic: Option<String>,
    partition: i32,
    leader: String,
    leader_id: String,
}

impl TransferOutput {
    pub(super) fn new(topic: Option<String>, partition: i32, leader_id: String, names: &ServerNames) -> Self {
        Self { topic, partition, leader: names.of(&leader_id).to_owned(), leader_id }
    }

    pub(super) fn pairs(&self) -> Table {
        let group = match &self.topic {
            Some(topic) => format!("{topic} {}", self.partition),
            None => "controller".into(),
        };
        Table::pairs(vec![("Group", group), ("Leader", self.leader.clone())])
    }
}

/// The result of comparing the replicas of one partition.
#[derive(Debug, Serialize)]
pub(super) struct VerifiedOutput {
    pub(super) topic: String,
    pub(super) partition: i32,
    /// First raft index compared (inclusive).
    from: u64,
    /// End of the compared raft indexes (exclusive).
    to: u64,
    replicas: Vec<DigestOutput>,
    /// Empty: all replicas are the same.
    difference: String,
}

#[derive(Debug, Serialize)]
struct DigestOutput {
    node: String,
    node_id: String,
    digest: String,
    /// Empty: none.
    error: String,
}

impl VerifiedOutput {
    pub(super) fn new(answer: v1::VerifyResponse, names: &ServerNames) -> Self {
        let digest = |replica: v1::ReplicaDigest| DigestOutput {
            node: names.of(&replica.node_id).to_owned(),
            node_id: replica.node_id,
            digest: replica.digest,
            error: replica.error,
        };
        Self {
            topic: answer.topic,
            partition: answer.partition,
            from: answer.from,
            to: answer.to,
            replicas: answer.replicas.into_iter().map(digest).collect(),
            difference: answer.difference,
        }
    }

    /// Whether every replica was read and all are the same.
    pub(super) fn same(&self) -> bool {
        self.difference.is_empty() && self.differing().is_empty()
    }

    /// Returns the replicas that could not be read or whose digest differs from the most frequent one.
    fn differing(&self) -> Vec<&DigestOutput> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for replica in self.replicas.iter().filter(|replica| replica.error.is_empty()) {
            *counts.entry(&replica.digest).or_default() += 1;
        }
        let most = counts.values().copied().max().unwrap_or(0);
        // When no digest is the most frequent one, all replicas count as differing.
        let mut leading = counts.iter().filter(|(_, count)| **count == most).map(|(digest, _)| *digest);
        let agreed = leading.next().filter(|_| leading.next().is_none());
        self.replicas.iter().filter(|r| !r.error.is_empty() || Some(r.digest.as_str()) != agreed).collect()
    }

    /// Returns a human-readable text that names the differing replicas.
    pub(super) fn problem(&self) -> String {
        let replica = |replica: &&DigestOutput| {
            if replica.error.is_empty() {
                format!("{} has {}", replica.node, short(&replica.digest))
            } else {
                format!("{} could not be read: {}", replica.node, replica.error)
            }
        };
        let mut parts: Vec<String> = self.differing().iter().map(replica).collect();
        if !self.difference.is_empty() {
            parts.insert(0, self.difference.clone());
        }
        parts.join("; ")
    }
}

fn short(digest: &str) -> &str {
    digest.get(..16).unwrap_or(digest)
}

pub(super) fn verified_table(views: &[VerifiedOutput]) -> Table {
    let mut table = Table::new(&["TOPIC", "PARTITION", "FROM", "TO", "REPLICAS", "DIGEST", "RESULT"]);
    for view in views {
        let nodes: Vec<&str> = view.replicas.iter().map(|replica| replica.node.as_str()).collect();
        let digest = if view.same() { view.replicas.first().map_or("", |replica| short(&replica.digest)) } else { "" };
        table.row(vec![
            view.topic.clone(),
            view.partition.to_string(),
            view.from.to_string(),
            view.to.to_string(),
            nodes.join(","),
            or_dash(digest),
            if view.same() { "same" } else { "DIFFERENT" }.to_owned(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verified(replicas: &[(&str, &str, &str)], difference: &str) -> VerifiedOutput {
        let replicas = replicas.iter().map(|(node, digest, error)| v1::ReplicaDigest {
            node_id: (*node).to_owned(),
            digest: (*digest).to_owned(),
            error: (*error).to_owned(),
        });
        let answer = v1::VerifyResponse {
            replicas: replicas.collect(),
            difference: difference.to_owned(),
            ..Default::default()
        };
        VerifiedOutput::new(answer, &ServerNames::default())
    }

    #[test]
    fn the_replica_that_differs_from_the_majority_is_named() {
        assert!(verified(&[("a", "1", ""), ("b", "1", ""), ("c", "1", "")], "").same());
        let one = verified(&[("a", "1", ""), ("b", "2", ""), ("c", "1", "")], "");
        assert!(!one.same());
        assert_eq!(one.problem(), "b has 2");
        let unread = verified(&[("a", "1", ""), ("b", "", "down")], "");
        assert_eq!(unread.problem(), "b could not be read: down");
        let tie = verified(&[("a", "1", ""), ("b", "2", "")], "digests differ");
        assert_eq!(tie.problem(), "digests differ; a has 1; b has 2");
    }

    #[test]
    fn a_partition_of_one_replica_is_the_same() {
        assert!(verified(&[("a", "1", "")], "").same());
        assert!(!verified(&[("a", "", "gone")], "").same());
    }

    #[test]
    fn nodes_are_shown_by_name_where_they_have_one() {
        let server = v1::Server { node_id: "u".into(), name: "node-0".into(), ..Default::default() };
        let names = ServerNames::new(&[server]);
        assert_eq!((names.of("u"), names.of("v")), ("node-0", "v"));
    }

    #[test]
    fn every_listener_has_its_address_and_the_data_listener_has_one_of_any_version() {
        let server = v1::Server { address: "d:1".into(), ..Default::default() };
        let view = ServerOutput::from(server.clone());
        assert_eq!((view.address.as_str(), view.addresses["data"].as_str()), ("d:1", "d:1"));
        let addresses = [("data", "d:1"), ("kafka", "k:1")].map(|(name, at)| (name.to_owned(), at.to_owned()));
        let view = ServerOutput::from(v1::Server { addresses: addresses.clone().into(), ..server });
        assert_eq!(view.addresses, addresses.into());
    }

    #[test]
    fn roles_and_states_are_words() {
        let server = v1::Server {
            role: v1::ServerRole::Voter.into(),
            state: v1::ServerState::Draining.into(),
            ..Default::default()
        };
        let view = ServerOutput::from(server.clone());
        assert_eq!((view.role, view.state), ("voter", "draining"));
        let leader = ServerOutput::from(v1::Server { controller_leader: true, ..server });
        assert_eq!(leader.role, "leader");
    }
}
