//! The table of commands: names, arguments with their types, answers, handlers. HMP and QMP, help and introspection all come
//! from it.

use super::call::Call;
use super::commands;
use super::fault::Fault;
use super::types::{Member, Ty};
use serde_json::Value;

/// An answer, or why there is none.
pub type Outcome = Result<Value, Fault>;

/// How an argument is written in HMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// QMP only.
    Absent,
    /// A word, or quoted text.
    Word,
    /// What is left of the line.
    Rest,
    /// What is left of the line, which programs say in another way.
    HmpRest,
    /// A switch of one letter, such as `-a`.
    Flag(char),
    /// A switch of one letter and the word behind it, such as `-f png`.
    Choice(char),
    /// A number or expression: `0x1000`, `$rip+4`.
    Number,
    /// The same, to the end of the line.
    LastNumber,
    /// Mebibytes.
    Mebibytes,
    /// Mebibytes, or with a suffix what it says.
    Size,
    /// `on` or `off`.
    Switch,
    /// `/COUNT FORMAT SIZE` right after the command.
    Format,
}

/// An argument.
#[derive(Debug)]
pub struct Arg {
    /// Name and type.
    pub member: Member,
    /// How HMP has it.
    pub place: Place,
}

/// An argument that must be given.
pub const fn arg(name: &'static str, ty: Ty, place: Place) -> Arg {
    Arg { member: Member { name, ty, optional: false }, place }
}

/// An argument that may be left out.
pub const fn opt(name: &'static str, ty: Ty, place: Place) -> Arg {
    Arg { member: Member { name, ty, optional: true }, place }
}

/// A command.
pub struct Command {
    /// QMP's name, if QMP has it.
    pub qmp: Option<&'static str>,
    /// HMP's names, the usual one first; subjects of `info` begin with `info `.
    pub hmp: &'static [&'static str],
    /// The arguments in HMP's order.
    pub args: &'static [Arg],
    /// Programs may give more arguments than these; the handler looks at them.
    pub open: bool,
    /// What the answer is; nothing if none.
    pub returns: Option<Ty>,
    /// What it does, for `help`.
    pub help: &'static str,
    /// The handler.
    pub run: fn(&mut Call<'_>) -> Outcome,
    /// Shows an answer to people.
    pub show: fn(&Value) -> String,
}

/// Shows text as it is, and nothing else.
fn plain(answer: &Value) -> String {
    answer.as_str().map_or_else(String::new, str::to_owned)
}

impl Command {
    /// A command that nobody can call yet.
    const fn new(help: &'static str, run: fn(&mut Call<'_>) -> Outcome) -> Self {
        Self { qmp: None, hmp: &[], args: &[], open: false, returns: None, help, run, show: plain }
    }

    /// For people only.
    pub const fn hmp(names: &'static [&'static str], help: &'static str, run: fn(&mut Call<'_>) -> Outcome) -> Self {
        Self { hmp: names, ..Self::new(help, run) }
    }

    /// For programs only.
    pub const fn qmp(name: &'static str, help: &'static str, run: fn(&mut Call<'_>) -> Outcome) -> Self {
        Self { qmp: Some(name), ..Self::new(help, run) }
    }

    /// For both.
    pub const fn both(
        qmp: &'static str,
        hmp: &'static [&'static str],
        help: &'static str,
        run: fn(&mut Call<'_>) -> Outcome,
    ) -> Self {
        Self { qmp: Some(qmp), hmp, ..Self::new(help, run) }
    }

    /// With these arguments.
    pub const fn args(mut self, args: &'static [Arg]) -> Self {
        self.args = args;
        self
    }

    /// With more arguments than those.
    pub const fn open(mut self) -> Self {
        self.open = true;
        self
    }

    /// With an answer.
    pub const fn returns(mut self, ty: Ty) -> Self {
        self.returns = Some(ty);
        self
    }

    /// Whose answer people see like this.
    pub const fn show(mut self, show: fn(&Value) -> String) -> Self {
        self.show = show;
        self
    }

    /// Whether it is called `name` in HMP.
    pub fn is(&self, name: &str) -> bool {
        self.hmp.contains(&name)
    }
}

/// All commands.
pub fn all() -> impl Iterator<Item = &'static Command> + Clone {
    commands::TABLES.iter().flat_map(|table| table.iter())
}

/// The command that QMP calls `name`.
pub fn of_qmp(name: &str) -> Option<&'static Command> {
    all().find(|command| command.qmp == Some(name))
}

/// The command that HMP calls `name`.
pub fn of_hmp(name: &str) -> Option<&'static Command> {
    all().find(|command| command.is(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_everything_is_explained() {
        let (mut qmp, mut hmp) = (HashSet::new(), HashSet::new());
        for command in all() {
            assert!(command.qmp.is_some() || !command.hmp.is_empty());
            assert!(command.qmp.is_none_or(|name| qmp.insert(name)), "{:?} twice", command.qmp);
            assert!(command.hmp.iter().all(|name| hmp.insert(*name)), "{:?} twice", command.hmp);
            assert!(!command.help.is_empty());
        }
        assert!(qmp.len() > 40 && hmp.len() > 40);
    }

    #[test]
    fn arguments_can_be_told_apart() {
        for command in all().filter(|command| !command.hmp.is_empty()) {
            let words: Vec<&Arg> = command
                .args
                .iter()
                .filter(|arg| !matches!(arg.place, Place::Absent | Place::Flag(_) | Place::Choice(_) | Place::Format))
                .collect();
            let rest =
                words.iter().position(|arg| matches!(arg.place, Place::Rest | Place::HmpRest | Place::LastNumber));
            assert!(rest.is_none_or(|at| at + 1 == words.len()), "{:?}", command.hmp);
            let first_optional = words.iter().position(|arg| arg.member.optional).unwrap_or(words.len());
            assert!(words[first_optional..].iter().all(|arg| arg.member.optional), "{:?}", command.hmp);
        }
    }
}
