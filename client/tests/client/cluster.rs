//! Several nodes: the client finds leaders and followers, and loses or duplicates no record while they change.

use std::time::Duration;

use crate::fake::{Cluster, Fault, Reach};
use crate::inputs::{identity, partition, request, values};
use chronicle_client::{
    Client, ClientError, ConsumerConfig, ErrorKind, Position, Producer, ProducerConfig, ReadFrom, Record, v1,
};
use futures::StreamExt;
use futures::future::join_all;
use proptest::prelude::*;
use tokio::time::Instant;
use tonic::Code;

fn producer(client: &Client, config: ProducerConfig) -> Producer {
    client.producer(partition(), config)
}

fn small() -> ProducerConfig {
    ProducerConfig { batch_records_max: 7, delivery_timeout: Duration::from_secs(20), ..ProducerConfig::default() }
}

async fn send_all(producer: &Producer, range: std::ops::Range<usize>) -> Vec<Result<i64, ClientError>> {
    let mut deliveries = Vec::new();
    for value in values(range) {
        deliveries.push(producer.send(Record::value(value)).await.unwrap());
    }
    join_all(deliveries).await
}

/// The offsets are 0, 1, 2 and so on.
fn assert_dense(offsets: Vec<Result<i64, ClientError>>) {
    let count = offsets.len() as i64;
    let offsets: Result<Vec<i64>, _> = offsets.into_iter().collect();
    assert_eq!(offsets.unwrap(), (0..count).collect::<Vec<i64>>());
}

#[tokio::test]
async fn appends_go_straight_to_the_leader_and_one_question_serves_all() {
    let cluster = Cluster::start(3);
    cluster.lead(2);
    let client = cluster.client("n0:7400,n1:7400,n2:7400");
    let answers = (0..50).map(|n| client.produce(request(&n.to_string(), None)));
    for answer in join_all(answers).await {
        answer.unwrap();
    }
    assert_eq!(cluster.counts(|node| node.appends), [0, 0, 50]);
    let asked: usize = cluster.counts(|node| node.asked).iter().sum();
    assert!((1..=2).contains(&asked), "asked {asked} times");
    assert_eq!(cluster.values().len(), 50);
}

#[tokio::test]
async fn a_redirect_is_followed_at_once_and_stored() {
    let cluster = Cluster::start(3);
    cluster.lead(1);
    for n in [0, 2] {
        cluster.state.lock().nodes[n].believes = Some((0, 1));
    }
    // Node 1 knows that it leads, but the client does not ask it.
    let client = cluster.client("n2:7400");
    cluster.state.lock().nodes[0].believes = Some((1, 2));
    for (n, offset) in (0..10).zip(0..) {
        assert_eq!(client.produce(request(&n.to_string(), None)).await.unwrap().base_offset, offset);
    }
    let appends = cluster.counts(|node| node.appends);
    assert_eq!((appends[1], appends[2]), (10, 0));
    assert!(appends[0] <= 1, "{appends:?}");
}

#[tokio::test(start_paused = true)]
async fn nodes_that_send_each_to_the_other_do_not_cause_a_storm() {
    let cluster = Cluster::start(2);
    cluster.depose();
    for n in 0..2 {
        cluster.state.lock().nodes[n].believes = Some((1 - n, 1));
    }
    let client = Client::connect(cluster.config("n0:7400").request_timeout(Duration::from_secs(5))).unwrap();
    let error = client.produce(request("a", None)).await.unwrap_err();
    assert_eq!(error.reason, "NOT_LEADER");
    assert!(error.message.contains("gave up after 5000 ms") && error.message.contains("at n"), "{error}");
    let appends: usize = cluster.counts(|node| node.appends).iter().sum();
    assert!(appends < 600, "{appends} requests in 5 s");
}

#[tokio::test]
async fn a_leader_that_dies_in_the_middle_costs_nothing_and_doubles_nothing() {
    for fault in [Fault::StoreThenCut, Fault::Cut] {
        let cluster = Cluster::start(3);
        cluster.state.lock().log.faults.extend([Fault::None, Fault::None, fault.clone(), Fault::None, fault]);
        let client = cluster.client("n0:7400,n1:7400,n2:7400");
        let producer = producer(&client, small());
        assert_dense(send_all(&producer, 0..300).await);
        assert_eq!(cluster.values(), values(0..300));
        producer.close().await.unwrap();
    }
}

#[tokio::test]
async fn without_idempotence_only_what_was_sent_to_the_dead_leader_is_unknown() {
    let cluster = Cluster::start(3);
    cluster.state.lock().log.faults.extend([Fault::None, Fault::Cut, Fault::None, Fault::StoreThenCut]);
    let client = cluster.client("n0:7400,n1:7400,n2:7400");
    let config = ProducerConfig { idempotent: false, batch_records_max: 1, ..small() };
    let producer = producer(&client, config);
    let results = send_all(&producer, 0..20).await;
    let unknown: Vec<usize> = (0..20).filter(|n| results[*n].is_err()).collect();
    assert_eq!(unknown, [1, 3]);
    assert!(unknown.iter().all(|n| results[*n].as_ref().unwrap_err().kind == ErrorKind::OutcomeUnknown));
    // The first was lost, the second was stored.
    let expected: Vec<String> = values(0..20).into_iter().filter(|value| value != "1").collect();
    assert_eq!(cluster.values(), expected);
    producer.close().await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_silent_leader_is_abandoned_when_another_node_leads() {
    let cluster = Cluster::start(3);
    let client = cluster.client("n0:7400,n1:7400,n2:7400");
    let producer = producer(&client, small());
    assert_dense(send_all(&producer, 0..50).await);
    cluster.silence(0, true);
    let mut deliveries = Vec::new();
    for value in values(50..100) {
        deliveries.push(producer.send(Record::value(value)).await.unwrap());
    }
    // Slow, but still the leader: the client does not abandon it.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(cluster.values().len(), 50);
    let silent = Instant::now();
    cluster.lead(1);
    for (delivery, offset) in deliveries.into_iter().zip(50..) {
        assert_eq!(delivery.await.unwrap(), offset);
    }
    assert!(silent.elapsed() < Duration::from_millis(1500), "{:?}", silent.elapsed());
    // Requests that still arrive at the old leader change nothing.
    cluster.silence(0, false);
    producer.send(Record::value("100")).await.unwrap().await.unwrap();
    assert_eq!(cluster.values(), values(0..101));
    producer.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_busy_producer_abandons_a_silent_leader_too() {
    let cluster = Cluster::start(3);
    let client = cluster.client("n0:7400");
    let producer = producer(&client, small());
    assert_dense(send_all(&producer, 0..10).await);
    cluster.silence(0, true);
    let mut deliveries = vec![producer.send(Record::value("10")).await.unwrap()];
    cluster.lead(1);
    // New records keep arriving: the suspicion must not start over with each.
    for value in values(11..400) {
        tokio::time::sleep(Duration::from_millis(5)).await;
        deliveries.push(producer.send(Record::value(value)).await.unwrap());
    }
    assert!(cluster.values().len() > 100, "{} after 2 s", cluster.values().len());
    for delivery in deliveries {
        delivery.await.unwrap();
    }
    assert_eq!(cluster.values(), values(0..400));
    producer.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_call_to_a_silent_leader_is_repeated_or_returns_outcome_unknown() {
    let cluster = Cluster::start(3);
    let client = cluster.client("n0:7400,n1:7400,n2:7400");
    client.produce(request("0", identity(0))).await.unwrap();
    cluster.silence(0, true);
    cluster.lead(1);
    let began = Instant::now();
    let (once, again) = tokio::join!(client.produce(request("x", None)), client.produce(request("1", identity(1))));
    let error = once.unwrap_err();
    assert_eq!(error.kind, ErrorKind::OutcomeUnknown, "{error}");
    assert!(error.message.contains("n0:7400"), "{error}");
    assert_eq!(again.unwrap().base_offset, 1);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    client.produce(request("2", None)).await.unwrap();
    assert_eq!(cluster.values(), values(0..3));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_be_connected_to_any_more_does_not_hold_up_its_successor() {
    let cluster = Cluster::start(3);
    let client = cluster.client("n0:7400,n1:7400,n2:7400");
    client.produce(request("0", None)).await.unwrap();
    cluster.reach("n0:7400", Reach::Swallowed);
    cluster.kill(0);
    cluster.depose();
    // The client notices that the connection is closed.
    tokio::time::sleep(Duration::from_millis(10)).await;
    let began = Instant::now();
    let (append, ()) = tokio::join!(client.produce(request("1", None)), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster.lead(1);
    });
    // Not idempotent, but certainly not sent: a retry is safe.
    assert_eq!(append.unwrap().base_offset, 1);
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    let began = Instant::now();
    client.produce(request("2", None)).await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(50), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_dead_leader_costs_little_more_than_its_replacement_takes() {
    let cluster = Cluster::start(3);
    let client = cluster.client("n0:7400,n1:7400,n2:7400");
    client.produce(request("0", None)).await.unwrap();
    cluster.kill(0);
    cluster.depose();
    let began = Instant::now();
    let (append, ()) = tokio::join!(client.produce(request("1", None)), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        cluster.lead(2);
    });
    append.unwrap();
    assert!(began.elapsed() < Duration::from_millis(450), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_is_away_as_a_whole_gets_everything_in_the_end() {
    let cluster = Cluster::start(3);
    let client = cluster.client("n0:7400,n1:7400,n2:7400");
    let producer = producer(&client, small());
    assert_dense(send_all(&producer, 0..20).await);
    (0..3).for_each(|n| cluster.kill(n));
    let mut deliveries = Vec::new();
    for value in values(20..60) {
        deliveries.push(producer.send(Record::value(value)).await.unwrap());
    }
    let short = Client::connect(cluster.config("n0:7400,n1:7400").request_timeout(Duration::from_millis(80))).unwrap();
    let error = short.produce(request("x", None)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Transport { sent: false }, "{error}");
    assert!(error.message.contains("refused") && error.message.contains(":7400"), "{error}");
    (0..3).for_each(|n| cluster.revive(n));
    producer.flush().await.unwrap();
    assert_eq!(cluster.values(), values(0..60));
    producer.close().await.unwrap();
}

#[tokio::test]
async fn a_service_in_front_of_all_nodes_is_enough() {
    let cluster = Cluster::start(3);
    cluster.reach("chronicle:7400", Reach::Service);
    cluster.lead(1);
    let client = cluster.client("chronicle:7400");
    let producer = producer(&client, small());
    assert_dense(send_all(&producer, 0..30).await);
    cluster.kill(1);
    assert!(send_all(&producer, 30..60).await.iter().all(Result::is_ok));
    assert_eq!(cluster.values(), values(0..60));
    producer.close().await.unwrap();
}

#[tokio::test]
async fn a_leader_behind_a_forwarded_port_is_reached_through_it() {
    let cluster = Cluster::start(1);
    cluster.state.lock().nodes[0].address = "10.0.0.1:7400".into();
    cluster.reach("127.0.0.1:7400", Reach::Node(0));
    let client = cluster.client("127.0.0.1:7400");
    let producer = producer(&client, small());
    assert_dense(send_all(&producer, 0..30).await);
    producer.close().await.unwrap();
    client.produce(request("30", None)).await.unwrap();
    let mut consumer = client.consumer(partition(), ConsumerConfig::default().until(31));
    let mut read = 0;
    while let Some(record) = consumer.next().await.unwrap() {
        assert_eq!(record.offset, read);
        read += 1;
    }
    assert_eq!(read, 31);
    let past = v1::ConsumeRequest { from: Some(Position::Offset(99).into()), ..Default::default() };
    assert_eq!(client.consume(past).await.unwrap_err().reason, "OFFSET_OUT_OF_RANGE");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_be_reached_is_named() {
    let cluster = Cluster::start(2);
    cluster.reach("lb:7400", Reach::Node(1));
    cluster.reach("n0:7400", Reach::Refused);
    cluster.reach("n1:7400", Reach::Refused);
    let client = Client::connect(cluster.config("lb:7400").request_timeout(Duration::from_secs(1))).unwrap();
    let error = client.produce(request("a", None)).await.unwrap_err();
    assert!(error.not_accepted(), "{error}");
    for part in ["lb:7400", "n0:7400", "refused", "gave up after 1000 ms"] {
        assert!(error.message.contains(part), "{part}: {error}");
    }
    let appends: usize = cluster.counts(|node| node.appends).iter().sum();
    assert!((3..200).contains(&appends), "{appends}");
    // Once it is reachable, the client finds it.
    cluster.reach("n0:7400", Reach::Node(0));
    client.produce(request("a", None)).await.unwrap();
}

#[tokio::test]
async fn a_new_topic_that_one_node_has_not_applied_yet_is_requested_from_other_nodes() {
    let cluster = Cluster::start(3);
    for n in 0..2 {
        cluster.state.lock().nodes[n].unaware = 2;
    }
    let client = cluster.client("n0:7400,n1:7400,n2:7400");
    client.produce(request("a", None)).await.unwrap();
    cluster.state.lock().log.faults.extend([
        Fault::Refuse(Code::NotFound, "UNKNOWN_TOPIC"),
        Fault::None,
        Fault::Refuse(Code::NotFound, "UNKNOWN_PARTITION"),
    ]);
    client.produce(request("b", None)).await.unwrap();
    let producer = producer(&client, small());
    producer.send(Record::value("c")).await.unwrap().await.unwrap();
    producer.close().await.unwrap();
    assert_eq!(cluster.values(), ["a", "b", "c"]);
}

#[tokio::test]
async fn readers_share_the_followers_and_spare_the_leader() {
    let cluster = Cluster::start(3);
    cluster.store(values(0..10));
    let client = cluster.client("n0:7400");
    for _ in 0..6 {
        let consumer = client.consumer(partition(), ConsumerConfig::default().until(10));
        let offsets: Vec<i64> = consumer.into_stream().map(|record| record.unwrap().offset).collect().await;
        assert_eq!(offsets, (0..10).collect::<Vec<i64>>());
    }
    let reads = cluster.counts(|node| node.reads);
    assert!(reads[0] == 0 && reads[1] > 1 && reads[2] > 1, "{reads:?}");

    let from_leader = Client::connect(cluster.config("n0:7400").read_from(ReadFrom::Leader)).unwrap();
    from_leader.consume(v1::ConsumeRequest::default()).await.unwrap();
    assert_eq!(cluster.counts(|node| node.reads), [1, reads[1], reads[2]]);
}

#[tokio::test]
async fn a_follower_that_is_behind_makes_a_reader_neither_skip_nor_repeat() {
    let cluster = Cluster::start(3);
    cluster.store(values(0..20));
    (1..3).for_each(|n| cluster.state.lock().nodes[n].behind = 12);
    let client = cluster.client("n0:7400");
    let mut consumer = client.consumer(partition(), ConsumerConfig::default());
    let mut next = 0;
    let mut read = async |to: i64| {
        while next < to {
            assert_eq!(consumer.next().await.unwrap().unwrap().offset, next);
            next += 1;
        }
    };
    read(12).await;
    // Only the leader has the rest: the reader must go there, although the follower says that the offset is out of range.
    let reader = cluster.counts(|node| node.reads).iter().position(|reads| *reads > 0).unwrap();
    (1..3).for_each(|n| cluster.state.lock().nodes[n].behind = 5);
    cluster.kill(reader);
    read(20).await;
    assert!(cluster.counts(|node| node.reads)[0] > 0);
    // The reader moves from the leader to a follower that has caught up.
    (1..3).for_each(|n| cluster.state.lock().nodes[n].behind = usize::MAX);
    cluster.revive(reader);
    cluster.store(values(20..30));
    read(25).await;
    cluster.lead(reader);
    cluster.kill(0);
    read(30).await;
}

#[tokio::test]
async fn only_the_leader_is_believed_that_an_offset_is_out_of_range() {
    let cluster = Cluster::start(3);
    cluster.store(values(0..10));
    (1..3).for_each(|n| cluster.state.lock().nodes[n].behind = 4);
    let client = cluster.client("n0:7400");
    let read = |offset| v1::ConsumeRequest { from: Some(Position::Offset(offset).into()), ..Default::default() };
    assert_eq!(client.consume(read(8)).await.unwrap().next_offset, 10);
    let error = client.consume(read(10)).await.unwrap_err();
    assert_eq!((error.reason.as_str(), error.number("next")), ("OFFSET_OUT_OF_RANGE", Some(10)));
    let mut consumer = client.consumer(partition(), ConsumerConfig::from_offset(11));
    assert_eq!(consumer.next().await.unwrap_err().number("next"), Some(10));
}

#[tokio::test]
async fn a_start_at_the_end_is_the_end_of_the_leader() {
    let cluster = Cluster::start(3);
    cluster.store(values(0..10));
    (1..3).for_each(|n| cluster.state.lock().nodes[n].behind = 4);
    let client = cluster.client("n1:7400");
    let mut consumer = client.consumer(partition(), ConsumerConfig::from(Position::Latest));
    let (record, ()) = tokio::join!(consumer.next(), async {
        cluster.wait(|state| state.nodes.iter().any(|node| node.reads > 0)).await;
        cluster.store(values(10..12));
    });
    assert_eq!(record.unwrap().unwrap().offset, 10);
    // A time after the last record means the end too.
    let mut consumer = client.consumer(partition(), ConsumerConfig::from(Position::Timestamp(i64::MAX)));
    let (record, ()) = tokio::join!(consumer.next(), async {
        let reads: usize = cluster.counts(|node| node.reads).iter().sum();
        cluster.wait(|state| state.nodes.iter().map(|node| node.reads).sum::<usize>() > reads).await;
        cluster.store(values(12..13));
    });
    assert_eq!(record.unwrap().unwrap().offset, 12);
}

#[tokio::test(start_paused = true)]
async fn a_reader_leaves_a_node_that_fell_silent() {
    let cluster = Cluster::start(3);
    cluster.store(values(0..10));
    let client = cluster.client("n0:7400");
    let mut consumer = client.consumer(partition(), ConsumerConfig::default());
    for offset in 0..10 {
        assert_eq!(consumer.next().await.unwrap().unwrap().offset, offset);
    }
    let reader = cluster.counts(|node| node.reads).iter().position(|reads| *reads > 0).unwrap();
    cluster.silence(reader, true);
    cluster.state.lock().nodes[reader].alive = false;
    cluster.store(values(10..11));
    let silent = Instant::now();
    assert_eq!(consumer.next().await.unwrap().unwrap().offset, 10);
    assert!(silent.elapsed() < Duration::from_secs(7), "{:?}", silent.elapsed());
    // A new reader does not start there, and one that starts at a silent node moves on.
    cluster.silence(3 - reader, true);
    let began = Instant::now();
    let mut consumer = client.consumer(partition(), ConsumerConfig::default());
    assert_eq!(consumer.next().await.unwrap().unwrap().offset, 0);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn calls_for_any_node_turn_from_a_silent_or_dead_one_to_the_next() {
    let cluster = Cluster::start(3);
    let client = cluster.client("n0:7400,n1:7400,n2:7400");
    cluster.kill(0);
    cluster.silence(1, true);
    let began = Instant::now();
    assert_eq!(client.cluster_status().await.unwrap().cluster_id, "c");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let began = Instant::now();
    assert_eq!(client.get_servers().await.unwrap().servers.len(), 3);
    assert_eq!(client.get_metadata(&["default", "other"]).await.unwrap().unknown, ["other"]);
    assert!(began.elapsed() < Duration::from_millis(100), "the one that answers is remembered: {:?}", began.elapsed());
    // The client knows the other nodes now, so it does not need the first address.
    cluster.revive(0);
    cluster.kill(2);
    client.cluster_status().await.unwrap();
}

#[tokio::test]
async fn operations_are_repeated_only_where_that_is_harmless() {
    let cluster = Cluster::start(3);
    let client = cluster.client("n0:7400,n1:7400,n2:7400");
    cluster.state.lock().broken_operations = 1;
    assert_eq!(client.drain("n2").await.unwrap().kind, "drain n2");
    assert_eq!(client.undrain("n2").await.unwrap().id, 7);
    cluster.state.lock().broken_operations = 1;
    assert_eq!(client.decommission("n2").await.unwrap_err().kind, ErrorKind::OutcomeUnknown);
    client.decommission("n2").await.unwrap();
    client.cancel_operation(7).await.unwrap();
    let transfer = v1::TransferLeadershipRequest { to: "n1".into(), ..Default::default() };
    assert_eq!(client.transfer_leadership(transfer).await.unwrap().leader, "n1");
    let operations: Vec<String> = cluster.state.lock().operations.iter().map(|(_, what)| what.clone()).collect();
    assert_eq!(operations, ["drain n2", "undrain n2", "decommission n2", "cancel 7", "transfer"]);
    let verified: Vec<_> = client.verify("t").await.unwrap().collect().await;
    assert_eq!(verified.into_iter().map(|answer| answer.unwrap().partition).collect::<Vec<_>>(), [0, 1, 2]);
}

#[tokio::test]
async fn servers_are_given_as_one_text_or_as_a_list() {
    let cluster = Cluster::start(1);
    assert_eq!(cluster.client("n0:7400, n1:7400").server(), "n0:7400,n1:7400");
    let list = vec!["n0:7400".to_owned(), "n1:7400".to_owned()];
    assert_eq!(Client::connect(list).unwrap().server(), "n0:7400,n1:7400");
    for wrong in ["n0:7400,", "n0:7400,n1", ","] {
        assert_eq!(Client::connect(wrong).unwrap_err().reason, "INVALID_ARGUMENT", "{wrong}");
    }
    assert_eq!(Client::connect(Vec::new()).unwrap_err().reason, "INVALID_ARGUMENT");
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        6 => Just(Fault::None),
        1 => Just(Fault::Cut),
        1 => Just(Fault::StoreThenCut),
        1 => Just(Fault::StoreThenUnknown),
        1 => Just(Fault::Refuse(Code::ResourceExhausted, "OVERLOADED")),
        1 => Just(Fault::Refuse(Code::Unavailable, "NOT_LEADER")),
        1 => Just(Fault::Hang),
    ]
}

#[derive(Debug, Clone)]
enum Event {
    Lead(usize),
    Kill(usize),
    Stale(usize, usize),
    Behind(usize, usize),
    Pause(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (0usize..3).prop_map(Event::Lead),
        1 => (0usize..3).prop_map(Event::Kill),
        1 => ((0usize..3), (0usize..3)).prop_map(|(n, leader)| Event::Stale(n, leader)),
        1 => ((0usize..3), (0usize..30)).prop_map(|(n, end)| Event::Behind(n, end)),
        3 => (0u64..400).prop_map(Event::Pause),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens to the nodes, an idempotent producer stores every record once and in order, and a concurrent reader
    /// sees each once and in order.
    #[test]
    fn any_course_of_events_leaves_each_record_once_and_in_order(
        faults in proptest::collection::vec(fault(), 0..20),
        events in proptest::collection::vec(event(), 0..12),
        records in 1usize..60,
        batch_records_max in 1usize..8,
        in_flight_max in 1usize..6,
    ) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let (offsets, stored, read) = runtime.block_on(async {
            let cluster = Cluster::start(3);
            cluster.state.lock().log.faults.extend(faults);
            let client = cluster.client("n0:7400,n1:7400,n2:7400");
            let config = ProducerConfig {
                batch_records_max,
                in_flight_max,
                delivery_timeout: Duration::from_secs(600),
                ..ProducerConfig::default()
            };
            let producer = producer(&client, config);
            let reader = client.consumer(partition(), ConsumerConfig::default().until(records as i64));
            let reading = reader.into_stream().map(|record| record.unwrap().offset).collect::<Vec<i64>>();
            let upset = async {
                for event in events {
                    match event {
                        Event::Lead(n) => cluster.lead(n),
                        Event::Kill(n) => {
                            (0..3).for_each(|n| cluster.revive(n));
                            cluster.kill(n);
                        }
                        Event::Stale(n, leader) => cluster.state.lock().nodes[n].believes = Some((leader, 1)),
                        Event::Behind(n, end) => cluster.state.lock().nodes[n].behind = end,
                        Event::Pause(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
                    }
                }
                // In the end every node works, and a new leader answers the requests that hang.
                cluster.state.lock().log.faults.clear();
                for n in 0..3 {
                    cluster.revive(n);
                    let mut state = cluster.state.lock();
                    (state.nodes[n].believes, state.nodes[n].behind) = (None, usize::MAX);
                }
                let next = cluster.state.lock().leader.map_or(0, |leader| (leader + 1) % 3);
                cluster.lead(next);
            };
            let course = async { tokio::join!(send_all(&producer, 0..records), upset, reading) };
            // Long before the delivery timeout.
            let (offsets, (), read) = tokio::time::timeout(Duration::from_secs(60), course).await.unwrap();
            producer.close().await.unwrap();
            (offsets, cluster.values(), read)
        });
        prop_assert_eq!(stored, values(0..records));
        let offsets: Result<Vec<i64>, _> = offsets.into_iter().collect();
        prop_assert_eq!(offsets.unwrap(), (0..records as i64).collect::<Vec<i64>>());
        prop_assert_eq!(read, (0..records as i64).collect::<Vec<i64>>());
    }
}
