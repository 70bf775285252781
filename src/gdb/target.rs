//! The machine as the gdbstub crate wants to see it.

use super::DebugHost;
use super::registers::{Register, State, X86, description};
use crate::monitor::Commands;
use brolga_jit::{WatchKind, Watchpoint};
use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::single_register_access::{SingleRegisterAccess, SingleRegisterAccessOps};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind as GdbWatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::target_description_xml_override::{
    TargetDescriptionXmlOverride, TargetDescriptionXmlOverrideOps,
};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

/// Granule of address translation.
const PAGE: u64 = 4096;

/// What a vCPU does when the guest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Nothing: others run while it stands still.
    Hold,
    /// Runs.
    Continue,
    /// Executes one instruction.
    Step,
}

/// A debugger's view of the machine.
pub struct Debuggee {
    host: Arc<dyn DebugHost>,
    commands: Commands,
    description: String,
    breakpoints: Vec<u64>,
    watchpoints: Vec<Watchpoint>,
    actions: BTreeMap<u32, Resume>,
    /// Threads without an action stand still (a debugger that locks its scheduler).
    locked: bool,
    /// Addresses are guest-physical (`Qqemu.PhyMemMode`).
    pub physical: bool,
}

/// gdb counts threads from 1.
pub fn tid(cpu: u32) -> Tid {
    Tid::new(cpu as usize + 1).unwrap_or(Tid::MIN)
}

fn cpu(tid: Tid) -> u32 {
    (tid.get() - 1) as u32
}

impl Debuggee {
    /// Over `host`, with monitor commands by `commands`.
    pub fn new(host: Arc<dyn DebugHost>, commands: Commands) -> Self {
        Self {
            host,
            commands,
            description: description(),
            breakpoints: Vec::new(),
            watchpoints: Vec::new(),
            actions: BTreeMap::new(),
            locked: false,
            physical: false,
        }
    }

    /// Removes all that was set.
    pub fn clear(&mut self) {
        self.breakpoints.clear();
        self.watchpoints.clear();
        self.apply();
    }

    fn apply(&self) {
        self.host.set_stops(&self.breakpoints, &self.watchpoints);
    }

    fn add_breakpoint(&mut self, address: u64) -> bool {
        self.breakpoints.push(address);
        self.apply();
        true
    }

    fn remove_breakpoint(&mut self, address: u64) -> bool {
        let Some(at) = self.breakpoints.iter().position(|b| *b == address) else { return false };
        self.breakpoints.swap_remove(at);
        self.apply();
        true
    }

    /// Guest-physical address of `address`, and the bytes that follow in its page.
    fn place(&self, cpu: u32, address: u64) -> Option<(u64, usize)> {
        let gpa = if self.physical { address } else { self.host.translate(cpu, address)? };
        Some((gpa, (PAGE - address % PAGE) as usize))
    }
}

impl Target for Debuggee {
    type Arch = X86;
    type Error = Infallible;

    fn base_ops(&mut self) -> BaseOps<'_, X86, Infallible> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }

    fn support_target_description_xml_override(&mut self) -> Option<TargetDescriptionXmlOverrideOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Debuggee {
    fn read_registers(&mut self, registers: &mut State, tid: Tid) -> TargetResult<(), Self> {
        *registers = self.host.all_registers(cpu(tid)).ok_or(TargetError::NonFatal)?;
        Ok(())
    }

    fn write_registers(&mut self, registers: &State, tid: Tid) -> TargetResult<(), Self> {
        self.host.set_all_registers(cpu(tid), registers);
        Ok(())
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let mut done = 0;
        while done < data.len() {
            let Some((gpa, room)) = self.place(cpu(tid), start.wrapping_add(done as u64)) else { break };
            let n = room.min(data.len() - done);
            // What is neither RAM nor ROM reads as it does on a bus where nobody answers: devices are not to notice.
            self.host.read_physical(gpa, &mut data[done..done + n]);
            done += n;
        }
        if done == 0 && !data.is_empty() { Err(TargetError::NonFatal) } else { Ok(done) }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let mut done = 0;
        while done < data.len() {
            let place = self.place(cpu(tid), start.wrapping_add(done as u64));
            let (gpa, room) = place.ok_or(TargetError::NonFatal)?;
            let n = room.min(data.len() - done);
            if !self.host.write_physical(gpa, &data[done..done + n]) {
                return Err(TargetError::NonFatal);
            }
            done += n;
        }
        Ok(())
    }

    fn list_active_threads(&mut self, active: &mut dyn FnMut(Tid)) -> Result<(), Infallible> {
        self.host.thread_ids().into_iter().for_each(|(n, _)| active(tid(n)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<Tid> for Debuggee {
    fn read_register(&mut self, tid: Tid, id: Register, buf: &mut [u8]) -> TargetResult<usize, Self> {
        let value = id.read(&self.host.all_registers(cpu(tid)).ok_or(TargetError::NonFatal)?);
        buf.get_mut(..value.len()).ok_or(TargetError::NonFatal)?.copy_from_slice(&value);
        Ok(value.len())
    }

    fn write_register(&mut self, tid: Tid, id: Register, value: &[u8]) -> TargetResult<(), Self> {
        let mut registers = self.host.all_registers(cpu(tid)).ok_or(TargetError::NonFatal)?;
        id.write(&mut registers, value);
        self.host.set_all_registers(cpu(tid), &registers);
        Ok(())
    }
}

impl ThreadExtraInfo for Debuggee {
    fn thread_extra_info(&self, tid: Tid, buf: &mut [u8]) -> Result<usize, Infallible> {
        let text = format!("CPU#{}", cpu(tid));
        let n = text.len().min(buf.len());
        buf[..n].copy_from_slice(&text.as_bytes()[..n]);
        Ok(n)
    }
}

impl MultiThreadResume for Debuggee {
    fn resume(&mut self) -> Result<(), Infallible> {
        let others = if self.locked { Resume::Hold } else { Resume::Continue };
        let actions = (0..self.host.cpus()).map(|n| self.actions.get(&n).copied().unwrap_or(others)).collect();
        self.host.go_on(actions);
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Infallible> {
        self.actions.clear();
        self.locked = false;
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Infallible> {
        self.actions.insert(cpu(tid), Resume::Continue);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Debuggee {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Infallible> {
        self.actions.insert(cpu(tid), Resume::Step);
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Debuggee {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Infallible> {
        self.locked = true;
        Ok(())
    }
}

impl Breakpoints for Debuggee {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

/// The guest's memory is not touched for them: both kinds of breakpoint are the engine's.
impl SwBreakpoint for Debuggee {
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.add_breakpoint(address))
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove_breakpoint(address))
    }
}

impl HwBreakpoint for Debuggee {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.add_breakpoint(address))
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.remove_breakpoint(address))
    }
}

impl HwWatchpoint for Debuggee {
    fn add_hw_watchpoint(&mut self, address: u64, len: u64, kind: GdbWatchKind) -> TargetResult<bool, Self> {
        self.watchpoints.push(Watchpoint { address, len, kind: from_gdb(kind) });
        self.apply();
        Ok(true)
    }

    fn remove_hw_watchpoint(&mut self, address: u64, len: u64, kind: GdbWatchKind) -> TargetResult<bool, Self> {
        let wanted = Watchpoint { address, len, kind: from_gdb(kind) };
        let Some(at) = self.watchpoints.iter().position(|w| *w == wanted) else { return Ok(false) };
        self.watchpoints.swap_remove(at);
        self.apply();
        Ok(true)
    }
}

fn from_gdb(kind: GdbWatchKind) -> WatchKind {
    match kind {
        GdbWatchKind::Write => WatchKind::Write,
        GdbWatchKind::Read => WatchKind::Read,
        GdbWatchKind::ReadWrite => WatchKind::Access,
    }
}

/// The engine's kind of watchpoint, as gdb calls it.
pub fn to_gdb(kind: WatchKind) -> GdbWatchKind {
    match kind {
        WatchKind::Write => GdbWatchKind::Write,
        WatchKind::Read => GdbWatchKind::Read,
        WatchKind::Access => GdbWatchKind::ReadWrite,
    }
}

impl MonitorCmd for Debuggee {
    fn handle_monitor_cmd(&mut self, command: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), Infallible> {
        let text = self.commands.run(&*self.host, &String::from_utf8_lossy(command));
        out.write_raw(text.as_bytes());
        Ok(())
    }
}

impl TargetDescriptionXmlOverride for Debuggee {
    fn target_description_xml(
        &self,
        annex: &[u8],
        offset: u64,
        length: usize,
        buf: &mut [u8],
    ) -> TargetResult<usize, Self> {
        if annex != b"target.xml" {
            return Err(TargetError::NonFatal);
        }
        let rest = usize::try_from(offset).ok().and_then(|at| self.description.as_bytes().get(at..)).unwrap_or(&[]);
        let n = rest.len().min(length).min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}
