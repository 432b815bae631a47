//! The effective settings: the fields of the configuration, overridden by the standard `OTEL_*` variables, as the
//! environment overrides files everywhere.
//!
//! Headers, compression and the resource's attributes (`OTEL_EXPORTER_OTLP_HEADERS`, `..._COMPRESSION`,
//! `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SERVICE_NAME`) are read by the SDK itself.

use std::time::Duration;

use super::error::TracesError;
use super::sampling::Sampling;
use crate::config::{TracesConfig, TracesProtocol};

/// Path of the traces signal below an endpoint that is configured for all signals.
const TRACES_PATH: &str = "v1/traces";

/// How spans are sampled and exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) endpoint: String,
    pub(super) protocol: TracesProtocol,
    pub(super) sampling: Sampling,
    pub(super) queue_spans_max: usize,
    pub(super) batch_spans_max: usize,
    pub(super) interval: Duration,
    pub(super) export_timeout: Duration,
}

impl Settings {
    /// Computes the settings; `None` when traces are off.
    pub(super) fn resolve(
        config: &TracesConfig,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, TracesError> {
        // The standard treats an empty variable as not set.
        let variable =
            |name: &'static str| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let off = variable("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"));
        if off || variable("OTEL_TRACES_EXPORTER").is_some_and(|text| text == "none") {
            return Ok(None);
        }
        let number = |name: &'static str, field: u64| match variable(name) {
            None => Ok(field),
            Some(text) => match text.parse() {
                Ok(number) if number > 0 => Ok(number),
                _ => Err(TracesError::Variable { name, value: text, rule: "must be a whole number, at least 1" }),
            },
        };
        let protocol =
            variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").map(|text| ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", text));
        let protocol = match protocol
            .or_else(|| Some(("OTEL_EXPORTER_OTLP_PROTOCOL", variable("OTEL_EXPORTER_OTLP_PROTOCOL")?)))
        {
            None => config.protocol,
            Some((name, text)) => match text.as_str() {
                "grpc" => TracesProtocol::Grpc,
                "http/protobuf" => TracesProtocol::Http,
                _ => return Err(TracesError::Variable { name, value: text, rule: "must be grpc or http/protobuf" }),
            },
        };
        let of_all_signals = |endpoint: String| match protocol {
            TracesProtocol::Grpc => endpoint,
            TracesProtocol::Http if endpoint.ends_with(TRACES_PATH) => endpoint,
            TracesProtocol::Http => format!("{}/{TRACES_PATH}", endpoint.trim_end_matches('/')),
        };
        let endpoint = match (variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), variable("OTEL_EXPORTER_OTLP_ENDPOINT")) {
            (Some(endpoint), _) => endpoint,
            (None, Some(endpoint)) => of_all_signals(endpoint),
            (None, None) if config.endpoint.is_empty() => return Ok(None),
            (None, None) => of_all_signals(config.endpoint.clone()),
        };
        if protocol == TracesProtocol::Http && endpoint.starts_with("https://") {
            return Err(TracesError::PlainHttp(endpoint));
        }
        let timeout = number("OTEL_EXPORTER_OTLP_TIMEOUT", config.export_timeout_ms)?;
        let queue = number("OTEL_BSP_MAX_QUEUE_SIZE", config.queue_spans_max as u64)?;
        let batch = number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", config.batch_spans_max as u64)?;
        Ok(Some(Self {
            endpoint,
            protocol,
            sampling: sampling(config, &variable)?,
            queue_spans_max: usize::try_from(queue).unwrap_or(usize::MAX),
            batch_spans_max: usize::try_from(batch.min(queue)).unwrap_or(usize::MAX),
            interval: Duration::from_millis(number("OTEL_BSP_SCHEDULE_DELAY", config.interval_ms)?),
            export_timeout: Duration::from_millis(number("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", timeout)?),
        }))
    }
}

pub(super) fn sampling(
    config: &TracesConfig,
    variable: &impl Fn(&'static str) -> Option<String>,
) -> Result<Sampling, TracesError> {
    let ratio = match variable("OTEL_TRACES_SAMPLER_ARG") {
        None => None,
        Some(text) => match text.parse::<f64>() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Some(ratio),
            _ => {
                let name = "OTEL_TRACES_SAMPLER_ARG";
                return Err(TracesError::Variable { name, value: text, rule: "must be a number from 0 to 1" });
            }
        },
    };
    let Some(sampler) = variable("OTEL_TRACES_SAMPLER") else {
        return Ok(Sampling::new(true, ratio.unwrap_or(config.sampling_ratio.get())));
    };
    Ok(match sampler.as_str() {
        "always_on" => Sampling::new(false, 1.0),
        "always_off" => Sampling::new(false, 0.0),
        // The standard's default without an argument is 1.
        "traceidratio" => Sampling::new(false, ratio.unwrap_or(1.0)),
        "parentbased_always_on" => Sampling::new(true, 1.0),
        "parentbased_always_off" => Sampling::new(true, 0.0),
        "parentbased_traceidratio" => Sampling::new(true, ratio.unwrap_or(1.0)),
        _ => {
            let name = "OTEL_TRACES_SAMPLER";
            let rule = "must be always_on, always_off or traceidratio, each also with parentbased_ before it";
            return Err(TracesError::Variable { name, value: sampler, rule });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(config: &TracesConfig, variables: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Settings::resolve(config, variable).map_err(|error| error.to_string())
    }

    fn http(endpoint: &str) -> TracesConfig {
        TracesConfig { endpoint: endpoint.into(), protocol: TracesProtocol::Http, ..TracesConfig::default() }
    }

    #[test]
    fn without_an_endpoint_traces_are_off() {
        assert_eq!(resolve(&TracesConfig::default(), &[]).unwrap(), None);
        assert_eq!(resolve(&TracesConfig::default(), &[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]).unwrap(), None);
        for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert_eq!(resolve(&http("http://a:4318"), &[off]).unwrap(), None);
        }
    }

    #[test]
    fn the_endpoint_of_all_signals_gets_the_path_of_traces_over_http() {
        let endpoint = |config: &TracesConfig, variables: &[_]| resolve(config, variables).unwrap().unwrap().endpoint;
        assert_eq!(endpoint(&http("http://a:4318"), &[]), "http://a:4318/v1/traces");
        assert_eq!(endpoint(&http("http://a:4318/v1/traces"), &[]), "http://a:4318/v1/traces");
        assert_eq!(endpoint(&http("x"), &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://b:1/x/")]), "http://b:1/x/v1/traces");
        assert_eq!(endpoint(&http("x"), &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:1/x")]), "http://b:1/x");
        let grpc = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://b:4317"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
        assert_eq!(endpoint(&http("x"), &grpc), "http://b:4317");
    }

    #[test]
    fn standard_variables_win_over_the_configuration() {
        let variables = [
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.5"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
            ("OTEL_BSP_SCHEDULE_DELAY", "7"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "8"),
        ];
        let settings = resolve(&http("http://a:4318"), &variables).unwrap().unwrap();
        assert_eq!(settings.sampling, Sampling::new(false, 0.5));
        assert_eq!((settings.queue_spans_max, settings.batch_spans_max), (100, 100));
        assert_eq!((settings.interval.as_millis(), settings.export_timeout.as_millis()), (7, 8));
    }

    #[test]
    fn a_variable_that_does_not_parse_is_named() {
        for (name, value) in [
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_TRACES_SAMPLER_ARG", "2"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ] {
            let error = resolve(&http("http://a:4318"), &[(name, value)]).unwrap_err();
            assert!(error.starts_with(&format!("{name}: {value}: must be ")), "{error}");
        }
    }
}
