//! Runs the real OpenTelemetry Collector on loopback, and reads the spans that it received.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::node::{PATIENCE, free_port};
use crate::repository;

/// A span as it arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Span {
    /// 32 hexadecimal digits.
    pub trace: String,
    /// 16 hexadecimal digits.
    pub id: String,
    /// 16 hexadecimal digits; empty: a root.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// `Internal`, `Server`, `Client`, `Producer` or `Consumer`.
    pub kind: String,
    /// Attributes of the process that it comes from.
    pub resource: BTreeMap<String, String>,
    /// Its own attributes.
    pub attributes: BTreeMap<String, String>,
}

impl Span {
    /// The node that sent it; empty: not sent by a node.
    pub fn node(&self) -> &str {
        self.resource.get("chronicle.node.name").map_or("", String::as_str)
    }
}

/// A collector that prints the spans that it receives.
#[derive(Debug)]
pub struct Collector {
    process: Child,
    grpc: u16,
    http: u16,
    dir: tempfile::TempDir,
}

impl Collector {
    /// Builds the collector if necessary, starts it and waits until it listens.
    ///
    /// # Errors
    /// Go is missing, or the collector does not come up.
    pub fn start() -> Result<Self> {
        let script = repository().join("tests/collector/build.sh");
        let built = Command::new(&script).stderr(Stdio::inherit()).output().context("tests/collector/build.sh")?;
        ensure!(built.status.success(), "tests/collector/build.sh failed: {}", built.status);
        let program = PathBuf::from(String::from_utf8(built.stdout)?.trim());
        let (dir, grpc, http) = (tempfile::tempdir()?, free_port(), free_port());
        let config = dir.path().join("config.yaml");
        let text = format!(
            "receivers:\n  otlp:\n    protocols:\n      grpc: {{endpoint: '127.0.0.1:{grpc}'}}\n      http: {{endpoint: '127.0.0.1:{http}'}}\n\
             exporters:\n  debug: {{verbosity: detailed, use_internal_logger: false}}\n\
             service:\n  telemetry:\n    metrics: {{level: none}}\n  pipelines:\n    traces: {{receivers: [otlp], exporters: [debug]}}\n"
        );
        std::fs::write(&config, text)?;
        let process = Command::new(&program)
            .arg("--config")
            .arg(format!("file:{}", config.display()))
            .stdin(Stdio::null())
            .stdout(File::create(dir.path().join("spans"))?)
            .stderr(File::create(dir.path().join("log"))?)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let collector = Self { process, grpc, http, dir };
        let until = Instant::now() + PATIENCE;
        while [grpc, http].iter().any(|port| TcpStream::connect(("127.0.0.1", *port)).is_err()) {
            ensure!(Instant::now() < until, "the collector does not listen:\n{}", collector.text("log")?);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Ok(collector)
    }

    /// The address for OTLP over gRPC.
    pub fn grpc(&self) -> String {
        format!("http://127.0.0.1:{}", self.grpc)
    }

    /// The address for OTLP over HTTP.
    pub fn http(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }

    /// All spans that have arrived.
    ///
    /// # Errors
    /// What it has printed cannot be read.
    pub fn spans(&self) -> Result<Vec<Span>> {
        Ok(parse(&self.text("spans")?))
    }

    fn text(&self, name: &str) -> Result<String> {
        Ok(std::fs::read_to_string(self.dir.path().join(name))?)
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads what the debug exporter prints in detail. The last span may be incomplete while it is written.
fn parse(text: &str) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let mut resource = BTreeMap::new();
    let mut in_resource = false;
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with("ResourceSpans #") {
            (resource, in_resource) = (BTreeMap::new(), true);
        } else if line.starts_with("ScopeSpans #") {
            in_resource = false;
        } else if line.starts_with("Span #") {
            spans.push(Span { resource: resource.clone(), ..Span::default() });
        } else if let Some(attribute) = line.strip_prefix("-> ")
            && let Some((name, value)) = attribute.split_once(": ")
        {
            // The type precedes the value: Str(value).
            let value = value.split_once('(').map_or(value, |(_, value)| value.trim_end_matches(')'));
            let span = spans.last_mut().map(|span| &mut span.attributes);
            if let Some(attributes) = if in_resource { Some(&mut resource) } else { span } {
                attributes.insert(name.to_owned(), value.to_owned());
            }
        } else if !in_resource
            && let Some(span) = spans.last_mut()
            && let Some((name, value)) = line.split_once(':')
        {
            let field = match name.trim() {
                "Trace ID" => &mut span.trace,
                "Parent ID" => &mut span.parent,
                "ID" => &mut span.id,
                "Name" => &mut span.name,
                "Kind" => &mut span.kind,
                _ => continue,
            };
            // Only the first occurrence: links have ids, too.
            if field.is_empty() {
                value.trim().clone_into(field);
            }
        }
    }
    spans
}
