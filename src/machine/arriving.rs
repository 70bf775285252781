//! A machine arrives from another process (`-incoming`, `migrate-incoming`): memory first, then all else; then the disks are
//! this process's, and the machine goes on as it did there.

use super::{Machine, Request};
use crate::migration::{Address, Channel, Door, Status};
use crate::monitor::{Fault, RunState};
use crate::snapshot::{Arrival, Arriving};
use std::io::BufReader;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;

/// Bytes read at once.
const PIECE: usize = 1 << 18;

impl Machine {
    /// Opens the door for a machine. If it does not arrive whole, this process ends (`exits`), or waits for the next one.
    pub(super) fn begin_to_arrive(&self, address: &Address, exits: bool) -> Result<(), Fault> {
        if self.config.incoming.is_none() {
            return Err("'-incoming' was not specified on the command line".into());
        }
        let started = || Fault::new("The incoming migration has already been started");
        if self.state() != RunState::InMigrate {
            return Err(started());
        }
        self.migration.begin(false, self.ram.size()).ok_or_else(started)?;
        // Nothing writes memory but what arrives.
        self.parts.netdevs.all().iter().for_each(|(_, netdev)| netdev.hold());
        let door = Door::at(address).inspect_err(|why| self.migration.fail(why))?;
        self.migration.note_door(door.local());
        let machine = self.this.get().and_then(Weak::upgrade).ok_or("the machine is ending")?;
        let arrive = move || machine.arrive(door, exits);
        thread::Builder::new().name("incoming".into()).spawn(arrive).map(drop).map_err(|error| {
            self.migration.fail(&error.to_string());
            Fault::new(format!("no thread for it: {error}"))
        })
    }

    /// The whole of it, on a thread of its own.
    fn arrive(&self, door: Door, exits: bool) {
        let Err(why) = self.try_to_arrive(door) else { return };
        self.migration.fail(&why);
        if exits {
            // Fails only if the machine ends anyway.
            let _ = self.requests.send(Request::Lost(why));
        } else {
            eprintln!("{}: incoming migration: {why}", self.program);
        }
    }

    fn try_to_arrive(&self, door: Door) -> Result<(), String> {
        let mut channel = door.wait().map_err(|e| format!("nobody can come: {}", crate::cli::os_reason(&e)))?;
        self.migration.set(Status::Active);
        let arriving = Arriving::new(BufReader::with_capacity(PIECE, &mut channel)).map_err(|e| e.to_string())?;
        if let Some(why) = self.makeup().differs(&arriving.makeup) {
            return Err(why);
        }
        let terms = arriving.terms;
        let arrival = arriving.receive(self.ram.file(), self.ram.size()).map_err(|e| e.to_string())?;
        let answers = terms.answer.then_some(channel);
        self.on_control(move |machine| machine.take_over(arrival, answers)).ok_or("the machine is ending")?
    }

    /// Becomes the machine that has arrived. On the thread that runs the machine.
    fn take_over(&self, arrival: Arrival, answers: Option<Channel>) -> Result<(), String> {
        let Arrival { saved, state } = arrival;
        let numbers: Vec<u32> = self.vcpus.numbered().iter().map(|(number, _)| *number).collect();
        if saved.processors.iter().map(|(number, _)| *number).ne(numbers) {
            return Err("its processors are not those of this machine".to_owned());
        }
        let mut processors = self.vcpus.iter().zip(&saved.processors);
        processors.try_for_each(|(vcpu, (_, state))| vcpu.fits(state)).map_err(|e| e.to_string())?;
        self.disks.activate()?;
        let saved = Arc::new(saved);
        self.on_io(move |machine| machine.become_saved(&saved)).ok_or("the machine is ending")??;
        // The other side lets go of it for good now, or has done so.
        if let Some(mut channel) = answers {
            channel.say_arrived();
        }
        match RunState::of_name(&state) {
            Some(RunState::Running) if self.starts.load(Ordering::SeqCst) => self.resume(),
            Some(other @ (RunState::Prelaunch | RunState::Debug | RunState::IoError | RunState::Shutdown)) => {
                self.set_state(other);
            }
            Some(other @ (RunState::Panicked | RunState::Watchdog)) => self.set_state(other),
            _ => self.set_state(RunState::Paused),
        }
        self.migration.set(Status::Completed);
        Ok(())
    }
}
