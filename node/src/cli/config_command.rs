//! `chronicle config`: prints the effective configuration. Also the options that name the sources of a node's
//! configuration.

use std::io::{self, Write};
use std::path::PathBuf;

use chronicle_node::config::{self, Config, SAMPLE, Sources};
use clap::Args;

use super::Global;
use super::output::Format;

/// Sources of the configuration; later ones override: defaults, file, environment, `--set`.
#[derive(Debug, Clone, Args)]
pub(super) struct ConfigSource {
    /// YAML file; see `chronicle config --sample`.
    #[arg(long, value_name = "FILE", env = "CHRONICLE_CONFIG")]
    config: Option<PathBuf>,
    /// Set one field, such as listeners.data=0.0.0.0:7400; may be repeated.
    #[arg(long = "set", value_name = "FIELD=VALUE")]
    settings: Vec<String>,
}

impl ConfigSource {
    /// Loads the effective configuration. `last` are settings that override everything, as `field=value`. Does not
    /// validate.
    pub(super) fn load(&self, last: Vec<String>) -> anyhow::Result<Config> {
        Ok(config::load(&self.sources(last))?)
    }

    /// Returns the sources; `last` as in [`ConfigSource::load`].
    pub(super) fn sources(&self, last: Vec<String>) -> Sources {
        let settings = self.settings.iter().cloned().chain(last).collect();
        Sources { file: self.config.clone(), settings, ..Sources::from_environment() }
    }
}

#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(flatten)]
    source: ConfigSource,
    /// Print every field with its default and documentation instead.
    #[arg(long)]
    sample: bool,
}

pub(super) fn run(global: &Global, args: &ConfigArgs) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if args.sample {
        out.write_all(SAMPLE.as_bytes())?;
        return Ok(());
    }
    let config = args.source.load(Vec::new())?;
    config.validate()?;
    // A tree has no table: people get YAML.
    let text = match global.output {
        Format::Table | Format::Yaml => serde_yaml::to_string(&config)?,
        Format::Json => serde_json::to_string_pretty(&config)? + "\n",
    };
    out.write_all(text.as_bytes())?;
    Ok(())
}
