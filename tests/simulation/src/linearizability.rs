//! Whether a history of calls and answers could have come from one object that does one thing at a time.
//!
//! The algorithm of Wing and Gong with Lowe's memory of what was tried ("Testing for linearizability", 2017), as in
//! porcupine: it takes calls in an order that agrees with time, undoes the last choice at a dead end, and never looks twice at
//! the same set of calls taken with the same state.
//!
//! Names nothing of the simulation.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// What an object does, one call after the other.
pub(crate) trait Model {
    /// Its state.
    type State: Clone + Eq + Hash + Debug;
    /// A call with its answer.
    type Call: Debug;

    /// The state after a call; `None`: in this state the call has another answer.
    fn step(state: &Self::State, call: &Self::Call) -> Option<Self::State>;
}

/// A call, and when it was made and answered. Only their order matters; a call that is answered when another is made
/// overlaps it.
#[derive(Debug, Clone)]
pub(crate) struct Timed<C> {
    /// When it was made.
    pub(crate) made: u64,
    /// When it was answered; `None`: it may have had its effect at any time since, or never.
    pub(crate) answered: Option<u64>,
    /// What was asked and answered.
    pub(crate) call: C,
}

/// The list of events in the order of time, from which calls are taken out and put back. Places are `0..events`, and the head.
struct Events {
    /// Number of the call, and whether it is its answer.
    events: Vec<(usize, bool)>,
    next: Vec<usize>,
    before: Vec<usize>,
    /// Where the answer of each call is.
    answers: Vec<Option<usize>>,
}

impl Events {
    fn of<C>(history: &[Timed<C>]) -> Self {
        let mut times: Vec<(u64, bool, usize)> = Vec::new();
        for (number, timed) in history.iter().enumerate() {
            times.push((timed.made, false, number));
            times.extend(timed.answered.map(|at| (at.max(timed.made), true, number)));
        }
        times.sort_unstable();
        let events: Vec<(usize, bool)> = times.into_iter().map(|(_, is_answer, number)| (number, is_answer)).collect();
        let mut answers = vec![None; history.len()];
        for (at, (number, is_answer)) in events.iter().enumerate() {
            if *is_answer {
                answers[*number] = Some(at);
            }
        }
        let head = events.len();
        let next = (0..=head).map(|at| if at == head { 0 } else { at + 1 }).collect();
        let before = (0..=head).map(|at| if at == 0 { head } else { at - 1 }).collect();
        Self { events, next, before, answers }
    }

    fn head(&self) -> usize {
        self.events.len()
    }

    fn take(&mut self, at: usize) {
        let (before, next) = (self.before[at], self.next[at]);
        self.next[before] = next;
        self.before[next] = before;
    }

    fn put_back(&mut self, at: usize) {
        let (before, next) = (self.before[at], self.next[at]);
        self.next[before] = at;
        self.before[next] = at;
    }
}

/// Names a call in the name of a set, which is the sum (exclusive or) of the names of its calls: Zobrist hashing. 128 bits, so that no
/// two sets that are met have one name. The numbers are those of SplitMix64.
fn name(call: usize) -> u128 {
    let mix = |seed: u64| {
        let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let seed = 2 * call as u64 + 1;
    (u128::from(mix(seed)) << 64) | u128::from(mix(seed + 1))
}

/// Checks a history that begins in `state`.
///
/// # Errors
/// The call that no order explains, and the state reached without it.
pub(crate) fn check<M: Model>(state: M::State, history: &[Timed<M::Call>]) -> Result<(), String> {
    let mut events = Events::of(history);
    let mut left = history.iter().filter(|timed| timed.answered.is_some()).count();
    // The name of the set of calls that are taken.
    let mut taken = 0;
    let mut tried: HashSet<(u128, M::State)> = HashSet::new();
    let mut choices: Vec<(usize, M::State)> = Vec::new();
    let mut state = state;
    let mut stuck = (0, String::new());
    let mut at = events.next[events.head()];
    while left > 0 {
        if at == events.next[events.head()] {
            // What changes nothing and fits comes first: the others can only make it not fit.
            let mut ahead = at;
            while ahead != events.head() && !events.events[ahead].1 {
                if M::step(&state, &history[events.events[ahead].0].call).as_ref() == Some(&state) {
                    at = ahead;
                    break;
                }
                ahead = events.next[ahead];
            }
        }
        let dead_end = at == events.head() || events.events[at].1;
        if !dead_end {
            let number = events.events[at].0;
            if let Some(next) = M::step(&state, &history[number].call) {
                if tried.insert((taken ^ name(number), next.clone())) {
                    taken ^= name(number);
                    choices.push((at, std::mem::replace(&mut state, next)));
                    events.take(at);
                    if let Some(answer) = events.answers[number] {
                        events.take(answer);
                        left -= 1;
                    }
                    at = events.next[events.head()];
                    continue;
                }
            }
            at = events.next[at];
            continue;
        }
        if at != events.head() && choices.len() >= stuck.0 {
            let timed = &history[events.events[at].0];
            stuck = (choices.len(), format!("no order explains {timed:?}; after {} calls: {state:?}", choices.len()));
        }
        let Some((choice, previous)) = choices.pop() else { return Err(stuck.1) };
        let number = events.events[choice].0;
        // What changes nothing and may come now may as well come now as later: without it nothing more is possible.
        let next = if previous == state { events.head() } else { events.next[choice] };
        state = previous;
        taken ^= name(number);
        if let Some(answer) = events.answers[number] {
            events.put_back(answer);
            left += 1;
        }
        events.put_back(choice);
        at = next;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One number: writes, reads, and compare-and-set with its answer.
    struct Register;

    #[derive(Debug, Clone, Copy)]
    enum Of {
        Write(u32),
        Read(u32),
        Swap(u32, u32, bool),
    }
    use Of::{Read, Swap, Write};

    impl Model for Register {
        type State = u32;
        type Call = Of;

        fn step(state: &u32, call: &Of) -> Option<u32> {
            match *call {
                Write(value) => Some(value),
                Read(value) => (*state == value).then_some(value),
                Swap(from, to, true) => (*state == from).then_some(to),
                Swap(from, _, false) => (*state != from).then_some(*state),
            }
        }
    }

    fn holds(history: &[(u64, u64, Of)]) -> bool {
        let timed = |(made, answered, call): &(u64, u64, Of)| Timed {
            made: *made,
            answered: (*answered > 0).then_some(*answered),
            call: *call,
        };
        check::<Register>(0, &history.iter().map(timed).collect::<Vec<_>>()).is_ok()
    }

    #[test]
    fn one_after_the_other_each_read_gives_the_last_write() {
        assert!(holds(&[]));
        assert!(holds(&[(1, 2, Read(0)), (3, 4, Write(1)), (5, 6, Read(1))]));
        assert!(!holds(&[(1, 2, Write(1)), (3, 4, Read(0))]));
        assert!(!holds(&[(1, 2, Write(1)), (3, 4, Write(2)), (5, 6, Read(1))]));
    }

    #[test]
    fn what_overlaps_may_take_effect_in_any_order_but_only_in_one() {
        assert!(holds(&[(1, 10, Write(1)), (2, 3, Read(1)), (4, 5, Read(1))]));
        assert!(holds(&[(1, 10, Write(1)), (2, 3, Read(0)), (4, 5, Read(1))]));
        assert!(!holds(&[(1, 10, Write(1)), (2, 3, Read(1)), (4, 5, Read(0))]));
        // The order in which they are listed does not matter, and equal times overlap.
        assert!(holds(&[(4, 5, Read(2)), (1, 4, Write(2))]));
        assert!(holds(&[(3, 9, Write(2)), (1, 8, Write(1)), (10, 11, Read(1))]));
    }

    #[test]
    fn an_unanswered_call_has_its_effect_at_any_time_or_never() {
        assert!(holds(&[(1, 0, Write(1)), (2, 3, Read(0)), (4, 5, Read(1))]));
        assert!(holds(&[(1, 0, Write(1)), (2, 3, Read(0))]));
        assert!(!holds(&[(4, 0, Write(1)), (2, 3, Read(1))]));
        assert!(!holds(&[(1, 0, Write(1)), (2, 3, Read(1)), (4, 5, Read(0))]));
    }

    #[test]
    fn of_two_swaps_from_one_value_only_one_succeeds() {
        assert!(holds(&[(1, 5, Swap(0, 1, true)), (2, 6, Swap(0, 2, false)), (7, 8, Read(1))]));
        assert!(!holds(&[(1, 5, Swap(0, 1, true)), (2, 6, Swap(0, 2, true))]));
        assert!(!holds(&[(1, 2, Swap(0, 1, false))]));
    }

    #[test]
    fn many_overlapping_calls_are_checked_in_time() {
        // 12 writes have 479001600 orders, but only 4096 sets.
        let mut history: Vec<_> = (1..=12).map(|value| (u64::from(value), 1000, Write(value))).collect();
        history.push((2000, 2001, Read(77)));
        assert!(!holds(&history));
        history.pop();
        history.push((2000, 2001, Read(5)));
        assert!(holds(&history));
    }

    #[test]
    fn a_contradiction_at_the_end_of_a_long_history_is_found_in_time() {
        let mut history = Vec::new();
        for value in 0..2000 {
            let at = u64::from(value) * 10 + 1;
            history.push((at, at + 2, Write(value)));
            // Reads of five others overlap one another, and the writes before and after.
            history.extend((0..5).map(|other| (at + other, at + 8 + other, Read(value))));
        }
        assert!(holds(&history));
        history.push((30_000, 30_001, Read(0)));
        assert!(!holds(&history));
    }
}
