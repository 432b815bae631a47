//! `chronicle.v1.Node`: the log filter of this node, and its diagnostics for support.

use std::time::Duration;

use bytes::Bytes;
use chronicle_proto::v1 as proto;
use chronicle_proto::v1::node_server::Node;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tonic::{Request, Response, Status};

use super::observe::observe;
use super::{caller, diagnostics};
use crate::listeners::context::Context;
use crate::model::{ApiError, Reason};
use crate::telemetry::ApiOperation;
use crate::telemetry::logging::{self, FilterInForce, LogControl};

/// Largest part of a file, in bytes.
const PART_BYTES: usize = 256 << 10;
/// Longest time, in milliseconds, after which a filter is reverted automatically: a day.
const LASTS_MS_MAX: u64 = 24 * 60 * 60 * 1000;

pub(super) struct NodeService {
    context: Context,
}

impl NodeService {
    pub(super) fn new(context: Context) -> Self {
        Self { context }
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn get_log_filter(
        &self,
        request: Request<proto::GetLogFilterRequest>,
    ) -> Result<Response<proto::LogFilter>, Status> {
        observe(&self.context, ApiOperation::Diagnostics, async {
            self.context.broker.for_caller(&caller(&request)?).may_see_log_filter().await?;
            Ok(Response::new(in_force(control()?.in_force())))
        })
        .await
    }

    async fn set_log_filter(
        &self,
        request: Request<proto::SetLogFilterRequest>,
    ) -> Result<Response<proto::LogFilter>, Status> {
        observe(&self.context, ApiOperation::Diagnostics, async {
            let caller = caller(&request)?;
            let proto::SetLogFilterRequest { filter, lasts_ms } = request.into_inner();
            if lasts_ms > LASTS_MS_MAX {
                return Err(ApiError::invalid("lasts_ms", lasts_ms, &format!("must be at most {LASTS_MS_MAX}")));
            }
            let lasts = (lasts_ms > 0).then(|| Duration::from_millis(lasts_ms));
            let shown: String = filter.chars().take(200).collect();
            let broker = self.context.broker.for_caller(&caller);
            let set = broker.set_log_filter(&shown, || {
                let set = control()?.set(&filter, lasts);
                set.map_err(|error| ApiError::invalid("filter", format!("{shown:?}"), &error.to_string()))
            });
            Ok(Response::new(in_force(set.await?)))
        })
        .await
    }

    type GetDiagnosticsStream = BoxStream<'static, Result<proto::DiagnosticsPart, Status>>;

    async fn get_diagnostics(
        &self,
        request: Request<proto::GetDiagnosticsRequest>,
    ) -> Result<Response<Self::GetDiagnosticsStream>, Status> {
        observe(&self.context, ApiOperation::Diagnostics, async {
            self.context.broker.for_caller(&caller(&request)?).may_diagnose().await?;
            let log_bytes_max = match request.into_inner().log_bytes_max {
                0 => usize::MAX,
                bytes => usize::try_from(bytes).unwrap_or(usize::MAX),
            };
            let files = diagnostics::files(&self.context.broker, &self.context.metrics, log_bytes_max).await;
            // An empty file has one empty part.
            let parts = files.into_iter().flat_map(|file| {
                let mut rest = Bytes::from(file.contents);
                let mut parts = vec![rest.split_to(rest.len().min(PART_BYTES))];
                while !rest.is_empty() {
                    parts.push(rest.split_to(rest.len().min(PART_BYTES)));
                }
                parts.into_iter().map(move |data| Ok(proto::DiagnosticsPart { file: file.name.to_owned(), data }))
            });
            Ok(Response::new(stream::iter(parts).boxed()))
        })
        .await
    }
}

/// Returns the control of this process's log.
///
/// # Errors
/// UNAVAILABLE when the node did not set up the log of this process.
fn control() -> Result<LogControl, ApiError> {
    logging::control().ok_or_else(|| {
        ApiError::new(Reason::Unavailable, "log: not set up by the node: the filter cannot be read or changed")
    })
}

fn in_force(filter: FilterInForce) -> proto::LogFilter {
    proto::LogFilter {
        filter: filter.filter,
        configured: filter.configured,
        remaining_ms: filter.remaining.map_or(0, |left| (left.as_millis() as u64).max(1)),
    }
}
