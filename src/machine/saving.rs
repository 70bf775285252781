//! The machine's state kept in its disks, and taken from there: `savevm`, `loadvm`, and what QMP has for them.

use super::Machine;
use super::disks::snapshots::{Keeper, StateView, StateWriter};
use crate::monitor::{Kept, RunState, SnapshotAction};
use crate::snapshot::{Makeup, SavedClock, SavedMachine, StreamError, Writer, load_memory, save_memory};
use brolga::block::qcow2::{MachineState, SnapshotInfo};
use brolga_devices::services::Clock;
use brolga_jit::cpuid::Dynamic;
use crossbeam_channel::bounded;
use std::io::{BufReader, BufWriter};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

/// Bytes moved to and from an image at once.
const PIECE: usize = 1 << 20;
/// Leaves of CPUID that tell models apart: features, extended features, states, AMD's features.
const LEAVES: [(u32, u32); 6] = [(1, 0), (7, 0), (7, 1), (0xd, 0), (0xd, 1), (0x8000_0001, 0)];

/// What is to be kept or brought back.
struct Chosen {
    /// Disks; the first one is to hold the machine's state.
    keepers: Vec<Keeper>,
}

impl Chosen {
    /// The disk with the machine's state.
    fn holder(&self) -> Option<&Keeper> {
        self.keepers.first()
    }

    /// All that have a snapshot of that name, with it.
    fn having(&self, tag: &str) -> Vec<(&Keeper, SnapshotInfo)> {
        self.keepers.iter().filter_map(|keeper| Some((keeper, keeper.find(tag)?))).collect()
    }

    /// The snapshot in each disk.
    fn all_with(&self, tag: &str) -> Result<Vec<(&Keeper, SnapshotInfo)>, String> {
        let having = self.having(tag);
        match having.len() == self.keepers.len() {
            true => Ok(having),
            false => Err(format!("Snapshot '{tag}' does not exist in one or more devices")),
        }
    }
}

impl Machine {
    /// Saves, restores or forgets. On the thread that runs the machine.
    pub(super) fn snapshot_here(&self, action: &SnapshotAction) -> Result<(), String> {
        if !self.disks.active() {
            return Err("the disks are another process's: the machine is to arrive, or has left".to_owned());
        }
        match action {
            SnapshotAction::Save { tag, replace, place } => self.save(tag, *replace, &self.choose(place)?),
            SnapshotAction::Load { tag, place } => self.load(tag, &self.choose(place)?),
            SnapshotAction::Delete { tag, place } => {
                let chosen = self.choose(place)?;
                let all = chosen.all_with(tag)?;
                all.iter().try_for_each(|(keeper, snapshot)| keeper.forget(snapshot))
            }
        }
    }

    fn choose(&self, place: &Kept) -> Result<Chosen, String> {
        let mut keepers = self.disks.keepers(place.devices.as_deref())?;
        if let Some(name) = &place.vmstate {
            let holder = self.disks.keeper(name)?;
            keepers.retain(|keeper| !keeper.is(&holder));
            keepers.insert(0, holder);
        }
        match keepers.is_empty() {
            true => Err("no block device can store vmstate for snapshot".to_owned()),
            false => Ok(Chosen { keepers }),
        }
    }

    /// Runs `work` while the machine stands still: nothing moves but what `work` does.
    fn still<R>(&self, state: RunState, work: impl FnOnce() -> R) -> R {
        let ran = self.state() == RunState::Running;
        match ran {
            true => self.stand_still(state),
            // It stands; its network may not, if it never ran. It is let go when the machine runs.
            false => self.parts.netdevs.all().iter().for_each(|(_, netdev)| netdev.hold()),
        }
        self.quiesce();
        let result = work();
        if self.state() == state {
            self.resume();
        }
        result
    }

    /// Nothing that the guest asked for is under way any more. No processor runs.
    pub(super) fn quiesce(&self) {
        loop {
            // What was posted; then what that asked of disks; then what their answers brought about.
            self.on_io(|_| ());
            self.disks.drain();
            self.on_io(|_| ());
            if self.disks.is_quiet() {
                return;
            }
        }
    }

    /// Runs `work` on the I/O thread, between two of its rounds, and waits for it. `None`: the machine is ending.
    pub(super) fn on_io<R: Send + 'static>(&self, work: impl FnOnce(&Machine) -> R + Send + 'static) -> Option<R> {
        let machine = self.this.get().and_then(Weak::upgrade)?;
        let (done, wait) = bounded(1);
        self.io.post(move || {
            // Fails only if nobody waits.
            let _ = done.send(work(&machine));
        });
        wait.recv().ok()
    }

    /// What another machine must be like to take over this one's state.
    pub(super) fn makeup(&self) -> Makeup {
        let config = &self.config;
        let devices = self.pc.bus.devices().into_iter().map(|(name, device)| (name, device.name().to_owned()));
        let leaf = |(leaf, subleaf)| config.cpu.cpuid(leaf, subleaf, &Dynamic::default());
        Makeup {
            program: crate::cli::VERSION.to_owned(),
            board: "pc".to_owned(),
            ram: config.ram,
            memory: self.ram.size(),
            processors: self.vcpus.iter().count() as u32,
            features: LEAVES.into_iter().map(leaf).collect(),
            devices: devices.collect(),
        }
    }

    fn save(&self, tag: &str, replace: bool, chosen: &Chosen) -> Result<(), String> {
        if let Some(name) = self.disks.holds_back() {
            return Err(format!("a request of '{name}' failed and is still to be made again: use cont first"));
        }
        let Some(holder) = chosen.holder().cloned() else { return Ok(()) };
        for (keeper, snapshot) in chosen.having(tag) {
            if !replace {
                return Err(format!("Snapshot '{tag}' already exists in one or more devices"));
            }
            keeper.forget(&snapshot)?;
        }
        self.still(RunState::SaveVm, || {
            let writer = holder.state_writer();
            let size = self.on_io(move |machine| machine.write_state(writer)).ok_or("the machine is ending")?;
            let size = size.map_err(|e| format!("{}: the machine's state cannot be kept: {e}", holder.name))?;
            let (when, clock_nsec) = (SystemTime::now(), self.clock.now_ns());
            let mut kept: Vec<&Keeper> = Vec::new();
            for keeper in &chosen.keepers {
                let size = if keeper.is(&holder) { size } else { 0 };
                if let Err(why) = keeper.keep(tag, when, MachineState { size, clock_nsec, icount: None }) {
                    // All or nothing; the first failure is the one to tell.
                    let undo = |keeper: &&Keeper| keeper.find(tag).map_or(Ok(()), |snapshot| keeper.forget(&snapshot));
                    let _ = kept.iter().try_for_each(undo);
                    return Err(why);
                }
                kept.push(keeper);
            }
            Ok(())
        })
    }

    /// All but memory. On the I/O thread, with input closed.
    pub(super) fn take_state(&self) -> Result<SavedMachine, StreamError> {
        let numbered = self.vcpus.numbered().into_iter();
        let processors = numbered.map(|(number, vcpu)| Some((number, vcpu.save()?))).collect::<Option<_>>();
        let ended = || StreamError::Host(std::io::Error::other("a processor's thread has ended"));
        Ok(SavedMachine {
            makeup: self.makeup(),
            clock: SavedClock { guest_ns: self.clock.now_ns() },
            processors: processors.ok_or_else(ended)?,
            devices: self.pc.bus.save(),
        })
    }

    /// The machine's state, written; bytes. On the I/O thread.
    fn write_state(&self, writer: StateWriter) -> Result<u64, StreamError> {
        let _closed = self.parts.input.close();
        let saved = self.take_state()?;
        let mut out = Writer::new(BufWriter::with_capacity(PIECE, writer))?;
        saved.write(&mut out)?;
        save_memory(self.ram.file(), self.ram.size(), &mut out)?;
        let writer = out.finish()?.into_inner().map_err(|e| StreamError::Host(e.into_error()))?;
        Ok(writer.written())
    }

    fn load(&self, tag: &str, chosen: &Chosen) -> Result<(), String> {
        if let Some(name) = self.jobs.busy(None) {
            return Err(format!("a job works on '{name}': cancel it, or wait for its end"));
        }
        let all = chosen.all_with(tag)?;
        // The first disk has it, unless disks have come or gone since.
        let state = all.iter().find(|(_, snapshot)| snapshot.vm_state_size != 0);
        let Some((holder, state)) = state else {
            return Err(format!(
                "'{tag}' has no state of a machine, only disks; go back to it with brolga-img snapshot -a"
            ));
        };
        let view = holder.state_view(state)?;
        let refused = |why: &dyn std::fmt::Display| format!("'{tag}' on {}: {why}", holder.name);
        let saved = SavedMachine::read(BufReader::with_capacity(PIECE, view.reader()), self.ram.size());
        let saved = Arc::new(saved.map_err(|e| refused(&e))?);
        if let Some(why) = self.makeup().differs(&saved.makeup) {
            return Err(refused(&why));
        }
        let numbers: Vec<u32> = self.vcpus.numbered().iter().map(|(number, _)| *number).collect();
        if saved.processors.iter().map(|(number, _)| *number).ne(numbers) {
            return Err(refused(&"its processors are not those of its machine"));
        }
        self.still(RunState::RestoreVm, || {
            let mut processors = self.vcpus.iter().zip(&saved.processors);
            processors.try_for_each(|(vcpu, (_, state))| vcpu.fits(state)).map_err(|e| refused(&e))?;
            let ending = || "the machine is ending".to_owned();
            // Once to see whether they take it, while all can still be as before.
            let devices = saved.clone();
            let tried = self.on_io(move |machine| machine.try_devices(&devices)).ok_or_else(ending)?;
            tried.map_err(|e| refused(&e))?;
            self.disks.drain();
            for (keeper, snapshot) in &all {
                if let Err(why) = keeper.go_back(snapshot) {
                    self.set_state(RunState::Paused);
                    return Err(format!("{why}; the machine stays paused, as not all of it is at '{tag}'"));
                }
            }
            let put = self.on_io(move |machine| machine.put_state(&saved, &view)).ok_or_else(ending)?;
            put.map_err(|e| {
                self.set_state(RunState::Paused);
                format!("{}; the machine stays paused, as not all of it is at '{tag}'", refused(&e))
            })
        })
    }

    /// Whether the devices take a state; they are as before then.
    fn try_devices(&self, saved: &SavedMachine) -> Result<(), String> {
        let _closed = self.parts.input.close();
        let (now, before) = (self.clock.now_ns(), self.pc.bus.save());
        self.clock.set(saved.clock.guest_ns);
        let tried = self.pc.bus.restore(&saved.devices);
        self.clock.set(now);
        // A device takes the state that it has just saved.
        tried.and_then(|()| self.pc.bus.restore(&before)).map_err(|e| e.to_string())
    }

    /// Becomes the machine of a state that was checked. On the I/O thread.
    fn put_state(&self, saved: &SavedMachine, view: &StateView) -> Result<(), String> {
        let reader = BufReader::with_capacity(PIECE, view.reader());
        load_memory(reader, self.ram.file(), self.ram.size()).map_err(|e| e.to_string())?;
        self.become_saved(saved)
    }

    /// Becomes the machine of a state that was checked, whose memory is there. On the I/O thread.
    pub(super) fn become_saved(&self, saved: &SavedMachine) -> Result<(), String> {
        let _closed = self.parts.input.close();
        self.clock.set(saved.clock.guest_ns);
        for (vcpu, (_, state)) in self.vcpus.iter().zip(&saved.processors) {
            vcpu.load(state).map_err(|e| e.to_string())?;
        }
        self.pc.bus.restore(&saved.devices).map_err(|e| e.to_string())?;
        // After the devices, which say where the frame buffer is.
        for region in self.ram.regions().iter().copied().chain(self.ram.window()) {
            self.engine.memory_written(region.gpa, region.size);
        }
        self.parts.netdevs.all().iter().for_each(|(_, netdev)| netdev.restart());
        self.loaded_before.store(true, Ordering::SeqCst);
        Ok(())
    }
}
