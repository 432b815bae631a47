//! Consumer groups as one caller sees them: what each call needs. The way in for every listener; see `broker/for_caller.rs`.

use super::{
    Commit, CommittedOffset, GroupDescription, GroupSummary, Groups, Heartbeat, Membership, Partitions, Reset,
};
use crate::broker::Authorizer;
use crate::model::ApiError;
use crate::security::{Action, Caller, Metered, ResourceKind};

/// The groups for one caller.
#[derive(Clone, Copy)]
pub struct GroupsForCaller<'a> {
    groups: &'a Groups,
    caller: &'a Caller,
}

impl Groups {
    /// The groups as this caller sees them.
    pub fn for_caller<'a>(&'a self, caller: &'a Caller) -> GroupsForCaller<'a> {
        GroupsForCaller { groups: self, caller }
    }
}

impl GroupsForCaller<'_> {
    fn authorizer(&self) -> &Authorizer {
        self.groups.inner.backing.authorizer()
    }

    /// One request that does this to a group.
    async fn request(&self, action: Action, group: &str) -> Result<(), ApiError> {
        self.authorizer().admit(self.caller, &[(Metered::Requests, 1)]).await?;
        self.authorizer().group(self.caller, action, group)
    }

    fn topics<'t>(&self, action: Action, topics: impl IntoIterator<Item = &'t String>) -> Result<(), ApiError> {
        topics.into_iter().try_for_each(|topic| self.authorizer().topic(self.caller, action, topic))
    }

    /// As [`Groups::heartbeat`]. Needs: read the group and every topic of the member.
    ///
    /// # Errors
    /// As [`Groups::heartbeat`]; refusals of the [`Authorizer`] and over quota, here and everywhere below.
    pub async fn heartbeat(&self, request: Heartbeat) -> Result<Membership, ApiError> {
        self.request(Action::Read, &request.group).await?;
        self.topics(Action::Read, &request.topics)?;
        self.groups.heartbeat(request).await
    }

    /// As [`Groups::leave`]. Needs: read the group.
    ///
    /// # Errors
    /// As [`Groups::leave`].
    pub async fn leave(&self, group: &str, member_id: &str) -> Result<(), ApiError> {
        self.request(Action::Read, group).await?;
        self.groups.leave(group, member_id).await
    }

    /// As [`Groups::commit`]. Needs: read the group and the topics.
    ///
    /// # Errors
    /// As [`Groups::commit`].
    pub async fn commit(&self, request: Commit) -> Result<(), ApiError> {
        self.request(Action::Read, &request.group).await?;
        self.topics(Action::Read, request.offsets.iter().map(|offset| &offset.topic))?;
        self.groups.commit(request).await
    }

    /// As [`Groups::offsets`], of topics that the caller may describe. Needs: describe the group.
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

    /// As [`Groups::list`], those that the caller may describe.
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

    /// As [`Groups::describe`], without topics that the caller may not describe. Needs: describe the group.
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

    /// As [`Groups::reset`]. Needs: alter the group and read the topic.
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

    /// As [`Groups::delete`]. Needs: delete the group.
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
