//! Who a request came from: in the extensions of every request of the data port, gRPC and HTTP alike.

use std::fmt;
use std::net::SocketAddr;

use super::budget::Budget;
use crate::identity::{ANONYMOUS, Principal};

/// The client at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who it proved to be; `None`: it has shown no certificate, or the connection is not encrypted.
    pub principal: Option<Principal>,
    /// Where it comes from.
    pub address: SocketAddr,
    /// What its connection may have in flight.
    pub(crate) share: Budget,
}

impl Caller {
    /// Somebody at an address, without a limit of bytes.
    pub fn new(principal: Option<Principal>, address: SocketAddr) -> Self {
        Self { principal, address, share: Budget::unlimited() }
    }

    /// The principal's name, or [`ANONYMOUS`].
    pub fn name(&self) -> &str {
        self.principal.as_ref().map_or(ANONYMOUS, Principal::as_str)
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name(), self.address)
    }
}
