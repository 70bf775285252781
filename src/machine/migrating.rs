//! The machine leaves for another process (`migrate`): memory goes while the guest runs, and once what changes can follow in
//! the time that a guest may stand, the guest stops, the disks are let go of, and the rest goes. Until the last byte is out (with
//! `return-path`: until the other side has answered) this machine can go on, and does if anything fails.

use super::Machine;
use crate::migration::{Address, Capability, Channel, Control, Parameter, Sender, Status};
use crate::monitor::{Fault, RunState};
use crate::snapshot::{Makeup, MemoryCopy, StreamError, Terms, Writer, depart, set_out};
use std::hash::{BuildHasher, Hasher};
use std::io::BufWriter;
use std::sync::{Arc, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that are collected before they are sent.
const PIECE: usize = 1 << 18;
/// How often a machine that waits for `migrate-continue` looks.
const LOOK: Duration = Duration::from_millis(20);

/// Where a stream goes.
type Out = Writer<BufWriter<Sender>>;

/// A machine on its way.
struct Leaving {
    out: Out,
    memory: MemoryCopy,
    makeup: Makeup,
    control: Arc<Control>,
}

impl Machine {
    /// Begins to leave; what comes of it is told by `query-migrate` and events.
    pub(super) fn begin_to_leave(&self, address: Address) -> Result<(), Fault> {
        match self.state() {
            RunState::InMigrate => return Err("Guest is waiting for an incoming migration".into()),
            RunState::PostMigrate => {
                return Err("Can't migrate the vm that was paused due to previous migration".into());
            }
            _ => {}
        }
        if let Some(name) = self.jobs.busy(None) {
            return Err(Fault::new(format!("a job works on '{name}': cancel it, or wait for its end")));
        }
        if let Some(why) = self.disks.keeps() {
            return Err(Fault::new(why));
        }
        let machine = self.this.get().and_then(Weak::upgrade).ok_or("the machine is ending")?;
        let control = self.migration.begin(true, self.ram.size());
        let control = control.ok_or("There's a migration process in progress")?;
        let leave = move || machine.leave(&address, &control);
        thread::Builder::new().name("migration".into()).spawn(leave).map(drop).map_err(|error| {
            self.migration.fail(&error.to_string());
            Fault::new(format!("no thread for it: {error}"))
        })
    }

    /// The whole of it, on a thread of its own.
    fn leave(&self, address: &Address, control: &Arc<Control>) {
        // What the machine did before it was stopped to leave, once it is.
        let mut before = None;
        let gone = self.try_to_leave(address, control, &mut before);
        let over = gone.and_then(|()| {
            let left = self.on_control(|machine| {
                machine.set_state(RunState::PostMigrate);
                machine.migration.set(Status::Completed);
            });
            left.ok_or_else(|| "the machine is ending".to_owned())
        });
        let Err(why) = over else { return };
        if let Some(before) = before {
            // `None`: the machine is ending.
            let _ = self.on_control(move |machine| machine.stay(before));
        }
        if !control.cancelled() {
            eprintln!("{}: migrate: {why}", self.program);
        }
        self.migration.fail(&why);
    }

    fn try_to_leave(
        &self,
        address: &Address,
        control: &Arc<Control>,
        before: &mut Option<RunState>,
    ) -> Result<(), String> {
        let channel = Channel::to(address)?;
        let terms = Terms { answer: channel.answers && self.migration.settings().has(Capability::ReturnPath) };
        self.migration.set(Status::Active);
        let mut leaving = self.set_out(channel, terms, control).map_err(|e| told(&e))?;
        self.send_memory(&mut leaving)?;
        *before = self.on_control(Self::stop_to_leave);
        if before.is_none() {
            return Err("the machine is ending".to_owned());
        }
        self.wait_to_go_on(control)?;
        let mut channel =
            self.on_control(move |machine| machine.send_rest(leaving)).ok_or("the machine is ending")??;
        if terms.answer {
            channel.answer(control)?;
        }
        channel.close()
    }

    fn set_out(&self, channel: Channel, terms: Terms, control: &Arc<Control>) -> Result<Leaving, StreamError> {
        let sender = Sender::new(channel, control.clone())?;
        let mut out = Writer::new(BufWriter::with_capacity(PIECE, sender))?;
        let makeup = self.makeup();
        set_out(&mut out, &makeup, terms)?;
        let memory = MemoryCopy::new(self.ram.size(), std::hash::RandomState::new().build_hasher().finish());
        Ok(Leaving { out, memory, makeup, control: control.clone() })
    }

    /// Sends memory while the guest runs, until what it changes meanwhile can follow in the time that it may stand.
    fn send_memory(&self, leaving: &mut Leaving) -> Result<(), String> {
        let mut best = 0.0_f64;
        loop {
            let (sent, since) = (leaving.control.sent(), Instant::now());
            leaving.pass(self)?;
            let bytes = (leaving.control.sent() - sent) as f64;
            best = best.max(bytes / since.elapsed().as_secs_f64().max(1e-6));
            let limit = leaving.control.bytes_per_second();
            let rate = if limit == 0 { best } else { best.min(limit as f64) };
            let allowed = rate * self.migration.settings().number(Parameter::DowntimeLimit) as f64 / 1000.0;
            // A machine that stands changes nothing; of one that runs, the next pass sends about what this one did.
            if bytes <= allowed || self.state() != RunState::Running {
                return Ok(());
            }
        }
    }

    /// The machine stops; what it did before. On the thread that runs the machine, as what follows.
    fn stop_to_leave(&self) -> RunState {
        let before = self.state();
        self.migration.note_stop();
        match before {
            RunState::Running => self.stand_still(RunState::FinishMigrate),
            _ => {
                self.parts.netdevs.all().iter().for_each(|(_, netdev)| netdev.hold());
                self.set_state(RunState::FinishMigrate);
            }
        }
        *self.left_as.lock().unwrap_or_else(PoisonError::into_inner) = before;
        self.quiesce();
        before
    }

    /// Waits for `migrate-continue`, where users want to be asked.
    fn wait_to_go_on(&self, control: &Control) -> Result<(), String> {
        if !self.migration.settings().has(Capability::PauseBeforeSwitchover) {
            return Ok(());
        }
        self.migration.set(Status::PreSwitchover);
        while !control.may_go_on() {
            if control.cancelled() {
                return Err("it was cancelled".to_owned());
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Lets go of the disks, and sends what memory changed last and all that is not memory.
    fn send_rest(&self, leaving: Leaving) -> Result<Channel, String> {
        if self.makeup() != leaving.makeup {
            return Err("a device or a processor has come or gone meanwhile".to_owned());
        }
        if let Some(name) = self.disks.holds_back() {
            return Err(format!("a request of '{name}' failed and is still to be made again: use cont first"));
        }
        self.disks.deactivate()?;
        self.migration.set(Status::Device);
        self.on_io(move |machine| leaving.finish(machine)).ok_or("the machine is ending")?
    }

    /// The machine goes on here, as it did before.
    fn stay(&self, before: RunState) {
        if let Err(why) = self.disks.activate() {
            eprintln!("{}: {why}; the machine is paused, 'cont' in the monitor tries again", self.program);
            self.set_state(RunState::Paused);
            return;
        }
        match before {
            RunState::Running => self.resume(),
            other => self.set_state(other),
        }
    }

    /// Runs `work` on the thread that runs the machine, and waits for it. `None`: the machine is ending.
    pub(super) fn on_control<R: Send + 'static>(&self, work: impl FnOnce(&Machine) -> R + Send + 'static) -> Option<R> {
        let (done, wait) = crossbeam_channel::bounded(1);
        let work = move |machine: &Machine| {
            // Fails only if nobody waits.
            let _ = done.send(work(machine));
        };
        self.requests.send(super::Request::Do(Box::new(work))).ok()?;
        wait.recv().ok()
    }
}

fn told(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    format!("the state cannot be sent: {}", text.split(" (os error").next().unwrap_or(&text))
}

impl Leaving {
    /// One pass over memory.
    fn pass(&mut self, machine: &Machine) -> Result<(), String> {
        if self.control.cancelled() {
            return Err("it was cancelled".to_owned());
        }
        machine.migration.note_pass();
        let sent = self.memory.pass(machine.ram.file(), &mut self.out, &self.control.pass);
        // How long it takes is looked at.
        sent.and_then(|_| self.out.flush()).map_err(|e| told(&e))
    }

    /// The last of it. On the I/O thread; the machine stands.
    fn finish(mut self, machine: &Machine) -> Result<Channel, String> {
        let _closed = machine.parts.input.close();
        self.pass(machine)?;
        let state = machine.left_as.lock().unwrap_or_else(PoisonError::into_inner).name();
        let saved = machine.take_state().map_err(|e| told(&e))?;
        let out = depart(self.out, &saved, state).map_err(|e| told(&e))?;
        let sender = out.into_inner().map_err(|e| told(e.error()))?;
        Ok(sender.into_channel())
    }
}
