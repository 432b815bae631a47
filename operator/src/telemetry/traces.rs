//! OpenTelemetry traces of reconciles: a span per reconcile, with a child span for each phase and each call to the nodes of a cluster,
//! which propagate the trace.
//!
//! Only the standard environment variables configure it. Without an endpoint (`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`,
//! `OTEL_EXPORTER_OTLP_ENDPOINT`) there are no spans and no cost. The SDK itself reads sampling (`OTEL_TRACES_SAMPLER`, default:
//! everything), queue and batches (`OTEL_BSP_*`; the queue is bounded and drops spans when it is full), headers and attributes of the
//! resource.
//!
//! Spans are those of `tracing` on the target [`SPANS`]. Phases have the level debug: log lines name the reconcile and not its phases.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{BatchSpanProcessor, SdkTracerProvider, SpanData, SpanExporter};
use tokio::runtime::Handle;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::registry::LookupSpan;

/// Target of the `tracing` spans that become spans of OpenTelemetry.
pub const SPANS: &str = "chronicle_traces";
/// Path of the signal where the endpoint is the one of all signals.
const TRACES_PATH: &str = "v1/traces";
/// Time limit for exporting the last spans at shutdown.
const FLUSH: Duration = Duration::from_secs(5);

/// Why tracing cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// An environment variable has an invalid value.
    #[error("{name}: {value}: {rule}")]
    Variable {
        /// Name of the variable.
        name: &'static str,
        /// Value of the variable.
        value: String,
        /// Rule for the value.
        rule: &'static str,
    },
    /// The exporter cannot be created.
    #[error("trace endpoint {endpoint}: {source}")]
    Exporter {
        /// Configured endpoint.
        endpoint: String,
        /// Cause.
        source: ExporterBuildError,
    },
}

/// Destination of spans.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Destination {
    endpoint: String,
    grpc: bool,
}

impl Destination {
    /// Reads the environment variables; `None`: tracing is off.
    fn resolve(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, TracesError> {
        // The standard treats an empty variable as unset.
        let variable =
            |name: &'static str| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let off = variable("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"));
        if off || variable("OTEL_TRACES_EXPORTER").is_some_and(|text| text == "none") {
            return Ok(None);
        }
        let either = |names: [&'static str; 2]| names.into_iter().find_map(|name| Some((name, variable(name)?)));
        let protocol = either(["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"]);
        let grpc = match protocol {
            None => true,
            Some((_, text)) if text == "grpc" => true,
            Some((_, text)) if text == "http/protobuf" => false,
            Some((name, value)) => {
                return Err(TracesError::Variable { name, value, rule: "must be grpc or http/protobuf" });
            }
        };
        let endpoint = either(["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"]);
        let Some((name, endpoint)) = endpoint else { return Ok(None) };
        if !grpc && endpoint.starts_with("https://") {
            let rule = "must be http:// with the protocol http/protobuf; https:// needs grpc";
            return Err(TracesError::Variable { name, value: endpoint, rule });
        }
        let of_all_signals = name == "OTEL_EXPORTER_OTLP_ENDPOINT" && !grpc && !endpoint.ends_with(TRACES_PATH);
        let endpoint = match of_all_signals {
            true => format!("{}/{TRACES_PATH}", endpoint.trim_end_matches('/')),
            false => endpoint,
        };
        Ok(Some(Self { endpoint, grpc }))
    }
}

/// Tracing of this process.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Starts the exporter as the environment configures it, on the current tokio runtime; `None`: there is no endpoint. `instance` is the
    /// name of this process.
    ///
    /// # Errors
    /// An invalid environment variable or endpoint.
    pub fn start(instance: &str) -> Result<Option<Self>, TracesError> {
        let destination = Destination::resolve(|name| std::env::var(name).ok())?;
        destination.map(|destination| Self::to(&destination, instance)).transpose()
    }

    fn to(destination: &Destination, instance: &str) -> Result<Self, TracesError> {
        let endpoint = &destination.endpoint;
        let exporter = match destination.grpc {
            true => {
                let builder = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint);
                match endpoint.starts_with("https://") {
                    // Trusts the CAs of the system; `SSL_CERT_FILE` overrides them.
                    true => builder.with_tls_config(ClientTlsConfig::new().with_enabled_roots()).build(),
                    false => builder.build(),
                }
            }
            false => opentelemetry_otlp::SpanExporter::builder().with_http().with_endpoint(endpoint).build(),
        };
        let exporter = exporter.map_err(|source| TracesError::Exporter { endpoint: endpoint.clone(), source })?;
        let exporter = Exporter { inner: Arc::new(exporter), runtime: Handle::current() };
        let provider = SdkTracerProvider::builder()
            .with_resource(resource(instance))
            .with_span_processor(BatchSpanProcessor::builder(exporter).build())
            .build();
        Ok(Self { provider })
    }

    /// Returns the layer that exports spans of the target [`SPANS`].
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("chronicle-operator"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(|metadata| metadata.target() == SPANS).with_max_level_hint(LevelFilter::DEBUG))
    }

    /// Exports the queued spans, for five seconds at most, and stops.
    pub async fn shutdown(self) {
        #[expect(clippy::disallowed_methods, reason = "the exporter blocks; the operator is not simulated")]
        let stopped = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(FLUSH)).await;
        if let Ok(Err(error)) = stopped {
            tracing::warn!(%error, "cannot export the last spans");
        }
    }
}

fn resource(instance: &str) -> Resource {
    // The builder reads the environment. Attributes added here take precedence, so the name is added only if there is none.
    let named = std::env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty())
        || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|attributes| attributes.contains("service.name="));
    let mut attributes = vec![
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", instance.to_owned()),
    ];
    if !named {
        attributes.push(KeyValue::new("service.name", "chronicle-operator"));
    }
    Resource::builder().with_attributes(attributes).build()
}

/// The OTLP exporter on the tokio runtime of the process: the thread of the batch processor has none.
#[derive(Debug)]
struct Exporter {
    inner: Arc<opentelemetry_otlp::SpanExporter>,
    runtime: Handle,
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let inner = self.inner.clone();
        let sent = self.runtime.spawn(async move { inner.export(batch).await });
        sent.await.unwrap_or_else(|error| Err(OTelSdkError::InternalFailure(error.to_string())))
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        // Called once, before anything is exported.
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.set_resource(resource);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
    use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
    use opentelemetry_proto::tonic::trace::v1::Span;
    use parking_lot::Mutex;
    use tokio_util::sync::CancellationToken;
    use tracing::Instrument;
    use tracing::instrument::WithSubscriber;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::controller::cluster::reconcile;
    use crate::controller::fake_kubernetes::FakeKubernetes;

    /// A receiver of OTLP.
    #[derive(Clone, Default)]
    struct Receiver(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

    #[tonic::async_trait]
    impl TraceService for Receiver {
        async fn export(
            &self,
            request: tonic::Request<ExportTraceServiceRequest>,
        ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
            self.0.lock().push(request.into_inner());
            Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_reconcile_is_exported_with_its_phases_and_its_calls_to_nodes() {
        let receiver = Receiver::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (service, stop) = (TraceServiceServer::new(receiver.clone()), CancellationToken::new());
        let stopped = stop.clone().cancelled_owned();
        let incoming = futures::stream::unfold(listener, |listener| async move {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let served = tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming_shutdown(Box::pin(incoming), stopped),
        );

        let destination = Destination { endpoint: format!("http://{address}"), grpc: true };
        let traces = Traces::to(&destination, "me").unwrap();
        let subscriber = tracing_subscriber::registry().with(traces.layer());
        // With one subscriber in the process, the interest in a span is cached from the first thread that reaches it; a thread of another
        // test has no subscriber and would disable the span. With two subscribers the interest is not cached.
        let _another = tracing::Dispatch::new(tracing_subscriber::registry());
        let fake = FakeKubernetes::new();
        fake.put(
            "chronicleclusters",
            serde_json::json!({
                "apiVersion": "chronicle.dev/v1alpha1", "kind": "ChronicleCluster", "metadata": {"name": "log"},
                "spec": {"image": "chronicle:1.0.0", "storage": {"size": "1Gi"}},
            }),
        );
        let passes = async {
            let operator = fake.operator();
            for _ in 0..20 {
                let resource = fake.get("chronicleclusters", "log").unwrap();
                let resource = Arc::new(serde_json::from_value(resource).unwrap());
                let span = tracing::info_span!(target: SPANS, "reconcile");
                let _ = reconcile(resource, operator.clone()).instrument(span).await;
                fake.tick();
            }
        };
        passes.with_subscriber(subscriber).await;
        traces.shutdown().await;

        let requests = receiver.0.lock().clone();
        let resource = requests[0].resource_spans[0].resource.clone().unwrap();
        assert!(resource.attributes.iter().any(|attribute| attribute.key == "service.name"), "{resource:?}");
        let spans: Vec<Span> = requests
            .into_iter()
            .flat_map(|request| request.resource_spans)
            .flat_map(|of_resource| of_resource.scope_spans)
            .flat_map(|scope| scope.spans)
            .collect();
        let names: BTreeMap<Vec<u8>, String> =
            spans.iter().map(|span| (span.span_id.clone(), span.name.clone())).collect();
        let parent = |name: &str| {
            let span = spans.iter().find(|span| span.name == name);
            span.and_then(|span| names.get(&span.parent_span_id).cloned())
        };
        for (name, above) in [
            ("observe", "reconcile"),
            ("apply", "reconcile"),
            ("plan", "reconcile"),
            ("act", "reconcile"),
            ("status", "reconcile"),
        ] {
            assert_eq!(parent(name).as_deref(), Some(above), "of {name}, among {names:?}");
        }
        assert_eq!(parent("admin observe").as_deref(), Some("observe"), "{names:?}");
        stop.cancel();
        served.await.unwrap().unwrap();
    }

    fn resolve(variables: &[(&str, &str)]) -> Result<Option<Destination>, String> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Destination::resolve(variable).map_err(|error| error.to_string())
    }

    #[test]
    fn the_standard_variables_set_where_spans_go() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4317");
        assert_eq!(resolve(&[]), Ok(None));
        assert_eq!(resolve(&[endpoint, ("OTEL_SDK_DISABLED", "true")]), Ok(None));
        assert_eq!(resolve(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]), Ok(None));
        let of = |endpoint: &str, grpc| Ok(Some(Destination { endpoint: endpoint.into(), grpc }));
        assert_eq!(resolve(&[endpoint]), of("http://a:4317", true));
        let http = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
        assert_eq!(resolve(&[endpoint, http]), of("http://a:4317/v1/traces", false));
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:1/x");
        assert_eq!(resolve(&[endpoint, own, http]), of("http://b:1/x", false));
        let wrong = resolve(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]).unwrap_err();
        assert_eq!(wrong, "OTEL_EXPORTER_OTLP_PROTOCOL: http/json: must be grpc or http/protobuf");
    }
}
