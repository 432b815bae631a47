//! Listeners and the addresses that a node advertises for them.
//!
//! Clients of one protocol must not receive the address of another, and clients outside Kubernetes need other addresses than
//! clients inside. So a node has one advertised address per listener, by the listener's name.
//!
//! **Invariants.** A [`ListenerName`] is valid. [`Addresses`] has the data listener's address and at most
//! [`Addresses::OTHERS_MAX`] others, unless a stored value has more.
//!
//! **Formats.** As JSON, in the controller's log and state, `address` is the data listener's address, and `addresses` has those of
//! all other listeners. It is absent when there are none, so that versions that know only `address` read what this one writes, and
//! the other way round. In Protobuf messages, `addresses` has all of them, the data listener's too; absent, there is only
//! `address`. The rule for names is part of these formats: a change must not refuse a name that a cluster may have stored.
//!
//! **Neighbours.** `config/` reads names and addresses, `membership/` and `runtime/` announce them, `metadata/` stores them,
//! `broker/` and `listeners/` return them to clients.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use super::ApiError;

/// Longest name of a listener, in characters.
const NAME_MAX: usize = 32;

/// Longest address: a DNS name of 253 characters, a colon and a port.
const ADDRESS_MAX: usize = 253 + 1 + 5;

/// Characters of a refused value that a message shows.
const SHOWN_MAX: usize = 64;

const NAME_RULE: &str = "must be 1 to 32 of a-z 0-9 -";

/// The name of a listener: 1 to 32 characters of `a-z 0-9 -`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ListenerName(Cow<'static, str>);

static DATA: ListenerName = ListenerName::DATA;

impl ListenerName {
    /// `data`: the listener for gRPC and HTTP, which other nodes use too.
    pub const DATA: Self = Self(Cow::Borrowed("data"));

    /// Whether this is the listener for gRPC and HTTP.
    pub fn is_data(&self) -> bool {
        *self == DATA
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The field of a message or a command that has the listener's address: `address`, or `addresses.` and the name.
    pub(crate) fn field(&self) -> String {
        if self.is_data() { "address".to_owned() } else { format!("addresses.{self}") }
    }
}

impl fmt::Display for ListenerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is not the name of a listener.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("listener name: {0}: {NAME_RULE}")]
pub struct InvalidListenerName(String);

impl TryFrom<String> for ListenerName {
    type Error = InvalidListenerName;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let fits = (1..=NAME_MAX).contains(&text.len())
            && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if fits { Ok(Self(text.into())) } else { Err(InvalidListenerName(shown(&text))) }
    }
}

impl FromStr for ListenerName {
    type Err = InvalidListenerName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.to_owned().try_into()
    }
}

impl From<ListenerName> for String {
    fn from(name: ListenerName) -> Self {
        name.0.into_owned()
    }
}

/// The addresses (`HOST:PORT`) that a node advertises, by listener. One of them is the data listener's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Of the data listener.
    address: String,
    /// Of all other listeners.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "others")]
    addresses: BTreeMap<ListenerName, String>,
}

/// Drops what the format does not have: the data listener's address a second time.
fn others<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<ListenerName, String>, D::Error> {
    let mut others = BTreeMap::<ListenerName, String>::deserialize(deserializer)?;
    others.retain(|name, _| !name.is_data());
    Ok(others)
}

impl Addresses {
    /// Most listeners besides the data listener.
    pub const OTHERS_MAX: usize = 16;

    /// The address of the data listener and those of `others`. An entry of `others` for the data listener is dropped.
    pub fn new(data: impl Into<String>, mut others: BTreeMap<ListenerName, String>) -> Self {
        others.retain(|name, _| !name.is_data());
        Self { address: data.into(), addresses: others }
    }

    /// The address of the data listener and no other.
    pub fn of_data(data: impl Into<String>) -> Self {
        Self::new(data, BTreeMap::new())
    }

    /// Reads the fields `address` and `addresses` of a message. Names that this version has no listener for are kept.
    ///
    /// # Errors
    /// [`Reason::InvalidRequest`](super::Reason::InvalidRequest) with field, value and rule, when a name or an address is
    /// malformed, there are more than [`Addresses::OTHERS_MAX`], or the two fields differ in the data listener's address.
    pub fn from_message(
        address: String,
        addresses: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ApiError> {
        let mut others = BTreeMap::new();
        for (name, value) in addresses {
            let name = ListenerName::try_from(name)
                .map_err(|InvalidListenerName(name)| ApiError::invalid("addresses", name, NAME_RULE))?;
            if name.is_data() {
                if value != address {
                    let rule = format!("must be the same as address, {}", shown(&address));
                    return Err(ApiError::invalid("addresses.data", shown(&value), &rule));
                }
            } else if is_host_port(&value) {
                others.insert(name, value);
            } else {
                return Err(ApiError::invalid(&name.field(), shown(&value), "must be HOST:PORT"));
            }
            if others.len() > Self::OTHERS_MAX {
                let rule = format!("must be at most {} besides data", Self::OTHERS_MAX);
                return Err(ApiError::invalid("addresses", format!("{} listeners", others.len()), &rule));
            }
        }
        Ok(Self::new(address, others))
    }

    /// The field `addresses` of a message: all of them, by name.
    pub fn to_message<M: FromIterator<(String, String)>>(&self) -> M {
        self.iter().map(|(name, address)| (name.to_string(), address.to_owned())).collect()
    }

    /// The address of the data listener.
    pub fn data(&self) -> &str {
        &self.address
    }

    /// The address of a listener; `None`: the node has no such listener, or did not advertise it.
    pub fn get(&self, name: &ListenerName) -> Option<&str> {
        if name.is_data() { Some(&self.address) } else { self.addresses.get(name).map(String::as_str) }
    }

    /// The addresses of all listeners but the data listener.
    pub fn others(&self) -> &BTreeMap<ListenerName, String> {
        &self.addresses
    }

    /// Every listener's name and address, the data listener first.
    pub fn iter(&self) -> impl Iterator<Item = (&ListenerName, &str)> {
        let others = self.addresses.iter().map(|(name, address)| (name, address.as_str()));
        std::iter::once((&DATA, self.data())).chain(others)
    }
}

/// Whether this is `HOST:PORT`: a host without white space, an IPv6 address in brackets, and a port from 1 to 65535.
pub fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let plain =
        |host: &str| !host.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '[' | ']' | '/'));
    let is_host = match in_brackets {
        Some(host) => host.contains(':') && plain(host),
        None => !host.is_empty() && !host.contains(':') && plain(host),
    };
    let is_port = port.bytes().all(|digit| digit.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    is_host && is_port && text.len() <= ADDRESS_MAX
}

/// A value from outside, in quotes, and only its beginning when it is long.
fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ListenerName {
        text.parse().unwrap()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, address)| ((*name).to_owned(), (*address).to_owned())).collect()
    }

    #[test]
    fn names_are_short_and_lower_case() {
        for good in ["data", "kafka", "kafka-external", "0", &"a".repeat(32)] {
            assert_eq!(name(good).as_str(), good);
        }
        for bad in ["", "Kafka", "kafka_external", "a.b", "a b", "é", &"a".repeat(33)] {
            let error = bad.parse::<ListenerName>().unwrap_err().to_string();
            assert_eq!(error, format!("listener name: {bad:?}: must be 1 to 32 of a-z 0-9 -"));
        }
        assert!(name("data").is_data() && ListenerName::DATA == name("data"));
        assert!(serde_json::from_str::<ListenerName>("\"KAFKA\"").is_err());
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for good in ["h:1", "log-0.log.svc.cluster.local:9092", "10.0.0.1:65535", "[::1]:9092", "[fe80::1%eth0]:1"] {
            assert!(is_host_port(good), "{good}");
        }
        let long = format!("{}:9092", "a".repeat(260));
        for bad in
            ["", "h", ":1", "h:", "h:0", "h:65536", "h:+1", "a b:1", "::1:9092", "[]:1", "[h]:1", "http://h:1", &long]
        {
            assert!(!is_host_port(bad), "{bad}");
        }
    }

    #[test]
    fn every_listener_has_its_address_and_the_data_listener_always_has_one() {
        let others = BTreeMap::from([(name("kafka"), "k:9092".to_owned()), (name("data"), "dropped:1".to_owned())]);
        let addresses = Addresses::new("d:7400", others);
        assert_eq!(addresses.data(), "d:7400");
        assert_eq!(addresses.get(&ListenerName::DATA), Some("d:7400"));
        assert_eq!(addresses.get(&name("kafka")), Some("k:9092"));
        assert_eq!(addresses.get(&name("other")), None);
        assert_eq!(addresses.iter().collect::<Vec<_>>(), [(&name("data"), "d:7400"), (&name("kafka"), "k:9092")]);
        assert_eq!(addresses.others().len(), 1);
    }

    #[test]
    fn a_message_without_addresses_has_the_data_listener_and_others_pass_through() {
        let old = Addresses::from_message("d:1".into(), []).unwrap();
        assert_eq!(old, Addresses::of_data("d:1"));
        let sent = pairs(&[("data", "d:1"), ("from-tomorrow", "[::1]:9")]);
        let new = Addresses::from_message("d:1".into(), sent.clone()).unwrap();
        assert_eq!(new.to_message::<Vec<_>>(), sent);
        // A node of another version may send any text as its data address.
        assert_eq!(Addresses::from_message("anything".into(), []).unwrap().data(), "anything");
    }

    #[test]
    fn malformed_addresses_are_refused_with_field_value_and_rule() {
        let refusal = |sent: &[(&str, &str)]| Addresses::from_message("d:1".into(), pairs(sent)).unwrap_err().message;
        assert_eq!(refusal(&[("Kafka", "k:1")]), "addresses: \"Kafka\": must be 1 to 32 of a-z 0-9 -");
        assert_eq!(refusal(&[("kafka", "k")]), "addresses.kafka: \"k\": must be HOST:PORT");
        assert_eq!(refusal(&[("data", "e:1")]), "addresses.data: \"e:1\": must be the same as address, \"d:1\"");
        let long = "x".repeat(1000);
        assert_eq!(
            refusal(&[(&long, "k:1")]),
            format!("addresses: \"{}\"...: must be 1 to 32 of a-z 0-9 -", &long[..64])
        );
        let names: Vec<String> = (0..=Addresses::OTHERS_MAX).map(|number| format!("l{number}")).collect();
        let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "k:1")).collect();
        assert_eq!(refusal(&many), "addresses: 17 listeners: must be at most 16 besides data");
        assert!(Addresses::from_message("d:1".into(), pairs(&many[1..])).is_ok());
    }

    #[test]
    fn as_json_other_addresses_appear_only_where_they_exist() {
        let data = Addresses::of_data("d:1");
        assert_eq!(serde_json::to_string(&data).unwrap(), r#"{"address":"d:1"}"#);
        assert_eq!(serde_json::from_str::<Addresses>(r#"{"address":"d:1"}"#).unwrap(), data);
        let text = r#"{"address":"d:1","addresses":{"kafka":"k:1"}}"#;
        let both = Addresses::new("d:1", BTreeMap::from([(name("kafka"), "k:1".to_owned())]));
        assert_eq!(serde_json::to_string(&both).unwrap(), text);
        assert_eq!(serde_json::from_str::<Addresses>(text).unwrap(), both);
        let twice = r#"{"address":"d:1","addresses":{"data":"x:1","kafka":"k:1"}}"#;
        assert_eq!(serde_json::from_str::<Addresses>(twice).unwrap(), both);
    }
}
