//! Combines the status responses of single nodes into one view of the cluster. Pure.
//!
//! Invariant: a view is returned only if a majority of the voters of the controller group responded, and no node of another cluster did.

use std::collections::{BTreeMap, BTreeSet};

use chronicle_client::v1;

use super::AdminError;
use crate::api::MemberState;
use crate::plan::{ClusterView, NodeConfiguration, NodeView, RunningOperation};

/// The response of a node (by the name of its pod), or why there is none.
pub type NodeAnswer = (String, Result<v1::GetStatusResponse, String>);

/// Returns the state that a majority of the voters of the controller group confirms.
///
/// The response of the highest term defines the voters; a majority of them must have responded. Health comes from the response of
/// the leader where there is one, since only the leader receives heartbeats from all nodes. Removed nodes come from every response,
/// since nodes report committed state only.
///
/// # Errors
/// [`AdminError::NoMajority`], [`AdminError::TwoClusters`].
pub fn cluster_view(answers: &[NodeAnswer]) -> Result<ClusterView, AdminError> {
    let good: Vec<(&str, &v1::GetStatusResponse)> =
        answers.iter().filter_map(|(name, answer)| Some((name.as_str(), answer.as_ref().ok()?))).collect();
    let failures = || {
        let failed = answers.iter().filter_map(|(name, answer)| Some(format!("{name}: {}", answer.as_ref().err()?)));
        failed.take(3).collect::<Vec<_>>().join("; ")
    };
    let mut ids: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, answer) in &good {
        ids.entry(&answer.cluster_id).or_default().push(name);
    }
    if ids.len() > 1 {
        let all: Vec<String> = ids.iter().map(|(id, names)| format!("{id}: {}", names.join(", "))).collect();
        return Err(AdminError::TwoClusters(all.join("; ")));
    }
    let newest = good.iter().max_by_key(|(_, answer)| (answer.controller_term, !answer.controller_leader.is_empty()));
    let Some((_, newest)) = newest else { return Err(AdminError::NoMajority(failures())) };

    let voters: Vec<&v1::Server> = newest.servers.iter().filter(|server| stays(server) && votes(server)).collect();
    // By name: a pod that has lost its disk responds under its old name, but with another node UUID.
    let agree = |server: &&&v1::Server| {
        good.iter().any(|(name, answer)| {
            let itself = answer.servers.iter().find(|known| known.node_id == server.node_id);
            *name == server.name && itself.is_some_and(stays) && answer.controller_term <= newest.controller_term
        })
    };
    let (answered, needed) = (voters.iter().filter(agree).count(), voters.len() / 2 + 1);
    if voters.is_empty() || answered < needed {
        let all = voters.len();
        return Err(AdminError::NoMajority(format!(
            "{answered} of {all} voters responded, {needed} are needed: {}",
            failures()
        )));
    }

    let leader = newest.controller_leader.clone();
    let led = |(name, answer): &&(&str, &v1::GetStatusResponse)| {
        let own = answer.servers.iter().find(|server| server.node_id == leader);
        own.is_some_and(|server| server.name == *name) && answer.controller_term == newest.controller_term
    };
    // A leader that does not respond may be dead.
    let (source, leader) = match good.iter().find(led) {
        Some((_, answer)) if !leader.is_empty() => (*answer, Some(leader)),
        _ => (*newest, None),
    };
    let removed: BTreeSet<String> = good
        .iter()
        .flat_map(|(_, answer)| &answer.servers)
        .filter(|server| server.state() == v1::ServerState::Removed)
        .map(|server| server.node_id.clone())
        .collect();
    let members = source.servers.iter().filter(|server| stays(server) && !removed.contains(&server.node_id));
    let own = |server: &v1::Server| good.iter().find(|(name, _)| *name == server.name).map(|(_, answer)| *answer);
    let mut nodes: Vec<NodeView> = members.map(|server| node(server, own(server))).collect();
    nodes.sort_by(|a, b| (&a.name, a.raft_id).cmp(&(&b.name, b.raft_id)));
    let running = source.operations.iter().filter(|operation| operation.state == "running");
    Ok(ClusterView {
        id: source.cluster_id.clone(),
        leader,
        nodes,
        removed,
        offline: source.offline,
        under_replicated: source.under_replicated,
        moving: source.moving,
        operations: running
            .map(|operation| RunningOperation {
                kind: operation.kind.clone(),
                node_id: operation.node_id.clone(),
                reason: operation.reason.clone(),
                remaining: operation.remaining,
            })
            .collect(),
    })
}

fn stays(server: &v1::Server) -> bool {
    server.state() != v1::ServerState::Removed
}

fn votes(server: &v1::Server) -> bool {
    server.role() == v1::ServerRole::Voter
}

/// Combines the shared state of a member with what only its own response has.
fn node(server: &v1::Server, own: Option<&v1::GetStatusResponse>) -> NodeView {
    let encryption = server.encryption.as_ref().filter(|encryption| !encryption.certificate_serial.is_empty());
    NodeView {
        node_id: server.node_id.clone(),
        raft_id: server.raft_id,
        name: server.name.clone(),
        voter: votes(server),
        state: match server.state() {
            v1::ServerState::Draining => MemberState::Draining,
            v1::ServerState::Decommissioning => MemberState::Decommissioning,
            _ => MemberState::Active,
        },
        alive: server.alive,
        version: server.version.clone(),
        zone: server.zone.clone(),
        certificate_not_after: encryption.map(|encryption| encryption.certificate_not_after_s),
        certificate_serial: encryption.map(|encryption| encryption.certificate_serial.to_lowercase()),
        answered: own.is_some(),
        configuration: own.and_then(|answer| answer.configuration.as_ref()).map(|known| NodeConfiguration {
            file_digest: known.file_digest.to_lowercase(),
            restart_fields: known.restart_fields.clone(),
            error: known.error.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str, voter: bool, state: v1::ServerState) -> v1::Server {
        v1::Server {
            node_id: format!("id-{name}"),
            name: name.into(),
            role: if voter { v1::ServerRole::Voter } else { v1::ServerRole::Learner }.into(),
            state: state.into(),
            alive: true,
            ..v1::Server::default()
        }
    }

    fn status(term: u64, leader: &str, servers: &[v1::Server]) -> v1::GetStatusResponse {
        v1::GetStatusResponse {
            cluster_id: "c".into(),
            controller_leader: leader.into(),
            controller_term: term,
            servers: servers.to_vec(),
            ..v1::GetStatusResponse::default()
        }
    }

    fn three() -> Vec<v1::Server> {
        ["a", "b", "c"].map(|name| server(name, true, v1::ServerState::Active)).to_vec()
    }

    fn silent(name: &str) -> NodeAnswer {
        (name.into(), Err("refused".into()))
    }

    #[test]
    fn a_minority_of_the_voters_is_an_error() {
        let answers = [("a".into(), Ok(status(1, "id-a", &three()))), silent("b"), silent("c")];
        let Err(AdminError::NoMajority(why)) = cluster_view(&answers) else { panic!("accepted a minority") };
        assert!(why.contains("1 of 3 voters") && why.contains("b: refused"), "{why}");
        assert!(matches!(cluster_view(&[]), Err(AdminError::NoMajority(_))));
    }

    #[test]
    fn learners_are_no_majority() {
        let mut servers = three();
        servers.push(server("d", false, v1::ServerState::Active));
        let answer = Ok(status(1, "id-a", &servers));
        let answers = [("a".into(), answer.clone()), ("d".into(), answer), silent("b"), silent("c")];
        assert!(matches!(cluster_view(&answers), Err(AdminError::NoMajority(_))));
    }

    #[test]
    fn the_health_of_the_cluster_comes_from_the_leader() {
        let (leader, mut follower) = (status(2, "id-b", &three()), status(1, "id-a", &three()));
        follower.offline = 7;
        let view = cluster_view(&[("a".into(), Ok(follower)), ("b".into(), Ok(leader)), silent("c")]).unwrap();
        assert_eq!((view.leader.as_deref(), view.offline, view.nodes.len()), (Some("id-b"), 0, 3));
    }

    #[test]
    fn a_leader_that_does_not_answer_is_none() {
        let answer = Ok(status(2, "id-c", &three()));
        let view = cluster_view(&[("a".into(), answer.clone()), ("b".into(), answer), silent("c")]).unwrap();
        assert_eq!(view.leader, None);
    }

    #[test]
    fn the_configuration_state_of_a_node_comes_from_its_own_response() {
        let of = |file: &str, error: &str| {
            let configuration = v1::Configuration {
                file_digest: file.into(),
                error: error.into(),
                restart_fields: vec!["node.name".into()],
            };
            Ok(v1::GetStatusResponse { configuration: Some(configuration), ..status(1, "id-a", &three()) })
        };
        let old = Ok(status(1, "id-a", &three()));
        let view = cluster_view(&[("b".into(), of("AB", "no such field")), ("a".into(), old), silent("c")]).unwrap();
        let [a, b, c] = view.nodes.as_slice() else { panic!("{:?}", view.nodes) };
        assert_eq!((a.answered, &a.configuration), (true, &None), "an older version does not report it");
        assert_eq!((c.answered, &c.configuration), (false, &None));
        let known = b.configuration.clone().unwrap();
        assert_eq!((known.file_digest.as_str(), known.error.as_str()), ("ab", "no such field"));
        assert_eq!((b.answered, known.restart_fields), (true, vec!["node.name".to_owned()]));
    }

    #[test]
    fn a_removal_counts_once_one_node_has_applied_it() {
        let mut removed = three();
        removed.push(server("d", false, v1::ServerState::Removed));
        let mut before = three();
        before.push(server("d", false, v1::ServerState::Decommissioning));
        let answers = [("a".into(), Ok(status(1, "id-a", &before))), ("b".into(), Ok(status(1, "id-a", &removed)))];
        let view = cluster_view(&answers).unwrap();
        assert!(view.removed.contains("id-d"));
        assert!(view.nodes.iter().all(|node| node.name != "d"), "a removed node is still a member");
    }

    #[test]
    fn nodes_of_two_clusters_are_never_mixed() {
        let mut other = status(1, "id-b", &three());
        other.cluster_id = "other".into();
        let answers = [("a".into(), Ok(status(1, "id-a", &three()))), ("b".into(), Ok(other))];
        assert!(matches!(cluster_view(&answers), Err(AdminError::TwoClusters(_))));
    }
}
