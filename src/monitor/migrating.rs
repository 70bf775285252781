//! What the monitor needs from the machine to have it leave for another process, or arrive from one.

use super::fault::Fault;
use crate::migration::{Address, Migration};
use std::sync::Arc;

/// The machine as those see it who have it move.
pub trait Migrating: Send + Sync {
    /// What is settled about migration, and how it goes.
    fn migration(&self) -> &Arc<Migration>;

    /// Begins to leave for `address`.
    fn migrate(&self, _address: Address) -> Result<(), Fault> {
        Err(Fault::new("this machine has no state that could move"))
    }

    /// Begins to wait for a machine that comes from `address`; this process ends if that fails and `exits` says so.
    fn migrate_incoming(&self, _address: &Address, _exits: bool) -> Result<(), Fault> {
        Err("'-incoming' was not specified on the command line".into())
    }
}
