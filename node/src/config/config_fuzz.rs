//! Mutated configuration files.

use chronicle_fuzz::Fuzz;

use super::load::load_text;
use super::{Config, SAMPLE, Sources};

/// What the tree of defaults takes, and each of the layers.
const COST: usize = 4 << 20;

#[test]
fn mutated_files_are_loaded_or_refused() {
    let sources = Sources { file: Some("chronicle.yaml".into()), ..Sources::default() };
    let short: String =
        SAMPLE.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n");
    Fuzz::new("configuration")
        .seed(short)
        .seed("listeners:\n  data: \"[::]:7400\"\n  ops: 127.0.0.1:9644\ncluster: {seeds: [a:1, b:2]}\nlimits: {request-bytes-max: 8 MiB}\n")
        .allowance(400, COST)
        .mutations(400)
        .run(|bytes| match load_text(&sources, Some(&String::from_utf8_lossy(bytes))) {
            Ok(config) => format!("{:?}", Config::validate(&config).map_err(|error| error.to_string())),
            Err(error) => error.to_string(),
        });
}
