//! Tests of faults at every step of a bootstrap, and of many random faults.

use std::sync::atomic::Ordering;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::sim::Step;
use super::*;

const SHORT: Duration = Duration::from_millis(400);
const LONG: Duration = Duration::from_secs(25);

/// Bootstraps three nodes once with each fault at each step, and returns the number of runs.
async fn fail_at_every_step(faults: &[Fault], wiped: bool) -> usize {
    let mut runs = 0;
    for order in ORDERS {
        for stagger in [Duration::ZERO, Duration::from_millis(120)] {
            let mut plain = World::new(2, 3, 3);
            start_three(&mut plain, order, stagger).await;
            plain.settle_all().await;
            let steps = plain.net.trace.lock().len();
            assert!(steps >= 3 * 2 + 2 * 4, "{steps}");
            for step in 0..steps {
                for fault in faults {
                    let mut world = World::new(2, 3, 3);
                    world.fail_at(step, *fault);
                    start_three(&mut world, order, stagger).await;
                    world.run(Duration::from_secs(1)).await;
                    world.settle_all().await;
                    let context = format!("{order:?} {stagger:?} step {step} {fault:?}: {:?}", world.net.trace.lock());
                    for number in 0..3 {
                        assert!(world.outcome(number).is_ok(), "{context}: {:?}", world.outcome(number));
                    }
                    world.one_cluster_of_all();
                    assert!(wiped || world.net.ever.lock().len() == 1, "{context}");
                    runs += 1;
                }
            }
        }
    }
    runs
}

fn crashes(down: Duration, wiped: bool) -> [Fault; 3] {
    [Fault::Crash { down, wiped }, Fault::CrashPeer { down, wiped }, Fault::CrashAfter { down, wiped }]
}

#[tokio::test(start_paused = true)]
async fn three_nodes_bootstrap_one_cluster_in_every_start_order() {
    for stagger in [0, 7, 150, 1100, 15_000].map(Duration::from_millis) {
        for order in ORDERS {
            let mut world = World::new(1, 3, 3);
            start_three(&mut world, order, stagger).await;
            world.settle_all().await;
            world.one_cluster_of_all();
            assert_eq!(world.net.ever.lock().len(), 1);
            for number in 0..3 {
                let Ok(MembershipOutcome::Founded { identity, founders }) = world.outcome(number) else {
                    panic!("{:?}", world.outcome(number));
                };
                assert_eq!(founders.iter().map(|founder| founder.raft_id).collect::<Vec<_>>(), [1, 2, 3]);
                assert_eq!(founders[number].node_id, world.hosts[number].node_id);
                assert_eq!(founders[number].address, world.hosts[number].address);
                assert_eq!(identity.raft_id, founders[number].raft_id);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_or_a_write_lost_at_any_step_leads_to_one_cluster() {
    assert!(fail_at_every_step(&[Fault::Lost], false).await > 100);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_dies_at_any_step_and_comes_back_leads_to_one_cluster() {
    assert!(fail_at_every_step(&crashes(SHORT, false), false).await > 300);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_dies_at_any_step_and_comes_back_late_leads_to_one_cluster() {
    assert!(fail_at_every_step(&crashes(LONG, false), false).await > 300);
}

#[tokio::test(start_paused = true)]
async fn a_disk_lost_at_any_step_leads_to_one_cluster() {
    fail_at_every_step(&crashes(SHORT, true), true).await;
    fail_at_every_step(&crashes(LONG, true), true).await;
}

/// One run of lost messages, one-way partitions and crashes, followed by a time without faults. Disks are lost only
/// before a cluster exists.
async fn chaos(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let count = rng.random_range(1..=5);
    let expect = rng.random_range(count / 2 + 1..=count);
    let mut world = World::new(seed, count, expect as u32);
    world.net.loss.store(rng.random_range(0..300), Ordering::Relaxed);
    let mut may_forget = expect >= 3;
    // The slower the messages, the longer faults can hit a bootstrap.
    let slow = [4, 100, 700][rng.random_range(0..3)];
    world.net.delay.store(slow, Ordering::Relaxed);
    let longest = [200, 2000, 12_000][rng.random_range(0..3)];
    for _ in 0..rng.random_range(5..60) {
        let number = rng.random_range(0..count);
        let other = (world.address(rng.random_range(0..count)), world.address(rng.random_range(0..count)));
        match rng.random_range(0..10) {
            0..=3 if !world.running(number) => world.start(number).await,
            4..=5 => world.crash(number, false),
            6 => drop(world.net.cut.lock().insert(other)),
            7 => world.net.cut.lock().clear(),
            8 => {
                let found: Vec<_> = (0..count).filter(|_| rng.random_bool(0.6)).collect();
                world.find(number, &found);
            }
            // More than one promise lost with its disk can cost the cluster its majority before it starts.
            9 if world.net.ever.lock().is_empty() && (world.promised(number).is_none() || may_forget) => {
                may_forget &= world.promised(number).is_none();
                world.crash(number, true);
            }
            _ => {}
        }
        world.run(Duration::from_millis(rng.random_range(1..longest))).await;
    }
    world.net.loss.store(0, Ordering::Relaxed);
    world.net.delay.store(4, Ordering::Relaxed);
    world.net.cut.lock().clear();
    world.net.names.lock().clear();
    for number in 0..count {
        if !world.running(number) {
            world.start(number).await;
        }
    }
    world.settle_all().await;
    world.one_cluster_of_all();
    assert_eq!(world.net.ever.lock().len(), 1, "seed {seed}: {:?}", world.net.ever.lock());
}

#[tokio::test(start_paused = true)]
async fn lost_messages_cuts_and_crashes_never_lead_to_two_clusters() {
    let seeds = std::env::var("CHRONICLE_TEST_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(100);
    for seed in 0..seeds {
        chaos(seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_restarts_goes_on_with_the_same_cluster() {
    let mut world = World::new(3, 3, 3);
    // The first write is the coordinator's promise to itself.
    world.fail_at(0, Fault::CrashAfter { down: Duration::from_secs(3), wiped: false });
    start_three(&mut world, [0, 1, 2], Duration::ZERO).await;
    while world.promised(0).is_none() {
        world.run(Duration::from_millis(1)).await;
    }
    let proposed = world.promised(0).unwrap().cluster_id;
    world.run(Duration::from_secs(1)).await;
    world.settle_all().await;
    assert_eq!(world.one_cluster_of_all(), proposed);
}

/// Starts three nodes whose coordinator crashes permanently just before it would send the first `Found`.
async fn leave_promised(count: usize, dies: &[usize]) -> World {
    let mut world = World::new(4, count, count as u32);
    for number in 0..count {
        world.start(number).await;
    }
    let all_promised = |world: &World| (0..count).all(|number| world.promised(number).is_some());
    while !all_promised(&world) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    dies.iter().for_each(|number| world.crash(*number, true));
    assert!((0..count).all(|number| world.identity(number).is_none()));
    world
}

#[tokio::test(start_paused = true)]
async fn founders_finish_without_a_lost_coordinator_which_joins_as_another_node() {
    let mut world = leave_promised(3, &[0]).await;
    let proposed = world.promised(1).unwrap().cluster_id;
    world.settle(&[1, 2]).await;
    assert_eq!(world.one_cluster(&[1, 2]), proposed);
    world.start(0).await;
    world.settle_all().await;
    assert!(matches!(world.outcome(0), Ok(MembershipOutcome::Joined { identity, .. }) if identity.raft_id == 4));
    world.one_cluster_of_all();
}

#[tokio::test(start_paused = true)]
async fn one_of_two_founders_whose_coordinator_is_lost_bootstraps_with_its_replacement() {
    let mut world = leave_promised(2, &[0]).await;
    world.start(0).await;
    world.settle_all().await;
    world.one_cluster_of_all();
    assert_eq!(world.net.ever.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn when_coordinator_and_a_founder_are_lost_the_others_report_which_nodes_they_wait_for() {
    let mut world = leave_promised(3, &[0, 1]).await;
    world.run(Duration::from_secs(60)).await;
    assert!(world.identity(2).is_none());
    let status = world.status(2);
    assert!(status.contains("waiting for host-1:7400, host-0:7400"), "{status}");
    // Nodes with new disks at the same addresses show that no old node can have bootstrapped.
    world.start(0).await;
    world.run(Duration::from_secs(60)).await;
    assert!(world.identity(2).is_none());
    world.start(1).await;
    world.settle_all().await;
    world.one_cluster_of_all();
    assert_eq!(world.net.ever.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_founder_lost_before_its_promise_is_dropped_and_the_present_nodes_bootstrap() {
    let mut world = World::new(16, 5, 3);
    // The coordinator's first call finds a dead node, which never returns.
    world.fail_at(1, Fault::CrashPeer { down: Duration::from_secs(100_000), wiped: false });
    for number in 0..5 {
        world.start(number).await;
    }
    world.run(Duration::from_secs(60)).await;
    let up: Vec<_> = (0..5).filter(|number| world.running(*number)).collect();
    assert_eq!(up.len(), 4);
    world.one_cluster(&up);
    assert_eq!(world.net.ever.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_of_two_founders_does_not_bootstrap_with_other_nodes_while_the_coordinator_may_have() {
    let mut world = World::new(17, 2, 2);
    // Two promises and the coordinator's entry into the cluster are stored; the coordinator crashes before it sends `Found`.
    world.fail_at(5, Fault::Crash { down: Duration::from_secs(60), wiped: false });
    world.start(0).await;
    world.start(1).await;
    world.run(Duration::from_secs(5)).await;
    assert_eq!((world.net.ever.lock().len(), world.running(0)), (1, false), "{:?}", world.net.trace.lock());
    let late = world.add();
    world.start(late).await;
    world.run(Duration::from_secs(40)).await;
    assert!(world.identity(1).is_none() && world.identity(late).is_none());
    assert!(world.status(1).contains("waiting for host-0:7400"), "{}", world.status(1));
    world.settle_all().await;
    world.one_cluster_of_all();
    assert_eq!(world.net.ever.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_aborts_does_not_bootstrap_with_other_nodes_while_its_founders_may_finish() {
    let mut world = World::new(18, 3, 3);
    start_three(&mut world, [0, 1, 2], Duration::ZERO).await;
    // The last founder has promised, and its answer is lost.
    while world.promised(2).is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.part(&[0, 1], &[2]);
    // The coordinator decides to abort. Before any node sees that, the other nodes are cut off from it, but not from
    // one another.
    while world.steps(Step::Stored, 0) < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.heal();
    let late = [world.add(), world.add()];
    world.part(&[0, late[0], late[1]], &[1, 2]);
    assert!(world.promised(1).is_some() && world.identity(1).is_none() && world.identity(0).is_none());
    for number in late {
        world.start(number).await;
    }
    world.run(Duration::from_secs(60)).await;
    let cluster = world.one_cluster(&[1, 2]);
    assert!(world.identity(0).is_none(), "{}", world.status(0));
    assert!(world.status(0).contains("waiting for one of host-1:7400 to release its promise"), "{}", world.status(0));
    world.heal();
    world.settle_all().await;
    assert_eq!(world.one_cluster_of_all(), cluster);
    assert_eq!(world.net.ever.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_that_only_one_founder_cannot_reach_is_not_replaced() {
    let mut world = World::new(19, 3, 3);
    start_three(&mut world, [0, 1, 2], Duration::ZERO).await;
    while world.promised(2).is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.part(&[0], &[2]);
    world.run(Duration::from_secs(60)).await;
    assert!(world.net.ever.lock().is_empty());
    assert_eq!(world.steps(Step::Stored, 0), 1);
    world.heal();
    world.settle_all().await;
    world.one_cluster_of_all();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_done_twice_when_nothing_goes_wrong() {
    let mut world = World::new(5, 3, 3);
    start_three(&mut world, [0, 1, 2], Duration::ZERO).await;
    world.settle_all().await;
    let trace = world.net.trace.lock();
    let count = |step| trace.iter().filter(|(other, ..)| *other == step).count();
    // Each node stores a promise and its cluster; the coordinator calls both other nodes for each of the two.
    assert_eq!((count(Step::Stored), count(Step::Asked), count(Step::Answered)), (6, 4, 4), "{trace:?}");
}
