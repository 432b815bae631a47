//! The source of random numbers of a store, which a simulation can replace. Imports nothing of the crate.

use std::fmt;

use uuid::Uuid;

/// Source of the secrets that segments begin with.
pub trait Entropy: fmt::Debug + Send + Sync + 'static {
    /// Eight bytes that no client can guess, not all zero.
    fn secret(&self) -> [u8; 8];
}

/// The operating system's generator.
#[derive(Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn secret(&self) -> [u8; 8] {
        loop {
            #[expect(clippy::disallowed_methods, reason = "the real entropy: everything else takes it from the trait")]
            let random = Uuid::new_v4().into_bytes();
            // The bytes of a random UUID that are random completely.
            let [a, b, c, d, .., e, f, g, h] = random;
            let secret = [a, b, c, d, e, f, g, h];
            if secret != [0; 8] {
                return secret;
            }
        }
    }
}
