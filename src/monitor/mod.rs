//! The monitor: commands that people type to look at and steer the machine.
mod host;

pub use host::{Control, MonitorHost, RunState, Topic};
