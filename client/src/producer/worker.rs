//! The producer's task: owns the window and the stream, and opens the stream to the current leader.
//!
//! A stream stays open while its responses are successes and rejections of single records. A retryable error ends it, once
//! everything in flight is answered; so does silence, when another node leads by then. The next stream starts with the
//! requests that the window repeats, in order.
//!
//! Stands on `window.rs` and `connection.rs`. It does not name the producer's handle; commands reach it through a channel.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chronicle_proto::v1;
use chronicle_proto::v1::produce_stream_response::Result as Answer;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::request::{Item, NextRequest};
use super::window::{Limits, ProducerFailed, Window};
use crate::attempts::Attempts;
use crate::config::ProducerConfig;
use crate::connection::Connection;
use crate::error::{ClientError, ErrorKind};
use crate::record::Partition;
use crate::resolver::{Route, Target};

/// Most commands taken from the channel at once.
const COMMANDS_AT_ONCE: usize = 1024;

/// Commands of the producer's handle.
pub(super) enum Command {
    Append(Item),
    Flush(oneshot::Sender<Result<(), ClientError>>),
}

/// The task's state.
pub(super) struct Worker {
    connection: Connection,
    partition: Partition,
    config: ProducerConfig,
    commands: mpsc::UnboundedReceiver<Command>,
    failure: Arc<OnceLock<ClientError>>,
    window: Window,
    /// Callers that wait until every item below a number is answered.
    flushes: Vec<(u64, oneshot::Sender<Result<(), ClientError>>)>,
    attempts: Attempts,
    /// The node that the stream, or the failed attempt to open one, went to.
    route: Option<Route>,
    /// The producer's handle is gone.
    closed: bool,
    /// When queued items stop waiting for more.
    linger_until: Option<Instant>,
    incoming: Vec<Command>,
}

/// A stream of requests to the node and of responses back.
struct Stream {
    requests: mpsc::Sender<v1::ProduceRequest>,
    answers: Streaming<v1::ProduceStreamResponse>,
}

impl Worker {
    pub(super) fn new(
        connection: Connection,
        partition: Partition,
        config: ProducerConfig,
        commands: mpsc::UnboundedReceiver<Command>,
        failure: Arc<OnceLock<ClientError>>,
    ) -> Self {
        let limits = Limits {
            records: config.batch_records_max.max(1),
            bytes: config.batch_bytes_max.max(1),
            in_flight: config.in_flight_max.max(1),
        };
        Self {
            window: Window::new(config.idempotent, limits),
            attempts: connection.attempts(Target::Leader(partition.clone())),
            route: None,
            connection,
            partition,
            config,
            commands,
            failure,
            flushes: Vec::new(),
            closed: false,
            linger_until: None,
            incoming: Vec::with_capacity(COMMANDS_AT_ONCE),
        }
    }

    /// Runs until the producer is closed and everything is answered, or the producer fails.
    pub(super) async fn run(mut self) {
        if let Err(ProducerFailed(error)) = self.serve().await {
            tracing::warn!(%error, partition = %self.partition, "the producer failed");
            // The channel takes no new commands; those in it were never sent.
            self.commands.close();
            while let Ok(command) = self.commands.try_recv() {
                self.take(command);
            }
            let error = self.window.abandon(&error);
            let _ = self.failure.set(error);
            self.answer_flushes();
        }
    }

    async fn serve(&mut self) -> Result<(), ProducerFailed> {
        loop {
            self.answer_flushes();
            if self.window.is_empty() {
                if self.closed {
                    return Ok(());
                }
                self.receive().await;
                continue;
            }
            let lost = match self.open().await {
                Ok(mut stream) => self.drive(&mut stream).await?,
                Err(error) if error.is_retryable() => Some(error),
                Err(error) => return Err(ProducerFailed(error)),
            };
            if let Some(error) = lost.as_ref().filter(|error| !error.is_retryable()) {
                // The node refused the whole stream. If one request is in flight, that one caused it.
                if self.window.in_flight() != 1 {
                    return Err(ProducerFailed(error.clone()));
                }
                self.window.fail(error.clone());
            }
            self.window.settle()?;
            if let Some(error) = lost {
                self.pause(&error).await?;
            }
        }
    }

    /// Takes commands, waiting until there is one. Cancellation-safe.
    async fn receive(&mut self) {
        if self.commands.recv_many(&mut self.incoming, COMMANDS_AT_ONCE).await == 0 {
            self.closed = true;
        }
        let mut incoming = std::mem::take(&mut self.incoming);
        for command in incoming.drain(..) {
            self.take(command);
        }
        self.incoming = incoming;
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Append(item) => {
                if !self.window.has_queued() {
                    self.linger_until = Some(Instant::now() + self.config.linger);
                }
                self.window.push(item);
            }
            Command::Flush(reply) => {
                // A caller that flushes does not want to linger.
                self.linger_until = None;
                self.flushes.push((self.window.end(), reply));
            }
        }
    }

    fn answer_flushes(&mut self) {
        let oldest = self.window.oldest();
        while self.flushes.first().is_some_and(|(end, _)| *end <= oldest) {
            let (_, reply) = self.flushes.remove(0);
            let _ = reply.send(self.window.take_failure().map_or(Ok(()), Err));
        }
    }

    async fn open(&mut self) -> Result<Stream, ClientError> {
        self.route = None;
        let limit = Instant::now() + self.connection.config().request_timeout;
        let until = self.window.expires().map_or(limit, |expires| expires.min(limit));
        // No record is sent before the stream is open, so a failure up to then leaves no unknown outcome.
        let late = |why: &str| ClientError::new(ErrorKind::Transport { sent: false }, "DEADLINE_EXCEEDED", why);
        if self.window.needs_identity() {
            let left = until.saturating_duration_since(Instant::now());
            let identity = self.connection.init_producer(left).await?;
            self.window.identify(identity);
        }
        let route = timeout_at(until, self.attempts.route()).await;
        let route = self.route.insert(route.map_err(|_| late("no node answered the metadata request"))?).clone();
        let (requests, outgoing) = mpsc::channel(self.config.in_flight_max.max(1));
        let mut log = self.connection.log(route.channel());
        let (resolver, target) = (self.connection.resolver(), Target::Leader(self.partition.clone()));
        let opened = tokio::select! {
            opened = log.produce_stream(ReceiverStream::new(outgoing)) => opened.map_err(ClientError::from),
            () = resolver.until_superseded(&target, &route, resolver.suspect_after()) => {
                let why = "the node does not answer, and another node leads the partition now";
                Err(ClientError::new(ErrorKind::Transport { sent: false }, "CONNECTION_LOST", why))
            }
            () = sleep_until(until) => Err(late("the stream did not open in time")),
        };
        match opened {
            Ok(answers) => {
                // Not progress yet: only a response shows that the node is the leader.
                route.used.note_answer();
                Ok(Stream { requests, answers: answers.into_inner() })
            }
            Err(error) => Err(self.judge(error)),
        }
    }

    /// Sends and receives on one stream until it breaks (the error) or is no longer needed (`None`).
    async fn drive(&mut self, stream: &mut Stream) -> Result<Option<ClientError>, ProducerFailed> {
        let suspect_after = self.connection.config().suspect_after;
        // While requests are in flight: when the node has been silent for too long.
        let mut silent: Option<Instant> = None;
        // After that: the check whether another node leads.
        let mut suspicion: Option<BoxFuture<'static, bool>> = None;
        loop {
            self.answer_flushes();
            if self.window.is_draining()
                && self.window.in_flight() == 0
                && let Some(error) = self.window.settle()?
            {
                return Ok(Some(error));
            }
            if !self.send_ready(stream) {
                return Ok(Some(self.receive_rest(stream).await));
            }
            if self.window.needs_identity() {
                // Nothing is in flight: only then does an epoch begin.
                return Ok(None);
            }
            if self.window.is_empty() && self.closed {
                return Ok(None);
            }
            if self.window.in_flight() == 0 {
                (silent, suspicion) = (None, None);
            } else {
                silent.get_or_insert_with(|| Instant::now() + suspect_after);
            }
            let lingering = self.linger_until.filter(|_| self.window.has_queued());
            let expires = self.window.expires();
            // All branches are cancellation-safe: a response or a command is taken only by the branch that completes, and the
            // suspicion stays in its variable.
            tokio::select! {
                answer = stream.answers.message() => {
                    (silent, suspicion) = (None, None);
                    match answer {
                        Ok(Some(answer)) => {
                            if let Some(error) = self.accept(answer) {
                                return Ok(Some(error));
                            }
                        }
                        Ok(None) => return Ok(Some(self.judge(stream_closed()))),
                        Err(status) => return Ok(Some(self.judge(ClientError::from_end_of_stream(status)))),
                    }
                },
                () = self.receive(), if !self.closed => {}
                () = sleep_until_some(lingering), if lingering.is_some() => self.linger_until = None,
                () = sleep_until_some(expires), if expires.is_some() => {
                    return Ok(Some(self.judge(no_answer_in_time())));
                }
                () = sleep_until_some(silent), if suspicion.is_none() && silent.is_some() => suspicion = self.suspect(suspect_after),
                is_superseded = result_of(&mut suspicion), if suspicion.is_some() => {
                    (silent, suspicion) = (None, None);
                    if is_superseded {
                        let why = "the node does not answer, and another node leads the partition now";
                        let error = ClientError::new(ErrorKind::Transport { sent: true }, "CONNECTION_LOST", why);
                        return Ok(Some(self.judge(error)));
                    }
                }
            }
        }
    }

    /// Receives the responses that are left of a stream that takes no more requests; returns why it ended.
    async fn receive_rest(&mut self, stream: &mut Stream) -> ClientError {
        let error = loop {
            tokio::select! {
                answer = stream.answers.message() => match answer {
                    Ok(Some(answer)) => {
                        if let Some(error) = self.accept(answer) {
                            break error;
                        }
                    }
                    Ok(None) => break stream_closed(),
                    Err(status) => break ClientError::from_end_of_stream(status),
                },
                () = sleep_until_some(self.window.expires()) => break no_answer_in_time(),
            }
        };
        self.judge(error)
    }

    /// Starts to ask another node whether the silent one should be abandoned.
    fn suspect(&self, silence: Duration) -> Option<BoxFuture<'static, bool>> {
        let (resolver, route) = (self.connection.resolver().clone(), self.route.clone()?);
        let target = Target::Leader(self.partition.clone());
        Some(Box::pin(async move { resolver.is_superseded(&target, &route, silence).await }))
    }

    fn judge(&mut self, error: ClientError) -> ClientError {
        match &self.route {
            Some(route) => self.attempts.judge(route, error),
            None => error,
        }
    }

    /// Sends every request that may be sent now. False: the stream is closed.
    fn send_ready(&mut self, stream: &Stream) -> bool {
        loop {
            let ready = self.window.has_formed_request()
                || self.closed
                || self.linger_until.is_none_or(|until| until <= Instant::now())
                || self.window.has_full_request();
            if !ready {
                return true;
            }
            let Some(NextRequest { records, expectation, producer, trace }) = self.window.next() else { return true };
            let request = v1::ProduceRequest {
                partition: Some((&self.partition).into()),
                records,
                compression: v1::Compression::from(self.config.compression).into(),
                batch: Default::default(),
                producer,
                expectation,
                trace,
            };
            // The channel is never full: it has room for all requests that may be in flight.
            if stream.requests.try_send(request).is_err() {
                self.window.not_sent();
                return false;
            }
        }
    }

    /// Matches a response to its request. An error means that the stream is out of step and must be closed.
    fn accept(&mut self, answer: v1::ProduceStreamResponse) -> Option<ClientError> {
        let matched = match answer.result {
            Some(Answer::Ok(ok)) => {
                self.attempts.progressed();
                self.window.succeed(ok.base_offset)
            }
            Some(Answer::Error(error)) => {
                let error = self.judge(ClientError::from_stream(error));
                self.window.fail(error)
            }
            None => false,
        };
        let message = "the node sent a response that matches no request";
        (!matched).then(|| ClientError::new(ErrorKind::Transport { sent: true }, "CONNECTION_LOST", message))
    }

    /// Waits before the next attempt and fails the items that have expired. Nothing may be in flight.
    async fn pause(&mut self, error: &ClientError) -> Result<(), ProducerFailed> {
        let Some(expires) = self.window.expires() else { return Ok(()) };
        let pause = match &self.route {
            Some(route) => timeout_at(expires, self.attempts.failed(route, error)).await.unwrap_or_default(),
            None => self.attempts.failed_without_node(error),
        };
        tracing::debug!(%error, partition = %self.partition, pause_ms = pause.as_millis(), "retrying appends");
        let now = Instant::now();
        if !pause.is_zero() {
            sleep_until(expires.max(now).min(now + pause)).await;
        }
        let now = Instant::now();
        if expires > now {
            return Ok(());
        }
        let error = self.attempts.give_up(self.route.as_ref(), error.clone());
        self.window.expire(now, Some(&error))
    }
}

/// Sleeps until this time; for ever when there is none.
async fn sleep_until_some(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// The result of the check; never completes without one.
async fn result_of(suspicion: &mut Option<BoxFuture<'static, bool>>) -> bool {
    match suspicion {
        Some(suspicion) => suspicion.await,
        None => std::future::pending().await,
    }
}

fn stream_closed() -> ClientError {
    ClientError::new(ErrorKind::Transport { sent: true }, "CONNECTION_LOST", "the node closed the stream")
}

fn no_answer_in_time() -> ClientError {
    let why = "no answer within the delivery timeout";
    ClientError::new(ErrorKind::Transport { sent: true }, "DEADLINE_EXCEEDED", why)
}
