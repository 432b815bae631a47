//! The task behind a producer: owns the window and the stream.

use std::sync::{Arc, OnceLock};

use chronicle_proto::v1;
use chronicle_proto::v1::produce_stream_response::Result as Answer;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::ProducerConfig;
use super::window::{Item, Limits, Stuck, Window};
use crate::client::Client;
use crate::error::{ClientError, ErrorKind};
use crate::record::Partition;
use crate::retry::Backoff;

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
    backoff: Backoff,
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
            backoff: Backoff::new(client.retry()),
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
        if self.config.idempotent && self.identity.is_none() {
            self.identity = Some(self.client.init_producer().await?);
        }
        let (requests, outgoing) = mpsc::channel(self.config.in_flight_max.max(1));
        let mut log = self.client.log();
        // Nothing is sent before the stream stands: a failure up to here leaves no outcome open.
        let opening = log.produce_stream(ReceiverStream::new(outgoing));
        match timeout(self.client.request_timeout(), opening).await {
            Ok(answer) => Ok(Stream { requests, answers: answer?.into_inner() }),
            Err(_) => {
                let why = "the stream did not open";
                Err(ClientError::new(ErrorKind::Transport { sent: false }, "DEADLINE_EXCEEDED", why))
            }
        }
    }

    /// Sends and receives on one stream until it breaks (the error) or is no longer needed (`None`).
    async fn drive(&mut self, stream: &mut Stream) -> Result<Option<ClientError>, Stuck> {
        loop {
            self.answer_flushes();
            if self.window.is_draining()
                && self.window.in_flight() == 0
                && let Some(error) = self.window.settle()?
            {
                self.pause(&error).await?;
            }
            if !self.send_ready(stream) {
                // The outgoing half is gone; the incoming half knows why.
                let lost = stream.answers.message().await.err().map_or_else(ended, ClientError::from);
                return Ok(Some(lost));
            }
            if self.window.is_empty() && self.closed {
                return Ok(None);
            }
            let lingering = self.linger_until.filter(|_| self.window.has_queued());
            let expires = self.window.expires();
            // All branches are cancellation-safe: an answer or a command is taken only by the branch that completes.
            tokio::select! {
                answer = stream.answers.message() => match answer {
                    Ok(Some(answer)) => {
                        if let Some(error) = self.accept(answer) {
                            return Ok(Some(error));
                        }
                    }
                    Ok(None) => return Ok(Some(ended())),
                    Err(status) => return Ok(Some(status.into())),
                },
                () = self.receive(), if !self.closed => {}
                () = until(lingering), if lingering.is_some() => self.linger_until = None,
                () = until(expires), if expires.is_some() => {
                    let why = "no answer within the delivery timeout";
                    return Ok(Some(ClientError::new(ErrorKind::Transport { sent: true }, "DEADLINE_EXCEEDED", why)));
                }
            }
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
            let Some((records, expectation, sequence)) = self.window.next() else { return true };
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
                self.backoff.reset();
                self.window.succeed(ok.base_offset)
            }
            Some(Answer::Error(error)) => self.window.fail(ClientError::from_stream(error)),
            None => false,
        };
        let message = "the node sent an answer that belongs to no request";
        (!matched).then(|| ClientError::new(ErrorKind::Transport { sent: true }, "CONNECTION_LOST", message))
    }

    /// Waits before the next attempt and gives up what has expired. Nothing may be in flight.
    async fn pause(&mut self, error: &ClientError) -> Result<(), Stuck> {
        if self.window.is_empty() {
            return Ok(());
        }
        let pause = self.backoff.pause();
        tracing::debug!(%error, partition = %self.partition, pause_ms = pause.as_millis(), "sending again");
        sleep(pause).await;
        self.window.expire(Instant::now(), Some(error))
    }
}

/// At this time; never for `None`.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn ended() -> ClientError {
    ClientError::new(ErrorKind::Transport { sent: true }, "CONNECTION_LOST", "the node ended the stream")
}
