#![expect(clippy::disallowed_methods, reason = "shows ages on this machine")]

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{Method, Request, Response};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tower::service_fn;

use super::bundle::{self, BundleArgs};
use super::drain::{self, DrainArgs};
use super::dry_run::{PlannedChange, dry_run};
use super::error::PluginError;
use super::nodes::{Files, NodeAccess};
use super::plan::{self, Plan, Source};
use super::session::Session;
use super::{logs, members, status};
use crate::admin::fake::FakeAdmin;
use crate::admin::{Admin, AdminError, AdminResult, Target};
use crate::api::ChronicleCluster;
use crate::build::OptionalApis;
use crate::controller::Context;
use crate::controller::cluster::reconcile;
use crate::controller::fake_kubernetes::{FakeKubernetes, NAMESPACE};
use crate::plan::{CatchUp, ClusterView};

const NAME: &str = "log";

impl NodeAccess for FakeAdmin {
    fn observe<'a>(&'a self, target: &'a Target) -> AdminResult<'a, ClusterView> {
        Admin::observe(self, target)
    }

    fn catch_up<'a>(&'a self, target: &'a Target, nodes: &'a [String]) -> AdminResult<'a, CatchUp> {
        Admin::catch_up(self, target, nodes)
    }

    fn drain<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()> {
        Admin::drain(self, target, node_id)
    }

    fn undrain<'a>(&'a self, target: &'a Target, node_id: &'a str) -> AdminResult<'a, ()> {
        Admin::undrain(self, target, node_id)
    }

    fn diagnostics<'a>(&'a self, _: &'a Target, address: &'a str, _: usize) -> AdminResult<'a, Files> {
        let answer = match address.starts_with("log-1.") {
            true => Err(AdminError::Failed("connection refused".into())),
            false => Ok(Files::from([("metrics.txt".to_owned(), b"chronicle_up 1\n".to_vec())])),
        };
        Box::pin(std::future::ready(answer))
    }
}

/// Access to the simulated cluster without the checks for the operator: commands of the plugin need no recorded operation.
fn nodes(fake: &FakeKubernetes) -> Arc<FakeAdmin> {
    Arc::new(FakeAdmin {
        cluster: fake.cluster.clone(),
        before: Arc::new(|_, _, _| Ok(())),
        after: Arc::new(|| Ok(())),
    })
}

fn open(fake: &FakeKubernetes) -> Session {
    Session::for_tests(fake.client(), NAMESPACE, nodes(fake))
}

/// Returns a client whose requests go to `answer` first, and to the fake API server if that returns nothing.
fn client(
    fake: &FakeKubernetes,
    answer: impl Fn(&Method, &str) -> Option<Response<Body>> + Send + Sync + 'static,
) -> Client {
    let (inner, answer) = (fake.client(), Arc::new(answer));
    let service = service_fn(move |request: Request<Body>| {
        let (inner, answer) = (inner.clone(), answer.clone());
        async move {
            match answer(request.method(), &request.uri().to_string()) {
                Some(answer) => Ok(answer),
                None => inner.send(request).await,
            }
        }
    });
    Client::new(service, NAMESPACE)
}

fn refused(code: u16, message: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": if code == 403 { "Forbidden" } else { "NotFound" }, "code": code,
    });
    Response::builder().status(code).body(Body::from(serde_json::to_vec(&status).unwrap())).unwrap()
}

fn new_context(fake: &FakeKubernetes) -> impl FnOnce(Client, Arc<dyn Admin>) -> Context {
    let apis = OptionalApis { cert_manager: true, pod_monitor: false };
    let seconds = fake.seconds.clone();
    let clock = Arc::new(move || Timestamp::from_second(seconds.load(Ordering::Relaxed)).unwrap());
    move |client, admin| Context::for_tests(client, admin, apis, clock)
}

async fn reconcile_once(fake: &FakeKubernetes, context: &Context) {
    let resource = fake.get("chronicleclusters", NAME).unwrap();
    let resource: ChronicleCluster = serde_json::from_value(resource).unwrap();
    reconcile(Arc::new(resource), context.clone()).await.unwrap();
}

/// A converged cluster of three nodes.
async fn settled() -> FakeKubernetes {
    let fake = FakeKubernetes::new();
    let resource = json!({
        "apiVersion": "chronicle.dev/v1alpha1", "kind": "ChronicleCluster", "metadata": {"name": NAME},
        "spec": {"image": "chronicle:1.0.0", "replicas": 3, "storage": {"size": "1Gi"}},
    });
    fake.put("chronicleclusters", resource);
    let operator = fake.operator();
    for _ in 0..200 {
        reconcile_once(&fake, &operator).await;
        fake.tick();
        let status = fake.get("chronicleclusters", NAME).unwrap()["status"].clone();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        if conditions.iter().any(|condition| condition["reason"] == "Settled") && status["operation"].is_null() {
            fake.writes.lock().clear();
            fake.cluster.lock().calls.clear();
            return fake;
        }
    }
    panic!("never settled");
}

async fn planned(fake: &FakeKubernetes) -> Plan {
    let before = (fake.objects.lock().clone(), fake.cluster.lock().calls.clone());
    let plan = plan::make(&open(fake), NAME, new_context(fake)).await.unwrap();
    assert_eq!(*fake.objects.lock(), before.0, "the plan changed an object");
    assert_eq!(fake.cluster.lock().calls, before.1, "the plan sent a command to the cluster");
    plan
}

fn changes(plan: &Plan) -> Vec<String> {
    let of = |change: &super::dry_run::PlannedChange| {
        format!("{} {}/{} {}", change.verb, change.resource, change.name, change.detail)
    };
    plan.reconciles.iter().flatten().map(of).collect()
}

#[tokio::test]
async fn a_plan_of_a_converged_cluster_is_empty() {
    let fake = settled().await;
    let plan = planned(&fake).await;
    assert_eq!((plan.source, changes(&plan)), (Source::Nodes, Vec::<String>::new()));
    let text = plan::text(&plan);
    assert!(text.contains("would change nothing") && !text.contains("Blocked or waiting"), "{text}");
}

#[tokio::test]
async fn a_plan_follows_the_operator_step_by_step_without_a_write() {
    let fake = settled().await;
    fake.edit("chronicleclusters", NAME, |cluster| cluster["spec"]["image"] = "chronicle:1.1.0".into());
    let plan = planned(&fake).await;
    let changes = changes(&plan);
    assert!(changes.iter().any(|change| change.starts_with("change statefulsets/log spec.template")), "{changes:?}");
    assert!(
        changes.iter().any(|change| change.contains("start Roll of log-") && change.contains("at step Drain")),
        "{changes:?}"
    );

    // The next plans announce what the operator then does.
    let operator = fake.operator();
    for expected in ["drain node/log-", ": advance to step Pod", "delete pods/log-"] {
        let mut found = false;
        for _ in 0..20 {
            let plan = planned(&fake).await;
            found = self::changes(&plan).iter().any(|change| change.contains(expected));
            if found {
                break;
            }
            reconcile_once(&fake, &operator).await;
            fake.tick();
        }
        assert!(found, "no plan contains {expected:?}");
    }
}

#[tokio::test]
async fn a_live_setting_is_planned_without_a_restart_and_waited_for() {
    let fake = settled().await;
    let change = json!({"limits": {"connections-max": 1000}});
    fake.edit("chronicleclusters", NAME, |cluster| cluster["spec"]["config"] = change);
    let plan = planned(&fake).await;
    let text = plan::text(&plan);
    assert!(
        text.contains("change configmaps/log-config: data.chronicle.yaml, takes effect without a restart"),
        "{text}"
    );
    assert!(text.contains("UpToDate False ConfigurationPending: ") && !text.contains("statefulsets"), "{text}");

    reconcile_once(&fake, &fake.operator()).await;
    let shown = async || members::text(&members::gather(&open(&fake), NAME).await.unwrap(), false, Timestamp::now());
    let before = shown().await;
    let behind = "log-1 has not loaded the current configuration file yet.";
    assert!(before.contains(behind), "{before}");
    for _ in 0..100 {
        fake.tick();
    }
    let after = shown().await;
    assert!(!after.contains("configuration file"), "an up-to-date node needs no remark: {after}");
    fake.cluster.lock().nodes.values_mut().filter(|node| node.name == "log-1").for_each(|node| {
        node.configuration.as_mut().unwrap().restart_fields = vec!["listeners.data".into(), "node.name".into()];
    });
    let text = shown().await;
    assert!(text.contains("log-1 needs a restart to apply listeners.data, node.name."), "{text}");
    fake.cluster.lock().nodes.values_mut().filter(|node| node.name == "log-1").for_each(|node| {
        node.configuration.as_mut().unwrap().error = "limits: no such field".into();
    });
    let text = shown().await;
    assert!(
        text.contains("log-1 rejects its configuration file and keeps its previous configuration: limits: no"),
        "{text}"
    );

    let both = json!({"limits": {"connections-max": 2000}, "partitions": {"queue-bytes-max": "32MiB"}});
    fake.edit("chronicleclusters", NAME, |cluster| cluster["spec"]["config"] = both);
    let text = plan::text(&planned(&fake).await);
    assert!(!text.contains("without a restart") && text.contains("statefulsets"), "{text}");
}

#[tokio::test]
async fn a_plan_of_a_new_cluster_begins_at_the_beginning() {
    let fake = FakeKubernetes::new();
    let resource = json!({
        "apiVersion": "chronicle.dev/v1alpha1", "kind": "ChronicleCluster", "metadata": {"name": NAME},
        "spec": {"image": "chronicle:1.0.0", "storage": {"size": "1Gi"}},
    });
    fake.put("chronicleclusters", resource);
    let plan = planned(&fake).await;
    let changes = changes(&plan);
    assert_eq!(changes[0], "change chronicleclusters/log metadata.finalizers");
    assert!(changes.iter().any(|change| change.starts_with("create services/log-nodes")), "{changes:?}");
    assert!(plan.unseen);
}

#[tokio::test]
async fn a_plan_names_the_gate_that_holds_the_operator() {
    let fake = settled().await;
    fake.edit("chronicleclusters", NAME, |cluster| {
        cluster["spec"]["image"] = "chronicle:9.0.0".into();
        cluster["spec"]["version"] = "9.0.0".into();
    });
    let plan = planned(&fake).await;
    let text = plan::text(&plan);
    assert!(
        text.contains("Degraded True VersionGate: log-") && text.contains("major version cannot be changed"),
        "{text}"
    );
    assert!(!changes(&plan).iter().any(|change| change.contains("start ")), "{text}");
    fake.edit("chronicleclusters", NAME, |cluster| cluster["spec"]["reconciliation"] = "Paused".into());
    let text = plan::text(&planned(&fake).await);
    assert!(text.contains("Progressing False Paused"), "{text}");
}

#[tokio::test]
async fn a_plan_contains_what_the_operator_has_reported_since_it_began() {
    let fake = settled().await;
    fake.edit("chronicleclusters", NAME, |cluster| cluster["spec"]["reconciliation"] = "Paused".into());
    let session = open(&fake);
    let begun = session.cluster(NAME).await.unwrap();
    reconcile_once(&fake, &fake.operator()).await;
    let outcome = dry_run(session.client.clone(), session.nodes(NAME), begun, new_context(&fake)).await;
    assert_eq!(outcome.reconciles, Vec::<Vec<PlannedChange>>::new());
    let conditions = outcome.cluster.status.unwrap().conditions;
    assert!(conditions.iter().any(|condition| condition.reason == "Paused"), "{conditions:?}");
}

#[tokio::test]
async fn a_plan_that_cannot_reach_the_nodes_does_not_guess() {
    let fake = settled().await;
    fake.edit("chronicleclusters", NAME, |cluster| cluster["spec"]["image"] = "chronicle:1.1.0".into());
    fake.cluster.lock().failing_reads = 10;
    let plan = planned(&fake).await;
    assert_eq!((plan.source, plan.reconciles.len()), (Source::Status, 0));
    let text = plan::text(&plan);
    assert!(
        text.contains("not queried: no majority") && text.contains("last status that the operator reported"),
        "{text}"
    );

    fake.cluster.lock().failing_reads = 0;
    let without = client(&fake, |_, uri| uri.contains("/secrets/").then(|| refused(403, "no secrets for you")));
    let session = Session::for_tests(without, NAMESPACE, nodes(&fake));
    let plan = plan::make(&session, NAME, new_context(&fake)).await.unwrap();
    let text = plan::text(&plan);
    assert_eq!(plan.source, Source::Status);
    assert!(text.contains("you are not allowed to get Secret log-node-tls") && text.contains("get secrets"), "{text}");
}

#[tokio::test]
async fn a_missing_crd_cluster_and_right_are_distinguished() {
    let fake = settled().await;
    let failure = open(&fake).cluster("lgo").await.unwrap_err();
    assert_eq!(failure.to_string(), "no ChronicleCluster lgo in namespace ns; did you mean log?");
    assert_eq!(failure.exit_code(), 5);

    let bare = client(&fake, |_, uri| {
        let unknown = || Response::builder().status(404).body(Body::from(b"404 page not found\n".to_vec())).unwrap();
        uri.contains("chronicleclusters").then(unknown)
    });
    let session = Session::for_tests(bare, NAMESPACE, nodes(&fake));
    assert!(matches!(session.cluster(NAME).await, Err(PluginError::NoCrds)));
    assert!(matches!(session.clusters(false).await, Err(PluginError::NoCrds)));

    let denied = client(&fake, |_, uri| uri.contains("chronicleclusters").then(|| refused(403, "cannot get")));
    let session = Session::for_tests(denied, NAMESPACE, nodes(&fake));
    let failure = session.cluster(NAME).await.unwrap_err();
    assert!(
        failure.to_string().starts_with("not allowed: get chronicleclusters.chronicle.dev in namespace ns"),
        "{failure}"
    );
}

#[tokio::test]
async fn a_status_shows_conditions_members_and_capacity() {
    let fake = settled().await;
    for claim in fake.names("persistentvolumeclaims") {
        let bound = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
        fake.edit("persistentvolumeclaims", &claim, |claim| claim["status"] = bound);
    }
    let session = open(&fake);
    let cluster = session.cluster(NAME).await.unwrap();
    let view = status::ClusterSummary::of(&cluster, status::volumes(&session, NAME).await.unwrap(), Timestamp::now());
    let text = status::text(&view, false, Timestamp::now());
    for part in [
        "3Gi in 3 volumes",
        "3 of 3 voters alive, 2 needed; tolerates 1 more failures",
        "Settled",
        "log-2    Voter   Active",
        "Operation:",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let list = status::list(&[view], true, true);
    assert!(list.starts_with("NAMESPACE   NAME") && list.contains("ns          log    3/3     3"), "{list}");
}

#[tokio::test]
async fn members_come_from_the_nodes_and_otherwise_from_the_status() {
    let fake = settled().await;
    let list = members::gather(&open(&fake), NAME).await.unwrap();
    assert!(list.live && list.members.len() == 3 && list.members.iter().filter(|member| member.leader).count() == 1);
    let text = members::text(&list, false, Timestamp::now());
    assert!(text.contains("Voter, leads") && text.contains("Queried the nodes just now"), "{text}");

    fake.cluster.lock().failing_reads = 1;
    let list = members::gather(&open(&fake), NAME).await.unwrap();
    assert!(!list.live && list.members.len() == 3);
    let text = members::text(&list, true, Timestamp::now());
    assert!(
        text.contains("From the last status that the operator reported, because: cannot query the nodes: no majority"),
        "{text}"
    );
}

fn drain_args(pod: &str) -> DrainArgs {
    DrainArgs { name: NAME.into(), pod: pod.into(), timeout: std::time::Duration::from_secs(5), undo: false }
}

#[tokio::test(start_paused = true)]
async fn a_leader_is_drained_and_then_may_go() {
    let fake = settled().await;
    let leader = fake.get("chronicleclusters", NAME).unwrap()["status"]["leader"].as_str().unwrap().to_owned();
    let (moving, ticks) = (fake.clone(), tokio::time::interval(std::time::Duration::from_millis(700)));
    let task = tokio::spawn(async move {
        let mut ticks = ticks;
        loop {
            ticks.tick().await;
            moving.cluster.lock().tick();
        }
    });
    let mut out = Vec::new();
    drain::run(&open(&fake), &drain_args(&leader), &mut out).await.unwrap();
    task.abort();
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains(&format!("draining {leader}: transferring its leadership\n")), "{text}");
    assert!(
        text.ends_with(&format!("{leader} can be deleted or evicted now: the other nodes keep a majority\n")),
        "{text}"
    );
    assert_eq!(*fake.writes.lock(), Vec::<String>::new());

    let mut out = Vec::new();
    drain::run(&open(&fake), &DrainArgs { undo: true, ..drain_args(&leader) }, &mut out).await.unwrap();
    let calls = fake.cluster.lock().calls.clone();
    assert!(calls.len() == 2 && calls[0].starts_with("drain ") && calls[1].starts_with("undrain "), "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_reports_why_it_does_not_begin_or_end() {
    let fake = settled().await;
    let mut out = Vec::new();
    let failure = drain::run(&open(&fake), &drain_args("log-7"), &mut out).await.unwrap_err();
    assert_eq!(failure.to_string(), "ChronicleCluster log has no pod log-7; its pods: log-0, log-1, log-2");

    // The simulated cluster does not advance, so the leader keeps its leadership.
    let leader = fake.get("chronicleclusters", NAME).unwrap()["status"]["leader"].as_str().unwrap().to_owned();
    let failure = drain::run(&open(&fake), &drain_args(&leader), &mut out).await.unwrap_err();
    assert!(
        matches!(failure, PluginError::TimedOut(_)) && failure.to_string().contains("leads the controller group"),
        "{failure}"
    );
    assert_eq!(failure.exit_code(), 3);

    let operation = json!({"kind": "Roll", "step": "Drain", "target": leader});
    fake.edit("chronicleclusters", NAME, |cluster| cluster["status"]["operation"] = operation);
    let failure = drain::run(&open(&fake), &drain_args(&leader), &mut out).await.unwrap_err();
    assert!(failure.to_string().contains("the operator is running Roll"), "{failure}");
}

fn log_of(uri: &str) -> Option<Response<Body>> {
    let text = match uri {
        uri if uri.contains("/log-0/log?") => "2027-01-01T00:00:01Z one\n2027-01-01T00:00:04.5Z four\n",
        uri if uri.contains("/log-1/log?") => {
            "2027-01-01T00:00:02Z two\n  and more of it\n2027-01-01T00:00:04.25Z three"
        }
        uri if uri.contains("/log?") => "",
        _ => return None,
    };
    Some(Response::new(Body::from(text.as_bytes().to_vec())))
}

#[tokio::test]
async fn logs_of_all_pods_are_merged_by_time() {
    let fake = settled().await;
    let with_logs = client(&fake, |_, uri| log_of(uri));
    let session = Session::for_tests(with_logs, NAMESPACE, nodes(&fake));
    let args = logs::LogsArgs {
        name: NAME.into(),
        pod: None,
        follow: false,
        since: None,
        tail: None,
        previous: false,
        timestamps: false,
    };
    let mut out = Vec::new();
    logs::run(&session, &args, &mut out).await.unwrap();
    let text = String::from_utf8(out).unwrap();
    assert_eq!(text, "[log-0] one\n[log-1] two\n[log-1]   and more of it\n[log-1] three\n[log-0] four\n");
    let one = logs::LogsArgs { pod: Some("log-9".into()), ..args };
    assert!(matches!(logs::run(&session, &one, &mut Vec::new()).await, Err(PluginError::NoPod { .. })));
}

fn read(archive: &[u8]) -> Vec<(String, String)> {
    let mut read = tar::Archive::new(flate2::read::GzDecoder::new(archive));
    let text = |mut entry: tar::Entry<'_, _>| {
        let mut bytes = Vec::new();
        Read::read_to_end(&mut entry, &mut bytes).unwrap();
        (entry.path().unwrap().display().to_string(), String::from_utf8(bytes).unwrap())
    };
    read.entries().unwrap().map(|entry| text(entry.unwrap())).collect()
}

#[tokio::test]
async fn a_bundle_has_what_there_is_and_no_secret() {
    let fake = settled().await;
    let secret = "aHVudGVyMg==";
    fake.edit("secrets", "log-node-tls", |object| {
        object["data"]["tls.key"] = secret.into();
        object["metadata"]["annotations"] =
            json!({"kubectl.kubernetes.io/last-applied-configuration": format!("{{\"data\":\"{secret}\"}}"), "made-by": "hunter2"});
    });
    fake.edit("chronicleclusters", NAME, |cluster| {
        cluster["spec"]["config"] = json!({"traces": {"headers": {"authorization": "Bearer hunter2"}}});
    });
    fake.edit("configmaps", "log-config", |map| {
        map["data"]["chronicle.yaml"] = "traces:\n  headers:\n    authorization: Bearer hunter2\nnode: {}\n".into();
    });
    let asked = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let (log, plain) = (asked.clone(), client(&fake, |_, uri| log_of(uri)));
    let watched = service_fn(move |request: Request<Body>| {
        let about = request.uri().path().contains("/secrets") && !request.uri().path().contains("/secrets/");
        if about {
            let accept = request.headers().get("accept").and_then(|accept| accept.to_str().ok()).unwrap_or_default();
            log.lock().push(accept.to_owned());
        }
        assert_eq!(request.method(), Method::GET);
        let plain = plain.clone();
        async move { plain.send(request).await }
    });
    let session = Session::for_tests(Client::new(watched, NAMESPACE), NAMESPACE, nodes(&fake));
    let cluster = session.cluster(NAME).await.unwrap();
    let args = BundleArgs { name: NAME.into(), file: None, log_mib: 1, operator_namespace: "chronicle-system".into() };
    let made =
        bundle::write(&session, &args, &cluster, Vec::new(), "top", Timestamp::UNIX_EPOCH, new_context(&fake)).await;
    let (archive, files, problems) = made.unwrap();
    let contents = read(&archive);
    assert_eq!(contents.len(), files);
    for (name, text) in &contents {
        for bad in ["hunter2", secret, "PRIVATE KEY", "a2V5"] {
            assert!(!text.contains(bad), "{name} holds {bad}:\n{text}");
        }
    }
    assert!(asked.lock().iter().all(|accept| accept.contains("PartialObjectMetadata")), "{:?}", asked.lock());
    let of =
        |name: &str| -> &str { &contents.iter().find(|(known, _)| known == &format!("top/{name}")).expect(name).1 };
    assert!(of("resources/secrets-without-data.yaml").contains("name: log-node-tls"));
    assert!(of("resources/chronicleclusters.yaml").contains("(masked)"));
    assert!(of("resources/configmaps.yaml").contains("node: {}"));
    assert!(
        of("resources/pods.yaml").contains("log-2") && of("resources/statefulsets.yaml").contains("kind: StatefulSet")
    );
    assert!(of("logs/log-0/current.log").contains("four"));
    assert!(of("plan.txt").contains("ChronicleCluster ns/log"));
    assert_eq!(of("nodes/log-0/metrics.txt"), "chronicle_up 1\n");
    let node_problem = problems.iter().any(|problem| problem == "node log-1: connection refused");
    assert!(node_problem && of("problems.txt").contains("node log-1"), "{problems:?}");
}

#[tokio::test]
async fn a_bundle_is_made_without_any_right_but_to_see_the_cluster() {
    let fake = settled().await;
    let confined = client(&fake, |_, uri| (!uri.contains("/chronicleclusters/")).then(|| refused(403, "no")));
    let session = Session::for_tests(confined, NAMESPACE, nodes(&fake));
    let cluster = session.cluster(NAME).await.unwrap();
    let args = BundleArgs { name: NAME.into(), file: None, log_mib: 1, operator_namespace: "x".into() };
    let made =
        bundle::write(&session, &args, &cluster, Vec::new(), "top", Timestamp::UNIX_EPOCH, new_context(&fake)).await;
    let (_, _, problems) = made.unwrap();
    let text = problems.join("\n");
    for part in
        ["list pods in namespace ns", "list secrets in namespace ns", "list nodes: no", "list pods in namespace x"]
    {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[test]
fn answers_for_programs_keep_the_names_of_the_resource() {
    let value: Value = serde_json::to_value(super::dry_run::PlannedChange {
        verb: "delete".into(),
        resource: "pods".into(),
        name: "log-1".into(),
        detail: String::new(),
    })
    .unwrap();
    assert_eq!(value, json!({"verb": "delete", "resource": "pods", "name": "log-1"}));
}
