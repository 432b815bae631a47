//! The exchange stream to one peer: sends requests, receives responses, and matches them by id.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chronicle_client::Connector;
use chronicle_log::LogId;
use chronicle_proto::internal::RaftFrame;
use chronicle_proto::internal::raft_frame::Message;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::channel::{Me, address, channel, client};
use super::generations::shown;
use super::liveness::Liveness;
use super::protocol::{Purpose, wire_id};

/// Frames queued for the connection.
const QUEUE_MAX: usize = 4096;
/// First and longest pause between attempts to connect.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// The exchange stream to one peer. Dropping it ends the stream; pending requests get no response.
pub(super) struct Link {
    address: String,
    state: Arc<LinkState>,
    queue: mpsc::Sender<RaftFrame>,
    _stop: DropGuard,
}

struct LinkState {
    pending: Mutex<PendingRequests>,
    window: Arc<Semaphore>,
    window_bytes: usize,
    /// The last attempt to connect failed: requests fail at once until an attempt succeeds.
    down: AtomicBool,
    liveness: Arc<Liveness>,
}

#[derive(Default)]
struct PendingRequests {
    next_id: u64,
    open: HashMap<u64, oneshot::Sender<Message>>,
}

impl Link {
    pub(super) fn start(
        runtime: &Handle,
        me: Me,
        to: u64,
        address: String,
        connector: Connector,
        window_bytes: usize,
        liveness: Arc<Liveness>,
    ) -> Arc<Self> {
        let (queue, receiver) = mpsc::channel(QUEUE_MAX);
        let state = Arc::new(LinkState {
            pending: Mutex::default(),
            window: Arc::new(Semaphore::new(window_bytes)),
            window_bytes,
            down: AtomicBool::new(false),
            liveness,
        });
        let stop = CancellationToken::new();
        let task = run(me, to, address.clone(), connector, state.clone(), receiver);
        let stopped = stop.clone();
        runtime.spawn(async move { stopped.run_until_cancelled_owned(task).await });
        Arc::new(Self { address, state, queue, _stop: stop.drop_guard() })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Sends a request and waits for its response.
    pub(super) async fn ask(&self, group: LogId, message: Message) -> Result<Message, String> {
        if self.state.down.load(Ordering::Relaxed) {
            return Err(format!("{}: no connection", self.address));
        }
        let group = wire_id(group);
        let mut frame = RaftFrame { id: 0, group: Some(group), message: Some(message) };
        let bytes = frame.encoded_len().min(self.state.window_bytes);
        // Held until the response, to bound the bytes in flight to a peer.
        let _room = self.state.window.clone().acquire_many_owned(bytes as u32).await.map_err(|e| e.to_string())?;
        let (sender, answer) = oneshot::channel();
        let id = {
            let mut pending = self.state.pending.lock();
            let id = pending.next_id;
            pending.next_id += 1;
            pending.open.insert(id, sender);
            id
        };
        frame.id = id;
        // Removes the pending request also when the caller is cancelled.
        let _open = PendingGuard { state: &self.state, id };
        self.queue.send(frame).await.map_err(|_| "the exchange stream is closed".to_owned())?;
        answer.await.map_err(|_| format!("{}: the connection was lost", self.address))
    }
}

struct PendingGuard<'a> {
    state: &'a LinkState,
    id: u64,
}

impl Drop for PendingGuard<'_> {
    fn drop(&mut self) {
        self.state.pending.lock().open.remove(&self.id);
    }
}

/// Keeps the stream open and delivers responses to their waiters.
async fn run(
    me: Me,
    to: u64,
    at: String,
    connector: Connector,
    state: Arc<LinkState>,
    mut queue: mpsc::Receiver<RaftFrame>,
) {
    let mut pause = PAUSE_MIN;
    loop {
        let error = match exchange(me, to, &at, &connector, &state, &mut queue, &mut pause).await {
            Ok(()) => return,
            Err(error) => error,
        };
        tracing::debug!(node = to, address = at, error, "exchange stream failed");
        state.down.store(true, Ordering::Relaxed);
        // The requests of frames that were not sent fail here.
        while queue.try_recv().is_ok() {}
        state.pending.lock().open.clear();
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Runs one connection until it ends. `Ok`: the link was dropped.
async fn exchange(
    me: Me,
    to: u64,
    at: &str,
    connector: &Connector,
    state: &LinkState,
    queue: &mut mpsc::Receiver<RaftFrame>,
    pause: &mut Duration,
) -> Result<(), String> {
    let mut client = client(channel(at, Purpose::Consensus, connector.clone())?);
    let (frames, outgoing) = mpsc::channel(64);
    let mut request = tonic::Request::new(ReceiverStream::new(outgoing));
    address(&mut request, me, to);
    // The peer responds to the headers before the first frame, so this shows whether the peer is reachable.
    let answers = client.exchange(request).await.map_err(|status| status.to_string())?;
    // The votes and acknowledgements of an older directory must not count.
    state.liveness.generations().check(to, shown(answers.metadata())).map_err(|why| why.to_string())?;
    let mut answers = answers.into_inner();
    state.down.store(false, Ordering::Relaxed);
    *pause = PAUSE_MIN;
    loop {
        tokio::select! {
            frame = queue.recv() => match frame {
                Some(frame) => frames.send(frame).await.map_err(|_| "the stream has ended".to_owned())?,
                None => return Ok(()),
            },
            answer = answers.message() => match answer.map_err(|status| status.to_string())? {
                Some(RaftFrame { id, message: Some(message), .. }) => {
                    if let Some(waiting) = state.pending.lock().open.remove(&id) {
                        let _ = waiting.send(message);
                    }
                }
                Some(_) => {}
                None => return Err("the peer closed the stream".to_owned()),
            },
        }
    }
}
