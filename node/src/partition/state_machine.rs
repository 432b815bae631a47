//! State machine of a partition: derives the next offset, the producer table, and the topic's view if it has one, from committed
//! entries.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use chronicle_log::Log;
use chronicle_records::{ProducerLimits, ProducerTable};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::views::{self, View};
use crate::raft::{CommittedEntry, Machine};

/// Progress of applying a partition's entries; readers may read up to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Last applied raft index; `None`: no entry was applied yet.
    pub index: Option<u64>,
    /// Offset after the last applied record: the high watermark.
    pub next_offset: u64,
}

/// The part of the state that the rest of the partition reads.
pub(super) struct AppliedState {
    /// Progress; readers wait on it.
    pub progress: watch::Sender<Progress>,
    /// Producers as of the applied progress. Its times are those of [`Self::now_ms`].
    pub producers: Mutex<ProducerTable>,
    opened: Instant,
    /// The view as of the applied progress; `None`: the topic has none.
    pub view: Option<Mutex<Box<dyn View>>>,
}

impl AppliedState {
    /// The clock of the producer table: milliseconds since the partition was opened here.
    pub(super) fn now_ms(&self) -> u64 {
        self.opened.elapsed().as_millis() as u64
    }
}

/// State machine of a partition group.
pub(crate) struct PartitionMachine {
    log: Arc<Log>,
    shared: Arc<AppliedState>,
    next_offset: u64,
    producer_limits: ProducerLimits,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    next_offset: u64,
    producers: ProducerTable,
    /// The view's state in base64. Absent: the partition had no view when the checkpoint was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    view: Option<String>,
}

impl PartitionMachine {
    /// The state machine of a log without a checkpoint, with an empty view or none.
    pub(super) fn new(
        log: Arc<Log>,
        producer_limits: ProducerLimits,
        view: Option<Box<dyn View>>,
    ) -> (Self, Arc<AppliedState>) {
        let next_offset = log.position().start_offset;
        let shared = Arc::new(AppliedState {
            progress: watch::Sender::new(Progress { index: None, next_offset }),
            producers: Mutex::new(ProducerTable::new(producer_limits)),
            opened: Instant::now(),
            view: view.map(Mutex::new),
        });
        (Self { log, shared: shared.clone(), next_offset, producer_limits }, shared)
    }

    /// Restores the view as of a checkpoint.
    fn restore_view(&self, saved: &Saved, applied_index: Option<u64>) -> Result<(), String> {
        let Some(view) = &self.shared.view else { return Ok(()) };
        let mut view = view.lock();
        let restored = match (&saved.view, applied_index) {
            (Some(text), _) => {
                let bytes = BASE64.decode(text).map_err(|e| format!("view: {e}"));
                bytes.and_then(|bytes| view.restore(&bytes).map_err(|e| format!("view: {e}")))
            }
            (None, Some(last)) => {
                views::rebuild(&mut **view, &self.log, saved.next_offset, last).map_err(|e| format!("view: {e}"))
            }
            (None, None) => {
                view.clear();
                Ok(())
            }
        };
        if restored.is_err() {
            view.clear();
        }
        restored
    }
}

impl Machine for PartitionMachine {
    fn apply(&mut self, entry: &CommittedEntry<'_>) -> Result<Bytes, String> {
        let Some(data) = entry.data else { return Ok(Bytes::new()) };
        let now_ms = self.shared.now_ms();
        let mut producers = self.shared.producers.lock();
        let mut view = self.shared.view.as_ref().map(|view| view.lock());
        let mut records = 0u64;
        for batch in chronicle_records::split(&data.payload) {
            let (header, bytes) = batch.map_err(|e| e.to_string())?;
            let offset = self.next_offset + records;
            if header.base_offset != offset as i64 {
                return Err(format!("batch: base offset {}: must be {offset}", header.base_offset));
            }
            producers.appended(&header, header.base_offset, now_ms);
            if let Some(view) = &mut view {
                views::apply_batch(&mut ***view, &bytes)?;
            }
            records += header.record_count as u64;
        }
        if records != u64::from(data.record_count) {
            return Err(format!(
                "batches: {records} records: must be {}, the record count of the entry",
                data.record_count
            ));
        }
        self.next_offset += records;
        Ok(Bytes::new())
    }

    fn applied(&mut self, index: u64) {
        self.shared.progress.send_replace(Progress { index: Some(index), next_offset: self.next_offset });
    }

    fn save(&self) -> Vec<u8> {
        let saved = Saved {
            next_offset: self.next_offset,
            producers: self.shared.producers.lock().clone(),
            view: self.shared.view.as_ref().map(|view| BASE64.encode(view.lock().save())),
        };
        serde_json::to_vec(&saved).expect("a producer table has integer keys and plain values")
    }

    fn restore(&mut self, bytes: &[u8], applied_index: Option<u64>) -> Result<(), String> {
        let mut saved: Saved = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        self.restore_view(&saved, applied_index)?;
        saved.producers.resume(self.producer_limits, self.shared.now_ms());
        self.next_offset = saved.next_offset;
        *self.shared.producers.lock() = saved.producers;
        self.shared.progress.send_replace(Progress { index: applied_index, next_offset: saved.next_offset });
        Ok(())
    }
}
