//! Makes networks that can be partitioned: one namespace per node, connected by a bridge that the test process is on as
//! well.
//!
//! A cut is one-way and silent, like a broken switch: packets of one node to another are sent to a hardware address
//! that no interface has (a permanent entry in the neighbour table of the sender). So nothing arrives, nothing is
//! refused, and open connections are affected too. Needs only namespaces, bridges and veth of the kernel.
//!
//! Invariant: dropping the [`Network`] removes everything that it created; stop the nodes in it first.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

/// Set to 1 where namespaces cannot be made: tests of network cuts then print that they did not run.
pub const OPT_OUT: &str = "CHRONICLE_NO_NETNS";

/// A hardware address that no interface has: locally administered, unicast.
const NOWHERE: &str = "02:de:ad:00:00:00";

/// Returns whether tests of network cuts are to run; prints a line when they are not.
pub fn wanted(test: &str) -> bool {
    let opted_out = std::env::var_os(OPT_OUT).is_some_and(|value| value == "1");
    if opted_out {
        println!("{test} DID NOT RUN: {OPT_OUT}=1");
    }
    !opted_out
}

/// A command that runs another one inside a namespace. The process keeps its id.
pub fn enter(namespace: &str, command: &Command) -> Command {
    let mut entered = Command::new("ip");
    entered.args(["netns", "exec", namespace]).arg(command.get_program()).args(command.get_args());
    entered.env_clear().stdin(std::process::Stdio::null());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            entered.env(name, value);
        }
    }
    entered
}

/// An end of a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The node of this number.
    Node(usize),
    /// The test process, and everything else outside the namespaces.
    Outside,
}

/// A bridge with a namespace for each node.
#[derive(Debug)]
pub struct Network {
    bridge: String,
    /// First three bytes of every address.
    subnet: [u8; 3],
    namespaces: Vec<String>,
}

impl Network {
    /// A network of `nodes` nodes, all of which reach one another and the test process.
    ///
    /// # Errors
    /// Namespaces, bridges or veth pairs cannot be made here; the error says how to leave these tests out.
    pub fn new(nodes: usize) -> Result<Self> {
        Self::make(nodes).with_context(|| {
            format!("this test cuts networks and needs root and `ip` (iproute2); {OPT_OUT}=1 leaves such tests out")
        })
    }

    fn make(nodes: usize) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "not run as root");
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (pid, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // Interface names have at most 15 characters.
        let mut network = Self {
            bridge: format!("cb{pid}-{count}"),
            subnet: [10, rand::random_range(64..128), rand::random_range(0..=255)],
            namespaces: Vec::new(),
        };
        ip(&["link", "add", &network.bridge, "type", "bridge"])?;
        ip(&["addr", "add", &format!("{}/24", network.outside()), "dev", &network.bridge])?;
        ip(&["link", "set", &network.bridge, "up"])?;
        for _ in 0..nodes {
            network.add()?;
        }
        Ok(network)
    }

    /// Adds a namespace for one more node; returns its number.
    ///
    /// # Errors
    /// As [`Network::new`].
    pub fn add(&mut self) -> Result<usize> {
        let number = self.namespaces.len();
        let namespace = format!("chronicle-{}-{number}", self.bridge);
        let outer = format!("{}v{number}", self.bridge.replacen("cb", "c", 1));
        ip(&["netns", "add", &namespace])?;
        self.namespaces.push(namespace.clone());
        let address = format!("{}/24", self.address(number));
        ip(&["link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", &namespace])?;
        ip(&["link", "set", &outer, "master", &self.bridge, "up"])?;
        ip(&["-n", &namespace, "addr", "add", &address, "dev", "eth0"])?;
        ip(&["-n", &namespace, "link", "set", "eth0", "up"])?;
        ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
        Ok(number)
    }

    /// Name of a node's namespace.
    pub fn namespace(&self, node: usize) -> &str {
        &self.namespaces[node]
    }

    /// Address of a node.
    pub fn address(&self, node: usize) -> IpAddr {
        let number = u8::try_from(node + 1).expect("tests have fewer than 250 nodes");
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, number).into()
    }

    fn outside(&self) -> IpAddr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, 254).into()
    }

    fn end(&self, end: End) -> IpAddr {
        match end {
            End::Node(node) => self.address(node),
            End::Outside => self.outside(),
        }
    }

    /// From now on nothing that `from` sends reaches `to`; the other direction is unchanged.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn cut_one_way(&self, from: End, to: End) -> Result<()> {
        let address = self.end(to).to_string();
        self.neighbour(from, &["replace", &address, "lladdr", NOWHERE, "nud", "permanent"])
    }

    /// Reverts [`Network::cut_one_way`].
    ///
    /// # Errors
    /// There was no cut.
    pub fn heal_one_way(&self, from: End, to: End) -> Result<()> {
        let address = self.end(to).to_string();
        self.neighbour(from, &["del", &address])
    }

    /// Cuts both directions between every end of one side and every end of the other.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn cut(&self, side: &[End], other: &[End]) -> Result<()> {
        each_pair(side, other, |from, to| self.cut_one_way(from, to))
    }

    /// Reverts [`Network::cut`].
    ///
    /// # Errors
    /// There was no such cut.
    pub fn heal(&self, side: &[End], other: &[End]) -> Result<()> {
        each_pair(side, other, |from, to| self.heal_one_way(from, to))
    }

    fn neighbour(&self, of: End, change: &[&str]) -> Result<()> {
        let (place, device): (&[&str], &str) = match of {
            End::Node(node) => (&["-n", &self.namespaces[node]], "eth0"),
            End::Outside => (&[], &self.bridge),
        };
        let (verb, rest) = change.split_first().expect("a change has a verb");
        ip(&[place, &["neigh", verb], rest, &["dev", device]].concat())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            // Its end of the veth pair, and with it the other, go too.
            let _ = ip(&["netns", "del", namespace]);
        }
        let _ = ip(&["link", "del", &self.bridge]);
    }
}

fn each_pair(side: &[End], other: &[End], change: impl Fn(End, End) -> Result<()>) -> Result<()> {
    for a in side {
        for b in other {
            change(*a, *b)?;
            change(*b, *a)?;
        }
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("starting ip")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), error.trim());
    Ok(())
}
