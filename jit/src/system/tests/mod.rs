//! Small bare-metal programs, run to a HLT: what user-mode tests cannot reach.

mod delivery;
mod far;
mod modes;
mod msrs;
mod paging;
mod ports;
mod segments;
mod tasks;
mod traps;
mod virtual86;
