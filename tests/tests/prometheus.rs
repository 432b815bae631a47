//! A real Prometheus scrapes a real cluster, evaluates the rules that are shipped, and answers the queries of the dashboards.
//!
//! Needs the programs `prometheus` and `promtool` (Debian's package `prometheus`).

use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chronicle_tests::cluster::Cluster;
use chronicle_tests::node::{self, PATIENCE};
use chronicle_tests::{api, repository};
use serde_json::Value;
use tempfile::TempDir;

const RULES: &str = "deploy/alerts/chronicle.yaml";

fn promtool(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(repository().join("deploy/alerts"));
    let output = node::output(command).context("is Debian's package prometheus installed?")?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "promtool {arguments:?}: {said}");
    Ok(())
}

#[test]
fn the_rules_are_valid_and_pass_their_tests() -> Result<()> {
    promtool(&["check", "rules", "chronicle.yaml"])?;
    promtool(&["test", "rules", "chronicle.test.yaml"])
}

/// A running Prometheus, which ends with the value.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    client: reqwest::Client,
    dir: TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    fn start(targets: &[SocketAddr]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let rules = repository().join(RULES);
        let targets: Vec<String> = targets.iter().map(|target| format!("{:?}", target.to_string())).collect();
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: [{:?}]\n\
             scrape_configs:\n  - job_name: chronicle\n    static_configs: [{{targets: [{}]}}]\n",
            rules.display().to_string(),
            targets.join(", ")
        );
        let file = dir.path().join("prometheus.yml");
        fs::write(&file, config)?;
        let address = SocketAddr::from(([127, 0, 0, 1], node::free_port()));
        let log = fs::File::create(dir.path().join("log"))?;
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--enable-feature=exemplar-storage")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("starting prometheus: is Debian's package prometheus installed?")?;
        Ok(Self { child, address, client: reqwest::Client::new(), dir })
    }

    /// The `data` of an answer of the HTTP API.
    async fn ask(&self, path: &str, query: &[(&str, &str)]) -> Result<Value> {
        let url = format!("http://{}/api/v1/{path}", self.address);
        let answer = self.client.get(url).query(query).timeout(Duration::from_secs(10)).send().await?;
        let answer: Value = answer.json().await?;
        ensure!(answer["status"] == "success", "{path} {query:?}: {answer}");
        Ok(answer["data"].clone())
    }

    /// Asks until the answer is what is waited for.
    async fn until<T>(&self, what: &str, mut look: impl AsyncFnMut(&Self) -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match look(self).await {
                Ok(found) => return Ok(found),
                Err(error) if Instant::now() > deadline => {
                    let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                    bail!("{what}: {error:#}\n{log}");
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    async fn up(&self, wanted: usize) -> Result<()> {
        let targets = self.ask("targets", &[("state", "active")]).await?;
        let targets = targets["activeTargets"].as_array().context("there are targets")?;
        let up = targets.iter().filter(|target| target["health"] == "up").count();
        ensure!(up == wanted, "{up} of {} targets are up, not {wanted}: {targets:?}", targets.len());
        Ok(())
    }

    /// Waits until an alert is in one of these states.
    async fn alert_becomes(&self, name: &str, states: &[&str]) -> Result<()> {
        let look = async |prometheus: &Self| {
            let state = prometheus.alert(name).await?;
            ensure!(states.contains(&state.as_str()), "{name} is {state}");
            Ok(())
        };
        self.until(name, look).await
    }

    /// State of an alert: `inactive`, `pending` or `firing`.
    async fn alert(&self, name: &str) -> Result<String> {
        let rules = self.ask("rules", &[("type", "alert")]).await?;
        let groups = rules["groups"].as_array().context("there are groups")?;
        let mut all = groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten());
        let rule = all.find(|rule| rule["name"] == name).with_context(|| format!("no rule {name}"))?;
        Ok(rule["state"].as_str().unwrap_or_default().to_owned())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_scrapes_a_cluster_evaluates_the_rules_and_sees_a_dead_node() -> Result<()> {
    let mut cluster = Cluster::of(3).start().await?;
    cluster.create_topic("orders", 4, 3, None).await?;
    let leader = cluster.leader("orders", 0).await?;
    let mut log = api::log(cluster.node(leader).address()).await?;
    api::append(&mut log, "orders", "record".into()).await?;
    let targets: Vec<SocketAddr> = (0..3).map(|number| cluster.node(number).ops_address()).collect();
    let prometheus = Prometheus::start(&targets)?;
    prometheus.until("all targets are up", async |p| p.up(3).await).await?;

    let healthy = async |p: &Prometheus| {
        let rules = p.ask("rules", &[]).await?;
        let rules: Vec<Value> = rules["groups"]
            .as_array()
            .context("there are groups")?
            .iter()
            .flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default())
            .collect();
        ensure!(rules.len() >= 10, "{} rules", rules.len());
        let ill: Vec<&Value> = rules.iter().filter(|rule| rule["health"] != "ok").collect();
        ensure!(ill.is_empty(), "rules that do not evaluate: {ill:?}");
        let fired: Vec<&Value> = rules.iter().filter(|rule| rule["state"] == "firing").collect();
        ensure!(fired.is_empty(), "a healthy cluster fires: {fired:?}");
        Ok(())
    };
    prometheus.until("every rule evaluates", healthy).await?;
    for name in ["ChronicleNodeDown", "ChronicleUnderReplicated", "ChronicleNoQuorum"] {
        prometheus.alert_becomes(name, &["inactive"]).await?;
    }
    every_query_of_the_dashboards_is_answered(&prometheus).await?;

    let victim = (cluster.leader("orders", 0).await? + 1) % 3;
    cluster.kill(victim);
    prometheus.until("the dead node is seen", async |p| p.up(2).await).await?;
    for name in ["ChronicleNodeDown", "ChronicleUnderReplicated"] {
        prometheus.alert_becomes(name, &["pending", "firing"]).await?;
    }
    // Pending for a moment, perhaps, until the others have elected leaders.
    ensure!(prometheus.alert("ChronicleNoQuorum").await? != "firing", "two of three are a majority");

    cluster.restart(victim)?;
    prometheus.alert_becomes("ChronicleUnderReplicated", &["inactive"]).await?;
    drop(prometheus);
    cluster.finish()
}

async fn every_query_of_the_dashboards_is_answered(prometheus: &Prometheus) -> Result<()> {
    // A rate needs two scrapes.
    let rate = [("query", "rate(chronicle_connections_accepted_total[1m])")];
    let deadline = Instant::now() + PATIENCE;
    while prometheus.ask("query", &rate).await?["result"].as_array().is_none_or(Vec::is_empty) {
        ensure!(Instant::now() < deadline, "no second scrape");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (mut asked, mut silent) = (0, Vec::new());
    for entry in fs::read_dir(repository().join("deploy/dashboards"))? {
        let dashboard: Value = serde_json::from_slice(&fs::read(entry?.path())?)?;
        let panels = dashboard["panels"].as_array().context("a dashboard has panels")?;
        for target in panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten()) {
            let expression = target["expr"].as_str().context("a target has an expression")?;
            let expression = expression.replace("$job", "chronicle").replace("$instance", ".*");
            let expression = expression.replace("$__rate_interval", "1m");
            ensure!(!expression.contains('$'), "{expression}: a variable is not known");
            let data = prometheus.ask("query", &[("query", &expression)]).await?;
            asked += 1;
            if data["result"].as_array().is_none_or(Vec::is_empty) {
                silent.push(expression);
            }
        }
    }
    ensure!(asked > 40, "only {asked} queries");
    // Some have nothing to say of a young and healthy cluster: errors, certificates, consumer groups.
    ensure!(silent.len() * 2 < asked, "{} of {asked} queries have no answer: {silent:#?}", silent.len());
    Ok(())
}
