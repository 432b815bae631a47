//! Appends: `POST /` and `POST /v1/topics/{topic}/partitions/{partition}/records`.
//!
//! With `Content-Type: application/json` the body is a document (see `json`). With any other content type, or none, the
//! body is the value of one record. Then everything else is in HTTP headers (`Chronicle-Key`: base64;
//! `Chronicle-Headers`: a JSON object as in the document; `Chronicle-Timestamp`: milliseconds) and in query parameters
//! (expectations, idempotent producer).

use axum::body::Body;
use bytes::Bytes;
use chronicle_records::Compression;
use http::{HeaderMap, Response, StatusCode};
use serde::Serialize;

use super::json::{self, AppendBody};
use super::problem::Problem;
use super::query::Query;
use super::{Call, accept, body, document};
use crate::broker::Route;
use crate::listeners::context::Context;
use crate::model::{ApiError, NewRecord, Produce, ProducePayload, ProducerIdentity, TopicPartition};
use crate::telemetry::Listener;

pub(super) const KEY: &str = "chronicle-key";
pub(super) const HEADERS: &str = "chronicle-headers";
pub(super) const TIMESTAMP: &str = "chronicle-timestamp";

const PARAMETERS: [&str; 5] =
    ["expected_next_offset", "expected_key_version", "producer_id", "producer_epoch", "producer_sequence"];

/// The response to an append.
#[derive(Serialize)]
pub(super) struct AppendDocument {
    /// Offset of the first record.
    pub(super) offset: i64,
    /// Number of records; only when the request has `records`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) count: Option<i32>,
    /// True when an idempotent producer repeated a request.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) duplicate: bool,
}

pub(super) async fn append(context: &Context, call: Call) -> Result<Response<Body>, Problem> {
    accept::choose(&call.headers, &[accept::JSON])?;
    let (target, caller) = (call.target()?, call.caller);
    let (request, single) = if accept::is_json(&call.headers)? {
        Query::parse(&call.uri, &[])?;
        let bytes = body::read(call.body, &context.config().limits).await?;
        body::parse::<AppendBody>(&bytes)?.convert(target)?
    } else {
        let query = Query::parse(&call.uri, &PARAMETERS)?;
        let value = body::read(call.body, &context.config().limits).await?;
        (raw(target, &call.headers, &query, value)?, true)
    };
    let produced = context.produce(Listener::Http, &caller, request, Route::Leader).await?;
    let count = (!single).then_some(produced.record_count);
    document(StatusCode::OK, &AppendDocument { offset: produced.base_offset, count, duplicate: produced.duplicate })
}

/// Returns the request of a raw append: one record, with the whole body as its value.
fn raw(target: TopicPartition, headers: &HeaderMap, query: &Query, value: Bytes) -> Result<Produce, ApiError> {
    let header = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let key = header(KEY).map(|text| json::base64(&text, || KEY.to_owned())).transpose()?;
    let timestamp_ms = match header(TIMESTAMP) {
        None => None,
        Some(text) => Some(text.parse().ok().filter(|time| *time >= 0).ok_or_else(|| {
            ApiError::invalid(TIMESTAMP, &text, "must be a number of milliseconds since the Unix epoch, at least 0")
        })?),
    };
    let record_headers = match headers.get(HEADERS) {
        None => Vec::new(),
        Some(text) => json::parse_headers(text.as_bytes())?,
    };
    let expectation = json::expectation(
        query.number("expected_next_offset", 0)?,
        query.number("expected_key_version", -1)?,
        key.as_ref(),
    )?;
    let producer = producer(query)?;
    let records = vec![NewRecord { key, value: Some(value), headers: record_headers, timestamp_ms }];
    Ok(Produce {
        target,
        payload: ProducePayload::Records { records, compression: Compression::None },
        producer,
        expectation,
    })
}

/// Returns the idempotent producer. The request must have all three parameters or none.
fn producer(query: &Query) -> Result<Option<ProducerIdentity>, ApiError> {
    let id = query.number("producer_id", 0)?;
    let epoch = query.number("producer_epoch", 0)?;
    let sequence = query.number("producer_sequence", 0)?;
    match (id, epoch, sequence) {
        (None, None, None) => Ok(None),
        (Some(id), Some(epoch), Some(sequence)) => json::identity(id, epoch, sequence).map(Some),
        _ => {
            let rule = "must all be given, or none: producer_id, producer_epoch, producer_sequence";
            Err(ApiError::invalid("producer", "incomplete", rule))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Expectation, Reason};

    fn convert(query: &str, headers: &[(&'static str, &str)]) -> Result<Produce, ApiError> {
        let query = Query::parse(&format!("/?{query}").parse().unwrap(), &PARAMETERS)?;
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let target = TopicPartition { topic: "t".into(), partition: 0 };
        raw(target, &headers, &query, Bytes::from_static(b"body"))
    }

    #[test]
    fn the_body_is_the_value_and_headers_carry_the_rest() {
        let headers =
            [(KEY, "aw=="), (HEADERS, r#"{"trace": "x", "b": [null, {"base64": "/w=="}]}"#), (TIMESTAMP, "12")];
        let request = convert("expected_key_version=-1&producer_id=3&producer_epoch=0&producer_sequence=5", &headers);
        let request = request.unwrap();
        let ProducePayload::Records { records, .. } = request.payload else { panic!("a batch") };
        assert_eq!(records[0].value.as_deref(), Some(&b"body"[..]));
        assert_eq!(records[0].timestamp_ms, Some(12));
        assert_eq!(records[0].headers.len(), 3);
        let key = Bytes::from_static(b"k");
        assert_eq!(request.expectation, Some(Expectation::KeyVersion { key, version: -1 }));
        assert_eq!(request.producer, Some(ProducerIdentity { producer_id: 3, epoch: 0, sequence: 5 }));
    }

    #[test]
    fn refusals_name_the_header_or_parameter() {
        for (query, headers, reason, start) in [
            ("", &[(KEY, "?")][..], Reason::InvalidBase64, "chronicle-key: is not base64"),
            ("", &[(HEADERS, "[]")], Reason::MalformedBody, "chronicle-headers: is not a JSON object"),
            ("", &[(TIMESTAMP, "-1")], Reason::InvalidRequest, "chronicle-timestamp: -1: must be"),
            ("producer_id=1", &[], Reason::InvalidRequest, "producer: incomplete: must all be given"),
            ("producer_epoch=40000", &[], Reason::InvalidRequest, "producer_epoch: 40000: must be a whole number"),
            (
                "expected_key_version=1",
                &[],
                Reason::InvalidRequest,
                "expected_key_version: 1: the record must have a key",
            ),
            ("offset=1", &[], Reason::InvalidRequest, "query: offset: must be one of expected_next_offset"),
        ] {
            let error = convert(query, headers).unwrap_err();
            assert_eq!(error.reason, reason);
            assert!(error.message.starts_with(start), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn arbitrary_headers_never_panic(
            key in "[ -~]{0,20}", headers in "[ -~]{0,20}", timestamp in "[0-9a-z\\-]{0,20}",
        ) {
            let _ = convert("", &[(KEY, &key), (HEADERS, &headers), (TIMESTAMP, &timestamp)]);
        }
    }
}
