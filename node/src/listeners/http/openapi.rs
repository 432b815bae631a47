//! The description of the HTTP interface (OpenAPI 3.1), served at `/openapi.json`.
//!
//! `openapi.json` is written by hand. Tests compare it with the routes, the parameters and the documents in the
//! responses of the handlers.

use std::sync::LazyLock;

use axum::body::Body;
use bytes::Bytes;
use http::Response;
use http::header::CONTENT_TYPE;
use serde_json::Value;

use super::accept::JSON_VALUE;

const TEXT: &str = include_str!("openapi.json");

/// Returns the description with the version of this build.
static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| match serde_json::from_str::<Value>(TEXT) {
    Ok(mut document) => {
        document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
        document.to_string().into()
    }
    // Cannot happen: a test parses the file. If it does, the text is served without the version.
    Err(_) => Bytes::from_static(TEXT.as_bytes()),
});

pub(super) fn response() -> Response<Body> {
    let mut response = Response::new(Body::from(DOCUMENT.clone()));
    response.headers_mut().insert(CONTENT_TYPE, JSON_VALUE);
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use chronicle_records::Record;
    use serde_json::json;

    use super::super::append::AppendDocument;
    use super::super::json::RecordDocument;
    use super::super::problem::Problem;
    use super::super::{ROUTES, topics};
    use super::*;
    use crate::model::{ApiError, Reason, Topic, TopicSettings};

    fn openapi() -> Value {
        serde_json::from_str(TEXT).unwrap()
    }

    #[test]
    fn the_description_has_exactly_the_routes() {
        let routes: BTreeSet<_> =
            ROUTES.iter().map(|(method, path, _)| ((*path).to_owned(), (*method).to_owned())).collect();
        let document = openapi();
        let mut described = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys().filter(|key| *key != "parameters") {
                described.insert((path.clone(), method.clone()));
            }
        }
        assert_eq!(described, routes);
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_schema_is_used() {
        fn references(value: &Value, found: &mut BTreeSet<String>) {
            match value {
                Value::Object(members) => {
                    if let Some(Value::String(reference)) = members.get("$ref") {
                        found.insert(reference.clone());
                    }
                    members.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = openapi();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let defined: BTreeSet<_> = schemas.keys().map(|name| format!("#/components/schemas/{name}")).collect();
        assert_eq!(found, defined);
    }

    /// Checks that the schema describes every member of the document, and that the document has every required member.
    fn assert_matches(schema: &str, document: &Value) {
        let openapi = openapi();
        let schema = &openapi["components"]["schemas"][schema];
        let names: BTreeSet<_> = document.as_object().unwrap().keys().map(String::as_str).collect();
        let known: BTreeSet<_> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        let required: BTreeSet<_> =
            schema["required"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
        assert!(names.is_subset(&known), "{names:?} not all in {known:?}");
        assert!(required.is_subset(&names), "{required:?} not all in {names:?}");
    }

    #[test]
    fn answers_have_the_members_that_are_described() {
        let appended = AppendDocument { offset: 1, count: Some(2), duplicate: true };
        assert_matches("Appended", &json!(appended));
        assert_matches("Appended", &json!(AppendDocument { count: None, duplicate: false, ..appended }));
        let header = ("h".into(), Some("v".into()));
        let record = Record { offset: 0, timestamp: 0, key: Some("k".into()), value: None, headers: vec![header] };
        assert_matches("Record", &json!(RecordDocument(&record)));
        assert_matches("Record", &json!(RecordDocument(&Record { key: None, headers: Vec::new(), ..record })));
        let topic = Topic {
            name: "t".into(),
            id: uuid::Uuid::nil(),
            partitions: 1,
            replication_factor: 1,
            settings: TopicSettings::default(),
            created_ms: 0,
        };
        assert_matches("Topic", &json!(topic));
        assert_matches("Settings", &json!(topic)["settings"]);
        let (partition, server) = topics::tests::samples();
        assert_matches("Partition", &partition);
        assert_matches("Server", &server);
        let problem = Problem::from(ApiError::new(Reason::Internal, ""));
        assert_matches("Problem", &Value::Object(problem.document()));
    }

    #[test]
    fn settings_are_described_with_their_defaults() {
        let document = openapi();
        let settings = &document["components"]["schemas"]["Settings"]["properties"];
        for (name, default) in json!(TopicSettings::default()).as_object().unwrap() {
            let default = default.to_string().replace('"', "");
            let description = settings[name]["description"].as_str().unwrap();
            assert!(description.ends_with(&format!("Default {default}.")), "{name}: {description}");
        }
    }
}
