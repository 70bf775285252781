//! Words of a command line, whichever program reads it: values, lists of keys, and the nearest known name.

pub mod keyval;
pub mod suggest;
pub mod values;
