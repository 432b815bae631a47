//! Layers, errors and documentation of the configuration.

use std::io::Write;
use std::path::Path;

use super::{BarrierKind, Config, SAMPLE, Sources, field_paths, live, load};

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn from_file(text: &str) -> Result<Config, String> {
    let file = file(text);
    let path = file.path().to_path_buf();
    load(&Sources { file: Some(path.clone()), ..Sources::default() })
        .map_err(|error| error.to_string().replace(path.to_str().unwrap(), "FILE"))
}

fn from_environment(variables: &[(&str, &str)]) -> Result<Config, String> {
    let environment = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    load(&Sources { environment, ..Sources::default() }).map_err(|error| error.to_string())
}

fn from_settings(settings: &[&str]) -> Result<Config, String> {
    let settings = settings.iter().map(|setting| (*setting).into()).collect();
    load(&Sources { settings, ..Sources::default() }).map_err(|error| error.to_string())
}

#[test]
fn without_sources_the_defaults_hold_and_are_valid() {
    let config = load(&Sources::default()).unwrap();
    assert_eq!(config, Config::default());
    config.validate().unwrap();
}

#[test]
fn the_sample_is_the_defaults_and_documents_every_field() {
    assert_eq!(from_file(SAMPLE).unwrap(), Config::default());
    let lines: Vec<&str> = SAMPLE.lines().collect();
    for path in field_paths() {
        let (groups, name) = path.rsplit_once('.').unwrap();
        let (mut start, mut indent) = (0, String::new());
        let find = |start: usize, wanted: &str| {
            let found = lines[start..].iter().position(|line| line.starts_with(wanted)).map(|at| start + at);
            found.unwrap_or_else(|| panic!("{path}: no line begins with {wanted:?}"))
        };
        for group in groups.split('.') {
            start = find(start, &format!("{indent}{group}:"));
            indent.push_str("  ");
        }
        let field = find(start, &format!("{indent}{name}: "));
        assert!(lines[field - 1].starts_with(&format!("{indent}# ")), "{path} has no comment");
        assert!(lines[start + 1..field].iter().all(|line| line.starts_with(&indent)), "{path} is in another group");
    }
}

#[test]
fn the_documentation_contains_the_sample() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let text = std::fs::read_to_string(path).unwrap();
    assert!(
        text.contains(&format!("```yaml\n{SAMPLE}```")),
        "docs/configuration.md does not contain sample.yaml unchanged"
    );
    let live: String = live::live_fields().map(|path| format!("{path}\n")).collect();
    assert!(
        text.contains(&format!("```text\n{live}```")),
        "docs/configuration.md does not contain live-fields.txt unchanged"
    );
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let file = file("node: {name: from-file, default-topic: from-file}\nlog: {filter: debug}\n");
    let config = load(&Sources {
        file: Some(file.path().into()),
        environment: vec![
            ("CHRONICLE_NODE__NAME".into(), "from-environment".into()),
            ("CHRONICLE_NODE__DEFAULT_TOPIC".into(), "from-environment".into()),
        ],
        settings: vec!["node.name=from-flag".into()],
    })
    .unwrap();
    assert_eq!(config.node.name, "from-flag");
    assert_eq!(config.node.default_topic, "from-environment");
    assert_eq!(config.log.filter, "debug");
    assert_eq!(config.node.data_dir, Path::new("data"));
}

#[test]
fn text_takes_the_type_of_its_field() {
    let config = from_environment(&[
        ("CHRONICLE_NODE__NAME", "007"),
        ("CHRONICLE_STORAGE__TAIL_CACHE_BYTES", "128MiB"),
        ("CHRONICLE_STORAGE__BARRIER", "syncfs"),
        ("CHRONICLE_LISTENERS__DATA", "0.0.0.0:7000"),
        ("CHRONICLE_LIMITS__WAIT_MS_MAX", "5"),
    ])
    .unwrap();
    assert_eq!(config.node.name, "007");
    assert_eq!(config.storage.tail_cache_bytes, 128 << 20);
    assert_eq!(config.storage.barrier, BarrierKind::Syncfs);
    assert_eq!(config.listeners.data.port(), 7000);
    assert_eq!(config.limits.wait_ms_max, 5);
}

#[test]
fn a_list_is_a_list_in_files_and_separated_by_commas_elsewhere() {
    let seeds = ["a:7400", "b:7400"].map(str::to_owned).to_vec();
    for config in [
        from_file("cluster:\n  seeds: ['a:7400', 'b:7400']\n").unwrap(),
        from_file("cluster:\n  seeds: a:7400,b:7400\n").unwrap(),
        from_environment(&[("CHRONICLE_CLUSTER__SEEDS", "a:7400, b:7400,")]).unwrap(),
        from_settings(&["cluster.seeds=c:1", "cluster.seeds=a:7400,b:7400"]).unwrap(),
    ] {
        assert_eq!(config.cluster.seeds, seeds);
    }
    assert!(from_settings(&["cluster.seeds="]).unwrap().cluster.seeds.is_empty());
    let error = from_file("cluster:\n  seeds: [7400]\n").unwrap_err();
    assert_eq!(error, "cluster.seeds: 7400 (from FILE): must be a list of texts; put them in quotes");
}

#[test]
fn a_map_is_a_map_in_files_and_has_an_entry_per_variable_and_flag() {
    let file = file("node:\n  advertised-addresses: {kafka: 'from-file:1', kafka-tls: 'from-file:2'}\n");
    let variable =
        |name: &str, value: &str| (format!("CHRONICLE_NODE__ADVERTISED_ADDRESSES__{name}"), value.to_owned());
    let config = load(&Sources {
        file: Some(file.path().into()),
        environment: vec![variable("KAFKA", "from-variable:1"), variable("KAFKA_EXTERNAL", "from-variable:3")],
        settings: vec!["node.advertised-addresses.kafka-external=from-flag:3".into()],
    })
    .unwrap();
    config.validate().unwrap();
    let addresses = config.node.advertised_addresses.iter().map(|(name, address)| format!("{name}={address}"));
    let wanted = ["kafka=from-variable:1", "kafka-external=from-flag:3", "kafka-tls=from-file:2"];
    assert_eq!(addresses.collect::<Vec<_>>(), wanted);
    assert_eq!(from_file(&serde_yaml::to_string(&config).unwrap()).unwrap(), config);
    assert_eq!(from_file("node:\n  advertised-addresses:\n").unwrap(), Config::default());
    for (result, wanted) in [
        (
            from_file("node: {advertised-addresses: 'k:1'}"),
            "node.advertised-addresses: k:1 (from FILE): must be a map from",
        ),
        (
            from_settings(&["node.advertised-addresses=k:1"]),
            "node.advertised-addresses (from --set): must be a map from",
        ),
        (
            from_settings(&["node.advertised-addresses.a.b=k:1"]),
            "node.advertised-addresses.a.b (from --set): must be a map",
        ),
        (
            from_environment(&[("CHRONICLE_NODE__ADVERTISED_ADDRESSES", "kafka=k:1")]),
            "node.advertised-addresses (from environment variable CHRONICLE_NODE__ADVERTISED_ADDRESSES): must be a map from",
        ),
        (
            from_file("node: {advertised-addresses: {kafka: 9092}}"),
            "node.advertised-addresses.kafka (from FILE): must be a text; put it in quotes",
        ),
        (
            from_file("node: {advertised-addresses: {Kafka: 'k:1'}}"),
            "node.advertised-addresses.Kafka: k:1 (from FILE): listener name: \"Kafka\": must be 1 to 32 of a-z 0-9 -",
        ),
    ] {
        let error = result.unwrap_err();
        assert!(error.starts_with(wanted), "wanted: {wanted}\ngot:    {error}");
    }
    let many: Vec<String> = (0..17).map(|number| format!("node.advertised-addresses.l{number}=k:1")).collect();
    let many = from_settings(&many.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    let error = many.validate().unwrap_err().to_string();
    assert_eq!(error, "node.advertised-addresses: 17: must be at most 16 listeners");
}

#[test]
fn what_is_written_is_read_back_the_same() {
    let mut config = Config::default();
    config.cluster.seeds = vec!["127.0.0.1:7400".into(), "localhost:7401".into()];
    config.cluster.bootstrap_expect = 2;
    assert_eq!(from_file(&serde_yaml::to_string(&config).unwrap()).unwrap(), config);
}

#[test]
fn unknown_keys_are_refused_in_every_layer() {
    let error = from_file("storage:\n  barier: auto\n").unwrap_err();
    assert!(error.starts_with("storage.barier (from FILE): unknown field; storage has barrier,"), "{error}");
    let error = from_environment(&[("CHRONICLE_STORAGE__BARIER", "auto")]).unwrap_err();
    assert!(error.contains("storage.barier (from environment variable CHRONICLE_STORAGE__BARIER)"), "{error}");
    let error = from_environment(&[("CHRONICLE_DATA_DIR", "/x")]).unwrap_err();
    assert!(
        error.contains(
            "known groups are cluster, limits, listeners, log, metrics, node, partitions, security, storage, telemetry"
        ),
        "{error}"
    );
    let error = from_settings(&["storage=1"]).unwrap_err();
    assert!(error.starts_with("storage (from --set): unknown field"), "{error}");
}

#[test]
fn errors_name_key_value_origin_and_rule() {
    for (result, wanted) in [
        (from_file("listeners: {data: here}"), "listeners.data: here (from FILE): invalid socket address syntax"),
        (
            from_file("limits: {connections-max: many}"),
            "limits.connections-max: many (from FILE): must be a whole number",
        ),
        (from_file("limits: {connections-max: -1}"), "limits.connections-max: -1 (from FILE): "),
        (
            from_file("limits: {connections-max: [1]}"),
            "limits.connections-max (from FILE): must be a number, not a list",
        ),
        (from_file("limits: 7"), "limits: 7 (from FILE): must be a group of fields"),
        (from_file("node: {name: 7}"), "node.name (from FILE): must be a text; put it in quotes"),
        (from_file("node: ["), "FILE: must be YAML: "),
        (from_file("a\0b"), "FILE: must be YAML: "),
        (
            from_environment(&[("CHRONICLE_STORAGE__BARRIER", "fsync")]),
            "storage.barrier: fsync (from environment variable CHRONICLE_STORAGE__BARRIER): unknown variant",
        ),
        (
            from_settings(&["limits.request-bytes-max=8MB"]),
            "limits.request-bytes-max: 8MB (from --set): must be a number of bytes",
        ),
        (from_settings(&["limits.wait-ms-max=1MiB"]), "limits.wait-ms-max: 1MiB (from --set): must be a whole number"),
        (from_settings(&["node.name"]), "--set node.name: must be PATH.OF.FIELD=VALUE"),
    ] {
        let error = result.unwrap_err();
        assert!(error.starts_with(wanted), "wanted: {wanted}\ngot:    {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let missing =
        load(&Sources { file: Some("/nonexistent/chronicle.yaml".into()), ..Sources::default() }).unwrap_err();
    assert!(missing.to_string().starts_with("/nonexistent/chronicle.yaml: No such file"), "{missing}");
}

#[test]
fn variables_of_kubernetes_services_and_other_commands_are_left_alone() {
    let config = from_environment(&[
        ("CHRONICLE_SERVER", "elsewhere:7400"),
        ("CHRONICLE_CONFIG", "/etc/chronicle.yaml"),
        ("CHRONICLE_PORT", "tcp://10.96.0.7:7400"),
        ("CHRONICLE_SERVICE_HOST", "10.96.0.7"),
        ("CHRONICLE_SERVICE_PORT", "7400"),
        ("CHRONICLE_SERVICE_PORT_GRPC", "7400"),
        ("CHRONICLE_PORT_7400_TCP", "tcp://10.96.0.7:7400"),
        ("CHRONICLE_PORT_7400_TCP_ADDR", "10.96.0.7"),
        ("CHRONICLE_0_HEADLESS_SERVICE_HOST", "10.96.0.7"),
        ("CHRONICLE_0_HEADLESS_PORT_7400_TCP_PROTO", "tcp"),
        ("PATH", "/bin"),
    ]);
    assert_eq!(config.unwrap(), Config::default());
    for (name, value) in
        [("CHRONICLE_PORT_X", "1"), ("CHRONICLE_PORT", "7400"), ("CHRONICLE_LISTENERS__PORT", "tcp://10.96.0.7:7400")]
    {
        assert!(from_environment(&[(name, value)]).is_err(), "{name}");
    }
}

#[test]
fn an_empty_file_and_an_empty_group_change_nothing() {
    assert_eq!(from_file("").unwrap(), Config::default());
    assert_eq!(from_file("# nothing\nstorage:\n").unwrap(), Config::default());
}

#[test]
fn ranges_and_relations_are_checked() {
    for (setting, wanted) in [
        (
            "partitions.entry-bytes-max=16MiB",
            "partitions.entry-bytes-max: 16777216: must be at most limits.request-bytes-max",
        ),
        ("partitions.entry-bytes-max=0", "partitions.entry-bytes-max: 0: must be from 1024"),
        (
            "partitions.queue-bytes-max=4MiB",
            "partitions.queue-bytes-max: 4194304: must be at least limits.request-bytes-max",
        ),
        (
            "limits.in-flight-bytes-max=1",
            "limits.in-flight-bytes-max: 1: must be at least limits.request-bytes-max + limits.fetch-bytes-max (12582912)",
        ),
        ("limits.connections-max=0", "limits.connections-max: 0: must be at least 1"),
        ("storage.flush-threads=0", "storage.flush-threads: 0: must be from 1 to 1024"),
        ("storage.pending-bytes-max=1", "storage.pending-bytes-max: 1: must be at least partitions.entry-bytes-max"),
        ("listeners.ops=0.0.0.0:7400", "listeners.ops: 0.0.0.0:7400: must have another port than listeners.data"),
        ("node.name= ", "node.name:  : must not be empty"),
        ("node.data-dir=", "node.data-dir: \"\": must not be empty"),
        ("node.default-topic=a b", "node.default-topic: a b: must be 1 to 249"),
        ("node.advertised-address=host", "node.advertised-address: host: must be HOST:PORT or empty"),
        (
            "node.advertised-addresses.data=h:1",
            "node.advertised-addresses: data: each must be of another listener: that of data is node.advertised-address",
        ),
        ("node.advertised-addresses.kafka=h", "node.advertised-addresses: kafka: h: each must be HOST:PORT"),
        ("log.filter=no=such=level", "log.filter: no=such=level: must be a log filter"),
    ] {
        let error = from_settings(&[setting]).unwrap().validate().unwrap_err().to_string();
        assert!(error.starts_with(wanted), "wanted: {wanted}\ngot:    {error}");
    }
    from_settings(&["listeners.data=127.0.0.1:0", "listeners.ops=127.0.0.1:0"]).unwrap().validate().unwrap();
}
