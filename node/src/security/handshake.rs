//! Outcomes of TLS handshakes, as a small set of values for metrics.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// How a handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
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

impl Outcome {
    /// Every outcome, in the order of the variants.
    pub const ALL: [Outcome; 10] = [
        Outcome::Ok,
        Outcome::Timeout,
        Outcome::Plaintext,
        Outcome::Incompatible,
        Outcome::NoCertificate,
        Outcome::Expired,
        Outcome::BadCertificate,
        Outcome::Nameless,
        Outcome::Refused,
        Outcome::Failed,
    ];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Timeout => "timeout",
            Outcome::Plaintext => "plaintext",
            Outcome::Incompatible => "incompatible",
            Outcome::NoCertificate => "no_certificate",
            Outcome::Expired => "expired",
            Outcome::BadCertificate => "bad_certificate",
            Outcome::Nameless => "nameless",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
        }
    }
}

/// A handshake that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct HandshakeError {
    /// The outcome, for metrics.
    pub outcome: Outcome,
    /// Human-readable reason.
    pub why: String,
}

impl HandshakeError {
    pub(super) fn new(outcome: Outcome, why: String) -> Self {
        Self { outcome, why }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        Self { outcome: inner.map_or(Outcome::Failed, outcome), why: error.to_string() }
    }
}

fn outcome(error: &Error) -> Outcome {
    use CertificateError as Wrong;
    match error {
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => Outcome::Plaintext,
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Outcome::Incompatible,
        Error::AlertReceived(AlertDescription::NoApplicationProtocol | AlertDescription::ProtocolVersion) => {
            Outcome::Incompatible
        }
        Error::NoCertificatesPresented => Outcome::NoCertificate,
        Error::InvalidCertificate(
            Wrong::Expired | Wrong::ExpiredContext { .. } | Wrong::NotValidYet | Wrong::NotValidYetContext { .. },
        ) => Outcome::Expired,
        Error::InvalidCertificate(_) => Outcome::BadCertificate,
        Error::AlertReceived(_) => Outcome::Refused,
        _ => Outcome::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_listed_in_their_order() {
        for (at, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, at);
        }
    }
}
