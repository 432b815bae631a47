//! Mutated first bytes of a connection, and frames of a stream.

use std::io::Cursor;
use std::net::SocketAddr;
use std::time::Duration;

use chronicle_fuzz::Fuzz;
use futures::FutureExt;

use super::frames::MeteredFrames;
use super::sniff::sniff;
use crate::peers::Purpose;
use crate::security::Caller;
use crate::security::budget::Budget;
use crate::telemetry::{Listener, Metrics};

const FRAME_MAX: usize = 1 << 20;

#[test]
fn mutated_first_bytes_choose_a_protocol() {
    let mut fuzz = Fuzz::new("first-bytes").seed(*b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").seed(*b"GET / HTTP/1.1\r\n\r\n");
    for purpose in [Purpose::Consensus, Purpose::Liveness, Purpose::Forwarding] {
        fuzz = fuzz.seed(*purpose.preface());
    }
    fuzz.seed([22, 3, 1, 0, 200]).run(|bytes| {
        let sniffed = sniff(Cursor::new(bytes.to_vec())).now_or_never().expect("everything is there");
        format!("{:?}", sniffed.map(|(version, _)| std::mem::discriminant(&version)))
    });
}

#[test]
fn mutated_frames_are_read_or_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let metrics = Metrics::new();
    let framed = |payload: &[u8]| [&(payload.len() as u32).to_be_bytes(), payload].concat();
    Fuzz::new("frames")
        .seed(framed(b"a request"))
        .seed([framed(b""), framed(&[7; 300]), framed(b"x")].concat())
        .seed(framed(&[7; 40_000]))
        .run(|bytes| {
            let budget = Budget::new("limits.connection-bytes-max", FRAME_MAX);
            let caller = Caller { share: budget.clone(), ..Caller::new(None, SocketAddr::from(([127, 0, 0, 1], 1))) };
            let io = Cursor::new(bytes.to_vec());
            let mut frames = MeteredFrames::new(io, &caller, Duration::from_secs(10), Listener::Grpc, metrics.clone());
            let mut read = 0;
            let end = loop {
                match frames.next(FRAME_MAX).now_or_never().expect("everything is there") {
                    Ok(Some(frame)) => read += frame.bytes.len() + 4,
                    end => break end.map(|_| ()),
                }
            };
            assert!(read <= bytes.len());
            drop(frames);
            assert_eq!(budget.used(), 0, "nothing stays charged");
            format!("{:?}", end.map_err(|error| error.to_string()))
        });
}
