//! Processors in the guest's tables: an object for each, and where some may come later, how the guest hears of that
//! (ACPI 8.4; ports as in QEMU's tables, see `brolga_devices::cpu_hotplug`).

use super::AcpiConfig;
use super::dsdt::Encoded;
use acpi_tables::Aml;
use acpi_tables::aml::{
    Acquire, Arg, BufferData, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule,
    FieldUpdateRule, If, Local, Method, MethodCall, Mutex, Name, Notify, ONE, OpRegion, OpRegionSpace, Path, Release,
    Return, Scope, Store, While, ZERO,
};
use brolga_devices::cpu_hotplug;

/// Nobody waits that long for a mutex: without end.
const FOR_EVER: u16 = 0xFFFF;
/// Notifications of devices (5.6.6): look for it, and give it back.
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;
/// Commands of the ports.
const NEXT: u8 = 0;
const OST_EVENT: u8 = 1;
const OST_STATUS: u8 = 2;

impl AcpiConfig {
    /// Whether processors may come.
    pub(super) fn processors_may_come(&self) -> bool {
        self.present_cpus < self.apic_ids.len()
    }
}

fn name(uid: usize) -> String {
    format!("C{uid:03X}")
}

fn all(objects: &[Encoded]) -> Encoded {
    Encoded::of(&objects.iter().map(|object| object as &dyn Aml).collect::<Vec<_>>())
}

/// One device object a CPU; its unique ID is what the MADT says.
pub(super) fn objects(config: &AcpiConfig) -> Encoded {
    if config.processors_may_come() {
        return with_hotplug(config);
    }
    let object = |uid: usize| {
        let id = uid as u32;
        let parts: [&dyn Aml; 2] = [&Name::new("_HID".into(), &"ACPI0007"), &Name::new("_UID".into(), &id)];
        Encoded::of(&[&Device::new(name(uid).as_str().into(), parts.to_vec())])
    };
    all(&(0..config.apic_ids.len()).map(object).collect::<Vec<_>>())
}

/// The ports as fields.
fn registers() -> Encoded {
    let (base, length) = (cpu_hotplug::BASE, cpu_hotplug::LEN as u8);
    let bit = |name: &[u8; 4]| FieldEntry::Named(*name, 1);
    let bytes = vec![
        FieldEntry::Reserved(32),
        bit(b"CPEN"),
        bit(b"CINS"),
        bit(b"CRMV"),
        bit(b"CEJE"),
        FieldEntry::Reserved(4),
        FieldEntry::Named(*b"CCMD", 8),
    ];
    let words = vec![FieldEntry::Named(*b"CSEL", 32), FieldEntry::Reserved(32), FieldEntry::Named(*b"CDAT", 32)];
    let field = |access, entries| {
        Field::new("PRST".into(), access, FieldLockRule::NoLock, FieldUpdateRule::WriteAsZeroes, entries)
    };
    Encoded::of(&[
        &OpRegion::new("PRST".into(), OpRegionSpace::SystemIO, &base, &length),
        &field(FieldAccessType::Byte, bytes),
        &field(FieldAccessType::DWord, words),
        &Mutex::new("CPLK".into(), 0),
    ])
}

/// A method whose `body` nobody disturbs.
fn alone(name: &str, args: u8, body: &[&dyn Aml], returns: Option<&dyn Aml>) -> Encoded {
    let (acquire, release) = (Acquire::new("CPLK".into(), FOR_EVER), Release::new("CPLK".into()));
    let returns = returns.map(Return::new);
    let mut all: Vec<&dyn Aml> = vec![&acquire];
    all.extend(body);
    all.push(&release);
    all.extend(returns.as_ref().map(|returns| returns as &dyn Aml));
    Encoded::of(&[&Method::new(name.into(), args, false, all)])
}

fn with_hotplug(config: &AcpiConfig) -> Encoded {
    let mut parts = vec![
        Encoded::of(&[&Name::new("_HID".into(), &"ACPI0010"), &Name::new("_CID".into(), &EISAName::new("PNP0A05"))]),
        registers(),
    ];
    let [select, present, data, command] = ["CSEL", "CPEN", "CDAT", "CCMD"].map(Path::new);
    let ejected = Path::new("CEJE");
    let choose = Store::new(&select, &Arg(0));
    // CSTA(cpu): whether it is there.
    let there = Store::new(&Local(0), &0x0Fu8);
    let is_there = Equal::new(&present, &ONE);
    let found = If::new(&is_there, vec![&there]);
    parts.push(alone("CSTA", 1, &[&choose, &Store::new(&Local(0), &ZERO), &found], Some(&Local(0))));
    // CEJ0(cpu): the guest gives it back.
    parts.push(alone("CEJ0", 1, &[&choose, &Store::new(&ejected, &ONE)], None));
    // COST(cpu, event, status): what became of it.
    let report: [&dyn Aml; 5] = [
        &choose,
        &Store::new(&command, &OST_EVENT),
        &Store::new(&data, &Arg(1)),
        &Store::new(&command, &OST_STATUS),
        &Store::new(&data, &Arg(2)),
    ];
    parts.push(alone("COST", 3, &report, None));
    parts.extend((0..config.apic_ids.len()).map(|uid| processor(config, uid)));
    parts.push(tell(config));
    parts.push(look());
    Encoded::of(&[&Device::new("CPUS".into(), vec![&all(&parts)])])
}

/// A processor that may come and go, but for the first.
fn processor(config: &AcpiConfig, uid: usize) -> Encoded {
    let (id, apic_id) = (uid as u32, config.apic_ids.get(uid).copied().unwrap_or(0));
    let mut parts = vec![Encoded::of(&[
        &Name::new("_HID".into(), &"ACPI0007"),
        &Name::new("_UID".into(), &id),
        &Name::new("_MAT".into(), &BufferData::new(super::local_apic(id, apic_id, true))),
    ])];
    let status = MethodCall::new("CSTA".into(), vec![&id]);
    parts.push(Encoded::of(&[&Method::new("_STA".into(), 0, false, vec![&Return::new(&status)])]));
    if uid != 0 {
        let eject = MethodCall::new("CEJ0".into(), vec![&id]);
        parts.push(Encoded::of(&[&Method::new("_EJ0".into(), 1, false, vec![&eject])]));
    }
    let report = MethodCall::new("COST".into(), vec![&id, &Arg(0), &Arg(1)]);
    parts.push(Encoded::of(&[&Method::new("_OST".into(), 3, false, vec![&report])]));
    Encoded::of(&[&Device::new(name(uid).as_str().into(), vec![&all(&parts)])])
}

/// `CTFY(cpu, what)`: notifies its object.
fn tell(config: &AcpiConfig) -> Encoded {
    let one = |uid: usize| {
        let (id, object) = (uid as u32, Path::new(&name(uid)));
        let (this, notify) = (Equal::new(&Arg(0), &id), Notify::new(&object, &Arg(1)));
        Encoded::of(&[&If::new(&this, vec![&notify])])
    };
    let body = all(&(0..config.apic_ids.len()).map(one).collect::<Vec<_>>());
    Encoded::of(&[&Method::new("CTFY".into(), 2, false, vec![&body])])
}

/// `CSCN()`: looks at all processors with news.
fn look() -> Encoded {
    let [data, command, came, goes] = ["CDAT", "CCMD", "CINS", "CRMV"].map(Path::new);
    let (check, request, again) = (DEVICE_CHECK, EJECT_REQUEST, Store::new(&Local(0), &ONE));
    let (tell_came, tell_goes) =
        (MethodCall::new("CTFY".into(), vec![&data, &check]), MethodCall::new("CTFY".into(), vec![&data, &request]));
    let (seen_came, seen_goes) = (Store::new(&came, &ONE), Store::new(&goes, &ONE));
    let (has_come, is_to_go) = (Equal::new(&came, &ONE), Equal::new(&goes, &ONE));
    let (first, second) = (
        If::new(&has_come, vec![&tell_came, &seen_came, &again]),
        If::new(&is_to_go, vec![&tell_goes, &seen_goes, &again]),
    );
    let (none, next) = (Store::new(&Local(0), &ZERO), Store::new(&command, &NEXT));
    let more = Equal::new(&Local(0), &ONE);
    let turns = While::new(&more, vec![&none, &next, &first, &second]);
    alone("CSCN", 0, &[&again, &turns], None)
}

/// The event's method.
pub(super) fn events(config: &AcpiConfig) -> Encoded {
    if !config.processors_may_come() {
        return Encoded::of(&[]);
    }
    let look = MethodCall::new("\\_SB_.CPUS.CSCN".into(), vec![]);
    let method = Method::new("_E02".into(), 0, false, vec![&look]);
    Encoded::of(&[&Scope::new("\\_GPE".into(), vec![&method])])
}
