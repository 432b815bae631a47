//! Counts what the current thread allocates. The one file outside of the engine with `unsafe` code: an allocator cannot be
//! written without.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// An allocator that counts by thread. A test program installs it with `#[global_allocator]`; without it [`peak`] measures nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct CountingAllocator;

#[derive(Clone, Copy)]
struct Count {
    now: isize,
    most: isize,
}

thread_local! {
    // Neither allocates nor needs to be dropped, so that the allocator may use it at any time.
    static COUNT: Cell<Count> = const { Cell::new(Count { now: 0, most: 0 }) };
}

fn add(bytes: isize) {
    // Fails only while a thread ends.
    let _ = COUNT.try_with(|cell| {
        let Count { now, most } = cell.get();
        let now = now + bytes;
        cell.set(Count { now, most: most.max(now) });
    });
}

// SAFETY: every call is passed to the system's allocator as it is, so it keeps the contract that `System` keeps. Counting neither
// allocates nor panics.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        add(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `dealloc`, and the block is from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add(size as isize - layout.size() as isize);
        // SAFETY: the caller keeps the contract of `realloc`, and the block is from `System`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Runs `work`; returns its result and the most bytes that this thread held at one moment, above what it held before.
pub fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = COUNT.with(|cell| {
        let now = cell.get().now;
        cell.set(Count { now, most: now });
        now
    });
    let result = work();
    let most = COUNT.with(Cell::get).most;
    (result, usize::try_from(most - before).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: CountingAllocator = CountingAllocator;

    #[test]
    fn the_most_that_was_held_counts_and_not_what_is_left() {
        let ((), most) = peak(|| drop((Vec::<u8>::with_capacity(1000), Vec::<u8>::with_capacity(500))));
        assert_eq!(most, 1500);
        let ((), most) = peak(|| {
            let mut grown = Vec::<u8>::with_capacity(10);
            grown.reserve_exact(700);
        });
        assert_eq!(most, 700);
        assert_eq!(peak(|| ()).1, 0);
    }
}
