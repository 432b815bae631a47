//! One process acts, the others stand by: a Lease of Kubernetes that its holder renews.
//!
//! Time is judged by each process's own clock, from when it first saw a state of the Lease, not by what is written in it: clocks of
//! machines differ. The holder stops acting when it could not renew for [`LeaseSettings::renew_deadline`], which is less than the
//! time after which another takes over. Should two act all the same, resource versions and UIDs keep them apart.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Which Lease, and in whose name.
#[derive(Debug, Clone)]
pub struct LeaseSettings {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who this process is; different for every one.
    pub identity: String,
    /// Another process takes over when the Lease was not renewed for this long.
    pub duration: Duration,
    /// The holder stops acting when it could not renew it for this long; less than `duration`.
    pub renew_deadline: Duration,
    /// The holder renews it, and others look at it, this often.
    pub period: Duration,
}

/// Whether this process acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leadership {
    /// Somebody else does, or nobody yet.
    StandingBy,
    /// It does.
    Leading,
    /// It did, and must not any more.
    Lost,
}

/// Takes the Lease when it is free, renews it, and says so in `state`. Ends when the Lease was lost, or with `stop`, when it is given
/// back so that another process need not wait.
pub async fn hold(client: Client, settings: LeaseSettings, state: watch::Sender<Leadership>, stop: CancellationToken) {
    let api: Api<Lease> = Api::namespaced(client, &settings.namespace);
    // The state of the Lease that was seen last, and when it was first seen.
    let mut seen: Option<(String, Instant)> = None;
    let mut renewed: Option<Instant> = None;
    loop {
        let started = Instant::now();
        // A call that hangs must not keep this process acting.
        let attempt =
            timeout(settings.renew_deadline / 2, attempt(&api, &settings, &mut seen, renewed.is_some())).await;
        match attempt {
            Ok(Ok(true)) => {
                if renewed.is_none() {
                    tracing::info!(lease = settings.name, identity = settings.identity, "leading");
                }
                renewed = Some(started);
                state.send_replace(Leadership::Leading);
            }
            Ok(Ok(false)) if renewed.is_some() => {
                tracing::warn!(lease = settings.name, "another process has taken the lease");
                state.send_replace(Leadership::Lost);
                return;
            }
            Ok(Ok(false)) => {}
            Ok(Err(error)) => tracing::warn!(%error, lease = settings.name, "the lease could not be read or written"),
            Err(_) => tracing::warn!(lease = settings.name, "no answer about the lease"),
        }
        if renewed.is_some_and(|at| at.elapsed() >= settings.renew_deadline) {
            tracing::error!(lease = settings.name, "the lease could not be renewed in time");
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
        && let Ok(Err(error)) = timeout(settings.period, give_back(&api, &settings)).await
    {
        tracing::debug!(%error, "the lease was not given back");
    }
}

/// Whether the Lease is this process's afterwards.
async fn attempt(
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
        // Whoever held it and lost it does not fight for it.
        if held || (!holder.is_empty() && since.elapsed() < settings.duration) {
            return Ok(false);
        }
        spec.holder_identity = Some(settings.identity.clone());
        spec.acquire_time = Some(now.clone());
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0) + 1);
    }
    spec.renew_time = Some(now);
    spec.lease_duration_seconds = i32::try_from(settings.duration.as_secs()).ok();
    // With the resource version that was read: of two that try, one succeeds.
    written(api.replace(&settings.name, &PostParams::default(), &lease).await)
}

fn written(result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

async fn give_back(api: &Api<Lease>, settings: &LeaseSettings) -> Result<(), kube::Error> {
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
    use crate::controller::world::{NAMESPACE, World};

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
        fn new(world: &World, identity: &str) -> Self {
            let (sender, state) = watch::channel(Leadership::StandingBy);
            let stop = CancellationToken::new();
            let task = tokio::spawn(hold(world.client(), settings(identity), sender, stop.clone()));
            Self { state, stop, task }
        }

        async fn becomes(&mut self, wanted: Leadership) {
            self.state.wait_for(|state| *state == wanted).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_leads_and_another_takes_over_at_once_when_the_lease_is_given_back() {
        let world = World::new();
        let mut first = Candidate::new(&world, "first");
        first.becomes(Leadership::Leading).await;
        let mut second = Candidate::new(&world, "second");
        sleep(Duration::from_secs(100)).await;
        assert_eq!(*second.state.borrow(), Leadership::StandingBy);
        let before = Instant::now();
        first.stop.cancel();
        first.task.await.unwrap();
        second.becomes(Leadership::Leading).await;
        assert!(before.elapsed() < Duration::from_secs(5), "waited for a lease that was given back");
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_cannot_renew_stops_before_another_may_take_over() {
        let (world, other) = (World::new(), World::new());
        let mut first = Candidate::new(&world, "first");
        first.becomes(Leadership::Leading).await;
        // The second one sees the lease as it was; the first one's API server has gone.
        let lease = world.get("leases", "operator").unwrap();
        other.put("leases", lease);
        let mut second = Candidate::new(&other, "second");
        world.dies_after.store(0, std::sync::atomic::Ordering::Relaxed);
        let cut = Instant::now();
        first.becomes(Leadership::Lost).await;
        let lost = cut.elapsed();
        second.becomes(Leadership::Leading).await;
        assert!(lost < cut.elapsed(), "two led at the same time");
        first.task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_whose_lease_was_taken_does_not_fight_for_it() {
        let world = World::new();
        let mut first = Candidate::new(&world, "first");
        first.becomes(Leadership::Leading).await;
        world.edit("leases", "operator", |lease| lease["spec"]["holderIdentity"] = "thief".into());
        first.becomes(Leadership::Lost).await;
        first.task.await.unwrap();
        assert_eq!(world.get("leases", "operator").unwrap()["spec"]["holderIdentity"], "thief");
    }
}
