//! Connection slots of a port, limited in total and for each client address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::model::{ApiError, Reason};

/// The largest numbers of connections of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionLimits {
    /// Limit of all connections, after the name of its configuration field.
    pub(crate) all: (&'static str, usize),
    /// Limit of the connections from one address, after the name of its configuration field.
    pub(crate) per_address: (&'static str, usize),
}

/// All connection slots of a port. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct ConnectionSlots(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// A count is never 0: the entry is removed instead.
    by_address: HashMap<IpAddr, usize>,
}

/// The slot of one connection; released when dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    slots: ConnectionSlots,
    address: IpAddr,
}

/// Why there is no free slot.
#[derive(Debug)]
pub(super) struct TooMany {
    /// Value of the metric's label.
    pub(super) cause: &'static str,
    /// The error for the client.
    pub(super) error: ApiError,
}

impl ConnectionSlots {
    /// Takes a slot for a connection from `address`, under the current `limits`.
    ///
    /// # Errors
    /// TOO_MANY_CONNECTIONS when no slot is free.
    pub(super) fn take(&self, address: IpAddr, limits: &ConnectionLimits) -> Result<ConnectionSlot, TooMany> {
        let ConnectionLimits { all: (field, max), per_address: (address_field, per_address_max) } = *limits;
        // A dual-stack socket reports an IPv4 client as an IPv4-mapped IPv6 address: count both forms as one address.
        let address = address.to_canonical();
        let mut taken = self.0.lock();
        if taken.all >= max {
            return Err(too_many("connection_limit", field, "", max));
        }
        let of_address = taken.by_address.get(&address).copied().unwrap_or(0);
        if of_address >= per_address_max {
            return Err(too_many("address_limit", address_field, " from this address", per_address_max));
        }
        taken.all += 1;
        taken.by_address.insert(address, of_address + 1);
        drop(taken);
        Ok(ConnectionSlot { slots: self.clone(), address })
    }
}

fn too_many(cause: &'static str, field: &str, whose: &str, limit: usize) -> TooMany {
    let message = format!("{field}: {limit} connections{whose} are open: close some, or try again later");
    TooMany { cause, error: ApiError::new(Reason::TooManyConnections, message).with("limit", limit) }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut taken = self.slots.0.lock();
        taken.all -= 1;
        if let Some(count) = taken.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_have_every_slot_and_all_are_released() {
        let slots = ConnectionSlots::default();
        let limits = ConnectionLimits { all: ("all", 3), per_address: ("each", 2) };
        let [ann, ben]: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        let held =
            [slots.take(ann, &limits).unwrap(), slots.take("::ffff:10.0.0.1".parse().unwrap(), &limits).unwrap()];
        let refused = slots.take(ann, &limits).unwrap_err();
        assert_eq!((refused.cause, refused.error.value("limit")), ("address_limit", Some("2")));
        let other = slots.take(ben, &limits).unwrap();
        assert_eq!(slots.take(ben, &limits).unwrap_err().cause, "connection_limit");
        drop((held, other));
        assert!(slots.0.lock().by_address.is_empty());
        assert_eq!(slots.0.lock().all, 0);
    }
}
