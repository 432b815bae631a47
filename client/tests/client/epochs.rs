//! Epochs of an idempotent producer: no sequence is used twice, and every answer says what became of its record.

use std::time::Duration;

use crate::fake::{Cluster, Fault, Node};
use crate::inputs::values;
use chronicle_client::v1::expectation::Expect;
use chronicle_client::{Client, ClientError, Delivery, ErrorKind, Partition, Producer, ProducerConfig, Record};
use futures::future::join_all;
use proptest::prelude::*;
use tonic::Code;

const OUT_OF_ORDER: Fault = Fault::Refuse(Code::FailedPrecondition, "OUT_OF_ORDER_SEQUENCE");
const OVERLOADED: Fault = Fault::Refuse(Code::ResourceExhausted, "OVERLOADED");
const CONFLICT: Fault = Fault::Refuse(Code::FailedPrecondition, "VERSION_CONFLICT");

/// One record in each request, several requests in flight.
fn config() -> ProducerConfig {
    ProducerConfig { batch_records_max: 1, delivery_timeout: Duration::from_secs(20), ..ProducerConfig::default() }
}

fn producer(node: &Node, config: ProducerConfig) -> Producer {
    node.client().producer(Partition::new("", 0), config)
}

/// Accepts values; their requests are in flight together.
async fn send<'a>(producer: &Producer, values: impl IntoIterator<Item = &'a str>) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    for value in values {
        deliveries.push(producer.send(Record::value(value.to_owned())).await.unwrap());
    }
    deliveries
}

/// Offset, or reason and whether the record was certainly not accepted.
type Answer = Result<i64, (String, bool)>;

async fn answers(deliveries: Vec<Delivery>) -> Vec<Answer> {
    let told = |error: ClientError| (error.reason.clone(), error.not_accepted());
    join_all(deliveries).await.into_iter().map(|answer| answer.map_err(told)).collect()
}

fn refused(reason: &str) -> Answer {
    Err((reason.to_owned(), true))
}

fn unknown() -> Answer {
    Err(("OUTCOME_UNKNOWN".to_owned(), false))
}

#[tokio::test]
async fn no_sequence_is_used_again_once_a_later_one_was_acknowledged() {
    // A node of either rule, and a refusal by the sequencer or before it.
    for (old_rule, value_bytes_max) in [(true, 100), (false, 100), (true, 3), (false, 3)] {
        let node = Node::start();
        node.state.lock().old_rule = old_rule;
        node.state.lock().value_bytes_max = value_bytes_max;
        let producer = producer(&node, config());
        let record = vec![Record::value("too long")];
        let mut deliveries = vec![producer.send_expecting(record, Expect::NextOffset(7)).await.unwrap()];
        deliveries.extend(send(&producer, ["a"]).await);
        let reason = if value_bytes_max == 3 { "RECORD_TOO_LARGE" } else { "VERSION_CONFLICT" };
        assert_eq!(answers(deliveries).await, [refused(reason), Ok(0)], "{old_rule}");
        // The node that accepted the second request knows sequence 1: a third request must not repeat it.
        assert_eq!(answers(send(&producer, ["b", "c"]).await).await, [Ok(1), Ok(2)], "{old_rule}");
        assert_eq!(node.values(), ["a", "b", "c"]);
        producer.close().await.unwrap_err();
    }
}

#[tokio::test]
async fn requests_behind_a_refused_one_are_sent_again_in_the_next_epoch() {
    let node = Node::start();
    node.faults([Fault::None, CONFLICT]);
    let producer = producer(&node, config());
    let told = answers(send(&producer, ["a", "x", "b", "c", "d", "e", "f"]).await).await;
    assert_eq!(told, [Ok(0), refused("VERSION_CONFLICT"), Ok(1), Ok(2), Ok(3), Ok(4), Ok(5)]);
    assert_eq!(node.values(), ["a", "b", "c", "d", "e", "f"]);
    let sent: Vec<(i32, i32)> = node.state.lock().sequences.clone();
    assert!(sent.contains(&(0, 2)) && sent.ends_with(&[(1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]), "{sent:?}");
    producer.close().await.unwrap_err();
}

#[tokio::test]
async fn a_refusal_with_nothing_behind_it_keeps_the_epoch() {
    let node = Node::start();
    let producer = producer(&node, config());
    for offset in 0..10 {
        node.faults([CONFLICT]);
        assert_eq!(answers(send(&producer, ["x"]).await).await, [refused("VERSION_CONFLICT")]);
        assert_eq!(answers(send(&producer, ["a"]).await).await, [Ok(offset)]);
    }
    assert!(node.state.lock().sequences.iter().all(|(epoch, _)| *epoch == 0));
    producer.close().await.unwrap_err();
}

#[tokio::test]
async fn a_lost_answer_behind_a_refusal_is_resolved_before_the_next_epoch() {
    // The stream ends instead of the answer to the second request, which a node of the old rule has stored.
    for old_rule in [true, false] {
        let node = Node::start();
        node.state.lock().old_rule = old_rule;
        node.faults([CONFLICT, Fault::LoseAnswer(None)]);
        let producer = producer(&node, config());
        assert_eq!(answers(send(&producer, ["x", "b", "c"]).await).await, [refused("VERSION_CONFLICT"), Ok(0), Ok(1)]);
        assert_eq!(node.values(), ["b", "c"], "{old_rule}");
        producer.close().await.unwrap_err();
    }
}

#[tokio::test]
async fn a_request_that_was_overtaken_fails_rather_than_be_stored_out_of_order() {
    let node = Node::start();
    node.state.lock().old_rule = true;
    node.faults([OVERLOADED]);
    let producer = producer(&node, config());
    assert_eq!(answers(send(&producer, ["a", "b"]).await).await, [refused("OVERLOADED"), Ok(0)]);
    // From now on the node knows the producer, and refuses what is out of order.
    node.faults([OVERLOADED]);
    assert_eq!(answers(send(&producer, ["c", "d"]).await).await, [Ok(1), Ok(2)]);
    assert_eq!(node.values(), ["b", "c", "d"]);
    producer.close().await.unwrap_err();

    // The same when the answer to the request behind it was lost.
    let node = Node::start();
    node.state.lock().old_rule = true;
    node.faults([OVERLOADED, Fault::LoseAnswer(None)]);
    let producer = self::producer(&node, config());
    assert_eq!(answers(send(&producer, ["a", "b"]).await).await, [refused("OUT_OF_ORDER_SEQUENCE"), Ok(0)]);
    assert_eq!(answers(send(&producer, ["c"]).await).await, [Ok(1)]);
    assert_eq!(node.values(), ["b", "c"]);
    producer.close().await.unwrap_err();
}

#[tokio::test]
async fn a_producer_whose_state_was_evicted_begins_a_new_epoch() {
    let node = Node::start();
    let producer = producer(&node, config());
    assert_eq!(answers(send(&producer, ["a", "b"]).await).await, [Ok(0), Ok(1)]);
    node.faults([Fault::Evict, Fault::None, Fault::None, Fault::None, Fault::Evict]);
    assert_eq!(answers(send(&producer, ["c", "d", "e", "f"]).await).await, [Ok(2), Ok(3), Ok(4), Ok(5)]);
    assert_eq!(node.values(), ["a", "b", "c", "d", "e", "f"]);
    producer.close().await.unwrap();
}

#[tokio::test]
async fn an_unknown_outcome_stays_unknown_when_the_state_was_evicted() {
    let node = Node::start();
    let producer = producer(&node, config());
    assert_eq!(answers(send(&producer, ["a"]).await).await, [Ok(0)]);
    // Stored without an answer; the node that could say so has evicted the producer when the request is repeated.
    node.faults([Fault::StoreThenCut, Fault::Evict]);
    let deliveries = send(&producer, ["b"]).await;
    let flushed = producer.flush().await.unwrap_err();
    assert_eq!(answers(deliveries).await, [unknown()]);
    assert_eq!(flushed.kind, ErrorKind::OutcomeUnknown, "{flushed}");
    let error = producer.send(Record::value("c")).await.unwrap_err();
    assert!(error.not_accepted() && !error.is_retryable(), "{error}");
    assert_eq!(error.reason, "OUT_OF_ORDER_SEQUENCE");
    assert_eq!(node.values(), ["a", "b"]);
    assert_eq!(producer.close().await.unwrap_err().kind, ErrorKind::OutcomeUnknown);
}

#[tokio::test]
async fn a_node_that_refuses_even_the_first_sequence_fails_the_producer() {
    let node = Node::start();
    node.faults([OUT_OF_ORDER]);
    let producer = producer(&node, config());
    let told = answers(send(&producer, ["a", "b"]).await).await;
    assert!(told.iter().all(|answer| *answer == refused("OUT_OF_ORDER_SEQUENCE")), "{told:?}");
    assert_eq!(producer.send(Record::value("c")).await.unwrap_err().reason, "OUT_OF_ORDER_SEQUENCE");
    assert!(node.values().is_empty());
}

#[tokio::test]
async fn after_the_last_epoch_comes_a_new_producer_id() {
    let node = Node::start();
    node.state.lock().producer_epoch = 32_766;
    // The second id is not allocated at once.
    node.state.lock().init_faults.extend([Fault::None, Fault::Refuse(Code::Unavailable, "UNAVAILABLE")]);
    let producer = producer(&node, config());
    for offset in [0, 2, 4] {
        node.faults([CONFLICT]);
        let told = answers(send(&producer, ["x", "a", "a"]).await).await;
        assert_eq!(told, [refused("VERSION_CONFLICT"), Ok(offset), Ok(offset + 1)]);
    }
    assert_eq!(node.state.lock().next_producer, 2);
    assert_eq!(node.values(), ["a"; 6]);
    producer.close().await.unwrap_err();
}

#[tokio::test]
async fn without_a_new_producer_id_what_is_left_is_certainly_not_accepted() {
    let node = Node::start();
    node.state.lock().producer_epoch = 32_767;
    let denied = Fault::Refuse(Code::PermissionDenied, "PERMISSION_DENIED");
    node.state.lock().init_faults.extend([Fault::None, denied]);
    node.faults([Fault::None, CONFLICT]);
    let producer = producer(&node, config());
    let told = answers(send(&producer, ["a", "x", "b"]).await).await;
    assert_eq!(told, [Ok(0), refused("VERSION_CONFLICT"), refused("PERMISSION_DENIED")]);
    assert!(producer.send(Record::value("c")).await.unwrap_err().not_accepted());
    assert_eq!(node.values(), ["a"]);
}

#[tokio::test]
async fn closing_finishes_a_change_of_epoch() {
    let node = Node::start();
    node.faults([CONFLICT]);
    let producer = producer(&node, config());
    let deliveries = send(&producer, ["x", "a", "b"]).await;
    assert_eq!(producer.close().await.unwrap_err().reason, "VERSION_CONFLICT");
    assert_eq!(answers(deliveries).await, [refused("VERSION_CONFLICT"), Ok(0), Ok(1)]);
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_on_a_stream_that_ended_is_never_called_refused() {
    // Stored without an answer behind a refusal, and then no answer until the delivery timeout.
    let node = Node::start();
    node.state.lock().old_rule = true;
    node.faults([CONFLICT, Fault::LoseAnswer(None)].into_iter().chain(vec![OVERLOADED; 10_000]));
    let short = ProducerConfig { delivery_timeout: Duration::from_millis(200), ..config() };
    let producer = producer(&node, short);
    assert_eq!(answers(send(&producer, ["x", "a"]).await).await, [refused("VERSION_CONFLICT"), unknown()]);
    assert_eq!(node.values(), ["a"]);
    assert!(producer.send(Record::value("b")).await.unwrap_err().not_accepted());
}

#[tokio::test]
async fn a_status_that_ends_a_stream_refuses_nothing_that_was_sent() {
    let ends = [None, Some(Code::PermissionDenied), Some(Code::ResourceExhausted), Some(Code::OutOfRange)];
    for end in ends {
        let node = Node::start();
        node.faults([Fault::LoseAnswer(end)]);
        let plain = producer(&node, ProducerConfig { idempotent: false, ..config() });
        assert_eq!(answers(send(&plain, ["a", "b"]).await).await, [unknown(), Ok(1)], "{end:?}");
        node.faults([Fault::LoseAnswer(end)]);
        let idempotent = producer(&node, config());
        assert_eq!(answers(send(&idempotent, ["c", "d"]).await).await, [Ok(2), Ok(3)], "{end:?}");
        assert_eq!(node.values(), ["a", "b", "c", "d"]);
    }
}

/// Faults after which a node still knows the producer. In a cluster the broken connections are leaders that die.
fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        6 => Just(Fault::None),
        1 => Just(Fault::Cut),
        1 => Just(Fault::StoreThenCut),
        1 => Just(Fault::LoseAnswer(None)),
        1 => Just(Fault::StoreThenUnknown),
        1 => Just(OVERLOADED),
        1 => Just(Fault::Refuse(Code::Unavailable, "NOT_LEADER")),
        1 => Just(CONFLICT),
        1 => Just(Fault::Refuse(Code::InvalidArgument, "RECORD_TOO_LARGE")),
    ]
}

/// One node, or three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nodes {
    One,
    /// That accepts any first sequence.
    Old,
    Three,
}

/// Sends numbers through faults; returns the answers and what is stored.
fn run(nodes: Nodes, faults: Vec<Fault>, records: usize, config: ProducerConfig) -> (Vec<Answer>, Vec<String>) {
    async fn send_all(client: Client, records: usize, config: ProducerConfig) -> Vec<Answer> {
        let producer = client.producer(Partition::new("", 0), config);
        let told = answers(send(&producer, values(0..records).iter().map(String::as_str)).await).await;
        let _ = producer.close().await;
        told
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        if nodes == Nodes::Three {
            let cluster = Cluster::start(3);
            cluster.state.lock().log.faults.extend(faults);
            let told = send_all(cluster.client("n0:7400,n1:7400,n2:7400"), records, config).await;
            (told, cluster.values())
        } else {
            let node = Node::start();
            node.state.lock().old_rule = nodes == Nodes::Old;
            node.faults(faults);
            (send_all(node.client(), records, config).await, node.values())
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// An acknowledged record is stored at its offset and nowhere else, a refused one nowhere, and the order is kept.
    #[test]
    fn every_answer_is_true_whatever_fails(
        nodes in prop_oneof![Just(Nodes::One), Just(Nodes::Old), Just(Nodes::Three)],
        faults in proptest::collection::vec(fault(), 0..30),
        records in 1usize..40,
        batch_records_max in 1usize..5,
        in_flight_max in 1usize..6,
    ) {
        let config = ProducerConfig { batch_records_max, in_flight_max, ..config() };
        let (told, stored) = run(nodes, faults, records, config);
        for (number, answer) in told.iter().enumerate() {
            let at: Vec<usize> = (0..stored.len()).filter(|at| stored[*at] == number.to_string()).collect();
            match answer {
                Ok(offset) => prop_assert_eq!(at, [usize::try_from(*offset).unwrap()], "{} of {:?}", number, stored),
                Err((_, true)) => prop_assert!(at.is_empty(), "{number} was refused: {stored:?}"),
                Err(_) => prop_assert!(at.len() < 2, "{number}: {stored:?}"),
            }
        }
        prop_assert!(stored.is_sorted_by_key(|value| value.parse::<usize>().unwrap()), "{stored:?}");
    }

    /// As long as every request has an answer, eviction loses and doubles nothing.
    #[test]
    fn eviction_costs_no_record(
        faults in proptest::collection::vec(prop_oneof![
            4 => Just(Fault::None), 1 => Just(Fault::Evict), 1 => Just(OVERLOADED), 1 => Just(CONFLICT),
        ], 0..30),
        records in 1usize..40,
        in_flight_max in 1usize..6,
    ) {
        let (told, stored) = run(Nodes::One, faults, records, ProducerConfig { in_flight_max, ..config() });
        let accepted: Vec<String> =
            told.iter().enumerate().filter(|(_, answer)| answer.is_ok()).map(|(number, _)| number.to_string()).collect();
        prop_assert_eq!(stored, accepted);
        for answer in told.into_iter().filter(Result::is_err) {
            prop_assert_eq!(answer, refused("VERSION_CONFLICT"));
        }
    }
}
