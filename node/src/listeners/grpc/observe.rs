//! Runs a call, counts it, and converts its error to a status. Every call uses it.

use tonic::Status;

use super::status;
use crate::listeners::context::Context;
use crate::model::ApiError;
use crate::telemetry::{ApiOperation, Listener};

/// Runs one request, counts it, and converts its error to a status.
pub(super) async fn observe<T>(
    context: &Context,
    operation: ApiOperation,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, Status> {
    context.observe(Listener::Grpc, operation, work).await.map_err(|error| status::status(&error))
}
