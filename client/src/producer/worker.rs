//! The task behind a producer: owns the window and the stream, and takes the stream to wherever the leader is.
//!
//! A stream goes on while its answers are successes and rejections of single records. Anything that another node, or the
//! same one later, may answer differently ends it, once everything in flight is answered; so does silence, when another node
//! says that somebody else leads now. The next stream begins with what the window then has to repeat, in order.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use chronicle_proto::v1;
use chronicle_proto::v1::produce_stream_response::Result as Answer;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::ProducerConfig;
use super::window::{Item, Limits, Next, Stuck, Window};
use crate::attempts::Attempts;
use crate::client::Client;
use crate::error::{ClientError, ErrorKind};
use crate::record::Partition;
use crate::resolver::{Route, Target};

/// Commands taken from the channel at once.
const COMMANDS_AT_ONCE: usize = 1024;

pub(super) enum Command {
    Append(Item),
    Flush(oneshot::Sender<Result<(), ClientError>>),
}

pub(super) struct Worker {
    client: Client,
    partition: Partition,
    config: ProducerConfig,
    commands: mpsc::UnboundedReceiver<Command>,
    failure: Arc<OnceLock<ClientError>>,
    window: Window,
    /// Who waits until every item below a number is answered.
    flushes: Vec<(u64, oneshot::Sender<Result<(), ClientError>>)>,
    identity: Option<v1::InitProducerResponse>,
    attempts: Attempts,
    /// Where the stream is, or the attempt to open one failed.
    route: Option<Route>,
    /// No producer handle is left.
    closed: bool,
    /// When queued items stop waiting for company.
    linger_until: Option<Instant>,
    incoming: Vec<Command>,
}

/// A stream of requests to the node and of answers back.
struct Stream {
    requests: mpsc::Sender<v1::ProduceRequest>,
    answers: Streaming<v1::ProduceStreamResponse>,
}

impl Worker {
    pub(super) fn new(
        client: Client,
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
            attempts: client.attempts(Target::Leader(partition.clone())),
            route: None,
            client,
            partition,
            config,
            commands,
            failure,
            flushes: Vec::new(),
            identity: None,
            closed: false,
            linger_until: None,
            incoming: Vec::with_capacity(COMMANDS_AT_ONCE),
        }
    }

    /// Runs until the producer is closed and everything is answered, or the producer fails.
    pub(super) async fn run(mut self) {
        if let Err(Stuck(error)) = self.serve().await {
            tracing::warn!(%error, partition = %self.partition, "the producer failed");
            let _ = self.failure.set(error.clone());
            // Nothing new gets in; what is in the channel was never sent.
            self.commands.close();
            while let Ok(command) = self.commands.try_recv() {
                self.take(command);
            }
            self.window.abandon(&error);
            self.answer_flushes();
        }
    }

    async fn serve(&mut self) -> Result<(), Stuck> {
        loop {
            self.answer_flushes();
            if self.window.is_empty() {
                if self.closed {
                    return Ok(());
                }
                // Cancellation-safe, and nothing else is waited for.
                self.receive().await;
                continue;
            }
            let lost = match self.open().await {
                Ok(mut stream) => self.drive(&mut stream).await?,
                Err(error) if error.is_retryable() => Some(error),
                Err(error) => return Err(Stuck(error)),
            };
            if let Some(error) = lost.as_ref().filter(|error| !error.is_retryable()) {
                // The node refused the stream as a whole; with one request in flight that one is to blame.
                if self.window.in_flight() != 1 {
                    return Err(Stuck(error.clone()));
                }
                self.window.fail(error.clone());
            }
            self.window.settle()?;
            if let Some(error) = lost {
                self.pause(&error).await?;
            }
        }
    }

    /// Takes what callers sent, waiting until there is something.
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
                // Whoever waits does not want to linger.
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
        let limit = Instant::now() + self.client.config().request_timeout;
        let until = self.window.expires().map_or(limit, |expires| expires.min(limit));
        // Nothing is sent before the stream stands: a failure up to here leaves no outcome open.
        let late = |why: &str| ClientError::new(ErrorKind::Transport { sent: false }, "DEADLINE_EXCEEDED", why);
        if self.config.idempotent && self.identity.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            self.identity = Some(self.client.init_producer_within(left).await?);
        }
        let route = timeout_at(until, self.attempts.route()).await;
        let route = self.route.insert(route.map_err(|_| late("no node said where the partition is"))?).clone();
        let (requests, outgoing) = mpsc::channel(self.config.in_flight_max.max(1));
        let mut log = self.client.log(route.channel());
        let (resolver, target) = (self.client.resolver(), Target::Leader(self.partition.clone()));
        let opened = tokio::select! {
            opened = log.produce_stream(ReceiverStream::new(outgoing)) => opened.map_err(ClientError::from),
            () = resolver.superseded(&target, &route, resolver.suspect_after()) => {
                let why = "does not answer, and another node leads now";
                Err(ClientError::new(ErrorKind::Transport { sent: false }, "CONNECTION_LOST", why))
            }
            () = sleep_until(until) => Err(late("the stream did not open")),
        };
        match opened {
            Ok(answers) => {
                // Not yet progress: whether the node leads is only known from its answers.
                route.node.answered();
                Ok(Stream { requests, answers: answers.into_inner() })
            }
            Err(error) => Err(self.judge(error)),
        }
    }

    /// Sends and receives on one stream until it breaks (the error) or is no longer needed (`None`).
    async fn drive(&mut self, stream: &mut Stream) -> Result<Option<ClientError>, Stuck> {
        let suspect_after = self.client.config().suspect_after;
        // Since requests are in flight: when the node has been silent for too long.
        let mut silent: Option<Instant> = None;
        // Then: whether another node leads.
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
                // The outgoing half is gone; the incoming half knows why.
                let lost = stream.answers.message().await.err().map_or_else(ended, ClientError::from);
                return Ok(Some(self.judge(lost)));
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
            // All branches are cancellation-safe: an answer or a command is taken only by the branch that completes, and a
            // suspicion is kept.
            tokio::select! {
                answer = stream.answers.message() => {
                    (silent, suspicion) = (None, None);
                    match answer {
                        Ok(Some(answer)) => {
                            if let Some(error) = self.accept(answer) {
                                return Ok(Some(error));
                            }
                        }
                        Ok(None) => return Ok(Some(self.judge(ended()))),
                        Err(status) => return Ok(Some(self.judge(status.into()))),
                    }
                },
                () = self.receive(), if !self.closed => {}
                () = until(lingering), if lingering.is_some() => self.linger_until = None,
                () = until(expires), if expires.is_some() => {
                    let why = "no answer within the delivery timeout";
                    let error = ClientError::new(ErrorKind::Transport { sent: true }, "DEADLINE_EXCEEDED", why);
                    return Ok(Some(self.judge(error)));
                }
                () = until(silent), if suspicion.is_none() && silent.is_some() => suspicion = self.suspect(suspect_after),
                is_superseded = asked(&mut suspicion), if suspicion.is_some() => {
                    (silent, suspicion) = (None, None);
                    if is_superseded {
                        let why = "the node does not answer, and another one leads now";
                        let error = ClientError::new(ErrorKind::Transport { sent: true }, "CONNECTION_LOST", why);
                        return Ok(Some(self.judge(error)));
                    }
                }
            }
        }
    }

    /// Asks another node whether the one that is silent should be given up.
    fn suspect(&self, silence: Duration) -> Option<BoxFuture<'static, bool>> {
        let (resolver, route) = (self.client.resolver().clone(), self.route.clone()?);
        let target = Target::Leader(self.partition.clone());
        Some(Box::pin(async move { resolver.is_superseded(&target, &route, silence).await }))
    }

    fn judge(&mut self, error: ClientError) -> ClientError {
        match &self.route {
            Some(route) => self.attempts.judge(route, error),
            None => error,
        }
    }

    /// Puts everything on the stream that may be sent now. False: the stream takes no more.
    fn send_ready(&mut self, stream: &Stream) -> bool {
        loop {
            let ready = self.window.has_formed_request()
                || self.closed
                || self.linger_until.is_none_or(|until| until <= Instant::now())
                || self.window.has_full_request();
            if !ready {
                return true;
            }
            let Some(Next { records, expectation, sequence, trace }) = self.window.next() else { return true };
            let request = v1::ProduceRequest {
                partition: Some((&self.partition).into()),
                records,
                compression: v1::Compression::from(self.config.compression).into(),
                batch: Default::default(),
                producer: self.identity.map(|identity| v1::ProducerIdentity {
                    producer_id: identity.producer_id,
                    epoch: identity.epoch,
                    sequence,
                }),
                expectation,
                trace,
            };
            // Never full: the channel holds as many requests as may be in flight.
            if stream.requests.try_send(request).is_err() {
                return false;
            }
        }
    }

    /// Matches an answer to its request. An error means that the stream cannot be trusted further.
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
        let message = "the node sent an answer that belongs to no request";
        (!matched).then(|| ClientError::new(ErrorKind::Transport { sent: true }, "CONNECTION_LOST", message))
    }

    /// Waits before the next attempt and gives up what has expired. Nothing may be in flight.
    async fn pause(&mut self, error: &ClientError) -> Result<(), Stuck> {
        let Some(expires) = self.window.expires() else { return Ok(()) };
        let pause = match &self.route {
            Some(route) => timeout_at(expires, self.attempts.failed(route, error)).await.unwrap_or_default(),
            None => self.attempts.failed_nowhere(error),
        };
        tracing::debug!(%error, partition = %self.partition, pause_ms = pause.as_millis(), "sending again");
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

/// At this time; never for `None`.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// What the suspicion comes to; never without one.
async fn asked(suspicion: &mut Option<BoxFuture<'static, bool>>) -> bool {
    match suspicion {
        Some(suspicion) => suspicion.await,
        None => std::future::pending().await,
    }
}

fn ended() -> ClientError {
    ClientError::new(ErrorKind::Transport { sent: true }, "CONNECTION_LOST", "the node ended the stream")
}
