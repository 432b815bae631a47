//! Generations of data directories, as the cluster has agreed on them.

use super::Refusal;
use super::controller_state::{CommandOutcome, ControllerState};
use super::entities::{DiskGeneration, NodeState};

impl ControllerState {
    /// Stores the generation that a node has shown, unless a later one is stored.
    ///
    /// No command depends on it: nodes of the version before, which apply the same commands, do not store it.
    pub(super) fn node_generation(&mut self, id: u64, shown: DiskGeneration) -> Result<CommandOutcome, Refusal> {
        if self.node(id)?.state == NodeState::Removed {
            return Err(Refusal::UnknownNode(id));
        }
        self.generations.entry(id).or_default().advance(shown);
        Ok(CommandOutcome::Done(None))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::cluster;
    use super::*;
    use crate::metadata::ControllerCommand;

    fn shown(number: u64, boot: u64) -> DiskGeneration {
        DiskGeneration { number, lineage: boot, boot }
    }

    #[test]
    fn a_directory_is_behind_when_another_process_has_shown_a_later_state_of_it() {
        let seen = shown(7, 1);
        assert!(shown(6, 2).behind(&seen) && shown(7, 2).behind(&seen));
        assert!(!shown(8, 2).behind(&seen), "the next start");
        assert!(!shown(6, 1).behind(&seen) && !shown(9, 1).behind(&seen), "the same process");
        assert!(!DiskGeneration { boot: 2, ..seen }.behind(&seen), "the same start, repeated");
        assert!(
            DiskGeneration { number: 6, boot: 2, ..seen }.behind(&seen),
            "of the same lineage, before it was raised"
        );
        assert!(!shown(0, 2).behind(&seen), "a node of an earlier version");
        assert!(!shown(1, 2).behind(&DiskGeneration::default()), "a directory of an earlier version, or a fresh one");
    }

    #[test]
    fn the_cluster_keeps_the_latest_generation_of_each_member() {
        let mut state = cluster(&["", ""]);
        let mut tell = |id, number, boot| {
            state.apply(ControllerCommand::NodeGeneration { node: id, generation: shown(number, boot) });
            state.generations.get(&id).copied()
        };
        assert_eq!(tell(1, 5, 50), Some(shown(5, 50)));
        assert_eq!(tell(1, 4, 40), Some(shown(5, 50)));
        assert_eq!(tell(1, 5, 40), Some(shown(5, 50)), "a copy of an older directory changes nothing");
        assert_eq!(tell(1, 6, 60), Some(shown(6, 60)));
        assert_eq!(tell(2, 1, 10), Some(shown(1, 10)));
        assert_eq!(tell(9, 1, 10), None, "no member");
        let stored: ControllerState = serde_json::from_slice(&serde_json::to_vec(&state).unwrap()).unwrap();
        assert_eq!(stored, state);
    }
}
