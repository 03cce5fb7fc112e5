//! What a batch asks for, checked and cut into the tasks that the forward pass hands out.

use super::attention::MAX_QUERIES;
use crate::backend::slot_mapping::{RowSlot, SlotMapping};
use crate::backend::{BackendError, Batch};
use crate::kv::CacheGeometry;
use crate::model::ModelSpec;

/// Neighbouring rows of one sequence that attend together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowTile {
    /// Index into the batch's sequences.
    pub(crate) sequence: usize,
    /// First row in the batch.
    pub(crate) row: usize,
    pub(crate) rows: usize,
    /// Position of the first row.
    pub(crate) position: u32,
}

/// The plan of one batch. Its memory is kept from batch to batch.
pub(crate) struct Plan {
    slots: SlotMapping,
    pub(crate) tiles: Vec<RowTile>,
}

/// Most rows of a tile whose queries come from `group` heads each.
fn tile_rows(group: usize) -> usize {
    (MAX_QUERIES / group).max(1)
}

impl Plan {
    pub(crate) fn new(max_rows: usize, cache: &CacheGeometry) -> Plan {
        Plan { slots: SlotMapping::new(max_rows, cache), tiles: Vec::with_capacity(max_rows) }
    }

    /// Each row's position.
    pub(crate) fn positions(&self) -> &[u32] {
        &self.slots.positions
    }

    /// Where each row's key and value go in a group of the cache.
    pub(crate) fn rows(&self, group: usize) -> &[RowSlot] {
        self.slots.rows(group)
    }

    /// Checks everything that the kernels rely on, then plans.
    pub(crate) fn make(
        &mut self,
        batch: &Batch<'_>,
        spec: &ModelSpec,
        cache: &CacheGeometry,
    ) -> Result<(), BackendError> {
        self.tiles.clear();
        self.slots.make(batch, spec, cache)?;
        let most = tile_rows(spec.group_size());
        for (index, sequence) in batch.sequences.iter().enumerate() {
            let rows = &sequence.rows;
            for row in rows.clone().step_by(most) {
                let position = sequence.start + (row - rows.start) as u32;
                self.tiles.push(RowTile { sequence: index, row, rows: most.min(rows.end - row), position });
            }
        }
        Ok(())
    }
}
