//! What a partition derives from its committed entries: the next offset and the producer table.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::producers::ProducerTable;
use crate::raft::{Committed, Machine};

/// How far a partition has been applied: what readers may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Last applied raft index; `None`: nothing yet.
    pub index: Option<u64>,
    /// Offset after the last applied record: the high watermark.
    pub next_offset: u64,
}

/// The part of the state that the rest of the partition reads.
pub(super) struct Shared {
    /// Applied progress; readers wait on it.
    pub progress: watch::Sender<Progress>,
    /// Producers as of the applied progress.
    pub producers: Mutex<ProducerTable>,
}

/// State machine of a partition group.
pub(crate) struct PartitionMachine {
    shared: Arc<Shared>,
    next_offset: u64,
    producers_max: usize,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    next_offset: u64,
    producers: ProducerTable,
}

impl PartitionMachine {
    /// The machine of a log without a checkpoint, which starts at `next_offset`.
    pub(super) fn new(next_offset: u64, producers_max: usize) -> (Self, Arc<Shared>) {
        let shared = Arc::new(Shared {
            progress: watch::Sender::new(Progress { index: None, next_offset }),
            producers: Mutex::new(ProducerTable::new(producers_max)),
        });
        (Self { shared: shared.clone(), next_offset, producers_max }, shared)
    }
}

impl Machine for PartitionMachine {
    fn apply(&mut self, entry: &Committed<'_>) -> Result<Bytes, String> {
        let Some(data) = entry.data else { return Ok(Bytes::new()) };
        let mut producers = self.shared.producers.lock();
        let mut records = 0u64;
        for batch in chronicle_records::split(&data.payload) {
            let (header, _) = batch.map_err(|e| e.to_string())?;
            let offset = self.next_offset + records;
            if header.base_offset != offset as i64 {
                return Err(format!("a batch has base offset {}, the log is at {offset}", header.base_offset));
            }
            producers.appended(&header, header.base_offset);
            records += header.record_count as u64;
        }
        if records != u64::from(data.record_count) {
            return Err(format!("its batches hold {records} records, the entry says {}", data.record_count));
        }
        self.next_offset += records;
        Ok(Bytes::new())
    }

    fn applied(&mut self, index: u64) {
        self.shared.progress.send_replace(Progress { index: Some(index), next_offset: self.next_offset });
    }

    fn save(&self) -> Vec<u8> {
        let saved = Saved { next_offset: self.next_offset, producers: self.shared.producers.lock().clone() };
        serde_json::to_vec(&saved).expect("a producer table has integer keys and plain values")
    }

    fn restore(&mut self, bytes: &[u8], applied_index: Option<u64>) -> Result<(), String> {
        let mut saved: Saved = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        saved.producers.set_max(self.producers_max);
        self.next_offset = saved.next_offset;
        *self.shared.producers.lock() = saved.producers;
        self.shared.progress.send_replace(Progress { index: applied_index, next_offset: saved.next_offset });
        Ok(())
    }
}
