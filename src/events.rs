//! Trace events of the program itself, beside those of devices ([`brolga_devices::trace`]).

use brolga_devices::trace::Event;

/// The machine starts, stops or is reset.
pub static RUN_STATE: Event = Event::new("runstate_set", "the machine goes from one state to another");
/// A command of people's monitor.
pub static HMP: Event = Event::new("handle_hmp_command", "a command line comes to a monitor for people");
/// A command of programs' monitor.
pub static QMP: Event = Event::new("handle_qmp_command", "a command comes to a monitor for programs");
/// Bytes for a host end.
pub static CHAR_WRITE: Event = Event::new("chardev_write", "bytes are written to a host end of a character device");
/// A drive's request.
pub static BLOCK: Event = Event::new("block_request", "a drive is asked to read, write, discard or flush");

/// All of them.
pub static ALL: &[&Event] = &[&RUN_STATE, &HMP, &QMP, &CHAR_WRITE, &BLOCK];
