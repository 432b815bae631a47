//! Leader election with a Kubernetes Lease: the holder renews it, the other replicas stand by.
//!
//! Invariants:
//! - Each process measures time with its own clock, from when it first saw a state of the Lease. It does not compare clocks.
//! - The leader stops after [`LeaseSettings::renew_deadline`] without a renewal, which is less than the time after which another replica
//!   takes over. Should two leaders overlap, resource versions and UID preconditions prevent conflicting writes.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Settings of the leader election.
#[derive(Debug, Clone)]
pub struct LeaseSettings {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Identity of this process; unique among the replicas.
    pub identity: String,
    /// Time without a renewal after which another replica takes over.
    pub duration: Duration,
    /// Time without a renewal after which the leader stops; less than `duration`.
    pub renew_deadline: Duration,
    /// Interval of renewals by the leader, and of checks by the others.
    pub period: Duration,
}

/// Role of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leadership {
    /// Another process is the leader, or there is none yet.
    StandingBy,
    /// This process is the leader.
    Leading,
    /// This process was the leader and must not act any more.
    Lost,
}

/// Acquires the Lease when it is free, renews it, and publishes the role in `state`. Returns when the Lease is lost, or after `stop`; then
/// it releases the Lease, so that another replica takes over at once.
pub async fn run_election(
    client: Client,
    settings: LeaseSettings,
    state: watch::Sender<Leadership>,
    stop: CancellationToken,
) {
    let api: Api<Lease> = Api::namespaced(client, &settings.namespace);
    // Last seen resource version of the Lease, and when it was first seen.
    let mut seen: Option<(String, Instant)> = None;
    let mut renewed: Option<Instant> = None;
    loop {
        let started = Instant::now();
        // A call that hangs must not extend the leadership.
        let attempt =
            timeout(settings.renew_deadline / 2, acquire_or_renew(&api, &settings, &mut seen, renewed.is_some())).await;
        match attempt {
            Ok(Ok(true)) => {
                if renewed.is_none() {
                    tracing::info!(lease = settings.name, identity = settings.identity, "became leader");
                }
                renewed = Some(started);
                state.send_replace(Leadership::Leading);
            }
            Ok(Ok(false)) if renewed.is_some() => {
                tracing::warn!(lease = settings.name, "lost the lease to another process");
                state.send_replace(Leadership::Lost);
                return;
            }
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::warn!(%error, lease = settings.name, "cannot read or renew the lease"),
            Err(_) => tracing::warn!(lease = settings.name, "timeout while renewing the lease"),
        }
        if renewed.is_some_and(|at| at.elapsed() >= settings.renew_deadline) {
            tracing::error!(lease = settings.name, "the lease was not renewed before the deadline");
            state.send_replace(Leadership::Lost);
            return;
        }
        // Dropping the sleep loses nothing.
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep(settings.period) => {}
        }
    }
    if renewed.is_some()
        && let Ok(Err(error)) = timeout(settings.period, release(&api, &settings)).await
    {
        tracing::debug!(%error, "cannot release the lease");
    }
}

/// Tries to acquire or renew the Lease. Returns whether this process holds it.
async fn acquire_or_renew(
    api: &Api<Lease>,
    settings: &LeaseSettings,
    seen: &mut Option<(String, Instant)>,
    held: bool,
) -> Result<bool, kube::Error> {
    #[expect(clippy::disallowed_methods, reason = "the Lease holds wall-clock times, and other processes read them")]
    let now = MicroTime(Timestamp::now());
    let Some(mut lease) = api.get_opt(&settings.name).await? else {
        let spec = LeaseSpec {
            holder_identity: Some(settings.identity.clone()),
            lease_duration_seconds: i32::try_from(settings.duration.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(0),
            ..LeaseSpec::default()
        };
        let metadata = ObjectMeta { name: Some(settings.name.clone()), ..ObjectMeta::default() };
        let lease = Lease { metadata, spec: Some(spec) };
        return written(api.create(&PostParams::default(), &lease).await);
    };
    let version = lease.metadata.resource_version.clone().unwrap_or_default();
    let spec = lease.spec.get_or_insert_default();
    let holder = spec.holder_identity.clone().unwrap_or_default();
    if holder != settings.identity {
        let since = match seen {
            Some((known, since)) if *known == version => *since,
            _ => seen.insert((version, Instant::now())).1,
        };
        // A former leader does not acquire the Lease again.
        if held || (!holder.is_empty() && since.elapsed() < settings.duration) {
            return Ok(false);
        }
        spec.holder_identity = Some(settings.identity.clone());
        spec.acquire_time = Some(now.clone());
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0) + 1);
    }
    spec.renew_time = Some(now);
    spec.lease_duration_seconds = i32::try_from(settings.duration.as_secs()).ok();
    // With the resource version that was read: of two concurrent attempts one succeeds.
    written(api.replace(&settings.name, &PostParams::default(), &lease).await)
}

fn written(result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

async fn release(api: &Api<Lease>, settings: &LeaseSettings) -> Result<(), kube::Error> {
    let mut lease = api.get(&settings.name).await?;
    let spec = lease.spec.get_or_insert_default();
    if spec.holder_identity.as_ref() != Some(&settings.identity) {
        return Ok(());
    }
    spec.holder_identity = None;
    api.replace(&settings.name, &PostParams::default(), &lease).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::fake_kubernetes::{FakeKubernetes, NAMESPACE};

    fn settings(identity: &str) -> LeaseSettings {
        LeaseSettings {
            namespace: NAMESPACE.into(),
            name: "operator".into(),
            identity: identity.into(),
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            period: Duration::from_secs(2),
        }
    }

    struct Candidate {
        state: watch::Receiver<Leadership>,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    impl Candidate {
        fn new(fake: &FakeKubernetes, identity: &str) -> Self {
            let (sender, state) = watch::channel(Leadership::StandingBy);
            let stop = CancellationToken::new();
            let task = tokio::spawn(run_election(fake.client(), settings(identity), sender, stop.clone()));
            Self { state, stop, task }
        }

        async fn becomes(&mut self, wanted: Leadership) {
            self.state.wait_for(|state| *state == wanted).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_process_takes_over_at_once_when_the_lease_is_released() {
        let fake = FakeKubernetes::new();
        let mut first = Candidate::new(&fake, "first");
        first.becomes(Leadership::Leading).await;
        let mut second = Candidate::new(&fake, "second");
        sleep(Duration::from_secs(100)).await;
        assert_eq!(*second.state.borrow(), Leadership::StandingBy);
        let before = Instant::now();
        first.stop.cancel();
        first.task.await.unwrap();
        second.becomes(Leadership::Leading).await;
        assert!(before.elapsed() < Duration::from_secs(5), "waited for a released lease");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_cannot_renew_stops_before_another_may_take_over() {
        let (fake, other) = (FakeKubernetes::new(), FakeKubernetes::new());
        let mut first = Candidate::new(&fake, "first");
        first.becomes(Leadership::Leading).await;
        // The second process sees a copy of the lease; the API server of the first one is gone.
        let lease = fake.get("leases", "operator").unwrap();
        other.put("leases", lease);
        let mut second = Candidate::new(&other, "second");
        fake.dies_after.store(0, std::sync::atomic::Ordering::Relaxed);
        let cut = Instant::now();
        first.becomes(Leadership::Lost).await;
        let lost = cut.elapsed();
        second.becomes(Leadership::Leading).await;
        assert!(lost < cut.elapsed(), "two led at the same time");
        first.task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_whose_lease_was_taken_does_not_acquire_it_again() {
        let fake = FakeKubernetes::new();
        let mut first = Candidate::new(&fake, "first");
        first.becomes(Leadership::Leading).await;
        fake.edit("leases", "operator", |lease| lease["spec"]["holderIdentity"] = "thief".into());
        first.becomes(Leadership::Lost).await;
        first.task.await.unwrap();
        assert_eq!(fake.get("leases", "operator").unwrap()["spec"]["holderIdentity"], "thief");
    }
}
