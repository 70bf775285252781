//! The machine as monitors see it.

use super::{Machine, Request};
use crate::cli;
use crate::cli::config::Actions;
use crate::gdb;
use crate::migration::{Address, Migration};
use crate::monitor::{
    Commands, Control, DriveInfo, Events, Fault, JobSpec, Jobs, MediumChange, Migrating, MonitorHost, PciInfo, Pointer,
    Progress, RunState, SnapshotAction, Topic,
};
use crate::net::Netdev;
use brolga_devices::i8042::{Key, MouseMove};
use brolga_devices::services::Reception;
use brolga_devices::state::Inspector;
use brolga_devices::vga::Picture;
use brolga_jit::{CheckStats, Registers, StoreStats, TierStats};
use crossbeam_channel::bounded;
use std::fmt::Write;
use std::ops::Range;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

impl Migrating for Machine {
    fn migration(&self) -> &Arc<Migration> {
        &self.migration
    }

    fn migrate(&self, address: Address) -> Result<(), Fault> {
        self.begin_to_leave(address)
    }

    fn migrate_incoming(&self, address: &Address, exits: bool) -> Result<(), Fault> {
        self.begin_to_arrive(address, exits)
    }
}

impl MonitorHost for Machine {
    fn control(&self, what: Control) {
        if matches!(what, Control::Quit | Control::Terminate) {
            // The other side may be stuck; who ends does not wait for it.
            self.migration.cancel();
        }
        let (done, wait) = bounded(1);
        if self.requests.send(Request::Control(what, done)).is_ok() {
            // Fails if the machine ends meanwhile.
            let _ = wait.recv();
        }
    }

    fn cont(&self) -> Result<(), String> {
        self.on_control(Machine::go_on_if_it_can).unwrap_or_else(|| Err("the machine is ending".to_owned()))
    }

    fn screen(&self) -> Option<Picture> {
        // A screen that is off is black, of the size that it has at power-on.
        let black = || Picture { width: 720, height: 400, rgb: vec![0; 720 * 400 * 3] };
        self.pc.peripherals.vga.as_ref().map(|vga| vga.picture().unwrap_or_else(black))
    }

    fn has_screen(&self, device: &str) -> bool {
        self.pc.peripherals.vga.is_some() && matches!(device, "vga" | "VGA")
    }

    fn snapshot(&self, action: &SnapshotAction) -> Result<(), String> {
        let (done, wait) = bounded(1);
        let ending = || "the machine is ending".to_owned();
        self.requests.send(Request::Snapshot(action.clone(), done)).map_err(|_| ending())?;
        wait.recv().map_err(|_| ending())?
    }

    fn start_snapshot(&self, id: &str, action: SnapshotAction) -> Result<(), String> {
        let machine = self.this.get().cloned().unwrap_or_default();
        let kind = action.kind();
        let work = move |progress: &Progress| {
            let machine = machine.upgrade().ok_or("the machine is ending")?;
            progress.set(0, 1);
            let done = MonitorHost::snapshot(&*machine, &action);
            progress.step(1);
            done
        };
        self.jobs.start(JobSpec::plain(id, kind), work, |_| Ok(()))
    }

    fn jobs(&self) -> &Arc<Jobs> {
        &self.jobs
    }

    fn run_state(&self) -> RunState {
        self.state()
    }

    fn cpus(&self) -> u32 {
        self.vcpus.len() as u32
    }

    fn registers(&self, cpu: u32) -> Option<Registers> {
        self.vcpus.get(cpu as usize)?.with(|vcpu| vcpu.registers())
    }

    fn register_dump(&self, cpu: u32) -> Option<String> {
        self.vcpus.get(cpu as usize)?.with(|vcpu| vcpu.dump())
    }

    fn translate(&self, cpu: u32, linear: u64) -> Option<u64> {
        self.vcpus.get(cpu as usize)?.with(move |vcpu| vcpu.translate(linear))?
    }

    fn read_physical(&self, gpa: u64, buf: &mut [u8]) -> bool {
        self.ram.read(gpa, buf)
    }

    fn host_address(&self, gpa: u64) -> Option<(&'static str, u64)> {
        Some((self.block_at(gpa), self.ram.host_address(gpa)?))
    }

    fn forward(&self, open: bool, netdev: Option<&str>, rule: &str) -> Result<String, String> {
        let netdevs = self.parts.netdevs.all();
        let mut networks = netdevs.iter().filter_map(|(_, netdev)| Some((netdev.id.as_str(), netdev.user()?)));
        let (id, network) = match netdev {
            None => networks.next().ok_or("there is no user-mode network")?,
            Some(id) => {
                let named = networks.find(|(other, _)| *other == id);
                named.ok_or_else(|| format!("there is no user-mode network with id={id}"))?
            }
        };
        if open {
            let asked = cli::host_forward(rule)?;
            let port = network.add_forward(&asked).map_err(|e| e.to_string())?;
            let kind = if port.udp { "udp" } else { "tcp" };
            // Nothing is told, as in QEMU, but the port that the host has chosen.
            let told = || format!("{id}: hostfwd={kind}:{}-{}\n", port.host, port.guest);
            return Ok(if asked.host.port() == 0 { told() } else { String::new() });
        }
        let (udp, host) = cli::host_port(rule)?;
        match network.remove_forward(udp, host) {
            true => Ok(format!("host forwarding rule for {rule} removed\n")),
            false => Err(format!("host forwarding rule for {rule} not found; info usernet lists them")),
        }
    }

    fn set_link(&self, name: &str, up: bool) -> Result<(), String> {
        self.move_cable(name, up)
    }

    fn receptions(&self) -> Vec<(String, &'static str, Option<Reception>)> {
        self.card_receptions()
    }

    fn change_medium(&self, change: &MediumChange) -> Result<(), String> {
        self.media.change(change)
    }

    fn set_balloon(&self, bytes: u64) -> bool {
        let balloon = self.inventory().balloon.clone();
        balloon.iter().for_each(|balloon| balloon.set_target(bytes));
        balloon.is_some()
    }

    fn balloon(&self) -> Option<(u64, Vec<(&'static str, u64)>)> {
        self.inventory().balloon.as_ref().map(|balloon| (balloon.actual(), balloon.statistics()))
    }

    fn events(&self) -> &Arc<Events> {
        &self.events
    }

    fn thread_ids(&self) -> Vec<(u32, i32)> {
        let id = |(number, vcpu): (u32, Arc<crate::vcpu::VcpuThread>)| {
            (number, vcpu.with(|_| nix::unistd::gettid().as_raw()).unwrap_or(0))
        };
        self.vcpus.numbered().into_iter().map(id).collect()
    }

    fn actions(&self) -> Actions {
        Machine::actions(self)
    }

    fn set_actions(&self, actions: Actions) {
        *self.actions.lock().unwrap_or_else(PoisonError::into_inner) = actions;
    }

    fn set_boot_order(&self, order: &str) {
        {
            let mut boot_order = self.boot_order.lock().unwrap_or_else(PoisonError::into_inner);
            (boot_order.order, boot_order.once) = (order.to_owned(), None);
        }
        self.pc.set_boot_order(order);
    }

    fn port_read(&self, port: u16, size: u8) -> u32 {
        self.pc.bus.pio_read(port, size)
    }

    fn port_write(&self, port: u16, size: u8, value: u32) {
        self.pc.bus.pio_write(port, size, value);
    }

    fn press(&self, keys: Vec<u16>, hold: Duration) {
        self.press_keys(keys, hold);
    }

    fn key(&self, key: u16, down: bool) {
        self.pc.i8042.key(Key(key), down);
    }

    fn point(&self, pointer: Pointer) {
        let Pointer { right, down, wheel, press, release } = pointer;
        let buttons = {
            let mut buttons = self.mouse_buttons.lock().unwrap_or_else(PoisonError::into_inner);
            *buttons = (*buttons & !release | press) & 0x1f;
            *buttons
        };
        self.pc.i8042.mouse(MouseMove { dx: right, dy: down.saturating_neg(), dz: wheel, buttons });
    }

    fn pci(&self) -> Vec<PciInfo> {
        self.pci_functions()
    }

    fn drives(&self) -> Vec<DriveInfo> {
        self.media.list()
    }

    fn devices(&self) -> Vec<(String, &'static str)> {
        self.pc.bus.devices().into_iter().map(|(name, device)| (name, device.name())).collect()
    }

    fn local_apic(&self, cpu: u32) -> Option<String> {
        self.show_local_apic(cpu)
    }

    fn memory_map(&self) -> Vec<Range<u64>> {
        let regions = self.ram.regions().iter().filter(|region| !region.rom);
        regions.map(|region| region.gpa..region.gpa + region.size).collect()
    }

    fn while_paused(&self, work: &mut dyn FnMut() -> Result<u64, String>) -> Result<u64, String> {
        let ran = self.state() == RunState::Running;
        if ran {
            MonitorHost::control(self, Control::Stop);
        }
        let result = work();
        if ran && self.state() == RunState::Paused {
            MonitorHost::control(self, Control::Continue);
        }
        result
    }

    fn note_dump(&self, bytes: Option<u64>) {
        *self.last_dump_file.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
    }

    fn last_dump(&self) -> (&'static str, u64) {
        match *self.last_dump_file.lock().unwrap_or_else(PoisonError::into_inner) {
            None => ("none", 0),
            Some(None) => ("failed", 0),
            Some(Some(bytes)) => ("completed", bytes),
        }
    }

    fn start_debugger(&self, endpoint: &str, commands: Commands) -> Result<(), String> {
        let machine = self.this.get().and_then(Weak::upgrade).ok_or("the machine is ending")?;
        let wanted = match endpoint {
            "none" => None,
            _ => Some(crate::cli::gdb_endpoint(endpoint).map_err(|e| format!("{e:#}"))?),
        };
        let held = || self.debugger.lock().unwrap_or_else(PoisonError::into_inner);
        // Not held while it stops: its client may be asking for this.
        let before = held().take();
        if let Some(before) = before {
            before.stop();
        }
        if let Some(endpoint) = wanted {
            *held() = Some(gdb::start(&endpoint, machine, commands).map_err(|e| format!("{e:#}"))?);
        }
        Ok(())
    }

    fn inspect(&self, topic: Topic) -> Option<String> {
        match topic {
            Topic::Qtree => {
                let mut out = Inspector::new();
                self.pc.bus.inspect(&mut out);
                Some(lines(&out))
            }
            Topic::Pic => Some(self.pc.ioapic.show() + &self.pc.pic.show()),
            Topic::Roms => Some(self.roms()),
            Topic::Mtree => Some(self.map()),
            Topic::FlatMtree => Some(self.flat_map()),
            Topic::RamBlocks => Some(self.memory_blocks()),
            Topic::Jit => Some(self.engine_counters()),
            Topic::Network => Some(self.network()),
            Topic::Irq => Some(self.interrupts()),
            Topic::Usernet => {
                let state = |netdev: Arc<Netdev>| Some(format!("Hub -1 ({}):\n{}", netdev.id, netdev.user_state()?));
                Some(self.parts.netdevs.all().into_iter().filter_map(|(_, netdev)| state(netdev)).collect())
            }
        }
    }
}

fn lines(out: &Inspector) -> String {
    out.lines().iter().map(|line| format!("{line}\n")).collect()
}

/// Counters of an engine that checks compiled code.
fn check_rows(stats: CheckStats) -> [(&'static str, u64); 7] {
    let CheckStats { blocks, compared, faults, finished, once, repeated, differences } = stats;
    [
        ("blocks checked", blocks),
        ("executions compared", compared),
        ("  ended by a fault", faults),
        ("  finished by the interpreter", finished),
        ("  the same when repeated only", repeated),
        ("executions that cannot be repeated", once),
        ("differences", differences),
    ]
}

/// Counters of what processors have compiled for one another.
fn store_rows(stats: StoreStats) -> [(&'static str, u64); 7] {
    let StoreStats { compiled, compile_ns, reused, proposed, held, bytes, evicted } = stats;
    [
        ("regions compiled", compiled),
        ("  milliseconds taken", compile_ns / 1_000_000),
        ("requests answered by what was compiled", reused),
        ("requests answered by a larger region", proposed),
        ("regions kept", held),
        ("  bytes", bytes),
        ("regions kept no longer", evicted),
    ]
}

impl Machine {
    fn roms(&self) -> String {
        let mut text = String::new();
        for p in self.placed() {
            let (start, size) = (p.range.start, p.range.end - p.range.start);
            let _ = writeln!(text, "addr={start:016x} size=0x{size:06x} name=\"{}\"", p.what);
        }
        text
    }

    /// Counters of the code engine, by vCPU, and of what they share.
    fn engine_counters(&self) -> String {
        let mut text = String::new();
        for (cpu, vcpu) in self.vcpus.numbered() {
            let Some((stats, cached)) = vcpu.with(|vcpu| vcpu.statistics()) else { continue };
            let TierStats {
                baseline, traced, compiled, reused, dropped, entries, interpreted, blocks, evictions, ..
            } = stats;
            let TierStats {
                lookups,
                links,
                requests,
                pages,
                faults,
                heated,
                narrowed,
                evicted,
                evicted_bytes,
                aged,
                ..
            } = stats;
            let rows = [
                ("blocks cached", cached as u64),
                ("blocks interpreted", blocks),
                ("blocks with baseline code", baseline),
                ("  that follow others in theirs", traced),
                ("regions compiled", compiled),
                ("  of them for another processor before", reused),
                ("regions dropped as their code changed", dropped),
                ("entries into compiled code", entries),
                ("exits to look up what is next", lookups),
                ("exits through jumps not joined yet", links),
                ("exits for interrupts and requests", requests),
                ("exits to look up a region's next page", pages),
                ("exits by exceptions", faults),
                ("exits to compile hot code", heated),
                ("exits for single instructions", interpreted),
                ("regions made again without shared checks", narrowed),
                ("blocks dropped as there were too many", aged),
                ("times old code made room for new", evictions),
                ("  pieces of code thrown away", evicted),
                ("  bytes thrown away", evicted_bytes),
            ];
            let _ = writeln!(text, "CPU #{cpu}");
            let checks = vcpu.with(|vcpu| vcpu.check_statistics()).flatten().map(check_rows);
            for (what, count) in rows.into_iter().chain(checks.into_iter().flatten()) {
                let _ = writeln!(text, "  {what:<40}{count:>14}");
            }
        }
        if let Some(store) = self.engine.shared_code().filter(|store| store.compiled != 0) {
            text += "code of all processors\n";
            for (what, count) in store_rows(store) {
                let _ = writeln!(text, "  {what:<40}{count:>14}");
            }
        }
        if let Some(profile) = &self.profile {
            text += &profile.show();
        }
        text
    }
}
