//! Looking into segment files without opening a store.
