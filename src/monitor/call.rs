//! What a command works with while it runs.

use super::Facts;
use super::examine::Format;
use super::fault::Fault;
use super::host::MonitorHost;
use brolga_jit::Registers;
use serde_json::{Map, Value};
use std::os::fd::OwnedFd;

/// What a session remembers between commands.
#[derive(Clone, Default)]
pub struct State {
    /// `cpu N`.
    pub cpu: u32,
    /// The last `x` format.
    pub format: Format,
    /// The lines typed so far.
    pub history: Vec<String>,
}

/// A command's surroundings and arguments. The arguments have been checked against the table.
pub struct Call<'a> {
    /// The machine.
    pub host: &'a dyn MonitorHost,
    /// What is known without asking it.
    pub facts: &'a Facts,
    /// The session's own.
    pub state: &'a mut State,
    /// The arguments by name.
    pub args: Map<String, Value>,
    /// HMP asks: the answer is shown to people.
    pub people: bool,
    /// A descriptor that came with the command.
    pub descriptor: &'a dyn Fn() -> Option<OwnedFd>,
    /// What is to happen once the answer is on its way.
    pub after: Option<After>,
}

/// What happens once the answer is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The process ends.
    Quit,
}

impl Call<'_> {
    /// The argument `name`, if it was given.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.args.get(name)
    }

    /// A string that was given.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_str()
    }

    /// A string that has to be given.
    pub fn word(&self, name: &str) -> Result<&str, Fault> {
        self.text(name).ok_or_else(|| missing(name))
    }

    /// A number that was given; negative ones in two's complement.
    pub fn number(&self, name: &str) -> Option<u64> {
        let value = self.get(name)?;
        value.as_u64().or_else(|| value.as_i64().map(|n| n as u64))
    }

    /// A number that has to be given.
    pub fn needed(&self, name: &str) -> Result<u64, Fault> {
        self.number(name).ok_or_else(|| missing(name))
    }

    /// A switch; off if not given.
    pub fn switch(&self, name: &str) -> bool {
        self.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    /// The processor that the session looks at.
    pub fn registers(&self) -> Option<Registers> {
        self.host.registers(self.state.cpu)
    }
}

fn missing(name: &str) -> Fault {
    Fault::new(format!("Parameter '{name}' is missing"))
}
