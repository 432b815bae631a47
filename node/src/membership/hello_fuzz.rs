//! Mutated answers of other addresses, which need not be nodes.

use chronicle_fuzz::Fuzz;
use chronicle_proto::internal::{Founder as WireFounder, HelloResponse, PromiseRequest};
use prost::Message;
use uuid::Uuid;

use super::durable_state::Promised;
use super::round::Peer;

#[test]
fn mutated_answers_are_understood_or_refused() {
    let uuid = |n| Uuid::from_u128(n).to_string();
    let founder = WireFounder {
        node_id: uuid(1),
        raft_id: 1,
        name: "n1".into(),
        address: "n1:7400".into(),
        ..Default::default()
    };
    let hello = HelloResponse {
        node_id: uuid(1),
        cluster_id: uuid(2),
        seen: vec![uuid(1), uuid(3)],
        name: "n1".into(),
        address: "n1:7400".into(),
        ..Default::default()
    };
    let promise = PromiseRequest { cluster_id: uuid(2), coordinator: uuid(1), founders: vec![founder] };
    Fuzz::new("membership").seed(hello.encode_to_vec()).seed(promise.encode_to_vec()).run(|bytes| {
        let hello = HelloResponse::decode(bytes).map(|hello| Peer::parse("n1:7400", hello).map(|_| ()));
        let promise = PromiseRequest::decode(bytes).map(|promise| Promised::try_from(promise).map(|_| ()));
        format!("{hello:?} {promise:?}")
    });
}
