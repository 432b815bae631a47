//! Mutated bodies, paths, query parameters and headers of HTTP requests.

use chronicle_fuzz::Fuzz;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::query::Query;
use super::{accept, body, json, read};
use crate::model::TopicPartition;

#[test]
fn mutated_bodies_are_parsed_or_refused() {
    Fuzz::new("http-bodies")
        .seed(r#"{"record":{"key":"a2V5","value":{"text":"v"},"headers":{"a":["b",null,{"base64":"eA=="}]},"timestamp_ms":7}}"#)
        .seed(r#"{"records":[{"value":"dg=="},{"key":null,"value":null}],"producer":{"id":1,"epoch":0,"sequence":9},"compression":"zstd","expected_next_offset":4}"#)
        .seed(r#"{"record":{"key":"a2V5","value":""},"expected_key_version":-1}"#)
        .seed(r#"{"trace":"x","more":[{"text":"y"}]}"#)
        .allowance(64, 64 << 10)
        .run(|bytes| {
            let target = TopicPartition { topic: "t".into(), partition: 0 };
            let parsed = body::parse::<json::AppendBody>(bytes).and_then(|body| body.convert(target));
            let headers = json::parse_headers(bytes);
            let shown = |error: Option<String>| error.unwrap_or_else(|| "taken".into());
            format!("{} {}", shown(parsed.err().map(|e| e.message)), shown(headers.err().map(|e| e.message)))
        });
}

#[test]
fn mutated_targets_and_headers_are_understood_or_refused() {
    Fuzz::new("http-requests")
        .seed("/v1/topics/a%20b/partitions/0/records?offset=12&max_bytes=1\naccept: application/json;q=0.5, */*")
        .seed("/?timestamp=99&wait_ms=3\ncontent-type: application/json; charset=utf-8")
        .seed("/v1/topics?from=latest&max_records=+7\naccept: text/plain, application/octet-stream;q=0")
        .run(|bytes| {
            let text = String::from_utf8_lossy(bytes);
            let (target, rest) = text.split_once('\n').unwrap_or((&text, ""));
            let mut headers = HeaderMap::new();
            for line in rest.lines().take(20) {
                let Some((name, value)) = line.split_once(": ") else { continue };
                if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_bytes(value.as_bytes())) {
                    headers.append(name, value);
                }
            }
            let json = accept::is_json(&headers).is_ok();
            let chosen = accept::choose(&headers, &[accept::JSON]).is_ok();
            let Ok(uri) = target.parse::<Uri>() else { return "no target".into() };
            let known = ["offset", "timestamp", "from", "max_records", "max_bytes", "wait_ms"];
            let position = Query::parse(&uri, &known).and_then(|query| {
                query.number("max_records", 1_usize)?;
                read::position(&query)
            });
            format!("{json} {chosen} {:?}", position.map_err(|error| error.message))
        });
}
