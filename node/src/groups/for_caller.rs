//! Access control for consumer groups: the permissions that each call requires. Entry point for all listeners; see
//! `broker/for_caller.rs`.

use super::{
    Commit, CommittedOffset, GroupDescription, GroupSummary, Groups, Heartbeat, HeartbeatResponse, Partitions, Reset,
};
use crate::broker::Authorizer;
use crate::model::ApiError;
use crate::security::{Action, Caller, Metered, ResourceKind};

/// The groups, with the permissions and quotas of one caller.
#[derive(Clone, Copy)]
pub struct GroupsForCaller<'a> {
    groups: &'a Groups,
    caller: &'a Caller,
}

impl Groups {
    /// The groups, with the permissions and quotas of this caller.
    pub fn for_caller<'a>(&'a self, caller: &'a Caller) -> GroupsForCaller<'a> {
        GroupsForCaller { groups: self, caller }
    }
}

impl GroupsForCaller<'_> {
    fn authorizer(&self) -> &Authorizer {
        self.groups.inner.backend.authorizer()
    }

    /// Charges one request and checks that the caller may do this to a group.
    async fn request(&self, action: Action, group: &str) -> Result<(), ApiError> {
        self.authorizer().admit(self.caller, &[(Metered::Requests, 1)]).await?;
        self.authorizer().group(self.caller, action, group)
    }

    fn topics<'t>(&self, action: Action, topics: impl IntoIterator<Item = &'t String>) -> Result<(), ApiError> {
        topics.into_iter().try_for_each(|topic| self.authorizer().topic(self.caller, action, topic))
    }

    /// As [`Groups::heartbeat`]. Requires: read the group and every topic of the member.
    ///
    /// # Errors
    /// As [`Groups::heartbeat`]; errors of the [`Authorizer`], and [`Reason::Overloaded`](crate::model::Reason::Overloaded) over
    /// quota, in this and all other methods.
    pub async fn heartbeat(&self, request: Heartbeat) -> Result<HeartbeatResponse, ApiError> {
        self.request(Action::Read, &request.group).await?;
        self.topics(Action::Read, &request.topics)?;
        self.groups.heartbeat(request).await
    }

    /// As [`Groups::leave`]. Requires: read the group.
    ///
    /// # Errors
    /// As [`Groups::leave`].
    pub async fn leave(&self, group: &str, member_id: &str) -> Result<(), ApiError> {
        self.request(Action::Read, group).await?;
        self.groups.leave(group, member_id).await
    }

    /// As [`Groups::commit`]. Requires: read the group and the topics.
    ///
    /// # Errors
    /// As [`Groups::commit`].
    pub async fn commit(&self, request: Commit) -> Result<(), ApiError> {
        self.request(Action::Read, &request.group).await?;
        self.topics(Action::Read, request.offsets.iter().map(|offset| &offset.topic))?;
        self.groups.commit(request).await
    }

    /// As [`Groups::offsets`], only of topics that the caller may describe. Requires: describe the group.
    ///
    /// # Errors
    /// As [`Groups::offsets`].
    pub async fn offsets(&self, group: &str, wanted: &Partitions) -> Result<Vec<CommittedOffset>, ApiError> {
        self.request(Action::Describe, group).await?;
        self.topics(Action::Describe, wanted.keys())?;
        let visible = self.authorizer().describable(self.caller, ResourceKind::Topic);
        let mut offsets = self.groups.offsets(group, wanted).await?;
        offsets.retain(|offset| visible(&offset.topic));
        Ok(offsets)
    }

    /// As [`Groups::list`], only groups that the caller may describe.
    ///
    /// # Errors
    /// As [`Groups::list`].
    pub async fn list(&self) -> Result<Vec<GroupSummary>, ApiError> {
        self.authorizer().admit(self.caller, &[(Metered::Requests, 1)]).await?;
        let visible = self.authorizer().describable(self.caller, ResourceKind::Group);
        let mut groups = self.groups.list().await?;
        groups.retain(|group| visible(&group.group));
        Ok(groups)
    }

    /// As [`Groups::describe`], without topics that the caller may not describe. Requires: describe the group.
    ///
    /// # Errors
    /// As [`Groups::describe`].
    pub async fn describe(&self, group: &str) -> Result<GroupDescription, ApiError> {
        self.request(Action::Describe, group).await?;
        let visible = self.authorizer().describable(self.caller, ResourceKind::Topic);
        let mut description = self.groups.describe(group).await?;
        description.partitions.retain(|partition| visible(&partition.topic));
        for member in &mut description.members {
            member.topics.retain(|topic| visible(topic));
            member.assigned.retain(|topic, _| visible(topic));
        }
        Ok(description)
    }

    /// As [`Groups::reset`]. Requires: alter the group and read the topic.
    ///
    /// # Errors
    /// As [`Groups::reset`].
    pub async fn reset(&self, request: Reset) -> Result<Vec<CommittedOffset>, ApiError> {
        self.request(Action::Alter, &request.group).await?;
        self.topics(Action::Read, [&request.topic])?;
        let (group, dry_run) = (request.group.clone(), request.dry_run);
        let details = format!("topic {}, to {:?}", request.topic, request.to);
        let result = self.groups.reset(request).await;
        if !dry_run {
            self.authorizer().changed(self.caller, "reset-group", &group, &details, &result);
        }
        result
    }

    /// As [`Groups::delete`]. Requires: delete the group.
    ///
    /// # Errors
    /// As [`Groups::delete`].
    pub async fn delete(&self, group: &str) -> Result<(), ApiError> {
        self.request(Action::Delete, group).await?;
        let result = self.groups.delete(group).await;
        self.authorizer().changed(self.caller, "delete-group", group, "", &result);
        result
    }
}
