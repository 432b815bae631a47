//! `chronicle.v1.Log`: appends and reads.

use std::sync::Arc;

use chronicle_proto::v1 as proto;
use chronicle_proto::v1::log_server::Log;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::observe::observe;
use super::{caller, consume, convert, produce_stream, status};
use crate::broker::Route;
use crate::listeners::context::Context;
use crate::security::budget::Ticket;
use crate::telemetry::{ApiOperation, Listener, traces};

pub(super) struct LogService {
    context: Context,
}

impl LogService {
    pub(super) fn new(context: Context) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl Log for LogService {
    async fn produce(
        &self,
        request: Request<proto::ProduceRequest>,
    ) -> Result<Response<proto::ProduceResponse>, Status> {
        observe(&self.context, ApiOperation::Produce, async {
            let caller = caller(&request)?;
            let request = convert::produce(request.into_inner())?;
            let produced = self.context.produce(Listener::Grpc, &caller, request, Route::Local).await?;
            Ok(Response::new(convert::produced(produced)))
        })
        .await
    }

    async fn consume(
        &self,
        request: Request<proto::ConsumeRequest>,
    ) -> Result<Response<proto::ConsumeResponse>, Status> {
        observe(&self.context, ApiOperation::Consume, async {
            let caller = caller(&request)?;
            let (fetch, shape) = convert::consume(request.into_inner())?;
            let (fetched, hold) = self.context.fetch(&caller, fetch, Route::Local).await?;
            let mut response = Response::new(consume::response(&self.context, fetched, shape, None)?);
            // Released from the budget when the response has been sent.
            response.extensions_mut().insert(Arc::new(hold));
            Ok(response)
        })
        .await
    }

    type ProduceStreamStream = BoxStream<'static, Result<proto::ProduceStreamResponse, Status>>;

    async fn produce_stream(
        &self,
        request: Request<Streaming<proto::ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStreamStream>, Status> {
        let ticket = request.extensions().get::<Arc<Ticket>>().cloned();
        let parent = traces::parent_of(request.metadata().as_ref());
        let caller = caller(&request).map_err(|error| status::status(&error))?;
        let ticket = ticket.unwrap_or_else(|| caller.share.ticket());
        Ok(Response::new(produce_stream::answers(self.context.clone(), caller, ticket, request.into_inner(), parent)))
    }

    type ConsumeStreamStream = BoxStream<'static, Result<proto::ConsumeResponse, Status>>;

    async fn consume_stream(
        &self,
        request: Request<proto::ConsumeStreamRequest>,
    ) -> Result<Response<Self::ConsumeStreamStream>, Status> {
        let asked = caller(&request).and_then(|caller| Ok((caller, convert::consume_stream(request.into_inner())?)));
        match asked {
            Ok((caller, (fetch, shape, until))) => {
                Ok(Response::new(consume::follow(self.context.clone(), caller, fetch, shape, until)))
            }
            Err(error) => observe(&self.context, ApiOperation::ConsumeStream, std::future::ready(Err(error))).await,
        }
    }

    async fn init_producer(
        &self,
        request: Request<proto::InitProducerRequest>,
    ) -> Result<Response<proto::InitProducerResponse>, Status> {
        observe(&self.context, ApiOperation::InitProducer, async {
            let caller = caller(&request)?;
            let (producer_id, epoch) = self.context.broker.for_caller(&caller).init_producer().await?;
            Ok(Response::new(proto::InitProducerResponse { producer_id, epoch: epoch.into() }))
        })
        .await
    }

    async fn list_offsets(
        &self,
        request: Request<proto::ListOffsetsRequest>,
    ) -> Result<Response<proto::ListOffsetsResponse>, Status> {
        observe(&self.context, ApiOperation::Offsets, async {
            let caller = caller(&request)?;
            let proto::ListOffsetsRequest { partition, timestamp_ms } = request.into_inner();
            let (target, time) = (convert::target(partition)?, convert::time(timestamp_ms)?);
            let offsets = self.context.broker.for_caller(&caller).offsets(&target, time, Route::Local).await?;
            Ok(Response::new(convert::offsets(offsets)))
        })
        .await
    }
}
