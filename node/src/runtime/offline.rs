//! Changes to the data directory of a node that does not run: what only a person can decide.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chronicle_log::disk::RealDisk;
use chronicle_log::{LogError, Store, StoreConfig};
use uuid::Uuid;

use super::generation::StoredGeneration;
use super::join_cluster::JournalMemory;
use crate::membership::{Memory, Remembered};

/// Why the data directory was not changed.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// There is no data directory.
    #[error("{0:?} is not a data directory: it has no file FORMAT")]
    NotADataDirectory(PathBuf),
    /// It is in use or cannot be opened or written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The state of the membership cannot be read or written.
    #[error("the node's identity could not be stored or read: {0}")]
    Memory(#[from] std::io::Error),
    /// The node has no cluster: there is nothing to change.
    #[error("the node of this data directory is not a member of a cluster")]
    NoMember,
    /// The generation would not rise.
    #[error("generation: {asked}: must be above {stored}, the generation of the data directory")]
    NotRaised {
        /// The requested generation.
        asked: u64,
        /// The stored one.
        stored: u64,
    },
}

/// The member that a data directory belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryOwner {
    /// Its name; empty: a version before did not store it.
    pub name: String,
    /// UUID of the data directory.
    pub node_id: Uuid,
    /// Its cluster.
    pub cluster_id: Uuid,
    /// Generation of the data directory.
    pub generation: u64,
}

/// The data directory of a node that does not run.
pub struct OfflineDirectory {
    store: Arc<Store>,
    remembered: Remembered,
    owner: DirectoryOwner,
}

impl OfflineDirectory {
    /// Opens a data directory, with its lock.
    ///
    /// # Errors
    /// When it is in use, none, damaged, or of a node without a cluster.
    pub async fn open(dir: &Path) -> Result<Self, OfflineError> {
        // Opening the store would make one.
        if !dir.join("FORMAT").is_file() {
            return Err(OfflineError::NotADataDirectory(dir.to_owned()));
        }
        let store = Store::open(Arc::new(RealDisk), dir, StoreConfig::default())?;
        let remembered = JournalMemory(store.clone()).load().await?;
        let Some(own) = &remembered.own_cluster else {
            store.close()?;
            return Err(OfflineError::NoMember);
        };
        let owner = DirectoryOwner {
            name: remembered.name.clone(),
            node_id: store.node_id(),
            cluster_id: own.identity.cluster_id,
            generation: StoredGeneration::load(&store).number,
        };
        Ok(Self { store, remembered, owner })
    }

    /// Returns the member that the data directory belongs to.
    pub fn owner(&self) -> &DirectoryOwner {
        &self.owner
    }

    /// Raises the generation beyond those that the cluster has seen, so that the cluster accepts a directory that was rolled back:
    /// to `number`, by default the time in milliseconds since the Unix epoch. Returns the new generation, which is durable.
    ///
    /// What the node has acknowledged and the directory lacks is not brought back by that: only for a cluster that is restored as
    /// a whole.
    ///
    /// # Errors
    /// When the generation would not rise, or the directory cannot be written.
    pub async fn accept_restored(&self, number: Option<u64>) -> Result<u64, OfflineError> {
        let asked = number.unwrap_or_else(StoredGeneration::number_beyond_all);
        let stored = self.owner.generation;
        if asked <= stored {
            return Err(OfflineError::NotRaised { asked, stored });
        }
        StoredGeneration::given(asked).save(&self.store).await?;
        Ok(asked)
    }

    /// Gives the member another name from its next start on.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub async fn rename(&self, name: &str) -> Result<(), OfflineError> {
        let renamed = Remembered { name: name.to_owned(), ..self.remembered.clone() };
        Ok(JournalMemory(self.store.clone()).store(renamed).await?)
    }

    /// Closes the data directory cleanly.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn close(self) -> Result<(), OfflineError> {
        Ok(self.store.close()?)
    }
}
