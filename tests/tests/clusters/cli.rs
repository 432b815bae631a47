//! `chronicle cluster` against a cluster that answers by script: what is printed, what is waited for, and the exit codes.

use std::net::SocketAddr;
use std::pin::Pin;
use std::process::Output;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use chronicle_proto::v1;
use chronicle_proto::v1::cluster_server::{Cluster, ClusterServer};
use chronicle_tests::node::{output, program};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// A cluster of three nodes, `node-0` to `node-2` with ids `a` to `c`.
#[derive(Default)]
struct Script {
    /// The operation as it stands, one a question; the last one stays.
    operation: Mutex<Vec<v1::Operation>>,
    verified: Vec<v1::VerifyResponse>,
    /// Requests, as text.
    asked: Mutex<Vec<String>>,
}

impl Script {
    fn note(&self, request: impl Into<String>) {
        self.asked.lock().expect("no panic while held").push(request.into());
    }

    fn operation(&self) -> Option<v1::Operation> {
        let mut left = self.operation.lock().expect("no panic while held");
        if left.len() > 1 { Some(left.remove(0)) } else { left.first().cloned() }
    }

    fn begin(&self, what: &str, node: &str) -> Result<Response<v1::OperationResponse>, Status> {
        self.note(format!("{what} {node}"));
        match self.operation() {
            Some(operation) => Ok(Response::new(v1::OperationResponse { operation: Some(operation) })),
            None => {
                let details = ErrorDetails::with_error_info("INVALID_REQUEST", "chronicle.dev", []);
                let message = format!("node {node}: the others cannot hold 3 replicas");
                Err(Status::with_error_details(tonic::Code::InvalidArgument, message, details))
            }
        }
    }
}

fn servers() -> Vec<v1::Server> {
    let server = |(number, id): (u32, &str)| v1::Server {
        node_id: id.into(),
        name: format!("node-{number}"),
        address: format!("10.0.0.{number}:7400"),
        controller_leader: number == 1,
        zone: format!("zone-{number}"),
        role: v1::ServerRole::Voter.into(),
        state: if number == 3 { v1::ServerState::Removed } else { v1::ServerState::Active }.into(),
        alive: number != 2,
        replicas: 7,
        preferred_leaders: 2,
        ..Default::default()
    };
    (0..).zip(["a", "b", "c", "gone"]).map(server).collect()
}

type VerifyStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<v1::VerifyResponse, Status>> + Send>>;

struct Service(Arc<Script>);

#[tonic::async_trait]
impl Cluster for Service {
    async fn get_servers(&self, _: Request<v1::GetServersRequest>) -> Result<Response<v1::GetServersResponse>, Status> {
        Ok(Response::new(v1::GetServersResponse { servers: servers(), cluster_id: "the-cluster".into() }))
    }

    async fn get_metadata(
        &self,
        _: Request<v1::GetMetadataRequest>,
    ) -> Result<Response<v1::GetMetadataResponse>, Status> {
        Ok(Response::new(v1::GetMetadataResponse::default()))
    }

    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Result<Response<v1::GetStatusResponse>, Status> {
        Ok(Response::new(v1::GetStatusResponse {
            cluster_id: "the-cluster".into(),
            controller_leader: "b".into(),
            controller_term: 4,
            servers: servers(),
            partitions: 12,
            under_replicated: 3,
            operations: self.0.operation().into_iter().collect(),
            ..Default::default()
        }))
    }

    async fn decommission(&self, r: Request<v1::NodeRequest>) -> Result<Response<v1::OperationResponse>, Status> {
        self.0.begin("decommission", &r.get_ref().node)
    }

    async fn drain(&self, r: Request<v1::NodeRequest>) -> Result<Response<v1::OperationResponse>, Status> {
        self.0.begin("drain", &r.get_ref().node)
    }

    async fn undrain(&self, r: Request<v1::NodeRequest>) -> Result<Response<v1::OperationResponse>, Status> {
        self.0.begin("undrain", &r.get_ref().node)
    }

    async fn cancel_operation(
        &self,
        r: Request<v1::CancelOperationRequest>,
    ) -> Result<Response<v1::OperationResponse>, Status> {
        self.0.begin("cancel", &r.get_ref().id.to_string())
    }

    async fn transfer_leadership(
        &self,
        r: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::TransferLeadershipResponse>, Status> {
        let v1::TransferLeadershipRequest { topic, partition, to } = r.into_inner();
        self.0.note(format!("transfer [{topic}] {partition} [{to}]"));
        Ok(Response::new(v1::TransferLeadershipResponse { leader: "c".into() }))
    }

    async fn recover(&self, r: Request<v1::RecoverRequest>) -> Result<Response<v1::RecoverResponse>, Status> {
        let v1::RecoverRequest { topic, partition, source, dry_run } = r.into_inner();
        self.0.note(format!("recover [{topic}] {partition} [{source}] {dry_run}"));
        Ok(Response::new(v1::RecoverResponse::default()))
    }

    type VerifyStream = VerifyStream;

    async fn verify(&self, r: Request<v1::VerifyRequest>) -> Result<Response<VerifyStream>, Status> {
        self.0.note(format!("verify [{}]", r.get_ref().topic));
        let answers: Vec<_> = self.0.verified.iter().cloned().map(Ok).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(answers))))
    }
}

/// Serves a script while `body` runs the command line against it.
fn with(script: Script, body: impl FnOnce(SocketAddr, &Script) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    let script = Arc::new(script);
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tonic::transport::Server::builder()
        .add_service(ClusterServer::new(Service(script.clone())))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
            let _ = stopped.await;
        });
    let serving = runtime.spawn(serving);
    let result = body(address, &script);
    let _ = stop.send(());
    runtime.block_on(serving)??;
    result
}

fn chronicle(server: SocketAddr, arguments: &[&str]) -> Result<Output> {
    let mut command = program()?;
    command.arg("cluster").args(arguments).args(["--server", &server.to_string()]);
    output(command)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn operation(state: &str, remaining: u32, reason: &str) -> v1::Operation {
    v1::Operation {
        id: 9,
        kind: "decommission".into(),
        node_id: "c".into(),
        state: state.into(),
        reason: reason.into(),
        total: 4,
        remaining,
        ..Default::default()
    }
}

#[test]
fn members_and_status_show_roles_zones_and_who_is_alive() -> Result<()> {
    with(Script::default(), |server, _| {
        let table = text(&chronicle(server, &["members"])?.stdout);
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        ensure!(lines.len() == 4, "three nodes and a heading:\n{table}");
        ensure!(lines[2][..6] == ["node-1", "10.0.0.1:7400", "leader", "active", "yes", "zone-1"], "{table}");
        ensure!(lines[3][2..5] == ["voter", "active", "no"], "{table}");
        let all: Value = serde_json::from_slice(&chronicle(server, &["members", "--all", "-o", "json"])?.stdout)?;
        ensure!(all[3]["state"] == "removed" && all[0]["replicas"] == 7, "{all}");
        let status = text(&chronicle(server, &["status"])?.stdout);
        ensure!(status.contains("node-1, term 4") && status.contains("Under-replicated:  3"), "{status}");
        let yaml = text(&chronicle(server, &["status", "--output", "yaml"])?.stdout);
        ensure!(yaml.contains("controller_leader: node-1") && yaml.contains("under_replicated: 3"), "{yaml}");
        Ok(())
    })
}

#[test]
fn a_decommission_is_waited_for_and_its_end_is_the_exit_code() -> Result<()> {
    let script = |last: v1::Operation| Script {
        operation: Mutex::new(vec![operation("running", 4, ""), operation("running", 1, "node-0 fills"), last]),
        ..Script::default()
    };
    with(script(operation("done", 0, "")), |server, script| {
        let done = chronicle(server, &["decommission", "node-2", "-o", "json"])?;
        ensure!(done.status.success(), "{}", text(&done.stderr));
        let printed: Value = serde_json::from_slice(&done.stdout)?;
        ensure!(printed["state"] == "done" && printed["node"] == "node-2" && printed["remaining"] == 0, "{printed}");
        ensure!(*script.asked.lock().expect("no panic while held") == ["decommission node-2"], "asked twice");
        Ok(())
    })?;
    with(script(operation("failed", 1, "no node has room")), |server, _| {
        let failed = chronicle(server, &["decommission", "node-2"])?;
        ensure!(failed.status.code() == Some(1), "{}", failed.status);
        let err = text(&failed.stderr);
        ensure!(err.ends_with("error: decommission failed: no node has room\n"), "{err}");
        Ok(())
    })?;
    with(script(operation("done", 0, "")), |server, _| {
        let begun = chronicle(server, &["drain", "node-2", "--no-wait"])?;
        ensure!(begun.status.success() && text(&begun.stdout).contains("running"), "{}", text(&begun.stdout));
        Ok(())
    })
}

#[test]
fn a_refusal_is_one_line_with_its_reason() -> Result<()> {
    with(Script::default(), |server, _| {
        let refused = chronicle(server, &["decommission", "node-2", "--yes"])?;
        ensure!(refused.status.code() == Some(1), "{}", refused.status);
        let err = text(&refused.stderr);
        ensure!(err == "error: INVALID_REQUEST: node node-2: the others cannot hold 3 replicas\n", "{err}");
        Ok(())
    })
}

#[test]
fn verify_names_the_replica_that_differs_and_fails() -> Result<()> {
    let digest =
        |id: &str, digest: &str| v1::ReplicaDigest { node_id: id.into(), digest: digest.into(), ..Default::default() };
    let verified = |partition: i32, last: &str| v1::VerifyResponse {
        topic: "orders".into(),
        partition,
        to: 10,
        replicas: vec![digest("a", "aaaa"), digest("b", "aaaa"), digest("c", last)],
        difference: if last == "aaaa" { String::new() } else { "digests differ".into() },
        ..Default::default()
    };
    with(Script { verified: vec![verified(0, "aaaa"), verified(1, "aaaa")], ..Script::default() }, |server, _| {
        let same = chronicle(server, &["verify"])?;
        ensure!(same.status.success() && !text(&same.stdout).contains("DIFFERENT"), "{}", text(&same.stdout));
        Ok(())
    })?;
    with(Script { verified: vec![verified(0, "aaaa"), verified(1, "bbbb")], ..Script::default() }, |server, script| {
        let differs = chronicle(server, &["verify", "orders"])?;
        ensure!(differs.status.code() == Some(1), "{}", differs.status);
        let err = text(&differs.stderr);
        ensure!(err.contains("orders 1: digests differ; node-2 has bbbb") && err.contains("1 of 2"), "{err}");
        ensure!(text(&differs.stdout).lines().last().context("rows")?.ends_with("DIFFERENT"), "not in the table");
        ensure!(*script.asked.lock().expect("no panic while held") == ["verify [orders]"], "asked otherwise");
        Ok(())
    })
}

#[test]
fn transfer_cancel_and_undrain_send_their_arguments() -> Result<()> {
    let script = Script { operation: Mutex::new(vec![operation("cancelled", 2, "")]), ..Script::default() };
    with(script, |server, script| {
        let moved = chronicle(server, &["transfer", "orders", "--partition", "3", "--to", "node-2"])?;
        ensure!(text(&moved.stdout).contains("node-2"), "{}", text(&moved.stdout));
        chronicle(server, &["transfer"])?;
        let cancelled = chronicle(server, &["cancel", "9"])?;
        ensure!(cancelled.status.success(), "{}", text(&cancelled.stderr));
        chronicle(server, &["undrain", "node-0"])?;
        let asked = script.asked.lock().expect("no panic while held").join(", ");
        ensure!(asked == "transfer [orders] 3 [node-2], transfer [] 0 [], cancel 9, undrain node-0", "{asked}");
        Ok(())
    })
}

#[test]
fn a_node_that_is_not_there_is_named() -> Result<()> {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let failed = chronicle(nobody, &["status", "--timeout", "1s"])?;
    let err = text(&failed.stderr);
    ensure!(failed.status.code() == Some(1) && err.contains(&nobody.to_string()) && err.lines().count() == 1, "{err}");
    Ok(())
}
