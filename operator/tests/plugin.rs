//! Runs the plugin as a process against a fake API server over HTTP: exit codes, messages, and port-forwards.

use std::path::PathBuf;
use std::process::{Command, Output};

use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Json, Response};
use serde_json::{Value, json};

fn cluster() -> Value {
    json!({
        "apiVersion": "chronicle.dev/v1alpha1", "kind": "ChronicleCluster",
        "metadata": {"name": "log", "namespace": "shop", "uid": "u", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "image": "chronicle:1.0.0", "replicas": 1, "storage": {"size": "1Gi"},
            "security": {"tls": {"mode": "Disabled"}, "authorization": {"mode": "Disabled"}},
        },
        "status": {
            "observedGeneration": 1, "replicas": 1, "readyReplicas": 1, "size": 1, "leader": "log-0", "clusterId": "c",
            "members": [{"name": "log-0", "nodeId": "0123456789", "role": "Voter", "state": "Active", "alive": true}],
        },
    })
}

fn failure(code: u16, reason: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "because", "reason": reason, "code": code,
    });
    (StatusCode::from_u16(code).unwrap(), Json(status)).into_response()
}

/// A fake API server with one cluster in namespace `shop`. Requests in `bare` behave as without CRDs, requests in `closed` are forbidden.
async fn answer(uri: Uri) -> Response {
    let list = |items: Value| {
        Json(json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items})).into_response()
    };
    match uri.path() {
        path if path.contains("/namespaces/bare/") => (StatusCode::NOT_FOUND, "404 page not found\n").into_response(),
        path if path.contains("/namespaces/closed/") => failure(403, "Forbidden"),
        path if path.ends_with("/chronicleclusters/log") => Json(cluster()).into_response(),
        path if path.ends_with("/chronicleclusters") => list(json!([cluster()])),
        path if path.contains("/chronicleclusters/") => failure(404, "NotFound"),
        path if path.ends_with("/portforward") => failure(403, "Forbidden"),
        _ => list(json!([])),
    }
}

/// Runs the plugin against a new API server.
async fn run(name: &str, args: &[&str]) -> Output {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    let kubeconfig = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("kubeconfig-{name}"));
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
        "users": [{"name": "me", "user": {}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "shop"}}],
    });
    std::fs::write(&kubeconfig, text.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-chronicle"));
    command.arg("--kubeconfig").arg(&kubeconfig).args(args);
    #[expect(clippy::disallowed_methods, reason = "a real process")]
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    server.abort();
    output
}

fn result(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn the_namespace_of_the_context_is_the_default() {
    let (code, out, err) = result(&run("list", &["status"]).await);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.starts_with("NAME   NODES") && out.contains("log    1/1"), "{out}");
    let (code, out, _) = result(&run("json", &["status", "log", "-o", "json"]).await);
    let value: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &value["status"]["leader"], &value["namespace"]), (0, &json!("log-0"), &json!("shop")));
}

#[tokio::test]
async fn failures_have_distinct_exit_codes() {
    let (code, _, err) = result(&run("name", &["status", "lgo"]).await);
    assert_eq!(
        (code, err.as_str()),
        (5, "kubectl chronicle: no ChronicleCluster lgo in namespace shop; did you mean log?\n")
    );
    let (code, _, err) = result(&run("bare", &["status", "log", "-n", "bare"]).await);
    assert!(code == 5 && err.contains("chronicleclusters.chronicle.dev is not installed"), "{code} {err}");
    let (code, _, err) = result(&run("closed", &["members", "log", "-n", "closed"]).await);
    assert!(
        code == 4 && err.contains("not allowed: get chronicleclusters.chronicle.dev in namespace closed"),
        "{code} {err}"
    );
    let (code, _, err) = result(&run("context", &["status", "--context", "nowhere"]).await);
    assert!(code == 1 && err.contains("nowhere"), "{code} {err}");
    let (code, _, _) = result(&run("usage", &["drain", "log"]).await);
    assert_eq!(code, 2);
}

#[tokio::test]
async fn a_forbidden_port_forward_is_reported_with_its_right() {
    let (code, out, err) = result(&run("members", &["members", "log"]).await);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("01234567   Voter, leads"), "{out}");
    assert!(out.contains("not allowed: get and create pods/portforward in namespace shop"), "{out}");
    let (code, _, err) = result(&run("drain", &["drain", "log", "log-0"]).await);
    assert!(code == 1 && err.contains("cannot query the nodes"), "{code} {err}");
}
