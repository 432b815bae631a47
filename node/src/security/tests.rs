//! Handshakes and reloading, on loopback.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::config::{ClientAuth, SecurityConfig, TlsMode};
use crate::host::net::{Socket, adopt, release};
use crate::identity::{NODE_URI, NodeClaim};

struct Ca {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn ca() -> Ca {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Ca { pem, issuer: Issuer::new(params, key) }
}

impl Ca {
    fn node(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(format!("{NODE_URI}{name}").try_into().unwrap()));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

fn write(dir: &Path, pair: &(String, String), ca: &str) {
    std::fs::write(dir.join("crt"), &pair.0).unwrap();
    std::fs::write(dir.join("key"), &pair.1).unwrap();
    std::fs::write(dir.join("ca"), ca).unwrap();
}

fn config(dir: &Path) -> SecurityConfig {
    let mut config = SecurityConfig::default();
    config.tls.mode = TlsMode::Enabled;
    (config.tls.cert_file, config.tls.key_file, config.tls.ca_file) =
        (dir.join("crt"), dir.join("key"), dir.join("ca"));
    config.tls.client_auth = ClientAuth::Optional;
    config
}

fn node(ca: &Ca, name: &str) -> (tempfile::TempDir, Arc<Tls>) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &ca.node(name), &ca.pem);
    let tls = Tls::open(&config(dir.path())).unwrap();
    (dir, tls)
}

/// `from` connects to `to` as a node, and expects the name `name`.
async fn connect(from: &Arc<Tls>, to: &Arc<Tls>, name: &str) -> (std::io::Result<()>, Result<Remote, HandshakeError>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let names = NodeNames::default();
    names.write().insert(address.clone(), name.to_owned());
    let connecting = from.connector(chronicle_client::tcp_connector(), names)(address);
    let accepting = async {
        let (socket, _) = listener.accept().await.unwrap();
        let (socket, remote) = to.accept(Socket::System(socket)).await?;
        // Released and adopted again in the middle of the connection.
        let mut socket = adopt(release(socket).unwrap()).unwrap();
        let mut byte = [0];
        let _ = socket.read_exact(&mut byte).await;
        let _ = socket.write_all(&byte).await;
        let _ = socket.flush().await;
        Ok(remote)
    };
    let asking = async {
        let mut io = connecting.await?;
        io.write_all(b"x").await?;
        io.flush().await?;
        let mut byte = [0];
        io.read_exact(&mut byte).await?;
        assert_eq!(&byte, b"x");
        Ok(())
    };
    tokio::join!(asking, accepting)
}

#[tokio::test]
async fn nodes_of_one_ca_accept_one_another_and_the_stream_moves_between_runtimes() {
    let ca = ca();
    let ((_a, a), (_b, b)) = (node(&ca, "a"), node(&ca, "b"));
    let (asked, remote) = connect(&a, &b, "b").await;
    asked.unwrap();
    let Remote::Peer(certificate) = remote.unwrap() else { panic!("a client") };
    b.judge(&certificate, NodeClaim { name: "a", address: "127.0.0.1:1" }).unwrap();
    b.judge(&certificate, NodeClaim { name: "c", address: "127.0.0.1:1" }).unwrap_err();
}

#[tokio::test]
async fn the_node_at_an_address_must_be_the_member_that_has_it() {
    let ca = ca();
    let ((_a, a), (_b, b)) = (node(&ca, "a"), node(&ca, "b"));
    let (asked, _) = connect(&a, &b, "c").await;
    let error = asked.unwrap_err().to_string();
    assert!(error.contains("\"c\""), "{error}");
}

#[tokio::test]
async fn a_node_of_another_ca_is_refused_by_both_sides() {
    let ((_a, a), (_b, b)) = (node(&ca(), "a"), node(&ca(), "b"));
    let (asked, remote) = connect(&a, &b, "b").await;
    asked.unwrap_err();
    assert_eq!(remote.unwrap_err().outcome, HandshakeOutcome::Refused);
}

#[test]
fn changed_files_are_applied_when_complete_and_ignored_when_not() {
    let ca = ca();
    let (dir, tls) = node(&ca, "a");
    let first = tls.served();
    tls.reload();
    assert_eq!((tls.served(), tls.reload_failures()), (first.clone(), 0));
    let second = ca.node("a");
    write(dir.path(), &(second.0.clone(), ca.node("a").1), &ca.pem);
    tls.reload();
    tls.reload();
    assert_eq!(
        (tls.served(), tls.reload_failures()),
        (first.clone(), 1),
        "the key of another certificate, logged once"
    );
    std::fs::remove_file(dir.path().join("ca")).unwrap();
    tls.reload();
    tls.reload();
    assert_eq!((tls.served(), tls.reload_failures()), (first.clone(), 2));
    write(dir.path(), &second, &ca.pem);
    tls.reload();
    assert_ne!(tls.served(), first);
    assert_eq!(tls.reload_failures(), 2);
}

#[test]
fn files_that_cannot_be_used_are_named_with_field_path_and_rule() {
    let ca = ca();
    let dir = tempfile::tempdir().unwrap();
    let pair = ca.node("a");
    let open = || Tls::open(&config(dir.path())).unwrap_err().to_string();
    assert!(open().starts_with("security.tls.cert-file: "), "{}", open());
    write(dir.path(), &("nothing".into(), pair.1.clone()), &ca.pem);
    assert!(open().ends_with("crt: must contain a certificate in PEM form"), "{}", open());
    write(dir.path(), &(pair.0.clone(), "nothing".into()), &ca.pem);
    assert!(open().starts_with("security.tls.key-file: "), "{}", open());
    write(dir.path(), &(pair.0.clone(), ca.node("a").1), &ca.pem);
    assert!(open().ends_with("must be the key of security.tls.cert-file"), "{}", open());
    write(dir.path(), &pair, "");
    assert!(open().starts_with("security.tls.ca-file: "), "{}", open());
}
