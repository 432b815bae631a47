//! What happened, in order: the proof that a seed repeats itself, and what a person reads after a failure.

use std::cell::RefCell;
use std::fmt::Write;

use tracing::dispatcher::DefaultGuard;
use tracing::field::{Field, Visit};
use tracing::{Dispatch, Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{EnvFilter, Layer};

use crate::machine::elapsed;

/// What of a simulation is traced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detail {
    /// What is done to the cluster and what clients are told.
    Outcomes,
    /// Also every event that the node, its libraries and the network trace, in the hash: for comparing two runs.
    Everything,
    /// Outcomes, printed to standard error with what the node logs, filtered by this (`EnvFilter`).
    Print(String),
}

/// Events of one simulation.
#[derive(Debug, Default, Clone)]
pub(crate) struct Trace {
    /// FNV-1a of all lines.
    pub(crate) hash: u64,
    /// Lines noted.
    pub(crate) lines: u64,
    print: bool,
}

impl Trace {
    fn add(&mut self, line: &str) {
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.lines += 1;
        if self.print {
            eprintln!("{line}");
        }
    }
}

thread_local! {
    static TRACE: RefCell<Trace> = RefCell::default();
}

/// What takes the events of a simulation. To be made on another thread than the simulation's: each hash table that a thread
/// makes changes the order of all later ones, and what is traced must not change what happens.
pub(crate) fn dispatch(detail: &Detail) -> Dispatch {
    match detail {
        Detail::Outcomes => Dispatch::none(),
        Detail::Everything => {
            let filter = EnvFilter::new("debug,turmoil=trace");
            Dispatch::new(tracing_subscriber::registry().with(Hashed.with_filter(filter)))
        }
        Detail::Print(filter) => {
            let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).without_time();
            Dispatch::new(tracing_subscriber::registry().with(lines.with_filter(EnvFilter::new(filter))))
        }
    }
}

/// Starts over on this thread. What is traced ends with the guard.
pub(crate) fn begin(detail: &Detail, dispatch: &Dispatch) -> DefaultGuard {
    let print = matches!(detail, Detail::Print(_));
    TRACE.set(Trace { hash: 0xcbf2_9ce4_8422_2325, lines: 0, print });
    tracing::dispatcher::set_default(dispatch)
}

/// The trace so far.
pub(crate) fn current() -> Trace {
    TRACE.with_borrow(Trace::clone)
}

/// Something happened to `who`.
pub(crate) fn note(who: &str, what: &str) {
    let line = format!("{:>6} ms {who}: {what}", elapsed().as_millis());
    TRACE.with_borrow_mut(|trace| trace.add(&line));
}

/// Puts events into the hash.
struct Hashed;

impl<S: Subscriber> Layer<S> for Hashed {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text(event.metadata().target().to_owned());
        event.record(&mut text);
        note("event", &text.0);
    }
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}
