//! The state that all reconcilers of a process share: clients, settings, retry counters, discovered APIs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use parking_lot::Mutex;

use super::apply::PersistentDrift;
use crate::admin::{Admin, TracedAdmin};
use crate::build::{OptionalApis, Settings};
use crate::telemetry::Metrics;

/// Maximum age of the discovered APIs.
const DISCOVERY_AGE: Duration = Duration::from_secs(60);

/// Shared state of all reconcilers. Cheap to clone.
#[derive(Clone)]
pub struct Context(Arc<ContextInner>);

struct ContextInner {
    client: Client,
    admin: TracedAdmin,
    settings: Settings,
    recorder: Recorder,
    metrics: Metrics,
    apis: Mutex<Option<(Instant, OptionalApis)>>,
    /// Consecutive failures by resource.
    attempts: Mutex<HashMap<String, u32>>,
    persistent_drift: PersistentDrift,
    /// Last step of a resource, and how often it was repeated.
    repeated: Mutex<HashMap<String, (String, u32)>>,
    clock: Clock,
}

/// Returns the current time.
pub(crate) type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Type of a Kubernetes event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// Normal progress.
    Normal,
    /// Needs attention.
    Warning,
}

impl Context {
    /// Creates one. `instance` is the name of this process in events.
    #[expect(clippy::disallowed_methods, reason = "the real clock: everything else takes time from the Context")]
    pub fn new(client: Client, admin: Arc<dyn Admin>, settings: Settings, metrics: Metrics, instance: &str) -> Self {
        let reporter = Reporter { controller: "chronicle-operator".into(), instance: Some(instance.to_owned()) };
        Self(Arc::new(ContextInner {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            admin: TracedAdmin(admin),
            settings,
            metrics,
            apis: Mutex::new(None),
            attempts: Mutex::default(),
            persistent_drift: PersistentDrift::default(),
            repeated: Mutex::default(),
            clock: Arc::new(Timestamp::now),
        }))
    }

    /// Creates one with a given clock and given APIs, for tests.
    #[cfg(test)]
    pub(crate) fn for_tests(client: Client, admin: Arc<dyn Admin>, apis: OptionalApis, clock: Clock) -> Self {
        let reporter = Reporter { controller: "chronicle-operator".into(), instance: None };
        #[expect(clippy::disallowed_methods, reason = "never ends in a test")]
        let far = Instant::now() + Duration::from_secs(3600);
        Self(Arc::new(ContextInner {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            admin: TracedAdmin(admin),
            settings: Settings::default(),
            metrics: Metrics::new(),
            apis: Mutex::new(Some((far, apis))),
            attempts: Mutex::default(),
            persistent_drift: PersistentDrift::default(),
            repeated: Mutex::default(),
            clock,
        }))
    }

    /// Returns the client of the API server.
    pub fn client(&self) -> Client {
        self.0.client.clone()
    }

    /// Returns the access to nodes.
    pub fn admin(&self) -> &dyn Admin {
        &self.0.admin
    }

    /// Returns the settings that apply to all clusters.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// Returns the record of persistent drift.
    pub(super) fn persistent_drift(&self) -> PersistentDrift {
        self.0.persistent_drift.clone()
    }

    /// Returns the metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Returns the current time.
    pub fn now(&self) -> Timestamp {
        (self.0.clock)()
    }

    /// Returns the optional APIs that the API server serves; the previous result if discovery fails.
    #[expect(clippy::disallowed_methods, reason = "the age of a cached answer of the API server")]
    pub async fn optional_apis(&self) -> OptionalApis {
        let known = *self.0.apis.lock();
        match known {
            Some((at, apis)) if at.elapsed() < DISCOVERY_AGE => return apis,
            _ => {}
        }
        let before = known.map(|(_, apis)| apis).unwrap_or_default();
        let apis = OptionalApis {
            cert_manager: self.serves("cert-manager.io", "v1", "Certificate").await.unwrap_or(before.cert_manager),
            pod_monitor: self.serves("monitoring.coreos.com", "v1", "PodMonitor").await.unwrap_or(before.pod_monitor),
        };
        *self.0.apis.lock() = Some((Instant::now(), apis));
        apis
    }

    /// Returns whether the API server serves a kind, by discovery, which needs no rights; `None`: no response.
    async fn serves(&self, group: &str, version: &str, kind: &str) -> Option<bool> {
        match self.0.client.list_api_group_resources(&format!("{group}/{version}")).await {
            Ok(known) => Some(known.resources.iter().any(|resource| resource.kind == kind)),
            Err(kube::Error::Api(status)) if status.code == 404 => Some(false),
            Err(error) => {
                tracing::warn!(%error, group, version, "cannot discover the served APIs");
                None
            }
        }
    }

    /// Records a Kubernetes event. A failure is only logged.
    pub async fn event<K: Resource<DynamicType = ()>>(&self, of: &K, kind: EventKind, reason: &str, note: &str) {
        let event = Event {
            type_: match kind {
                EventKind::Normal => EventType::Normal,
                EventKind::Warning => EventType::Warning,
            },
            reason: reason.to_owned(),
            note: Some(note.chars().take(1000).collect()),
            action: "Reconcile".into(),
            secondary: None,
        };
        if let Err(error) = self.0.recorder.publish(&event, &of.object_ref(&())).await {
            tracing::debug!(%error, reason, "cannot record an event");
        }
    }

    /// Counts a failure and returns the number of consecutive failures.
    pub fn failed(&self, key: &str) -> u32 {
        let mut attempts = self.0.attempts.lock();
        let count = attempts.entry(key.to_owned()).or_default();
        *count += 1;
        *count
    }

    /// Returns how often the same step was repeated. The caller backs off: a step without effect must not occupy the workers of all other
    /// resources.
    pub(super) fn repeated(&self, key: &str, what: String) -> u32 {
        let mut repeated = self.0.repeated.lock();
        let known = repeated.entry(key.to_owned()).or_default();
        match known.0 == what {
            true => known.1 = known.1.saturating_add(1),
            false => *known = (what, 0),
        }
        known.1
    }

    /// Drops the counters of a deleted resource.
    pub(super) fn forget(&self, key: &str) {
        self.0.repeated.lock().remove(key);
        self.succeeded(key);
    }

    /// Returns the number of consecutive failures.
    pub(super) fn failures(&self, key: &str) -> u32 {
        self.0.attempts.lock().get(key).copied().unwrap_or(0)
    }

    /// Resets the failures of a resource.
    pub fn succeeded(&self, key: &str) {
        self.0.attempts.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::fake_kubernetes::FakeKubernetes;

    #[tokio::test]
    async fn the_installed_kinds_are_read_without_permissions_on_their_objects() {
        let fake = FakeKubernetes::new();
        fake.forbidden.lock().extend(["certificates", "podmonitors"].map(str::to_owned));
        let context = || {
            let (settings, metrics) = (Settings::default(), Metrics::new());
            Context::new(fake.client(), Arc::new(fake.admin()), settings, metrics, "me")
        };
        assert_eq!(context().optional_apis().await, OptionalApis { cert_manager: true, pod_monitor: false });
        fake.served.lock().insert("monitoring.coreos.com/v1".into(), vec!["PodMonitor".into()]);
        assert_eq!(context().optional_apis().await, OptionalApis { cert_manager: true, pod_monitor: true });
        fake.served.lock().clear();
        assert_eq!(context().optional_apis().await, OptionalApis::default());
    }
}
