//! Why a command failed: a class that programs tell apart, and a sentence for people.

use serde_json::{Value, json};

/// QMP's classes of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// All others.
    GenericError,
    /// There is no such command, or not now.
    CommandNotFound,
    /// The device cannot do it in its present state, or there is none of the kind.
    DeviceNotActive,
    /// There is no device of that name.
    DeviceNotFound,
}

/// A failed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// For programs.
    pub class: Class,
    /// For people, one sentence.
    pub desc: String,
}

impl Fault {
    /// Of no particular class.
    pub fn new(desc: impl Into<String>) -> Self {
        Self { class: Class::GenericError, desc: desc.into() }
    }

    /// Of `class`.
    pub fn of(class: Class, desc: impl Into<String>) -> Self {
        Self { class, desc: desc.into() }
    }

    /// As QMP tells it.
    pub fn to_json(&self) -> Value {
        json!({ "class": format!("{:?}", self.class), "desc": self.desc })
    }
}

impl From<String> for Fault {
    fn from(desc: String) -> Self {
        Self::new(desc)
    }
}

impl From<&str> for Fault {
    fn from(desc: &str) -> Self {
        Self::new(desc)
    }
}
