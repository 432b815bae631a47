//! A simulated Chronicle cluster for tests, and an [`Admin`] that calls it. Its state advances only with [`FakeCluster::tick`].
//!
//! Neighbours: `controller/fake_kubernetes` runs its nodes in simulated pods and checks the invariants of the operator before each call.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chronicle_client::v1;
use parking_lot::Mutex;

use super::{Admin, AdminError, AdminResult, Target};
use crate::api::MemberState;
use crate::plan::{CatchUp, ClusterView, NodeConfiguration, NodeView, RunningOperation};

/// A simulated node.
#[derive(Debug, Clone)]
pub(crate) struct FakeNode {
    pub(crate) raft_id: u64,
    pub(crate) name: String,
    pub(crate) voter: bool,
    pub(crate) state: MemberState,
    pub(crate) running: bool,
    pub(crate) removed: bool,
    pub(crate) version: String,
    /// Ticks until its replicas have caught up.
    pub(crate) behind: u32,
    /// Configuration file at the start of the process.
    pub(crate) started_with: String,
    /// State of its current configuration file; `None`: its version does not report it.
    pub(crate) configuration: Option<NodeConfiguration>,
}

/// A simulated cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct FakeCluster {
    pub(crate) nodes: BTreeMap<String, FakeNode>,
    pub(crate) leader: Option<String>,
    pub(crate) voters_max: usize,
    /// Number of further reads that fail.
    pub(crate) failing_reads: u32,
    pub(crate) calls: Vec<String>,
    pub(crate) topics: BTreeMap<String, v1::Topic>,
    pub(crate) rules: Vec<v1::Acl>,
    pub(crate) quotas: BTreeMap<String, v1::Quota>,
    pub(crate) next: u64,
}

impl FakeCluster {
    /// Starts the process of a node on a disk. Returns false if the node of that disk was removed from the cluster.
    pub(crate) fn start(&mut self, node_id: &str, name: &str, version: &str) -> bool {
        if let Some(node) = self.nodes.get_mut(node_id) {
            if node.removed {
                return false;
            }
            if !node.running {
                node.running = true;
                node.behind = 2;
                node.started_with.clear();
                if node.state == MemberState::Draining {
                    node.state = MemberState::Active;
                }
            }
            node.version = version.to_owned();
            return true;
        }
        self.next += 1;
        let founding = self.nodes.is_empty();
        // A new node with the name of a dead node replaces it.
        for node in self.nodes.values_mut().filter(|node| node.name == name && !node.running) {
            node.removed = true;
            node.voter = false;
        }
        let node = FakeNode {
            raft_id: self.next,
            name: name.to_owned(),
            voter: founding,
            state: MemberState::Active,
            running: true,
            removed: false,
            version: version.to_owned(),
            behind: 2,
            started_with: String::new(),
            configuration: None,
        };
        self.nodes.insert(node_id.to_owned(), node);
        true
    }

    /// Stops all nodes that are not in `running`.
    pub(crate) fn stop_all_but(&mut self, running: &BTreeSet<String>) {
        for (id, node) in &mut self.nodes {
            if !running.contains(id) {
                node.running = false;
            }
        }
    }

    fn members(&self) -> impl Iterator<Item = (&String, &FakeNode)> {
        self.nodes.iter().filter(|(_, node)| !node.removed)
    }

    /// Returns whether a majority of the voters is running, not counting `without`.
    pub(crate) fn quorate_without(&self, without: Option<&str>) -> bool {
        let voters: Vec<(&String, &FakeNode)> = self.members().filter(|(_, node)| node.voter).collect();
        let alive = voters.iter().filter(|(id, node)| node.running && Some(id.as_str()) != without).count();
        !voters.is_empty() && alive > voters.len() / 2
    }

    /// Advances by one moment: the set of voters changes, decommissioned nodes are removed, leadership moves, replicas catch up.
    pub(crate) fn tick(&mut self) {
        if !self.quorate_without(None) {
            self.leader = None;
            return;
        }
        for node in self.nodes.values_mut().filter(|node| node.running) {
            node.behind = node.behind.saturating_sub(1);
        }
        let leaving: Vec<String> = self
            .members()
            .filter(|(_, node)| node.state == MemberState::Decommissioning)
            .map(|(id, _)| id.clone())
            .collect();
        for id in leaving {
            let node = self.nodes.get_mut(&id).unwrap();
            if node.voter {
                node.voter = false;
            } else {
                node.removed = true;
            }
        }
        let staying = self.members().filter(|(_, node)| node.state != MemberState::Decommissioning).count();
        let expected = match self.voters_max.min(staying) {
            0 => 0,
            most => (most - 1) | 1,
        };
        let voters = self.members().filter(|(_, node)| node.voter).count();
        let pick = |cluster: &Self, voter: bool| {
            let fits =
                |node: &FakeNode| node.voter == voter && (voter || (node.running && node.state == MemberState::Active));
            cluster.members().filter(|(_, node)| fits(node)).map(|(id, _)| id.clone()).last()
        };
        if voters < expected
            && let Some(id) = pick(self, false)
        {
            self.nodes.get_mut(&id).unwrap().voter = true;
        }
        if voters > expected
            && let Some(id) = pick(self, true)
        {
            self.nodes.get_mut(&id).unwrap().voter = false;
        }
        let may_lead =
            |node: &FakeNode| node.running && node.voter && node.state == MemberState::Active && !node.removed;
        if !self.leader.as_ref().is_some_and(|id| self.nodes.get(id).is_some_and(may_lead)) {
            let others = self.nodes.iter().find(|(_, node)| may_lead(node));
            let any = self.nodes.iter().find(|(_, node)| node.running && node.voter && !node.removed);
            self.leader = others.or(any).map(|(id, _)| id.clone());
        }
    }

    fn view(&self, target: &Target) -> Result<ClusterView, AdminError> {
        if !self.quorate_without(None) {
            return Err(AdminError::NoMajority("simulated".into()));
        }
        let known = |node: &FakeNode| target.nodes.iter().any(|(name, _)| *name == node.name);
        let reached = self.members().filter(|(_, node)| node.voter && node.running && known(node)).count();
        let voters = self.members().filter(|(_, node)| node.voter).count();
        if reached <= voters / 2 {
            return Err(AdminError::NoMajority("the target lacks nodes".into()));
        }
        let dead = self.members().filter(|(_, node)| !node.running).count() as u32;
        let busy = self.members().filter(|(_, node)| node.state == MemberState::Decommissioning);
        Ok(ClusterView {
            id: "simulated".into(),
            leader: self.leader.clone(),
            nodes: self
                .members()
                .map(|(id, node)| NodeView {
                    node_id: id.clone(),
                    raft_id: node.raft_id,
                    name: node.name.clone(),
                    voter: node.voter,
                    state: node.state,
                    alive: node.running,
                    version: node.version.clone(),
                    zone: String::new(),
                    certificate_not_after: None,
                    certificate_serial: None,
                    answered: node.running,
                    configuration: node.configuration.clone().filter(|_| node.running),
                })
                .collect(),
            removed: self.nodes.iter().filter(|(_, node)| node.removed).map(|(id, _)| id.clone()).collect(),
            offline: 0,
            under_replicated: dead,
            moving: 0,
            operations: busy
                .map(|(id, _)| RunningOperation {
                    kind: "decommission".into(),
                    node_id: id.clone(),
                    reason: String::new(),
                    remaining: 0,
                })
                .collect(),
        })
    }

    fn member(&mut self, id: &str) -> Result<&mut FakeNode, AdminError> {
        let admin_error = || AdminError::Refused { reason: "INVALID_REQUEST".into(), message: format!("no node {id}") };
        self.nodes.get_mut(id).filter(|node| !node.removed).ok_or_else(admin_error)
    }
}

/// Runs before every call that changes something. Panics if the call violates an invariant, or fails the call.
pub(crate) type Guard = Arc<dyn Fn(&FakeCluster, &str, &str) -> Result<(), AdminError> + Send + Sync>;

/// [`Admin`] for a simulated cluster.
#[derive(Clone)]
pub(crate) struct FakeAdmin {
    pub(crate) cluster: Arc<Mutex<FakeCluster>>,
    pub(crate) before: Guard,
    /// Runs after a call took effect; an error means that the response was lost.
    pub(crate) after: Arc<dyn Fn() -> Result<(), AdminError> + Send + Sync>,
}

impl FakeAdmin {
    fn change<T>(
        &self,
        call: &str,
        about: &str,
        change: impl FnOnce(&mut FakeCluster) -> Result<T, AdminError>,
    ) -> Result<T, AdminError> {
        let done = {
            let mut cluster = self.cluster.lock();
            (self.before)(&cluster, call, about)?;
            cluster.calls.push(format!("{call} {about}"));
            change(&mut cluster)?
        };
        (self.after)()?;
        Ok(done)
    }
}

fn ready<'a, T: Send + 'a>(value: Result<T, AdminError>) -> AdminResult<'a, T> {
    Box::pin(std::future::ready(value))
}

impl Admin for FakeAdmin {
    fn observe<'a>(&'a self, target: &'a Target) -> AdminResult<'a, ClusterView> {
        let mut cluster = self.cluster.lock();
        if cluster.failing_reads > 0 {
            cluster.failing_reads -= 1;
            return ready(Err(AdminError::NoMajority("simulated".into())));
        }
        ready(cluster.view(target))
    }

    fn catch_up<'a>(&'a self, _: &'a Target, nodes: &'a [String]) -> AdminResult<'a, CatchUp> {
        let cluster = self.cluster.lock();
        let behind = cluster.members().any(|(_, known)| nodes.contains(&known.name) && known.behind > 0);
        ready(Ok(if behind { CatchUp::Behind { why: "simulated".into() } } else { CatchUp::Done }))
    }

    fn drain<'a>(&'a self, _: &'a Target, node_id: &'a str) -> AdminResult<'a, ()> {
        ready(self.change("drain", node_id, |cluster| {
            cluster.member(node_id)?.state = MemberState::Draining;
            Ok(())
        }))
    }

    fn undrain<'a>(&'a self, _: &'a Target, node_id: &'a str) -> AdminResult<'a, ()> {
        ready(self.change("undrain", node_id, |cluster| {
            cluster.member(node_id)?.state = MemberState::Active;
            Ok(())
        }))
    }

    fn decommission<'a>(&'a self, _: &'a Target, node_id: &'a str) -> AdminResult<'a, ()> {
        ready(self.change("decommission", node_id, |cluster| {
            cluster.member(node_id)?.state = MemberState::Decommissioning;
            Ok(())
        }))
    }

    fn topic<'a>(&'a self, _: &'a Target, name: &'a str) -> AdminResult<'a, Option<v1::Topic>> {
        ready(Ok(self.cluster.lock().topics.get(name).cloned()))
    }

    fn create_topic<'a>(&'a self, _: &'a Target, request: v1::CreateTopicRequest) -> AdminResult<'a, v1::Topic> {
        let name = request.name.clone();
        ready(self.change("create-topic", &name, |cluster| {
            let topic = v1::Topic {
                name: request.name.clone(),
                id: format!("topic-{}", cluster.calls.len()),
                partitions: request.partitions,
                replication_factor: request.replication_factor.max(1),
                settings: request.settings,
                created_ms: 0,
            };
            Ok(cluster.topics.entry(request.name).or_insert(topic).clone())
        }))
    }

    fn alter_topic<'a>(&'a self, _: &'a Target, request: v1::AlterTopicRequest) -> AdminResult<'a, v1::Topic> {
        let name = request.name.clone();
        ready(self.change("alter-topic", &name, |cluster| {
            let topic = cluster.topics.get_mut(&request.name);
            let topic = topic.ok_or_else(|| AdminError::Failed("no such topic".into()))?;
            topic.partitions = topic.partitions.max(request.partitions);
            let (asked, settings) = (request.settings.unwrap_or_default(), topic.settings.get_or_insert_default());
            settings.retention_ms = asked.retention_ms.or(settings.retention_ms);
            settings.retention_bytes = asked.retention_bytes.or(settings.retention_bytes);
            Ok(topic.clone())
        }))
    }

    fn delete_topic<'a>(&'a self, _: &'a Target, name: &'a str) -> AdminResult<'a, ()> {
        ready(self.change("delete-topic", name, |cluster| {
            cluster.topics.remove(name);
            Ok(())
        }))
    }

    fn rules<'a>(&'a self, _: &'a Target, principal: &'a str) -> AdminResult<'a, Vec<v1::Acl>> {
        let cluster = self.cluster.lock();
        ready(Ok(cluster.rules.iter().filter(|rule| rule.principal == principal).cloned().collect()))
    }

    fn add_rules<'a>(&'a self, _: &'a Target, rules: Vec<v1::Acl>) -> AdminResult<'a, ()> {
        ready(self.change("add-rules", "", |cluster| {
            for rule in rules {
                if !cluster.rules.contains(&rule) {
                    cluster.rules.push(rule);
                }
            }
            Ok(())
        }))
    }

    fn remove_rules<'a>(&'a self, _: &'a Target, rules: Vec<v1::Acl>) -> AdminResult<'a, ()> {
        ready(self.change("remove-rules", "", |cluster| {
            cluster.rules.retain(|rule| !rules.contains(rule));
            Ok(())
        }))
    }

    fn quota<'a>(&'a self, _: &'a Target, principal: &'a str) -> AdminResult<'a, Option<v1::Quota>> {
        ready(Ok(self.cluster.lock().quotas.get(principal).copied()))
    }

    fn set_quota<'a>(&'a self, _: &'a Target, principal: &'a str, quota: Option<v1::Quota>) -> AdminResult<'a, ()> {
        ready(self.change("set-quota", principal, |cluster| {
            match quota {
                Some(quota) => cluster.quotas.insert(principal.to_owned(), quota),
                None => cluster.quotas.remove(principal),
            };
            Ok(())
        }))
    }
}
