//! `chronicle debug bundle`: collects diagnostics of every reachable node into one .tar.gz.
//!
//! A node that does not answer does not fail the command, because bundles are made when something is broken: the
//! archive contains its error in a file. Nodes send the names of files, so each name is checked before it becomes a
//! path in the archive. The bytes that one node sends are bounded.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use chronicle_client::{Client, ClientError, v1};
use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::TryStreamExt;

use super::choose;
use crate::cli::output::{Table, print};
use crate::cli::time::format_rfc3339;
use crate::cli::{Global, parse};

/// Most bytes that one node may send.
const NODE_BYTES_MAX: usize = 1 << 30;
/// Topics whose partitions are described; further topics are only listed.
const DESCRIBED_MAX: usize = 200;

#[derive(Debug, Args)]
pub(in crate::cli) struct BundleArgs {
    /// Archive to write; must not exist. Default: chronicle-bundle-TIME.tar.gz.
    #[arg(long, short = 'f', value_name = "FILE")]
    file: Option<PathBuf>,
    /// Only this node (UUID or unique name); repeat for several. Default: every member of the cluster.
    #[arg(long, value_name = "NODE")]
    node: Vec<String>,
    /// Longest log excerpt of each node, in bytes, such as 256KiB. Default: all that the node keeps in memory.
    #[arg(long, value_name = "BYTES", value_parser = parse::size)]
    log_bytes: Option<usize>,
}

pub(super) async fn run(global: &Global, args: &BundleArgs) -> anyhow::Result<()> {
    let now = now_ms();
    let name = format!("chronicle-bundle-{}", format_rfc3339(now).replace([':', '.'], "-"));
    let path = args.file.clone().unwrap_or_else(|| format!("{name}.tar.gz").into());
    let mut archive = Archive::create(&path, &name, now)?;
    let client = global.client()?;
    let mut problems: BTreeMap<String, String> = BTreeMap::new();

    let servers = match client.get_servers().await {
        Ok(answer) => choose(answer.servers, &args.node)?,
        Err(error) => {
            // The node at --server may still return its own diagnostics.
            problems.insert("members".into(), error.to_string());
            vec![v1::Server { name: "asked".into(), address: global.server.clone(), ..v1::Server::default() }]
        }
    };
    archive.add("members.txt", format!("{servers:#?}\n").as_bytes())?;
    cluster(&client, &mut archive, &mut problems).await?;

    let mut nodes = 0;
    for server in &servers {
        let folder = folder(server);
        match node(&client, &server.address, args.log_bytes.unwrap_or(0) as u64).await {
            Ok(files) => {
                nodes += 1;
                for (file, contents) in files {
                    archive.add(&format!("nodes/{folder}/{file}"), &contents)?;
                }
            }
            Err(error) => {
                archive.add(&format!("nodes/{folder}/error.txt"), format!("{error:#}\n").as_bytes())?;
                problems.insert(format!("node {}", server.name), format!("{error:#}"));
            }
        }
    }
    let text: String = problems.iter().map(|(what, why)| format!("{what}: {why}\n")).collect();
    archive.add("problems.txt", text.as_bytes())?;
    let bytes = archive.finish()?;
    for (what, why) in &problems {
        eprintln!("{what}: {why}");
    }
    let view = BundleOutput { file: path.display().to_string(), bytes, nodes, of: servers.len(), problems };
    print(global.output, &view, || {
        Table::pairs(vec![
            ("File", view.file.clone()),
            ("Bytes", view.bytes.to_string()),
            ("Nodes", format!("{} of {}", view.nodes, view.of)),
        ])
    })
}

#[derive(Debug, serde::Serialize)]
struct BundleOutput {
    file: String,
    bytes: u64,
    nodes: usize,
    of: usize,
    problems: BTreeMap<String, String>,
}

/// Adds the status and topics of the cluster, which any node can return.
async fn cluster(
    client: &Client,
    archive: &mut Archive,
    problems: &mut BTreeMap<String, String>,
) -> anyhow::Result<()> {
    match client.cluster_status().await {
        Ok(status) => archive.add("status.txt", format!("{status:#?}\n").as_bytes())?,
        Err(error) => _ = problems.insert("status".into(), error.to_string()),
    }
    let topics = match client.list_topics().await {
        Ok(topics) => topics,
        Err(error) => {
            problems.insert("topics".into(), error.to_string());
            return Ok(());
        }
    };
    let mut text = format!("{} topics\n{topics:#?}\n", topics.len());
    for topic in topics.iter().take(DESCRIBED_MAX) {
        match client.describe_topic(&topic.name).await {
            Ok(described) => text.push_str(&format!("{}: {:#?}\n", topic.name, described.partitions)),
            Err(error) => _ = problems.insert(format!("topic {}", topic.name), error.to_string()),
        }
    }
    archive.add("topics.txt", text.as_bytes())
}

/// Fetches the files of one node.
async fn node(client: &Client, address: &str, log_bytes_max: u64) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let request = v1::GetDiagnosticsRequest { log_bytes_max };
    let mut parts = client.diagnostics(address, request).await?;
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut bytes = 0;
    while let Some(part) = parts.try_next().await.map_err(ClientError::from)? {
        ensure!(
            is_plain(&part.file),
            "file: {:?}: must be 1 to 64 of a-z A-Z 0-9 . _ -, not starting with a dot",
            part.file
        );
        bytes += part.data.len();
        ensure!(bytes <= NODE_BYTES_MAX, "the node sent more than {NODE_BYTES_MAX} bytes");
        files.entry(part.file).or_default().extend_from_slice(&part.data);
    }
    Ok(files)
}

/// Returns the folder of a node in the archive: its name with other characters replaced, and the beginning of its UUID,
/// which distinguishes nodes of one name.
fn folder(server: &v1::Server) -> String {
    let name: String = server.name.chars().map(|c| if is_plain_char(c) { c } else { '_' }).take(64).collect();
    let id: String = server.node_id.chars().filter(|c| is_plain_char(*c)).take(8).collect();
    format!("{name}-{id}").trim_matches(['-', '.']).to_owned()
}

fn is_plain_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
}

fn is_plain(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.chars().all(is_plain_char) && !name.starts_with('.')
}

/// A .tar.gz being written. All its files are in one folder.
struct Archive {
    tar: tar::Builder<GzEncoder<File>>,
    folder: String,
    mtime: u64,
}

impl Archive {
    fn create(path: &Path, folder: &str, now_ms: i64) -> anyhow::Result<Self> {
        let file = File::create_new(path).with_context(|| path.display().to_string())?;
        let tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        Ok(Self { tar, folder: folder.to_owned(), mtime: (now_ms / 1000).max(0) as u64 })
    }

    fn add(&mut self, name: &str, contents: &[u8]) -> anyhow::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.mtime);
        self.tar.append_data(&mut header, format!("{}/{name}", self.folder), contents)?;
        Ok(())
    }

    /// Completes and syncs the archive. Returns its size in bytes.
    fn finish(self) -> anyhow::Result<u64> {
        let mut file = self.tar.into_inner()?.finish()?;
        file.flush()?;
        file.sync_all()?;
        Ok(file.metadata()?.len())
    }
}

fn now_ms() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "names the bundle by the time on this machine")]
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_become_paths() {
        for good in ["log.txt", "raft.json", "a_b-c"] {
            assert!(is_plain(good), "{good}");
        }
        for bad in ["", "..", ".hidden", "../x", "a/b", "a\\b", "ä", &"x".repeat(65)] {
            assert!(!is_plain(bad), "{bad}");
        }
        let server = |name: &str, node_id: &str| v1::Server {
            name: name.into(),
            node_id: node_id.into(),
            ..v1::Server::default()
        };
        assert_eq!(folder(&server("../../etc", "0123456789")), "_.._etc-01234567");
        assert_eq!(folder(&server("asked", "")), "asked");
    }

    #[test]
    fn an_archive_reads_back_and_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.tar.gz");
        let mut archive = Archive::create(&path, "top", 5000).unwrap();
        archive.add("nodes/a/log.txt", b"hello").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes, std::fs::metadata(&path).unwrap().len());
        let mut read = tar::Archive::new(flate2::read::GzDecoder::new(File::open(&path).unwrap()));
        let mut names = Vec::new();
        for entry in read.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
            names.push((entry.path().unwrap().display().to_string(), text));
        }
        assert_eq!(names, [("top/nodes/a/log.txt".to_owned(), "hello".to_owned())]);
        assert!(Archive::create(&path, "top", 0).is_err());
    }
}
