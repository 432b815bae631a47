//! Mutated bytes of other nodes: messages, checkpoints, members.

use bytes::Bytes;
use chronicle_fuzz::Fuzz;
use chronicle_log::{Entry, EntryKind};
use chronicle_proto::internal as proto;
use openraft::raft::AppendEntriesResponse;
use prost::Message;

use super::checkpoint::{decode_checkpoint, encode_checkpoint};
use super::traced::{Traced, encode};
use super::type_config::{MembershipRecord, SnapshotMeta};
use super::wire::*;

fn shown<T>(result: Result<T, impl ToString>) -> String {
    result.map_or_else(|error| error.to_string(), |_| "taken".to_owned())
}

fn vote() -> Option<proto::Vote> {
    Some(proto::Vote { term: 3, node: 1, committed: true })
}

fn position(index: u64) -> Option<proto::LogPosition> {
    Some(proto::LogPosition { term: 3, leader: 1, index })
}

const MEMBERS: &[u8] = br#"{"configs":[[1,2]],"nodes":{"1":{},"2":{}}}"#;

fn entry(index: u64, kind: EntryKind, payload: &'static [u8]) -> proto::LogEntry {
    let record_count = u32::from(kind == EntryKind::Data);
    let payload = Bytes::from_static(payload);
    entry_out(Entry { index, term: 3, leader: 1, kind, record_count, max_timestamp: 7, payload })
}

#[test]
fn mutated_appends_are_taken_or_refused() {
    let context =
        opentelemetry::trace::SpanContext::new(7.into(), 8.into(), Default::default(), true, Default::default());
    let request = |previous| proto::AppendRequest {
        vote: vote(),
        previous,
        entries: vec![
            entry(5, EntryKind::Data, b"batches"),
            entry(6, EntryKind::Blank, b""),
            entry(7, EntryKind::Membership, MEMBERS),
        ],
        committed: position(4),
        traces: vec![proto::TracedEntry { index: 5, parent: encode(&context) }],
    };
    Fuzz::new("raft-appends")
        .seed(request(position(4)).encode_to_vec())
        .seed(request(None).encode_to_vec())
        .seed(request(position(u64::MAX)).encode_to_vec())
        .run(|bytes| match proto::AppendRequest::decode(bytes) {
            Ok(request) => {
                let traced = Traced::default();
                let indexes = traced.received(&request.traces);
                traced.remove(&indexes);
                shown(append_in(request).map(append_out))
            }
            Err(error) => error.to_string(),
        });
}

#[test]
fn mutated_votes_and_answers_are_taken_or_refused() {
    let asked = proto::VoteRequest { vote: vote(), last: position(9), leadership_transfer: true, pre_vote: true };
    let voted = proto::VoteResponse { vote: vote(), last: position(9), granted: true, leads: true };
    let done = append_done_out(&AppendEntriesResponse::PartialSuccess(None));
    Fuzz::new("raft-answers").seed(asked.encode_to_vec()).seed(voted.encode_to_vec()).seed(done.encode_to_vec()).run(
        |bytes| {
            let asked = proto::VoteRequest::decode(bytes).map(|asked| shown(ask_vote_in(asked)));
            let voted = proto::VoteResponse::decode(bytes).map(|voted| shown(voted_in(voted)));
            let done = proto::AppendResponse::decode(bytes).map(|done| shown(append_done_in(done)));
            format!("{asked:?} {voted:?} {done:?}")
        },
    );
}

#[test]
fn mutated_checkpoints_of_groups_are_read_or_refused() {
    Fuzz::new("group-checkpoints")
        .seed(encode_checkpoint(&SnapshotMeta::default(), b"{}"))
        .seed(checkpoint(
            br#"{"last":[3,1,9],"membership_log_id":[1,1,0],"membership":{"configs":[[1,2]],"nodes":{"1":{},"2":{}}}}"#,
        ))
        .run(|bytes| shown(decode_checkpoint(&Bytes::copy_from_slice(bytes))));
}

fn checkpoint(head: &[u8]) -> Vec<u8> {
    [&(head.len() as u32).to_le_bytes(), head, b"state"].concat()
}

#[test]
fn mutated_members_are_read_or_refused() {
    Fuzz::new("members").seed(MEMBERS).run(|bytes| shown(MembershipRecord::decode(bytes)));
}
