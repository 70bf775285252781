//! A logical unit: a disk or a CD drive, with its medium.

use super::disk::{self, DiskState, Facts};
use super::optical::{self, Optical};
use super::{Answer, Identity, Sense};
use crate::services::Disk;
use crate::state::Inspector;
use crate::{trace, trace_event};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A unit's saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnitState {
    /// A disk.
    Disk(DiskState),
    /// A CD drive.
    Cd(Optical),
}

/// A logical unit.
pub struct Unit {
    identity: Identity,
    medium: Option<Arc<dyn Disk>>,
    state: UnitState,
}

fn fresh(identity: &Identity, medium: Option<&Arc<dyn Disk>>) -> UnitState {
    match identity.cd {
        true => UnitState::Cd(Optical::power_on(medium.is_some())),
        false => UnitState::Disk(DiskState::power_on(medium.is_some_and(|disk| disk.write_cache()))),
    }
}

impl Unit {
    /// A unit after power-on. A CD drive may be without a medium.
    pub fn new(identity: Identity, medium: Option<Arc<dyn Disk>>) -> Self {
        let state = fresh(&identity, medium.as_ref());
        Self { identity, medium, state }
    }

    /// As after power-on. The tray stays where it is only if nobody has opened it.
    pub fn reset(&mut self) {
        self.state = fresh(&self.identity, self.medium.as_ref());
    }

    /// What it says it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What its commands are about.
    pub fn medium(&self) -> Option<&Arc<dyn Disk>> {
        self.medium.as_ref()
    }

    /// Bytes of a block.
    pub fn block(&self) -> u64 {
        if self.identity.cd { optical::BLOCK } else { disk::BLOCK }
    }

    fn blocks(&self) -> u64 {
        self.medium.as_ref().map_or(0, |disk| disk.len() / self.block())
    }

    /// Carries a command out, or says what is left to be done for it.
    pub fn command(&mut self, cdb: &[u8]) -> Answer {
        trace_event!(trace::SCSI_COMMAND, "cdb {cdb:02x?}");
        let (blocks, identity) = (self.blocks(), &self.identity);
        match &mut self.state {
            UnitState::Cd(drive) => drive.command(cdb, &optical::Facts { blocks, identity }),
            UnitState::Disk(state) => state.command(cdb, &facts(blocks, self.medium.as_ref(), identity)),
        }
    }

    /// Goes on with a command that asked for a list of parameters, which is `list`.
    pub fn parameters(&mut self, cdb: &[u8], list: &[u8]) -> Answer {
        let (blocks, identity) = (self.blocks(), &self.identity);
        match &mut self.state {
            UnitState::Cd(drive) => drive.parameters(cdb, list),
            UnitState::Disk(state) => state.parameters(cdb, list, &facts(blocks, self.medium.as_ref(), identity)),
        }
    }

    /// The command failed after it had begun.
    pub fn failed(&mut self, sense: Sense) {
        match &mut self.state {
            UnitState::Cd(drive) => drive.failed(sense),
            UnitState::Disk(state) => state.failed(sense),
        }
    }

    /// The host got the sense together with the failure.
    pub fn told(&mut self) {
        self.failed(Sense::default());
    }

    /// What the next command is refused for.
    pub fn attend(&mut self, sense: Sense) {
        match &mut self.state {
            UnitState::Cd(drive) => drive.attend(sense),
            UnitState::Disk(state) => state.attend(sense),
        }
    }

    /// The CD drive that this may be.
    pub fn drive(&mut self) -> Option<&mut Optical> {
        match &mut self.state {
            UnitState::Cd(drive) => Some(drive),
            UnitState::Disk(_) => None,
        }
    }

    /// Puts another medium into a CD drive, or takes it out and leaves the tray open. `false`: this is no such drive.
    pub fn change_medium(&mut self, medium: Option<Arc<dyn Disk>>) -> bool {
        let UnitState::Cd(drive) = &mut self.state else { return false };
        match medium {
            Some(_) => drive.medium_changed(true),
            None => drive.medium_taken(),
        }
        self.medium = medium;
        true
    }

    /// The state.
    pub fn save(&self) -> UnitState {
        self.state.clone()
    }

    /// Whether a state could be one of this unit.
    pub fn fits(&self, state: &UnitState) -> bool {
        matches!(state, UnitState::Cd(_)) == self.identity.cd
    }

    /// Takes over a state that fits.
    pub fn restore(&mut self, state: UnitState) {
        self.state = state;
    }

    /// Shows the state.
    pub fn inspect(&self, out: &mut Inspector) {
        out.field("model", format_args!("{} {}", self.identity.vendor, self.identity.product));
        out.field("serial", &self.identity.serial);
        out.field("blocks", self.blocks());
        if let UnitState::Cd(drive) = &self.state {
            out.field("tray", if drive.tray_open() { "open" } else { "closed" });
            out.field("locked", drive.locked());
        }
    }
}

fn facts<'a>(blocks: u64, medium: Option<&Arc<dyn Disk>>, identity: &'a Identity) -> Facts<'a> {
    Facts {
        blocks,
        read_only: medium.is_none_or(|disk| disk.read_only()),
        write_cache: medium.is_some_and(|disk| disk.write_cache()),
        identity,
    }
}

#[cfg(test)]
#[path = "unit_tests.rs"]
mod tests;
