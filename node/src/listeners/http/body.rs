//! Reads complete request bodies, within limits of size and time.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use serde::de::DeserializeOwned;

use crate::config::LimitsConfig;
use crate::listeners::intake::{BodyError, too_large};
use crate::model::{ApiError, Reason};

/// Reads a body until its end.
///
/// # Errors
/// RECORD_TOO_LARGE above `limits.request-bytes-max`, OVERLOADED above a budget of bytes in flight, MALFORMED_BODY when
/// the body is incomplete or arrives too slowly (`limits.body-timeout-ms`).
pub(super) async fn read(mut body: Body, limits: &LimitsConfig) -> Result<Bytes, ApiError> {
    let limit = limits.request_bytes_max;
    let announced = body.size_hint().lower();
    if announced > limit as u64 {
        return Err(too_large("body", usize::try_from(announced).unwrap_or(usize::MAX), limit));
    }
    let mut whole = BytesMut::new();
    let mut first: Option<Bytes> = None;
    loop {
        let Some(frame) = body.frame().await else { break };
        let frame = frame.map_err(|error| match BodyError::find(&error) {
            Some(refused) => refused.clone(),
            None => ApiError::new(Reason::MalformedBody, format!("body: incomplete: {error}")),
        })?;
        let Ok(data) = frame.into_data() else { continue };
        let bytes = first.as_ref().map_or(whole.len(), Bytes::len) + data.len();
        if bytes > limit {
            return Err(too_large("body", bytes, limit));
        }
        // A small body arrives in one piece, which is returned without a copy.
        match first.take() {
            None if whole.is_empty() => first = Some(data),
            None => whole.extend_from_slice(&data),
            Some(piece) => {
                whole.reserve(usize::try_from(announced).unwrap_or(0).max(bytes));
                whole.extend_from_slice(&piece);
                whole.extend_from_slice(&data);
            }
        }
    }
    Ok(first.unwrap_or_else(|| whole.freeze()))
}

/// Parses a JSON body.
///
/// # Errors
/// MALFORMED_BODY with the line and the column of the error.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        ApiError::new(Reason::MalformedBody, format!("body: {error}"))
            .with("line", error.line())
            .with("column", error.column())
    })
}
