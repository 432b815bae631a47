//! `chronicle cert`: makes a certificate authority for development and small clusters, and the certificates that it
//! signs.
//!
//! `issue.rs` makes certificates, `folder.rs` keeps them in files. The CA's key is in the same folder: anyone who can
//! read it can impersonate every node and client. Clusters with higher requirements use an issuer that keeps its key
//! elsewhere.

mod folder;
mod issue;

use std::path::PathBuf;

use clap::{Args, Subcommand};

pub(in crate::cli) use folder::Folder;
pub(in crate::cli) use issue::{Subject, Validity};

use super::time;

/// Name of the operator's certificate.
const OPERATOR: &str = "chronicle-operator";

#[derive(Debug, Subcommand)]
pub(super) enum CertCommand {
    /// Make a certificate authority (CA): ca.crt and ca.key.
    Ca {
        /// Name of the CA.
        #[arg(long, default_value = "Chronicle development CA")]
        name: String,
        #[command(flatten)]
        options: Options,
    },
    /// Make a node's certificate: NAME.crt and NAME.key.
    Node {
        /// Name of the node (node.name).
        name: String,
        /// DNS name or IP address of the node; may be repeated.
        #[arg(long = "host", required = true, value_name = "HOST")]
        hosts: Vec<String>,
        #[command(flatten)]
        options: Options,
    },
    /// Make a client's certificate: NAME.crt and NAME.key. NAME is the principal.
    Client {
        /// Principal of the client.
        name: String,
        #[command(flatten)]
        options: Options,
    },
    /// Make a client's certificate for the operator, with the principal chronicle-operator.
    Operator {
        #[command(flatten)]
        options: Options,
    },
}

#[derive(Debug, Clone, Args)]
pub(super) struct Options {
    /// Folder of the files, created when missing; must contain ca.crt and ca.key to sign a certificate.
    #[arg(long, value_name = "DIR", default_value = "certs")]
    out: PathBuf,
    /// Days of validity. Default: 3650 for a CA, 365 for other certificates.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=36500))]
    days: Option<u32>,
    /// Start of the validity (RFC 3339). Default: an hour ago.
    #[arg(long, value_name = "TIME", value_parser = begin)]
    valid_from: Option<i64>,
    /// Replace existing files.
    #[arg(long)]
    force: bool,
}

impl Options {
    fn validity(&self, days: u32) -> Validity {
        Validity::new(self.valid_from, self.days.unwrap_or(days))
    }

    fn sign(&self, name: &str, subject: &Subject<'_>) -> anyhow::Result<()> {
        let folder = Folder::new(&self.out, self.force);
        let made = folder.authority()?.issue(subject, self.validity(365))?;
        folder.write(name, &made)
    }
}

fn begin(text: &str) -> Result<i64, String> {
    time::parse_rfc3339(text).ok_or_else(|| "must be a time such as 2026-11-21T00:00:00Z".to_owned())
}

pub(super) fn run(command: CertCommand) -> anyhow::Result<()> {
    match command {
        CertCommand::Ca { name, options } => {
            let made = issue::authority(&name, options.validity(3650))?;
            Folder::new(&options.out, options.force).write(issue::AUTHORITY, &made)
        }
        CertCommand::Node { name, hosts, options } => {
            options.sign(&name, &Subject::Node { name: &name, hosts: &hosts })
        }
        CertCommand::Client { name, options } => options.sign(&name, &Subject::Client { name: &name }),
        CertCommand::Operator { options } => options.sign(OPERATOR, &Subject::Client { name: OPERATOR }),
    }
}
