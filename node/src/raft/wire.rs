//! Raft messages on the wire: `chronicle.internal.v1` to openraft's types and back.

use chronicle_log::{Entry, EntryKind};
use chronicle_proto::internal as proto;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};

use super::store::{from_entry, to_entry};
use super::type_config::{RaftEntry, RaftLogId, RaftVote, TypeConfig, log_id};

pub(super) fn vote_out(vote: &RaftVote) -> proto::Vote {
    proto::Vote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

pub(super) fn vote_in(vote: Option<proto::Vote>) -> Result<RaftVote, String> {
    let vote = vote.ok_or("vote: missing: must be given")?;
    Ok(match vote.committed {
        true => RaftVote::new_committed(vote.term, vote.node),
        false => RaftVote::new(vote.term, vote.node),
    })
}

pub(super) fn position_out(id: &RaftLogId) -> proto::LogPosition {
    proto::LogPosition { term: id.leader_id.term, leader: id.leader_id.node_id, index: id.index }
}

pub(super) fn position_in(position: proto::LogPosition) -> RaftLogId {
    log_id(position.term, position.leader, position.index)
}

/// First raft index that no node accepts: so far below the end of the numbers that the ones after a position can be computed.
const INDEX_END: u64 = 1 << 63;

/// The position in a message, if it names one.
fn position_in_message(field: &str, position: Option<proto::LogPosition>) -> Result<Option<RaftLogId>, String> {
    match position {
        Some(position) if position.index >= INDEX_END => {
            Err(format!("{field}: index {}: must be below {INDEX_END}", position.index))
        }
        position => Ok(position.map(position_in)),
    }
}

/// Converts an entry for sending to another replica.
pub(crate) fn entry_out(entry: Entry) -> proto::LogEntry {
    proto::LogEntry {
        term: entry.term,
        leader: entry.leader,
        index: entry.index,
        kind: entry.kind as u32,
        record_count: entry.record_count,
        max_timestamp: entry.max_timestamp,
        payload: entry.payload,
    }
}

/// Converts an entry received from another replica.
///
/// # Errors
/// The entry is not valid in a log.
pub(crate) fn entry_in(entry: proto::LogEntry) -> Result<Entry, String> {
    let kind = u8::try_from(entry.kind).ok().and_then(EntryKind::from_u8);
    let kind = kind.ok_or_else(|| format!("kind: {}: must be from 1 to 5", entry.kind))?;
    if kind == EntryKind::Data && entry.record_count == 0 {
        return Err("record_count: 0: a data entry takes at least 1 offset".into());
    }
    Ok(Entry {
        index: entry.index,
        term: entry.term,
        leader: entry.leader,
        kind,
        record_count: entry.record_count,
        max_timestamp: entry.max_timestamp,
        payload: entry.payload,
    })
}

pub(super) fn append_out(request: AppendEntriesRequest<TypeConfig>) -> proto::AppendRequest {
    proto::AppendRequest {
        vote: Some(vote_out(&request.vote)),
        previous: request.prev_log_id.as_ref().map(position_out),
        entries: request.entries.into_iter().map(|entry| entry_out(to_entry(entry))).collect(),
        committed: request.leader_commit.as_ref().map(position_out),
        traces: Vec::new(),
    }
}

pub(super) fn append_in(request: proto::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, String> {
    let entries = request.entries.into_iter().map(|entry| entry_in(entry).and_then(from_entry));
    let entries: Vec<RaftEntry> = entries.collect::<Result<_, _>>()?;
    let previous = position_in_message("previous", request.previous)?;
    let first = previous.as_ref().map(|previous| previous.index + 1);
    for (at, entry) in entries.iter().enumerate() {
        // Without a previous entry, the entries begin the log.
        let expected = first.unwrap_or(0) + at as u64;
        if entry.log_id.index != expected {
            return Err(format!("entries: index {}: must be {expected}", entry.log_id.index));
        }
    }
    Ok(AppendEntriesRequest {
        vote: vote_in(request.vote)?,
        prev_log_id: previous,
        entries,
        leader_commit: position_in_message("committed", request.committed)?,
    })
}

pub(super) fn append_done_out(response: &AppendEntriesResponse<TypeConfig>) -> proto::AppendResponse {
    use proto::append_response::Outcome;
    let outcome = match response {
        AppendEntriesResponse::Success => Outcome::Success(true),
        AppendEntriesResponse::PartialSuccess(stored) => {
            Outcome::Partial(proto::Partial { stored: stored.as_ref().map(position_out) })
        }
        AppendEntriesResponse::Conflict => Outcome::Conflict(true),
        AppendEntriesResponse::HigherVote(vote) => Outcome::HigherVote(vote_out(vote)),
    };
    proto::AppendResponse { outcome: Some(outcome) }
}

pub(super) fn append_done_in(response: proto::AppendResponse) -> Result<AppendEntriesResponse<TypeConfig>, String> {
    use proto::append_response::Outcome;
    Ok(match response.outcome.ok_or("outcome: missing: must be given")? {
        Outcome::Success(_) => AppendEntriesResponse::Success,
        Outcome::Partial(partial) => {
            AppendEntriesResponse::PartialSuccess(position_in_message("stored", partial.stored)?)
        }
        Outcome::Conflict(_) => AppendEntriesResponse::Conflict,
        Outcome::HigherVote(vote) => AppendEntriesResponse::HigherVote(vote_in(Some(vote))?),
    })
}

pub(super) fn ask_vote_out(request: &VoteRequest<TypeConfig>) -> proto::VoteRequest {
    proto::VoteRequest {
        vote: Some(vote_out(&request.vote)),
        last: request.last_log_id.as_ref().map(position_out),
        leadership_transfer: request.leadership_transfer,
        pre_vote: false,
    }
}

pub(super) fn ask_vote_in(request: proto::VoteRequest) -> Result<VoteRequest<TypeConfig>, String> {
    let mut vote = VoteRequest::new(vote_in(request.vote)?, position_in_message("last", request.last)?);
    vote.leadership_transfer = request.leadership_transfer;
    Ok(vote)
}

pub(super) fn voted_out(response: &VoteResponse<TypeConfig>) -> proto::VoteResponse {
    proto::VoteResponse {
        vote: Some(vote_out(&response.vote)),
        last: response.last_log_id.as_ref().map(position_out),
        granted: response.vote_granted,
        leads: false,
    }
}

pub(super) fn voted_in(response: proto::VoteResponse) -> Result<VoteResponse<TypeConfig>, String> {
    let last = position_in_message("last", response.last)?;
    Ok(VoteResponse::new(vote_in(response.vote)?, last, response.granted))
}
