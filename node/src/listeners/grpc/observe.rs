//! What every call does: run, be counted, have its error turned into a status.

use tonic::Status;

use super::status;
use crate::listeners::context::Context;
use crate::model::ApiError;
use crate::telemetry::{Listener, Operation};

/// Runs one request, counts it, and turns its error into a status.
pub(super) async fn observe<T>(
    context: &Context,
    operation: Operation,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, Status> {
    context.observe(Listener::Grpc, operation, work).await.map_err(|error| status::status(&error))
}
