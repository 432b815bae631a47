//! Tests of discovery, joining and refusals.

use super::*;

async fn three() -> World {
    let mut world = World::new(6, 3, 3);
    start_three(&mut world, [0, 1, 2], Duration::ZERO).await;
    world.settle_all().await;
    world
}

#[tokio::test(start_paused = true)]
async fn fewer_nodes_than_expected_report_which_nodes_they_wait_for() {
    let mut world = World::new(7, 3, 3);
    world.start(0).await;
    world.start(1).await;
    world.run(Duration::from_secs(60)).await;
    assert_eq!(
        world.status(0),
        "waiting for 3 nodes: seen 2 (this node, host-1:7400); unreachable: host-2:7400 (connection refused)"
    );
    assert!(world.net.trace.lock().is_empty());
    world.start(2).await;
    world.settle_all().await;
    world.one_cluster_of_all();
}

#[tokio::test(start_paused = true)]
async fn nodes_that_discover_different_nodes_wait_until_all_see_the_same() {
    let mut world = World::new(8, 3, 3);
    world.find(0, &[0, 1]);
    world.find(1, &[0, 1, 2]);
    world.find(2, &[2]);
    start_three(&mut world, [0, 1, 2], Duration::ZERO).await;
    world.run(Duration::from_secs(30)).await;
    assert!((0..3).all(|number| world.identity(number).is_none()));
    let status = world.status(1);
    assert!(status.contains("waiting until all see the same nodes"), "{status}");
    world.net.names.lock().clear();
    world.settle_all().await;
    world.one_cluster_of_all();
}

#[tokio::test(start_paused = true)]
async fn stale_addresses_and_an_answer_that_comes_late_do_no_harm() {
    let mut world = World::new(9, 3, 3);
    world.add();
    for number in 0..3 {
        world.find(number, &[3, 0, 1, 2]);
    }
    // No node ever starts at host-3. The name service of host-0 fails for a while, and then returns no names.
    world.net.names.lock().insert(world.address(0), vec!["SERVFAIL".into()]);
    start_three(&mut world, [0, 1, 2], Duration::ZERO).await;
    world.run(Duration::from_secs(5)).await;
    assert!(world.status(0).contains("SERVFAIL"), "{}", world.status(0));
    world.find(0, &[]);
    world.run(Duration::from_secs(5)).await;
    assert!(world.net.ever.lock().is_empty());
    world.find(0, &[1, 2, 3]);
    world.settle(&[0, 1, 2]).await;
    world.one_cluster(&[0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn five_nodes_that_expect_three_end_in_one_cluster_however_they_start() {
    for (seed, stagger) in [0, 3, 40, 130, 700].into_iter().enumerate() {
        let mut world = World::new(seed as u64, 5, 3);
        for number in [3, 1, 4, 0, 2] {
            world.start(number).await;
            world.run(Duration::from_millis(stagger)).await;
        }
        world.settle_all().await;
        world.one_cluster_of_all();
        assert_eq!(world.net.ever.lock().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_starts_later_joins_and_keeps_its_cluster_after_a_restart() {
    let mut world = three().await;
    let cluster_id = world.one_cluster_of_all();
    let late = world.add();
    // It finds only a follower, and is redirected to the leader.
    world.find(late, &[2]);
    world.start(late).await;
    world.settle_all().await;
    let identity = Identity { cluster_id, raft_id: 4 };
    let Ok(MembershipOutcome::Joined { identity: given, members }) = world.outcome(late) else { panic!() };
    assert_eq!((*given, members.len()), (identity, 3));
    world.crash(late, false);
    world.find(late, &[]);
    world.start(late).await;
    world.settle_all().await;
    assert!(
        matches!(world.outcome(late), Ok(MembershipOutcome::Member { identity: kept, origin: Origin::Joined(_) }) if *kept == identity)
    );
    // Also a founder whose process may have ended before it acted on its new cluster.
    world.crash(0, false);
    world.start(0).await;
    world.settle_all().await;
    let Ok(MembershipOutcome::Member { origin: Origin::Founded(founders), .. }) = world.outcome(0) else { panic!() };
    assert_eq!(founders.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_node_with_a_wiped_disk_joins_as_another_one() {
    let mut world = three().await;
    let before = world.identity(1).unwrap();
    world.crash(1, true);
    world.start(1).await;
    world.settle_all().await;
    let after = world.identity(1).unwrap();
    assert_eq!((after.cluster_id, after.raft_id), (before.cluster_id, 4));
}

#[tokio::test(start_paused = true)]
async fn a_cluster_without_a_leader_is_waited_for_and_no_other_is_founded() {
    let mut world = three().await;
    world.crash(0, false);
    world.crash(1, false);
    let late = [world.add(), world.add(), world.add()];
    for number in late {
        world.start(number).await;
    }
    world.run(Duration::from_secs(60)).await;
    assert!(world.status(late[0]).contains("waiting to join cluster"), "{}", world.status(late[0]));
    assert_eq!(world.net.ever.lock().len(), 1);
    world.start(0).await;
    world.start(1).await;
    world.settle_all().await;
    world.one_cluster_of_all();
}

#[tokio::test(start_paused = true)]
async fn a_removed_node_is_permanently_refused() {
    let mut world = three().await;
    let late = world.add();
    world.remove(late);
    world.start(late).await;
    world.settle_all().await;
    let refusal = world.refusal(late);
    assert!(refusal.contains("the node was removed from it"), "{refusal}");
}

#[tokio::test(start_paused = true)]
async fn two_clusters_are_named_and_neither_is_chosen() {
    let mut world = World::new(10, 3, 1);
    world.find(0, &[0]);
    world.find(1, &[1]);
    world.start(0).await;
    world.start(1).await;
    world.settle(&[0, 1]).await;
    world.start(2).await;
    world.settle_all().await;
    let refusal = world.refusal(2);
    for number in [0, 1] {
        assert!(refusal.contains(&world.identity(number).unwrap().cluster_id.to_string()), "{refusal}");
        assert!(refusal.contains(&world.address(number)), "{refusal}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_node_that_expects_no_other_bootstraps_alone_without_a_call() {
    let mut world = World::new(11, 1, 1);
    world.net.names.lock().insert(world.address(0), vec!["SERVFAIL".into()]);
    world.start_seeded(0, false).await;
    world.settle_all().await;
    assert!(matches!(world.outcome(0), Ok(MembershipOutcome::Founded { founders, .. }) if founders.len() == 1));
}

#[tokio::test(start_paused = true)]
async fn one_node_with_seeds_calls_them_before_it_bootstraps_alone() {
    let mut world = three().await;
    world.expect(1);
    let late = world.add();
    world.start(late).await;
    world.settle_all().await;
    assert!(matches!(world.outcome(late), Ok(MembershipOutcome::Joined { .. })));
    // With no cluster at any seed it bootstraps, even when a seed is unreachable.
    let mut world = World::new(12, 2, 1);
    world.start(0).await;
    world.settle(&[0]).await;
    world.start(1).await;
    world.settle_all().await;
    world.one_cluster_of_all();
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_a_data_directory_is_refused() {
    let mut world = World::new(13, 3, 3);
    world.copy_disk(0, 1);
    world.start(0).await;
    world.start(1).await;
    world.settle(&[0, 1]).await;
    assert!(world.refusal(1).contains("is a copy"), "{}", world.refusal(1));
    // Other nodes see two nodes with one UUID and do not count them.
    world.start(2).await;
    world.run(Duration::from_secs(5)).await;
    assert!(world.status(2).contains("one must be a copy"), "{}", world.status(2));
}

#[tokio::test(start_paused = true)]
async fn nodes_that_expect_different_numbers_report_it_and_wait() {
    let mut world = World::new(14, 3, 3);
    world.start(0).await;
    world.start(1).await;
    world.expect(2);
    world.start(2).await;
    world.run(Duration::from_secs(30)).await;
    let status = world.status(0);
    assert!(status.contains("cluster.bootstrap-expect is 2 at host-2:7400 and 3 here"), "{status}");
    assert!(world.net.ever.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn hello_returns_the_controller_leader() {
    let world = three().await;
    let node = world.membership(1);
    node.set_controller_leader(Some("host-0:7400".into()));
    let hello = node.hello(&chronicle_proto::internal::HelloRequest::default());
    assert_eq!(hello.controller_leader, "host-0:7400");
    assert_eq!(hello.cluster_id, world.identity(1).unwrap().cluster_id.to_string());
    assert_eq!((hello.raft_id, hello.seen.len(), hello.promised.as_str()), (2, 0, ""));
}
