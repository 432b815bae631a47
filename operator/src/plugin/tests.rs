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

use super::access::Access;
use super::bundle::{self, BundleArgs};
use super::drain::{self, DrainArgs};
use super::error::Failure;
use super::nodes::{Ask, Files};
use super::plan::{self, Plan, Source};
use super::rehearse::{Change, rehearse};
use super::{logs, members, status};
use crate::admin::fake::FakeAdmin;
use crate::admin::{Admin, AdminError, AdminResult, Target};
use crate::api::ChronicleCluster;
use crate::build::Available;
use crate::controller::Context;
use crate::controller::cluster::reconcile;
use crate::controller::world::{NAMESPACE, World};
use crate::plan::{CatchUp, ClusterView};

const NAME: &str = "log";

impl Ask for FakeAdmin {
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

/// The made-up cluster as somebody sees it who is not the operator: what is asked of it stands in no record.
fn nodes(world: &World) -> Arc<FakeAdmin> {
    Arc::new(FakeAdmin {
        cluster: world.cluster.clone(),
        before: Arc::new(|_, _, _| Ok(())),
        after: Arc::new(|| Ok(())),
    })
}

fn access(world: &World) -> Access {
    Access::for_tests(world.client(), NAMESPACE, nodes(world))
}

/// A client for which some requests are answered by `answer`, and the others by the world.
fn client(world: &World, answer: impl Fn(&Method, &str) -> Option<Response<Body>> + Send + Sync + 'static) -> Client {
    let (inner, answer) = (world.client(), Arc::new(answer));
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

fn surroundings(world: &World) -> impl FnOnce(Client, Arc<dyn Admin>) -> Context {
    let available = Available { cert_manager: true, pod_monitor: false };
    let seconds = world.seconds.clone();
    let clock = Arc::new(move || Timestamp::from_second(seconds.load(Ordering::Relaxed)).unwrap());
    move |client, admin| Context::for_tests(client, admin, available, clock)
}

async fn pass(world: &World, context: &Context) {
    let resource = world.get("chronicleclusters", NAME).unwrap();
    let resource: ChronicleCluster = serde_json::from_value(resource).unwrap();
    reconcile(Arc::new(resource), context.clone()).await.unwrap();
}

/// A cluster of three nodes at which nothing is to be done.
async fn settled() -> World {
    let world = World::new();
    let resource = json!({
        "apiVersion": "chronicle.dev/v1alpha1", "kind": "ChronicleCluster", "metadata": {"name": NAME},
        "spec": {"image": "chronicle:1.0.0", "replicas": 3, "storage": {"size": "1Gi"}},
    });
    world.put("chronicleclusters", resource);
    let operator = world.operator();
    for _ in 0..200 {
        pass(&world, &operator).await;
        world.tick();
        let status = world.get("chronicleclusters", NAME).unwrap()["status"].clone();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        if conditions.iter().any(|condition| condition["reason"] == "Settled") && status["operation"].is_null() {
            world.writes.lock().clear();
            world.cluster.lock().calls.clear();
            return world;
        }
    }
    panic!("never settled");
}

async fn planned(world: &World) -> Plan {
    let before = (world.objects.lock().clone(), world.cluster.lock().calls.clone());
    let plan = plan::make(&access(world), NAME, surroundings(world)).await.unwrap();
    assert_eq!(*world.objects.lock(), before.0, "a plan has changed an object");
    assert_eq!(world.cluster.lock().calls, before.1, "a plan has told the cluster something");
    plan
}

fn told(plan: &Plan) -> Vec<String> {
    let of = |change: &super::rehearse::Change| {
        format!("{} {}/{} {}", change.verb, change.resource, change.name, change.detail)
    };
    plan.reconciles.iter().flatten().map(of).collect()
}

#[tokio::test]
async fn a_plan_of_a_settled_cluster_says_that_nothing_is_to_be_done() {
    let world = settled().await;
    let plan = planned(&world).await;
    assert_eq!((plan.source, told(&plan)), (Source::Nodes, Vec::<String>::new()));
    let text = plan::text(&plan);
    assert!(text.contains("would change nothing") && !text.contains("In the way"), "{text}");
}

#[tokio::test]
async fn a_plan_follows_the_operator_step_by_step_without_a_write() {
    let world = settled().await;
    world.edit("chronicleclusters", NAME, |cluster| cluster["spec"]["image"] = "chronicle:1.1.0".into());
    let plan = planned(&world).await;
    let told = told(&plan);
    assert!(told.iter().any(|change| change.starts_with("change statefulsets/log spec.template")), "{told:?}");
    assert!(
        told.iter().any(|change| change.contains("begin Roll of log-") && change.contains("at step Drain")),
        "{told:?}"
    );

    // What the operator then does is what the next plans say that it will.
    let operator = world.operator();
    for expected in ["drain node/log-", ": go on to step Pod", "delete pods/log-"] {
        let mut found = false;
        for _ in 0..20 {
            let plan = planned(&world).await;
            found = self::told(&plan).iter().any(|change| change.contains(expected));
            if found {
                break;
            }
            pass(&world, &operator).await;
            world.tick();
        }
        assert!(found, "no plan says {expected:?}");
    }
}

#[tokio::test]
async fn a_live_setting_is_planned_without_a_restart_and_waited_for() {
    let world = settled().await;
    let change = json!({"limits": {"connections-max": 1000}});
    world.edit("chronicleclusters", NAME, |cluster| cluster["spec"]["config"] = change);
    let plan = planned(&world).await;
    let text = plan::text(&plan);
    assert!(
        text.contains("change configmaps/log-config: data.chronicle.yaml, takes effect without a restart"),
        "{text}"
    );
    assert!(text.contains("UpToDate False ConfigurationPending: ") && !text.contains("statefulsets"), "{text}");

    pass(&world, &world.operator()).await;
    let shown = async || members::text(&members::gather(&access(&world), NAME).await.unwrap(), false, Timestamp::now());
    let before = shown().await;
    let behind = "log-1 has not taken the configuration file that the spec comes to yet.";
    assert!(before.contains(behind), "{before}");
    for _ in 0..100 {
        world.tick();
    }
    let after = shown().await;
    assert!(!after.contains("configuration file"), "what is as it should be is not worth a line: {after}");
    world.cluster.lock().nodes.values_mut().filter(|node| node.name == "log-1").for_each(|node| {
        node.configuration.as_mut().unwrap().restart_fields = vec!["listeners.data".into(), "node.name".into()];
    });
    let text = shown().await;
    assert!(text.contains("log-1 takes up listeners.data, node.name when it is restarted."), "{text}");
    world.cluster.lock().nodes.values_mut().filter(|node| node.name == "log-1").for_each(|node| {
        node.configuration.as_mut().unwrap().error = "limits: no such field".into();
    });
    let text = shown().await;
    assert!(text.contains("log-1 refuses its configuration file and goes on with what it had: limits: no"), "{text}");

    let both = json!({"limits": {"connections-max": 2000}, "partitions": {"queue-bytes-max": "32MiB"}});
    world.edit("chronicleclusters", NAME, |cluster| cluster["spec"]["config"] = both);
    let text = plan::text(&planned(&world).await);
    assert!(!text.contains("without a restart") && text.contains("statefulsets"), "{text}");
}

#[tokio::test]
async fn a_plan_of_a_new_cluster_begins_at_the_beginning() {
    let world = World::new();
    let resource = json!({
        "apiVersion": "chronicle.dev/v1alpha1", "kind": "ChronicleCluster", "metadata": {"name": NAME},
        "spec": {"image": "chronicle:1.0.0", "storage": {"size": "1Gi"}},
    });
    world.put("chronicleclusters", resource);
    let plan = planned(&world).await;
    let told = told(&plan);
    assert_eq!(told[0], "change chronicleclusters/log metadata.finalizers");
    assert!(told.iter().any(|change| change.starts_with("create services/log-nodes")), "{told:?}");
    assert!(plan.unseen);
}

#[tokio::test]
async fn a_plan_names_the_gate_that_holds_the_operator() {
    let world = settled().await;
    world.edit("chronicleclusters", NAME, |cluster| {
        cluster["spec"]["image"] = "chronicle:9.0.0".into();
        cluster["spec"]["version"] = "9.0.0".into();
    });
    let plan = planned(&world).await;
    let text = plan::text(&plan);
    assert!(
        text.contains("Degraded True VersionGate: log-") && text.contains("major version cannot be changed"),
        "{text}"
    );
    assert!(!told(&plan).iter().any(|change| change.contains("begin")), "{text}");
    world.edit("chronicleclusters", NAME, |cluster| cluster["spec"]["reconciliation"] = "Paused".into());
    let text = plan::text(&planned(&world).await);
    assert!(text.contains("Progressing False Paused"), "{text}");
}

#[tokio::test]
async fn a_plan_knows_what_the_operator_has_reported_since_it_was_begun() {
    let world = settled().await;
    world.edit("chronicleclusters", NAME, |cluster| cluster["spec"]["reconciliation"] = "Paused".into());
    let access = access(&world);
    let begun = access.cluster(NAME).await.unwrap();
    pass(&world, &world.operator()).await;
    let rehearsal = rehearse(access.client.clone(), access.nodes(NAME), begun, surroundings(&world)).await;
    assert_eq!(rehearsal.passes, Vec::<Vec<Change>>::new());
    let conditions = rehearsal.cluster.status.unwrap().conditions;
    assert!(conditions.iter().any(|condition| condition.reason == "Paused"), "{conditions:?}");
}

#[tokio::test]
async fn a_plan_that_cannot_reach_the_nodes_does_not_guess() {
    let world = settled().await;
    world.edit("chronicleclusters", NAME, |cluster| cluster["spec"]["image"] = "chronicle:1.1.0".into());
    world.cluster.lock().silent = 10;
    let plan = planned(&world).await;
    assert_eq!((plan.source, plan.reconciles.len()), (Source::Status, 0));
    let text = plan::text(&plan);
    assert!(text.contains("not asked: no majority") && text.contains("reported last"), "{text}");

    world.cluster.lock().silent = 0;
    let without = client(&world, |_, uri| uri.contains("/secrets/").then(|| refused(403, "no secrets for you")));
    let access = Access::for_tests(without, NAMESPACE, nodes(&world));
    let plan = plan::make(&access, NAME, surroundings(&world)).await.unwrap();
    let text = plan::text(&plan);
    assert_eq!(plan.source, Source::Status);
    assert!(text.contains("you may not get Secret log-node-tls") && text.contains("get secrets"), "{text}");
}

#[tokio::test]
async fn what_is_missing_is_told_apart() {
    let world = settled().await;
    let failure = access(&world).cluster("lgo").await.unwrap_err();
    assert_eq!(failure.to_string(), "no ChronicleCluster lgo in namespace ns; did you mean log?");
    assert_eq!(failure.exit_code(), 5);

    let bare = client(&world, |_, uri| {
        let unknown = || Response::builder().status(404).body(Body::from(b"404 page not found\n".to_vec())).unwrap();
        uri.contains("chronicleclusters").then(unknown)
    });
    let access = Access::for_tests(bare, NAMESPACE, nodes(&world));
    assert!(matches!(access.cluster(NAME).await, Err(Failure::NoDefinitions)));
    assert!(matches!(access.clusters(false).await, Err(Failure::NoDefinitions)));

    let denied = client(&world, |_, uri| uri.contains("chronicleclusters").then(|| refused(403, "cannot get")));
    let access = Access::for_tests(denied, NAMESPACE, nodes(&world));
    let failure = access.cluster(NAME).await.unwrap_err();
    assert!(
        failure.to_string().starts_with("not allowed: get chronicleclusters.chronicle.dev in namespace ns"),
        "{failure}"
    );
}

#[tokio::test]
async fn a_status_shows_conditions_members_and_capacity() {
    let world = settled().await;
    for claim in world.names("persistentvolumeclaims") {
        let bound = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
        world.edit("persistentvolumeclaims", &claim, |claim| claim["status"] = bound);
    }
    let access = access(&world);
    let cluster = access.cluster(NAME).await.unwrap();
    let view = status::View::of(&cluster, status::volumes(&access, NAME).await.unwrap(), Timestamp::now());
    let text = status::text(&view, false, Timestamp::now());
    for part in [
        "3Gi in 3 volumes",
        "3 of 3 voters alive, 2 needed: 1 more may be lost",
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
async fn members_are_asked_and_otherwise_told_from_the_status() {
    let world = settled().await;
    let told = members::gather(&access(&world), NAME).await.unwrap();
    assert!(told.live && told.members.len() == 3 && told.members.iter().filter(|member| member.leader).count() == 1);
    let text = members::text(&told, false, Timestamp::now());
    assert!(text.contains("Voter, leads") && text.contains("Asked the nodes just now"), "{text}");

    world.cluster.lock().silent = 1;
    let told = members::gather(&access(&world), NAME).await.unwrap();
    assert!(!told.live && told.members.len() == 3);
    let text = members::text(&told, true, Timestamp::now());
    assert!(text.contains("As the operator reported last, because: the nodes cannot be asked: no majority"), "{text}");
}

fn drain_args(pod: &str) -> DrainArgs {
    DrainArgs { name: NAME.into(), pod: pod.into(), timeout: std::time::Duration::from_secs(5), undo: false }
}

#[tokio::test(start_paused = true)]
async fn a_leader_is_drained_and_then_may_go() {
    let world = settled().await;
    let leader = world.get("chronicleclusters", NAME).unwrap()["status"]["leader"].as_str().unwrap().to_owned();
    let (moving, ticks) = (world.clone(), tokio::time::interval(std::time::Duration::from_millis(700)));
    let task = tokio::spawn(async move {
        let mut ticks = ticks;
        loop {
            ticks.tick().await;
            moving.cluster.lock().tick();
        }
    });
    let mut out = Vec::new();
    drain::run(&access(&world), &drain_args(&leader), &mut out).await.unwrap();
    task.abort();
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains(&format!("{leader} hands over what it leads\n")), "{text}");
    assert!(
        text.ends_with(&format!("the others have a majority without {leader}: it may be deleted or evicted now\n")),
        "{text}"
    );
    assert_eq!(*world.writes.lock(), Vec::<String>::new());

    let mut out = Vec::new();
    drain::run(&access(&world), &DrainArgs { undo: true, ..drain_args(&leader) }, &mut out).await.unwrap();
    let calls = world.cluster.lock().calls.clone();
    assert!(calls.len() == 2 && calls[0].starts_with("drain ") && calls[1].starts_with("undrain "), "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_says_why_it_does_not_begin_or_end() {
    let world = settled().await;
    let mut out = Vec::new();
    let failure = drain::run(&access(&world), &drain_args("log-7"), &mut out).await.unwrap_err();
    assert_eq!(failure.to_string(), "log-7 is no pod of ChronicleCluster log: it has log-0, log-1, log-2");

    // Nobody moves, so that the leader leads on.
    let leader = world.get("chronicleclusters", NAME).unwrap()["status"]["leader"].as_str().unwrap().to_owned();
    let failure = drain::run(&access(&world), &drain_args(&leader), &mut out).await.unwrap_err();
    assert!(
        matches!(failure, Failure::TimedOut(_)) && failure.to_string().contains("leads the controller group"),
        "{failure}"
    );
    assert_eq!(failure.exit_code(), 3);

    let operation = json!({"kind": "Roll", "step": "Drain", "target": leader});
    world.edit("chronicleclusters", NAME, |cluster| cluster["status"]["operation"] = operation);
    let failure = drain::run(&access(&world), &drain_args(&leader), &mut out).await.unwrap_err();
    assert!(failure.to_string().contains("the operator is at Roll"), "{failure}");
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
    let world = settled().await;
    let with_logs = client(&world, |_, uri| log_of(uri));
    let access = Access::for_tests(with_logs, NAMESPACE, nodes(&world));
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
    logs::run(&access, &args, &mut out).await.unwrap();
    let text = String::from_utf8(out).unwrap();
    assert_eq!(text, "[log-0] one\n[log-1] two\n[log-1]   and more of it\n[log-1] three\n[log-0] four\n");
    let one = logs::LogsArgs { pod: Some("log-9".into()), ..args };
    assert!(matches!(logs::run(&access, &one, &mut Vec::new()).await, Err(Failure::NoPod { .. })));
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
    let world = settled().await;
    let secret = "aHVudGVyMg==";
    world.edit("secrets", "log-node-tls", |object| {
        object["data"]["tls.key"] = secret.into();
        object["metadata"]["annotations"] =
            json!({"kubectl.kubernetes.io/last-applied-configuration": format!("{{\"data\":\"{secret}\"}}"), "made-by": "hunter2"});
    });
    world.edit("chronicleclusters", NAME, |cluster| {
        cluster["spec"]["config"] = json!({"traces": {"headers": {"authorization": "Bearer hunter2"}}});
    });
    world.edit("configmaps", "log-config", |map| {
        map["data"]["chronicle.yaml"] = "traces:\n  headers:\n    authorization: Bearer hunter2\nnode: {}\n".into();
    });
    let asked = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let (log, plain) = (asked.clone(), client(&world, |_, uri| log_of(uri)));
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
    let access = Access::for_tests(Client::new(watched, NAMESPACE), NAMESPACE, nodes(&world));
    let cluster = access.cluster(NAME).await.unwrap();
    let args = BundleArgs { name: NAME.into(), file: None, log_mib: 1, operator_namespace: "chronicle-system".into() };
    let made =
        bundle::write(&access, &args, &cluster, Vec::new(), "top", Timestamp::UNIX_EPOCH, surroundings(&world)).await;
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
    let world = settled().await;
    let confined = client(&world, |_, uri| (!uri.contains("/chronicleclusters/")).then(|| refused(403, "no")));
    let access = Access::for_tests(confined, NAMESPACE, nodes(&world));
    let cluster = access.cluster(NAME).await.unwrap();
    let args = BundleArgs { name: NAME.into(), file: None, log_mib: 1, operator_namespace: "x".into() };
    let made =
        bundle::write(&access, &args, &cluster, Vec::new(), "top", Timestamp::UNIX_EPOCH, surroundings(&world)).await;
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
    let value: Value = serde_json::to_value(super::rehearse::Change {
        verb: "delete".into(),
        resource: "pods".into(),
        name: "log-1".into(),
        detail: String::new(),
    })
    .unwrap();
    assert_eq!(value, json!({"verb": "delete", "resource": "pods", "name": "log-1"}));
}
