//! Founding and joining on simulated time: every start order, and every step of the founding going wrong.

mod sim;

use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sim::{Fault, Step, World};

use super::*;

const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
const SHORT: Duration = Duration::from_millis(400);
const LONG: Duration = Duration::from_secs(25);

async fn start_three(world: &mut World, order: [usize; 3], stagger: Duration) {
    for number in order {
        world.start(number).await;
        world.run(stagger).await;
    }
}

#[tokio::test(start_paused = true)]
async fn three_nodes_found_one_cluster_in_every_start_order() {
    for stagger in [0, 7, 150, 1100, 15_000].map(Duration::from_millis) {
        for order in ORDERS {
            let mut world = World::new(1, 3, 3);
            start_three(&mut world, order, stagger).await;
            world.settle_all().await;
            world.one_cluster_of_all();
            assert_eq!(world.net.ever.lock().len(), 1);
            for number in 0..3 {
                let Some(Ok(Start::Founded { identity, founders })) = &world.hosts[number].outcome else {
                    panic!("{:?}", world.hosts[number].outcome);
                };
                assert_eq!(founders.iter().map(|founder| founder.raft_id).collect::<Vec<_>>(), [1, 2, 3]);
                assert_eq!(founders[number].node_id, world.hosts[number].node_id);
                assert_eq!(founders[number].address, world.hosts[number].address);
                assert_eq!(identity.raft_id, founders[number].raft_id);
            }
        }
    }
}

/// Runs the founding of three nodes once with each fault at each step, and returns how many runs that were.
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
                    let outcomes: Vec<_> = world.hosts.iter().map(|host| &host.outcome).collect();
                    assert!(outcomes.iter().all(|outcome| matches!(outcome, Some(Ok(_)))), "{context}: {outcomes:?}");
                    world.one_cluster_of_all();
                    assert!(wiped || world.net.ever.lock().len() == 1, "{context}");
                    runs += 1;
                }
            }
        }
    }
    runs
}

#[tokio::test(start_paused = true)]
async fn a_message_or_a_node_lost_for_a_while_at_any_step_leads_to_one_cluster() {
    let faults: Vec<_> = [SHORT, LONG]
        .into_iter()
        .flat_map(|down| {
            let wiped = false;
            [Fault::Crash { down, wiped }, Fault::CrashPeer { down, wiped }, Fault::CrashAfter { down, wiped }]
        })
        .collect();
    assert!(fail_at_every_step(&faults, false).await > 500);
}

#[tokio::test(start_paused = true)]
async fn a_disk_lost_at_any_step_leads_to_one_cluster() {
    let faults: Vec<_> = [SHORT, LONG]
        .into_iter()
        .flat_map(|down| {
            let wiped = true;
            [Fault::Crash { down, wiped }, Fault::CrashPeer { down, wiped }, Fault::CrashAfter { down, wiped }]
        })
        .collect();
    fail_at_every_step(&faults, true).await;
}
