//! What a node answers other nodes that it does not belong to.

use crate::serving::Node;
use chronicle_proto::internal as proto;
use chronicle_proto::internal::group_request::Ask;
use chronicle_proto::internal::peer_client::PeerClient;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request};

/// A node that begins like this.
async fn peer(node: &Node, preface: &'static [u8; 24]) -> PeerClient<Channel> {
    let address = node.address;
    let connect = tower::service_fn(move |_: Uri| async move {
        let mut io = tokio::net::TcpStream::connect(address).await?;
        io.write_all(preface).await?;
        Ok::<_, std::io::Error>(TokioIo::new(io))
    });
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    PeerClient::new(endpoint.connect_with_connector(connect).await.unwrap())
}

fn asks_for_status() -> proto::GroupRequest {
    let group = proto::GroupId { topic: vec![0; 16].into(), partition: 0 };
    proto::GroupRequest { group: Some(group), ask: Some(Ask::Status(true)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_version_receives_the_supported_version() {
    let node = Node::start().await;
    for preface in [b"CHRONICLE PEER 2\r\n\r\n\r\n\r\n", b"CHRONICLE PEER X\r\n\r\n\r\n\r\n"] {
        let status = peer(&node, preface).await.hello(proto::HelloRequest::default()).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.message(), "PROTOCOL: this node speaks version 1");
    }
    let mut same = peer(&node, b"CHRONICLE PEER 1\r\n\r\n\r\n\r\n").await;
    let hello = same.hello(proto::HelloRequest::default()).await.unwrap().into_inner();
    assert_eq!((hello.protocol, hello.raft_id), (1, 1));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_an_identity_or_of_another_cluster_is_refused() {
    let node = Node::start().await;
    let mut same = peer(&node, b"CHRONICLE PEER 1\r\n\r\n\r\n\r\n").await;
    let hello = same.hello(proto::HelloRequest::default()).await.unwrap().into_inner();
    let ask = async |peer: &mut PeerClient<Channel>, cluster: &str, to: &str, from: &str| {
        let mut request = Request::new(asks_for_status());
        for (name, value) in
            [("chronicle-cluster", cluster), ("chronicle-to", to), ("chronicle-from", from), ("chronicle-boot", "1")]
        {
            request.metadata_mut().insert(name, value.parse().unwrap());
        }
        peer.group(request).await.unwrap_err()
    };
    let nameless = same.group(asks_for_status()).await.unwrap_err();
    assert_eq!(nameless.code(), Code::InvalidArgument);
    assert!(nameless.message().starts_with("chronicle-cluster: missing"), "{nameless}");
    let foreign = ask(&mut same, "018f0000-0000-7000-8000-000000000000", "1", "7").await;
    assert_eq!(foreign.code(), Code::FailedPrecondition);
    assert!(foreign.message().starts_with("FOREIGN_CLUSTER: "), "{foreign}");
    assert!(foreign.message().contains(&hello.cluster_id), "{foreign}");
    let elsewhere = ask(&mut same, &hello.cluster_id, "9", "7").await;
    assert!(elsewhere.message().starts_with("WRONG_NODE: "), "{elsewhere}");
    // Ids count up from 1, and 0 was never one.
    let gone = ask(&mut same, &hello.cluster_id, "1", "0").await;
    assert_eq!(gone.code(), Code::PermissionDenied);
    assert!(gone.message().starts_with("NODE_REMOVED: "), "{gone}");
    node.stop().await;
}
