//! Computes the nodes of `chronicle dev --nodes N`: their numbers, folders, ports and configurations.
//!
//! A node's number is in the name of its folder (`node-0`) and determines its ports. The existing folders are the nodes
//! of the cluster: all of them are started again, and new nodes take the lowest free numbers and join. Fewer nodes than
//! folders are rejected, because the cluster needs the replicas on the other nodes. The supervisor renames the folder
//! of a decommissioned node (`supervisor.rs`), so that folder does not count.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use chronicle_node::config::Config;

/// One node to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DevNode {
    /// `node-NUMBER`.
    pub(super) name: String,
    /// Its configuration, including data folder and ports.
    pub(super) config: Config,
    /// File that the supervisor writes the configuration to and the process reads it from.
    pub(super) config_file: PathBuf,
}

impl DevNode {
    /// Returns the UUID of the node from the file `FORMAT` in its data folder (docs/disk-format.md); `None` before its
    /// first start.
    pub(super) fn node_id(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.config.node.data_dir.join("FORMAT")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("node ")).map(|id| id.trim().to_owned())
    }
}

/// Returns the numbers of the nodes whose folders are under `data`.
///
/// # Errors
/// The folder exists and cannot be read.
pub(super) fn existing(data: &Path) -> anyhow::Result<BTreeSet<u16>> {
    let entries = match std::fs::read_dir(data) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", data.display())),
    };
    let mut numbers = BTreeSet::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("reading {}", data.display()))?;
        let number = entry.file_name().to_str().and_then(|name| name.strip_prefix("node-")?.parse().ok());
        if let Some(number) = number
            && entry.path().is_dir()
        {
            numbers.insert(number);
        }
    }
    Ok(numbers)
}

/// Returns the nodes to run, by number; `found` are the numbers of the existing ones.
///
/// # Errors
/// `data` contains a single node or more than `nodes` nodes; ports overlap or are beyond 65535; the configuration
/// breaks a rule.
pub(super) fn plan(
    base: &Config,
    data: &Path,
    found: &BTreeSet<u16>,
    nodes: usize,
    port: u16,
    ops_port: u16,
) -> anyhow::Result<Vec<DevNode>> {
    let shown = data.display();
    ensure!(
        !data.join("FORMAT").exists(),
        "--data {shown}: contains one node (created without --nodes): use another folder for the cluster, or make that node its first \
         member: mv {shown} {shown}.one && mkdir {shown} && mv {shown}.one {shown}/node-0"
    );
    if nodes < found.len() {
        let names: Vec<String> = found.iter().map(|number| name(*number)).collect();
        bail!(
            "--nodes {nodes}: {shown} contains {} nodes ({}): must be at least as many, since they hold replicas; start with \
             --nodes {} and remove nodes with `chronicle cluster decommission NODE` first",
            found.len(),
            names.join(", "),
            found.len()
        );
    }
    let mut numbers = found.clone();
    let mut free = (0..).filter(|number| !found.contains(number));
    while numbers.len() < nodes {
        numbers.extend(free.next());
    }
    let highest = numbers.last().copied().unwrap_or(0);
    for (option, first) in [("--port", port), ("--ops-port", ops_port)] {
        ensure!(first != 0, "{option}: 0: must be the first port of a fixed range when there are several nodes");
        ensure!(
            first.checked_add(highest).is_some(),
            "{option}: {first}: the port of node {highest} would be beyond 65535"
        );
    }
    ensure!(
        port.abs_diff(ops_port) > highest,
        "--ops-port: {ops_port}: must not overlap: the nodes use ports {port} to {} for data",
        port + highest
    );

    let address = |first: u16, number: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, first + number));
    let seeds: Vec<String> = numbers.iter().map(|number| address(port, *number).to_string()).collect();
    let member = |number: u16| {
        let mut config = base.clone();
        config.node.name = name(number);
        config.node.data_dir = data.join(name(number));
        config.node.advertised_address = String::new();
        config.node.advertised_addresses.clear();
        config.listeners.data = address(port, number);
        config.listeners.ops = address(ops_port, number);
        // Both fields matter only while the cluster is bootstrapped and have no effect later.
        config.cluster.bootstrap_expect = u32::try_from(nodes)?;
        config.cluster.seeds.clone_from(&seeds);
        config.validate()?;
        Ok(DevNode { name: name(number), config, config_file: data.join(format!("{}.yaml", name(number))) })
    };
    numbers.iter().map(|number| member(*number)).collect()
}

fn name(number: u16) -> String {
    format!("node-{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(list: &[u16]) -> BTreeSet<u16> {
        list.iter().copied().collect()
    }

    fn planned(found: &[u16], nodes: usize) -> anyhow::Result<Vec<DevNode>> {
        plan(&Config::default(), Path::new("no-such-folder"), &numbers(found), nodes, 7400, 9644)
    }

    #[test]
    fn each_node_has_its_own_name_folder_and_ports_and_the_addresses_of_all_the_others() {
        let members = planned(&[], 3).unwrap();
        let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["node-0", "node-1", "node-2"]);
        let last = &members[2].config;
        assert_eq!(last.node.name, "node-2");
        assert_eq!(last.node.data_dir, Path::new("no-such-folder/node-2"));
        assert_eq!((last.listeners.data.port(), last.listeners.ops.port()), (7402, 9646));
        assert_eq!(last.cluster.seeds, ["127.0.0.1:7400", "127.0.0.1:7401", "127.0.0.1:7402"]);
        assert!(members.iter().all(|member| member.config.cluster.bootstrap_expect == 3));
    }

    #[test]
    fn nodes_that_are_there_keep_their_numbers_and_new_ones_take_the_lowest_free() {
        let members = planned(&[0, 2, 3], 4).unwrap();
        let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["node-0", "node-1", "node-2", "node-3"]);
        assert_eq!(planned(&[0, 2, 3], 3).unwrap()[1].config.listeners.data.port(), 7402);
    }

    #[test]
    fn fewer_nodes_than_there_are_is_refused_with_what_to_do() {
        let error = planned(&[0, 1, 2], 2).unwrap_err().to_string();
        assert!(error.contains("node-0, node-1, node-2") && error.contains("decommission"), "{error}");
    }

    #[test]
    fn ports_that_cannot_work_are_refused() {
        let refused = |port, ops_port| {
            let found = BTreeSet::new();
            let result = plan(&Config::default(), Path::new("no-such-folder"), &found, 3, port, ops_port);
            result.expect_err("impossible ports").to_string()
        };
        assert!(refused(0, 9644).starts_with("--port: 0: "));
        assert!(refused(7400, 65534).starts_with("--ops-port: 65534: "));
        assert!(refused(7400, 7402).contains("7400 to 7402"));
        assert!(refused(7402, 7400).starts_with("--ops-port: 7400: "));
    }

    #[test]
    fn the_folder_of_a_single_node_is_not_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("FORMAT"), "1").unwrap();
        let error = plan(&Config::default(), dir.path(), &BTreeSet::new(), 3, 7400, 9644).unwrap_err().to_string();
        assert!(error.contains("mkdir") && error.contains("node-0"), "{error}");
    }

    #[test]
    fn a_node_is_identified_by_the_uuid_in_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let members = plan(&Config::default(), dir.path(), &BTreeSet::new(), 2, 7400, 9644).unwrap();
        std::fs::create_dir(dir.path().join("node-1")).unwrap();
        std::fs::write(dir.path().join("node-1/FORMAT"), "chronicle-data 1\nnode 0190a1b2-0000\n").unwrap();
        assert_eq!(members[0].node_id(), None);
        assert_eq!(members[1].node_id().as_deref(), Some("0190a1b2-0000"));
    }

    #[test]
    fn only_folders_of_nodes_count() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(existing(&dir.path().join("missing")).unwrap(), numbers(&[]));
        for name in ["node-0", "node-7", "node-1.removed", "node-x", "other"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("node-3"), "a file").unwrap();
        assert_eq!(existing(dir.path()).unwrap(), numbers(&[0, 7]));
    }
}
