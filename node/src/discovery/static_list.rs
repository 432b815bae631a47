//! The configured list, unchanged. The connecting code resolves names in it.

use futures::future::BoxFuture;

use super::{Discovery, DiscoveryError, distinct};

/// Always returns the same addresses.
#[derive(Debug)]
pub struct StaticDiscovery {
    addresses: Vec<String>,
}

impl StaticDiscovery {
    /// A list of `HOST:PORT`, in the order given; duplicates are dropped.
    pub fn new(addresses: impl IntoIterator<Item = String>) -> Self {
        Self { addresses: distinct(addresses) }
    }
}

impl Discovery for StaticDiscovery {
    fn lookup(&self) -> BoxFuture<'_, Result<Vec<String>, DiscoveryError>> {
        Box::pin(std::future::ready(Ok(self.addresses.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_configured_addresses_come_in_order_and_once() {
        let list = StaticDiscovery::new(["b:1", "a:1", "b:1"].map(String::from));
        assert_eq!(list.lookup().await.unwrap(), ["b:1", "a:1"]);
    }

    #[tokio::test]
    async fn more_addresses_than_the_bound_are_left_out() {
        let list = StaticDiscovery::new((0..5000).map(|port| format!("a:{port}")));
        assert_eq!(list.lookup().await.unwrap().len(), super::super::ADDRESSES_MAX);
    }
}
