//! Placeholder until the engine lands.

/// Errors of the engine.
#[derive(Debug, Clone, thiserror::Error)]
#[error("log error")]
pub struct LogError;
