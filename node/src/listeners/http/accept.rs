//! Content types: `Content-Type` of request bodies, `Accept` for responses (RFC 9110, sections 8.3 and 12.5.1).

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::problem::Problem;
use crate::model::{ApiError, Reason};

pub(super) const JSON: &str = "application/json";
pub(super) const OCTETS: &str = "application/octet-stream";
pub(super) const JSON_VALUE: HeaderValue = HeaderValue::from_static(JSON);

/// Returns whether the body is JSON. With any other content type, or none, the body is a raw value.
///
/// # Errors
/// UNSUPPORTED_MEDIA_TYPE for JSON with a charset other than UTF-8.
pub(super) fn is_json(headers: &HeaderMap) -> Result<bool, ApiError> {
    let Some(content_type) = headers.get(CONTENT_TYPE) else { return Ok(false) };
    let text = String::from_utf8_lossy(content_type.as_bytes());
    let mut parts = text.split(';').map(str::trim);
    if !parts.next().is_some_and(|essence| essence.eq_ignore_ascii_case(JSON)) {
        return Ok(false);
    }
    for parameter in parts {
        let Some((name, value)) = parameter.split_once('=') else { continue };
        if name.eq_ignore_ascii_case("charset") && !value.trim_matches('"').eq_ignore_ascii_case("utf-8") {
            return Err(unsupported(format!("content-type: {text}: JSON must be UTF-8")));
        }
    }
    Ok(true)
}

/// Checks that the body is JSON, for endpoints that accept nothing else.
///
/// # Errors
/// UNSUPPORTED_MEDIA_TYPE for anything else.
pub(super) fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    if is_json(headers)? {
        return Ok(());
    }
    let given = headers.get(CONTENT_TYPE).map_or("none".into(), |value| String::from_utf8_lossy(value.as_bytes()));
    Err(unsupported(format!("content-type: {given}: must be {JSON}")))
}

fn unsupported(message: String) -> ApiError {
    ApiError::new(Reason::UnsupportedMediaType, message)
}

/// Returns the media type of `offers` that the client prefers; the first one when it prefers several equally.
///
/// # Errors
/// UNSUPPORTED_MEDIA_TYPE with status 406 when the client accepts none of them.
pub(super) fn choose(headers: &HeaderMap, offers: &'static [&'static str]) -> Result<&'static str, Problem> {
    let accept: Vec<_> =
        headers.get_all(ACCEPT).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    let accept = accept.join(",");
    if accept.trim().is_empty() {
        return Ok(offers[0]);
    }
    let mut best = None;
    for offer in offers {
        let quality = quality(&accept, offer);
        if quality > best.map_or(0, |(quality, _)| quality) {
            best = Some((quality, *offer));
        }
    }
    best.map(|(_, offer)| offer)
        .ok_or_else(|| not_acceptable(format!("accept: {accept}: must allow {}", offers.join(" or "))))
}

/// Returns the error for a response that is not available in an accepted media type.
pub(super) fn not_acceptable(message: String) -> Problem {
    Problem::from(unsupported(message)).with_status(StatusCode::NOT_ACCEPTABLE)
}

/// Returns the quality of `offer`, in thousandths, from the most specific matching range; 0 when no range matches.
fn quality(accept: &str, offer: &str) -> u32 {
    let (kind, _) = offer.split_once('/').unwrap_or((offer, ""));
    let mut found = (0, 0);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
        let specificity = if essence == offer {
            3
        } else if essence.strip_suffix("/*") == Some(kind) {
            2
        } else if essence == "*/*" {
            1
        } else {
            continue;
        };
        let quality = parts
            .find_map(|parameter| parameter.strip_prefix("q=").or_else(|| parameter.strip_prefix("Q=")))
            .map_or(1000, |q| q.trim().parse::<f32>().map_or(0, |q| (q.clamp(0.0, 1.0) * 1000.0) as u32));
        if specificity > found.0 {
            found = (specificity, quality);
        }
    }
    found.1
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &[&str] = &[JSON, OCTETS];

    fn accepting(accept: &str) -> Result<&'static str, Problem> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        choose(&headers, BOTH)
    }

    #[test]
    fn the_best_liked_form_is_chosen_and_json_when_in_doubt() {
        for (accept, chosen) in [
            ("*/*", JSON),
            ("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8", JSON),
            ("application/octet-stream", OCTETS),
            ("Application/*", JSON),
            ("application/json;q=0.5, application/octet-stream", OCTETS),
            ("application/json;q=0, */*", OCTETS),
            ("", JSON),
        ] {
            assert_eq!(accepting(accept).unwrap(), chosen, "{accept}");
        }
        assert_eq!(choose(&HeaderMap::new(), BOTH).unwrap(), JSON);
    }

    #[test]
    fn a_form_that_is_not_offered_is_refused_with_406() {
        for accept in ["text/html", "application/json;q=0", "application/json;q=x", ";;;,,"] {
            let problem = accepting(accept).unwrap_err();
            assert_eq!(problem.document()["status"], 406, "{accept}");
            assert_eq!(problem.document()["reason"], "UNSUPPORTED_MEDIA_TYPE");
        }
    }

    #[test]
    fn json_is_distinguished_from_raw_values_by_content_type() {
        let with = |value: &str| HeaderMap::from_iter([(CONTENT_TYPE, value.parse().unwrap())]);
        assert!(is_json(&with("application/json")).unwrap());
        assert!(is_json(&with("Application/JSON; charset=UTF-8")).unwrap());
        assert!(!is_json(&with("text/plain")).unwrap());
        assert!(!is_json(&HeaderMap::new()).unwrap());
        assert_eq!(
            is_json(&with("application/json; charset=latin1")).unwrap_err().reason,
            Reason::UnsupportedMediaType
        );
        let error = require_json(&with("text/plain")).unwrap_err();
        assert_eq!(error.message, "content-type: text/plain: must be application/json");
    }
}
