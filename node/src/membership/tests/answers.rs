//! Tests of promises and refusals, and of what survives a restart.

use std::io;
use std::sync::Arc;

use chronicle_proto::internal::{FoundRequest, PromiseRequest};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::super::durable_state::DurableState;
use super::*;

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn proposal(cluster: u128, founders: &[u128]) -> Promised {
    let founder = |(node_id, raft_id): (&u128, u64)| Founder {
        node_id: id(*node_id),
        raft_id,
        name: String::new(),
        address: format!("host-{node_id}:7400"),
        zone: String::new(),
        version: String::new(),
    };
    let founders: Vec<_> = founders.iter().zip(1..).map(founder).collect();
    Promised { cluster_id: id(cluster), coordinator: founders[0].node_id, founders }
}

#[test]
fn a_second_promise_is_permanently_refused_and_the_first_repeated() {
    let mut memory = Remembered::default();
    let (first, second) = (proposal(100, &[1, 2, 3]), proposal(200, &[2, 3, 4]));
    assert_eq!(memory.promise(first.clone(), id(2), 3, None), Ok(()));
    assert_eq!(memory.promise(first.clone(), id(2), 3, None), Ok(()));
    assert!(memory.promise(second.clone(), id(2), 3, None).unwrap_err().contains("holds a promise"));
    memory.forget();
    // Neither a released nor a refused proposal can be promised again.
    assert!(memory.promise(first, id(2), 3, None).unwrap_err().contains("refused this proposal before"));
    assert!(memory.promise(second, id(2), 3, None).unwrap_err().contains("refused this proposal before"));
    assert_eq!(memory.promise(proposal(300, &[1, 2, 3]), id(2), 3, None), Ok(()));
}

#[test]
fn proposals_that_cannot_be_right_are_refused() {
    let sound = proposal(100, &[1, 2, 3]);
    let mut unsorted = sound.clone();
    unsorted.founders.swap(0, 1);
    let mut misnumbered = sound.clone();
    misnumbered.founders[2].raft_id = 7;
    let mut leaderless = sound.clone();
    leaderless.coordinator = id(9);
    for wrong in
        [unsorted, misnumbered, leaderless, proposal(100, &[1, 3, 4]), proposal(100, &[1, 2]), proposal(0, &[1, 2, 3])]
    {
        assert!(Remembered::default().promise(wrong.clone(), id(2), 3, None).is_err(), "{wrong:?}");
    }
    let refused = Remembered::default().promise(sound.clone(), id(2), 3, Some(id(77))).unwrap_err();
    assert!(refused.contains("there is a cluster already"), "{refused}");
    assert_eq!(Remembered::default().promise(sound, id(2), 3, Some(id(100))), Ok(()));
}

#[test]
fn a_node_enters_only_the_cluster_that_it_promised_and_never_changes_it() {
    let mut memory = Remembered::default();
    assert!(memory.found(id(100), id(2)).unwrap_err().contains("holds no promise"));
    memory.promise(proposal(100, &[1, 2, 3]), id(2), 3, None).unwrap();
    assert!(memory.found(id(200), id(2)).unwrap_err().contains("holds no promise"));
    assert!(memory.promised.is_some());
    assert_eq!(memory.found(id(100), id(2)), Ok(()));
    let own = memory.own_cluster.clone().unwrap();
    assert_eq!(own.identity, Identity { cluster_id: id(100), raft_id: 2 });
    assert_eq!(memory.found(id(100), id(2)), Ok(()));
    assert!(memory.found(id(200), id(2)).unwrap_err().contains("belongs to cluster"));
    assert!(memory.promise(proposal(200, &[1, 2, 3]), id(2), 3, None).unwrap_err().contains("belongs to cluster"));
    memory.join(Identity { cluster_id: id(300), raft_id: 9 }, Vec::new(), "another");
    assert_eq!(memory.own_cluster, Some(own));
}

#[test]
fn refusals_are_stored_up_to_a_bound() {
    let mut memory = Remembered::default();
    memory.promise(proposal(1, &[1, 2]), id(2), 2, None).unwrap();
    for cluster in 2..2000 {
        memory.promise(proposal(cluster, &[1, 2]), id(2), 2, None).unwrap_err();
    }
    assert_eq!((memory.refused.len(), *memory.refused.last().unwrap()), (256, id(1999)));
}

#[test]
fn a_member_keeps_its_name() {
    let mut memory = Remembered::default();
    assert_eq!(memory.keep_name("a"), Ok(()));
    assert_eq!(memory.name, "", "without a cluster a node may have any name");
    let mut proposed = proposal(100, &[1, 2]);
    proposed.founders[1].name = "b".into();
    memory.promise(proposed, id(2), 2, None).unwrap();
    memory.found(id(100), id(2)).unwrap();
    assert_eq!(memory.keep_name("another"), Err("b".into()));
    assert_eq!((memory.keep_name("b"), memory.name.as_str()), (Ok(()), "b"));

    let mut joined = Remembered::default();
    joined.join(Identity { cluster_id: id(100), raft_id: 3 }, Vec::new(), "c");
    joined.join(Identity { cluster_id: id(200), raft_id: 4 }, Vec::new(), "d");
    assert_eq!(joined.keep_name("d"), Err("c".into()));
    // A version before did not store it.
    joined.name = String::new();
    assert_eq!((joined.keep_name("d"), joined.name.as_str()), (Ok(()), "d"));
}

#[test]
fn the_durable_state_survives_as_text() {
    let mut memory = Remembered::default();
    memory.promise(proposal(1, &[1, 2]), id(2), 2, None).unwrap();
    memory.promise(proposal(2, &[1, 2]), id(2), 2, None).unwrap_err();
    let text = serde_json::to_string(&memory).unwrap();
    assert_eq!(serde_json::from_str::<Remembered>(&text).unwrap(), memory);
    memory.found(id(1), id(2)).unwrap();
    let text = serde_json::to_string(&memory).unwrap();
    assert!(text.contains(r#""place":{"identity":{"cluster_id":"#), "the key that every version reads: {text}");
    assert_eq!(serde_json::from_str::<Remembered>(&text).unwrap(), memory);
    assert_eq!(serde_json::from_str::<Remembered>("{}").unwrap(), Remembered::default());
}

/// A memory whose writes hang once, or fail once, after they took effect.
#[derive(Default)]
struct Flaky {
    stored: Mutex<Remembered>,
    hang: Mutex<bool>,
    fail: Mutex<bool>,
}

impl Memory for Flaky {
    fn load(&self) -> BoxFuture<'_, io::Result<Remembered>> {
        async { Ok(self.stored.lock().clone()) }.boxed()
    }

    fn store(&self, remembered: Remembered) -> BoxFuture<'_, io::Result<()>> {
        *self.stored.lock() = remembered;
        let (hang, fail) = (std::mem::take(&mut *self.hang.lock()), std::mem::take(&mut *self.fail.lock()));
        async move {
            if hang {
                std::future::pending::<()>().await;
            }
            if fail { Err(io::Error::other("no answer from the disk")) } else { Ok(()) }
        }
        .boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_dropped_or_failed_is_read_back_before_anything_is_answered() {
    let memory = Arc::new(Flaky::default());
    let state = DurableState::open(Arc::clone(&memory) as Arc<dyn Memory>).await.unwrap();
    *memory.hang.lock() = true;
    let dropped = state.change(|memory| memory.promise(proposal(1, &[1, 2]), id(2), 2, None));
    assert!(tokio::time::timeout(Duration::from_millis(1), dropped).await.is_err());
    assert!(state.promised().is_none(), "it may not be durable yet");
    let second = state.change(|memory| memory.promise(proposal(2, &[1, 2]), id(2), 2, None)).await.unwrap();
    assert!(second.unwrap_err().contains("holds a promise"));
    assert_eq!(state.promised().unwrap().cluster_id, id(1));
    *memory.fail.lock() = true;
    assert!(state.change(|memory| memory.found(id(1), id(2))).await.is_err());
    assert!(state.own_cluster().is_none());
    state.change(|_| ()).await.unwrap();
    assert_eq!(state.own_cluster().unwrap().identity.cluster_id, id(1));
}

#[tokio::test(start_paused = true)]
async fn malformed_requests_are_refused_with_the_field_and_the_rule() {
    let mut world = World::new(15, 1, 3);
    world.start(0).await;
    let node = world.membership(0);
    let request = PromiseRequest { cluster_id: "x".into(), coordinator: String::new(), founders: Vec::new() };
    assert_eq!(node.promise(request).await.unwrap().refused, "cluster_id: \"x\": must be a UUID");
    let request = FoundRequest { cluster_id: String::new(), founders: Vec::new() };
    assert_eq!(node.found(request).await.unwrap().refused, "cluster_id: \"\": must be a UUID");
}
