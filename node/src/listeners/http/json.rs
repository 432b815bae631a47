//! Records in JSON. Pure: no I/O, and no document causes a panic.
//!
//! Bytes (keys, values, values of headers) are written as `{"base64": "..."}` or `{"text": "..."}` (UTF-8). A plain
//! string is the short form: of base64 in `key` and `value`, of text in `headers`. Responses use the short forms where
//! these are exact: base64 for `key` and `value`, text for header values that are UTF-8.
//!
//! `headers` is an object; the order of its members is kept. A name with several values has an array:
//! `{"trace": ["a", "b"]}`.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chronicle_records::{Compression, Record};
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::{
    ApiError, Expectation, NewRecord, Produce, ProducePayload, ProducerIdentity, Reason, TopicPartition,
};

/// Bytes in the form that the client used.
#[derive(Debug, PartialEq, Eq)]
enum Data {
    Plain(String),
    Text(String),
    Base64(String),
}

impl Data {
    /// Decodes the bytes. `field` names the field in the error.
    fn decode(self, plain_is_text: bool, field: impl FnOnce() -> String) -> Result<Bytes, ApiError> {
        match self {
            Data::Text(text) => Ok(text.into()),
            Data::Plain(text) if plain_is_text => Ok(text.into()),
            Data::Plain(text) | Data::Base64(text) => base64(&text, field),
        }
    }
}

/// Decodes standard base64 with padding (RFC 4648, section 4). `field` names the field in the error.
pub(super) fn base64(text: &str, field: impl FnOnce() -> String) -> Result<Bytes, ApiError> {
    STANDARD.decode(text).map(Bytes::from).map_err(|error| {
        let field = field();
        ApiError::new(Reason::InvalidBase64, format!("{field}: is not base64 (RFC 4648, section 4): {error}"))
            .with("field", field)
    })
}

pub(super) fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DataVisitor;
        impl<'de> Visitor<'de> for DataVisitor {
            type Value = Data;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, {\"base64\": ...} or {\"text\": ...}")
            }

            fn visit_str<E>(self, text: &str) -> Result<Data, E> {
                Ok(Data::Plain(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Data, E> {
                Ok(Data::Plain(text))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Data, A::Error> {
                let Some((form, value)) = map.next_entry::<String, String>()? else {
                    return Err(A::Error::invalid_length(0, &self));
                };
                let data = match form.as_str() {
                    "base64" => Data::Base64(value),
                    "text" => Data::Text(value),
                    _ => return Err(A::Error::unknown_field(&form, &["base64", "text"])),
                };
                match map.next_key::<String>()? {
                    None => Ok(data),
                    Some(_) => Err(A::Error::invalid_length(2, &self)),
                }
            }
        }
        deserializer.deserialize_any(DataVisitor)
    }
}

/// Headers in order; see the module documentation.
#[derive(Debug, Default, PartialEq, Eq)]
struct Headers(Vec<(String, Option<Data>)>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeadersVisitor;
        impl<'de> Visitor<'de> for HeadersVisitor {
            type Value = Headers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of header values by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
                let mut headers = Vec::new();
                while let Some((name, Values(values))) = map.next_entry::<String, Values>()? {
                    headers.extend(values.into_iter().map(|value| (name.clone(), value)));
                }
                Ok(Headers(headers))
            }
        }
        deserializer.deserialize_map(HeadersVisitor)
    }
}

/// One value of a header, or an array of them.
struct Values(Vec<Option<Data>>);

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ValuesVisitor;
        impl<'de> Visitor<'de> for ValuesVisitor {
            type Value = Values;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("null, a string, {\"base64\": ...}, {\"text\": ...} or an array of them")
            }

            fn visit_unit<E>(self) -> Result<Values, E> {
                Ok(Values(vec![None]))
            }

            fn visit_str<E>(self, text: &str) -> Result<Values, E> {
                Ok(Values(vec![Some(Data::Plain(text.to_owned()))]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Values, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = seq.next_element::<Option<Data>>()? {
                    values.push(value);
                }
                Ok(Values(values))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Values, A::Error> {
                let data = Data::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(Values(vec![Some(data)]))
            }
        }
        deserializer.deserialize_any(ValuesVisitor)
    }
}

/// A record in a request. `value` is required; JSON null is a null value.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordBody {
    #[serde(deserialize_with = "required")]
    value: Option<Data>,
    #[serde(default)]
    key: Option<Data>,
    #[serde(default)]
    headers: Headers,
    #[serde(default)]
    timestamp: Option<i64>,
}

/// Accepts null as a value, and makes an absent field an error.
fn required<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Data>, D::Error> {
    Option::deserialize(deserializer)
}

impl RecordBody {
    fn convert(self, field: &str) -> Result<NewRecord, ApiError> {
        let decode = |data: Option<Data>, name: &str| {
            data.map(|data| data.decode(false, || format!("{field}.{name}"))).transpose()
        };
        let (key, value) = (decode(self.key, "key")?, decode(self.value, "value")?);
        let headers = headers(self.headers, field)?;
        if let Some(timestamp) = self.timestamp
            && timestamp < 0
        {
            return Err(ApiError::invalid(&format!("{field}.timestamp"), timestamp, "must be at least 0"));
        }
        Ok(NewRecord { key, value, headers, timestamp_ms: self.timestamp })
    }
}

fn headers(headers: Headers, field: &str) -> Result<Vec<(String, Option<Bytes>)>, ApiError> {
    let decode = |(name, value): (String, Option<Data>)| {
        if name.is_empty() {
            return Err(ApiError::invalid(
                &format!("{field}.headers"),
                "empty name",
                "must have at least one character",
            ));
        }
        let value = value.map(|data| data.decode(true, || format!("{field}.headers.{name}"))).transpose()?;
        Ok((name, value))
    };
    headers.0.into_iter().map(decode).collect()
}

/// Parses the headers of a raw append, from the HTTP header `Chronicle-Headers`.
pub(super) fn parse_headers(text: &[u8]) -> Result<Vec<(String, Option<Bytes>)>, ApiError> {
    let parsed = serde_json::from_slice(text).map_err(|error| {
        ApiError::new(Reason::MalformedBody, format!("chronicle-headers: is not a JSON object of headers: {error}"))
    })?;
    headers(parsed, "chronicle-headers")
}

/// See [`ProducerIdentity`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProducerBody {
    id: i64,
    epoch: i16,
    sequence: i32,
}

/// Checks the numbers of an idempotent producer.
pub(super) fn identity(producer_id: i64, epoch: i16, sequence: i32) -> Result<ProducerIdentity, ApiError> {
    for (field, value) in [("id", producer_id), ("epoch", epoch.into()), ("sequence", sequence.into())] {
        if value < 0 {
            return Err(ApiError::invalid(&format!("producer.{field}"), value, "must be at least 0"));
        }
    }
    Ok(ProducerIdentity { producer_id, epoch, sequence })
}

/// Returns the expectation of a request. At most one of the two may be given. `key` is the key of the first record.
pub(super) fn expectation(
    next_offset: Option<i64>,
    key_version: Option<i64>,
    key: Option<&Bytes>,
) -> Result<Option<Expectation>, ApiError> {
    match (next_offset, key_version) {
        (None, None) => Ok(None),
        (Some(_), Some(version)) => {
            Err(ApiError::invalid("expected_key_version", version, "must be absent beside expected_next_offset"))
        }
        (Some(offset), None) if offset < 0 => {
            Err(ApiError::invalid("expected_next_offset", offset, "must be at least 0"))
        }
        (Some(offset), None) => Ok(Some(Expectation::NextOffset(offset))),
        (None, Some(version)) if version < -1 => {
            Err(ApiError::invalid("expected_key_version", version, "must be at least -1 (no record with this key)"))
        }
        (None, Some(version)) => match key {
            Some(key) => Ok(Some(Expectation::KeyVersion { key: key.clone(), version })),
            None => Err(ApiError::invalid("expected_key_version", version, "the record must have a key")),
        },
    }
}

/// Body of an append.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AppendBody {
    record: Option<RecordBody>,
    records: Option<Vec<RecordBody>>,
    producer: Option<ProducerBody>,
    expected_next_offset: Option<i64>,
    expected_key_version: Option<i64>,
    compression: Option<String>,
}

impl AppendBody {
    /// Returns the request, and whether it has `record` (not `records`): then the response has no `count`.
    pub(super) fn convert(self, target: TopicPartition) -> Result<(Produce, bool), ApiError> {
        let (records, single) = match (self.record, self.records) {
            (Some(record), None) => (vec![record.convert("record")?], true),
            (None, Some(records)) if records.is_empty() => {
                return Err(ApiError::invalid("records", "empty", "must have at least one record"));
            }
            (None, Some(records)) => {
                let convert = |(i, record): (usize, RecordBody)| record.convert(&format!("records[{i}]"));
                (records.into_iter().enumerate().map(convert).collect::<Result<Vec<_>, _>>()?, false)
            }
            (None, None) => return Err(ApiError::invalid("record", "missing", "must be given, or `records`")),
            (Some(_), Some(_)) => {
                return Err(ApiError::invalid("records", "given", "must be absent beside `record`"));
            }
        };
        let compression = match self.compression.as_deref() {
            None | Some("none") => Compression::None,
            Some("gzip") => Compression::Gzip,
            Some("snappy") => Compression::Snappy,
            Some("lz4") => Compression::Lz4,
            Some("zstd") => Compression::Zstd,
            Some(other) => {
                let message = format!("compression: {other:?}: must be none, gzip, snappy, lz4 or zstd");
                return Err(ApiError::new(Reason::UnsupportedCompression, message));
            }
        };
        let key = records.first().and_then(|record| record.key.as_ref());
        let expectation = expectation(self.expected_next_offset, self.expected_key_version, key)?;
        let producer = self.producer.map(|p| identity(p.id, p.epoch, p.sequence)).transpose()?;
        let payload = ProducePayload::Records { records, compression };
        Ok((Produce { target, payload, producer, expectation }, single))
    }
}

/// A record in a response.
pub(super) struct RecordDocument<'a>(pub(super) &'a Record);

impl Serialize for RecordDocument<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Record { offset, timestamp, key, value, headers } = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("offset", offset)?;
        map.serialize_entry("timestamp", timestamp)?;
        if let Some(key) = key {
            map.serialize_entry("key", &to_base64(key))?;
        }
        map.serialize_entry("value", &value.as_ref().map(|value| to_base64(value)))?;
        if !headers.is_empty() {
            map.serialize_entry("headers", &HeadersDocument(headers))?;
        }
        map.end()
    }
}

/// Headers in a response.
pub(super) struct HeadersDocument<'a>(pub(super) &'a [(Bytes, Option<Bytes>)]);

impl Serialize for HeadersDocument<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut grouped: Vec<(&Bytes, Vec<Option<&Bytes>>)> = Vec::new();
        for (name, value) in self.0 {
            match grouped.iter_mut().find(|(other, _)| *other == name) {
                Some((_, values)) => values.push(value.as_ref()),
                None => grouped.push((name, vec![value.as_ref()])),
            }
        }
        let mut map = serializer.serialize_map(Some(grouped.len()))?;
        for (name, values) in &grouped {
            let name = String::from_utf8_lossy(name);
            match values.as_slice() {
                [value] => map.serialize_entry(&name, &HeaderValueDocument(*value))?,
                values => map.serialize_entry(&name, &HeaderValuesDocument(values))?,
            }
        }
        map.end()
    }
}

struct HeaderValuesDocument<'a>(&'a [Option<&'a Bytes>]);

impl Serialize for HeaderValuesDocument<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(self.0.len()))?;
        for value in self.0 {
            seq.serialize_element(&HeaderValueDocument(*value))?;
        }
        seq.end()
    }
}

struct HeaderValueDocument<'a>(Option<&'a Bytes>);

impl Serialize for HeaderValueDocument<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.map(|bytes| (bytes, str::from_utf8(bytes))) {
            None => serializer.serialize_none(),
            Some((_, Ok(text))) => serializer.serialize_str(text),
            Some((bytes, Err(_))) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("base64", &to_base64(bytes))?;
                map.end()
            }
        }
    }
}

#[cfg(test)]
mod tests;
