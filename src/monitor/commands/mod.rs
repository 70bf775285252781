//! The commands, by subject.

mod about;
mod backends;
mod block;
mod block_nodes;
mod block_work;
mod chars;
mod control;
mod descriptors;
mod devices;
mod dumps;
mod keys;
mod logging;
mod memory;
mod migration;
mod nbd;
mod network;
mod pci;
mod processors;
mod qom;
mod readable;
mod screen;
mod snapshots;
mod statistics;

use super::table::Command;
pub use migration::STATES as MIGRATION_STATES;

/// All of them.
pub static TABLES: &[&[Command]] = &[
    about::TABLE,
    control::TABLE,
    processors::TABLE,
    memory::TABLE,
    dumps::TABLE,
    block::TABLE,
    block_work::TABLE,
    block_nodes::TABLE,
    nbd::TABLE,
    snapshots::TABLE,
    screen::TABLE,
    network::TABLE,
    chars::TABLE,
    descriptors::TABLE,
    devices::TABLE,
    pci::TABLE,
    qom::TABLE,
    keys::TABLE,
    logging::TABLE,
    statistics::TABLE,
    readable::TABLE,
    migration::TABLE,
];
