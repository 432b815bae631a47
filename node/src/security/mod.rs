//! Who is at the other end of a connection: TLS, certificates, and what they say.
//!
//! Promise: who is not proved by a certificate of the cluster's CA is anonymous to clients' APIs and nobody to peers. What a
//! principal may do is not decided here but in `broker/`.
//!
//! - [`identity`](Principal): the name that a certificate gives.

mod identity;

pub use identity::{ANONYMOUS, CertificateFacts, CertificateNames, IdentityError, Principal, PrincipalRules};
