//! Looking at the processors many times a second, for `-profile`.

use super::Machine;
use crate::monitor::RunState;
use crate::profile::Sample;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Starts the thread that looks, if a profile is wanted. It ends with the machine.
pub(super) fn start(machine: &Arc<Machine>) -> std::io::Result<()> {
    let Some(profile) = &machine.profile else { return Ok(()) };
    let interval = Duration::from_nanos(1_000_000_000 / profile.rate().max(1));
    let machine = Arc::downgrade(machine);
    let looks = move || {
        let mut due = Instant::now();
        loop {
            due += interval;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            // Looks that the host was too slow for are not made up for.
            due = due.max(Instant::now() - interval);
            let Some(machine) = machine.upgrade() else { return };
            if machine.state() == RunState::Running && !machine.look_at_processors() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("profile".into()).spawn(looks)?;
    Ok(())
}

impl Machine {
    /// Counts what each processor is doing; `false`: the machine is ending.
    fn look_at_processors(&self) -> bool {
        let Some(profile) = &self.profile else { return false };
        for (cpu, vcpu) in self.vcpus.numbered() {
            if vcpu.sleeps() {
                profile.count(cpu, Sample::Halted);
                continue;
            }
            let (ram, finder) = (self.ram.clone(), profile.finder());
            let sample = vcpu.with(move |vcpu| {
                let read = |linear: u64| {
                    let mut word = [0; 8];
                    // Within a page: frames are aligned.
                    ram.read(vcpu.translate(linear)?, &mut word).then(|| u64::from_le_bytes(word))
                };
                finder.look(&vcpu.registers(), vcpu.more_registers().kernel_gs_base, &read)
            });
            match sample {
                Some(sample) => profile.count(cpu, sample),
                None => return false,
            }
        }
        true
    }
}
