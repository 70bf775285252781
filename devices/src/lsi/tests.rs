//! The chip as drivers and scripts use it.

use super::registers::bit;
use super::wires::message;
use super::*;
use crate::fakes::{FakeDisk, FakeIrq, FakeMemory, FakeTime, FakeWork, Random, fuzz, moves_to, same_after_restore};
use crate::scsi::{Carrier, Identity as Names};

const PORTS: u16 = 0xc000;
const MEMORY: u64 = 0xe000_0000;
const RAM: u64 = 0xe001_0000;
const SCRIPT: u32 = 0x1000;
const MESSAGE: u32 = 0x2000;
const CDB: u32 = 0x2100;
const STATUS: u32 = 0x2200;
const DATA: u32 = 0x4000;
/// Selections of target 3, and of target 5 where nobody is.
const SELECT: u32 = 0x4000_0000 | 3 << 16;
const SELECT_ATN: u32 = SELECT | 1 << 24;
const SELECT_NOBODY: u32 = 0x4000_0000 | 5 << 16;
const WAIT_RESELECT: u32 = 0x5000_0000;
const WAIT_DISCONNECT: u32 = 0x4800_0000;
const CLEAR_ACK: u32 = 0x6000_0040;
const INT: u32 = 0x9808_0000;
/// INT unless the next phase is this.
const INT_UNLESS: u32 = 0x9803_0000;
const DATA_IN: u32 = 1 << 24;
const COMMAND: u32 = 2 << 24;
const STATUS_IN: u32 = 3 << 24;
const MESSAGE_OUT: u32 = 6 << 24;
const MESSAGE_IN: u32 = 7 << 24;

struct Bench {
    bus: Arc<Bus>,
    memory: Arc<FakeMemory>,
    disk: Arc<FakeDisk>,
    work: FakeWork,
    irq: Arc<FakeIrq>,
    time: Arc<FakeTime>,
    chip: Arc<Lsi>,
}

fn names(cd: bool) -> Names {
    let text = |text: &str| text.to_owned();
    let (id, wwn) = (String::new(), None);
    Names {
        cd,
        carrier: Carrier::Scsi,
        vendor: text("BROLGA"),
        product: text("X"),
        revision: text("1"),
        serial: text("S"),
        id,
        wwn,
    }
}

impl Bench {
    fn of(chip: Chip) -> Self {
        let (bus, memory, irq, time) =
            (Arc::new(Bus::new()), FakeMemory::new(0x10_0000), FakeIrq::new(), FakeTime::new());
        let (disk, work) = (FakeDisk::new(2000, memory.clone()), FakeWork::default());
        let surroundings = Surroundings {
            bus: &bus,
            irq: irq.line(11),
            dma: memory.clone(),
            clock: time.clone(),
            timers: &*time,
            work: &work,
        };
        let chip = Lsi::new(chip, surroundings).unwrap();
        assert!(chip.plug(3, 0, Unit::new(names(false), Some(disk.clone()))));
        assert!(chip.plug(3, 2, Unit::new(names(true), Some(disk.clone()))));
        assert!(!chip.plug(3, 2, Unit::new(names(true), None)) && !chip.plug(7, 0, Unit::new(names(true), None)));
        for (at, value) in [(0x10, u32::from(PORTS)), (0x14, MEMORY as u32), (0x18, RAM as u32), (4, 7)] {
            chip.config_write(at, 4, value);
        }
        let bench = Self { bus, memory, disk, work, irq, time, chip };
        // Both units say that power came.
        for lun in [0, 2] {
            bench.put(MESSAGE, &[message::IDENTIFY | lun]);
            bench.run(&bench.held_bus(&[0; 6], None));
            assert_eq!(bench.status(), 2);
        }
        bench
    }

    fn new() -> Self {
        Self::of(Chip::C895a)
    }

    fn put(&self, at: u32, bytes: &[u8]) {
        self.memory.write(at.into(), bytes);
    }

    fn bytes(&self, at: u32, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(at.into(), &mut bytes);
        bytes
    }

    fn word(&self, at: u32) -> u32 {
        u32::from_le_bytes(self.bytes(at, 4).try_into().unwrap())
    }

    fn status(&self) -> u8 {
        self.bytes(STATUS, 1)[0]
    }

    fn get(&self, at: u8) -> u8 {
        self.bus.mmio_read(MEMORY + u64::from(at), 1) as u8
    }

    fn get_word(&self, at: u8) -> u32 {
        self.bus.mmio_read(MEMORY + u64::from(at), 4) as u32
    }

    fn set(&self, at: u8, value: u8) {
        self.bus.mmio_write(MEMORY + u64::from(at), 1, value.into());
    }

    fn set_word(&self, at: u8, value: u32) {
        self.bus.mmio_write(MEMORY + u64::from(at), 4, value.into());
    }

    fn go(&self) {
        self.work.run();
        self.disk.run();
        self.work.run();
    }

    /// Runs a script from memory until it stops or waits for ever; DSTAT, SIST0 and SIST1.
    fn run(&self, script: &[u32]) -> [u8; 3] {
        self.put(SCRIPT, &script.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>());
        self.set_word(reg::DSP, SCRIPT);
        self.go();
        self.causes()
    }

    fn causes(&self) -> [u8; 3] {
        let [dstat, sist0, sist1] = [reg::DSTAT, reg::SIST0, reg::SIST1].map(|at| self.get(at));
        [dstat & !bit::FIFO_EMPTY, sist0, sist1]
    }

    /// A command as SeaBIOS sends it: no ATN, all 16 bytes of a command, ACK is never taken back; with a move of data.
    fn held_bus(&self, cdb: &[u8], data: Option<u32>) -> Vec<u32> {
        self.put(CDB, &[0; 16]);
        self.put(CDB, cdb);
        let mut script = vec![SELECT, 0, MESSAGE_OUT | 1, MESSAGE, COMMAND | 16, CDB];
        script.extend(data.map_or([0, 0], |data| [data, DATA]));
        script.extend([STATUS_IN | 1, STATUS, MESSAGE_IN | 1, STATUS + 1, INT, 0x77]);
        script
    }
}

#[test]
fn firmware_reads_and_writes() {
    let b = Bench::new();
    b.put(MESSAGE, &[message::IDENTIFY]);
    let done = [bit::SCRIPT_INTERRUPT, 0, 0];
    assert_eq!(b.run(&b.held_bus(&[0x28, 0, 0, 0, 0, 7, 0, 0, 2], Some(DATA_IN | 1024))), done);
    assert_eq!((b.status(), b.get_word(reg::DSPS)), (0, 0x77));
    assert_eq!(b.bytes(DATA, 1024), [[7; 512], [8; 512]].concat());
    b.put(DATA, &[0xab; 512]);
    assert_eq!(b.run(&b.held_bus(&[0x2a, 0, 0, 0, 0, 9, 0, 0, 1], Some(512))), done);
    assert_eq!(locked(&b.disk.bytes)[9 * 512..10 * 512], [0xab; 512]);
    // More than the target holds at once, in both directions.
    let many = 600u32;
    let cdb = [0x28, 0, 0, 0, 0, 1, 0, (many >> 8) as u8, many as u8];
    assert_eq!(b.run(&b.held_bus(&cdb, Some(DATA_IN | (many * 512)))), done);
    let all: Vec<u8> = locked(&b.disk.bytes)[512..][..many as usize * 512].to_vec();
    assert!(b.bytes(DATA, all.len()) == all);
    let backwards: Vec<u8> = all.iter().rev().copied().collect();
    b.put(DATA, &backwards);
    let cdb = [0x2e, 0, 0, 0, 0, 1, 0, (many >> 8) as u8, many as u8];
    assert_eq!(b.run(&b.held_bus(&cdb, Some(many * 512))), done);
    assert!(locked(&b.disk.bytes)[512..][..backwards.len()] == backwards);
    // An error of the host, whose sense is asked for.
    *locked(&b.disk.failure) = Some(crate::services::DiskError::Host);
    let [dstat, sist0, _] = b.run(&b.held_bus(&[0x28, 0, 0, 0, 0, 7, 0, 0, 2], Some(DATA_IN | 1024)));
    assert_eq!((dstat, sist0), (0, bit::MISMATCH), "the status comes in place of data");
    assert_eq!(b.run(&b.held_bus(&[3, 0, 0, 0, 18], Some(DATA_IN | 18))), done);
    assert_eq!(b.bytes(DATA + 2, 1), [3]);
}

#[test]
fn nobody_answers() {
    let b = Bench::new();
    b.set(reg::SIEN1, bit::NOBODY);
    let script = [SELECT_NOBODY, 0, 0x7834_1100, 0, INT_UNLESS | MESSAGE_OUT, 1, INT, 2];
    assert_eq!(b.run(&script), [0, 0, bit::NOBODY]);
    assert_eq!(b.irq.rises(11), 1);
    // It went on up to the first instruction that needs the bus.
    assert_eq!((b.get(0x34), b.get_word(reg::DSP)), (0x11, SCRIPT + 24));
    assert!(!b.irq.level(11), "the cause was read");
    let before = b.get(reg::SSTAT1);
    assert_eq!(before & 7, 0);
}

/// A script with tables as operating systems have it: commands leave the bus and come back by tag.
fn tagged(b: &Bench, tag: u8, block: u8, table: u32) -> Vec<u32> {
    let messages = [message::IDENTIFY | message::MAY_DISCONNECT, message::SIMPLE_TAG, tag];
    b.put(table, &[0, 0, 3, 0x11]);
    b.put(table + 0x40, &messages);
    b.put(table + 0x50, &[0x28, 0, 0, 0, 0, block, 0, 0, 1, 0]);
    for (i, word) in (2..).step_by(2).zip([[3, table + 0x40], [10, table + 0x50]]) {
        b.put(table + 4 * i, &word.map(u32::to_le_bytes).concat());
    }
    vec![
        0x7810_0000 | (table & 0xff) << 8,
        0,
        0x7811_0000 | (table >> 8 & 0xff) << 8,
        0,
        // SELECT ATN and messages by table; then the command.
        0x4300_0000,
        0,
        INT_UNLESS | MESSAGE_OUT,
        1,
        0x1000_0000 | MESSAGE_OUT,
        8,
        INT_UNLESS | COMMAND,
        2,
        0x1000_0000 | COMMAND,
        16,
        INT_UNLESS | MESSAGE_IN,
        3,
        MESSAGE_IN | 1,
        STATUS,
        CLEAR_ACK,
        0,
        WAIT_DISCONNECT,
        0,
    ]
}

#[test]
fn commands_leave_and_come_back() {
    let b = Bench::new();
    let mut script = tagged(&b, 0x81, 4, 0x3000);
    script.extend(tagged(&b, 0x82, 6, 0x3100));
    script.extend([WAIT_RESELECT, SCRIPT, INT, 0x99]);
    b.put(SCRIPT, &script.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>());
    b.set_word(reg::DSP, SCRIPT);
    b.work.run();
    assert_eq!((b.causes(), b.status()), ([0; 3], message::DISCONNECT));
    assert_eq!(b.get(reg::ISTAT1) & 1, 1, "it waits");
    assert_eq!(b.get(reg::SXFER) as u32 | u32::from(b.get(reg::SCNTL3)) << 8, 0x1100);
    let other = Bench::new();
    other.put(SCRIPT, &b.bytes(SCRIPT, 512));
    moves_to(&*b.chip, &*other.chip);
    for bench in [&b, &other] {
        bench.disk.run();
        assert_eq!(bench.causes(), [bit::SCRIPT_INTERRUPT, 0, 0]);
        assert_eq!((bench.get(reg::SSID), bench.get(reg::ISTAT0) & bit::CON), (0x83, bit::CON));
    }
    for (tag, block) in [(0x81u8, 4u8), (0x82, 6)] {
        let finish = [
            // IDENTIFY and the tag, of which SIDL has the last byte.
            MESSAGE_IN | 1,
            MESSAGE,
            CLEAR_ACK,
            0,
            MESSAGE_IN | 2,
            MESSAGE + 1,
            CLEAR_ACK,
            0,
            0x7250_0000,
            0,
            0x6a34_0000,
            0,
            INT_UNLESS | DATA_IN,
            4,
            DATA_IN | 512,
            DATA,
            STATUS_IN | 1,
            STATUS,
            MESSAGE_IN | 1,
            STATUS + 1,
            CLEAR_ACK,
            0,
            WAIT_DISCONNECT,
            0,
            WAIT_RESELECT,
            SCRIPT + 8 * 14,
            INT,
            0x98,
            INT,
            0x97,
        ];
        // With nobody left to come back, the host's signal ends the waiting.
        let last = tag == 0x82;
        if last {
            b.set(reg::ISTAT0, bit::SIGNAL);
        }
        assert_eq!(b.run(&finish), [bit::SCRIPT_INTERRUPT, 0, 0]);
        assert_eq!(b.get_word(reg::DSPS), if last { 0x97 } else { 0x98 });
        assert_eq!(b.bytes(MESSAGE, 3), [message::IDENTIFY, message::SIMPLE_TAG, tag]);
        assert_eq!((b.get(0x34), b.bytes(DATA, 512)), (tag, vec![block; 512]));
    }
    assert_eq!(b.get(reg::CTEST2) & bit::SIGNALLED, bit::SIGNALLED);
    assert_eq!(b.get(reg::CTEST2) & bit::SIGNALLED, 0);
}

#[test]
fn other_phases_than_expected() {
    let b = Bench::new();
    b.put(MESSAGE, &[message::IDENTIFY]);
    // An answer of 36 bytes, and room for 100.
    let script = b.held_bus(&[0x12, 0, 0, 0, 36], Some(DATA_IN | 100));
    assert_eq!(b.run(&script), [0, bit::MISMATCH, 0]);
    assert_eq!((b.get_word(reg::DBC) & 0xff_ffff, b.get_word(reg::DNAD)), (64, DATA + 36));
    assert_eq!(b.get_word(reg::CSBC) & 0xff, (36 + 1 + 16) + 2 * (1 + 16 + 2), "all that has moved");
    b.set(reg::CCNTL0, bit::JUMP_ON_MISMATCH);
    b.set_word(reg::PMJAD1, 0x3000);
    b.put(0x3000, &[INT, 0x55].map(u32::to_le_bytes).concat());
    assert_eq!(b.run(&script), [bit::SCRIPT_INTERRUPT, 0, 0]);
    assert_eq!((b.get_word(reg::DSPS), b.get_word(reg::RBC), b.get_word(reg::UA)), (0x55, 0x0100_0040, DATA + 36));
    assert_eq!(b.get_word(reg::IA), SCRIPT + 24);
    b.set(reg::CCNTL0, bit::JUMP_ON_MISMATCH | bit::JUMP_BY_DIRECTION);
    b.set_word(reg::PMJAD2, 0x3100);
    b.put(0x3100, &[INT, 0x66].map(u32::to_le_bytes).concat());
    b.run(&script);
    assert_eq!(b.get_word(reg::DSPS), 0x66);
    // Phases without data interrupt all the same.
    assert_eq!(b.run(&[SELECT, 0, STATUS_IN | 1, STATUS]), [0, bit::MISMATCH, 0]);
    b.set(reg::ISTAT0, bit::RESET);
    assert_eq!((b.get(reg::SCNTL1), b.get(reg::ISTAT0), b.get_word(reg::PMJAD1)), (0, 0, 0));
}

#[test]
fn initiators_reject_abort_and_reset() {
    let b = Bench::new();
    // Who wants fast transfers is told no, and the command follows.
    b.put(MESSAGE, &[message::IDENTIFY, message::EXTENDED, 3, 1, 10, 15]);
    b.put(CDB, &[0; 6]);
    let script = [
        SELECT_ATN,
        0,
        MESSAGE_OUT | 6,
        MESSAGE,
        INT_UNLESS | MESSAGE_IN,
        1,
        MESSAGE_IN | 1,
        STATUS,
        CLEAR_ACK,
        0,
        COMMAND | 6,
        CDB,
        STATUS_IN | 1,
        STATUS + 1,
        INT,
        2,
    ];
    assert_eq!(b.run(&script), [bit::SCRIPT_INTERRUPT, 0, 0]);
    assert_eq!((b.get_word(reg::DSPS), b.bytes(STATUS, 2)), (2, vec![message::REJECT, 0]));
    // A command in the middle of which ATN comes up is aborted; the bus is free then.
    b.put(MESSAGE, &[message::IDENTIFY, message::ABORT]);
    let abort = [
        SELECT_ATN,
        0,
        MESSAGE_OUT | 1,
        MESSAGE,
        COMMAND | 6,
        CDB,
        STATUS_IN | 1,
        STATUS,
        MESSAGE_IN | 1,
        STATUS,
        0x5800_0008,
        0,
        CLEAR_ACK,
        0,
        MESSAGE_OUT | 1,
        MESSAGE + 1,
        WAIT_DISCONNECT,
        0,
        INT,
        3,
    ];
    assert_eq!(b.run(&abort), [bit::SCRIPT_INTERRUPT, 0, 0]);
    assert_eq!(b.get(reg::ISTAT0) & bit::CON, 0);
    // The bus is reset: all units say so.
    b.set(reg::SIEN0, bit::RST);
    b.set(reg::SCNTL1, bit::BUS_RESET);
    assert!(b.irq.level(11));
    assert_eq!((b.get(reg::SSTAT0), b.get(reg::SIST0)), (2, bit::RST));
    b.set(reg::SCNTL1, 0);
    b.run(&b.held_bus(&[0; 6], None));
    assert_eq!((b.get(reg::SSTAT0), b.status()), (0, 2));
    // A unit that is not there.
    b.put(MESSAGE, &[message::IDENTIFY | 5]);
    b.run(&b.held_bus(&[0x12, 0, 0, 0, 36], Some(DATA_IN | 36)));
    assert_eq!(b.bytes(DATA, 1), [0x7f]);
    b.run(&b.held_bus(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0], Some(DATA_IN | 24)));
    assert_eq!(b.bytes(DATA, 24), [0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn arithmetic_jumps_and_memory() {
    let b = Bench::new();
    b.put(0x3000, &0x1234_56ffu32.to_le_bytes());
    b.set_word(reg::DSA, 0x3100);
    let script = [
        // SCRATCHA from memory relative to DSA; plus 1 with carry; shifted.
        0xf134_0004,
        0x00ff_ff00,
        0x7e34_0100,
        0,
        0x7f35_0000,
        0,
        0x7936_0000,
        0,
        // SFBR = third byte, masked; compared under a mask.
        0x7436_f000,
        0,
        0x808c_0f60,
        8,
        INT,
        1,
        // A call that is relative, back from it, and the result to memory by a memory move between registers.
        0x8888_0000,
        20,
        0xc000_0004,
        MEMORY as u32 + 0x34,
        0x3200,
        INT,
        2,
        0x9008_0000,
        0,
    ];
    assert_eq!(b.run(&script), [bit::SCRIPT_INTERRUPT, 0, 0]);
    assert_eq!((b.get_word(reg::DSPS), b.word(0x3200)), (2, 0x1268_5700));
    // If it is not equal, and if it is, to something else.
    for (condition, interrupt) in [(0x8084_0f60, 1), (0x808c_0070, 1), (0x8084_0070, 2), (0x808c_0f68, 2)] {
        let mut other = script;
        other[10] = condition;
        b.run(&other);
        assert_eq!(b.get_word(reg::DSPS), interrupt, "{condition:x}");
    }
}

#[test]
fn scripts_in_the_chips_own_memory() {
    let b = Bench::new();
    let script = [0x7834_4200, 0, 0xe034_0001, RAM as u32 + 0x100, 0x9818_0000, 0, INT, 5];
    for (at, word) in (RAM..).step_by(4).zip(script) {
        b.bus.mmio_write(at, 4, word.into());
    }
    b.set(reg::DMODE, bit::MANUAL_START);
    b.set_word(reg::DSP, RAM as u32);
    b.go();
    assert_eq!(b.causes(), [0; 3], "it starts when told");
    b.set(reg::DIEN, bit::SCRIPT_INTERRUPT);
    b.set(reg::DCNTL, bit::START | bit::STEP);
    b.go();
    assert_eq!((b.causes(), b.get_word(reg::DSP)), ([bit::SINGLE_STEP, 0, 0], RAM as u32 + 8));
    b.set(reg::DCNTL, bit::START);
    b.go();
    assert_eq!((b.bus.mmio_read(RAM + 0x100, 1), b.irq.level(11)), (0x42, true));
    assert_eq!(b.get(reg::ISTAT0) & !bit::CON, bit::ON_THE_FLY | bit::DIP);
    b.causes();
    assert!(b.irq.level(11));
    b.set(reg::ISTAT0, bit::ON_THE_FLY);
    assert!(!b.irq.level(11));
    // The older chip has none.
    let old = Bench::of(Chip::C810);
    assert_eq!((old.chip.config_read(0, 4), old.bus.mmio_read(RAM, 4)), (0x0001_1000, 0xffff_ffff));
}

#[test]
fn endless_scripts_rest() {
    let b = Bench::new();
    b.run(&[0x8088_0000, 0x00ff_fff8]);
    assert_eq!(b.get(reg::ISTAT1), 1);
    let rest = b.time.next_deadline().expect("a rest");
    assert_eq!(rest, b.time.now_ns() + REST_NS);
    b.time.advance(10 * REST_NS);
    assert!(b.time.next_deadline().is_some());
    // A large memory move over itself counts for what it costs.
    b.run(&[0xc0ff_ffff, 0, 0x10, 0x8088_0000, 0x00ff_ffec]);
    b.set(reg::ISTAT0, bit::ABORT);
    b.time.advance(10 * REST_NS);
    assert_eq!((b.causes(), b.get(reg::ISTAT1)), ([bit::ABORTED, 0, 0], 0));
    assert!(b.time.next_deadline().is_none());
}

#[test]
fn the_general_purpose_timer() {
    let b = Bench::new();
    b.set(reg::STIME1, 8);
    b.time.advance((GENERAL_NS << 7) - 1);
    assert_eq!(b.get(reg::SIST1), 0);
    moves_to(&*b.chip, &*Bench::new().chip);
    b.time.advance(1);
    assert_eq!((b.get(reg::SIST1), b.irq.level(11)), (bit::GENERAL, false));
    b.set(reg::STIME1, 1);
    b.set(reg::STIME1, 0);
    b.time.advance(GENERAL_NS);
    assert_eq!(b.get(reg::SIST1), 0);
}

#[test]
fn state_in_the_middle_of_a_command() {
    let b = Bench::new();
    b.put(MESSAGE, &[message::IDENTIFY]);
    let script = b.held_bus(&[0x28, 0, 0, 0, 0, 7, 0, 0, 2], Some(DATA_IN | 1024));
    b.put(SCRIPT, &script.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>());
    b.set_word(reg::DSP, SCRIPT);
    b.work.run();
    let other = Bench::new();
    other.put(SCRIPT, &b.bytes(SCRIPT, 256));
    moves_to(&*b.chip, &*other.chip);
    other.disk.run();
    assert_eq!((other.causes(), other.status()), ([bit::SCRIPT_INTERRUPT, 0, 0], 0));
    assert_eq!(other.bytes(DATA, 513), [&[7; 512][..], &[8]].concat());
    let mut bad = b.chip.save();
    bad["regs"] = serde_json::json!([1, 2]);
    b.chip.restore(&bad).unwrap_err();
    b.chip.reset();
    b.disk.run();
    assert_eq!(b.chip.config_read(0x10, 4), 1, "what a disk did for an earlier life is forgotten");
    same_after_restore(&*b.chip);
    let mut out = Inspector::new();
    b.chip.inspect(&mut out);
    assert!(out.lines().iter().any(|line| line.contains("scsi-cd scsi-id=3 lun=2")), "{:?}", out.lines());
}

#[test]
fn media_change() {
    let b = Bench::new();
    let drive = b.chip.medium_drive(3, 2);
    assert!(!drive.locked() && !drive.tray_open());
    drive.change(None);
    assert!(drive.tray_open());
    b.put(MESSAGE, &[message::IDENTIFY | 2]);
    b.run(&b.held_bus(&[0; 6], None));
    b.run(&b.held_bus(&[3, 0, 0, 0, 18], Some(DATA_IN | 18)));
    assert_eq!(b.bytes(DATA + 12, 1), [0x3a]);
    drive.change(Some(b.disk.clone()));
    assert!(!drive.tray_open());
}

#[test]
fn random_registers_and_scripts() {
    let b = Bench::new();
    let weak = Arc::downgrade(&b.chip);
    let (registers, ram) = (RegisterWindow(weak.clone()), RamWindow(weak));
    fuzz(&*b.chip, &[(&registers, 256), (&ram, RAM_LEN as u64)], &b.time, 71);
    // Scripts of likely instructions with unlikely fields, which point at themselves, at the chip and at nothing.
    let mut random = Random::new(72);
    let places = [SCRIPT, DATA, MESSAGE, MEMORY as u32, RAM as u32, 0xffff_fffc, 0xfffc];
    for round in 0..300 {
        let script: Vec<u32> = (0..64)
            .map(|i| match (i & 1, random.below(8)) {
                (0, 0) => SELECT_ATN | random.next() as u32 & 0x0300_0000,
                (0, 1) => MESSAGE_OUT | random.below(6) as u32,
                (0, 2) => COMMAND | 10,
                (0, 3) => 0x8000_0000 | random.next() as u32 & 0x3f7f_ffff,
                (0, 4) => (random.next() as u32 & 0x3700_0000) | random.below(2000) as u32,
                (0, _) => random.next() as u32,
                (_, n) if n < 6 => places[random.below(7) as usize].wrapping_add(random.below(64) as u32 * 4),
                _ => random.next() as u32 & 0x00ff_ffff,
            })
            .collect();
        b.put(MESSAGE, &random.next().to_le_bytes());
        b.put(CDB, &[random.next().to_le_bytes(), random.next().to_le_bytes()].concat());
        if round % 8 == 0 {
            b.chip.reset();
            for (at, value) in [(0x10, u32::from(PORTS)), (0x14, MEMORY as u32), (0x18, RAM as u32), (4, 7)] {
                b.chip.config_write(at, 4, value);
            }
        }
        b.set(reg::DMODE, 0);
        b.run(&script);
        b.set(reg::CCNTL1, random.next() as u8);
        b.time.advance(3 * REST_NS);
        b.go();
    }
    assert!(locked(&b.chip.state).wires.traffic.away.len() <= 256);
    same_after_restore(&*b.chip);
}
