//! Scenarios of one group, with time as an argument.

use proptest::prelude::*;

use super::*;

/// A group, its clock and its topics.
struct Scene {
    group: ConsumerGroup,
    now: Instant,
    topics: BTreeMap<String, i32>,
    joined: usize,
    stored: GroupRecord,
}

fn partitions(list: &[i32]) -> Partitions {
    if list.is_empty() { Partitions::new() } else { Partitions::from([("t".to_owned(), list.to_vec())]) }
}

impl Scene {
    fn new(partitions: i32) -> Self {
        let now = Instant::now();
        Self {
            group: ConsumerGroup::recover("g", &GroupRecord::default(), now),
            now,
            topics: BTreeMap::from([("t".to_owned(), partitions)]),
            joined: 0,
            stored: GroupRecord::default(),
        }
    }

    fn remember(&mut self, changes: &[Change]) {
        for change in changes {
            match change.clone() {
                Change::Generation(generation) => {
                    assert!(generation.unwrap() > self.stored.generation, "generations rise");
                    self.stored.generation = generation.unwrap();
                }
                Change::Member(id, Some(member)) => {
                    self.stored.members.insert(id, member);
                }
                Change::Member(id, None) => {
                    self.stored.members.remove(&id);
                }
                Change::Offset(..) => unreachable!("a group changes no offsets"),
            }
        }
    }

    fn beat(&mut self, id: &str, owned: &[i32]) -> Result<(Vec<i32>, i32), ApiError> {
        let request = Heartbeat { member_id: id.into(), owned: partitions(owned), ..Heartbeat::default() };
        let record = MemberRecord { client_name: String::new(), topics: vec!["t".into()], session_timeout_ms: 10_000 };
        let joined = self.joined;
        let new_id = || format!("m{joined}");
        let topics = &self.topics;
        let partitions_of = |topic: &str| topics.get(topic).copied().unwrap_or(0);
        let (membership, changes) = self.group.heartbeat(&request, record, new_id, partitions_of, self.now)?;
        self.remember(&changes);
        Ok((membership.assigned.get("t").cloned().unwrap_or_default(), membership.generation))
    }

    fn join(&mut self) -> (String, Vec<i32>) {
        let assigned = self.beat("", &[]).unwrap().0;
        self.joined += 1;
        (format!("m{}", self.joined - 1), assigned)
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        let changes = self.group.expire(self.now);
        self.remember(&changes);
    }

    /// Another node becomes the coordinator.
    fn fail_over(&mut self) {
        self.group = ConsumerGroup::recover("g", &self.stored, self.now);
    }

    fn may_commit(&self, id: &str, generation: i32, partition: i32) -> Result<(), Reason> {
        self.group.may_commit(id, generation, [("t", partition)].into_iter()).map_err(|e| e.reason)
    }
}

#[test]
fn a_partition_is_assigned_only_after_its_owner_has_released_it() {
    let mut scene = Scene::new(4);
    let (a, assigned) = scene.join();
    assert_eq!(assigned, [0, 1, 2, 3]);
    assert_eq!(scene.beat(&a, &[0, 1, 2, 3]).unwrap().0, [0, 1, 2, 3]);
    assert_eq!(scene.group.state(), GroupState::Stable);
    let (b, assigned) = scene.join();
    assert!(assigned.is_empty(), "all are still owned: {assigned:?}");
    assert_eq!(scene.group.state(), GroupState::Rebalancing);
    // It has to release two, and still owns one of them.
    let (keep, _) = scene.beat(&a, &[0, 1, 2, 3]).unwrap();
    assert_eq!(keep.len(), 2);
    let given: Vec<i32> = (0..4).filter(|partition| !keep.contains(partition)).collect();
    assert!(scene.beat(&b, &[]).unwrap().0.is_empty());
    scene.beat(&a, &[keep[0], keep[1], given[0]]).unwrap();
    assert_eq!(scene.beat(&b, &[]).unwrap().0, [given[1]]);
    scene.beat(&a, &keep).unwrap();
    assert_eq!(scene.beat(&b, &[given[1]]).unwrap().0, given);
    assert_eq!(scene.group.state(), GroupState::Stable);
}

#[test]
fn a_silent_member_loses_its_partitions_when_its_session_expires_and_receives_an_error() {
    let mut scene = Scene::new(2);
    let (a, _) = scene.join();
    let (b, _) = scene.join();
    let (kept, _) = scene.beat(&a, &[0]).unwrap();
    assert_eq!((kept, scene.beat(&b, &[]).unwrap().0), (vec![0], vec![1]));
    scene.pass(6);
    scene.beat(&a, &[0]).unwrap();
    let (_, before) = scene.beat(&a, &[0]).unwrap();
    scene.pass(6);
    let (assigned, generation) = scene.beat(&a, &[0]).unwrap();
    assert_eq!((assigned, generation), (vec![0, 1], before + 1));
    let error = scene.beat(&b, &[1]).unwrap_err();
    assert_eq!(error.reason, Reason::UnknownMember);
    assert_eq!(scene.may_commit(&b, before, 1), Err(Reason::UnknownMember));
    assert_eq!(scene.group.len(), 1);
}

#[test]
fn a_member_that_leaves_frees_its_partitions_at_once() {
    let mut scene = Scene::new(2);
    let (a, _) = scene.join();
    let (b, _) = scene.join();
    let changes = scene.group.leave(&a).unwrap();
    scene.remember(&changes);
    assert_eq!(scene.beat(&b, &[]).unwrap().0, [0, 1]);
    assert_eq!(scene.group.leave(&a).unwrap_err().reason, Reason::UnknownMember);
    scene.group.leave(&b).unwrap();
    assert_eq!((scene.group.state(), scene.group.next_expiry()), (GroupState::Empty, None));
}

#[test]
fn commits_are_fenced_by_generation_and_by_what_the_member_owns() {
    let mut scene = Scene::new(2);
    let (a, _) = scene.join();
    let (_, first) = scene.beat(&a, &[0, 1]).unwrap();
    assert_eq!(scene.may_commit(&a, first, 1), Ok(()));
    let (b, _) = scene.join();
    // Before the next response it still owns it. After it: the old generation is stale, the new one valid until the release.
    assert_eq!(scene.may_commit(&a, first, 1), Ok(()));
    let (keep, second) = scene.beat(&a, &[0, 1]).unwrap();
    let gone = 1 - keep[0];
    assert_eq!(scene.may_commit(&a, first, keep[0]), Err(Reason::StaleGeneration));
    assert_eq!(scene.may_commit(&a, second, gone), Ok(()));
    assert_eq!(scene.may_commit(&b, second, gone), Err(Reason::StaleGeneration));
    scene.beat(&a, &keep).unwrap();
    assert_eq!(scene.may_commit(&a, second, gone), Err(Reason::StaleGeneration));
    scene.beat(&b, &[]).unwrap();
    assert_eq!(scene.may_commit(&b, second, gone), Ok(()));
    assert_eq!(scene.may_commit(&b, second + 1, gone), Err(Reason::InvalidRequest));
    assert_eq!(scene.may_commit("nobody", second, 0), Err(Reason::UnknownMember));
}

#[test]
fn after_a_fail_over_members_keep_what_they_own_and_nothing_is_assigned_before_all_have_reported() {
    let mut scene = Scene::new(4);
    let (a, _) = scene.join();
    let (b, _) = scene.join();
    let (of_a, _) = scene.beat(&a, &[0, 1]).unwrap();
    let (of_b, generation) = scene.beat(&b, &[]).unwrap();
    assert_eq!((of_a.len(), of_b.len()), (2, 2));
    scene.fail_over();
    assert_eq!(scene.group.state(), GroupState::Rebalancing);
    // A commit may be the first request of a member.
    assert_eq!(scene.may_commit(&a, generation, of_a[0]), Ok(()));
    assert_eq!(scene.beat(&a, &of_a).unwrap(), (of_a.clone(), generation));
    let (c, nothing) = scene.join();
    assert!(nothing.is_empty());
    assert_eq!(scene.may_commit(&c, generation + 1, of_b[0]), Err(Reason::StaleGeneration));
    assert_eq!(scene.beat(&a, &of_a).unwrap().0, of_a, "nothing moves yet");
    // All members have reported: now the target is computed.
    let (keep, _) = scene.beat(&b, &of_b).unwrap();
    assert!(keep.iter().all(|partition| of_b.contains(partition)));
    scene.beat(&a, &of_a).unwrap();
    assert_eq!(scene.group.state(), GroupState::Rebalancing);
}

#[test]
fn after_a_fail_over_the_partitions_of_a_lost_member_wait_for_its_session_to_expire() {
    let mut scene = Scene::new(2);
    let (a, _) = scene.join();
    let (b, _) = scene.join();
    scene.beat(&a, &[0]).unwrap();
    scene.beat(&b, &[]).unwrap();
    scene.fail_over();
    scene.pass(5);
    assert_eq!(scene.beat(&a, &[0]).unwrap().0, [0]);
    scene.pass(5);
    assert_eq!(scene.beat(&a, &[0]).unwrap().0, [0, 1]);
    assert_eq!(scene.beat(&b, &[1]).unwrap_err().reason, Reason::UnknownMember);
}

#[test]
fn more_partitions_of_a_topic_are_shared_out_in_a_new_generation() {
    let mut scene = Scene::new(2);
    let (a, _) = scene.join();
    let (b, _) = scene.join();
    scene.beat(&a, &[0]).unwrap();
    let (_, before) = scene.beat(&b, &[1]).unwrap();
    scene.topics.insert("t".into(), 4);
    let (of_a, generation) = scene.beat(&a, &[0]).unwrap();
    let (of_b, _) = scene.beat(&b, &[1]).unwrap();
    assert_eq!((of_a.len(), of_b.len(), generation), (2, 2, before + 1));
    // The partitions of a deleted topic are released.
    scene.topics.clear();
    assert!(scene.beat(&a, &of_a).unwrap().0.is_empty());
}

#[test]
fn a_coordinator_that_stood_still_does_not_end_sessions_for_it() {
    let mut scene = Scene::new(1);
    let (a, _) = scene.join();
    scene.group.postpone(Duration::from_secs(60));
    scene.pass(65);
    assert_eq!(scene.beat(&a, &[0]).unwrap().0, [0]);
}

#[test]
fn claims_of_partitions_that_are_another_s_or_do_not_exist_are_not_taken() {
    let mut scene = Scene::new(2);
    let (a, _) = scene.join();
    let (b, _) = scene.join();
    scene.beat(&a, &[0, 1]).unwrap();
    let (claimed, _) = scene.beat(&b, &[0, 1, 7, -1]).unwrap();
    assert!(claimed.is_empty());
    assert_eq!(scene.group.owner("t", 7), None);
    assert_eq!(scene.group.owner("t", 0), Some(a.as_str()));
}

#[test]
fn a_group_has_a_limit_of_members() {
    let mut scene = Scene::new(1);
    for _ in 0..MEMBERS_MAX {
        scene.join();
    }
    assert_eq!(scene.beat("", &[]).unwrap_err().reason, Reason::Overloaded);
}

/// A client that follows its assignment, some heartbeats later.
struct TestClient {
    id: String,
    owned: Vec<i32>,
    /// Number of heartbeats for which it keeps reading revoked partitions.
    slow: u8,
}

#[derive(Debug, Clone)]
enum GroupEvent {
    Join {
        slow: u8,
    },
    Beat(usize),
    Leave(usize),
    /// Without leaving: its session has to expire.
    Die(usize),
    FailOver,
    Pass(u64),
    Grow,
}

fn events() -> impl Strategy<Value = Vec<GroupEvent>> {
    let event = prop_oneof![
        3 => (0..3u8).prop_map(|slow| GroupEvent::Join { slow }),
        12 => any::<usize>().prop_map(GroupEvent::Beat),
        1 => any::<usize>().prop_map(GroupEvent::Leave),
        1 => any::<usize>().prop_map(GroupEvent::Die),
        1 => Just(GroupEvent::FailOver),
        3 => (0..4u64).prop_map(GroupEvent::Pass),
        1 => Just(GroupEvent::Grow),
    ];
    proptest::collection::vec(event, 1..80)
}

impl TestClient {
    /// One heartbeat. A client whose session has expired drops its partitions.
    fn beat(&mut self, scene: &mut Scene) -> bool {
        match scene.beat(&self.id, &self.owned) {
            Ok((assigned, generation)) => {
                for partition in &assigned {
                    assert_eq!(scene.may_commit(&self.id, generation, *partition), Ok(()));
                }
                let lingering = self.owned.iter().copied().filter(|partition| !assigned.contains(partition));
                let lingering: Vec<i32> = if self.slow > 0 { lingering.collect() } else { Vec::new() };
                self.slow = self.slow.saturating_sub(u8::from(!lingering.is_empty()));
                self.owned = [assigned, lingering].concat();
                true
            }
            Err(error) => {
                assert_eq!(error.reason, Reason::UnknownMember);
                false
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_partition_is_ever_read_by_two_members_and_in_the_end_all_are_read_evenly(
        partitions in 1..12i32,
        events in events(),
    ) {
        let mut scene = Scene::new(partitions);
        let mut clients: Vec<TestClient> = Vec::new();
        for event in events {
            let pick = |i: usize, clients: &Vec<TestClient>| (!clients.is_empty()).then(|| i % clients.len());
            match event {
                GroupEvent::Join { slow } => {
                    let (id, owned) = scene.join();
                    clients.push(TestClient { id, owned, slow });
                }
                GroupEvent::Beat(i) => {
                    if let Some(i) = pick(i, &clients) {
                        let mut client = clients.swap_remove(i);
                        if client.beat(&mut scene) {
                            clients.push(client);
                        }
                    }
                }
                GroupEvent::Leave(i) => {
                    if let Some(i) = pick(i, &clients) {
                        let client = clients.swap_remove(i);
                        if let Ok(changes) = scene.group.leave(&client.id) {
                            scene.remember(&changes);
                        }
                    }
                }
                GroupEvent::Die(i) => {
                    if let Some(i) = pick(i, &clients) {
                        clients.swap_remove(i);
                    }
                }
                GroupEvent::FailOver => scene.fail_over(),
                GroupEvent::Pass(seconds) => scene.pass(seconds),
                GroupEvent::Grow => *scene.topics.get_mut("t").unwrap() += 1,
            }
            // A removed member stops reading at its next heartbeat; until then its commits are rejected.
            let mut read = BTreeSet::new();
            for client in clients.iter().filter(|client| scene.group.members.contains_key(&client.id)) {
                for partition in &client.owned {
                    prop_assert!(read.insert(*partition), "partition {} is read twice", partition);
                }
            }
        }
        // No more events: all clients send heartbeats until dead members have expired and all partitions are reassigned.
        for _ in 0..20 {
            clients.retain_mut(|client| client.beat(&mut scene));
            scene.pass(1);
        }
        prop_assert_eq!(scene.group.len(), clients.len());
        if !clients.is_empty() {
            prop_assert_eq!(scene.group.state(), GroupState::Stable);
            let count = scene.topics["t"] as usize;
            prop_assert_eq!(clients.iter().map(|client| client.owned.len()).sum::<usize>(), count);
            let even = count / clients.len()..=count.div_ceil(clients.len());
            prop_assert!(clients.iter().all(|client| even.contains(&client.owned.len())));
        }
    }
}
