//! Addresses of nodes, `HOST:PORT`.
//!
//! Promise: an address that [`parse_address`] accepts can be dialled: it has a host, a port other than 0, and nothing else.
//!
//! Names only `error.rs`. Every file that handles addresses is above this one.

use std::sync::Arc;

use tonic::transport::Uri;

use crate::error::ClientError;

/// `HOST:PORT` of a node.
pub(crate) type Address = Arc<str>;

/// The URI of a `HOST:PORT`.
///
/// # Errors
/// `INVALID_ARGUMENT` when the text is anything else.
pub(crate) fn parse_address(address: &str) -> Result<Uri, ClientError> {
    let invalid = || ClientError::invalid("server", address, "must be HOST:PORT");
    let uri: Uri = format!("http://{address}").parse().map_err(|_| invalid())?;
    if uri.host().is_none_or(str::is_empty) || uri.port_u16().is_none_or(|port| port == 0) || uri.path() != "/" {
        return Err(invalid());
    }
    Ok(uri)
}
