//! The client that sent a request; in the extensions of every request on the data port, gRPC and HTTP.

use std::fmt;
use std::net::SocketAddr;

use super::budget::Budget;
use crate::identity::{ANONYMOUS, Principal};

/// The client at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Its authenticated principal; `None`: it sent no certificate, or the connection is plaintext.
    pub principal: Option<Principal>,
    /// Its address.
    pub address: SocketAddr,
    /// Budget of bytes in flight of its connection.
    pub(crate) share: Budget,
}

impl Caller {
    /// Returns an anonymous client at an address, without a limit of bytes.
    pub fn new(principal: Option<Principal>, address: SocketAddr) -> Self {
        Self { principal, address, share: Budget::unlimited() }
    }

    /// Returns the principal's name, or [`ANONYMOUS`].
    pub fn name(&self) -> &str {
        self.principal.as_ref().map_or(ANONYMOUS, Principal::as_str)
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name(), self.address)
    }
}
