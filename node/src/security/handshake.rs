//! How a handshake ends, in a few words that metrics can carry.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// How a handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeded.
    Ok,
    /// Not in time.
    Timeout,
    /// What came is not TLS.
    Plaintext,
    /// No version, cipher or protocol in common.
    Incompatible,
    /// A certificate is needed and none was shown.
    NoCertificate,
    /// The certificate is outside its time.
    Expired,
    /// The certificate is of another CA, or wrong in another way.
    BadCertificate,
    /// The certificate is good and names nobody.
    Nameless,
    /// The other side does not accept this node's certificate, or gave up for another reason of its own.
    Refused,
    /// The connection broke, or something else.
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
    /// In a word.
    pub outcome: Outcome,
    /// For people.
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
