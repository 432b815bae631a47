//! The topic `ledger`: appends on condition of the end of the log or of the version of a key, and what is known of its end,
//! checked for linearizability with the times of calls and answers.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use chronicle_client::{Client, ClientError, Partition, ReadFrom, StoredRecord};
use chronicle_proto::v1;
use chronicle_proto::v1::expectation::Expect;
use rand::Rng;
use tokio::time::sleep;

use crate::board::{Clients, LEDGER, stamp, value};
use crate::linearizability::{Model, Timed, check};
use crate::machine::elapsed;
use crate::tally::count;
use crate::trace::note;

/// Keys in use.
const KEYS: usize = 3;

/// Bookkeepers that append.
const APPEND: u32 = 2;
/// A version that no key has.
const NEVER: i64 = 1 << 40;

/// What was asked.
#[derive(Debug, Clone, Copy)]
enum Ask {
    /// A record of this key, on no condition.
    Append(usize),
    /// On condition that it gets this offset.
    IfEnd(usize, i64),
    /// On condition that the latest record of the key has this offset; -1: there is none.
    IfVersion(usize, i64),
    /// The offset that the next record will get.
    Latest,
}

/// What was answered.
#[derive(Debug, Clone, Copy)]
enum Answer {
    /// Stored at this offset.
    At(i64),
    /// Refused: the end, or the version, is this.
    Conflict(i64),
    /// The end.
    End(i64),
}

/// A call of the ledger with its answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LedgerCall(Ask, Answer);

/// The log of the ledger: its end, and the version of each key.
struct LedgerModel;

impl Model for LedgerModel {
    type State = (i64, [i64; KEYS]);
    type Call = LedgerCall;

    fn step(state: &Self::State, call: &LedgerCall) -> Option<Self::State> {
        let (end, versions) = *state;
        let stored = |key: usize, at: i64| {
            let mut versions = versions;
            versions[key] = at;
            (at == end).then_some((end + 1, versions))
        };
        let unchanged = |holds: bool| holds.then_some(*state);
        match (call.0, call.1) {
            (Ask::Append(key), Answer::At(at)) => stored(key, at),
            (Ask::IfEnd(key, expected), Answer::At(at)) if expected == end => stored(key, at),
            (Ask::IfVersion(key, version), Answer::At(at)) if versions[key] == version => stored(key, at),
            (Ask::IfEnd(_, expected), Answer::Conflict(current)) => unchanged(current == end && expected != end),
            (Ask::IfVersion(key, version), Answer::Conflict(current)) => {
                unchanged(current == versions[key] && version != current)
            }
            (Ask::Latest, Answer::End(at)) => unchanged(at == end),
            _ => None,
        }
    }
}

/// A question for the first record at or after a time.
struct ByTime {
    made: u64,
    time_ms: i64,
    found: Option<(i64, i64)>,
}

/// What the clients of the ledger did.
#[derive(Default)]
pub(crate) struct LedgerHistory {
    answered: Vec<Timed<LedgerCall>>,
    /// Appends with an unknown outcome, by client and number: when they were made, and what they were.
    unknown: BTreeMap<(u32, u64), (u64, Ask)>,
    /// Appends that were certainly not accepted.
    refused: Vec<(u32, u64)>,
    by_time: Vec<ByTime>,
}

/// Simulated time in microseconds.
fn now() -> u64 {
    elapsed().as_micros() as u64
}

impl Clients {
    /// Appends and asks until told to stop. Those with a number above [`APPEND`] only ask, or append what must be refused: they
    /// stay with a leader that is cut off, whose answers they get at once, while the others soon go to its successor.
    pub(crate) async fn bookkeeper(self, number: u32) -> anyhow::Result<()> {
        self.until(|board| board.ready.get()).await;
        let appends = number < APPEND;
        let patience = Duration::from_millis(if appends { 300 } else { 2000 });
        let client = self.suspecting(ReadFrom::Leader, Duration::from_secs(5), patience)?;
        let who = format!("bookkeeper {number}");
        let mut sequence = 0;
        let mut end = 0;
        let mut versions = [-1; KEYS];
        let mut seen_ms = 0;
        while !self.board.stop.get() {
            let pause = Duration::from_millis(rand::rng().random_range(if appends { 0..60 } else { 5..40 }));
            sleep(pause).await;
            let key = rand::rng().random_range(0..KEYS);
            let ask = match (appends, rand::rng().random_range(0..10)) {
                (true, 0..2) => Ask::Append(key),
                (true, 2..4) => Ask::IfEnd(key, end),
                (true, 4..7) => Ask::IfVersion(key, versions[key]),
                (false, 0..3) => Ask::IfEnd(key, 0),
                (false, 3..5) => Ask::IfVersion(key, NEVER),
                (_, 5..9) => Ask::Latest,
                _ => {
                    self.ask_by_time(&client, seen_ms).await;
                    continue;
                }
            };
            let made = now();
            if let Ask::Latest = ask {
                let answer = client.list_offsets(&Partition::new(LEDGER, 0), None).await;
                let Ok(offsets) = answer else { continue };
                count("ops.ends asked");
                end = offsets.next;
                self.note_ledger(made, ask, Answer::End(end));
                continue;
            }
            let answer = client.produce(request(number, sequence, ask)).await;
            let call = (number, sequence);
            sequence += 1;
            match answer {
                Ok(answer) => {
                    let at = answer.base_offset;
                    self.board.acknowledged.set(self.board.acknowledged.get() + 1);
                    count("ops.conditional appends");
                    note(&who, &format!("{}: {ask:?} is at {at}", call.1));
                    (end, versions[key]) = (at + 1, at);
                    self.note_ledger(made, ask, Answer::At(at));
                }
                Err(error) if error.reason == "VERSION_CONFLICT" => {
                    let current = error.number("current").context("a conflict without what is current")?;
                    count("ops.conflicts");
                    note(&who, &format!("{}: {ask:?}: {current} is current", call.1));
                    match ask {
                        Ask::IfVersion(..) => versions[key] = current,
                        _ => end = current,
                    }
                    self.note_ledger(made, ask, Answer::Conflict(current));
                    self.board.ledger.borrow_mut().refused.push(call);
                }
                Err(error) => {
                    note(&who, &format!("{}: {ask:?}: {error}", call.1));
                    self.failed(made, ask, call, &error);
                }
            }
            // Somewhere in what was written so far.
            seen_ms = crate::machine::wall_ms() - rand::rng().random_range(0..4000);
        }
        self.done();
        Ok(())
    }

    fn note_ledger(&self, made: u64, ask: Ask, answer: Answer) {
        let call = Timed { made, answered: Some(now()), call: LedgerCall(ask, answer) };
        self.board.ledger.borrow_mut().answered.push(call);
    }

    fn failed(&self, made: u64, ask: Ask, call: (u32, u64), error: &ClientError) {
        let mut ledger = self.board.ledger.borrow_mut();
        match error.not_accepted() {
            true => ledger.refused.push(call),
            false => {
                ledger.unknown.insert(call, (made, ask));
            }
        }
    }

    async fn ask_by_time(&self, client: &Client, time_ms: i64) {
        let made = now();
        if let Ok(offsets) = client.list_offsets(&Partition::new(LEDGER, 0), Some(time_ms)).await {
            count("ops.offsets by time");
            let found = offsets.at_timestamp.map(|at| (at.offset, at.timestamp_ms));
            self.board.ledger.borrow_mut().by_time.push(ByTime { made, time_ms, found });
        }
    }
}

fn request(client: u32, sequence: u64, ask: Ask) -> v1::ProduceRequest {
    let (key, expect) = match ask {
        Ask::Append(key) => (key, None),
        Ask::IfEnd(key, expected) => (key, Some(Expect::NextOffset(expected))),
        Ask::IfVersion(key, version) => (key, Some(Expect::KeyVersion(v1::KeyVersion { key: name(key), version }))),
        Ask::Latest => (0, None),
    };
    let record = v1::Record { key: Some(name(key)), value: Some(value(client, sequence, 8)), ..Default::default() };
    v1::ProduceRequest {
        partition: Some(v1::Partition { topic: LEDGER.into(), partition: 0 }),
        records: vec![record],
        expectation: expect.map(|expect| v1::Expectation { expect: Some(expect) }),
        ..Default::default()
    }
}

fn name(key: usize) -> Bytes {
    Bytes::from(format!("account {key}"))
}

impl LedgerHistory {
    /// Checks the history against what is stored at the end.
    ///
    /// # Errors
    /// The first contradiction.
    pub(crate) fn check(&self, stored: &[StoredRecord]) -> anyhow::Result<()> {
        let mut places = BTreeMap::new();
        for record in stored {
            let stamp = stamp(record.value.as_ref()).context("a record of the ledger that no client wrote")?;
            let twice = places.insert(stamp, record.offset);
            ensure!(twice.is_none(), "the ledger holds record {stamp:?} at {twice:?} and at {}", record.offset);
        }
        for refused in &self.refused {
            ensure!(!places.contains_key(refused), "the ledger holds record {refused:?}, which was refused");
        }
        let mut history = self.answered.clone();
        for (call, (made, ask)) in &self.unknown {
            if let Some(at) = places.get(call) {
                history.push(Timed { made: *made, answered: None, call: LedgerCall(*ask, Answer::At(*at)) });
            }
        }
        let acknowledged = |timed: &&Timed<LedgerCall>| matches!(timed.call.1, Answer::At(_));
        let appends = history.iter().filter(acknowledged).count();
        ensure!(appends == stored.len(), "the ledger holds {} records of {appends} appends", stored.len());
        check::<LedgerModel>((0, [-1; KEYS]), &history).map_err(|why| anyhow::anyhow!("ledger: {why}"))?;
        count("checks.linearizable ledger");
        // When each record was acknowledged; `None`: never.
        let mut acknowledged = BTreeMap::new();
        for timed in &self.answered {
            if let Answer::At(at) = timed.call.1 {
                acknowledged.insert(at, timed.answered);
            }
        }
        for asked in &self.by_time {
            let fits = stored.iter().find(|record| record.timestamp_ms >= asked.time_ms);
            let found = asked.found.map(|(offset, _)| offset);
            let (time, first) = (asked.time_ms, fits.map(|record| record.offset));
            let known = first.and_then(|at| acknowledged.get(&at).copied().flatten());
            match (found, first) {
                (None, Some(_)) if known.is_none_or(|at| at >= asked.made) => {}
                (found, first) => ensure!(
                    found == first,
                    "the first record at or after {time} ms is {first:?}, {found:?} was answered"
                ),
            }
        }
        Ok(())
    }
}
