//! Exports spans in batches, from a queue bounded in spans, on a thread of the SDK. Spans that do not fit are dropped.
//!
//! Requests to the collector run on the node's runtime, because that thread has none.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter,
};
use tokio::runtime::Handle;
use tokio::sync::RwLock;
use uuid::Uuid;

use super::error::TracesError;
use super::settings::Settings;
use crate::config::TracesProtocol;

/// The cluster of the node, once it is known.
pub(super) type ClusterId = Arc<OnceLock<Uuid>>;

/// Makes the provider, which samples and exports every span that reaches it. Must be called in a tokio runtime.
pub(super) fn provider(settings: &Settings, node: &str) -> Result<(SdkTracerProvider, ClusterId), TracesError> {
    let Settings { endpoint, export_timeout, .. } = settings;
    let exporter = match settings.protocol {
        TracesProtocol::Grpc => {
            let builder = opentelemetry_otlp::SpanExporter::builder().with_tonic();
            let builder = builder.with_endpoint(endpoint).with_timeout(*export_timeout);
            match endpoint.starts_with("https://") {
                // The CAs that the system trusts; `SSL_CERT_FILE` overrides them.
                true => builder.with_tls_config(ClientTlsConfig::new().with_enabled_roots()).build(),
                false => builder.build(),
            }
        }
        TracesProtocol::Http => opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_endpoint(endpoint)
            .with_timeout(*export_timeout)
            .build(),
    };
    let exporter = exporter.map_err(|source| TracesError::Exporter { endpoint: endpoint.clone(), source })?;
    let cluster = ClusterId::default();
    let resource = resource(node);
    let exporter = Exporter {
        inner: Arc::new(RwLock::new(exporter)),
        runtime: Handle::current(),
        resource: resource.clone(),
        cluster: cluster.clone(),
        cluster_is_told: AtomicBool::new(false),
    };
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(settings.queue_spans_max)
        .with_max_export_batch_size(settings.batch_spans_max)
        .with_scheduled_delay(settings.interval)
        .build();
    let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .with_sampler(Sampler::AlwaysOn)
        .with_resource(resource)
        .build();
    Ok((provider, cluster))
}

fn resource(node: &str) -> Resource {
    // The builder reads the standard variables. Attributes added here override them, so the name is added only when the
    // variables have none.
    let named = std::env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty())
        || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|attributes| attributes.contains("service.name="));
    let mut attributes = vec![
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", node.to_owned()),
        KeyValue::new("chronicle.node.name", node.to_owned()),
    ];
    if !named {
        attributes.push(KeyValue::new("service.name", "chronicle"));
    }
    Resource::builder().with_attributes(attributes).build()
}

/// The OTLP exporter, called on the node's runtime. Adds the cluster id to the attributes of the resource once the node
/// is a member of a cluster.
struct Exporter {
    inner: Arc<RwLock<opentelemetry_otlp::SpanExporter>>,
    runtime: Handle,
    resource: Resource,
    cluster: ClusterId,
    cluster_is_told: AtomicBool,
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let news = self.cluster.get().filter(|_| !self.cluster_is_told.swap(true, Ordering::Relaxed));
        let resource = news.map(|cluster| {
            let attributes = self.resource.iter().map(|(name, value)| KeyValue::new(name.clone(), value.clone()));
            let cluster = KeyValue::new("chronicle.cluster.id", cluster.to_string());
            Resource::builder_empty().with_attributes(attributes.chain([cluster])).build()
        });
        let inner = self.inner.clone();
        let sent = self.runtime.spawn(async move {
            if let Some(resource) = resource {
                inner.write().await.set_resource(&resource);
            }
            inner.read().await.export(batch).await
        });
        sent.await.unwrap_or_else(|error| Err(OTelSdkError::InternalFailure(error.to_string())))
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        // No export is running: the same thread calls this and the export.
        match self.inner.try_read() {
            Ok(inner) => inner.shutdown_with_timeout(timeout),
            Err(_) => Err(OTelSdkError::Timeout(timeout)),
        }
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.clone();
        if let Ok(mut inner) = self.inner.try_write() {
            inner.set_resource(resource);
        }
    }
}
