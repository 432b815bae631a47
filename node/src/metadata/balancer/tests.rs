use proptest::prelude::*;

use super::super::controller_state::CommandOutcome;
use super::super::entities::NodeInfo;
use super::super::fixtures::{CLUSTER, all_alive, cluster, create, join, node, topic};
use super::super::voters::controller_voters;
use super::*;
use crate::model::Addresses;

const CONFIG: BalancerConfig = BalancerConfig { moves_max: 4, replace_dead_after_ms: 0 };

/// A simulated cluster: the test runs the reconcilers and the clock.
struct Sim {
    state: ControllerState,
    /// By raft id: milliseconds without a heartbeat.
    dead: BTreeMap<u64, u64>,
    /// Nodes whose disk was lost: they never come back.
    wiped: BTreeSet<u64>,
    voters: BTreeSet<u64>,
    config: BalancerConfig,
    index: u64,
    strangers: u64,
}

impl Sim {
    fn new(zones: &[&str], config: BalancerConfig) -> Self {
        let state = cluster(zones);
        let voters = state.nodes.keys().copied().take(1).collect();
        Self { state, dead: BTreeMap::new(), wiped: BTreeSet::new(), voters, config, index: 0, strangers: 1000 }
    }

    fn observed(&self) -> ClusterObservation {
        let there = self.state.nodes.values().filter(|node| node.state != NodeState::Removed).map(|node| node.id);
        let alive = there.filter(|node| !self.dead.contains_key(node)).collect();
        ClusterObservation { alive, dead_for_ms: self.dead.clone(), controller_voters: self.voters.clone() }
    }

    fn apply(&mut self, command: ControllerCommand) -> CommandOutcome {
        self.state.apply(command)
    }

    fn join(&mut self, name: Option<String>, zone: &str) {
        self.strangers += 1;
        let mut info = node(self.strangers, zone);
        if let Some(name) = name {
            info = NodeInfo { addresses: Addresses::of_data(format!("{name}:7400")), name, ..info };
        }
        let alive: Vec<u64> = self.observed().alive.into_iter().collect();
        let command = join(&self.state, &info, &alive);
        self.apply(command);
    }

    fn placements(&self) -> impl Iterator<Item = (Uuid, u32, &Placement)> {
        self.state
            .placements
            .iter()
            .flat_map(|(topic, all)| (0..).zip(all).map(|(partition, now)| (*topic, partition, now)))
    }

    /// Plans once, checks every invariant of single commands, and applies them. Returns how many there were.
    fn plan(&mut self) -> usize {
        let observed = self.observed();
        let commands = plan(&self.state, &observed, &self.config, 77);
        let mut moves = 0;
        for command in &commands {
            if let ControllerCommand::Assign { topic, partition, from, replicas } = command {
                let now = self.state.placement(*topic, *partition).unwrap();
                assert_eq!(&now.replicas, from);
                assert!(replicas.iter().enumerate().all(|(at, node)| !replicas[..at].contains(node)), "{replicas:?}");
                assert!(replicas.len() >= from.len(), "a replica was dropped: {command:?}");
                let added: Vec<u64> = replicas.iter().copied().filter(|node| !from.contains(node)).collect();
                assert!(added.len() <= 1, "{command:?}");
                for to in &added {
                    assert!(observed.alive.contains(to), "{command:?}");
                    assert_eq!(self.state.nodes[to].state, NodeState::Active, "{command:?}");
                }
                let unfilled = from.iter().any(|node| !now.voters.contains(node) && !replicas.contains(node));
                assert!(now.settled() || unfilled, "{command:?} changes {now:?}, which moves");
                moves += added.len();
            }
            let outcome = self.state.apply(command.clone());
            assert!(!matches!(outcome, CommandOutcome::Refused(_)), "{command:?}: {outcome:?}");
        }
        assert!(moves <= self.config.moves_max);
        commands.len()
    }

    /// Lets the leaders of some partitions (every `stride`-th) finish their moves. Returns how many did.
    fn reconcile(&mut self, stride: usize) -> usize {
        let observed = self.observed();
        let can = |(_, _, now): &(Uuid, u32, &Placement)| {
            !now.settled()
                && observed.has_majority(now)
                && now.replicas.iter().all(|node| now.voters.contains(node) || observed.is_alive(*node))
        };
        let done: Vec<(Uuid, u32, Vec<u64>)> =
            self.placements().filter(can).step_by(stride).map(|(t, p, now)| (t, p, now.replicas.clone())).collect();
        for (topic, partition, voters) in &done {
            self.index += 1;
            let (topic, partition, voters) = (*topic, *partition, voters.clone());
            let outcome = self.apply(ControllerCommand::Settle { topic, partition, voters, index: self.index });
            assert_eq!(outcome, CommandOutcome::Done(None));
        }
        done.len()
    }

    fn round(&mut self, stride: usize) -> bool {
        let voters = controller_voters(&self.state, &self.observed(), 5);
        let changed = voters != self.voters;
        self.voters = voters;
        let planned = self.plan();
        let settled = self.reconcile(stride);
        let aging = self.dead.values().any(|dead| *dead < 100_000);
        self.dead.values_mut().for_each(|dead| *dead += 10_000);
        changed || aging || planned + settled > 0
    }

    fn run_to_rest(&mut self) {
        for _ in 0..3_000 {
            if !self.round(1) {
                return;
            }
        }
        panic!("does not converge: {:?}", plan(&self.state, &self.observed(), &self.config, 0));
    }

    fn count(&self, node: u64) -> u32 {
        self.state.loads().replicas(node)
    }

    fn active(&self) -> Vec<u64> {
        self.state.nodes.values().filter(|node| node.state == NodeState::Active).map(|node| node.id).collect()
    }

    fn range(&self, nodes: &[u64], of: impl Fn(u64) -> u32) -> u32 {
        let counts: Vec<u32> = nodes.iter().map(|node| of(*node)).collect();
        counts.iter().max().unwrap_or(&0) - counts.iter().min().unwrap_or(&0)
    }
}

#[test]
fn topics_of_a_cluster_of_one_get_their_replicas_when_nodes_come() {
    let mut sim = Sim::new(&[""], CONFIG);
    create(&mut sim.state, topic("default", 1, 9, 0));
    create(&mut sim.state, topic("one", 2, 3, 1));
    sim.run_to_rest();
    assert_eq!(sim.count(1), 12);
    sim.join(None, "");
    sim.join(None, "");
    sim.run_to_rest();
    assert!(sim.state.placements[&Uuid::from_u128(1)].iter().all(|now| now.replicas.len() == 3 && now.settled()));
    assert!(sim.state.placements[&Uuid::from_u128(2)].iter().all(|now| now.replicas.len() == 1));
    let loads = sim.state.loads();
    assert_eq!((1..=3).map(|node| loads.leaders(node)).collect::<Vec<_>>(), [4, 4, 4]);
    assert_eq!(sim.state.operations[&0].state, OperationState::Done);
    assert_eq!(sim.voters.len(), 3);
}

#[test]
fn a_node_leaves_step_by_step_and_is_removed_at_the_end() {
    let mut sim = Sim::new(&[""; 4], CONFIG);
    create(&mut sim.state, topic("t", 1, 20, 3));
    sim.run_to_rest();
    sim.apply(ControllerCommand::StartOperation { kind: OperationKind::Decommission, node: 2, now_ms: 1 });
    sim.plan();
    assert_eq!(sim.placements().filter(|(_, _, now)| !now.settled()).count(), 4);
    assert_eq!(sim.plan(), 0, "no more than moves_max at a time");
    sim.run_to_rest();
    assert_eq!((sim.count(2), sim.state.nodes[&2].state), (0, NodeState::Removed));
    assert_eq!(sim.state.operations[&0].state, OperationState::Done);
    assert_eq!(sim.range(&sim.active(), |node| sim.count(node)), 0);
}

#[test]
fn a_node_that_votes_in_the_controller_group_is_not_removed() {
    let mut state = cluster(&[""; 2]);
    state.apply(ControllerCommand::StartOperation { kind: OperationKind::Decommission, node: 2, now_ms: 1 });
    let mut observed = all_alive(&state);
    assert_eq!(plan(&state, &observed, &CONFIG, 5), []);
    observed.controller_voters.remove(&2);
    assert_eq!(plan(&state, &observed, &CONFIG, 5), [ControllerCommand::RemoveNode { node: 2, now_ms: 5 }]);
}

#[test]
fn a_cancelled_decommission_leaves_everything_where_it_is() {
    let mut sim = Sim::new(&[""; 4], CONFIG);
    create(&mut sim.state, topic("t", 1, 20, 3));
    sim.apply(ControllerCommand::StartOperation { kind: OperationKind::Decommission, node: 2, now_ms: 1 });
    sim.round(1);
    sim.apply(ControllerCommand::CancelOperation { id: 0, now_ms: 2 });
    let moved = sim.state.placements.clone();
    sim.run_to_rest();
    let sets =
        |all: &BTreeMap<Uuid, Vec<Placement>>| all.values().flatten().map(|now| now.voters.clone()).collect::<Vec<_>>();
    assert_eq!(sets(&sim.state.placements), sets(&moved));
}

#[test]
fn a_dead_node_is_replaced_after_its_time_unless_it_comes_back() {
    let mut sim = Sim::new(&[""; 4], BalancerConfig { replace_dead_after_ms: 50_000, ..CONFIG });
    create(&mut sim.state, topic("t", 1, 8, 3));
    sim.dead.insert(3, 49_999);
    assert_eq!(sim.plan(), 0);
    sim.dead.insert(3, 50_000);
    assert_eq!(sim.plan(), 1);
    assert_eq!(sim.state.nodes[&3].state, NodeState::Decommissioning);
    sim.round(1);
    let mut back = Sim {
        state: sim.state.clone(),
        dead: BTreeMap::new(),
        wiped: BTreeSet::new(),
        voters: sim.voters.clone(),
        ..sim
    };
    let planned = plan(&back.state, &back.observed(), &back.config, 9);
    assert_eq!(
        planned,
        [ControllerCommand::CancelOperation { id: 0, now_ms: 9 }],
        "and no replica is moved off it concurrently"
    );
    back.run_to_rest();
    assert_eq!(back.state.nodes[&3].state, NodeState::Active);
    assert_eq!(back.state.operations[&0].state, OperationState::Cancelled);
    let mut gone = Sim { dead: BTreeMap::from([(3, 60_000)]), ..back };
    gone.run_to_rest();
    assert_eq!(gone.state.nodes[&3].state, NodeState::Removed);
}

#[test]
fn no_dead_node_is_replaced_when_the_live_ones_cannot_hold_its_replicas() {
    let mut sim = Sim::new(&[""; 4], BalancerConfig { replace_dead_after_ms: 1, ..CONFIG });
    create(&mut sim.state, topic("t", 1, 8, 3));
    sim.dead.extend([(3, 90_000), (4, 90_000)]);
    assert_eq!(sim.plan(), 0);
}

#[test]
fn a_replica_whose_new_node_died_goes_to_another() {
    let mut sim = Sim::new(&[""; 5], CONFIG);
    create(&mut sim.state, topic("t", 1, 1, 3));
    let replicas = sim.state.placements[&Uuid::from_u128(1)][0].replicas.clone();
    sim.apply(ControllerCommand::StartOperation { kind: OperationKind::Decommission, node: replicas[1], now_ms: 1 });
    sim.plan();
    let to = sim.state.placements[&Uuid::from_u128(1)][0].replicas[1];
    sim.dead.insert(to, FILL_PATIENCE_MS - 1);
    assert_eq!(sim.plan(), 0, "it may come back");
    sim.dead.insert(to, FILL_PATIENCE_MS);
    assert_eq!(sim.plan(), 1);
    let instead = sim.state.placements[&Uuid::from_u128(1)][0].replicas[1];
    assert!(instead != to && instead != replicas[1]);
    sim.run_to_rest();
    assert!(sim.state.placements[&Uuid::from_u128(1)][0].settled());
}

#[test]
fn partitions_that_cannot_move_do_not_keep_others_from_moving() {
    let mut sim = Sim::new(&[""; 4], CONFIG);
    create(&mut sim.state, topic("lost", 1, 40, 1));
    create(&mut sim.state, topic("kept", 2, 8, 3));
    // Partitions with their only replica on node 2 are lost with its disk, and wait for it.
    sim.dead.insert(2, 0);
    sim.wiped.insert(2);
    sim.join(Some("n2".into()), "");
    sim.join(None, "");
    sim.apply(ControllerCommand::StartOperation { kind: OperationKind::Decommission, node: 3, now_ms: 1 });
    sim.run_to_rest();
    assert!(sim.state.placements[&Uuid::from_u128(2)].iter().all(Placement::settled));
    assert_eq!(sim.state.nodes[&3].state, NodeState::Removed);
    assert_eq!(sim.state.nodes[&2].state, NodeState::Decommissioning, "its disk may be found");
}

#[test]
fn a_new_node_gets_a_share_of_every_topic() {
    let mut sim = Sim::new(&[""; 3], CONFIG);
    for id in 1..=5 {
        create(&mut sim.state, topic(&format!("t{id}"), id, 12, 2));
    }
    sim.join(None, "");
    sim.run_to_rest();
    assert_eq!(sim.count(4), 30);
    for id in 1..=5 {
        let placements = &sim.state.placements[&Uuid::from_u128(id)];
        let on_it = placements.iter().filter(|now| now.holds(4)).count();
        assert!((5..=7).contains(&on_it), "topic {id}: {on_it} of 24 replicas");
    }
}

#[test]
fn a_rebalance_moves_replicas_that_are_not_preferred_leaders_where_it_can() {
    let mut sim = Sim::new(&[""; 3], CONFIG);
    create(&mut sim.state, topic("t", 1, 12, 3));
    sim.join(None, "");
    let before: Vec<u64> = sim.placements().map(|(_, _, now)| now.replicas[0]).collect();
    for _ in 0..3 {
        sim.plan();
        sim.reconcile(1);
    }
    assert_eq!(sim.count(4), 9, "three moves of four replicas, up to its share");
    assert_eq!(sim.placements().map(|(_, _, now)| now.replicas[0]).collect::<Vec<_>>(), before);
}

#[test]
fn moves_that_wait_for_a_dead_node_do_not_count() {
    let mut sim = Sim::new(&[""; 4], CONFIG);
    create(&mut sim.state, topic("t", 1, 8, 3));
    // A new disk in node 2, and the node dies before its replicas are filled: only node 4 can get them.
    sim.dead.insert(2, 0);
    sim.wiped.insert(2);
    sim.join(Some("n2".into()), "");
    sim.dead.insert(5, 0);
    let waiting = sim.placements().filter(|(_, _, now)| !now.settled()).count();
    assert!(waiting > CONFIG.moves_max);
    sim.join(None, "");
    create(&mut sim.state, topic("u", 2, 1, 2));
    let now = sim.state.placements[&Uuid::from_u128(2)][0].clone();
    sim.state.topics.get_mut("u").unwrap().replication_factor = 3;
    sim.plan();
    assert_eq!(sim.state.placements[&Uuid::from_u128(2)][0].replicas.len(), now.replicas.len() + 1);
}

#[test]
fn replicas_move_into_a_zone_that_is_new() {
    let mut sim = Sim::new(&["a", "a", "b"], CONFIG);
    create(&mut sim.state, topic("t", 1, 6, 3));
    sim.join(None, "c");
    sim.run_to_rest();
    assert_eq!(sim.count(4), 6);
    assert_eq!((sim.count(1), sim.count(2), sim.count(3)), (3, 3, 6));
}

#[test]
fn leaders_are_evened_over_a_node_in_between() {
    // 1 is preferred twice and shares partitions with 2 only, 2 with 3, and 3 is preferred by none.
    let mut state = cluster(&[""; 3]);
    create(&mut state, topic("t", 1, 3, 1));
    let replicas = [vec![1, 2], vec![1, 2], vec![2, 3]];
    state.placements.insert(Uuid::from_u128(1), replicas.map(Placement::founded).to_vec());
    state.topics.get_mut("t").unwrap().replication_factor = 2;
    let observed = all_alive(&state);
    for command in plan(&state, &observed, &CONFIG, 1) {
        assert!(matches!(state.apply(command), CommandOutcome::Done(None)));
    }
    let loads = state.loads();
    assert_eq!([1, 2, 3].map(|node| loads.leaders(node)), [1, 1, 1]);
    assert_eq!(plan(&state, &observed, &CONFIG, 1), []);
}

#[test]
fn a_drain_ends_when_its_node_is_removed() {
    let mut sim = Sim::new(&[""; 3], CONFIG);
    sim.apply(ControllerCommand::StartOperation { kind: OperationKind::Drain, node: 2, now_ms: 1 });
    assert_eq!(sim.plan(), 0);
    sim.dead.insert(2, 100);
    assert_eq!(sim.plan(), 1);
    assert_eq!(sim.state.operations[&0].state, OperationState::Done);
}

/// An event in a cluster; numbers are taken modulo the number of nodes or topics.
#[derive(Debug, Clone)]
enum ClusterEvent {
    Join(usize),
    Wipe(usize),
    Kill(usize),
    Revive,
    Restart(usize, usize),
    Drain(usize),
    Decommission(usize),
    Cancel,
    Create(i32, i32),
    Grow(usize, i32),
    Delete(usize),
    Work(usize),
}

fn cluster_event() -> impl Strategy<Value = ClusterEvent> {
    prop_oneof![
        3 => (0usize..3).prop_map(ClusterEvent::Join),
        1 => (0usize..9).prop_map(ClusterEvent::Wipe),
        2 => (0usize..9).prop_map(ClusterEvent::Kill),
        1 => Just(ClusterEvent::Revive),
        1 => (0usize..9, 0usize..3).prop_map(|(node, zone)| ClusterEvent::Restart(node, zone)),
        1 => (0usize..9).prop_map(ClusterEvent::Drain),
        2 => (0usize..9).prop_map(ClusterEvent::Decommission),
        1 => Just(ClusterEvent::Cancel),
        3 => (1i32..10, 0i32..5).prop_map(|(partitions, factor)| ClusterEvent::Create(partitions, factor)),
        1 => (0usize..9, 1i32..5).prop_map(|(topic, more)| ClusterEvent::Grow(topic, more)),
        1 => (0usize..9).prop_map(ClusterEvent::Delete),
        3 => (1usize..6).prop_map(ClusterEvent::Work),
    ]
}

impl Sim {
    fn happen(&mut self, event: ClusterEvent, zones: &[&str; 3], topics: &mut u128) {
        let pick = |nodes: Vec<u64>, at: usize| nodes.get(at % nodes.len().max(1)).copied();
        let alive: Vec<u64> = self.observed().alive.into_iter().collect();
        match event {
            ClusterEvent::Join(zone) if self.active().len() < 9 => self.join(None, zones[zone]),
            ClusterEvent::Join(_) => {}
            ClusterEvent::Wipe(at) => {
                if let Some(node) = pick(alive, at).filter(|node| self.state.nodes[node].stays()) {
                    self.dead.insert(node, 1_000);
                    self.wiped.insert(node);
                    let NodeInfo { name, zone, .. } = self.state.nodes[&node].clone();
                    self.join(Some(name), &zone);
                }
            }
            ClusterEvent::Kill(at) if alive.len() > 1 => {
                if let Some(node) = pick(alive, at) {
                    self.dead.insert(node, 0);
                }
            }
            ClusterEvent::Kill(_) => {}
            ClusterEvent::Revive => self.dead.retain(|node, _| self.wiped.contains(node)),
            ClusterEvent::Restart(at, zone) => {
                if let Some(node) = pick(alive.clone(), at) {
                    let mut info = self.state.nodes[&node].clone();
                    info.boot += 1;
                    info.zone = zones[zone].into();
                    let command = join(&self.state, &info, &alive);
                    self.apply(command);
                }
            }
            ClusterEvent::Drain(at) => {
                if let Some(node) = pick(alive, at) {
                    self.apply(ControllerCommand::StartOperation { kind: OperationKind::Drain, node, now_ms: 2 });
                }
            }
            ClusterEvent::Decommission(at) => {
                if let Some(node) = pick(alive, at) {
                    self.apply(ControllerCommand::StartOperation {
                        kind: OperationKind::Decommission,
                        node,
                        now_ms: 2,
                    });
                }
            }
            ClusterEvent::Cancel => {
                let running = self.state.running().last().map(|operation| operation.id);
                if let Some(id) = running {
                    self.apply(ControllerCommand::CancelOperation { id, now_ms: 3 });
                }
            }
            ClusterEvent::Create(partitions, factor) => {
                *topics += 1;
                create(&mut self.state, topic(&format!("t{topics}"), *topics, partitions, factor));
            }
            ClusterEvent::Grow(at, more) => {
                let known: Vec<_> = self.state.topics.values().cloned().collect();
                if let Some(mut topic) = known.get(at % known.len().max(1)).cloned() {
                    topic.partitions += more;
                    self.apply(ControllerCommand::AlterTopic { topic });
                }
            }
            ClusterEvent::Delete(at) => {
                let names: Vec<String> = self.state.topics.keys().cloned().collect();
                if let Some(name) = names.get(at % names.len().max(1)).cloned() {
                    self.apply(ControllerCommand::DeleteTopic { name });
                }
            }
            ClusterEvent::Work(rounds) => {
                for round in 0..rounds {
                    self.round(1 + round % 3);
                }
            }
        }
        for (_, _, now) in self.placements() {
            let twice = now.replicas.iter().enumerate().any(|(at, node)| now.replicas[..at].contains(node));
            assert!(!twice && !now.replicas.is_empty(), "{now:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_cluster_reaches_its_target_placement_whatever_happens(
        zoned in prop::bool::ANY,
        start in 1usize..6,
        moves_max in 1usize..5,
        replace_dead_after_ms in prop::sample::select(vec![0u64, 50_000]),
        events in prop::collection::vec(cluster_event(), 1..30),
    ) {
        let zones = if zoned { ["a", "b", "c"] } else { [""; 3] };
        let founders: Vec<&str> = zones.iter().copied().cycle().take(start).collect();
        let mut sim = Sim::new(&founders, BalancerConfig { moves_max, replace_dead_after_ms });
        let mut topics = 0;
        for event in events {
            sim.happen(event, &zones, &mut topics);
        }
        sim.run_to_rest();

        // Every node that can come back does, and the replicas are rebalanced once more.
        sim.dead.retain(|node, _| sim.wiped.contains(node));
        let drained: Vec<u64> = sim.state.nodes.values().filter(|n| n.state == NodeState::Draining).map(|n| n.id).collect();
        for node in drained {
            sim.apply(ControllerCommand::SetNodeState { node, state: NodeState::Active, now_ms: 4 });
        }
        sim.run_to_rest();
        sim.apply(ControllerCommand::StartOperation { kind: OperationKind::Rebalance, node: 0, now_ms: 4 });
        sim.run_to_rest();

        let (observed, active) = (sim.observed(), sim.active());
        if sim.placements().any(|(_, _, now)| !observed.has_majority(now)) {
            // The majority of some partition was lost with its disks: it waits for them.
            return Ok(());
        }
        if active.iter().any(|node| sim.wiped.contains(node)) {
            // The replacement of a node without its disk was cancelled: the balancer waits for it as for one that may come back.
            return Ok(());
        }
        prop_assert!(sim.state.running().next().is_none(), "{:?}", sim.state.operations);
        prop_assert!(!sim.state.nodes.values().any(|node| node.state == NodeState::Decommissioning));
        prop_assert!(sim.voters.len() % 2 == 1 && sim.voters.iter().all(|node| active.contains(node)));
        let domains: BTreeSet<&str> = active.iter().map(|node| sim.state.nodes[node].zone.as_str()).collect();
        for topic in sim.state.topics.values() {
            for now in &sim.state.placements[&topic.id] {
                prop_assert!(now.settled() && now.replicas.iter().all(|node| active.contains(node)), "{now:?}");
                prop_assert!(now.replicas.len() >= active.len().min(topic.replication_factor as usize), "{now:?}");
                let zones: BTreeSet<&str> = now.replicas.iter().map(|node| sim.state.nodes[node].zone.as_str()).collect();
                prop_assert_eq!(zones.len(), domains.len().min(now.replicas.len()), "{:?} in {:?}", now, domains);
            }
        }
        for zone in domains {
            let nodes: Vec<u64> = active.iter().copied().filter(|node| sim.state.nodes[node].zone == zone).collect();
            prop_assert!(sim.range(&nodes, |node| sim.count(node)) <= 1, "zone {zone:?}: {:?}", sim.state.loads());
        }
        let loads = sim.state.loads();
        for (_, _, now) in sim.placements() {
            for other in &now.replicas {
                prop_assert!(loads.leaders(now.replicas[0]) < loads.leaders(*other) + 2, "{loads:?}");
            }
        }
        prop_assert_eq!(sim.state.cluster_id, CLUSTER);
    }
}
