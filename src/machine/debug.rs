//! The machine as a debugger uses it.

use super::{Machine, Request};
use crate::gdb::{DebugHost, Listener, Resume, State, Stop};
use crate::monitor::{MonitorHost, RunState};
use anyhow::Context;
use brolga_jit::{PerfMap, Watchpoint};
use crossbeam_channel::bounded;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::PoisonError;

/// The list of generated code that `-perfmap` asks for, where perf(1) looks for it. A link that somebody else put there is
/// not followed.
pub(super) fn perf_map() -> anyhow::Result<PerfMap> {
    let path = format!("/tmp/perf-{}.map", std::process::id());
    let options =
        OpenOptions::new().write(true).create(true).truncate(true).custom_flags(nix::libc::O_NOFOLLOW).clone();
    let file = options.open(&path).with_context(|| format!("-perfmap: cannot write {path}"))?;
    Ok(PerfMap::new(file))
}

impl DebugHost for Machine {
    fn all_registers(&self, cpu: u32) -> Option<State> {
        let vcpu = self.vcpus.get(cpu as usize)?;
        vcpu.with(|vcpu| State { main: vcpu.registers(), more: vcpu.more_registers() })
    }

    fn set_all_registers(&self, cpu: u32, state: &State) {
        let Some(vcpu) = self.vcpus.get(cpu as usize) else { return };
        let state = state.clone();
        // `None`: the thread has ended, and with it the machine.
        let _ = vcpu.with(move |vcpu| {
            vcpu.set_registers(&state.main);
            vcpu.set_more_registers(&state.more);
        });
    }

    fn write_physical(&self, gpa: u64, bytes: &[u8]) -> bool {
        let all = self.ram.write(gpa, bytes, true);
        self.engine.memory_written(gpa, bytes.len() as u64);
        all
    }

    fn set_stops(&self, breakpoints: &[u64], watchpoints: &[Watchpoint]) {
        for vcpu in self.vcpus.iter() {
            let (breakpoints, watchpoints) = (breakpoints.to_vec(), watchpoints.to_vec());
            let _ = vcpu.with(move |vcpu| {
                vcpu.set_breakpoints(&breakpoints);
                vcpu.set_watchpoints(&watchpoints);
            });
        }
    }

    fn go_on(&self, actions: Vec<Resume>) {
        let (done, wait) = bounded(1);
        if self.requests.send(Request::Debug(actions, done)).is_ok() {
            // Fails if the machine ends meanwhile.
            let _ = wait.recv();
        }
    }

    fn listen(&self, listener: Listener) {
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(listener);
    }
}

impl Machine {
    /// Tells a debugger that the machine stands still.
    pub(super) fn tell(&self, why: Stop) {
        if let Some(listener) = &*self.listener.lock().unwrap_or_else(PoisonError::into_inner) {
            listener.stopped(why);
        }
    }

    /// What a debugger asked for happened on a vCPU. If the machine stands still already, for another vCPU's sake or the
    /// user's, it happens again when it goes on.
    pub(super) fn debug_stop(&self, cpu: u32) {
        let Some(vcpu) = self.vcpus.get(cpu as usize) else { return };
        if self.run_state() != RunState::Running {
            let _ = vcpu.with(|vcpu| vcpu.forget_debug_stop());
            return;
        }
        self.stand_still(RunState::Debug);
        self.tell(Stop::Debug(cpu, vcpu.with(|vcpu| vcpu.take_debug_stop()).flatten()));
    }

    /// Lets the guest go on, each vCPU as its entry says.
    pub(super) fn go_on_as(&self, actions: &[Resume]) {
        let vcpus = self.vcpus.numbered();
        let told = || vcpus.iter().filter_map(|(number, vcpu)| Some((vcpu, actions.get(*number as usize)?)));
        for (vcpu, action) in told() {
            let step = *action == Resume::Step;
            let _ = vcpu.with(move |vcpu| vcpu.set_single_step(step));
        }
        self.resume_clock();
        let going = told().filter(|(_, action)| **action != Resume::Hold);
        going.for_each(|(vcpu, _)| vcpu.release());
    }
}
