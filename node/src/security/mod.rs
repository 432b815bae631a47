//! Who is at the other end of a connection: TLS, certificates, and what they say.
//!
//! Promise: who is not proved by a certificate of the cluster's CA is anonymous to clients' APIs and nobody to peers. What a
//! principal may do is not decided here but in `broker/`.
//!
//! - `identity.rs`: the name that a certificate gives, and the rules that make a principal of it;
//! - `nodes.rs`: which nodes a certificate may speak for;
//! - `material.rs`: certificate, key and CAs, from files to configurations of TLS;
//! - `tls.rs`: what of it is in force, and handshakes; `handshake.rs`: how they end.
//!
//! Neighbours: `listeners/` accepts through it, `peers/` connects through it.

mod handshake;
mod identity;
mod material;
mod nodes;
#[cfg(test)]
mod tests;
mod tls;

pub use handshake::{HandshakeError, Outcome};
pub use identity::{
    ANONYMOUS, CertificateFacts, CertificateNames, Encryption, IdentityError, Principal, PrincipalRules,
};
pub use material::MaterialError;
pub use nodes::{NODE_URI, NodeClaim, NodeRules, PeerCertificate, is_server_name};
pub use tls::{NodeNames, Remote, Tls};
