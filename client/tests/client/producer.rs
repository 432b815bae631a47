//! The producer: order, no loss, no duplicates and bounded memory under all kinds of faults.

use std::time::Duration;

use crate::fake::{Fault, Node};
use crate::inputs::values;
use chronicle_client::v1::expectation::Expect;
use chronicle_client::{Client, ErrorKind, Partition, Producer, ProducerConfig, Record};
use futures::future::join_all;
use proptest::prelude::*;
use tonic::Code;

fn config() -> ProducerConfig {
    ProducerConfig { delivery_timeout: Duration::from_secs(20), ..ProducerConfig::default() }
}

fn producer(node: &Node, config: ProducerConfig) -> Producer {
    node.client().producer(Partition::new("", 0), config)
}

/// Sends the numbers of a range and returns their offsets.
async fn send_all(
    producer: &Producer,
    range: std::ops::Range<usize>,
) -> Vec<Result<i64, chronicle_client::ClientError>> {
    let mut deliveries = Vec::new();
    for value in values(range) {
        deliveries.push(producer.send(Record::value(value)).await.unwrap());
    }
    join_all(deliveries).await
}

#[tokio::test]
async fn records_get_the_offsets_of_their_order() {
    let node = Node::start();
    let producer = producer(&node, config());
    let offsets: Vec<i64> = send_all(&producer, 0..500).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(offsets, (0..500).collect::<Vec<i64>>());
    assert_eq!(node.values(), values(0..500));
    producer.close().await.unwrap();
}

#[tokio::test]
async fn requests_grow_while_earlier_ones_wait_and_keep_their_limits() {
    let node = Node::start();
    node.hold(true);
    let producer = producer(&node, ProducerConfig { batch_records_max: 100, in_flight_max: 2, ..config() });
    let mut deliveries = vec![producer.send(Record::value("first")).await.unwrap()];
    node.wait(|state| state.held && state.connections == 1).await;
    for value in values(0..450) {
        deliveries.push(producer.send(Record::value(value)).await.unwrap());
    }
    // All or none, whatever the limit of a batch.
    let whole = (0..130).map(|_| Record::value("whole")).collect();
    deliveries.push(producer.send_batch(whole).await.unwrap());
    node.hold(false);
    for offset in join_all(deliveries).await {
        offset.unwrap();
    }
    let sizes: Vec<usize> = node.state.lock().requests.iter().map(|(_, size)| *size).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 581);
    assert!(sizes.len() < 20, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size <= 100 || *size == 130) && sizes.last() == Some(&130), "{sizes:?}");
    producer.close().await.unwrap();
}

#[tokio::test]
async fn a_lost_stream_loses_and_doubles_nothing() {
    let node = Node::start();
    node.faults([
        Fault::None,
        Fault::StoreThenCut,
        Fault::Cut,
        Fault::None,
        Fault::StoreThenCut,
        Fault::StoreThenUnknown,
    ]);
    let producer = producer(&node, ProducerConfig { batch_records_max: 7, ..config() });
    let offsets = send_all(&producer, 0..300).await;
    assert_eq!(offsets.into_iter().map(Result::unwrap).collect::<Vec<i64>>(), (0..300).collect::<Vec<i64>>());
    assert_eq!(node.values(), values(0..300));
    producer.close().await.unwrap();
}

#[tokio::test]
async fn a_request_that_stays_open_is_resolved_before_the_node_can_evict_its_sequence() {
    let node = Node::start();
    let unknown = Fault::StoreThenUnknown;
    node.faults([unknown.clone(), unknown.clone(), Fault::None, Fault::None, unknown.clone(), unknown]);
    let producer = producer(&node, ProducerConfig { batch_records_max: 1, in_flight_max: 4, ..config() });
    for offset in send_all(&producer, 0..20).await {
        offset.unwrap();
    }
    assert_eq!(node.values(), values(0..20));
    producer.close().await.unwrap();
}

#[tokio::test]
async fn a_node_that_is_away_for_a_while_gets_everything_in_the_end() {
    let node = Node::start();
    let producer = producer(&node, config());
    producer.send(Record::value("0")).await.unwrap().await.unwrap();
    node.refuse_connections(true);
    node.cut();
    let mut deliveries = Vec::new();
    for value in values(1..50) {
        deliveries.push(producer.send(Record::value(value)).await.unwrap());
    }
    node.refuse_connections(false);
    producer.flush().await.unwrap();
    assert_eq!(node.values(), values(0..50));
    producer.close().await.unwrap();
}

#[tokio::test]
async fn a_refused_request_is_repeated_before_those_behind_it() {
    let node = Node::start();
    node.faults([
        Fault::Refuse(Code::ResourceExhausted, "OVERLOADED"),
        Fault::None,
        Fault::None,
        Fault::Refuse(Code::Unavailable, "DISK_FAILED"),
    ]);
    let producer = producer(&node, ProducerConfig { batch_records_max: 1, ..config() });
    for offset in send_all(&producer, 0..40).await {
        offset.unwrap();
    }
    assert_eq!(node.values(), values(0..40));
    producer.close().await.unwrap();
}

#[tokio::test]
async fn a_rejected_record_fails_alone() {
    let node = Node::start();
    node.state.lock().value_bytes_max = 3;
    node.hold(true);
    let producer = producer(&node, config());
    let mut deliveries = Vec::new();
    for value in ["a", "b", "too long", "c", "also too long", "d"] {
        deliveries.push(producer.send(Record::value(value)).await.unwrap());
    }
    node.hold(false);
    let results = join_all(deliveries).await;
    let reasons: Vec<Option<String>> = results.into_iter().map(|result| result.err().map(|e| e.reason)).collect();
    let too_large = Some("RECORD_TOO_LARGE".to_owned());
    assert_eq!(reasons, [None, None, too_large.clone(), None, too_large, None]);
    assert_eq!(node.values(), ["a", "b", "c", "d"]);
    assert_eq!(producer.flush().await.unwrap_err().reason, "RECORD_TOO_LARGE");
    producer.close().await.unwrap();
}

#[tokio::test]
async fn an_expectation_that_fails_leaves_the_producer_working() {
    let node = Node::start();
    let producer = producer(&node, config());
    let record = || vec![Record::value("x")];
    producer.send_expecting(record(), Expect::NextOffset(0)).await.unwrap().await.unwrap();
    let error = producer.send_expecting(record(), Expect::NextOffset(0)).await.unwrap().await.unwrap_err();
    assert_eq!((error.reason.as_str(), error.kind), ("VERSION_CONFLICT", ErrorKind::Rejected));
    assert_eq!(producer.send_expecting(record(), Expect::NextOffset(1)).await.unwrap().await.unwrap(), 1);
    producer.close().await.unwrap_err();
}

#[tokio::test]
async fn without_idempotence_an_unknown_outcome_is_returned_and_order_is_kept() {
    let node = Node::start();
    node.faults([
        Fault::None,
        Fault::StoreThenCut,
        Fault::Refuse(Code::Unavailable, "UNAVAILABLE"),
        Fault::None,
        Fault::StoreThenUnknown,
    ]);
    let producer = producer(&node, ProducerConfig { idempotent: false, batch_records_max: 1, ..config() });
    let results = send_all(&producer, 0..10).await;
    let unknown: Vec<usize> = (0..10).filter(|n| results[*n].is_err()).collect();
    assert_eq!(unknown, [1, 3]);
    for n in unknown {
        assert_eq!(results[n].as_ref().unwrap_err().kind, ErrorKind::OutcomeUnknown);
    }
    assert_eq!(node.values(), values(0..10));
    assert!(node.state.lock().requests.iter().all(|(sequence, _)| sequence.is_none()));
    producer.close().await.unwrap_err();
}

#[tokio::test]
async fn the_buffer_is_bounded_in_bytes() {
    let node = Node::start();
    node.hold(true);
    let producer = producer(&node, ProducerConfig { buffer_bytes_max: 10_000, ..config() });
    let mut accepted = 0;
    let mut deliveries = Vec::new();
    // A send that exceeds the buffer waits.
    while let Some(delivery) = futures::FutureExt::now_or_never(producer.send(Record::value(vec![0; 1000]))) {
        deliveries.push(delivery.unwrap());
        accepted += 1;
        assert!(accepted <= 10, "{accepted} KB accepted");
    }
    assert!(accepted >= 5, "{accepted}");
    // A record larger than the buffer takes all of it, and is sent.
    let waiting = producer.send(Record::value(vec![0; 20_000]));
    node.hold(false);
    deliveries.push(waiting.await.unwrap());
    for offset in join_all(deliveries).await {
        offset.unwrap();
    }
    assert_eq!(node.state.lock().records.len(), accepted + 1);
    producer.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_record_not_delivered_in_time_fails_and_reports_whether_it_may_be_stored() {
    let node = Node::start();
    node.faults(vec![Fault::Refuse(Code::ResourceExhausted, "DISK_FULL"); 100_000]);
    let short = ProducerConfig { delivery_timeout: Duration::from_millis(100), ..config() };
    let full = producer(&node, short.clone());
    let error = full.send(Record::value("a")).await.unwrap().await.unwrap_err();
    assert_eq!((error.reason.as_str(), error.kind.clone()), ("DISK_FULL", ErrorKind::Retryable), "{error}");
    node.state.lock().faults.clear();
    // Certainly not stored, so the producer continues.
    assert_eq!(full.send(Record::value("b")).await.unwrap().await.unwrap(), 0);
    full.close().await.unwrap_err();

    node.faults([Fault::Hang]);
    let hung = producer(&node, short);
    let error = hung.send(Record::value("c")).await.unwrap().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::OutcomeUnknown, "{error}");
    // Later records could be stored before it, so the producer has failed.
    hung.send(Record::value("d")).await.unwrap_err();
    assert!(hung.close().await.is_err());
    assert_eq!(node.values(), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_response_is_returned_even_when_later_attempts_had_none() {
    let node = Node::start();
    let refused_then_silent =
        || std::iter::once(Fault::Refuse(Code::ResourceExhausted, "DISK_FULL")).chain(vec![Fault::Hang; 100]);
    let client = Client::connect(node.config().request_timeout(Duration::from_millis(100))).unwrap();
    let config = ProducerConfig { delivery_timeout: Duration::from_secs(1), ..config() };
    node.state.lock().init_faults.extend(refused_then_silent());
    let producer = client.producer(Partition::new("", 0), config.clone());
    let error = producer.send(Record::value("a")).await.unwrap().await.unwrap_err();
    assert_eq!((error.reason.as_str(), error.kind.clone()), ("DISK_FULL", ErrorKind::Retryable), "{error}");
    assert!(error.message.contains("DISK_FULL on purpose") && error.message.contains("no answer"), "{error}");
    producer.close().await.unwrap_err();

    node.state.lock().init_faults.clear();
    node.faults(refused_then_silent());
    let producer = client.producer(Partition::new("", 0), config);
    let error = producer.send(Record::value("b")).await.unwrap().await.unwrap_err();
    assert_eq!(
        (error.metadata["cause"].as_str(), error.kind.clone()),
        ("DISK_FULL", ErrorKind::OutcomeUnknown),
        "{error}"
    );
    assert!(error.message.contains("DISK_FULL on purpose") && error.message.contains("no answer"), "{error}");
}

#[tokio::test]
async fn lingering_fills_requests_and_a_flush_does_not_wait_for_it() {
    let node = Node::start();
    let producer =
        producer(&node, ProducerConfig { linger: Duration::from_secs(3600), batch_records_max: 10, ..config() });
    let mut deliveries = Vec::new();
    for value in values(0..15) {
        deliveries.push(producer.send(Record::value(value)).await.unwrap());
    }
    for delivery in deliveries.drain(..10) {
        delivery.await.unwrap();
    }
    assert_eq!(node.state.lock().requests.len(), 1);
    producer.flush().await.unwrap();
    assert_eq!(node.values(), values(0..15));
    producer.close().await.unwrap();
}

#[tokio::test]
async fn closing_finishes_what_was_accepted_and_dropping_does_not_hang() {
    let node = Node::start();
    let closing = producer(&node, config());
    for value in values(0..20) {
        drop(closing.send(Record::value(value)).await.unwrap());
    }
    closing.close().await.unwrap();
    assert_eq!(node.values(), values(0..20));

    node.hold(true);
    let dropped = producer(&node, config());
    let delivery = dropped.send(Record::value("x")).await.unwrap();
    drop(dropped);
    assert_eq!(delivery.await.unwrap_err().kind, ErrorKind::OutcomeUnknown);
}

#[tokio::test]
async fn empty_and_oversized_batches_are_refused_at_once() {
    let node = Node::start();
    let producer = producer(&node, ProducerConfig { item_bytes_max: 10, ..config() });
    assert_eq!(producer.send_batch(Vec::new()).await.unwrap_err().reason, "INVALID_ARGUMENT");
    assert_eq!(producer.send(Record::value("12345678901")).await.unwrap_err().reason, "RECORD_TOO_LARGE");
    producer.send(Record::value("1234567890")).await.unwrap().await.unwrap();
    producer.close().await.unwrap();
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        6 => Just(Fault::None),
        1 => Just(Fault::Cut),
        1 => Just(Fault::StoreThenCut),
        1 => Just(Fault::StoreThenUnknown),
        1 => Just(Fault::Refuse(Code::ResourceExhausted, "OVERLOADED")),
        1 => Just(Fault::Refuse(Code::Unavailable, "NOT_LEADER")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever fails, an idempotent producer stores every record once and in order.
    #[test]
    fn any_faults_leave_each_record_once_and_in_order(
        faults in proptest::collection::vec(fault(), 0..25),
        records in 1usize..60,
        batch_records_max in 1usize..8,
        in_flight_max in 1usize..6,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (offsets, stored) = runtime.block_on(async {
            let node = Node::start();
            node.faults(faults);
            let client: Client = node.client();
            let config = ProducerConfig { batch_records_max, in_flight_max, ..config() };
            let producer = client.producer(Partition::new("", 0), config);
            let offsets = send_all(&producer, 0..records).await;
            producer.close().await.unwrap();
            (offsets, node.values())
        });
        prop_assert_eq!(stored, values(0..records));
        let offsets: Result<Vec<i64>, _> = offsets.into_iter().collect();
        prop_assert_eq!(offsets.unwrap(), (0..records as i64).collect::<Vec<i64>>());
    }
}
