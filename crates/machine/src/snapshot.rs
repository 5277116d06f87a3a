//! The whole machine as bytes: a versioned head, then the RAM pages that are not zero.
//!
//! A machine at power-on is saved without RAM, because configuration and payload tell it.

use std::sync::Arc;

use base::{PAGE_SIZE, RestoreError, Saved, restore_bytes, save_bytes};
use cpu::{Cpu, CpuState};
use mem::GuestMem;
use serde::{Deserialize, Serialize};

use crate::board::{Board, BoardState};
use crate::boot::BootPayload;
use crate::config::MachineConfig;
use crate::machine::{Machine, MachineError};

/// All state of a machine but its RAM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MachineState {
    cpu: CpuState,
    board: BoardState,
    boot_count: u64,
}

/// What a snapshot starts with.
#[derive(Serialize, Deserialize)]
struct Head {
    config: MachineConfig,
    payload: BootPayload,
    /// `None` at power-on.
    running: Option<Running>,
}

#[derive(Serialize, Deserialize)]
struct Running {
    state: MachineState,
    /// How many pages follow the head.
    page_count: u64,
}

impl Saved for Head {
    const KIND: &'static str = "machine";
    const VERSION: u16 = 2;
}

/// Why a snapshot was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The head or a device's state.
    #[error("the snapshot's state is not usable")]
    State(#[from] RestoreError),
    /// The pages.
    #[error("the snapshot's memory is not usable: {0}")]
    Pages(&'static str),
}

/// Bytes of a page in a snapshot: its index, then its content.
const PAGE_RECORD_BYTES: usize = 8 + PAGE_SIZE as usize;

impl Machine {
    /// The whole state as bytes.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let config = self.config.clone();
        let payload = BootPayload::clone(&self.payload);
        if self.pristine {
            return save_bytes(&Head { config, payload, running: None });
        }
        let touched = self.mem.marks().touched();
        let pages: Vec<u64> = touched.filter(|page| !self.mem.is_zero_page(*page)).collect();
        let page_count = pages.len() as u64;
        let running = Some(Running { state: self.state_but_ram(), page_count });
        let mut bytes = save_bytes(&Head { config, payload, running });
        bytes.reserve(pages.len() * PAGE_RECORD_BYTES);
        for page in pages {
            bytes.extend(page.to_le_bytes());
            bytes.extend(self.mem.page(page));
        }
        bytes
    }

    /// The machine that [`Machine::save`] saw.
    ///
    /// # Errors
    /// [`MachineError`]: the bytes are not trusted.
    pub fn restore(bytes: &[u8]) -> Result<Machine, MachineError> {
        let (head, pages) = restore_bytes::<Head>(bytes).map_err(SnapshotError::from)?;
        let Some(Running { state, page_count }) = head.running else {
            if !pages.is_empty() {
                return Err(SnapshotError::Pages("bytes behind a state at power-on").into());
            }
            let mut machine = Machine::new(head.config, head.payload)?;
            machine.begin_rolling_digest();
            return Ok(machine);
        };
        head.config.check()?;
        let mut cpu = Cpu::of_model(head.config.cpu);
        cpu.restore(&state.cpu).map_err(SnapshotError::from)?;
        let mut mem = GuestMem::new(head.config.ram_bytes)?;
        restore_pages(&mut mem, pages, page_count)?;
        let board = Board::restore(&head.config, &mem, state.board).map_err(SnapshotError::from)?;
        let mut machine = Machine {
            cpu,
            mem,
            board,
            config: head.config,
            payload: Arc::new(head.payload),
            boot_count: state.boot_count,
            pristine: false,
            engine: None,
        };
        machine.begin_rolling_digest();
        Ok(machine)
    }

    pub(crate) fn state_but_ram(&self) -> MachineState {
        MachineState {
            cpu: self.cpu.save(),
            board: self.board.state(),
            boot_count: self.boot_count,
        }
    }
}

fn restore_pages(mem: &mut GuestMem, bytes: &[u8], count: u64) -> Result<(), SnapshotError> {
    if bytes.len() as u64 != count.saturating_mul(PAGE_RECORD_BYTES as u64) {
        return Err(SnapshotError::Pages("it is not as long as its head says"));
    }
    let (records, _) = bytes.as_chunks::<PAGE_RECORD_BYTES>();
    for record in records {
        let (index, page) = record.split_first_chunk().expect("a record starts with its index");
        let index = u64::from_le_bytes(*index);
        let page = page.try_into().expect("a record ends with a page");
        if index >= mem.page_count() {
            return Err(SnapshotError::Pages("a page lies outside RAM"));
        }
        mem.set_page(index, page);
    }
    Ok(())
}
