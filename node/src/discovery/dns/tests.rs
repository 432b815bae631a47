//! Tests against a name server on loopback that is part of this file.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, SRV};
use hickory_resolver::proto::rr::{Name, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use super::*;

#[derive(Clone)]
enum DnsAnswer {
    Records(Vec<RData>),
    Code(ResponseCode),
    Silence,
    /// Empty and truncated by UDP, whole by TCP.
    Truncated(Vec<RData>),
}

type Zone = Arc<Mutex<HashMap<(String, RecordType), DnsAnswer>>>;

struct NameServer {
    address: SocketAddr,
    zone: Zone,
    _tasks: JoinSet<()>,
}

impl NameServer {
    async fn start() -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let (address, zone) = (udp.local_addr().unwrap(), Zone::default());
        let mut tasks = JoinSet::new();
        let known = Arc::clone(&zone);
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
                if let Some(answer) = answer(&known, &buffer[..length], true) {
                    udp.send_to(&answer, from).await.unwrap();
                }
            }
        });
        let known = Arc::clone(&zone);
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                while let Ok(length) = stream.read_u16().await {
                    let mut question = vec![0; length.into()];
                    stream.read_exact(&mut question).await.unwrap();
                    if let Some(answer) = answer(&known, &question, false) {
                        stream.write_u16(answer.len().try_into().unwrap()).await.unwrap();
                        stream.write_all(&answer).await.unwrap();
                    }
                }
            }
        });
        Self { address, zone, _tasks: tasks }
    }

    fn set(&self, name: &str, kind: RecordType, answer: DnsAnswer) {
        self.zone.lock().unwrap().insert((name.to_owned(), kind), answer);
    }

    fn set_a(&self, name: &str, ips: &[[u8; 4]]) {
        self.set(name, RecordType::A, DnsAnswer::Records(ips.iter().map(|ip| a(*ip)).collect()));
    }

    fn resolver(&self, name: &str) -> DnsDiscovery {
        DnsDiscovery::with_name_servers(name, &[self.address]).unwrap()
    }

    async fn lookup(&self, name: &str) -> Result<Vec<String>, DiscoveryError> {
        self.resolver(name).lookup().await
    }
}

fn answer(zone: &Zone, question: &[u8], udp: bool) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).unwrap();
    let query = question.queries[0].clone();
    let name = query.name().to_lowercase().to_utf8();
    let known = zone.lock().unwrap().get(&(name.clone(), query.query_type())).cloned();
    let exists = zone.lock().unwrap().keys().any(|(other, _)| *other == name);
    let mut response = Message::response(question.metadata.id, question.metadata.op_code);
    response.metadata.recursion_available = true;
    response.add_query(query.clone());
    let records = match known {
        Some(DnsAnswer::Silence) => return None,
        Some(DnsAnswer::Code(code)) => {
            response.metadata.response_code = code;
            Vec::new()
        }
        Some(DnsAnswer::Truncated(_)) if udp => {
            response.metadata.truncation = true;
            Vec::new()
        }
        Some(DnsAnswer::Records(records) | DnsAnswer::Truncated(records)) => records,
        None if exists => Vec::new(),
        None => {
            response.metadata.response_code = ResponseCode::NXDomain;
            Vec::new()
        }
    };
    for data in records {
        // A long TTL on purpose: look-ups must not cache.
        response.add_answer(Record::from_rdata(query.name().clone(), 3600, data));
    }
    Some(response.to_vec().unwrap())
}

fn a(ip: [u8; 4]) -> RData {
    RData::A(A(Ipv4Addr::from(ip)))
}

fn srv(port: u16, target: &str) -> RData {
    RData::SRV(SRV::new(0, 0, port, Name::from_utf8(target).unwrap()))
}

#[tokio::test]
async fn a_and_aaaa_records_become_addresses_in_a_stable_order_without_duplicates() {
    let server = NameServer::start().await;
    server.set_a("log.test.", &[[10, 0, 0, 3], [10, 0, 0, 1], [10, 0, 0, 3]]);
    let v6 = RData::AAAA(AAAA("fd00::1".parse().unwrap()));
    server.set("log.test.", RecordType::AAAA, DnsAnswer::Records(vec![v6]));
    assert_eq!(server.lookup("log.test.:7400").await.unwrap(), ["10.0.0.1:7400", "10.0.0.3:7400", "[fd00::1]:7400"]);
}

#[tokio::test]
async fn srv_records_bring_the_port_and_missing_targets_are_left_out() {
    let server = NameServer::start().await;
    let targets = vec![srv(7400, "b.log.test."), srv(7500, "a.log.test."), srv(7400, "gone.log.test."), srv(0, ".")];
    server.set("_log._tcp.log.test.", RecordType::SRV, DnsAnswer::Records(targets));
    server.set_a("a.log.test.", &[[10, 0, 0, 2]]);
    server.set_a("b.log.test.", &[[10, 0, 0, 1]]);
    assert_eq!(server.lookup("_log._tcp.log.test.").await.unwrap(), ["10.0.0.1:7400", "10.0.0.2:7500"]);
}

#[tokio::test]
async fn a_service_all_of_whose_targets_fail_is_an_error() {
    let server = NameServer::start().await;
    server.set("_log._tcp.log.test.", RecordType::SRV, DnsAnswer::Records(vec![srv(7400, "a.log.test.")]));
    server.set("a.log.test.", RecordType::A, DnsAnswer::Code(ResponseCode::ServFail));
    server.set("a.log.test.", RecordType::AAAA, DnsAnswer::Code(ResponseCode::ServFail));
    let error = server.lookup("_log._tcp.log.test.").await.unwrap_err().to_string();
    assert!(error.contains("a.log.test"), "{error}");
}

#[tokio::test]
async fn a_name_without_records_or_that_does_not_exist_has_no_address() {
    let server = NameServer::start().await;
    server.set("empty.test.", RecordType::A, DnsAnswer::Records(Vec::new()));
    assert_eq!(server.lookup("empty.test.:7400").await.unwrap(), [""; 0]);
    assert_eq!(server.lookup("nothing.test.:7400").await.unwrap(), [""; 0]);
    assert_eq!(server.lookup("_log._tcp.nothing.test.").await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn refusals_are_errors_that_name_what_was_looked_up() {
    let server = NameServer::start().await;
    for code in [ResponseCode::ServFail, ResponseCode::Refused] {
        server.set("log.test.", RecordType::A, DnsAnswer::Code(code));
        server.set("log.test.", RecordType::AAAA, DnsAnswer::Code(code));
        let error = server.lookup("log.test.:7400").await.unwrap_err();
        assert!(matches!(&error, DiscoveryError::Lookup { name, .. } if name == "log.test."), "{code}: {error}");
    }
}

#[tokio::test]
async fn no_a_records_do_not_hide_that_aaaa_records_are_unknown() {
    let server = NameServer::start().await;
    server.set("log.test.", RecordType::A, DnsAnswer::Records(Vec::new()));
    server.set("log.test.", RecordType::AAAA, DnsAnswer::Code(ResponseCode::ServFail));
    assert!(matches!(server.lookup("log.test.:7400").await, Err(DiscoveryError::Lookup { .. })));
}

#[tokio::test]
async fn a_name_server_that_does_not_answer_is_an_error() {
    let server = NameServer::start().await;
    server.set("log.test.", RecordType::A, DnsAnswer::Silence);
    server.set("log.test.", RecordType::AAAA, DnsAnswer::Silence);
    let mut options = ResolverOpts::default();
    (options.timeout, options.attempts) = (Duration::from_millis(50), 1);
    let config = ResolverConfig::from_name_servers(
        [server.address]
            .iter()
            .map(|address| {
                let mut udp = ConnectionConfig::udp();
                udp.port = address.port();
                NameServerConfig::new(address.ip(), true, vec![udp])
            })
            .collect(),
    );
    let silent = DnsDiscovery::build("log.test.:7400", config, options).unwrap();
    let error = silent.lookup().await.unwrap_err().to_string();
    assert!(error.contains("log.test"), "{error}");
}

#[tokio::test]
async fn truncated_answers_are_requested_again_by_tcp() {
    let server = NameServer::start().await;
    let many: Vec<_> = (1..=200).map(|last| a([10, 0, 0, last])).collect();
    server.set("log.test.", RecordType::A, DnsAnswer::Truncated(many));
    assert_eq!(server.lookup("log.test.:7400").await.unwrap().len(), 200);
}

#[tokio::test]
async fn nothing_is_stored_between_lookups() {
    let server = NameServer::start().await;
    let resolver = server.resolver("log.test.:7400");
    assert_eq!(resolver.lookup().await.unwrap(), [""; 0]);
    server.set_a("log.test.", &[[10, 0, 0, 1]]);
    assert_eq!(resolver.lookup().await.unwrap(), ["10.0.0.1:7400"]);
    server.set_a("log.test.", &[[10, 0, 0, 2], [10, 0, 0, 3]]);
    assert_eq!(resolver.lookup().await.unwrap(), ["10.0.0.2:7400", "10.0.0.3:7400"]);
    server.set_a("log.test.", &[]);
    assert_eq!(resolver.lookup().await.unwrap(), [""; 0]);
}

#[test]
fn names_that_cannot_be_looked_up_are_refused() {
    for name in ["", "log.test", "log.test:0", "log.test:70000", ":7400", "log test:7400"] {
        let refused = DnsDiscovery::with_name_servers(name, &[]);
        assert!(matches!(refused, Err(DiscoveryError::Name { .. })), "{name:?}");
    }
}
