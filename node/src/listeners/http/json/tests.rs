use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::body::parse;
use super::*;

fn convert(body: &Value) -> Result<(Produce, bool), ApiError> {
    convert_text(&body.to_string())
}

fn convert_text(body: &str) -> Result<(Produce, bool), ApiError> {
    let body: AppendBody = parse(body.as_bytes())?;
    body.convert(TopicPartition { topic: "t".into(), partition: 0 })
}

fn records(body: &Value) -> Vec<NewRecord> {
    match convert(body).unwrap().0.payload {
        ProducePayload::Records { records, .. } => records,
        ProducePayload::Batch(_) => panic!("a batch"),
    }
}

#[test]
fn the_issue_s_example_is_one_record() {
    let body = json!({"record": {"value": "aGVsbG8=", "key": "aw==", "headers": {"trace": "abc"}}});
    assert!(convert(&body).unwrap().1);
    let record = &records(&body)[0];
    assert_eq!(record.value.as_deref(), Some(&b"hello"[..]));
    assert_eq!(record.key.as_deref(), Some(&b"k"[..]));
    assert_eq!(record.headers, [("trace".to_owned(), Some(Bytes::from_static(b"abc")))]);
    assert_eq!(record.timestamp_ms, None);
}

#[test]
fn bytes_have_three_forms_and_headers_keep_order_repetition_and_null() {
    let body = r#"{"records": [
        {"value": {"text": "ü"}, "key": {"base64": ""}, "timestamp": 5,
         "headers": {"z": ["1", null, {"base64": "/w=="}], "a": {"text": "x"}, "n": null}},
        {"value": null}
    ]}"#;
    let (request, single) = convert_text(body).unwrap();
    assert!(!single);
    let ProducePayload::Records { records, .. } = request.payload else { panic!("a batch") };
    assert_eq!(records[0].value.as_deref(), Some("ü".as_bytes()));
    assert_eq!(records[0].key.as_deref(), Some(&b""[..]));
    let headers: Vec<_> = records[0].headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
    let expected: [(&str, Option<&[u8]>); 5] =
        [("z", Some(b"1")), ("z", None), ("z", Some(b"\xff")), ("a", Some(b"x")), ("n", None)];
    assert_eq!(headers, expected);
    assert_eq!(records[1], NewRecord::default());
}

#[test]
fn refusals_name_field_value_and_rule() {
    let record = json!({"value": ""});
    for (body, reason, message) in [
        (json!({}), Reason::InvalidRequest, "record: missing: must be given, or `records`"),
        (json!({"records": []}), Reason::InvalidRequest, "records: empty: must have at least one record"),
        (
            json!({"record": record, "records": [record]}),
            Reason::InvalidRequest,
            "records: given: must be absent beside `record`",
        ),
        (
            json!({"records": [record, {"value": "", "timestamp": -1}]}),
            Reason::InvalidRequest,
            "records[1].timestamp: -1: must be at least 0",
        ),
        (
            json!({"record": record, "producer": {"id": 1, "epoch": 0, "sequence": -1}}),
            Reason::InvalidRequest,
            "producer.sequence: -1: must be at least 0",
        ),
        (
            json!({"record": record, "expected_key_version": 3}),
            Reason::InvalidRequest,
            "expected_key_version: 3: the record must have a key",
        ),
        (
            json!({"record": record, "expected_next_offset": -1}),
            Reason::InvalidRequest,
            "expected_next_offset: -1: must be at least 0",
        ),
        (
            json!({"record": record, "compression": "brotli"}),
            Reason::UnsupportedCompression,
            "compression: \"brotli\": must be none, gzip, snappy, lz4 or zstd",
        ),
        (
            json!({"record": {"value": "", "headers": {"": "x"}}}),
            Reason::InvalidRequest,
            "record.headers: empty name: must have at least one character",
        ),
    ] {
        let error = convert(&body).unwrap_err();
        assert_eq!((error.reason, error.message.as_str()), (reason, message));
    }
}

#[test]
fn bad_base64_names_its_field() {
    for (body, field) in [
        (json!({"record": {"value": "*"}}), "record.value"),
        (json!({"records": [{"value": ""}, {"value": "", "key": "a"}]}), "records[1].key"),
        (json!({"record": {"value": "", "headers": {"h": {"base64": "?"}}}}), "record.headers.h"),
    ] {
        let error = convert(&body).unwrap_err();
        assert_eq!((error.reason, error.value("field")), (Reason::InvalidBase64, Some(field)));
        assert!(error.message.starts_with(&format!("{field}: is not base64")), "{error}");
    }
}

#[test]
fn malformed_json_names_line_and_column_and_unknown_fields_are_refused() {
    let error = convert_text("{\n  \"record\": {\"value\": }\n}").unwrap_err();
    assert_eq!(
        (error.reason, error.value("line"), error.value("column")),
        (Reason::MalformedBody, Some("2"), Some("23"))
    );
    for (body, part) in [
        (json!({"record": {"value": "", "colour": 1}}), "unknown field `colour`"),
        (json!({"recrod": {}}), "unknown field `recrod`"),
        (json!({"record": {}}), "missing field `value`"),
        (json!({"record": {"value": 5}}), "expected a string, {\"base64\": ...} or {\"text\": ...}"),
        (json!({"record": {"value": {"hex": ""}}}), "unknown field `hex`"),
        (json!({"record": {"value": {}}}), "invalid length 0"),
        (json!({"record": {"value": {"text": "", "base64": ""}}}), "invalid length 2"),
    ] {
        let error = convert(&body).unwrap_err();
        assert_eq!(error.reason, Reason::MalformedBody);
        assert!(error.message.contains(part), "{error}");
    }
}

#[test]
fn expectations_and_producers_are_passed_on() {
    let body = json!({"record": {"value": "", "key": "aw=="}, "expected_key_version": -1,
        "producer": {"id": 4, "epoch": 1, "sequence": 9}, "compression": "zstd"});
    let request = convert(&body).unwrap().0;
    assert_eq!(request.expectation, Some(Expectation::KeyVersion { key: Bytes::from_static(b"k"), version: -1 }));
    assert_eq!(request.producer, Some(ProducerIdentity { producer_id: 4, epoch: 1, sequence: 9 }));
    let body = json!({"record": {"value": ""}, "expected_next_offset": 0});
    assert_eq!(convert(&body).unwrap().0.expectation, Some(Expectation::NextOffset(0)));
}

#[test]
fn a_record_that_is_read_can_be_written_again() {
    let record = Record {
        offset: 7,
        timestamp: 1,
        key: None,
        value: Some(Bytes::from_static(b"\xff\x00")),
        headers: vec![
            (Bytes::from_static(b"b"), Some(Bytes::from_static(b"1"))),
            (Bytes::from_static(b"a"), None),
            (Bytes::from_static(b"b"), Some(Bytes::from_static(b"\xfe"))),
        ],
    };
    let text = serde_json::to_string(&RecordDocument(&record)).unwrap();
    assert_eq!(text, r#"{"offset":7,"timestamp":1,"value":"/wA=","headers":{"b":["1",{"base64":"/g=="}],"a":null}}"#);
    let mut again: Value = serde_json::from_str(&text).unwrap();
    again.as_object_mut().unwrap().remove("offset");
    assert_eq!(records(&json!({"record": again}))[0].value, record.value);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_bytes_as_a_body_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(body) = parse::<AppendBody>(&body) {
            let _ = body.convert(TopicPartition { topic: "t".into(), partition: 0 });
        }
    }

    #[test]
    fn bodies_made_of_json_pieces_never_panic(
        body in r#"(\{|\}|\[|\]|:|,|"record"|"records"|"value"|"headers"|"base64"|"text"|"a"|null|-1|1e9){0,20}"#,
    ) {
        let _ = convert_text(&body);
        let _ = parse_headers(body.as_bytes());
    }

    #[test]
    fn any_value_survives_writing_and_reading(
        value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..60)),
        names in proptest::collection::vec("[a-c]", 0..5), header in proptest::collection::vec(any::<u8>(), 0..5),
    ) {
        let value = value.map(Bytes::from);
        let record = Record {
            offset: 0,
            timestamp: 0,
            key: value.clone(),
            value: value.clone(),
            headers: names.iter().map(|name| (Bytes::from(name.clone()), Some(Bytes::from(header.clone())))).collect(),
        };
        let mut document = serde_json::to_value(RecordDocument(&record)).unwrap();
        document.as_object_mut().unwrap().remove("offset");
        let again = records(&json!({"record": document})).remove(0);
        prop_assert_eq!((&again.key, &again.value), (&value, &value));
        let mut sorted: Vec<_> = record.headers.iter().map(|(name, value)| (name.to_vec(), value.clone())).collect();
        sorted.sort();
        let mut headers: Vec<_> =
            again.headers.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect();
        headers.sort();
        prop_assert_eq!(headers, sorted);
    }
}
