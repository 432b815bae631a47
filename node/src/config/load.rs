//! Loads a [`Config`] from files, environment and flags.
//!
//! Every layer is first compared with the tree of defaults: unknown keys are rejected, sizes are converted to numbers,
//! and text from the environment or a flag is converted to the type of its field. So an error contains the key, the
//! value, its source and the rule. figment merges the layers and fills the struct.

use std::fmt;
use std::path::{Path, PathBuf};

use figment::providers::Serialized;
use figment::value::{Dict, Map, Num, Tag, Value};
use figment::{Error, Figment, Metadata, Profile, Provider};

use super::Config;

/// Prefix of Chronicle's environment variables.
const PREFIX: &str = "CHRONICLE_";
/// What to write for a field that is a map.
const MAP_RULE: &str = "must be a map from names to texts: set FIELD.NAME, or a map in a file";
/// Variables with the prefix that are not configuration fields.
const OTHER_VARIABLES: [&str; 5] =
    ["CHRONICLE_CONFIG", "CHRONICLE_SERVER", "CHRONICLE_CA", "CHRONICLE_CERT", "CHRONICLE_KEY"];

/// Sources of the configuration; later fields override earlier ones.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A YAML file.
    pub file: Option<PathBuf>,
    /// Environment variables; those without the prefix `CHRONICLE_` are ignored.
    pub environment: Vec<(String, String)>,
    /// `path.of.field=value`, as given to `--set`.
    pub settings: Vec<String>,
}

impl Sources {
    /// Returns the environment of this process as the only source. Variables that are not UTF-8 are ignored.
    pub fn from_environment() -> Self {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self { environment, ..Self::default() }
    }
}

/// Why a configuration cannot be loaded: the field, its source and the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Path of the field, levels joined by dots; empty when a whole source cannot be read.
    pub key: String,
    /// The value, cut when it is long; empty when it cannot be shown.
    pub value: String,
    /// The file, environment variable or flag.
    pub origin: String,
    /// The rule that it breaks.
    pub rule: String,
}

impl ConfigError {
    fn new(key: &str, value: impl fmt::Display, origin: &str, rule: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.to_string(), origin: origin.into(), rule: rule.into() }
    }

    fn source(origin: &str, rule: impl Into<String>) -> Self {
        Self::new("", "", origin, rule)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.key.as_str(), self.value.as_str()) {
            ("", _) => write!(f, "{}: {}", self.origin, self.rule),
            (key, "") => write!(f, "{key} (from {}): {}", self.origin, self.rule),
            (key, value) => write!(f, "{key}: {value} (from {}): {}", self.origin, self.rule),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Reads the sources and merges them over the defaults. Does not check ranges and relations: see [`Config::validate`].
///
/// # Errors
/// A file that cannot be read or is not YAML, an unknown key in any source, a value of the wrong type.
pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path)
            .map_err(|error| ConfigError::source(&path.display().to_string(), error.to_string()))
    };
    load_text(sources, sources.file.as_ref().map(read).transpose()?.as_deref())
}

/// As [`load`], with `text` as the content of the file.
///
/// # Errors
/// As [`load`].
pub fn load_text(sources: &Sources, text: Option<&str>) -> Result<Config, ConfigError> {
    let defaults = defaults();
    let mut figment = Figment::from(Serialized::defaults(Config::default()));
    if let (Some(path), Some(text)) = (&sources.file, text) {
        figment = figment.merge(file_layer(path, text, &defaults)?);
    }
    for layer in environment_layers(&sources.environment, &defaults)? {
        figment = figment.merge(layer);
    }
    for setting in &sources.settings {
        figment = figment.merge(setting_layer(setting, &defaults)?);
    }
    figment.extract().map_err(|error| type_error(&figment, &error))
}

/// Returns the paths of all fields, levels joined by dots.
pub fn field_paths() -> Vec<String> {
    let mut paths = Vec::new();
    collect_paths("", &defaults(), &mut paths);
    paths
}

fn collect_paths(prefix: &str, tree: &Dict, paths: &mut Vec<String>) {
    for (name, value) in tree {
        match value {
            Value::Dict(_, inner) if !is_map(value) => collect_paths(&format!("{prefix}{name}."), inner, paths),
            _ => paths.push(format!("{prefix}{name}")),
        }
    }
}

/// Whether a field is a map from names to texts, which the tree of defaults shows as a group without fields.
fn is_map(default: &Value) -> bool {
    default.as_dict().is_some_and(Dict::is_empty)
}

fn defaults() -> Dict {
    // The defaults serialise into plain maps, texts and numbers; a test checks that.
    Value::serialize(Config::default()).ok().and_then(Value::into_dict).unwrap_or_default()
}

/// One source, checked against the tree of defaults.
struct Layer {
    origin: String,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

fn file_layer(path: &Path, text: &str, defaults: &Dict) -> Result<Layer, ConfigError> {
    let origin = path.display().to_string();
    let values: Option<Dict> =
        serde_yaml::from_str(text).map_err(|error| ConfigError::source(&origin, format!("must be YAML: {error}")))?;
    let values = typed("", values.unwrap_or_default(), defaults, defaults, &origin)?;
    Ok(Layer { origin, values })
}

/// Returns a YAML tree in which every key is known and every size is a number. `tree` is the part of `root` under
/// `prefix`.
fn typed(prefix: &str, values: Dict, tree: &Dict, root: &Dict, origin: &str) -> Result<Dict, ConfigError> {
    let typed_entry = |(name, value): (String, Value)| {
        let path = format!("{prefix}{name}");
        let default = tree.get(&name).ok_or_else(|| unknown(&path, root, origin))?;
        let value = match (default, value) {
            (Value::Dict(..), Value::Dict(_, entries)) if is_map(default) => {
                if let Some((key, _)) = entries.iter().find(|(_, value)| !matches!(value, Value::String(..))) {
                    let path = format!("{path}.{key}");
                    return Err(ConfigError::new(&path, "", origin, "must be a text; put it in quotes"));
                }
                Value::from(entries)
            }
            (Value::Dict(_, inner), Value::Dict(_, values)) => {
                Value::from(typed(&format!("{path}."), values, inner, root, origin)?)
            }
            // A group without any field.
            (Value::Dict(..), Value::Empty(..)) => Value::from(Dict::new()),
            (Value::Dict(..), other) => {
                let rule = if is_map(default) { MAP_RULE } else { "must be a group of fields, not a value" };
                return Err(ConfigError::new(&path, show(&other), origin, rule));
            }
            (Value::Array(..), Value::Array(_, elements)) => {
                if let Some(other) = elements.iter().find(|element| !matches!(element, Value::String(..))) {
                    return Err(ConfigError::new(
                        &path,
                        show(other),
                        origin,
                        "must be a list of texts; put them in quotes",
                    ));
                }
                Value::from(elements)
            }
            (_, other @ (Value::Dict(..) | Value::Array(..))) => {
                return Err(ConfigError::new(
                    &path,
                    "",
                    origin,
                    format!("must be a {}, not a {}", kind(default), kind(&other)),
                ));
            }
            (Value::Num(..) | Value::Array(..), Value::String(_, text)) => from_text(&path, &text, default, origin)?,
            (Value::String(..), Value::Num(..) | Value::Bool(..)) => {
                return Err(ConfigError::new(&path, "", origin, "must be a text; put it in quotes"));
            }
            (_, value) => value,
        };
        Ok((name, value))
    };
    values.into_iter().map(typed_entry).collect()
}

fn environment_layers(environment: &[(String, String)], defaults: &Dict) -> Result<Vec<Layer>, ConfigError> {
    let mut layers = Vec::new();
    for (variable, text) in environment {
        let Some(rest) = variable.strip_prefix(PREFIX) else { continue };
        if OTHER_VARIABLES.contains(&variable.as_str()) {
            continue;
        }
        let path = rest.replace("__", ".").replace('_', "-").to_lowercase();
        let origin = format!("environment variable {variable}");
        match leaf(defaults, &path) {
            Some(default) => layers.push(single(&path, from_text(&path, text, &default, &origin)?, origin)),
            None if is_service_variable(rest, text) => {}
            None => return Err(unknown(&path, defaults, &origin)),
        }
    }
    Ok(layers)
}

/// Whether a variable is one that Kubernetes and Docker set for services whose names begin with "chronicle", such as
/// `CHRONICLE_SERVICE_HOST`, `CHRONICLE_0_PORT=tcp://10.0.0.1:7400` and `CHRONICLE_PORT_7400_TCP_ADDR`. Two underscores
/// join the levels of a field, so a mistyped field does not look like such a variable.
fn is_service_variable(rest: &str, value: &str) -> bool {
    // With the separator prepended, a service named just "chronicle" looks like any other.
    let rest = format!("_{rest}");
    if rest[1..].contains("__") {
        return false;
    }
    if rest.ends_with("_SERVICE_HOST") || rest.ends_with("_SERVICE_PORT") || rest.contains("_SERVICE_PORT_") {
        return true;
    }
    if rest.ends_with("_PORT") && value.contains("://") {
        return true;
    }
    let Some((_, port)) = rest.split_once("_PORT_") else { return false };
    let mut parts = port.split('_');
    parts.next().is_some_and(|number| number.parse::<u16>().is_ok())
        && parts.next().is_some_and(|protocol| matches!(protocol, "TCP" | "UDP" | "SCTP"))
        && parts.next().is_none_or(|what| matches!(what, "ADDR" | "PORT" | "PROTO"))
}

fn setting_layer(setting: &str, defaults: &Dict) -> Result<Layer, ConfigError> {
    let (path, text) = setting
        .split_once('=')
        .ok_or_else(|| ConfigError::source(&format!("--set {setting}"), "must be PATH.OF.FIELD=VALUE"))?;
    let origin = "--set".to_owned();
    let default = leaf(defaults, path).ok_or_else(|| unknown(path, defaults, &origin))?;
    Ok(single(path, from_text(path, text, &default, &origin)?, origin))
}

fn single(path: &str, value: Value, origin: String) -> Layer {
    let values = path.rsplit('.').fold(value, |value, name| Value::from(Dict::from([(name.to_owned(), value)])));
    Layer { origin, values: values.into_dict().unwrap_or_default() }
}

/// The default of a field that takes a text: one that is no group, or an entry of a map.
fn leaf(tree: &Dict, path: &str) -> Option<Value> {
    match path.split_once('.') {
        Some((name, entry)) if is_map(tree.get(name)?) => (!entry.contains('.')).then(|| Value::from("")),
        Some((name, rest)) => leaf(tree.get(name)?.as_dict()?, rest),
        None => tree.get(path).filter(|value| value.as_dict().is_none()).cloned(),
    }
}

/// Converts a text to the type of its field; commas separate the elements of a list.
fn from_text(path: &str, text: &str, default: &Value, origin: &str) -> Result<Value, ConfigError> {
    let number = match default {
        Value::Num(..) if path.contains("bytes") => {
            parse_bytes(text).ok_or("must be a number of bytes, such as 1048576 or 1MiB")
        }
        Value::Num(_, Num::F64(_)) => {
            let number = text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
            let rule = "must be a number, such as 0.01";
            let number = number.ok_or_else(|| ConfigError::new(path, show_text(text), origin, rule))?;
            return Ok(Value::Num(Tag::Default, Num::from(number)));
        }
        Value::Num(..) => text.trim().parse::<u64>().map_err(|_| "must be a whole number, not negative"),
        Value::Array(..) => {
            let elements = text.split(',').map(str::trim).filter(|element| !element.is_empty());
            return Ok(Value::from(elements.map(Value::from).collect::<Vec<_>>()));
        }
        Value::Bool(..) => {
            let flag = text.trim().parse::<bool>().map(Value::from);
            return flag.map_err(|_| ConfigError::new(path, show_text(text), origin, "must be true or false"));
        }
        _ => return Ok(Value::from(text.to_owned())),
    };
    number
        .map(|number| Value::Num(Tag::Default, Num::from(number)))
        .map_err(|rule| ConfigError::new(path, show_text(text), origin, rule))
}

/// Parses a number of bytes, optionally with a binary unit.
fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let shift = match text[digits..].trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn unknown(path: &str, tree: &Dict, origin: &str) -> ConfigError {
    let mut level = tree;
    let mut known = 0;
    for name in path.split('.') {
        if level.get(name).is_some_and(is_map) {
            return ConfigError::new(path, "", origin, MAP_RULE);
        }
        match level.get(name).and_then(Value::as_dict) {
            Some(inner) => level = inner,
            None => break,
        }
        known += 1;
    }
    let names = level.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let group = path.split('.').take(known).collect::<Vec<_>>().join(".");
    let place = if group.is_empty() { "known groups are".to_owned() } else { format!("{group} has") };
    ConfigError::new(path, "", origin, format!("unknown field; {place} {names}"))
}

fn type_error(figment: &Figment, error: &Error) -> ConfigError {
    let path = error.path.join(".");
    let metadata = error.metadata.clone().or_else(|| figment.find_metadata(&path).cloned());
    let origin = metadata.map_or_else(|| "configuration".to_owned(), |metadata| metadata.name.into_owned());
    let value = figment.find_value(&path).ok().map(|value| show(&value)).unwrap_or_default();
    ConfigError::new(&path, value, &origin, error.kind.to_string())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Num(..) => "number",
        Value::Bool(..) => "boolean",
        Value::Dict(..) => "group",
        Value::Array(..) => "list",
        Value::Empty(..) => "null",
        Value::String(..) | Value::Char(..) => "text",
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::String(_, text) => show_text(text),
        Value::Char(_, char) => char.to_string(),
        Value::Bool(_, value) => value.to_string(),
        Value::Num(_, number) => match (number.to_u128(), number.to_i128()) {
            (Some(number), _) => number.to_string(),
            (_, Some(number)) => number.to_string(),
            _ => number.to_f64().map_or_else(String::new, |number| number.to_string()),
        },
        other => kind(other).to_owned(),
    }
}

fn show_text(text: &str) -> String {
    if text.is_empty() { "\"\"".to_owned() } else { text.escape_debug().to_string() }
}
