//! Tests of bootstrapping and joining on simulated time.

mod answers;
mod faults;
mod joining;
mod sim;

use std::time::Duration;

use sim::{Fault, World};

use super::*;

const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

async fn start_three(world: &mut World, order: [usize; 3], stagger: Duration) {
    for number in order {
        world.start(number).await;
        world.run(stagger).await;
    }
}
