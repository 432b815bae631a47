//! A thread that was seeded repeats itself. Needs `--cfg tokio_unstable`; see the crate.
#![cfg(tokio_unstable)]

use std::collections::HashSet;

fn draw(seed: u64) -> (u64, Vec<u32>) {
    let thread = std::thread::spawn(move || {
        chronicle_log::simulated::seed_thread(seed);
        (rand::random(), (0..100).collect::<HashSet<u32>>().into_iter().collect())
    });
    thread.join().unwrap()
}

#[test]
fn a_seeded_thread_draws_and_hashes_the_same_again_and_others_do_not() {
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1).0, draw(2).0);
    assert_ne!(draw(1).1, draw(2).1);
}
