//! QMP: the monitor for programs. JSON messages both ways, one command after the other, and events.

mod json;
pub mod schema;

use super::Facts;
use super::call::{After, Call, State};
use super::events::{Event, EventListener};
use super::fault::{Class, Fault};
use super::host::MonitorHost;
use super::table;
use super::types::check_members;
use crate::chardev::{CharPort, FocusListener};
use crate::cli;
use crate::events as traced;
use brolga_devices::services::{CharBackend, CharFrontend};
use brolga_devices::trace_event;
use json::{Piece, Splitter};
use serde_json::{Map, Value, json};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Bytes taken at a time.
const CHUNK: usize = 4096;

/// A monitor for programs on a character device. Commands run on the thread that brings input.
pub struct Qmp {
    backend: Arc<dyn CharBackend>,
    host: Weak<dyn MonitorHost>,
    facts: Facts,
    pretty: bool,
    /// Not held while a command runs.
    session: Mutex<Session>,
    /// Those that came with the last bytes, the first at the end.
    descriptors: Mutex<Vec<OwnedFd>>,
}

struct Session {
    splitter: Splitter,
    greeted: bool,
    /// Capabilities are settled: commands and events may come.
    ready: bool,
    /// Commands may come out of band.
    oob: bool,
    state: State,
}

impl Session {
    fn new() -> Self {
        Self { splitter: Splitter::new(), greeted: false, ready: false, oob: false, state: State::default() }
    }
}

/// A message that asks for a command.
struct Asked<'a> {
    command: &'a str,
    out_of_band: bool,
    arguments: Map<String, Value>,
}

impl Qmp {
    /// A monitor at `port`. It greets whoever connects, see [`FocusListener`].
    pub fn start(port: &CharPort, host: &Arc<dyn MonitorHost>, facts: Facts, pretty: bool) -> Arc<Self> {
        let this = Arc::new(Self {
            backend: port.backend(),
            host: Arc::downgrade(host),
            facts,
            pretty,
            session: Mutex::new(Session::new()),
            descriptors: Mutex::default(),
        });
        host.events().listen(Arc::downgrade(&this) as Weak<dyn EventListener>);
        port.connect(Arc::downgrade(&this) as Weak<dyn CharFrontend>);
        port.listen(Arc::downgrade(&this) as Weak<dyn FocusListener>);
        this
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, message: &Value) {
        let mut line = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        let written = match self.pretty {
            true => {
                serde::Serialize::serialize(message, &mut serde_json::Serializer::with_formatter(&mut line, formatter))
            }
            false => serde_json::to_writer(&mut line, message),
        };
        if let Err(error) = written {
            // Values with string keys always serialise.
            tracing::error!("QMP: {error}");
            return;
        }
        line.extend_from_slice(b"\r\n");
        self.backend.write(&line);
    }

    fn take(&self, piece: Piece) {
        let under_way = UnderWay::begin();
        let message = match piece {
            Piece::Broken(why) => return self.send(&json!({ "error": Fault::new(why).to_json() })),
            Piece::Message(message) => message,
        };
        let id = message.get("id").cloned();
        let (outcome, after) = match self.perform(&message) {
            Ok((answer, after)) => (("return", answer), after),
            Err(fault) => (("error", fault.to_json()), None),
        };
        let mut response = Map::new();
        response.insert(outcome.0.to_owned(), outcome.1);
        if let Some(id) = id {
            response.insert("id".to_owned(), id);
        }
        self.send(&Value::Object(response));
        drop(under_way);
        if let (Some(After::Quit), Some(host)) = (after, self.host.upgrade()) {
            host.control(super::Control::Quit);
        }
    }

    fn perform(&self, message: &Value) -> Result<(Value, Option<After>), Fault> {
        let (ready, oob) = {
            let session = self.session();
            (session.ready, session.oob)
        };
        let asked = asked(message, oob)?;
        if asked.command == "qmp_capabilities" {
            return self.negotiate(ready, &asked.arguments).map(|()| (json!({}), None));
        }
        if !ready {
            let why = "Expecting capabilities negotiation with 'qmp_capabilities'";
            return Err(Fault::of(Class::CommandNotFound, why));
        }
        trace_event!(traced::QMP, "{} {}", asked.command, Value::Object(asked.arguments.clone()));
        let Some(command) = table::of_qmp(asked.command) else {
            let why = format!("The command {} has not been found", asked.command);
            return Err(Fault::of(Class::CommandNotFound, why));
        };
        if asked.out_of_band {
            return Err(Fault::new(format!("The command {} does not support OOB", asked.command)));
        }
        check_arguments(command, &asked.arguments)?;
        let Some(host) = self.host.upgrade() else { return Err("the machine is ending".into()) };
        let mut state = self.session().state.clone();
        let (facts, args) = (&self.facts, asked.arguments);
        let descriptor = || self.descriptors.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut call =
            Call { host: &*host, facts, state: &mut state, args, people: false, descriptor: &descriptor, after: None };
        let outcome = (command.run)(&mut call);
        let after = call.after;
        self.session().state = state;
        let answer = outcome?;
        Ok((if command.returns.is_some() { answer } else { json!({}) }, after))
    }

    fn negotiate(&self, ready: bool, arguments: &Map<String, Value>) -> Result<(), Fault> {
        if ready {
            let why = "Capabilities negotiation is already complete, command ignored";
            return Err(Fault::of(Class::CommandNotFound, why));
        }
        check_members(|| schema::CAPABILITIES.members.iter(), "", arguments)?;
        let enable = arguments.get("enable").and_then(Value::as_array);
        let mut session = self.session();
        session.oob = enable.is_some_and(|list| !list.is_empty());
        session.ready = true;
        Ok(())
    }

    fn greet(&self) {
        self.send(&json!({ "QMP": { "version": version(), "capabilities": ["oob"] } }));
    }
}

/// Commands that are under way.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// A command that is under way, until it is answered.
struct UnderWay;

impl UnderWay {
    fn begin() -> Self {
        COUNT.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        COUNT.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits a moment for commands that are under way: a guest may end while `cont` is still to be answered.
pub fn settle() {
    const PATIENCE: Duration = Duration::from_millis(500);
    let start = Instant::now();
    while COUNT.load(Ordering::SeqCst) != 0 && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// QEMU's version, whose protocol this is, and ours.
pub fn version() -> Value {
    let mut numbers = cli::QEMU_VERSION.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let (major, minor, micro) = (next(), next(), next());
    json!({
        "qemu": { "major": major, "minor": minor, "micro": micro },
        "package": format!("Brolga {}", cli::VERSION),
    })
}

/// Checks arguments against the table.
pub(super) fn check_arguments(command: &table::Command, arguments: &Map<String, Value>) -> Result<(), Fault> {
    let of_qmp = || command.args.iter().filter(|arg| schema::in_qmp(arg)).map(|arg| &arg.member);
    if command.open {
        let known = arguments.iter().filter(|(key, _)| of_qmp().any(|member| member.name == key.as_str()));
        return check_members(of_qmp, "", &known.map(|(key, value)| (key.clone(), value.clone())).collect());
    }
    check_members(of_qmp, "", arguments)
}

/// What `message` asks for; errors are worded as QEMU's are.
fn asked(message: &Value, oob: bool) -> Result<Asked<'_>, Fault> {
    let Value::Object(members) = message else { return Err("QMP input must be a JSON object".into()) };
    let mut found: Option<(&str, bool)> = None;
    let mut arguments = None;
    for (name, value) in members {
        match name.as_str() {
            "execute" | "exec-oob" if name == "execute" || oob => {
                let Value::String(command) = value else {
                    return Err(Fault::new(format!("QMP input member '{name}' must be a string")));
                };
                if found.is_some() {
                    return Err("QMP input member 'exec-oob' clashes with 'execute'".into());
                }
                found = Some((command, name == "exec-oob"));
            }
            "arguments" => match value {
                Value::Object(map) => arguments = Some(map),
                _ => return Err("QMP input member 'arguments' must be an object".into()),
            },
            "id" => {}
            _ => return Err(Fault::new(format!("QMP input member '{name}' is unexpected"))),
        }
    }
    let Some((command, out_of_band)) = found else { return Err("QMP input lacks member 'execute'".into()) };
    Ok(Asked { command, out_of_band, arguments: arguments.cloned().unwrap_or_default() })
}

impl FocusListener for Qmp {
    fn opened(&self) {
        *self.session() = Session::new();
        self.focused();
    }

    fn focused(&self) {
        let greeted = std::mem::replace(&mut self.session().greeted, true);
        if !greeted {
            self.greet();
        }
    }
}

impl EventListener for Qmp {
    fn event(&self, event: &Event) {
        if !self.session().ready {
            return;
        }
        // The machine does not wait for a client that reads nothing.
        if self.backend.room() == 0 {
            tracing::warn!("a QMP client reads nothing: it misses events");
            return;
        }
        self.send(&event.to_json());
    }
}

impl CharFrontend for Qmp {
    fn swaps(&self) -> bool {
        // What was begun would go on with somebody else.
        false
    }

    fn can_receive(&self) -> usize {
        // Who does not read the answers waits with more commands.
        if self.backend.room() == 0 { 0 } else { CHUNK }
    }

    fn receive(&self, bytes: &[u8]) {
        for &byte in bytes {
            let piece = self.session().splitter.push(byte);
            if let Some(piece) = piece {
                self.take(piece);
            }
        }
    }

    fn receive_descriptors(&self, mut descriptors: Vec<OwnedFd>) {
        descriptors.reverse();
        *self.descriptors.lock().unwrap_or_else(PoisonError::into_inner) = descriptors;
    }

    fn output_ready(&self) {
        self.backend.input_ready();
    }
}
