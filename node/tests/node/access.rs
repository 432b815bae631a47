//! Authorisation and quotas: through the broker as callers of any name, and over gRPC and HTTP as a client without one.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::serving::Node;
use crate::support::{Core, append, config, record, target};
use bytes::Bytes;
use chronicle_node::broker::Route;
use chronicle_node::groups::{Commit, Groups, Heartbeat, Reset, ResetTo};
use chronicle_node::identity::Principal;
use chronicle_node::model::{ApiError, Fetch, NewTopic, Position, Produce, Reason, SettingsChange};
use chronicle_node::security::{AclFilter, AclRule, Action, Caller, Effect, PatternKind, Quota, ResourceKind};
use chronicle_proto::v1 as proto;
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

fn caller(name: &str) -> Caller {
    Caller::new(Some(Principal::new(name).unwrap()), "192.0.2.1:5".parse().unwrap())
}

fn root() -> Caller {
    caller("root")
}

fn allow(principal: &str, kind: ResourceKind, name: &str, action: Action) -> AclRule {
    let (pattern, effect) = (PatternKind::Literal, Effect::Allow);
    AclRule { principal: principal.into(), kind, pattern, name: name.into(), action, effect }
}

fn secured(config: &mut chronicle_node::config::Config) {
    config.security.authorization.enabled = true;
    config.security.authorization.super_users = vec!["root".into()];
}

/// A node that refuses what is not allowed.
async fn start() -> (tempfile::TempDir, Core) {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path());
    secured(&mut config);
    let broker = crate::support::start(config).await;
    (directory, broker)
}

fn to(topic: &str, value: &'static str) -> Produce {
    Produce { target: target(topic), ..append(vec![record(value)]) }
}

fn read(topic: &str) -> Fetch {
    Fetch { target: target(topic), from: Position::Earliest, max_bytes: 0, max_wait: Duration::ZERO }
}

fn reason<T>(result: Result<T, ApiError>) -> Reason {
    result.map(|_| "an answer").unwrap_err().reason
}

#[tokio::test]
async fn each_permission_allows_its_own_calls_and_no_more() {
    let (_directory, broker) = start().await;
    let (root, ann) = (root(), caller("ann"));
    let (root, ann) = (broker.for_caller(&root), broker.for_caller(&ann));
    for name in ["one", "two"] {
        root.create_topic(NewTopic { name: name.into(), ..NewTopic::default() }).await.unwrap();
    }
    root.produce(to("one", "v"), Route::Local).await.unwrap();
    assert_eq!(reason(ann.produce(to("one", "v"), Route::Local).await), Reason::UnknownTopic, "she may not know of it");
    assert!(ann.topics().await.unwrap().is_empty());
    assert_eq!(reason(ann.servers().await), Reason::PermissionDenied);

    root.create_acls(vec![allow("ann", ResourceKind::Topic, "one", Action::Read)]).await.unwrap();
    assert_eq!(ann.fetch(read("one"), Route::Local).await.unwrap().next_offset, 1);
    assert_eq!(ann.topics().await.unwrap().into_iter().map(|topic| topic.name).collect::<Vec<_>>(), ["one"]);
    assert!(ann.servers().await.is_ok(), "a client must find the nodes");
    assert_eq!(reason(ann.produce(to("one", "v"), Route::Local).await), Reason::PermissionDenied, "she knows of it");
    assert_eq!(reason(ann.delete_topic("one").await), Reason::PermissionDenied);
    assert_eq!(reason(ann.alter_topic("one", 2, SettingsChange::default()).await), Reason::PermissionDenied);
    assert_eq!(reason(ann.init_producer().await), Reason::PermissionDenied);
    assert_eq!(reason(ann.status().await), Reason::PermissionDenied);

    root.create_acls(vec![allow("ann", ResourceKind::Topic, "one", Action::Write)]).await.unwrap();
    ann.produce(to("one", "v"), Route::Local).await.unwrap();
    ann.init_producer().await.unwrap();
    let denied = AclRule { effect: Effect::Deny, ..allow("*", ResourceKind::Topic, "*", Action::Write) };
    root.create_acls(vec![denied]).await.unwrap();
    assert_eq!(reason(ann.produce(to("one", "v"), Route::Local).await), Reason::PermissionDenied, "a deny wins");
    assert_eq!(reason(ann.init_producer().await), Reason::PermissionDenied);

    let everything = AclFilter { principal: Some("ann".into()), ..AclFilter::default() };
    assert_eq!(root.delete_acls(vec![everything]).await.unwrap().len(), 2);
    assert_eq!(reason(ann.fetch(read("one"), Route::Local).await), Reason::UnknownTopic);
    broker.shutdown().await;
}

#[tokio::test]
async fn a_hidden_topic_and_none_are_the_same_to_the_letter() {
    let (_directory, broker) = start().await;
    let (root, ann) = (root(), caller("ann"));
    let (root, ann) = (broker.for_caller(&root), broker.for_caller(&ann));
    root.create_topic(NewTopic { name: "hidden".into(), ..NewTopic::default() }).await.unwrap();
    root.create_acls(vec![
        allow("ann", ResourceKind::Topic, "own", Action::All),
        allow("ann", ResourceKind::Group, "*", Action::All),
    ])
    .await
    .unwrap();
    let answers = async |name: &str| {
        let mut answers = vec![
            ann.produce(to(name, "v"), Route::Local).await.unwrap_err(),
            ann.produce(to(name, "v"), Route::Leader).await.unwrap_err(),
            ann.fetch(read(name), Route::Local).await.unwrap_err(),
            ann.fetch(read(name), Route::Leader).await.unwrap_err(),
            ann.offsets(&target(name), None, Route::Local).await.unwrap_err(),
            ann.offsets(&target(name), Some(0), Route::Leader).await.unwrap_err(),
            ann.describe_topic(name).await.unwrap_err(),
            ann.alter_topic(name, 2, SettingsChange::default()).await.unwrap_err(),
            ann.delete_topic(name).await.unwrap_err(),
            ann.create_topic(NewTopic { name: name.into(), ..NewTopic::default() }).await.unwrap_err(),
        ];
        let mut out_of_range = read(name);
        out_of_range.target.partition = 99;
        answers.push(ann.fetch(out_of_range, Route::Local).await.unwrap_err());
        let metadata = ann.metadata(&[name.to_owned()]).await.unwrap();
        assert_eq!((metadata.topics.len(), metadata.unknown), (0, vec![name.to_owned()]));
        answers.iter().map(|error| format!("{error:?}").replace(name, "NAME")).collect::<Vec<_>>()
    };
    assert_eq!(answers("hidden").await, answers("absent").await);
    assert!(ann.metadata(&[]).await.unwrap().topics.is_empty());
    broker.shutdown().await;
}

#[tokio::test]
async fn creating_an_existing_topic_reveals_nothing_about_it() {
    let (_directory, broker) = start().await;
    let (root, ann) = (root(), caller("ann"));
    let (root, ann) = (broker.for_caller(&root), broker.for_caller(&ann));
    root.create_topic(NewTopic { name: "theirs".into(), ..NewTopic::default() }).await.unwrap();
    root.create_acls(vec![allow("ann", ResourceKind::Cluster, "cluster", Action::Create)]).await.unwrap();
    let new = |name: &str| NewTopic { name: name.into(), if_not_exists: true, ..NewTopic::default() };
    assert_eq!(reason(ann.create_topic(new("theirs")).await), Reason::TopicExists);
    assert!(ann.create_topic(new("hers")).await.unwrap().1);
    broker.shutdown().await;
}

#[tokio::test]
async fn groups_need_rights_of_their_own_and_of_their_topics() {
    let (_directory, broker) = start().await;
    let groups = Groups::start((*broker).clone());
    let (root_caller, ann) = (root(), caller("ann"));
    let (root, ann) = (broker.for_caller(&root_caller), groups.for_caller(&ann));
    let join = || Heartbeat { group: "g".into(), topics: vec!["default".into()], ..Heartbeat::default() };
    assert_eq!(reason(ann.heartbeat(join()).await), Reason::PermissionDenied);
    root.create_acls(vec![allow("ann", ResourceKind::Group, "g", Action::Read)]).await.unwrap();
    assert_eq!(reason(ann.heartbeat(join()).await), Reason::UnknownTopic);
    root.create_acls(vec![allow("ann", ResourceKind::Topic, "default", Action::Read)]).await.unwrap();
    let member = ann.heartbeat(join()).await.unwrap();
    assert_eq!(ann.list().await.unwrap().len(), 1);
    assert_eq!(ann.describe("g").await.unwrap().members.len(), 1);
    assert_eq!(reason(ann.delete("g").await), Reason::PermissionDenied);
    let reset =
        Reset { group: "g".into(), topic: "default".into(), partitions: vec![], to: ResetTo::Latest, dry_run: true };
    assert_eq!(reason(ann.reset(reset).await), Reason::PermissionDenied);
    assert_eq!(
        reason(ann.commit(Commit { group: "other".into(), ..Commit::default() }).await),
        Reason::PermissionDenied
    );
    assert_eq!(reason(ann.offsets("other", &BTreeMap::new()).await), Reason::PermissionDenied);
    ann.leave("g", &member.member_id).await.unwrap();
    let gone = AclFilter { kind: Some(ResourceKind::Topic), ..AclFilter::default() };
    root.delete_acls(vec![gone]).await.unwrap();
    assert!(ann.describe("g").await.unwrap().partitions.is_empty(), "topics that she may not describe are left out");
    let nobody = caller("bob");
    assert!(groups.for_caller(&nobody).list().await.unwrap().is_empty());
    groups.shutdown().await;
    broker.shutdown().await;
}

#[tokio::test]
async fn a_caller_that_loses_a_permission_while_a_read_waits_receives_nothing() {
    let (_directory, broker) = start().await;
    let root_caller = root();
    let root = broker.for_caller(&root_caller);
    root.create_acls(vec![allow("ann", ResourceKind::Topic, "default", Action::Read)]).await.unwrap();
    let waiting = tokio::spawn({
        let broker = broker.clone();
        async move {
            let from = Fetch { max_wait: Duration::from_secs(60), ..read("default") };
            broker.for_caller(&caller("ann")).fetch(from, Route::Local).await
        }
    });
    root.delete_acls(vec![AclFilter::default()]).await.unwrap();
    root.produce(to("default", "secret"), Route::Local).await.unwrap();
    assert_eq!(reason(waiting.await.unwrap()), Reason::UnknownTopic);
    broker.shutdown().await;
}

#[tokio::test]
async fn rules_and_quotas_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path());
    secured(&mut config);
    let broker = crate::support::start(config.clone()).await;
    let root = root();
    let rule = allow("ann", ResourceKind::Topic, "default", Action::Write);
    let quota = Quota { requests: 7, ..Quota::default() };
    assert_eq!(
        broker.for_caller(&root).create_acls(vec![rule.clone(), rule.clone()]).await.unwrap(),
        std::slice::from_ref(&rule)
    );
    assert!(broker.for_caller(&root).create_acls(vec![rule.clone()]).await.unwrap().is_empty());
    broker.for_caller(&root).set_quota(Some("ann".into()), quota).await.unwrap();
    broker.shutdown().await;
    let broker = crate::support::start(config).await;
    assert_eq!(broker.for_caller(&root).list_acls(&AclFilter::default()).await.unwrap(), [rule]);
    assert_eq!(broker.for_caller(&root).list_quotas().await.unwrap(), (None, BTreeMap::from([("ann".into(), quota)])));
    broker.for_caller(&caller("ann")).produce(to("default", "v"), Route::Local).await.unwrap();
    broker.shutdown().await;
}

#[tokio::test]
async fn rules_that_cannot_be_are_refused_by_number_and_nothing_is_added() {
    let (_directory, broker) = start().await;
    let root = root();
    let root = broker.for_caller(&root);
    let good = allow("ann", ResourceKind::Topic, "t", Action::Read);
    let error = root.create_acls(vec![good.clone(), AclRule { name: "a b".into(), ..good.clone() }]).await.unwrap_err();
    assert_eq!(error.reason, Reason::InvalidRequest);
    assert!(error.message.starts_with("rules[1].name: \"a b\": "), "{error}");
    assert_eq!(reason(root.create_acls(vec![]).await), Reason::InvalidRequest);
    assert_eq!(reason(root.create_acls(vec![good; 501]).await), Reason::InvalidRequest);
    assert_eq!(reason(root.set_quota(None, Quota::default()).await), Reason::InvalidRequest);
    assert!(root.list_acls(&AclFilter::default()).await.unwrap().is_empty());
    broker.shutdown().await;
}

#[tokio::test]
async fn one_principal_over_its_quota_does_not_slow_another() {
    let (_directory, broker) = start().await;
    let (root, ann, bob) = (root(), caller("ann"), caller("bob"));
    let set = broker.for_caller(&root);
    set.create_acls(vec![allow("*", ResourceKind::Topic, "default", Action::All)]).await.unwrap();
    set.set_quota(Some("ann".into()), Quota { bytes_in: 10, ..Quota::default() }).await.unwrap();
    // A full bucket may be overdrawn once; what was overdrawn by far is paid back before anything else.
    broker
        .for_caller(&ann)
        .produce(to("default", "a value of more than ten bytes by far"), Route::Local)
        .await
        .unwrap();
    let refused = broker.for_caller(&ann).produce(to("default", "v"), Route::Local).await.unwrap_err();
    assert_eq!(refused.reason, Reason::Overloaded);
    assert!(refused.value("retry_after_ms").unwrap().parse::<u64>().unwrap() > 0);
    broker.for_caller(&bob).produce(to("default", "v"), Route::Local).await.unwrap();
    broker.for_caller(&ann).fetch(read("default"), Route::Local).await.unwrap();
    broker.shutdown().await;
}

/// A method of the public API and a message that it takes.
struct Method {
    path: String,
    streams_requests: bool,
}

/// Every method of every service of `chronicle.v1`.
fn methods() -> Vec<Method> {
    let files = FileDescriptorSet::decode(chronicle_proto::FILE_DESCRIPTOR_SET).unwrap();
    let mut methods = Vec::new();
    for file in files.file.iter().filter(|file| file.package() == "chronicle.v1") {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/chronicle.v1.{}/{}", service.name(), method.name());
                methods.push(Method { path, streams_requests: method.client_streaming() });
            }
        }
    }
    methods
}

/// A request that would do something, were it allowed; encoded, since the methods are called by name.
fn request(path: &str) -> Vec<u8> {
    let partition = || Some(proto::Partition { topic: "default".into(), partition: 0 });
    let (group, topic) = ("g".to_owned(), "default".to_owned());
    let node = || proto::NodeRequest { node: "chronicle-0".into() }.encode_to_vec();
    match path.rsplit('/').next().unwrap() {
        "Produce" | "ProduceStream" => {
            let record = proto::Record { value: Some(Bytes::from_static(b"v")), ..Default::default() };
            let request = proto::ProduceRequest { partition: partition(), records: vec![record], ..Default::default() };
            request.encode_to_vec()
        }
        "Consume" => proto::ConsumeRequest { partition: partition(), ..Default::default() }.encode_to_vec(),
        "ConsumeStream" => proto::ConsumeStreamRequest { partition: partition(), ..Default::default() }.encode_to_vec(),
        "ListOffsets" => proto::ListOffsetsRequest { partition: partition(), ..Default::default() }.encode_to_vec(),
        "CreateTopic" => proto::CreateTopicRequest { name: "new".into(), ..Default::default() }.encode_to_vec(),
        "DescribeTopic" => proto::DescribeTopicRequest { name: topic }.encode_to_vec(),
        "AlterTopic" => proto::AlterTopicRequest { name: topic, partitions: 2, ..Default::default() }.encode_to_vec(),
        "DeleteTopic" => proto::DeleteTopicRequest { name: topic }.encode_to_vec(),
        "Decommission" | "Drain" | "Undrain" => node(),
        "Heartbeat" => {
            proto::GroupHeartbeatRequest { group, topics: vec![topic], ..Default::default() }.encode_to_vec()
        }
        "Leave" => proto::LeaveGroupRequest { group, member_id: "m".into() }.encode_to_vec(),
        "CommitOffsets" => {
            let offset = proto::GroupOffset { topic, ..Default::default() };
            proto::CommitOffsetsRequest { group, offsets: vec![offset], ..Default::default() }.encode_to_vec()
        }
        "FetchOffsets" => proto::FetchOffsetsRequest { group, ..Default::default() }.encode_to_vec(),
        "DescribeGroup" => proto::DescribeGroupRequest { group }.encode_to_vec(),
        "ResetOffsets" => {
            let to = Some(proto::reset_offsets_request::To::Earliest(true));
            proto::ResetOffsetsRequest { group, topic, to, ..Default::default() }.encode_to_vec()
        }
        "DeleteGroup" => proto::DeleteGroupRequest { group }.encode_to_vec(),
        "CreateAcls" => {
            let acl = proto::Acl {
                principal: "anonymous".into(),
                resource: proto::ResourceKind::Cluster.into(),
                name: "cluster".into(),
                operation: proto::AclOperation::All.into(),
                ..Default::default()
            };
            proto::CreateAclsRequest { acls: vec![acl] }.encode_to_vec()
        }
        "DeleteAcls" => proto::DeleteAclsRequest { filters: vec![proto::AclFilter::default()] }.encode_to_vec(),
        "SetQuota" => {
            let quota = Some(proto::Quota { requests: 1, ..Default::default() });
            proto::SetQuotaRequest { principal: None, quota }.encode_to_vec()
        }
        // An empty message says what they ask for.
        _ => Vec::new(),
    }
}

/// A message of any type: its bytes.
#[derive(Debug, Default, Clone)]
struct Raw(Vec<u8>);

impl Message for Raw {
    fn encode_raw(&self, buf: &mut impl bytes::BufMut) {
        buf.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: prost::encoding::WireType,
        buf: &mut impl bytes::Buf,
        ctx: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        // What an answer says is of no matter, only whether there is something in it.
        self.0.push(0);
        prost::encoding::skip_field(wire_type, tag, buf, ctx)
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

/// Calls a method by name: its first answer, or how it ended without one.
async fn call(channel: &Channel, method: &Method) -> Result<Raw, Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec: ProstCodec<Raw, Raw> = ProstCodec::default();
    let path = method.path.parse().unwrap();
    let message = Raw(request(&method.path));
    // Its wire form is the same for one message as for a stream of one.
    let request = Request::new(tokio_stream::once(message));
    assert!(method.streams_requests || !method.path.ends_with("ProduceStream"));
    let mut answers = grpc.streaming(request, path, codec).await?.into_inner();
    answers.message().await?.ok_or_else(|| Status::ok("no answer"))
}

#[tokio::test]
async fn every_method_of_the_public_api_refuses_a_caller_without_permissions() {
    let node = Node::start_with(secured).await;
    let channel = Endpoint::from_shared(node.url("")).unwrap().connect().await.unwrap();
    let methods = methods();
    assert!(methods.len() >= 34, "{} methods", methods.len());
    for method in &methods {
        let path = method.path.as_str();
        match call(&channel, method).await {
            // Lists show what may be seen: nothing.
            Ok(answer) if path.ends_with("/ListTopics") || path.ends_with("/ListGroups") => {
                assert!(answer.0.is_empty(), "{path} shows something");
            }
            // A refusal is an answer in the stream, which goes on.
            Ok(_) if path.ends_with("/ProduceStream") => {}
            Ok(_) => panic!("{path} answers"),
            // Topics are not there; everything else says that it is forbidden.
            Err(status) => assert!(
                matches!(status.code(), Code::PermissionDenied | Code::NotFound),
                "{path}: {status:?}: is the call judged?"
            ),
        }
    }
    let state = node.broker.for_caller(&root()).list_acls(&AclFilter::default()).await.unwrap();
    assert!(state.is_empty());
    assert!(node.broker.for_caller(&root()).offsets(&target("default"), None, Route::Local).await.unwrap().next == 0);
    node.stop().await;
}

#[tokio::test]
async fn refusals_are_counted_and_http_returns_them_as_problems() {
    let node = Node::start_with(secured).await;
    chronicle_node::runtime::collect_node(&node.metrics, &node.core);
    let http = reqwest::Client::new();
    let servers = http.get(node.url("/v1/servers")).send().await.unwrap();
    assert_eq!(servers.status(), 403);
    assert_eq!(servers.headers()["content-type"], "application/problem+json");
    let problem: serde_json::Value = servers.json().await.unwrap();
    assert_eq!(
        (problem["reason"].as_str(), problem["operation"].as_str()),
        (Some("PERMISSION_DENIED"), Some("describe"))
    );
    assert_eq!(http.post(node.url("/")).body("v").send().await.unwrap().status(), 404);
    assert_eq!(http.get(node.url("/?offset=0")).send().await.unwrap().status(), 404);
    let topics: serde_json::Value = http.get(node.url("/v1/topics")).send().await.unwrap().json().await.unwrap();
    assert_eq!(topics, serde_json::json!({"topics": []}));
    for (method, path) in [
        (reqwest::Method::POST, "/v1/producers"),
        (reqwest::Method::DELETE, "/v1/topics/default"),
        (reqwest::Method::GET, "/v1/topics/default"),
        (reqwest::Method::GET, "/v1/topics/default/partitions/0/offsets"),
        (reqwest::Method::GET, "/v1/topics/default/partitions/0/records"),
    ] {
        let status = http.request(method, node.url(path)).send().await.unwrap().status();
        assert!(matches!(status.as_u16(), 403 | 404), "{path}: {status}");
    }
    assert_eq!(node.metric("chronicle_authorization_denied_total{operation=\"write\"}"), 2.0);
    let anonymous = allow("anonymous", ResourceKind::Topic, "default", Action::Write);
    node.broker.for_caller(&root()).create_acls(vec![anonymous]).await.unwrap();
    assert_eq!(http.post(node.url("/")).body("v").send().await.unwrap().status(), 200);
    node.broker.for_caller(&root()).set_quota(None, Quota { requests: 1, ..Quota::default() }).await.unwrap();
    // Of six at once some are answered, one waits, and the others would have to wait for too long.
    let posts = (0..6).map(|_| http.post(node.url("/")).body("v").send());
    let answers: Vec<_> = futures::future::join_all(posts).await.into_iter().map(Result::unwrap).collect();
    let limited = answers.iter().find(|answer| answer.status() == 429).expect("one is refused");
    assert!(limited.headers().contains_key("retry-after"));
    assert!(node.metric("chronicle_quota_throttled_total{quota=\"requests\",outcome=\"delayed\"}") > 0.0);
    node.stop().await;
}
