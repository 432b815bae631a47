//! The committed offsets of consumer groups: what was committed is what is read, checked for linearizability.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chronicle_client::ReadFrom;
use chronicle_proto::v1;
use rand::Rng;
use tokio::time::sleep;

use crate::board::{Clients, ORDERS};
use crate::linearizability::{Model, Timed, check};
use crate::machine::elapsed;
use crate::tally::count;
use crate::trace::note;

/// A call that took this long (us) may have been made more than once by the client.
const REPEATED_US: u64 = 50_000;

/// A call with its answer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PositionCall {
    /// This offset was committed.
    Commit(i64),
    /// This one was read; -1: none.
    Fetch(i64),
}

struct PositionModel;

impl Model for PositionModel {
    type State = i64;
    type Call = PositionCall;

    fn step(state: &i64, call: &PositionCall) -> Option<i64> {
        match *call {
            PositionCall::Commit(offset) => Some(offset),
            PositionCall::Fetch(offset) => (*state == offset).then_some(offset),
        }
    }
}

/// What was done to the offsets of each group.
#[derive(Default)]
pub(crate) struct PositionsHistory(BTreeMap<u32, Vec<Timed<PositionCall>>>);

impl PositionsHistory {
    /// Checks every group.
    ///
    /// # Errors
    /// The first call that no order explains.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        for (group, history) in &self.0 {
            let read: BTreeSet<i64> = history
                .iter()
                .filter_map(|timed| match timed.call {
                    PositionCall::Fetch(offset) => Some(offset),
                    PositionCall::Commit(_) => None,
                })
                .collect();
            // Every offset is committed once. What is unknown and was never read may as well have come last.
            let matters = |timed: &&Timed<PositionCall>| match timed.call {
                PositionCall::Commit(offset) => timed.answered.is_some() || read.contains(&offset),
                PositionCall::Fetch(_) => true,
            };
            let mut history: Vec<Timed<PositionCall>> = history.iter().filter(matters).cloned().collect();
            // The client repeats a commit of which it got no answer: it may take effect twice, with those of others in between.
            let repeated = |timed: &&Timed<PositionCall>| {
                let long = timed.answered.is_some_and(|answered| answered - timed.made >= REPEATED_US);
                long && matches!(timed.call, PositionCall::Commit(offset) if read.contains(&offset))
            };
            let again: Vec<_> =
                history.iter().filter(repeated).map(|timed| Timed { answered: None, ..timed.clone() }).collect();
            history.extend(again);
            check::<PositionModel>(-1, &history).map_err(|why| anyhow::anyhow!("group {group}: {why}"))?;
            count("checks.linearizable groups");
        }
        Ok(())
    }
}

impl Clients {
    /// Commits offsets of a group and reads them, until told to stop.
    pub(crate) async fn committer(self, number: u32, group: u32) -> anyhow::Result<()> {
        self.until(|board| board.ready.get()).await;
        let client = self.client(ReadFrom::Leader, Duration::from_secs(5))?;
        let name = format!("group-{group}");
        let who = format!("committer {number}");
        let mut next = i64::from(number) + 1;
        while !self.board.stop.get() {
            sleep(Duration::from_millis(rand::rng().random_range(20..150))).await;
            let made = elapsed().as_micros() as u64;
            let (call, answered) = if rand::rng().random() {
                let offset = next;
                next += 100;
                let offsets = v1::GroupOffset { topic: ORDERS.into(), partition: 0, offset, metadata: String::new() };
                let request =
                    v1::CommitOffsetsRequest { group: name.clone(), offsets: vec![offsets], ..Default::default() };
                let answer = client.commit_group_offsets(request).await;
                note(&who, &format!("commit of {offset}: {answer:?}"));
                match answer {
                    Ok(()) => count("ops.offsets committed"),
                    Err(error) if error.not_accepted() => continue,
                    Err(_) => count("ops.offsets unknown"),
                }
                (PositionCall::Commit(offset), answer.is_ok())
            } else {
                let request = v1::FetchOffsetsRequest { group: name.clone(), partitions: Vec::new() };
                let Ok(offsets) = client.fetch_group_offsets(request).await else { continue };
                count("ops.offsets fetched");
                (PositionCall::Fetch(offsets.first().map_or(-1, |of| of.offset)), true)
            };
            let answered = answered.then(|| elapsed().as_micros() as u64);
            self.board.positions.borrow_mut().0.entry(group).or_default().push(Timed { made, answered, call });
        }
        self.done();
        Ok(())
    }
}
