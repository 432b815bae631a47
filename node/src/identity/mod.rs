//! Identities in certificates: principals of clients, and the nodes that a peer's certificate is valid for.
//!
//! Pure: a certificate that TLS has verified goes in, a name or an error comes out. What a principal may do is decided far above
//! (`broker/authorizer.rs`); how certificates are loaded and checked is in `security/`.
//!
//! Never names anything else of the node.

#[cfg(test)]
mod certificate_fuzz;
mod peer;
mod principal;

pub(crate) use peer::host_of;
pub use peer::{NODE_URI, NodeClaim, NodeRules, PeerCertificate, is_server_name};
pub use principal::{
    ANONYMOUS, CertificateFacts, CertificateNames, IdentityError, PortEncryption, Principal, PrincipalRules,
};

/// The principal of an access rule that means every client.
pub const ANYONE: &str = "*";
