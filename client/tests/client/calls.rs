//! Single calls: which are retried, and what the errors say.

use std::time::Duration;

use crate::fake::{Fault, Node};
use crate::inputs::{identity, partition, request};
use chronicle_client::{Client, ClientConfig, ErrorKind};
use tonic::Code;

#[tokio::test]
async fn reads_are_retried_while_the_node_is_unavailable() {
    let node = Node::start();
    node.state.lock().unavailable_reads = 3;
    let offsets = node.client().list_offsets(&partition(), None).await.unwrap();
    assert_eq!((offsets.next, node.state.lock().offsets_calls), (0, 4));
}

#[tokio::test]
async fn a_client_connects_on_first_use_and_reconnects_after_a_disconnect() {
    let node = Node::start();
    node.refuse_connections(true);
    let client = node.client();
    assert_eq!(node.state.lock().connections, 0);
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.list_offsets(&partition(), None).await }
    });
    node.refuse_connections(false);
    waiting.await.unwrap().unwrap();
    node.cut();
    client.list_offsets(&partition(), None).await.unwrap();
    assert_eq!(node.state.lock().connections, 2);
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_node_is_named_and_nothing_was_sent() {
    let node = Node::start();
    node.refuse_connections(true);
    let client = Client::connect(node.config().request_timeout(Duration::from_millis(100))).unwrap();
    let error = client.produce(request("a", None)).await.unwrap_err();
    assert_eq!((error.reason.as_str(), &error.kind), ("UNREACHABLE", &ErrorKind::Transport { sent: false }), "{error}");
    assert!(error.not_accepted());
    assert!(error.message.contains("gave up after 100 ms") && error.message.contains("refused"), "{error}");
}

#[tokio::test]
async fn an_append_that_was_not_accepted_is_retried() {
    let node = Node::start();
    node.faults([
        Fault::Refuse(Code::Unavailable, "UNAVAILABLE"),
        Fault::Refuse(Code::ResourceExhausted, "OVERLOADED"),
        Fault::Refuse(Code::Unavailable, "NOT_LEADER"),
    ]);
    let answer = node.client().produce(request("a", None)).await.unwrap();
    assert_eq!((answer.base_offset, node.values()), (0, vec!["a".to_owned()]));
}

#[tokio::test]
async fn a_rejected_append_is_not_retried() {
    let node = Node::start();
    node.faults([Fault::Refuse(Code::InvalidArgument, "RECORD_TOO_LARGE")]);
    let error = node.client().produce(request("a", None)).await.unwrap_err();
    assert_eq!((error.reason.as_str(), error.kind), ("RECORD_TOO_LARGE", ErrorKind::Rejected));
    assert_eq!(error.metadata["expected"], "0");
    assert_eq!(node.state.lock().requests.len(), 1);
}

#[tokio::test]
async fn an_unknown_outcome_is_returned_when_the_append_is_not_idempotent() {
    let node = Node::start();
    // A status without details comes from a proxy or from the gRPC layer, which may have passed the request on.
    let ended = |code| Fault::LoseAnswer(Some(code));
    let ended = [Code::ResourceExhausted, Code::Aborted, Code::Unavailable, Code::Cancelled].map(ended);
    for fault in [Fault::StoreThenCut, Fault::StoreThenUnknown, Fault::Cut].into_iter().chain(ended) {
        node.faults([fault.clone()]);
        let before = node.state.lock().requests.len();
        let error = node.client().produce(request("a", None)).await.unwrap_err();
        assert_eq!((error.reason.as_str(), error.kind), ("OUTCOME_UNKNOWN", ErrorKind::OutcomeUnknown), "{fault:?}");
        assert_eq!(node.state.lock().requests.len(), before + 1, "{fault:?}: sent once");
    }
}

#[tokio::test]
async fn an_answer_above_the_limit_of_the_client_is_not_called_a_refusal() {
    let node = Node::start();
    let mut config = node.config();
    config.answer_bytes_max = 1;
    node.store(["before".to_owned()]);
    let error = Client::connect(config).unwrap().produce(request("a", None)).await.unwrap_err();
    assert_eq!((error.kind.clone(), error.reason.as_str()), (ErrorKind::Fatal, "OUT_OF_RANGE"), "{error}");
    assert!(!error.not_accepted() && !error.is_retryable());
    assert_eq!(node.values(), ["before", "a"]);
}

#[tokio::test]
async fn an_idempotent_append_is_repeated_and_stored_once() {
    let node = Node::start();
    let client = node.client();
    node.faults([Fault::StoreThenCut, Fault::Cut, Fault::StoreThenUnknown]);
    let answer = client.produce(request("a", identity(0))).await.unwrap();
    assert!(answer.duplicate);
    let answer = client.produce(request("b", identity(1))).await.unwrap();
    assert_eq!((answer.base_offset, node.values()), (1, vec!["a".to_owned(), "b".to_owned()]));
}

#[tokio::test]
async fn a_refusal_after_an_open_attempt_stays_open() {
    let node = Node::start();
    node.faults([Fault::Cut, Fault::Refuse(Code::FailedPrecondition, "VERSION_CONFLICT")]);
    let error = node.client().produce(request("a", identity(0))).await.unwrap_err();
    assert_eq!((error.kind.clone(), error.metadata["cause"].as_str()), (ErrorKind::OutcomeUnknown, "VERSION_CONFLICT"));
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_at_its_deadline_and_reports_whether_it_may_have_happened() {
    let node = Node::start();
    let client = Client::connect(node.config().request_timeout(Duration::from_millis(50))).unwrap();
    node.faults([Fault::Hang]);
    let error = client.produce(request("a", None)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::OutcomeUnknown, "{error}");
    node.faults(vec![Fault::Refuse(Code::ResourceExhausted, "DISK_FULL"); 1000]);
    let error = client.produce(request("a", None)).await.unwrap_err();
    assert_eq!((error.kind.clone(), error.reason.as_str()), (ErrorKind::Retryable, "DISK_FULL"), "{error}");
}

#[tokio::test]
async fn an_address_must_be_host_and_port() {
    for wrong in ["", "host", ":7400", "host:", "host:0", "host:99999", "http://host:1", "host:1/path", "a b:1"] {
        let error = Client::connect(ClientConfig::from(wrong)).expect_err(wrong);
        assert_eq!(error.reason, "INVALID_ARGUMENT");
    }
    for right in ["localhost:7400", "127.0.0.1:7400", "[::1]:7400", "chronicle-0.chronicle:7400"] {
        Client::connect(right).expect(right);
    }
}
