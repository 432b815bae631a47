//! Outcomes of TLS handshakes, as a small set of values for metrics.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// How a handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeOutcome {
    /// It succeeded.
    Ok,
    /// It did not complete in time.
    Timeout,
    /// The received bytes are not TLS.
    Plaintext,
    /// No version, cipher or protocol in common.
    Incompatible,
    /// A certificate is required and the other side sent none.
    NoCertificate,
    /// The certificate is expired or not valid yet.
    Expired,
    /// The certificate is of another CA, or invalid for another reason.
    BadCertificate,
    /// The certificate is valid and has no identity.
    Nameless,
    /// The other side rejected this node's certificate, or ended the handshake with another alert.
    Refused,
    /// The connection was lost, or another failure.
    Failed,
}

impl HandshakeOutcome {
    /// Every outcome, in the order of the variants.
    pub const ALL: [HandshakeOutcome; 10] = [
        HandshakeOutcome::Ok,
        HandshakeOutcome::Timeout,
        HandshakeOutcome::Plaintext,
        HandshakeOutcome::Incompatible,
        HandshakeOutcome::NoCertificate,
        HandshakeOutcome::Expired,
        HandshakeOutcome::BadCertificate,
        HandshakeOutcome::Nameless,
        HandshakeOutcome::Refused,
        HandshakeOutcome::Failed,
    ];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            HandshakeOutcome::Ok => "ok",
            HandshakeOutcome::Timeout => "timeout",
            HandshakeOutcome::Plaintext => "plaintext",
            HandshakeOutcome::Incompatible => "incompatible",
            HandshakeOutcome::NoCertificate => "no_certificate",
            HandshakeOutcome::Expired => "expired",
            HandshakeOutcome::BadCertificate => "bad_certificate",
            HandshakeOutcome::Nameless => "nameless",
            HandshakeOutcome::Refused => "refused",
            HandshakeOutcome::Failed => "failed",
        }
    }
}

/// A handshake that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct HandshakeError {
    /// The outcome, for metrics.
    pub outcome: HandshakeOutcome,
    /// Human-readable reason.
    pub why: String,
}

impl HandshakeError {
    pub(super) fn new(outcome: HandshakeOutcome, why: String) -> Self {
        Self { outcome, why }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        Self { outcome: inner.map_or(HandshakeOutcome::Failed, outcome), why: error.to_string() }
    }
}

fn outcome(error: &Error) -> HandshakeOutcome {
    use CertificateError as Wrong;
    match error {
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => HandshakeOutcome::Plaintext,
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => HandshakeOutcome::Incompatible,
        Error::AlertReceived(AlertDescription::NoApplicationProtocol | AlertDescription::ProtocolVersion) => {
            HandshakeOutcome::Incompatible
        }
        Error::NoCertificatesPresented => HandshakeOutcome::NoCertificate,
        Error::InvalidCertificate(
            Wrong::Expired | Wrong::ExpiredContext { .. } | Wrong::NotValidYet | Wrong::NotValidYetContext { .. },
        ) => HandshakeOutcome::Expired,
        Error::InvalidCertificate(_) => HandshakeOutcome::BadCertificate,
        Error::AlertReceived(_) => HandshakeOutcome::Refused,
        _ => HandshakeOutcome::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_listed_in_their_order() {
        for (at, outcome) in HandshakeOutcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, at);
        }
    }
}
