//! What all reconcilers share.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use parking_lot::Mutex;

use super::apply::Unmended;
use crate::admin::{Admin, Traced};
use crate::build::{Available, Settings};
use crate::process::Metrics;

/// What the API server knows besides its own kinds is looked up this often.
const AVAILABLE_AGE: Duration = Duration::from_secs(60);

/// What all reconcilers share. Cheap to clone.
#[derive(Clone)]
pub struct Context(Arc<Inner>);

struct Inner {
    client: Client,
    admin: Traced,
    settings: Settings,
    recorder: Recorder,
    metrics: Metrics,
    available: Mutex<Option<(Instant, Available)>>,
    /// Failed attempts in a row, by resource.
    attempts: Mutex<HashMap<String, u32>>,
    unmended: Unmended,
    /// What was done last for a resource, and how often in a row.
    repeated: Mutex<HashMap<String, (String, u32)>>,
    clock: Clock,
}

/// Tells the time.
pub(crate) type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// Whether an event is good news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// Something went on.
    Normal,
    /// Somebody should look.
    Warning,
}

impl Context {
    /// `instance`: name of this process in events.
    #[expect(clippy::disallowed_methods, reason = "the real clock: everything else takes time from the Context")]
    pub fn new(client: Client, admin: Arc<dyn Admin>, settings: Settings, metrics: Metrics, instance: &str) -> Self {
        let reporter = Reporter { controller: "chronicle-operator".into(), instance: Some(instance.to_owned()) };
        Self(Arc::new(Inner {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            admin: Traced(admin),
            settings,
            metrics,
            available: Mutex::new(None),
            attempts: Mutex::default(),
            unmended: Unmended::default(),
            repeated: Mutex::default(),
            clock: Arc::new(Timestamp::now),
        }))
    }

    /// With a clock of its own and without a look at what the API server knows, for tests.
    #[cfg(test)]
    pub(crate) fn for_tests(client: Client, admin: Arc<dyn Admin>, available: Available, clock: Clock) -> Self {
        let reporter = Reporter { controller: "chronicle-operator".into(), instance: None };
        #[expect(clippy::disallowed_methods, reason = "never ends in a test")]
        let far = Instant::now() + Duration::from_secs(3600);
        Self(Arc::new(Inner {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            admin: Traced(admin),
            settings: Settings::default(),
            metrics: Metrics::new(),
            available: Mutex::new(Some((far, available))),
            attempts: Mutex::default(),
            unmended: Unmended::default(),
            repeated: Mutex::default(),
            clock,
        }))
    }

    /// The way to the API server.
    pub fn client(&self) -> Client {
        self.0.client.clone()
    }

    /// The way to the nodes.
    pub fn admin(&self) -> &dyn Admin {
        &self.0.admin
    }

    /// What is the same for every cluster.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// What was written to the API server and is not so all the same.
    pub(super) fn unmended(&self) -> Unmended {
        self.0.unmended.clone()
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        (self.0.clock)()
    }

    /// What the API server knows besides its own kinds. When it does not answer, what it knew before.
    #[expect(clippy::disallowed_methods, reason = "the age of a cache of what the API server serves")]
    pub async fn available(&self) -> Available {
        let known = *self.0.available.lock();
        match known {
            Some((at, available)) if at.elapsed() < AVAILABLE_AGE => return available,
            _ => {}
        }
        let before = known.map(|(_, available)| available).unwrap_or_default();
        let available = Available {
            cert_manager: self.serves("cert-manager.io", "v1", "Certificate").await.unwrap_or(before.cert_manager),
            pod_monitor: self.serves("monitoring.coreos.com", "v1", "PodMonitor").await.unwrap_or(before.pod_monitor),
        };
        *self.0.available.lock() = Some((Instant::now(), available));
        available
    }

    /// Whether the API server has a kind, by its own account of itself, which everybody may read; `None`: no answer.
    async fn serves(&self, group: &str, version: &str, kind: &str) -> Option<bool> {
        match self.0.client.list_api_group_resources(&format!("{group}/{version}")).await {
            Ok(known) => Some(known.resources.iter().any(|resource| resource.kind == kind)),
            Err(kube::Error::Api(status)) if status.code == 404 => Some(false),
            Err(error) => {
                tracing::warn!(%error, group, version, "the API server does not say which kinds it has");
                None
            }
        }
    }

    /// Tells people. A lost event is no failure.
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
            tracing::debug!(%error, reason, "event was not recorded");
        }
    }

    /// The number of this failure in a row.
    pub fn failed(&self, key: &str) -> u32 {
        let mut attempts = self.0.attempts.lock();
        let count = attempts.entry(key.to_owned()).or_default();
        *count += 1;
        *count
    }

    /// How often in a row the same was done before. What has no effect must not be done in a loop without pauses: it would
    /// take the turns of all other resources.
    pub(super) fn repeated(&self, key: &str, what: String) -> u32 {
        let mut repeated = self.0.repeated.lock();
        let known = repeated.entry(key.to_owned()).or_default();
        match known.0 == what {
            true => known.1 = known.1.saturating_add(1),
            false => *known = (what, 0),
        }
        known.1
    }

    /// The resource is gone.
    pub(super) fn forget(&self, key: &str) {
        self.0.repeated.lock().remove(key);
        self.succeeded(key);
    }

    /// Failures in a row so far.
    pub(super) fn failures(&self, key: &str) -> u32 {
        self.0.attempts.lock().get(key).copied().unwrap_or(0)
    }

    /// It went well, or is gone.
    pub fn succeeded(&self, key: &str) {
        self.0.attempts.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::world::World;

    #[tokio::test]
    async fn which_kinds_there_are_is_asked_without_rights_on_their_objects() {
        let world = World::new();
        world.forbidden.lock().extend(["certificates", "podmonitors"].map(str::to_owned));
        let context = || {
            let (settings, metrics) = (Settings::default(), Metrics::new());
            Context::new(world.client(), Arc::new(world.admin()), settings, metrics, "me")
        };
        assert_eq!(context().available().await, Available { cert_manager: true, pod_monitor: false });
        world.served.lock().insert("monitoring.coreos.com/v1".into(), vec!["PodMonitor".into()]);
        assert_eq!(context().available().await, Available { cert_manager: true, pod_monitor: true });
        world.served.lock().clear();
        assert_eq!(context().available().await, Available::default());
    }
}
