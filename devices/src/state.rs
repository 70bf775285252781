//! Saving, restoring and looking at device state.

use serde::{Serialize, de::DeserializeOwned};

/// A device's saved state: self-describing, so that versions can be told apart.
pub type StateValue = serde_json::Value;

/// Why a saved state was refused.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The state is not of the form the device saves.
    #[error("state of {device} does not fit: {reason}")]
    Malformed {
        /// Device name.
        device: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// Serialises a state structure.
pub fn to_state<T: Serialize>(value: &T) -> StateValue {
    serde_json::to_value(value).expect("device state structures serialise: plain data with string keys")
}

/// Deserialises a state structure of `device`.
pub fn from_state<T: DeserializeOwned>(device: &'static str, value: &StateValue) -> Result<T, StateError> {
    T::deserialize(value).map_err(|e| StateError::Malformed { device, reason: e.to_string() })
}

/// Collects a device's visible state as indented `key = value` lines.
#[derive(Default)]
pub struct Inspector {
    lines: Vec<String>,
    depth: usize,
}

impl Inspector {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// One field.
    pub fn field(&mut self, key: &str, value: impl std::fmt::Display) {
        self.lines.push(format!("{:indent$}{key} = {value}", "", indent = self.depth * 2));
    }

    /// A group of fields under a heading.
    pub fn group(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        self.lines.push(format!("{:indent$}{name}", "", indent = self.depth * 2));
        self.depth += 1;
        fill(self);
        self.depth -= 1;
    }

    /// All lines so far.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }
}
