//! Access control of a node: checks callers against the committed rules and quotas and the super users of the
//! configuration; writes the audit trail and counts denials.
//!
//! The index over the rules is rebuilt by the first check after they have changed: a rule is in effect on a node as soon
//! as the node has applied it. `broker/for_caller.rs` and `groups/for_caller.rs` define which permissions each call requires.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::Instant;

use super::audit::Audit;
use crate::config::Live;
use crate::metadata::ControllerState;
use crate::model::{ApiError, Reason, unknown_topic};
use crate::security::acl::{Action, CLUSTER, Decision, EVERY_NAME, Evaluator, ResourceKind};
use crate::security::{Caller, Metered, OverQuota, Quota, Quotas};

/// The index over the rules, and the revision of the rules that it was built from.
struct Compiled {
    revision: u64,
    evaluator: Arc<Evaluator>,
}

/// Checks the permissions and quotas of callers, for one node.
pub struct Authorizer {
    enabled: bool,
    config: Live,
    metadata: Arc<RwLock<Arc<ControllerState>>>,
    compiled: RwLock<Compiled>,
    audit: Audit,
    quotas: Quotas,
    denied: [AtomicU64; Action::ALL.len()],
    delayed: [AtomicU64; Metered::ALL.len()],
    refused: [AtomicU64; Metered::ALL.len()],
}

impl Authorizer {
    /// An authorizer that uses the current `metadata` at each check.
    pub(crate) fn new(config: Live, metadata: Arc<RwLock<Arc<ControllerState>>>) -> Self {
        Self {
            enabled: config.now().security.authorization.enabled,
            config,
            metadata,
            compiled: RwLock::new(Compiled { revision: 0, evaluator: Arc::default() }),
            audit: Audit::default(),
            quotas: Quotas::default(),
            denied: Default::default(),
            delayed: Default::default(),
            refused: Default::default(),
        }
    }

    /// Whether authorization is enabled.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Denials since the start, by action.
    pub fn denied(&self) -> impl Iterator<Item = (Action, u64)> {
        Action::ALL.iter().map(|action| (*action, self.denied[*action as usize].load(Ordering::Relaxed)))
    }

    /// Requests over a quota since the start, by resource: delayed, and rejected.
    pub fn throttled(&self) -> impl Iterator<Item = (Metered, u64, u64)> {
        let count = |counters: &[AtomicU64], resource: Metered| counters[resource as usize].load(Ordering::Relaxed);
        Metered::ALL
            .into_iter()
            .map(move |resource| (resource, count(&self.delayed, resource), count(&self.refused, resource)))
    }

    fn evaluator(&self) -> Arc<Evaluator> {
        let revision = self.metadata.read().access.revision;
        {
            let compiled = self.compiled.read();
            if compiled.revision == revision {
                return compiled.evaluator.clone();
            }
        }
        // One thread builds it, the others wait: it takes milliseconds.
        let mut compiled = self.compiled.write();
        let state = self.metadata.read().clone();
        if compiled.revision != state.access.revision {
            let evaluator = Arc::new(Evaluator::new(&state.access.rules));
            *compiled = Compiled { revision: state.access.revision, evaluator };
        }
        compiled.evaluator.clone()
    }

    /// Whether this caller may do everything: authorization is disabled, or it is a super user.
    pub(crate) fn is_unrestricted(&self, caller: &Caller) -> bool {
        !self.enabled || self.config.now().security.authorization.super_users.iter().any(|user| user == caller.name())
    }

    /// Returns whether a caller may do this. Does not log or count a denial: for lists that omit what the caller may not see.
    pub(crate) fn may(&self, caller: &Caller, action: Action, kind: ResourceKind, name: &str) -> bool {
        self.is_unrestricted(caller) || self.evaluator().allows(caller.name(), kind, name, action)
    }

    /// Returns a check of which names a caller may describe, for lists of many names.
    pub(crate) fn describable(&self, caller: &Caller, kind: ResourceKind) -> impl Fn(&str) -> bool + Send + use<> {
        let evaluator = (!self.is_unrestricted(caller)).then(|| self.evaluator());
        let principal = caller.name().to_owned();
        move |name| {
            evaluator.as_ref().is_none_or(|evaluator| evaluator.allows(&principal, kind, name, Action::Describe))
        }
    }

    /// Checks that a caller may do this to a topic.
    ///
    /// # Errors
    /// [`Reason::PermissionDenied`]; [`Reason::UnknownTopic`] when the caller may not describe the topic, whether it exists or not.
    pub(crate) fn topic(&self, caller: &Caller, action: Action, name: &str) -> Result<(), ApiError> {
        if self.may(caller, action, ResourceKind::Topic, name) {
            return Ok(());
        }
        let denied = self.refuse(caller, action, ResourceKind::Topic, name);
        match self.may(caller, Action::Describe, ResourceKind::Topic, name) {
            true => Err(denied),
            false => Err(unknown_topic(name)),
        }
    }

    /// Checks that a caller may create a topic with this name: by a rule for the name, or else by one for the cluster.
    ///
    /// # Errors
    /// [`Reason::PermissionDenied`], whether the topic exists or not.
    pub(crate) fn create(&self, caller: &Caller, name: &str) -> Result<(), ApiError> {
        if self.is_unrestricted(caller) {
            return Ok(());
        }
        let evaluator = self.evaluator();
        let decide = |kind, name: &str| evaluator.decide(caller.name(), kind, name, Action::Create);
        match (decide(ResourceKind::Topic, name), decide(ResourceKind::Cluster, CLUSTER)) {
            (Decision::Allow, _) | (Decision::Unmentioned, Decision::Allow) => Ok(()),
            _ => Err(self.refuse(caller, Action::Create, ResourceKind::Topic, name)),
        }
    }

    /// Checks that a caller may do this to a group. The result does not depend on whether the group exists.
    ///
    /// # Errors
    /// [`Reason::PermissionDenied`].
    pub(crate) fn group(&self, caller: &Caller, action: Action, name: &str) -> Result<(), ApiError> {
        match self.may(caller, action, ResourceKind::Group, name) {
            true => Ok(()),
            false => Err(self.refuse(caller, action, ResourceKind::Group, name)),
        }
    }

    /// Checks that a caller may do this to the cluster.
    ///
    /// # Errors
    /// [`Reason::PermissionDenied`].
    pub(crate) fn cluster(&self, caller: &Caller, action: Action) -> Result<(), ApiError> {
        match self.may(caller, action, ResourceKind::Cluster, CLUSTER) {
            true => Ok(()),
            false => Err(self.refuse(caller, action, ResourceKind::Cluster, CLUSTER)),
        }
    }

    /// Checks that a caller may do this to at least one topic.
    ///
    /// # Errors
    /// [`Reason::PermissionDenied`].
    pub(crate) fn some_topic(&self, caller: &Caller, action: Action) -> Result<(), ApiError> {
        let kind = ResourceKind::Topic;
        match self.is_unrestricted(caller) || self.evaluator().allows_some(caller.name(), kind, action) {
            true => Ok(()),
            false => Err(self.refuse(caller, action, kind, EVERY_NAME)),
        }
    }

    /// Checks that a caller has at least one permission: then it may see the addresses of the nodes.
    ///
    /// # Errors
    /// [`Reason::PermissionDenied`].
    pub(crate) fn anything(&self, caller: &Caller) -> Result<(), ApiError> {
        match self.is_unrestricted(caller) || self.evaluator().knows(caller.name()) {
            true => Ok(()),
            false => Err(self.refuse(caller, Action::Describe, ResourceKind::Cluster, CLUSTER)),
        }
    }

    /// Counts and logs a denial; returns its error.
    fn refuse(&self, caller: &Caller, action: Action, kind: ResourceKind, name: &str) -> ApiError {
        self.denied[action as usize].fetch_add(1, Ordering::Relaxed);
        self.audit.denied(caller, action, kind, name, Instant::now());
        let shown: String = name.chars().take(249).collect();
        let message = format!("principal {:?}: may not {action} the {kind} {shown:?}", caller.name());
        ApiError::new(Reason::PermissionDenied, message).with("operation", action).with("resource", kind)
    }

    /// Writes an administrative change and its outcome to the audit trail.
    pub(crate) fn changed<T>(
        &self,
        caller: &Caller,
        change: &'static str,
        name: &str,
        details: &str,
        outcome: &Result<T, ApiError>,
    ) {
        self.audit.changed(caller, change, name, details, outcome);
    }

    /// The effective quota of a caller.
    pub(crate) fn quota(&self, caller: &Caller) -> Quota {
        self.metadata.read().access.quota(caller.name())
    }

    /// Charges a caller's quotas, and waits while they are overdrawn. Cancelling the wait does not refund the charge.
    ///
    /// # Errors
    /// [`Reason::Overloaded`] when the wait would be too long; nothing is charged then.
    pub(crate) async fn admit(&self, caller: &Caller, amounts: &[(Metered, u64)]) -> Result<(), ApiError> {
        let quota = self.quota(caller);
        if quota.is_unlimited() {
            return Ok(());
        }
        match self.quotas.take(caller.name(), quota, amounts, Instant::now()) {
            Ok(Duration::ZERO) => Ok(()),
            Ok(wait) => {
                for (resource, _) in amounts {
                    self.delayed[*resource as usize].fetch_add(1, Ordering::Relaxed);
                }
                // Boxed: rare, and large.
                Box::pin(tokio::time::sleep(wait)).await;
                Ok(())
            }
            Err(over) => {
                self.refused[over.resource as usize].fetch_add(1, Ordering::Relaxed);
                Err(over_quota(caller, over))
            }
        }
    }

    /// Charges a caller's quota for what it has already received, without a wait.
    pub(crate) fn charge(&self, caller: &Caller, resource: Metered, amount: u64) {
        let quota = self.quota(caller);
        if !quota.is_unlimited() {
            self.quotas.charge(caller.name(), quota, resource, amount, Instant::now());
        }
    }

    /// To be called periodically: logs the number of denials that the audit trail has suppressed.
    pub(crate) fn tidy(&self) {
        self.audit.flush(Instant::now());
    }
}

fn over_quota(caller: &Caller, over: OverQuota) -> ApiError {
    let OverQuota { resource, rate, retry_after } = over;
    let retry_after_ms = retry_after.as_millis().max(1);
    let what = resource.as_str();
    let message =
        format!("quota: {what}: principal {:?} is over {rate} per second: wait {retry_after_ms} ms", caller.name());
    ApiError::new(Reason::Overloaded, message).with("quota", what).with("retry_after_ms", retry_after_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AuthorizationConfig, Config};
    use crate::identity::Principal;
    use crate::security::acl::{AclRule, Effect, PatternKind};

    fn caller(name: &str) -> Caller {
        Caller::new(Some(Principal::new(name).unwrap()), "127.0.0.1:9".parse().unwrap())
    }

    fn authorizer(rules: Vec<AclRule>) -> (Authorizer, Arc<RwLock<Arc<ControllerState>>>) {
        let mut config = Config::default();
        config.security.authorization = AuthorizationConfig { enabled: true, super_users: vec!["root".into()] };
        let metadata = Arc::default();
        set(&metadata, rules);
        (Authorizer::new(Live::new(Arc::new(config)), metadata.clone()), metadata)
    }

    fn set(metadata: &RwLock<Arc<ControllerState>>, rules: Vec<AclRule>) {
        let mut guard = metadata.write();
        let state = Arc::make_mut(&mut guard);
        state.access.rules = rules.into_iter().collect();
        state.access.revision += 1;
    }

    fn topic(action: Action, name: &str, effect: Effect) -> AclRule {
        let (kind, pattern) = (ResourceKind::Topic, PatternKind::Literal);
        AclRule { principal: "ann".into(), kind, pattern, name: name.into(), action, effect }
    }

    #[test]
    fn what_may_not_be_described_is_not_there() {
        let (authorizer, _) = authorizer(vec![topic(Action::Read, "seen", Effect::Allow)]);
        let ann = caller("ann");
        assert_eq!(authorizer.topic(&ann, Action::Read, "seen"), Ok(()));
        assert_eq!(authorizer.topic(&ann, Action::Write, "seen").unwrap_err().reason, Reason::PermissionDenied);
        assert_eq!(authorizer.topic(&ann, Action::Write, "hidden").unwrap_err(), unknown_topic("hidden"));
        assert_eq!(authorizer.denied().map(|(_, count)| count).sum::<u64>(), 2);
    }

    #[test]
    fn a_rule_counts_as_soon_as_it_is_agreed_and_no_longer() {
        let (authorizer, metadata) = authorizer(vec![]);
        let ann = caller("ann");
        assert!(authorizer.topic(&ann, Action::Read, "t").is_err());
        set(&metadata, vec![topic(Action::Read, "t", Effect::Allow)]);
        assert!(authorizer.topic(&ann, Action::Read, "t").is_ok());
        set(&metadata, vec![]);
        assert!(authorizer.topic(&ann, Action::Read, "t").is_err());
    }

    #[test]
    fn super_users_may_do_everything_and_an_anonymous_caller_is_none() {
        let (authorizer, _) = authorizer(vec![]);
        assert!(authorizer.cluster(&caller("root"), Action::Admin).is_ok());
        let nobody = Caller::new(None, "127.0.0.1:9".parse().unwrap());
        assert!(authorizer.anything(&nobody).is_err());
    }

    #[test]
    fn super_users_are_those_of_the_configuration_as_it_is_now() {
        let (authorizer, _) = authorizer(vec![]);
        let mut config = (*authorizer.config.now()).clone();
        config.security.authorization.super_users = vec!["ann".into()];
        authorizer.config.set(config);
        assert!(authorizer.cluster(&caller("ann"), Action::Admin).is_ok());
        assert!(authorizer.cluster(&caller("root"), Action::Admin).is_err());
    }

    #[test]
    fn a_denied_name_is_not_created_by_who_may_create_any() {
        let cluster = AclRule {
            principal: "ann".into(),
            kind: ResourceKind::Cluster,
            pattern: PatternKind::Literal,
            name: CLUSTER.into(),
            action: Action::Create,
            effect: Effect::Allow,
        };
        let (authorizer, _) = authorizer(vec![cluster, topic(Action::Create, "no", Effect::Deny)]);
        assert!(authorizer.create(&caller("ann"), "yes").is_ok());
        assert!(authorizer.create(&caller("ann"), "no").is_err());
        assert!(authorizer.create(&caller("bob"), "yes").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn over_quota_the_answer_waits_and_far_over_it_is_refused_with_a_time() {
        let (authorizer, metadata) = authorizer(vec![]);
        let quota = Quota { requests: 10, ..Quota::default() };
        Arc::make_mut(&mut *metadata.write()).access.default_quota = Some(quota);
        let ann = caller("ann");
        let began = Instant::now();
        for _ in 0..30 {
            authorizer.admit(&ann, &[(Metered::Requests, 1)]).await.unwrap();
        }
        let took = began.elapsed();
        assert!((Duration::from_millis(1800)..Duration::from_millis(2200)).contains(&took), "{took:?}");
        authorizer.charge(&ann, Metered::Requests, 20);
        let error = authorizer.admit(&ann, &[(Metered::Requests, 1)]).await.unwrap_err();
        assert_eq!(error.reason, Reason::Overloaded);
        assert!(error.value("retry_after_ms").unwrap().parse::<u64>().unwrap() > 500);
        let [_, _, (_, delayed, refused)] = authorizer.throttled().collect::<Vec<_>>()[..] else { panic!() };
        assert!(delayed > 10 && refused == 1, "{delayed} {refused}");
    }
}
