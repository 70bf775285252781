//! All of a PC's devices on one bus: several processors at once, saving, moving and resetting the whole.

use crate::a20::A20;
use crate::acpi_pm::{AcpiPm, AcpiPmConfig, GPE_BLOCK_LEN, SleepTypes};
use crate::bus::{Bus, Space};
use crate::debug_ports::{DebugConsole, DebugExit, Port92, PostPort};
use crate::fakes::{FakeChar, FakeIrq, FakePower, FakeTime, Random};
use crate::i8042::{I8042, Key, MouseMove};
use crate::pci::mechanism::ConfigMechanism;
use crate::pci::{DevFn, PciBus, i440fx::I440fx, piix3::Piix3, piix4_pm::Piix4Pm};
use crate::pic::Pic;
use crate::pit::Pit;
use crate::rtc::Rtc;
use crate::services::{CharFrontend, Clock, IrqLine, IrqSink};
use crate::uart::IsaSerial;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

struct Board {
    bus: Arc<Bus>,
    time: Arc<FakeTime>,
    pic: Arc<Pic>,
    uart: Arc<IsaSerial>,
    kbc: Arc<I8042>,
}

impl Board {
    fn new() -> Self {
        let (bus, time, cpu) = (Arc::new(Bus::new()), FakeTime::new(), FakeIrq::new());
        let (power, host, a20) = (Arc::new(FakePower::default()), Arc::new(FakeChar::default()), A20::new());
        let pic = Pic::new(cpu.line(0));
        let isa: Arc<dyn IrqSink> = pic.clone();
        let irq = |n| IrqLine::new(isa.clone(), n);
        let pit = Pit::new(irq(0), time.clone(), &*time);
        let rtc = Rtc::new(irq(8), time.clone(), &*time);
        let uart = IsaSerial::new(irq(4), host.clone(), time.clone(), &*time);
        let kbc = I8042::new(irq(1), irq(12), a20.clone(), power.clone());
        let sleep_types = SleepTypes { s5: 0, s4: None, s3: Some(1) };
        let config = AcpiPmConfig { sleep_types, timer_32_bit: false, sci_enabled_at_reset: true };
        let pm = AcpiPm::new(config, irq(9), cpu.line(1), time.clone(), &*time, power.clone());
        let (pci, host_bridge, piix3) =
            (PciBus::new(), I440fx::new(std::sync::Arc::new(crate::fakes::FakeShadow::default())), Piix3::new(&isa));
        let piix4 = Piix4Pm::new(&bus, pm.clone(), true);
        pci.insert(DevFn::new(0, 0), host_bridge.clone()).unwrap();
        pci.insert(DevFn::new(1, 0), piix3.clone()).unwrap();
        pci.insert(DevFn::new(1, 3), piix4.clone()).unwrap();
        let mechanism = ConfigMechanism::new(pci, power.clone());
        let (post, port92) = (PostPort::new(), Port92::new(a20, power.clone()));
        let console = DebugConsole::new(host, DebugConsole::READBACK);
        let ports: Vec<(u16, u32, crate::bus::Registers)> = vec![
            (0x20, 2, pic.master_ports()),
            (0xa0, 2, pic.slave_ports()),
            (0x4d0, 2, pic.elcr_ports()),
            (0x40, 4, pit.ports()),
            (0x61, 1, pit.speaker_port()),
            (0x70, 2, rtc.ports()),
            (0x3f8, 8, uart.ports()),
            (0x60, 1, kbc.data_port()),
            (0x64, 1, kbc.command_port()),
            (0xafe0, GPE_BLOCK_LEN, pm.gpe_ports()),
            (0xb2, 2, pm.smi_ports()),
            (0xcf8, 8, mechanism.clone()),
            (0x80, 1, post.clone()),
            (0x92, 1, port92.clone()),
            (0x402, 1, console.clone()),
            (0xf4, 4, DebugExit::new(power)),
        ];
        for (base, len, registers) in ports {
            bus.register_pio(base, len, "test", registers).unwrap();
        }
        let devices: [(&str, Arc<dyn crate::bus::Device>); 13] = [
            ("pic", pic.clone()),
            ("pit", pit),
            ("rtc", rtc),
            ("serial0", uart.clone()),
            ("i8042", kbc.clone()),
            ("pm", pm),
            ("host", host_bridge),
            ("piix3", piix3),
            ("piix4", piix4),
            ("config", mechanism),
            ("post", post),
            ("port92", port92),
            ("debugcon", console),
        ];
        devices.into_iter().for_each(|(id, device)| bus.add_device(id, device));
        Self { bus, time, pic, uart, kbc }
    }

    /// What a processor does that runs wild.
    fn run_wild(&self, seed: u64, accesses: u32) {
        let mut random = Random::new(seed);
        let ranges = self.bus.ranges();
        for _ in 0..accesses {
            let range = &ranges[random.below(ranges.len() as u64) as usize];
            let port = range.base.wrapping_add(random.below(range.last - range.base + 3)) as u16;
            let size = 1u8 << random.below(3);
            match random.below(5) {
                0..2 => drop(self.bus.pio_read(port, size)),
                2..4 => self.bus.pio_write(port, size, random.next() as u32),
                _ => drop(self.pic.acknowledge()),
            }
        }
    }
}

#[test]
fn several_processors_timers_and_input_at_once() {
    let board = Board::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random::new(99);
            while !done.load(Ordering::Relaxed) {
                board.time.stall_until(board.time.now_ns() + random.below(2_000_000));
                let room = board.uart.can_receive();
                board.uart.receive(&b"some input to it"[..room.min(16)]);
                board.kbc.key(Key(random.below(0x80) as u16), random.below(2) == 0);
                board.kbc.mouse(MouseMove { dx: random.next() as i32, dy: -3, dz: 1, buttons: random.next() as u8 });
            }
        });
        let cpus: Vec<_> = (1..4)
            .map(|seed| {
                scope.spawn({
                    let board = &board;
                    move || board.run_wild(seed, 15_000)
                })
            })
            .collect();
        let crashed = cpus.into_iter().map(|cpu| cpu.join()).filter(Result::is_err).count();
        done.store(true, Ordering::Relaxed);
        assert_eq!(crashed, 0);
    });
    let saved = board.bus.save();
    let other = Board::new();
    other.time.advance_to(board.time.now_ns());
    other.bus.restore(&saved).unwrap();
    assert_eq!(other.bus.save(), saved);
}

#[test]
fn reset_brings_back_the_board_of_the_start() {
    let board = Board::new();
    let (fresh, ranges) = (board.bus.save(), board.bus.ranges());
    board.run_wild(7, 20_000);
    assert_ne!(board.bus.save(), fresh);
    board.bus.reset();
    assert_eq!(board.bus.ranges(), ranges);
    let mut now = board.bus.save();
    // The battery keeps the clock's registers; nothing else survives.
    now["rtc"] = fresh["rtc"].clone();
    assert_eq!(now, fresh);
    assert!(!board.pic.output());
}

#[test]
fn unclaimed_neighbours_stay_unclaimed() {
    let board = Board::new();
    for port in 0..=0xffff {
        if !board.bus.is_claimed(Space::Port, port) {
            assert_eq!(board.bus.pio_read(port as u16, 1), 0xff);
        }
    }
}
