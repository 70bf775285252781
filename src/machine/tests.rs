//! The board's wiring, as a guest's drivers find it.

use super::*;
use crate::cli;
use brolga_devices::services::{CharBackend, CharFrontend, PowerEvent, PowerSink};
use brolga_jit::board::Board;
use pc::{Console, Surroundings};
use std::sync::{PoisonError, Weak};
use std::time::{Duration, Instant as HostInstant};

/// A host end that keeps what devices write.
#[derive(Default)]
struct Host {
    output: Mutex<Vec<u8>>,
    device: Mutex<Option<Weak<dyn CharFrontend>>>,
}

fn locked<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CharBackend for Host {
    fn write(&self, bytes: &[u8]) {
        locked(&self.output).extend(bytes);
    }
    fn input_ready(&self) {}
}

#[derive(Default)]
struct Power(Mutex<Vec<PowerEvent>>);

impl PowerSink for Power {
    fn request(&self, event: PowerEvent) {
        locked(&self.0).push(event);
    }
}

struct Fixture {
    board: PcBoard,
    pc: Pc,
    host: Arc<Host>,
    power: Arc<Power>,
    clock: Arc<GuestClock>,
    io: IoThread,
}

fn build(args: &[&str]) -> Result<Fixture> {
    let words: Vec<String> = args.iter().map(|&a| a.to_owned()).collect();
    let Ok(cli::Request::Run(config)) = cli::parse(cli::identify(Some("brolga")), &words) else {
        panic!("not a machine: {words:?}")
    };
    let clock = Arc::new(GuestClock::new(config.rtc));
    let io = IoThread::spawn(clock.clone()).unwrap();
    let (host, power) = (Arc::new(Host::default()), Arc::new(Power::default()));
    let layout = Layout::new(config.ram, 0).unwrap();
    let ram = Ram::new(layout.file_size() + vga::MEMORY, layout.regions()).unwrap();
    let ram = Arc::new(ram.with_window(layout.file_size(), vga::MEMORY).unwrap());
    let pc = Pc::build(&Surroundings {
        config: &config,
        layout,
        memory: GuestMemory::new(ram.clone()),
        shadow: Shadow::new(ram.clone(), 0),
        video: VideoMemory::new(ram, layout.file_size()),
        clock: clock.clone(),
        timers: &io.handle(),
        work: &io.handle(),
        netdev: &|_| None,
        power: power.clone(),
        links: &[Arc::new(CpuLink::default())],
        disk: &|_| Ok(None),
        entropy: &|source| crate::entropy::open(source, None, &io.handle()),
        console: &|_| {
            let (backend, host) = (host.clone(), host.clone());
            Console { backend, connect: Box::new(move |device| *locked(&host.device) = Some(device)) }
        },
    })?;
    let board = PcBoard {
        bus: pc.bus.clone(),
        apics: pc.apics.clone(),
        pic: pc.pic.clone(),
        fpu_error: pc.fpu_error.clone(),
        clock: clock.clone(),
    };
    Ok(Fixture { board, pc, host, power, clock, io })
}

impl Fixture {
    fn out(&self, port: u16, value: u32) {
        self.board.pio_write(0, port, 1, value);
    }

    fn read(&self, port: u16) -> u32 {
        self.board.pio_read(0, port, 1)
    }

    /// Sets up both 8259s as Linux does: vectors 0x20 and 0x28, everything unmasked.
    fn init_pic(&self) {
        for (base, words) in [(0x20, [0x11, 0x20, 4, 1]), (0xA0, [0x11, 0x28, 2, 1])] {
            self.out(base, words[0]);
            words[1..].iter().for_each(|&w| self.out(base + 1, w));
            self.out(base + 1, 0);
        }
    }

    fn ioapic(&self, register: u64, value: u32) {
        self.board.mmio_write(0, 0xFEC0_0000, 4, register);
        self.board.mmio_write(0, 0xFEC0_0010, 4, value.into());
    }

    /// Enables the local APIC by software.
    fn init_apic(&self) {
        self.board.mmio_write(0, 0xFEE0_00F0, 4, 0x1FF);
    }

    fn eventually(&self, what: &str) -> u8 {
        let start = HostInstant::now();
        loop {
            if let Some(vector) = self.board.acknowledge_interrupt(0) {
                return vector;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "never: {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

const CONSOLE: [&str; 5] = ["-nographic", "-kernel", "Cargo.toml", "-monitor", "none"];

#[test]
fn the_serial_port_talks_and_interrupts_through_both_controllers() {
    let f = build(&CONSOLE).unwrap();
    f.init_pic();
    b"ok".iter().for_each(|&b| f.out(0x3F8, b.into()));
    assert_eq!(*locked(&f.host.output), b"ok");
    assert_eq!(f.board.acknowledge_interrupt(0), None);
    f.out(0x3FC, 8); // OUT2 gates the interrupt
    f.out(0x3F9, 1);
    let device = locked(&f.host.device).clone().unwrap().upgrade().unwrap();
    device.receive(b"x");
    assert_eq!(f.board.acknowledge_interrupt(0), Some(0x24), "IRQ 4 by the virtual wire");
    assert_eq!(f.read(0x3F8), u32::from(b'x'));
    f.out(0x20, 0x20);
    f.init_apic();
    f.ioapic(0x10 + 2 * 4, 0x51);
    f.out(0x21, 0xFF);
    device.receive(b"y");
    assert_eq!(f.board.acknowledge_interrupt(0), Some(0x51), "input 4 of the I/O APIC");
}

#[test]
fn the_timer_reaches_irq_0_and_ioapic_input_2_unless_the_hpet_replaces_it() {
    let f = build(&CONSOLE).unwrap();
    f.clock.resume();
    f.io.handle().clock_changed();
    f.init_pic();
    f.out(0x43, 0x34); // counter 0, both bytes, rate generator
    f.out(0x40, 0x00);
    f.out(0x40, 0x10);
    assert_eq!(f.eventually("IRQ 0"), 0x20);
    f.out(0x21, 0xFF);
    f.out(0x20, 0x20);
    f.init_apic();
    f.ioapic(0x10 + 2 * 2, 0x60);
    assert_eq!(f.eventually("input 2"), 0x60);
    f.board.mmio_write(0, 0xFEE0_00B0, 4, 0);
    f.board.mmio_write(0, 0xFED0_0010, 8, 3); // enabled, legacy replacement
    while f.board.acknowledge_interrupt(0).is_some() {
        f.board.mmio_write(0, 0xFEE0_00B0, 4, 0);
    }
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(f.board.acknowledge_interrupt(0), None, "the 8254 is cut off");
}

#[test]
fn an_x87_error_is_interrupt_13_until_port_f0_is_written() {
    let f = build(&CONSOLE).unwrap();
    f.init_pic();
    f.board.set_fpu_error(1, true);
    assert_eq!(f.board.acknowledge_interrupt(0), None, "only the first processor is connected");
    f.board.set_fpu_error(0, true);
    assert!(!f.board.fpu_error_ignored(0));
    assert_eq!(f.board.acknowledge_interrupt(0), Some(0x2D));
    f.out(0xF0, 0);
    assert!(f.board.fpu_error_ignored(0));
    f.board.set_fpu_error(0, false);
    assert!(!f.board.fpu_error_ignored(0));
}

#[test]
fn resets_and_power_off_come_from_where_guests_look_for_them() {
    let f = build(&[&CONSOLE[..], &["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]].concat()).unwrap();
    let event = || locked(&f.power.0).pop();
    f.out(0x64, 0xFE);
    assert_eq!(event(), Some(PowerEvent::Reset), "keyboard controller");
    f.out(0x92, 1);
    assert_eq!(event(), Some(PowerEvent::Reset), "port 0x92");
    f.out(0xCF9, 6);
    assert_eq!(event(), Some(PowerEvent::Reset), "reset control");
    f.pc.set_up_as_firmware();
    f.board.pio_write(0, 0x604, 2, 1 << 13);
    assert_eq!(event(), Some(PowerEvent::PowerOff), "S5");
    f.board.pio_write(0, 0xF4, 4, 0x10);
    assert_eq!(event(), Some(PowerEvent::Exit(0x21)));
}

#[test]
fn what_firmware_does_makes_the_acpi_tables_true() {
    let f = build(&CONSOLE).unwrap();
    assert_eq!(f.board.pio_read(0, 0x604, 2), 0xFFFF);
    f.pc.set_up_as_firmware();
    assert_eq!(f.board.pio_read(0, 0x604, 2) & 1, 0, "ACPI mode is off until the guest wants it");
    assert_eq!(f.board.pio_read(0, 0x4D0, 2), 1 << 9 | 1 << 10 | 1 << 11);
    f.board.pio_write(0, 0xCF8, 4, 0x8000_0860);
    assert_eq!(f.board.pio_read(0, 0xCFC, 4), 0x0B0B_0A0A, "routes of the ISA bridge");
    assert_eq!(f.pc.acpi.pci_interrupts, [10, 10, 11, 11]);
    let hpet = f.pc.acpi.hpet.unwrap();
    assert_eq!(f.board.mmio_read(0, 0xFED0_0000, 4), u64::from(hpet));
}

#[test]
fn ports_that_collide_are_refused_by_option() {
    let line = [&CONSOLE[..], &["-device", "isa-debug-exit,iobase=0x60,iosize=4"]].concat();
    let error = build(&line).err().unwrap().to_string();
    assert!(error.contains("isa-debug-exit") && error.contains("iobase"), "{error}");
}

#[test]
fn each_address_has_one_owner_and_devices_reset_to_what_they_were() {
    // The clock's registers change with the second: a run within one is wanted.
    let second = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for _ in 0..100 {
        let start = second();
        let f = build(&CONSOLE).unwrap();
        let before = f.pc.bus.save();
        f.init_pic();
        f.out(0x3FB, 0x83);
        f.out(0x61, 3);
        f.init_apic();
        assert_ne!(f.pc.bus.save(), before);
        f.pc.bus.reset();
        let after = f.pc.bus.save();
        if second() == start {
            for (id, state) in before.as_object().unwrap() {
                assert_eq!(&after[id], state, "{id}");
            }
            return;
        }
    }
    panic!("no run within a second");
}
