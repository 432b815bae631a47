//! Reads: one record (`GET /?offset=N`), many (`GET .../records`), and the offsets of a partition.
//!
//! With `wait_ms` a read at the end of the partition waits for a record (long poll). When no record arrives, a read of
//! one record returns the same error as without waiting (404 with the range), and a read of many records returns an
//! empty list.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use chronicle_records::Record;
use http::header::{CONTENT_TYPE, VARY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};

use super::append::{HEADERS, KEY, TIMESTAMP};
use super::json::{HeadersDocument, RecordDocument, to_base64};
use super::problem::Problem;
use super::query::Query;
use super::{Call, accept, document};
use crate::broker::Route;
use crate::listeners::context::Context;
use crate::listeners::decode;
use crate::model::{ApiError, Fetch, Position, Reason};
use crate::telemetry::Listener;

const OFFSET: &str = "chronicle-offset";
const NULL_VALUE: &str = "chronicle-null-value";
/// Limit of key and headers of a raw response, in bytes of HTTP headers. Common clients reject longer headers.
const RAW_HEADER_BYTES_MAX: usize = 8 << 10;
/// Limit of one response in bytes when a read sets none.
const FETCH_BYTES_DEFAULT: usize = 1 << 20;

/// Returns a description of the service, for a person who opens its address in a browser.
pub(super) fn service(context: &Context, call: &Call) -> Result<Response<Body>, Problem> {
    accept::choose(&call.headers, &[accept::JSON])?;
    let service = json!({
        "service": "chronicle",
        "version": env!("CARGO_PKG_VERSION"),
        "node": context.broker.config().node.name,
        "links": {"api": "/openapi.json", "topics": "/v1/topics", "servers": "/v1/servers", "read": "/?offset=0"},
    });
    document(StatusCode::OK, &service)
}

fn wait(query: &Query) -> Result<Duration, ApiError> {
    Ok(Duration::from_millis(query.number("wait_ms", 0u64)?.unwrap_or(0)))
}

pub(super) async fn one(context: &Context, call: Call) -> Result<Response<Body>, Problem> {
    let form = accept::choose(&call.headers, &[accept::JSON, accept::OCTETS])?;
    let query = Query::parse(&call.uri, &["offset", "wait_ms"])?;
    let offset = query
        .number("offset", 0)?
        .ok_or_else(|| ApiError::invalid("offset", "missing", "must be given to read a record"))?;
    let mut fetch =
        Fetch { target: call.target()?, from: Position::Offset(offset), max_bytes: 1, max_wait: wait(&query)? };
    let (fetched, records, hold) = loop {
        let (fetched, hold) = context.fetch(&call.caller, fetch.clone(), Route::Leader).await?;
        let (records, next) = decode::records(&fetched, Some(1), usize::MAX)?;
        // There may be no record left at or after the offset in what was read.
        if !records.is_empty() || next <= fetched.start_offset {
            break (fetched, records, hold);
        }
        fetch.from = Position::Offset(next);
    };
    let Some(record) = records.first() else {
        let (earliest, next) = (fetched.log_start_offset, fetched.high_watermark);
        let message =
            format!("offset: {offset}: no record arrived in time: must be at least {earliest} and below {next}");
        return Err(ApiError::new(Reason::OffsetOutOfRange, message)
            .with("earliest", earliest)
            .with("next", next)
            .into());
    };
    let mut response = match form {
        accept::OCTETS => raw(record)?,
        _ => document(StatusCode::OK, &One { record: RecordDocument(record) })?,
    };
    context.metrics.read(Listener::Http, 1);
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    response.extensions_mut().insert(Arc::new(hold));
    Ok(response)
}

#[derive(Serialize)]
struct One<'a> {
    record: RecordDocument<'a>,
}

/// Returns the raw form: the value as the body, everything else as HTTP headers.
fn raw(record: &Record) -> Result<Response<Body>, Problem> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(accept::OCTETS));
    headers.insert(OFFSET, record.offset.into());
    headers.insert(TIMESTAMP, record.timestamp.into());
    let key = record.key.as_ref().map(|key| to_base64(key));
    let record_headers = match record.headers.as_slice() {
        [] => None,
        headers => Some(ascii_json(&HeadersDocument(headers))?),
    };
    let bytes = key.as_ref().map_or(0, String::len) + record_headers.as_ref().map_or(0, String::len);
    if bytes > RAW_HEADER_BYTES_MAX {
        let rule = format!("key and headers take {bytes} bytes as HTTP headers: at most {RAW_HEADER_BYTES_MAX}");
        return Err(accept::not_acceptable(format!(
            "accept: {}: {rule}; read the record as {}",
            accept::OCTETS,
            accept::JSON
        )));
    }
    for (name, value) in [(KEY, key), (HEADERS, record_headers)] {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(name, value);
        }
    }
    if record.value.is_none() {
        headers.insert(NULL_VALUE, HeaderValue::from_static("true"));
    }
    let mut response = Response::new(Body::from(record.value.clone().unwrap_or_default()));
    *response.headers_mut() = headers;
    Ok(response)
}

/// Returns JSON that consists of printable ASCII only, as HTTP headers require.
fn ascii_json(value: &impl Serialize) -> Result<String, ApiError> {
    let text = serde_json::to_string(value)
        .map_err(|error| ApiError::new(Reason::Internal, format!("headers: cannot be written as JSON: {error}")))?;
    let mut ascii = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() && c != '\x7f' {
            ascii.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    Ok(ascii)
}

#[derive(Serialize)]
struct Many<'a> {
    records: Vec<RecordDocument<'a>>,
    next_offset: i64,
    high_watermark: i64,
    log_start_offset: i64,
}

const MANY_PARAMETERS: [&str; 6] = ["offset", "timestamp", "from", "max_records", "max_bytes", "wait_ms"];

pub(super) async fn many(context: &Context, call: Call) -> Result<Response<Body>, Problem> {
    accept::choose(&call.headers, &[accept::JSON])?;
    let query = Query::parse(&call.uri, &MANY_PARAMETERS)?;
    let max_records = query.number("max_records", 1usize)?;
    let max_bytes = query.number("max_bytes", 1usize)?.unwrap_or(FETCH_BYTES_DEFAULT);
    let max_bytes = max_bytes.min(context.config().limits.fetch_bytes_max);
    let fetch = Fetch { target: call.target()?, from: position(&query)?, max_bytes, max_wait: wait(&query)? };
    let (fetched, hold) = context.fetch(&call.caller, fetch, Route::Leader).await?;
    let (records, next_offset) = decode::records(&fetched, max_records, max_bytes)?;
    context.metrics.read(Listener::Http, records.len());
    let many = Many {
        records: records.iter().map(RecordDocument).collect(),
        next_offset,
        high_watermark: fetched.high_watermark,
        log_start_offset: fetched.log_start_offset,
    };
    let mut response = document(StatusCode::OK, &many)?;
    response.extensions_mut().insert(Arc::new(hold));
    Ok(response)
}

/// Returns the start of a read: from at most one of `offset`, `timestamp` and `from`. Default: the first retained
/// record.
pub(super) fn position(query: &Query) -> Result<Position, ApiError> {
    let given = ["offset", "timestamp", "from"].into_iter().filter(|name| query.text(name).is_some());
    if let Some(second) = given.clone().nth(1) {
        let value = query.text(second).unwrap_or_default();
        return Err(ApiError::invalid(second, value, "only one of offset, timestamp and from may be given"));
    }
    if let Some(offset) = query.number("offset", 0)? {
        return Ok(Position::Offset(offset));
    }
    if let Some(time) = query.number("timestamp", 0)? {
        return Ok(Position::Timestamp(time));
    }
    match query.text("from") {
        None | Some("earliest") => Ok(Position::Earliest),
        Some("latest") => Ok(Position::Latest),
        Some(other) => Err(ApiError::invalid("from", other, "must be earliest or latest")),
    }
}

pub(super) async fn offsets(context: &Context, call: Call) -> Result<Response<Body>, Problem> {
    accept::choose(&call.headers, &[accept::JSON])?;
    let query = Query::parse(&call.uri, &["timestamp"])?;
    let time = query.number("timestamp", 0)?;
    let offsets = context.broker.for_caller(&call.caller).offsets(&call.target()?, time, Route::Leader).await?;
    let mut answer = json!({"earliest": offsets.earliest, "next": offsets.next});
    if time.is_some() {
        answer["at_timestamp"] = match offsets.at_timestamp {
            Some((offset, timestamp)) => json!({"offset": offset, "timestamp": timestamp}),
            None => Value::Null,
        };
    }
    document(StatusCode::OK, &answer)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::BodyExt;

    use super::*;

    fn parse(query: &str) -> Result<Position, ApiError> {
        position(&Query::parse(&format!("/?{query}").parse().unwrap(), &MANY_PARAMETERS)?)
    }

    #[test]
    fn a_read_starts_at_one_position() {
        assert_eq!(parse("").unwrap(), Position::Earliest);
        assert_eq!(parse("offset=3").unwrap(), Position::Offset(3));
        assert_eq!(parse("timestamp=3").unwrap(), Position::Timestamp(3));
        assert_eq!(parse("from=latest").unwrap(), Position::Latest);
        assert_eq!(parse("from=middle").unwrap_err().message, "from: middle: must be earliest or latest");
        let error = parse("offset=3&from=latest").unwrap_err();
        assert_eq!(error.message, "from: latest: only one of offset, timestamp and from may be given");
    }

    fn record(key: Option<&'static [u8]>, value: Option<&'static [u8]>) -> Record {
        let headers = vec![(Bytes::from_static("näme".as_bytes()), Some(Bytes::from_static("𝄞".as_bytes())))];
        Record {
            offset: 4,
            timestamp: 5,
            key: key.map(Bytes::from_static),
            value: value.map(Bytes::from_static),
            headers,
        }
    }

    #[tokio::test]
    async fn a_raw_answer_has_the_value_as_body_and_the_rest_as_ascii_headers() {
        let response = raw(&record(Some(b"k"), Some(b"\x00\xff"))).unwrap();
        let headers = response.headers().clone();
        assert_eq!(headers["chronicle-offset"], "4");
        assert_eq!(headers["chronicle-timestamp"], "5");
        assert_eq!(headers["chronicle-key"], "aw==");
        assert_eq!(headers["chronicle-headers"], r#"{"n\u00e4me":"\ud834\udd1e"}"#);
        assert_eq!(&response.into_body().collect().await.unwrap().to_bytes()[..], b"\x00\xff");
        let again = super::super::json::parse_headers(headers["chronicle-headers"].as_bytes()).unwrap();
        assert_eq!(again, [("näme".to_owned(), Some(Bytes::from_static("𝄞".as_bytes())))]);
    }

    #[test]
    fn a_null_value_is_distinguished_from_an_empty_one_and_a_huge_key_is_refused_with_406() {
        assert_eq!(raw(&record(None, None)).unwrap().headers()["chronicle-null-value"], "true");
        assert!(!raw(&record(None, Some(b""))).unwrap().headers().contains_key("chronicle-null-value"));
        let huge = raw(&record(Some(&[7; RAW_HEADER_BYTES_MAX]), None)).unwrap_err();
        assert_eq!(huge.document()["status"], 406);
    }
}
