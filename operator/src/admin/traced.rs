//! [`Admin`] with a trace span around every call. The client propagates the span to the nodes.

use std::sync::Arc;

use chronicle_client::v1;
use tracing::Instrument;

use super::{Admin, AdminResult, Target};
use crate::plan::{CatchUp, ClusterView};
use crate::telemetry::SPANS;

/// Wraps another [`Admin`].
pub(crate) struct TracedAdmin(pub(crate) Arc<dyn Admin>);

macro_rules! traced {
    ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        impl Admin for TracedAdmin {
            $(fn $name<'a>(&'a self, target: &'a Target, $($argument: $type),*) -> AdminResult<'a, $answer> {
                let span = tracing::debug_span!(target: SPANS, concat!("admin ", stringify!($name)));
                Box::pin(self.0.$name(target, $($argument),*).instrument(span))
            })*
        }
    };
}

traced! {
    observe() -> ClusterView;
    catch_up(nodes: &'a [String]) -> CatchUp;
    drain(node_id: &'a str) -> ();
    undrain(node_id: &'a str) -> ();
    decommission(node_id: &'a str) -> ();
    topic(name: &'a str) -> Option<v1::Topic>;
    create_topic(request: v1::CreateTopicRequest) -> v1::Topic;
    alter_topic(request: v1::AlterTopicRequest) -> v1::Topic;
    delete_topic(name: &'a str) -> ();
    rules(principal: &'a str) -> Vec<v1::Acl>;
    add_rules(rules: Vec<v1::Acl>) -> ();
    remove_rules(rules: Vec<v1::Acl>) -> ();
    quota(principal: &'a str) -> Option<v1::Quota>;
    set_quota(principal: &'a str, quota: Option<v1::Quota>) -> ();
}
