//! Deterministic random numbers and clocks for a thread. Only with the feature `simulated`, which no shipped program enables.
//! It lives in this crate because no other may hold `unsafe` code; nothing else of the crate uses it.
//!
//! On Linux, `rand`, `uuid` and the standard library (for the order of its hash tables) take their seeds from `getrandom`. The
//! function here replaces the C library's: a thread that was seeded gets a sequence from its seed, every other thread gets
//! random bytes from the kernel.
//!
//! `clock_gettime` is replaced in the same way: HTTP responses carry a date, and libraries read the time on their own.

use std::cell::Cell;
use std::time::Duration;

thread_local! {
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
    static CLOCK: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// Derives this thread's random numbers from `seed` from now on. Call it before anything else on a fresh thread: generators that
/// already have a seed keep it.
pub fn seed_thread(seed: u64) {
    STATE.set(Some(seed));
}

/// Sets all clocks of this thread to this time since the Unix epoch; they stand still until they are set again.
pub fn set_clocks(now: Duration) {
    CLOCK.set(Some(now));
}

/// SplitMix64 (Steele, Lea, Flood 2014).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// As `getrandom(2)`.
///
/// # Safety
/// `buffer` points to `length` bytes that may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    if buffer.is_null() || length == 0 {
        return 0;
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer, length) };
    let Some(mut state) = STATE.get() else {
        // Straight to the kernel.
        return match rustix::rand::getrandom(bytes, rustix::rand::GetRandomFlags::empty()) {
            Ok(filled) => filled as isize,
            Err(_) => -1,
        };
    };
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&next(&mut state).to_le_bytes()[..chunk.len()]);
    }
    STATE.set(Some(state));
    length as isize
}

/// As `clock_gettime(2)`.
///
/// # Safety
/// `time` points to a `timespec` that may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: i32, time: *mut rustix::time::Timespec) -> i32 {
    let now = match CLOCK.get() {
        Some(now) => rustix::time::Timespec { tv_sec: now.as_secs() as i64, tv_nsec: now.subsec_nanos().into() },
        None => {
            // Of all clocks, the standard library asks for these two.
            let id = match clock {
                0 => rustix::time::ClockId::Realtime,
                _ => rustix::time::ClockId::Monotonic,
            };
            rustix::time::clock_gettime(id)
        }
    };
    // SAFETY: the caller's promise; on 64-bit Linux this is C's `timespec`.
    unsafe { time.write(now) };
    0
}
