//! The machine: built as a whole before anything starts, then run until the guest or the user ends it.

mod acpi;
mod arriving;
mod bars;
mod block_jobs;
mod board;
mod bridges;
mod cards;
mod committing;
mod control;
mod copying;
mod debug;
mod disk_statistics;
mod disks;
mod dma;
mod empty;
mod firmware;
mod flash;
mod floppy;
mod host;
mod host_ends;
mod input_gate;
mod inventory;
mod isa_irq;
pub mod layout;
mod looks;
mod maps;
mod media;
mod memory;
mod migrating;
mod nics;
mod offers;
mod parts;
mod pc;
mod peripherals;
mod plugging;
mod processors;
mod profiling;
mod properties;
mod saving;
mod scsi;
mod seats;
mod shadow;
mod signals;
mod smbios;
mod storage;
mod tables;
mod video;

use crate::background;
use crate::boot::{Boot, Facts, Placed};
use crate::chardev::Chardevs;
use crate::cli::config::{Actions, BootOrder, Config, DeviceSpec, Incoming, MachineKind};
use crate::clock::GuestClock;
use crate::gdb::{self, Listener, Resume};
use crate::io_thread::{IoHandle, IoThread};
use crate::migration::Migration;
use crate::monitor::{Commands, Control, Events, Fault, Jobs, Kept, MonitorHost, RunState, SnapshotAction};
use crate::nbd;
use crate::net::Netdevs;
use crate::profile::Profile;
use crate::vcpu::{Turns, VcpuEvents, VcpuThread};
use acpi::AcpiConfig;
use anyhow::{Context, Result, anyhow};
use board::PcBoard;
use brolga_devices::cpu_hotplug::Word;
use brolga_devices::services::PowerEvent;
use brolga_devices::vga;
use brolga_jit::cpuid::{CpuModel, Feature};
use brolga_jit::mmu::ram::Ram;
use brolga_jit::{Check, Engine, EngineConfig, Vcpu};
use cards::Cards;
use crossbeam_channel::{Receiver, Sender, unbounded};
use disks::Disks;
use dma::GuestMemory;
use inventory::Inventory;
use layout::Layout;
use media::Media;
use parts::Parts;
use pc::Pc;
use processors::Processors;
use shadow::Shadow;
use signals::{CpuLink, PowerControl};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Instant;
use tables::SystemTables;
use video::VideoMemory;

/// What the thread that runs the machine is asked to do.
pub enum Request {
    /// The guest asks for a reset, power-off or exit.
    Power(PowerEvent),
    /// The user asks; the sender is told when it is done.
    Control(Control, Sender<()>),
    /// The user has the machine's state kept or brought back; the sender is told how it went.
    Snapshot(SnapshotAction, Sender<Result<(), String>>),
    /// A processor is in shutdown, with its dump.
    TripleFault(u32, String),
    /// Compiled code of a processor was found to be wrong, with the report.
    Diverged(u32, String),
    /// A drive's request failed in a way that `werror=` or `rerror=` lets stop the machine; what went wrong.
    DiskFailed(String),
    /// A debugger's condition was met.
    DebugStop(u32),
    /// A debugger lets the guest go on, each processor as its entry says; the sender is told when it does.
    Debug(Vec<Resume>, Sender<()>),
    /// The guest has let go of the device in this slot of PCI bus 0.
    Ejected(u8),
    /// A user adds a processor; the sender is told how it went.
    AddProcessor(DeviceSpec, Sender<Result<(), Fault>>),
    /// The guest said something of a processor.
    Processor(Word),
    /// A processor's thread panicked.
    Died(u32),
    /// Something that is to be done between two other requests.
    Do(Box<dyn FnOnce(&Machine) + Send>),
    /// The machine that was to arrive did not, for this reason.
    Lost(String),
}

/// A machine. Locks are leaves: nothing is called while one is held.
pub struct Machine {
    program: String,
    actions: Mutex<Actions>,
    events: Arc<Events>,
    jobs: Arc<Jobs>,
    boot: Boot,
    tables: SystemTables,
    facts: Facts,
    ram: Arc<Ram>,
    shadow: Arc<Shadow>,
    engine: Arc<Engine>,
    clock: Arc<GuestClock>,
    io: IoHandle,
    pc: Pc,
    disks: Arc<Disks>,
    media: Media,
    config: Config,
    /// Where firmware's tables say that the power management ports are.
    told_pm_base: Mutex<u16>,
    boot_order: Mutex<BootOrder>,
    /// The machine was loaded before: `-boot once=` is over.
    loaded_before: AtomicBool,
    cards: Cards,
    /// What devices are built from.
    parts: Parts,
    /// The devices that users gave.
    inventory: Mutex<Inventory>,
    vcpus: Processors,
    requests: Sender<Request>,
    state: Mutex<RunState>,
    /// When the last triple fault was shown.
    last_dump: Mutex<Option<Instant>>,
    /// A debugger that wants to know of stops.
    listener: Mutex<Option<Listener>>,
    /// What was loaded at the last reset.
    placed: Mutex<Vec<Placed>>,
    /// Itself, for threads that are started later.
    this: OnceLock<Weak<Machine>>,
    /// Buttons of the mouse that are pressed.
    mouse_buttons: Mutex<u8>,
    /// The gdb server, if there is one.
    debugger: Mutex<Option<gdb::Handle>>,
    /// `-profile`.
    profile: Option<Profile>,
    /// Processors run one at a time (`-icount`).
    turns: Option<Arc<Turns>>,
    /// Disks that are offered to others.
    nbd: Mutex<Option<nbd::Server>>,
    /// How the last dump went, and its bytes.
    last_dump_file: Mutex<Option<Option<u64>>>,
    /// What is settled about migration, and how it goes.
    migration: Arc<Migration>,
    /// What the machine did before it was stopped to leave.
    left_as: Mutex<RunState>,
    /// The machine that arrives goes on, if it ran.
    starts: AtomicBool,
}

/// Builds the machine that `config` describes and runs it to its end. The result is the process's exit status.
pub fn run(config: Config) -> Result<i32> {
    if config.machine.kind == MachineKind::None {
        return empty::run(&config);
    }
    let clock = Arc::new(match &config.icount {
        Some(icount) => Turns::clock(icount, config.rtc),
        None => GuestClock::new(config.rtc),
    });
    let io = IoThread::spawn(clock.clone()).context("cannot start the I/O thread")?;
    let (machine, chardevs, requests) = Machine::build(&config, clock, io.handle())?;
    machine.load_guest()?;
    media::watch(&machine).context("cannot start the thread that watches trays")?;
    // Before anything is typed: that is for the guest of the state, and would be lost with this one.
    if let Some(tag) = &config.load {
        let action = SnapshotAction::Load { tag: tag.clone(), place: Kept::default() };
        machine.snapshot_here(&action).map_err(|why| anyhow!("-loadvm {tag}: {why}"))?;
    }
    // From here on there is a guest, and the user can act on it.
    let host: Arc<dyn MonitorHost> = machine.clone();
    chardevs.start(&config, &host)?;
    if let Some(endpoint) = &config.debugger {
        let server = gdb::start(endpoint, machine.clone(), Commands::new(chardevs.facts(&config)))?;
        *machine.debugger.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
    }
    if let Some(Incoming::From(address)) = &config.incoming {
        machine.begin_to_arrive(address, true).map_err(|fault| anyhow!("-incoming: {}", fault.desc))?;
    }
    background::ready(&config)?;
    profiling::start(&machine).context("-profile: cannot start its thread")?;
    let status = machine.control_loop(&requests, config.start_paused || config.incoming.is_some());
    if config.engine.check != Check::Off {
        machine.report_checks();
    }
    machine.jobs.close();
    machine.vcpus.quit();
    machine.profile.as_ref().map_or(Ok(()), Profile::save)?;
    drop(machine.nbd.lock().unwrap_or_else(PoisonError::into_inner).take());
    machine.disks.close();
    drop(io);
    machine.parts.netdevs.all().iter().for_each(|(_, netdev)| netdev.close());
    status
}

impl Machine {
    /// Builds the machine, with all its processors held. The receiver goes to [`Machine::control_loop`].
    fn build(
        config: &Config,
        clock: Arc<GuestClock>,
        io: IoHandle,
    ) -> Result<(Arc<Self>, Arc<Chardevs>, Receiver<Request>)> {
        let boot = Boot::open(config)?;
        let flash = flash::open(config)?;
        let rom = if flash.is_empty() { boot.rom_size()? } else { flash::size(&flash) };
        let layout = Layout::new(config.ram, rom).map_err(|e| anyhow!(e))?;
        let video = if config.peripherals.vga.is_some() { vga::MEMORY } else { 0 };
        let ram = memory::open(config, layout.file_size() + video, layout.regions())?;
        let ram = if video == 0 { Ok(ram) } else { ram.with_window(layout.file_size(), video) };
        let ram = Arc::new(ram.map_err(|e| anyhow!("-m: {e}; give the guest less memory"))?);
        let video = VideoMemory::new(ram.clone(), layout.file_size());
        let chardevs = Arc::new(Chardevs::open(config)?);
        let (requests, receiver) = unbounded();
        let links: Vec<_> = (0..config.topology.processors()).map(|_| Arc::new(CpuLink::default())).collect();
        let guest_clock: Arc<dyn brolga_devices::services::Clock> = clock.clone();
        let netdevs = Netdevs::open(&config.netdevs, guest_clock, io.clone())?;
        let (memory, shadow) = (GuestMemory::new(ram.clone()), Shadow::new(ram.clone(), layout.rom));
        let events = Arc::new(Events::default());
        let arrives = config.incoming.is_some();
        let disks = Disks::new(memory.clone(), io.clone(), requests.clone(), events.clone(), !arrives);
        let parts = Parts {
            layout,
            memory: memory.clone(),
            shadow: shadow.clone(),
            video: video.clone(),
            clock: clock.clone(),
            io: io.clone(),
            power: Arc::new(PowerControl::new(requests.clone(), links.clone())),
            links: links.clone(),
            disks: disks.clone(),
            input: Arc::default(),
            chardevs: chardevs.clone(),
            netdevs,
        };
        let mut pc = parts.with(config, Pc::build)?;
        pc.drives.plugged.extend(flash::plug_in(flash, &pc.bus, &memory, &disks)?);
        let mut inventory = Inventory::new(config);
        inventory.collected.drives.free().try_for_each(|spec| disks.shelve(spec))?;
        inventory.seat(&pc.cards, &mut pc.drives, &mut pc.peripherals);
        let cards = Cards::default();
        let new_cards = cards.add(&pc.cards, |number| config.nics.get(number).cloned());
        let board = PcBoard {
            bus: pc.bus.clone(),
            apics: pc.apics.clone(),
            pic: pc.pic.clone(),
            fpu_error: pc.fpu_error.clone(),
            clock: clock.clone(),
        };
        let engine = Engine::new(
            EngineConfig {
                topology: config.topology,
                perf_map: config.perf_map.then(debug::perf_map).transpose()?,
                counter: clock.counter().cloned(),
                seed: config.seed,
                ..config.engine.clone()
            },
            ram.clone(),
            Arc::new(board),
        )
        .map_err(|e| anyhow!("-accel: {e}"))?;
        let gate = Arc::downgrade(&engine);
        pc.a20.on_change(Box::new(move |open| gate.upgrade().into_iter().for_each(|engine| engine.set_a20(open))));
        memory.connect(engine.clone());
        shadow.connect(engine.clone());
        video.connect(engine.clone());
        let turns = config.icount.and_then(|icount| Turns::new(icount, clock.clone(), io.clone()));
        let vcpus = (0..config.processors).zip(&links).map(|(number, link)| {
            let vcpu = spawn_vcpu(&config.cpu, &engine, number, &requests, turns.clone())?;
            link.connect(vcpu.clone());
            Ok(vcpu)
        });
        let vcpus = vcpus.collect::<Result<Vec<_>>>()?;
        let tables = match boot.has_kernel() {
            true => SystemTables::build(config, &layout, &pc.acpi)?,
            false => SystemTables::none(),
        };
        let facts = Facts { layout, rsdp: tables.rsdp, long_mode: config.cpu.has(Feature::LM) };
        pc.fw_cfg.provide(firmware::items(config, &boot, facts, &pc.acpi, &pc.boot_paths())?);
        let pc_pm_base = pc.acpi.pm_base;
        nics::tell_alone(config);
        let machine = Self {
            program: config.identity.program.clone(),
            actions: Mutex::new(config.actions),
            events: events.clone(),
            jobs: Jobs::new(events.clone()),
            boot,
            facts,
            tables,
            ram,
            shadow,
            engine,
            turns,
            clock,
            io,
            media: Media::new(std::mem::take(&mut pc.drives.plugged), disks.clone(), config, events.clone()),
            pc,
            disks,
            config: config.clone(),
            told_pm_base: Mutex::new(pc_pm_base),
            boot_order: Mutex::new(config.boot.order.clone()),
            loaded_before: AtomicBool::new(false),
            cards,
            parts,
            inventory: Mutex::new(inventory),
            vcpus: Processors::new(vcpus, config.topology.processors() as usize),
            requests,
            state: Mutex::new(if arrives { RunState::InMigrate } else { RunState::Prelaunch }),
            last_dump: Mutex::new(None),
            listener: Mutex::default(),
            placed: Mutex::default(),
            this: OnceLock::new(),
            mouse_buttons: Mutex::default(),
            debugger: Mutex::default(),
            profile: config.profile.as_ref().map(|p| Profile::new(p, config.boot.kernel.as_deref())).transpose()?,
            nbd: Mutex::default(),
            last_dump_file: Mutex::default(),
            migration: Migration::new(events.clone()),
            left_as: Mutex::new(RunState::Prelaunch),
            starts: AtomicBool::new(!config.start_paused),
        };
        let machine = Arc::new(machine);
        let weak = Arc::downgrade(&machine);
        // The only place that sets it.
        let _ = machine.this.set(weak.clone());
        machine.connect_events(&new_cards);
        let update = move || weak.upgrade().into_iter().for_each(|machine| machine.update_tables());
        machine.pc.fw_cfg.before_files(Box::new(update));
        Ok((machine, chardevs, receiver))
    }
}

impl Machine {
    /// Firmware is about to read its tables: they follow where it has put the power management ports. Files stay as long
    /// as they are.
    fn update_tables(&self) {
        let Some(pm_base) = self.pc.pm_base() else { return };
        {
            let mut told = self.told_pm_base.lock().unwrap_or_else(PoisonError::into_inner);
            if std::mem::replace(&mut *told, pm_base) == pm_base {
                return;
            }
        }
        self.tell_firmware();
    }

    /// Firmware finds what is true now when it looks next.
    fn tell_firmware(&self) {
        let pm_base = *self.told_pm_base.lock().unwrap_or_else(PoisonError::into_inner);
        let acpi = AcpiConfig { pm_base, ..self.pc.acpi.clone() };
        match firmware::items(&self.config, &self.boot, self.facts, &acpi, &self.pc.boot_paths()) {
            Ok(items) => self.pc.fw_cfg.provide(items),
            Err(error) => tracing::error!("firmware keeps its old tables: {error:#}"),
        }
    }
}

/// Starts the thread of a processor, held.
fn spawn_vcpu(
    model: &CpuModel,
    engine: &Arc<Engine>,
    number: u32,
    requests: &Sender<Request>,
    turns: Option<Arc<Turns>>,
) -> Result<Arc<VcpuThread>> {
    let events: Arc<dyn VcpuEvents> = Arc::new(FromVcpus(requests.clone()));
    let (engine, model) = (engine.clone(), model.clone());
    VcpuThread::spawn(number, events, turns, move || Ok(Vcpu::new(&engine, number, &model)?))
        .with_context(|| format!("cannot start the thread of vCPU {number}"))
}

/// Passes what processor threads tell on to the control loop. Sending fails only when the machine is ending.
struct FromVcpus(Sender<Request>);

impl VcpuEvents for FromVcpus {
    fn triple_fault(&self, cpu: u32, dump: String) {
        let _ = self.0.send(Request::TripleFault(cpu, dump));
    }

    fn diverged(&self, cpu: u32, report: String) {
        let _ = self.0.send(Request::Diverged(cpu, report));
    }

    fn debug_stop(&self, cpu: u32) {
        let _ = self.0.send(Request::DebugStop(cpu));
    }

    fn died(&self, cpu: u32) {
        let _ = self.0.send(Request::Died(cpu));
    }
}

#[cfg(test)]
mod tests;
