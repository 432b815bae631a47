//! What is written for whoever runs Chronicle fits what a node does: metrics, alerts, runbooks, dashboards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chronicle_proto::v1;
use chronicle_proto::v1::groups_client::GroupsClient;
use chronicle_tests::node::{PATIENCE, Setup};
use chronicle_tests::{api, repository};
use serde_json::Value;

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A row of docs/operations/metrics.md.
struct Documented {
    kind: String,
    labels: BTreeSet<String>,
    /// It is there only in certain configurations or states: below the second heading of the page.
    sometimes: bool,
}

fn documented() -> BTreeMap<String, Documented> {
    let text = read("docs/operations/metrics.md");
    let (always, sometimes) = text.split_once("\n## Only").expect("the page says what is there only sometimes");
    let rows = |text: &str, sometimes: bool| {
        let row = move |line: &str| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let name = cells.get(1)?.strip_prefix("`chronicle_")?.strip_suffix('`')?;
            let labels = cells[3].split('`').skip(1).step_by(2).map(str::to_owned).collect();
            Some((format!("chronicle_{name}"), Documented { kind: cells[2].to_owned(), labels, sometimes }))
        };
        text.lines().filter_map(row).collect::<Vec<_>>()
    };
    rows(always, false).into_iter().chain(rows(sometimes, true)).collect()
}

/// Name as in a query, type and label names of every metric of a scrape.
fn scraped(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let name = match kind {
                "counter" => format!("{name}_total"),
                "info" => format!("{name}_info"),
                _ => name.to_owned(),
            };
            found.insert(name, (kind.to_owned(), BTreeSet::new()));
        } else if let Some((series, labels)) = line.split_once('{') {
            let series =
                ["_bucket", "_count", "_sum"].iter().find_map(|end| series.strip_suffix(end)).unwrap_or(series);
            let labels = labels.split('}').next().unwrap_or_default();
            let names = labels.split(',').filter_map(|label| label.split_once('=')).map(|(name, _)| name.to_owned());
            if let Some((_, known)) = found.get_mut(series) {
                known.extend(names.filter(|name| name != "le"));
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_a_node_is_documented_and_the_other_way_round() -> Result<()> {
    let node = Setup::new().set("metrics.lag-interval-ms", 100).start()?;
    let mut log = api::log(node.address()).await?;
    for _ in 0..3 {
        api::append(&mut log, "default", "record".into()).await?;
    }
    // A group that has consumed one of three.
    let mut groups = GroupsClient::new(api::connect(node.address()).await?);
    let offset = v1::GroupOffset { topic: "default".into(), partition: 0, offset: 1, ..Default::default() };
    groups
        .commit_offsets(v1::CommitOffsetsRequest {
            group: "readers".into(),
            offsets: vec![offset],
            ..Default::default()
        })
        .await?;
    let wanted = "chronicle_group_lag_records{group=\"readers\",topic=\"default\"} 2.0\n";
    let deadline = Instant::now() + PATIENCE;
    let text = loop {
        let (_, text) = node.ops("/metrics")?;
        if text.contains(wanted) {
            break text;
        }
        ensure!(Instant::now() < deadline, "{wanted:?} is not in\n{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let (documented, scraped) = (documented(), scraped(&text));
    let mut wrong = Vec::new();
    for (name, (kind, labels)) in &scraped {
        match documented.get(name) {
            None => wrong.push(format!("{name} ({kind}) is not in the page")),
            Some(row) if row.kind != *kind => wrong.push(format!("{name} is a {kind}, the page says {}", row.kind)),
            Some(row) if !labels.is_subset(&row.labels) => {
                wrong.push(format!("{name} has labels {labels:?}, the page says {:?}", row.labels));
            }
            Some(_) => {}
        }
    }
    let missing = documented.iter().filter(|(name, row)| !row.sometimes && !scraped.contains_key(*name));
    wrong.extend(missing.map(|(name, _)| format!("{name} is in the page, and not in the scrape")));
    ensure!(wrong.is_empty(), "docs/operations/metrics.md:\n{}", wrong.join("\n"));
    ensure!(text.ends_with("# EOF\n"), "the scrape is cut off");
    Ok(())
}

/// The metrics that an expression uses, as the page names them.
fn used(expression: &str, documented: &BTreeMap<String, Documented>) -> Vec<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = expression.split(|c| !word(c)).filter(|found| found.starts_with("chronicle_"));
    let whole = |found: &str| {
        let base = ["_bucket", "_count", "_sum"].iter().find_map(|end| found.strip_suffix(end));
        match base.filter(|base| documented.get(*base).is_some_and(|row| row.kind == "histogram")) {
            Some(base) => base.to_owned(),
            None => found.to_owned(),
        }
    };
    words.map(whole).collect()
}

#[test]
fn every_alert_has_a_runbook_and_a_test_and_uses_documented_metrics() {
    let (rules, tests) = (read("deploy/alerts/chronicle.yaml"), read("deploy/alerts/chronicle.test.yaml"));
    let documented = documented();
    let alerts: Vec<(&str, &str)> = rules
        .split("- alert: ")
        .skip(1)
        .map(|alert| alert.split_once('\n').expect("an alert has more than a name"))
        .collect();
    assert!(alerts.len() >= 10, "only {} alerts", alerts.len());
    let mut pages: BTreeSet<String> = fs::read_dir(repository().join("docs/operations/runbooks"))
        .expect("there are runbooks")
        .map(|entry| entry.expect("the folder can be read").file_name().to_string_lossy().into_owned())
        .collect();
    let index = read("docs/operations/README.md");
    for (name, rest) in alerts {
        let page = format!("docs/operations/runbooks/{name}.md");
        assert!(rest.contains(&format!("runbook_url: {page}\n")), "{name}: runbook_url is not {page}");
        assert!(pages.remove(&format!("{name}.md")), "{page} does not exist");
        let text = read(&page);
        for part in [&format!("# {name}\n"), "## What it means", "## How to see it", "## What to do", "\nchronicle "] {
            assert!(text.contains(part), "{page}: has no {part:?}");
        }
        assert!(index.contains(&format!("(runbooks/{name}.md)")), "docs/operations/README.md: does not list {name}");
        assert!(tests.contains(&format!("alertname=\"{name}\"")), "{name} has no test");
        assert!(rest.contains("severity: ") && rest.contains("summary: ") && rest.contains("description: "), "{name}");
        let expression = rest.split("expr:").nth(1).and_then(|rest| rest.split("labels:").next());
        for metric in used(expression.expect("an alert has an expression"), &documented) {
            assert!(documented.contains_key(&metric), "{name}: {metric} is not in docs/operations/metrics.md");
        }
    }
    assert!(pages.is_empty(), "runbooks without an alert: {pages:?}");
}

#[test]
fn dashboards_are_complete_and_use_documented_metrics() -> Result<()> {
    let documented = documented();
    let mut panels = 0;
    for entry in fs::read_dir(repository().join("deploy/dashboards"))? {
        let path = entry?.path();
        let shown = path.display().to_string();
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(&path)?).with_context(|| shown.clone())?;
        let uid = dashboard["uid"].as_str().context("a dashboard has a uid")?;
        ensure!(path.file_stem().is_some_and(|stem| stem == uid), "{shown}: the uid is {uid}");
        ensure!(dashboard["title"].is_string() && dashboard["schemaVersion"].is_u64(), "{shown}");
        let mut ids = BTreeSet::new();
        for panel in dashboard["panels"].as_array().context("a dashboard has panels")? {
            let title = panel["title"].as_str().context("a panel has a title")?;
            ensure!(ids.insert(panel["id"].as_u64()), "{shown}: {title}: its id is taken");
            ensure!(panel["gridPos"]["w"].as_u64().is_some_and(|w| w <= 24), "{shown}: {title}: is not in the grid");
            if panel["type"] == "row" {
                continue;
            }
            panels += 1;
            let described = panel["description"].as_str().is_some_and(|text| !text.is_empty());
            let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().is_some_and(|unit| !unit.is_empty());
            ensure!(described && unit, "{shown}: {title}: has no description or no unit");
            for target in panel["targets"].as_array().context("a panel has targets")? {
                let expression = target["expr"].as_str().context("a target has an expression")?;
                let metrics = used(expression, &documented);
                ensure!(!metrics.is_empty(), "{shown}: {title}: {expression}: uses no metric");
                for metric in metrics {
                    ensure!(documented.contains_key(&metric), "{shown}: {title}: {metric} is not in metrics.md");
                }
            }
        }
    }
    ensure!(panels > 30, "only {panels} panels");
    Ok(())
}
