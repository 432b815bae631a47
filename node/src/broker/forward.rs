//! Forwards requests that only the leader of a partition can answer to the leader, when this node does not lead the
//! partition.
//!
//! For callers that cannot follow a leader themselves: an HTTP client behind a load balancer, the coordinator of a
//! consumer group. gRPC clients receive the address of the leader, and connect to it.
//!
//! Invariants:
//! - At most one hop: this node answers or rejects a request from another node, and never forwards it again
//!   ([`Broker::answer_forwarded`]).
//! - An append is sent a second time only when the first node reported that the append had no effect.
//! - The outcome of an append without an answer is unknown, unless the append cannot have arrived.
//!
//! `peers::forwarding` limits the requests in flight.

use std::time::Duration;

use chronicle_proto::internal as proto;
use chronicle_proto::internal::forward_request::Ask;
use chronicle_proto::internal::forward_response::Answer;
use chronicle_proto::internal::forwarded_append::Expectation as Expected;
use chronicle_proto::internal::forwarded_read::From;

use super::append::Admitted;
use super::read::is_at_end;
use super::{Broker, Route};
use crate::metadata::NodeState;
use crate::model::{
    ApiError, Expectation, Fetch, Fetched, Offsets, PartitionError, Position, Produce, ProducePayload, Produced,
    Reason, Topic, TopicPartition,
};
use crate::peers::{ForwardError, READ_BYTES_MAX};

/// Longest wait for the answer to a forwarded append.
const APPEND_PATIENCE: Duration = Duration::from_secs(30);
/// Wait of a read that has waited already: the protocol between nodes encodes an empty read without a wait as a refusal.
const AT_ONCE: Duration = Duration::from_millis(1);
/// Longest wait for any other answer, beyond the wait that the request asks for.
const READ_PATIENCE: Duration = Duration::from_secs(10);

impl Broker {
    /// Appends on the leader of the partition. `not_here`: why this node cannot append.
    pub(super) async fn forward_append(
        &self,
        append: Admitted,
        not_here: PartitionError,
    ) -> Result<Produced, ApiError> {
        let leader = self.reachable_leader(&not_here);
        let not_here = self.api_error(not_here);
        let Some(leader) = leader else { return Err(not_here) };
        let expectation = append.expectation.map(|expectation| match expectation {
            Expectation::NextOffset(offset) => Expected::NextOffset(offset),
            Expectation::KeyVersion { key, version } => {
                Expected::KeyVersion(proto::ForwardedKeyVersion { key, version })
            }
        });
        let ask = Ask::Append(proto::ForwardedAppend { batch: append.batch.freeze(), expectation });
        match self.forward(leader, append.target, ask, APPEND_PATIENCE).await {
            Ok(Answer::Append(answer)) => Ok(Produced {
                base_offset: answer.base_offset,
                record_count: answer.record_count,
                duplicate: answer.duplicate,
            }),
            Ok(Answer::Refused(refusal)) => Err(refusal_in(refusal)),
            Ok(_) => Err(ApiError::unknown(&unexpected())),
            Err(ForwardError::NotSent(why)) => {
                tracing::debug!(leader, why, "cannot forward append");
                Err(not_here)
            }
            Err(ForwardError::Busy) => Err(busy(ForwardError::Busy)),
            Err(lost @ ForwardError::NoAnswer(_)) => Err(ApiError::unknown(&unavailable(&lost))),
        }
    }

    /// Reads from the leader of the partition what only the leader knows. `here`: what this node has, or why it has
    /// nothing.
    pub(super) async fn fetch_from_leader(
        &self,
        topic: Topic,
        mut request: Fetch,
        here: Result<Fetched, PartitionError>,
    ) -> Result<Fetched, ApiError> {
        if let Ok(fetched) = &here {
            // The wait is over, and nothing arrived here. What is asked now is whether the leader has more.
            request.from = Position::Offset(fetched.start_offset);
            request.max_wait = request.max_wait.min(AT_ONCE);
        }
        let not_here = match here {
            Err(error) if !is_at_end(request.from, &error) => error,
            // That nothing is there is not for this replica to say: it may be behind, or its leadership may be over.
            _ => match self.fetch_as_leader(&topic, &request).await {
                Err(error @ (PartitionError::NotLeader { .. } | PartitionError::NoLeader)) => error,
                fetched => return fetched.map_err(|error| self.api_error(error)),
            },
        };
        let leader = self.reachable_leader(&not_here);
        let Some(leader) = leader else { return Err(self.api_error(not_here)) };
        request.max_wait = request.max_wait.min(Duration::from_millis(self.config().limits.wait_ms_max));
        let patience = READ_PATIENCE + request.max_wait;
        fetched_in(self.forward(leader, request.target.clone(), ask_read(&request, false), patience).await)
    }

    /// Reads from the replica on another node what it has committed, whether or not it leads.
    pub(super) async fn fetch_from_replica(&self, node: u64, request: &Fetch) -> Result<Fetched, ApiError> {
        let Some(node) = self.reachable(node) else {
            return Err(ApiError::new(Reason::Unavailable, "not alive"));
        };
        let request = Fetch { max_wait: Duration::ZERO, ..request.clone() };
        fetched_in(self.forward_once(node, request.target.clone(), ask_read(&request, true)).await)
    }

    /// Returns the offsets from the leader of the partition. `here`: why this node cannot answer.
    pub(super) async fn offsets_from_leader(
        &self,
        topic: &Topic,
        target: &TopicPartition,
        time_ms: Option<i64>,
        here: PartitionError,
    ) -> Result<Offsets, ApiError> {
        let Some(leader) = self.reachable_leader(&here) else {
            return Err(self.leader_error(topic, target.partition, here));
        };
        let ask = Ask::Offsets(proto::ForwardedOffsets { timestamp_ms: time_ms });
        match self.forward(leader, target.clone(), ask, READ_PATIENCE).await {
            Ok(Answer::Offsets(answer)) => Ok(Offsets {
                earliest: answer.earliest,
                next: answer.next,
                at_timestamp: answer.at_timestamp.map(|at| (at.offset, at.timestamp_ms)),
            }),
            Ok(Answer::Refused(refusal)) => Err(refusal_in(refusal)),
            Ok(_) => Err(unexpected()),
            Err(error) => Err(busy(error)),
        }
    }

    /// The leader, when it is another node and alive.
    fn reachable_leader(&self, error: &PartitionError) -> Option<u64> {
        match error {
            PartitionError::NotLeader { leader } => self.reachable(*leader),
            _ => None,
        }
    }

    fn reachable(&self, leader: u64) -> Option<u64> {
        let cluster = &self.inner.cluster;
        let state = cluster.state();
        let member = state.nodes.get(&leader).is_some_and(|node| node.state != NodeState::Removed);
        (member && leader != cluster.node() && cluster.alive(leader)).then_some(leader)
    }

    /// Sends the request to `leader`, and once more to the current leader when the response of the first node names
    /// one.
    async fn forward(
        &self,
        leader: u64,
        target: TopicPartition,
        ask: Ask,
        patience: Duration,
    ) -> Result<Answer, ForwardError> {
        let peers = &self.inner.cluster.peers;
        let request = proto::ForwardRequest { topic: target.topic, partition: target.partition, ask: Some(ask) };
        let answer = answered(peers.forward(leader, request.clone(), patience).await?)?;
        let Answer::Refused(refusal) = answer else { return Ok(answer) };
        match self.reachable(refusal.leader).filter(|other| *other != leader) {
            Some(other) => answered(peers.forward(other, request, patience).await?),
            None => Ok(Answer::Refused(refusal)),
        }
    }

    /// Sends the request to `node` alone.
    async fn forward_once(&self, node: u64, target: TopicPartition, ask: Ask) -> Result<Answer, ForwardError> {
        let request = proto::ForwardRequest { topic: target.topic, partition: target.partition, ask: Some(ask) };
        answered(self.inner.cluster.peers.forward(node, request, READ_PATIENCE).await?)
    }

    /// Answers a request that another node forwarded. Never forwards.
    pub(crate) async fn answer_forwarded(&self, request: proto::ForwardRequest) -> proto::ForwardResponse {
        let target = TopicPartition { topic: request.topic, partition: request.partition };
        let answer = match request.ask {
            Some(Ask::Append(append)) => self.append_forwarded(target, append).await,
            Some(Ask::Read(read)) => self.read_forwarded(target, read).await,
            Some(Ask::Offsets(ask)) => self.offsets(&target, ask.timestamp_ms, Route::Local).await.map(|offsets| {
                let at = |(offset, timestamp_ms)| proto::ForwardedRecordTime { offset, timestamp_ms };
                Answer::Offsets(proto::ForwardedOffsetsAnswer {
                    earliest: offsets.earliest,
                    next: offsets.next,
                    at_timestamp: offsets.at_timestamp.map(at),
                })
            }),
            None => Err(ApiError::invalid("ask", "missing", "must be one that this version knows")),
        };
        let answer = answer.unwrap_or_else(|error| Answer::Refused(refusal_out(error)));
        proto::ForwardResponse { answer: Some(answer) }
    }

    async fn append_forwarded(
        &self,
        target: TopicPartition,
        append: proto::ForwardedAppend,
    ) -> Result<Answer, ApiError> {
        let expectation = append.expectation.map(|expected| match expected {
            Expected::NextOffset(offset) => Expectation::NextOffset(offset),
            Expected::KeyVersion(of) => Expectation::KeyVersion { key: of.key, version: of.version },
        });
        // The batch contains its producer. Everything is checked as for an append that a client sends to this node.
        let request = Produce { target, payload: ProducePayload::Batch(append.batch), producer: None, expectation };
        let produced = self.produce(request, Route::Local).await?;
        Ok(Answer::Append(proto::ForwardedAppendAnswer {
            base_offset: produced.base_offset,
            record_count: produced.record_count,
            duplicate: produced.duplicate,
        }))
    }

    async fn read_forwarded(&self, target: TopicPartition, read: proto::ForwardedRead) -> Result<Answer, ApiError> {
        let from = match read.from {
            Some(From::Offset(offset)) => Position::Offset(offset),
            Some(From::TimestampMs(time_ms)) => Position::Timestamp(time_ms),
            Some(From::Earliest(_)) => Position::Earliest,
            Some(From::Latest(_)) => Position::Latest,
            None => return Err(ApiError::invalid("read.from", "missing", "must be one that this version knows")),
        };
        let max_bytes = usize::try_from(read.max_bytes).unwrap_or(usize::MAX).clamp(1, READ_BYTES_MAX);
        let max_wait = Duration::from_millis(read.max_wait_ms);
        let request = Fetch { target, from, max_bytes, max_wait };
        let topic = self.topic(&request.target).await?;
        // Otherwise only the leader answers: a replica that is behind would report existing records as missing.
        let fetched = match read.any_replica {
            true => self.fetch_for_damaged(&topic, &request).await?,
            false => self.fetch_as_leader(&topic, &request).await.map_err(|error| self.api_error(error))?,
        };
        if !fetched.has_advanced() && max_wait.is_zero() {
            // The protocol between nodes encodes this as a refusal.
            return Err(self.api_error(fetched.at_end()));
        }
        Ok(Answer::Read(proto::ForwardedReadAnswer {
            batches: fetched.batches,
            start_offset: fetched.start_offset,
            next_offset: fetched.next_offset,
            high_watermark: fetched.high_watermark,
            log_start_offset: fetched.log_start_offset,
        }))
    }
}

/// Encodes a read. `any_replica`: the receiver need not lead.
fn ask_read(request: &Fetch, any_replica: bool) -> Ask {
    Ask::Read(proto::ForwardedRead {
        from: Some(match request.from {
            Position::Offset(offset) => From::Offset(offset),
            Position::Timestamp(time_ms) => From::TimestampMs(time_ms),
            Position::Earliest => From::Earliest(true),
            Position::Latest => From::Latest(true),
        }),
        max_bytes: request.max_bytes.clamp(1, READ_BYTES_MAX) as u64,
        max_wait_ms: request.max_wait.as_millis() as u64,
        any_replica,
    })
}

/// Decodes the answer to a read.
fn fetched_in(answer: Result<Answer, ForwardError>) -> Result<Fetched, ApiError> {
    match answer {
        Ok(Answer::Read(answer)) => Ok(Fetched {
            batches: answer.batches,
            start_offset: answer.start_offset,
            next_offset: answer.next_offset,
            high_watermark: answer.high_watermark,
            log_start_offset: answer.log_start_offset,
        }),
        Ok(Answer::Refused(refusal)) => Err(refusal_in(refusal)),
        Ok(_) => Err(unexpected()),
        Err(error) => Err(busy(error)),
    }
}

fn answered(response: proto::ForwardResponse) -> Result<Answer, ForwardError> {
    response.answer.ok_or_else(|| ForwardError::NoAnswer("the kind of answer is unknown to this version".into()))
}

fn unexpected() -> ApiError {
    ApiError::new(Reason::Internal, "forwarded request: the answer does not match the request")
}

fn unavailable(error: &ForwardError) -> ApiError {
    ApiError::new(Reason::Unavailable, error.to_string())
}

/// An error for a request without effect: the same request may succeed later.
fn busy(error: ForwardError) -> ApiError {
    match error {
        ForwardError::Busy => ApiError::new(Reason::Overloaded, error.to_string()),
        ForwardError::NotSent(_) | ForwardError::NoAnswer(_) => unavailable(&error),
    }
}

fn refusal_out(error: ApiError) -> proto::ForwardedRefusal {
    proto::ForwardedRefusal {
        leader: error.leader.unwrap_or(0),
        reason: error.reason.as_str().into(),
        message: error.message,
        metadata: error.metadata.into_iter().map(|(name, value)| (name.into_owned(), value)).collect(),
    }
}

/// Decodes a refusal. With a reason that this version does not know, the outcome is unknown.
fn refusal_in(refusal: proto::ForwardedRefusal) -> ApiError {
    let reason = Reason::ALL.iter().copied().find(|reason| reason.as_str() == refusal.reason);
    let mut metadata: Vec<_> = refusal.metadata.into_iter().map(|(name, value)| (name.into(), value)).collect();
    metadata.sort();
    let leader = (refusal.leader != 0).then_some(refusal.leader);
    ApiError { reason: reason.unwrap_or(Reason::OutcomeUnknown), message: refusal.message, metadata, leader }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_arrives_as_it_was_made() {
        for reason in Reason::ALL {
            let mut error = ApiError::new(*reason, "why").with("earliest", 3).with("next", 9);
            error.leader = (*reason == Reason::NotLeader).then_some(7);
            assert_eq!(refusal_in(refusal_out(error.clone())), error);
        }
        let newer = proto::ForwardedRefusal { reason: "NEVER_HEARD_OF".into(), ..Default::default() };
        assert_eq!(refusal_in(newer).reason, Reason::OutcomeUnknown);
    }

    #[test]
    fn only_what_lies_at_the_end_or_behind_it_is_the_leaders_to_deny() {
        let error = PartitionError::OutOfRange { offset: 5, earliest: 3, next: 5 };
        assert!(is_at_end(Position::Offset(5), &error));
        assert!(is_at_end(Position::Offset(6), &error));
        assert!(!is_at_end(Position::Offset(2), &error), "retention has deleted it here as there");
        assert!(is_at_end(Position::Timestamp(1), &error));
        assert!(!is_at_end(Position::Earliest, &PartitionError::NoLeader));
    }
}
