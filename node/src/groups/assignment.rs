//! Assigns partitions to members: evenly, and with as few moves as that allows. Pure.
//!
//! The rule is that of Kafka's sticky assignors (KIP-54, KIP-341): every member keeps its partitions; partitions without an owner
//! go to the member with the fewest; then single partitions move from the member with the most to the member with the fewest while
//! that makes the two more even. Members with the same topics end up with counts that differ by at most one. If
//! all members read the same topics, no equally even assignment needs fewer moves: each move takes from a member above its share
//! and gives to a member below its share.

use std::collections::BTreeMap;

/// TopicAssignment name and partition.
pub(super) type TopicPartitionKey = (String, i32);

/// Owner of each partition, by topic and partition.
pub(super) type Assignment = BTreeMap<TopicPartitionKey, String>;

/// One topic, while its partitions are assigned.
struct TopicAssignment<'a> {
    name: &'a str,
    /// Members that read it, as indexes.
    readers: Vec<usize>,
    /// Owner of each partition.
    owners: Vec<Option<usize>>,
}

/// Assigns every partition of `topics` (name and partition count) that has a reader among `members` (id and topics).
/// `current`: the current owners; it may contain partitions and members that do not exist any more.
///
/// The result is the same for the same arguments.
pub(super) fn assign(
    members: &BTreeMap<String, Vec<String>>,
    topics: &BTreeMap<String, i32>,
    current: &Assignment,
) -> Assignment {
    let ids: Vec<&String> = members.keys().collect();
    let index: BTreeMap<&str, usize> = ids.iter().enumerate().map(|(i, id)| (id.as_str(), i)).collect();
    let mut readers: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, wanted) in members.values().enumerate() {
        for topic in wanted {
            let readers = readers.entry(topic).or_default();
            if readers.last() != Some(&i) {
                readers.push(i);
            }
        }
    }
    let mut counts = vec![0usize; ids.len()];
    let mut assigned: Vec<TopicAssignment<'_>> = Vec::new();
    for (name, partitions) in topics {
        let Some(readers) = readers.remove(name.as_str()) else { continue };
        let owners = (0..*partitions)
            .map(|partition| {
                let owner = current.get(&(name.clone(), partition)).and_then(|id| index.get(id.as_str())).copied();
                owner.filter(|owner| readers.binary_search(owner).is_ok())
            })
            .collect::<Vec<_>>();
        owners.iter().flatten().for_each(|owner| counts[*owner] += 1);
        assigned.push(TopicAssignment { name, readers, owners });
    }
    for topic in &mut assigned {
        for owner in topic.owners.iter_mut().filter(|owner| owner.is_none()) {
            let least = least(&topic.readers, &counts);
            counts[least] += 1;
            *owner = Some(least);
        }
    }
    while assigned.iter_mut().map(|topic| topic.even_out(&mut counts)).fold(false, |moved, one| moved | one) {}
    let owned = |topic: TopicAssignment<'_>| {
        let ids = &ids;
        let name = topic.name.to_owned();
        let owners = topic.owners.into_iter().enumerate();
        owners
            .filter_map(move |(partition, owner)| Some(((name.clone(), partition as i32), ids[owner?].clone())))
            .collect::<Vec<_>>()
    };
    assigned.into_iter().flat_map(owned).collect()
}

fn least(readers: &[usize], counts: &[usize]) -> usize {
    *readers.iter().min_by_key(|reader| counts[**reader]).expect("a topic is only assigned when it has readers")
}

impl TopicAssignment<'_> {
    /// Moves partitions from the owner with the most to the reader with the fewest while that makes them more even. Every
    /// move lowers the sum of the squares of the counts, so the moves of all topics terminate.
    fn even_out(&mut self, counts: &mut [usize]) -> bool {
        let mut lists = vec![Vec::new(); self.readers.len()];
        for (partition, owner) in self.owners.iter().enumerate() {
            if let Some(at) = owner.and_then(|owner| self.readers.binary_search(&owner).ok()) {
                lists[at].push(partition);
            }
        }
        let mut moved = false;
        loop {
            let places = || 0..self.readers.len();
            let count = |at: &usize| counts[self.readers[*at]];
            let from = places().filter(|at| !lists[*at].is_empty()).max_by_key(count);
            let (Some(from), Some(to)) = (from, places().min_by_key(count)) else { return moved };
            if count(&from) <= count(&to) + 1 {
                return moved;
            }
            // Among equals the last partition: the one that the member got last.
            let Some(partition) = lists[from].pop() else { return moved };
            lists[to].push(partition);
            self.owners[partition] = Some(self.readers[to]);
            counts[self.readers[from]] -= 1;
            counts[self.readers[to]] += 1;
            moved = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn members(list: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
        let topics = |topics: &[&str]| topics.iter().map(|topic| (*topic).to_owned()).collect();
        list.iter().map(|(id, wanted)| ((*id).to_owned(), topics(wanted))).collect()
    }

    fn topics(list: &[(&str, i32)]) -> BTreeMap<String, i32> {
        list.iter().map(|(name, partitions)| ((*name).to_owned(), *partitions)).collect()
    }

    fn counts(assignment: &Assignment) -> BTreeMap<&str, usize> {
        assignment.values().fold(BTreeMap::new(), |mut counts, owner| {
            *counts.entry(owner.as_str()).or_default() += 1;
            counts
        })
    }

    fn moves(before: &Assignment, after: &Assignment) -> usize {
        after.iter().filter(|(partition, owner)| before.get(*partition).is_some_and(|old| old != *owner)).count()
    }

    #[test]
    fn many_topics_of_one_partition_are_spread_and_not_heaped_on_the_first_member() {
        let topics = topics(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)]);
        let all: &[&str] = &["a", "b", "c", "d"];
        let assignment = assign(&members(&[("x", all), ("y", all)]), &topics, &Assignment::new());
        assert_eq!(counts(&assignment), BTreeMap::from([("x", 2), ("y", 2)]));
    }

    #[test]
    fn a_member_that_leaves_moves_only_what_it_had() {
        let topics = topics(&[("t", 9)]);
        let three = members(&[("x", &["t"]), ("y", &["t"]), ("z", &["t"])]);
        let before = assign(&three, &topics, &Assignment::new());
        let after = assign(&members(&[("x", &["t"]), ("z", &["t"])]), &topics, &before);
        assert!(before.iter().filter(|(_, owner)| *owner != "y").all(|(partition, owner)| after[partition] == *owner));
        assert_eq!(moves(&before, &after), 3);
        assert!(counts(&after).values().all(|count| (4..=5).contains(count)));
    }

    #[test]
    fn a_topic_without_readers_has_no_owner() {
        let assignment = assign(&members(&[("x", &["t"])]), &topics(&[("t", 1), ("u", 5)]), &Assignment::new());
        assert_eq!(counts(&assignment), BTreeMap::from([("x", 1)]));
        assert!(assign(&BTreeMap::new(), &topics(&[("t", 1)]), &assignment).is_empty());
    }

    #[test]
    fn the_largest_groups_are_assigned_too() {
        let topics = topics(&[("t", 10_000)]);
        let group = |n: usize| (0..n).map(|i| (format!("m{i:04}"), vec!["t".to_owned()])).collect();
        let one = assign(&group(1), &topics, &Assignment::new());
        let two = assign(&group(2), &topics, &one);
        assert_eq!(moves(&one, &two), 5000);
        let many = assign(&group(1000), &topics, &two);
        assert!(counts(&many).values().all(|count| *count == 10));
    }

    fn cases() -> impl Strategy<Value = (BTreeMap<String, i32>, BTreeMap<String, Vec<String>>)> {
        const NAMES: &[&str] = &["a", "b", "c", "d"];
        let topics = proptest::collection::btree_map(proptest::sample::select(NAMES), 0..12i32, 1..4)
            .prop_map(|topics| topics.into_iter().map(|(name, count)| (name.to_owned(), count)).collect());
        let wanted = proptest::sample::subsequence(NAMES, 1..4);
        let members = proptest::collection::btree_map(0..30u8, wanted, 0..8).prop_map(|members| {
            let owned = |topics: Vec<&str>| topics.into_iter().map(str::to_owned).collect();
            members.into_iter().map(|(id, topics)| (format!("m{id:02}"), owned(topics))).collect()
        });
        (topics, members)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn every_partition_with_a_reader_has_one_owner_that_reads_it_and_alike_members_are_even(
            (topics, first) in cases(),
            (_, second) in cases(),
        ) {
            let before = assign(&first, &topics, &Assignment::new());
            for (members, current) in [(&first, &Assignment::new()), (&second, &before)] {
                let after = assign(members, &topics, current);
                for (topic, partitions) in &topics {
                    let is_read = members.values().any(|wanted| wanted.contains(topic));
                    for partition in 0..*partitions {
                        let owner = after.get(&(topic.clone(), partition));
                        prop_assert_eq!(owner.is_some(), is_read);
                        prop_assert!(owner.is_none_or(|owner| members[owner].contains(topic)));
                    }
                }
                let counts = counts(&after);
                let count = |id: &String| counts.get(id.as_str()).copied().unwrap_or(0);
                for (a, of_a) in members {
                    for (b, of_b) in members {
                        prop_assert!(of_a != of_b || count(a).abs_diff(count(b)) <= 1);
                    }
                }
                prop_assert_eq!(assign(members, &topics, &after), after, "settled: nothing moves");
            }
        }

        #[test]
        fn among_alike_members_no_more_moves_than_must(partitions in 0..60i32, before in 1..10usize, after in 1..10usize) {
            let topics = topics(&[("t", partitions)]);
            let group = |n: usize| (0..n).map(|i| (format!("m{i:02}"), vec!["t".to_owned()])).collect();
            let old = assign(&group(before), &topics, &Assignment::new());
            let new = assign(&group(after), &topics, &old);
            // What must go: the partitions of members that left, and of the others what is above an even share.
            let (share, extra) = (partitions as usize / after, partitions as usize % after);
            let mut kept: Vec<usize> = counts(&old).into_iter().filter(|(id, _)| **id < *format!("m{after:02}")).map(|(_, n)| n).collect();
            kept.sort_unstable_by(|a, b| b.cmp(a));
            let stay: usize = kept.iter().enumerate().map(|(i, n)| (*n).min(share + usize::from(i < extra))).sum();
            prop_assert_eq!(moves(&old, &new), partitions as usize - stay);
            prop_assert_eq!(new.keys().collect::<BTreeSet<_>>().len(), partitions as usize);
        }
    }
}
