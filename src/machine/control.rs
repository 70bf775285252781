//! Running a machine: pausing, resetting and ending it. All of it happens on one thread, one request after the other.

use super::{Machine, Request};
use crate::boot::{Placed, Placement};
use crate::cli::WATCHDOG_ACTIONS;
use crate::cli::config::{Actions, PanicAction, RebootAction, ShutdownAction, WatchdogAction};
use crate::events;
use crate::gdb::Stop;
use crate::monitor::{Control, RunState};
use anyhow::{Result, bail};
use brolga_devices::services::PowerEvent;
use brolga_devices::trace_event;
use brolga_jit::request;
use crossbeam_channel::Receiver;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Shortest time between two dumps of triple faults.
const DUMP_INTERVAL: Duration = Duration::from_secs(1);

impl Machine {
    /// Starts the loaded guest, then serves requests until one ends the machine. The result is the exit status.
    pub fn control_loop(&self, requests: &Receiver<Request>, start_paused: bool) -> Result<i32> {
        if !start_paused {
            self.resume();
        }
        for request in requests {
            if let Some(status) = self.serve(request)? {
                return Ok(status);
            }
        }
        bail!("internal error: nothing can control the machine any more")
    }

    /// The state, as a monitor sees it.
    pub fn state(&self) -> RunState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the state; listeners hear of stops and starts.
    pub(super) fn set_state(&self, state: RunState) {
        let before = std::mem::replace(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner), state);
        trace_event!(events::RUN_STATE, "{} -> {}", before.name(), state.name());
        match (before == RunState::Running, state == RunState::Running) {
            (true, false) => self.emit("STOP", Value::Null),
            (false, true) => self.emit("RESUME", Value::Null),
            _ => {}
        }
    }

    fn emit(&self, name: &'static str, data: Value) {
        self.events.emit(name, data);
    }

    /// What is done at power events.
    pub fn actions(&self) -> Actions {
        *self.actions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process is about to end.
    fn tell_end(&self, guest: bool, reason: &str) {
        self.emit("SHUTDOWN", json!({ "guest": guest, "reason": reason }));
    }

    /// What was loaded into memory at the last reset.
    pub fn placed(&self) -> Vec<Placed> {
        self.placed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The exit status, if the machine ends.
    fn serve(&self, request: Request) -> Result<Option<i32>> {
        match request {
            Request::Power(PowerEvent::Exit(status)) => {
                self.tell_end(true, "guest-shutdown");
                return Ok(Some(status));
            }
            Request::Power(PowerEvent::PowerOff) => return Ok(self.power_off("guest-shutdown")),
            Request::Power(PowerEvent::Reset) => return self.guest_reset(),
            Request::Power(PowerEvent::Suspend) => {
                self.emit("SUSPEND", Value::Null);
                tracing::warn!(target: "unimp", "the guest asked for suspend to RAM; it goes on instead");
                self.go_on();
            }
            Request::Power(PowerEvent::GuestPanicked) => return Ok(self.guest_panicked()),
            Request::Power(PowerEvent::CrashLoaded) => {
                eprintln!("{}: the guest's kernel crashed; its crash kernel takes over", self.program);
                self.emit("GUEST_CRASHLOADED", json!({ "action": "run" }));
                self.go_on();
            }
            Request::Power(PowerEvent::Watchdog) => return self.watchdog(),
            Request::TripleFault(cpu, dump) => {
                self.report_triple_fault(cpu, &dump);
                return self.guest_reset();
            }
            Request::Diverged(cpu, report) => {
                eprintln!("{}: vCPU {cpu}: {}", self.program, report.trim_end());
                bail!(
                    "-accel check=on: compiled code is wrong, see the report above; use -accel interp to go on without"
                );
            }
            Request::DiskFailed(why) => {
                eprintln!("{}: {why}; the machine is paused, 'cont' in the monitor tries again", self.program);
                self.pause(RunState::IoError);
            }
            Request::DebugStop(cpu) => {
                self.debug_stop(cpu);
            }
            Request::Debug(actions, done) => {
                match self.may_go_on() {
                    Ok(true) => self.go_on_as(&actions),
                    // The debugger hears of it when the machine stops the next time.
                    Ok(false) => {}
                    Err(why) => eprintln!("{}: {why}", self.program),
                }
                // Fails only if the asker did not wait.
                let _ = done.send(());
            }
            Request::Ejected(slot) => self.finish_removal(slot),
            Request::AddProcessor(spec, done) => {
                // Fails only if the asker did not wait.
                let _ = done.send(self.add_processor(spec));
            }
            Request::Processor(word) => self.heard_of_processor(word),
            Request::Snapshot(action, done) => {
                // Fails only if the asker did not wait.
                let _ = done.send(self.snapshot_here(&action));
            }
            Request::Do(work) => work(self),
            Request::Lost(why) => bail!("incoming migration: {why}"),
            Request::Died(cpu) => bail!("internal error: the thread of vCPU {cpu} panicked"),
            Request::Control(what, done) => {
                let status = self.control(what)?;
                // Fails only if the asker did not wait.
                let _ = done.send(());
                return Ok(status);
            }
        }
        Ok(None)
    }

    /// To standard error whatever is logged: it is what the user of a guest that dies has to see. A guest that dies
    /// over and over is shown once a second.
    fn report_triple_fault(&self, cpu: u32, dump: &str) {
        let mut last = self.last_dump.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|at| at.elapsed() >= DUMP_INTERVAL) {
            *last = Some(Instant::now());
            eprintln!("{}: triple fault of vCPU {cpu}\n{}", self.program, dump.trim_end());
        }
    }

    /// What the checks of compiled code came to (`-accel check=on`), to standard error.
    pub fn report_checks(&self) {
        for (cpu, vcpu) in self.vcpus.numbered() {
            let Some(Some(s)) = vcpu.with(|vcpu| vcpu.check_statistics()) else { continue };
            eprintln!(
                "{}: vCPU {cpu}: {} blocks checked in {} executions ({} not repeatable), {} differences",
                self.program, s.blocks, s.compared, s.once, s.differences
            );
        }
    }

    fn control(&self, what: Control) -> Result<Option<i32>> {
        match what {
            Control::Quit => {
                self.tell_end(false, "host-qmp-quit");
                return Ok(Some(0));
            }
            Control::Terminate => {
                self.tell_end(false, "host-signal");
                return Ok(Some(0));
            }
            Control::Stop => match self.state() {
                RunState::Running => self.pause(RunState::Paused),
                RunState::InMigrate => self.starts.store(false, Ordering::SeqCst),
                _ => {}
            },
            Control::Continue => {
                if let Err(why) = self.go_on_if_it_can() {
                    eprintln!("{}: {why}", self.program);
                }
            }
            Control::Reset if self.state() == RunState::InMigrate => {
                eprintln!("{}: the machine is still to arrive, so it is not reset", self.program);
            }
            Control::Reset => self.reset(false, "host-qmp-system-reset")?,
            Control::PowerButton => {
                self.emit("POWERDOWN", Value::Null);
                self.pc.press_power_button();
            }
            Control::Nmi => self.vcpus.iter().for_each(|vcpu| vcpu.raise(request::NMI)),
        }
        Ok(None)
    }

    /// Lets the guest go on, unless it is over or not here.
    pub(super) fn go_on_if_it_can(&self) -> Result<(), String> {
        if self.may_go_on()? && !matches!(self.state(), RunState::Running | RunState::Shutdown) {
            self.resume();
        }
        Ok(())
    }

    /// Whether the guest is here and can go on; one that is still to arrive will when it is.
    fn may_go_on(&self) -> Result<bool, String> {
        match self.state() {
            RunState::InMigrate => {
                self.starts.store(true, Ordering::SeqCst);
                Ok(false)
            }
            RunState::FinishMigrate => Err("Migration is not finalized yet".to_owned()),
            // One that has left, or whose disks could not be taken back.
            _ if !self.disks.active() => self.disks.activate().map(|()| true),
            _ => Ok(true),
        }
    }

    /// The guest reported its crash.
    fn guest_panicked(&self) -> Option<i32> {
        eprintln!("{}: the guest's kernel panicked", self.program);
        let actions = self.actions();
        let pauses = actions.shutdown == ShutdownAction::Pause;
        let ends = match actions.panic {
            PanicAction::Shutdown if !pauses => Some(0),
            PanicAction::ExitFailure => Some(1),
            _ => None,
        };
        let action = match (ends, actions.panic) {
            (Some(_), _) => "poweroff",
            (None, PanicAction::None) => "run",
            _ => "pause",
        };
        self.emit("GUEST_PANICKED", json!({ "action": action }));
        match (ends, actions.panic) {
            (Some(_), _) => self.tell_end(true, "guest-panic"),
            (None, PanicAction::None) => self.go_on(),
            _ => self.pause(RunState::Panicked),
        }
        ends
    }

    /// A watchdog was not fed in time.
    fn watchdog(&self) -> Result<Option<i32>> {
        let action = self.actions().watchdog;
        let word = WATCHDOG_ACTIONS.iter().find(|(_, known)| *known == action).map_or("none", |(word, _)| word);
        self.emit("WATCHDOG", json!({ "action": word }));
        match action {
            WatchdogAction::Reset => return self.guest_reset(),
            WatchdogAction::PowerOff => {
                self.tell_end(true, "guest-shutdown");
                return Ok(Some(0));
            }
            WatchdogAction::Pause => {
                self.pause(RunState::Watchdog);
                return Ok(None);
            }
            WatchdogAction::Shutdown => self.pc.press_power_button(),
            WatchdogAction::InjectNmi => self.vcpus.iter().for_each(|vcpu| vcpu.raise(request::NMI)),
            WatchdogAction::Debug => eprintln!("{}: the watchdog's time ran out", self.program),
            WatchdogAction::None => {}
        }
        self.go_on();
        Ok(None)
    }

    /// The guest powered off, or what counts as that.
    fn power_off(&self, reason: &str) -> Option<i32> {
        self.tell_end(true, reason);
        match self.actions().shutdown {
            ShutdownAction::PowerOff => Some(0),
            ShutdownAction::Pause => {
                self.pause(RunState::Shutdown);
                None
            }
        }
    }

    /// The guest reset the machine, or its boot processor is in shutdown, which does the same on a PC.
    fn guest_reset(&self) -> Result<Option<i32>> {
        match self.actions().reboot {
            RebootAction::Shutdown => Ok(self.power_off("guest-reset")),
            RebootAction::Reset => self.reset(true, "guest-reset").map(|()| None),
        }
    }

    fn reset(&self, guest: bool, reason: &str) -> Result<()> {
        self.hold();
        self.disks.drain();
        self.pc.bus.reset();
        self.reset_takes_devices();
        self.load_guest()?;
        self.emit("RESET", json!({ "guest": guest, "reason": reason }));
        match self.state() {
            RunState::Running => self.release(),
            // A machine that was powered off is on again, and waits for the user.
            RunState::Shutdown => self.set_state(RunState::Paused),
            RunState::Prelaunch
            | RunState::Paused
            | RunState::Debug
            | RunState::IoError
            | RunState::Panicked
            | RunState::Watchdog
            | RunState::SaveVm
            | RunState::RestoreVm
            | RunState::InMigrate
            | RunState::FinishMigrate
            | RunState::PostMigrate => {}
        }
        Ok(())
    }

    /// Fills memory and sets the processors as they are after power-on. No processor runs.
    pub fn load_guest(&self) -> Result<()> {
        let mut placement = Placement::new(&self.ram);
        if !self.boot.has_firmware() {
            self.pc.open_shadow_ram();
        }
        if self.boot.has_kernel() {
            self.pc.set_up_as_firmware();
            self.tables.place(&mut placement)?;
        }
        let again = self.loaded_before.swap(true, Ordering::SeqCst);
        let order = self.boot_order.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let once = order.once.as_deref().filter(|_| !again);
        self.pc.set_boot_order(once.unwrap_or(&order.order));
        let mut starts: HashMap<_, _> = self.boot.load(self.facts, &mut placement)?.into_iter().collect();
        let placed = placement.into_placed();
        self.shadow.show_rom();
        for p in &placed {
            self.engine.memory_written(p.range.start, p.range.end - p.range.start);
        }
        *self.placed.lock().unwrap_or_else(PoisonError::into_inner) = placed;
        let kernel = self.boot.has_kernel();
        for (cpu, vcpu) in self.vcpus.numbered() {
            let start = starts.remove(&cpu);
            vcpu.restart(cpu == 0 || start.is_some(), move |vcpu| {
                vcpu.reset();
                if kernel {
                    vcpu.set_up_as_firmware();
                }
                if let Some(registers) = start {
                    vcpu.set_registers(&registers);
                }
            });
        }
        match starts.keys().min() {
            Some(cpu) => bail!("-device loader,cpu-num={cpu}: there are {} vCPUs; see -smp", self.vcpus.len()),
            None => Ok(()),
        }
    }

    fn hold(&self) {
        self.vcpus.iter().for_each(|vcpu| vcpu.hold());
        self.vcpus.iter().for_each(|vcpu| vcpu.wait_held());
    }

    fn release(&self) {
        self.vcpus.iter().for_each(|vcpu| vcpu.release());
    }

    /// Lets processors run again that a request of the guest held, if the machine runs.
    fn go_on(&self) {
        if self.state() == RunState::Running {
            self.release();
        }
    }

    fn pause(&self, state: RunState) {
        self.stand_still(state);
        self.tell(Stop::Paused);
    }

    /// Holds processors and time.
    pub(super) fn stand_still(&self, state: RunState) {
        self.hold();
        self.parts.netdevs.all().iter().for_each(|(_, netdev)| netdev.hold());
        self.clock.pause();
        self.io.clock_changed();
        self.set_state(state);
    }

    pub(super) fn resume(&self) {
        for vcpu in self.vcpus.iter().filter(|_| self.state() == RunState::Debug) {
            // Whoever lets it go on without a debugger's word wants no steps. `None`: the machine is ending.
            let _ = vcpu.with(|vcpu| vcpu.set_single_step(false));
        }
        self.resume_clock();
        self.release();
    }

    /// Time goes on.
    pub(super) fn resume_clock(&self) {
        self.set_state(RunState::Running);
        self.disks.resume();
        self.clock.resume();
        self.io.clock_changed();
        self.parts.netdevs.all().iter().for_each(|(_, netdev)| netdev.release(&self.io));
    }
}
