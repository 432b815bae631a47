//! Requests that only the leader of a partition can answer, on a node that does not lead it: they are forwarded.
//!
//! For callers that cannot follow a leader themselves: an HTTP client behind a load balancer, the coordinator of a consumer
//! group. gRPC clients are told who leads, and go there.
//!
//! Invariants:
//! - At most one hop: what comes from another node is answered here or refused ([`Broker::answer_forwarded`]).
//! - An append is sent a second time only when the first node said that it did nothing with it.
//! - An append without an answer has an unknown outcome, unless it cannot have arrived.
//!
//! `peers::forwarding` bounds what is under way.

use std::time::Duration;

use chronicle_proto::internal as proto;
use chronicle_proto::internal::forward_request::Ask;
use chronicle_proto::internal::forward_response::Answer;
use chronicle_proto::internal::forwarded_append::Expectation as Expected;
use chronicle_proto::internal::forwarded_read::From;

use super::{
    Broker, BrokerError, Expectation, Fetch, Fetched, Offsets, Payload, Position, Produce, Produced, Reason,
    TopicPartition,
};
use crate::controller::NodeState;
use crate::peers::{ForwardError, READ_BYTES_MAX};

/// Longest wait for the answer to a forwarded append.
const APPEND_PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for any other answer, beyond the wait that the request asks for.
const READ_PATIENCE: Duration = Duration::from_secs(10);

impl Broker {
    /// As [`Broker::produce`], on the node that leads the partition.
    ///
    /// # Errors
    /// As [`Broker::produce`]; [`Reason::NotLeader`] when the leader that is known cannot be reached;
    /// [`Reason::OutcomeUnknown`] when it does not answer.
    pub async fn produce_anywhere(&self, request: Produce) -> Result<Produced, BrokerError> {
        let append = self.admit(request).await?;
        let Err(not_here) = self.lead(&append.topic, append.target.partition).await else {
            return self.queue(append).await?.wait().await;
        };
        let Some(leader) = self.leader_named(&not_here) else { return Err(not_here) };
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
            Ok(_) => Err(BrokerError::unknown(&unexpected())),
            Err(ForwardError::NotSent(why)) => {
                tracing::debug!(leader, why, "an append is not forwarded");
                Err(not_here)
            }
            Err(ForwardError::Busy) => Err(busy(ForwardError::Busy)),
            Err(lost @ ForwardError::NoAnswer(_)) => Err(BrokerError::unknown(&unavailable(&lost))),
        }
    }

    /// As [`Broker::fetch`]; what this node does not have, or cannot tell, the leader of the partition is asked for: an answer
    /// from there has at most 256 KiB, about.
    ///
    /// # Errors
    /// As [`Broker::fetch`]; [`Reason::Unavailable`] when the leader does not answer.
    pub async fn fetch_anywhere(&self, mut request: Fetch) -> Result<Fetched, BrokerError> {
        let here = match self.fetch(request.clone()).await {
            Ok(fetched) => return Ok(fetched),
            Err(error) => error,
        };
        let leader = match here.reason {
            Reason::NotLeader => self.leader_named(&here),
            Reason::OffsetOutOfRange if beyond_end(request.from, &here) => {
                // Where the log ends only the leader knows: this replica may be behind.
                let topic = self.topic(&request.target).await?;
                match self.lead(&topic, request.target.partition).await {
                    // It was not leading a moment ago.
                    Ok(_) => return self.fetch(request).await,
                    Err(error) => self.leader_named(&error),
                }
            }
            _ => None,
        };
        let Some(leader) = leader else { return Err(here) };
        request.max_wait = request.max_wait.min(Duration::from_millis(self.config().limits.wait_ms_max));
        let ask = Ask::Read(proto::ForwardedRead {
            from: Some(match request.from {
                Position::Offset(offset) => From::Offset(offset),
                Position::Timestamp(time_ms) => From::TimestampMs(time_ms),
                Position::Earliest => From::Earliest(true),
                Position::Latest => From::Latest(true),
            }),
            max_bytes: request.max_bytes.clamp(1, READ_BYTES_MAX) as u64,
            max_wait_ms: request.max_wait.as_millis() as u64,
        });
        match self.forward(leader, request.target, ask, READ_PATIENCE + request.max_wait).await {
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

    /// As [`Broker::offsets`], from the leader of the partition.
    ///
    /// # Errors
    /// As [`Broker::offsets`]; [`Reason::Unavailable`] when the leader does not answer.
    pub async fn offsets_anywhere(
        &self,
        target: &TopicPartition,
        time_ms: Option<i64>,
    ) -> Result<Offsets, BrokerError> {
        let here = match self.offsets(target, time_ms).await {
            Ok(offsets) => return Ok(offsets),
            Err(error) => error,
        };
        let Some(leader) = self.leader_named(&here) else { return Err(here) };
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

    /// The live node whose address a [`Reason::NotLeader`] names.
    fn leader_named(&self, error: &BrokerError) -> Option<u64> {
        if error.reason != Reason::NotLeader {
            return None;
        }
        let address = error.value("leader")?;
        let env = &self.inner.env;
        let state = env.state();
        let mut nodes = state.nodes.values().filter(|node| node.state != NodeState::Removed);
        let leader = nodes.find(|node| node.address == address)?.id;
        (leader != env.node() && env.alive(leader)).then_some(leader)
    }

    /// Asks `leader`, and once more whoever that one says leads instead.
    async fn forward(
        &self,
        leader: u64,
        target: TopicPartition,
        ask: Ask,
        patience: Duration,
    ) -> Result<Answer, ForwardError> {
        let peers = &self.inner.env.peers;
        let request = proto::ForwardRequest { topic: target.topic, partition: target.partition, ask: Some(ask) };
        let answer = answered(peers.forward(leader, request.clone(), patience).await?)?;
        let Answer::Refused(refusal) = answer else { return Ok(answer) };
        match self.leader_named(&refusal_in(refusal.clone())).filter(|other| *other != leader) {
            Some(other) => answered(peers.forward(other, request, patience).await?),
            None => Ok(Answer::Refused(refusal)),
        }
    }

    /// Answers what another node forwards. Never forwards.
    pub(super) async fn answer_forwarded(&self, request: proto::ForwardRequest) -> proto::ForwardResponse {
        let target = TopicPartition { topic: request.topic, partition: request.partition };
        let answer = match request.ask {
            Some(Ask::Append(append)) => self.append_forwarded(target, append).await,
            Some(Ask::Read(read)) => self.read_forwarded(target, read).await,
            Some(Ask::Offsets(ask)) => self.offsets(&target, ask.timestamp_ms).await.map(|offsets| {
                let at = |(offset, timestamp_ms)| proto::ForwardedRecordTime { offset, timestamp_ms };
                Answer::Offsets(proto::ForwardedOffsetsAnswer {
                    earliest: offsets.earliest,
                    next: offsets.next,
                    at_timestamp: offsets.at_timestamp.map(at),
                })
            }),
            None => Err(BrokerError::invalid("ask", "missing", "must be one that this version knows")),
        };
        let answer = answer.unwrap_or_else(|error| Answer::Refused(refusal_out(error)));
        proto::ForwardResponse { answer: Some(answer) }
    }

    async fn append_forwarded(
        &self,
        target: TopicPartition,
        append: proto::ForwardedAppend,
    ) -> Result<Answer, BrokerError> {
        let expectation = append.expectation.map(|expected| match expected {
            Expected::NextOffset(offset) => Expectation::NextOffset(offset),
            Expected::KeyVersion(of) => Expectation::KeyVersion { key: of.key, version: of.version },
        });
        // Its producer is in the batch, and everything is checked as if a client had sent it here.
        let request = Produce { target, payload: Payload::Batch(append.batch), producer: None, expectation };
        let produced = self.produce(request).await?;
        Ok(Answer::Append(proto::ForwardedAppendAnswer {
            base_offset: produced.base_offset,
            record_count: produced.record_count,
            duplicate: produced.duplicate,
        }))
    }

    async fn read_forwarded(&self, target: TopicPartition, read: proto::ForwardedRead) -> Result<Answer, BrokerError> {
        let from = match read.from {
            Some(From::Offset(offset)) => Position::Offset(offset),
            Some(From::TimestampMs(time_ms)) => Position::Timestamp(time_ms),
            Some(From::Earliest(_)) => Position::Earliest,
            Some(From::Latest(_)) => Position::Latest,
            None => return Err(BrokerError::invalid("read.from", "missing", "must be one that this version knows")),
        };
        let max_bytes = usize::try_from(read.max_bytes).unwrap_or(usize::MAX).clamp(1, READ_BYTES_MAX);
        let request = Fetch { target, from, max_bytes, max_wait: Duration::from_millis(read.max_wait_ms) };
        // Another replica may be behind; what is missing there would be denied.
        let topic = self.topic(&request.target).await?;
        self.lead(&topic, request.target.partition).await?.read_index().await?;
        let fetched = self.fetch(request).await?;
        Ok(Answer::Read(proto::ForwardedReadAnswer {
            batches: fetched.batches,
            start_offset: fetched.start_offset,
            next_offset: fetched.next_offset,
            high_watermark: fetched.high_watermark,
            log_start_offset: fetched.log_start_offset,
        }))
    }
}

/// Whether a read that was out of range asked for what lies at the end of the replica, or behind it.
fn beyond_end(from: Position, error: &BrokerError) -> bool {
    let next = error.value("next").and_then(|next| next.parse::<i64>().ok());
    match (from, next) {
        (Position::Offset(offset), Some(next)) => offset >= next,
        (_, next) => next.is_some(),
    }
}

fn answered(response: proto::ForwardResponse) -> Result<Answer, ForwardError> {
    response.answer.ok_or_else(|| ForwardError::NoAnswer("it is one that this version does not know".into()))
}

fn unexpected() -> BrokerError {
    BrokerError::new(Reason::Internal, "a forwarded request: the answer is not one to what was asked")
}

fn unavailable(error: &ForwardError) -> BrokerError {
    BrokerError::new(Reason::Unavailable, error.to_string())
}

/// Nothing was changed: the same request may succeed later.
fn busy(error: ForwardError) -> BrokerError {
    match error {
        ForwardError::Busy => BrokerError::new(Reason::Overloaded, error.to_string()),
        ForwardError::NotSent(_) | ForwardError::NoAnswer(_) => unavailable(&error),
    }
}

fn refusal_out(error: BrokerError) -> proto::ForwardedRefusal {
    proto::ForwardedRefusal {
        reason: error.reason.as_str().into(),
        message: error.message,
        metadata: error.metadata.into_iter().map(|(name, value)| (name.into_owned(), value)).collect(),
    }
}

/// A reason that this version does not know leaves open what has happened.
fn refusal_in(refusal: proto::ForwardedRefusal) -> BrokerError {
    let reason = Reason::ALL.iter().copied().find(|reason| reason.as_str() == refusal.reason);
    let mut metadata: Vec<_> = refusal.metadata.into_iter().map(|(name, value)| (name.into(), value)).collect();
    metadata.sort();
    BrokerError { reason: reason.unwrap_or(Reason::OutcomeUnknown), message: refusal.message, metadata }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_arrives_as_it_was_made() {
        for reason in Reason::ALL {
            let error = BrokerError::new(*reason, "why").with("earliest", 3).with("next", 9);
            assert_eq!(refusal_in(refusal_out(error.clone())), error);
        }
        let newer = proto::ForwardedRefusal { reason: "NEVER_HEARD_OF".into(), ..Default::default() };
        assert_eq!(refusal_in(newer).reason, Reason::OutcomeUnknown);
    }

    #[test]
    fn only_what_lies_at_the_end_or_behind_it_is_the_leaders_to_deny() {
        let error = crate::partition::out_of_range(5, 3, 5);
        assert!(beyond_end(Position::Offset(5), &error));
        assert!(beyond_end(Position::Offset(6), &error));
        assert!(!beyond_end(Position::Offset(2), &error), "retention has deleted it here as there");
        assert!(beyond_end(Position::Timestamp(1), &error));
        assert!(!beyond_end(Position::Earliest, &BrokerError::new(Reason::OffsetOutOfRange, "no range")));
    }
}
