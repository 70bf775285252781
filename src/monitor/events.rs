//! Events: what happens to the machine by itself, told to whoever listens (QMP clients).

use super::commands::MIGRATION_STATES;
use super::jobs;
use super::types::{Enum, Object, Ty, member, optional};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Events that a guest can cause at will come at most once in this time; the last one always comes.
const PAUSE: Duration = Duration::from_secs(1);

/// A kind of event.
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// What it carries.
    pub data: Option<&'static Object>,
    /// A guest can cause it at will; the member of its data that tells its sources apart, or nothing.
    pub limited: Option<&'static str>,
}

/// Why a machine ends or resets.
pub static CAUSES: Enum = Enum {
    name: "ShutdownCause",
    values: &[
        "none",
        "host-error",
        "host-qmp-quit",
        "host-qmp-system-reset",
        "host-signal",
        "host-ui",
        "guest-shutdown",
        "guest-reset",
        "guest-panic",
        "subsystem-reset",
        "snapshot-load",
    ],
};

static SHUTDOWN: Object =
    Object::new("SHUTDOWN-data", &[member("guest", Ty::Bool), member("reason", Ty::Enum(&CAUSES))]);
static RESET: Object = Object::new("RESET-data", &[member("guest", Ty::Bool), member("reason", Ty::Enum(&CAUSES))]);
/// What is done when a watchdog bites.
pub static WATCHDOG_ACTIONS: Enum =
    Enum { name: "WatchdogAction", values: &["reset", "shutdown", "poweroff", "pause", "debug", "none", "inject-nmi"] };
static WATCHDOG: Object = Object::new("WATCHDOG-data", &[member("action", Ty::Enum(&WATCHDOG_ACTIONS))]);
static PANIC_ACTIONS: Enum = Enum { name: "GuestPanicAction", values: &["pause", "poweroff", "run"] };
static PANICKED: Object = Object::new("GUEST_PANICKED-data", &[member("action", Ty::Enum(&PANIC_ACTIONS))]);
static CRASHLOADED: Object = Object::new("GUEST_CRASHLOADED-data", &[member("action", Ty::Enum(&PANIC_ACTIONS))]);
static TRAY_MOVED: Object = Object::new(
    "DEVICE_TRAY_MOVED-data",
    &[member("device", Ty::Str), member("id", Ty::Str), member("tray-open", Ty::Bool)],
);
static OPERATIONS: Enum = Enum { name: "IoOperationType", values: &["read", "write"] };
static ERROR_ACTIONS: Enum = Enum { name: "BlockErrorAction", values: &["ignore", "report", "stop"] };
static BLOCK_IO_ERROR: Object = Object::new(
    "BLOCK_IO_ERROR-data",
    &[
        member("qom-path", Ty::Str),
        member("device", Ty::Str),
        optional("node-name", Ty::Str),
        member("operation", Ty::Enum(&OPERATIONS)),
        member("action", Ty::Enum(&ERROR_ACTIONS)),
        optional("nospace", Ty::Bool),
        member("reason", Ty::Str),
    ],
);
static RX_FILTER: Object =
    Object::new("NIC_RX_FILTER_CHANGED-data", &[optional("name", Ty::Str), member("path", Ty::Str)]);
static RTC_CHANGE: Object = Object::new("RTC_CHANGE-data", &[member("offset", Ty::Int), member("qom-path", Ty::Str)]);
static DEVICE_DELETED: Object =
    Object::new("DEVICE_DELETED-data", &[optional("device", Ty::Str), member("path", Ty::Str)]);
static UNPLUG_ERROR: Object =
    Object::new("DEVICE_UNPLUG_GUEST_ERROR-data", &[optional("device", Ty::Str), member("path", Ty::Str)]);
static OST: Object = Object::new(
    "ACPIOSTInfo",
    &[
        optional("device", Ty::Str),
        member("slot", Ty::Str),
        member("slot-type", Ty::Str),
        member("source", Ty::Int),
        member("status", Ty::Int),
    ],
);
static DEVICE_OST: Object = Object::new("ACPI_DEVICE_OST-data", &[member("info", Ty::Object(&OST))]);
static BALLOON_CHANGE: Object = Object::new("BALLOON_CHANGE-data", &[member("actual", Ty::Int)]);
static VSERPORT_CHANGE: Object =
    Object::new("VSERPORT_CHANGE-data", &[member("id", Ty::Str), member("open", Ty::Bool)]);

static DUMP_STATES: Enum = Enum { name: "DumpStatus", values: &["none", "active", "completed", "failed"] };
/// How a dump of guest memory went.
pub static DUMP: Object = Object::new(
    "DumpQueryResult",
    &[member("status", Ty::Enum(&DUMP_STATES)), member("completed", Ty::Int), member("total", Ty::Int)],
);
static DUMP_COMPLETED: Object =
    Object::new("DUMP_COMPLETED-data", &[member("result", Ty::Object(&DUMP)), optional("error", Ty::Str)]);
static JOB_STATUS: Object =
    Object::new("JOB_STATUS_CHANGE-data", &[member("id", Ty::Str), member("status", Ty::Enum(&jobs::STATES))]);
static BLOCK_JOB: Object = Object::new(
    "BLOCK_JOB-data",
    &[
        member("type", Ty::Enum(&jobs::KINDS)),
        member("device", Ty::Str),
        member("len", Ty::Int),
        member("offset", Ty::Int),
        member("speed", Ty::Int),
        optional("error", Ty::Str),
    ],
);
static BLOCK_JOB_PENDING: Object =
    Object::new("BLOCK_JOB_PENDING-data", &[member("type", Ty::Enum(&jobs::KINDS)), member("id", Ty::Str)]);

static MIGRATION: Object = Object::new("MIGRATION-data", &[member("status", Ty::Enum(&MIGRATION_STATES))]);
static MIGRATION_PASS: Object = Object::new("MIGRATION_PASS-data", &[member("pass", Ty::Int)]);

static EXPORT_DELETED: Object = Object::new("BLOCK_EXPORT_DELETED-data", &[member("id", Ty::Str)]);

const fn kind(name: &'static str, data: Option<&'static Object>) -> Kind {
    Kind { name, data, limited: None }
}

const fn limited(name: &'static str, data: &'static Object, by: &'static str) -> Kind {
    Kind { name, data: Some(data), limited: Some(by) }
}

/// All kinds.
pub static KINDS: &[Kind] = &[
    kind("SHUTDOWN", Some(&SHUTDOWN)),
    kind("POWERDOWN", None),
    kind("RESET", Some(&RESET)),
    kind("STOP", None),
    kind("RESUME", None),
    kind("SUSPEND", None),
    limited("WATCHDOG", &WATCHDOG, ""),
    kind("GUEST_PANICKED", Some(&PANICKED)),
    kind("GUEST_CRASHLOADED", Some(&CRASHLOADED)),
    kind("DEVICE_DELETED", Some(&DEVICE_DELETED)),
    kind("ACPI_DEVICE_OST", Some(&DEVICE_OST)),
    kind("DEVICE_UNPLUG_GUEST_ERROR", Some(&UNPLUG_ERROR)),
    kind("DEVICE_TRAY_MOVED", Some(&TRAY_MOVED)),
    limited("BLOCK_IO_ERROR", &BLOCK_IO_ERROR, "device"),
    kind("NIC_RX_FILTER_CHANGED", Some(&RX_FILTER)),
    limited("RTC_CHANGE", &RTC_CHANGE, ""),
    limited("BALLOON_CHANGE", &BALLOON_CHANGE, ""),
    limited("VSERPORT_CHANGE", &VSERPORT_CHANGE, "id"),
    kind("DUMP_COMPLETED", Some(&DUMP_COMPLETED)),
    kind("JOB_STATUS_CHANGE", Some(&JOB_STATUS)),
    kind("BLOCK_JOB_COMPLETED", Some(&BLOCK_JOB)),
    kind("BLOCK_JOB_CANCELLED", Some(&BLOCK_JOB)),
    kind("BLOCK_JOB_READY", Some(&BLOCK_JOB)),
    kind("BLOCK_JOB_PENDING", Some(&BLOCK_JOB_PENDING)),
    kind("BLOCK_EXPORT_DELETED", Some(&EXPORT_DELETED)),
    kind("MIGRATION", Some(&MIGRATION)),
    kind("MIGRATION_PASS", Some(&MIGRATION_PASS)),
];

/// Who hears of events.
pub trait EventListener: Send + Sync {
    /// `event` happened. Must not wait.
    fn event(&self, event: &Event);
}

/// Something that happened.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its name, one of [`KINDS`].
    pub name: &'static str,
    /// What it carries.
    pub data: Value,
    /// When it happened.
    pub at: SystemTime,
}

impl Event {
    /// As QMP tells it.
    pub fn to_json(&self) -> Value {
        let since = self.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut map = Map::new();
        map.insert("event".into(), self.name.into());
        map.insert("timestamp".into(), json!({ "seconds": since.as_secs(), "microseconds": since.subsec_micros() }));
        if !self.data.is_null() {
            map.insert("data".into(), self.data.clone());
        }
        Value::Object(map)
    }
}

/// The way from those who know of events to those who listen. Locks are leaves.
#[derive(Default)]
pub struct Events {
    listeners: Mutex<Vec<Weak<dyn EventListener>>>,
    /// Limited events by name and source.
    limits: Mutex<HashMap<(&'static str, String), Limit>>,
}

struct Limit {
    last: Instant,
    waiting: Option<Event>,
}

impl Events {
    /// Tells `listener` of all events from now on, as long as it lives.
    pub fn listen(&self, listener: Weak<dyn EventListener>) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|other| other.strong_count() != 0);
        listeners.push(listener);
    }

    /// The event `name` happened, with `data` (null: none).
    pub fn emit(self: &Arc<Self>, name: &'static str, data: Value) {
        let event = Event { name, data, at: SystemTime::now() };
        let limited = KINDS.iter().find(|kind| kind.name == name).and_then(|kind| kind.limited);
        match limited {
            Some(by) => self.emit_limited(event, by),
            None => self.tell(&event),
        }
    }

    fn tell(&self, event: &Event) {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clone();
        listeners.iter().filter_map(Weak::upgrade).for_each(|listener| listener.event(event));
    }

    fn limits(&self) -> MutexGuard<'_, HashMap<(&'static str, String), Limit>> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn emit_limited(self: &Arc<Self>, event: Event, by: &str) {
        let source = event.data.get(by).and_then(Value::as_str).unwrap_or_default().to_owned();
        let key = (event.name, source);
        {
            let mut limits = self.limits();
            if let Some(limit) = limits.get_mut(&key) {
                let passed = limit.last.elapsed();
                if limit.waiting.is_some() {
                    limit.waiting = Some(event);
                    return;
                }
                if passed < PAUSE {
                    limit.waiting = Some(event);
                    drop(limits);
                    return self.tell_later(key, PAUSE - passed);
                }
            }
            limits.insert(key, Limit { last: Instant::now(), waiting: None });
        }
        self.tell(&event);
    }

    /// Tells of the event that waits under `key`, once `pause` has passed.
    fn tell_later(self: &Arc<Self>, key: (&'static str, String), pause: Duration) {
        let this = self.clone();
        let wait = move || {
            thread::sleep(pause);
            let event = {
                let mut limits = this.limits();
                limits.get_mut(&key).and_then(|limit| {
                    limit.last = Instant::now();
                    limit.waiting.take()
                })
            };
            event.iter().for_each(|event| this.tell(event));
        };
        if let Err(error) = thread::Builder::new().name("events".into()).spawn(wait) {
            tracing::warn!("an event is told late: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Ear(Mutex<Vec<Value>>);

    impl EventListener for Ear {
        fn event(&self, event: &Event) {
            self.0.lock().unwrap().push(event.to_json());
        }
    }

    fn rig() -> (Arc<Events>, Arc<Ear>) {
        let (events, ear) = (Arc::new(Events::default()), Arc::new(Ear::default()));
        let listener: Arc<dyn EventListener> = ear.clone();
        events.listen(Arc::downgrade(&listener));
        (events, ear)
    }

    #[test]
    fn events_carry_time_and_data() {
        let (events, ear) = rig();
        events.emit("STOP", Value::Null);
        events.emit("RESET", json!({"guest": true, "reason": "guest-reset"}));
        let heard = ear.0.lock().unwrap();
        assert_eq!((&heard[0]["event"], heard[0].get("data")), (&json!("STOP"), None));
        assert!(heard[0]["timestamp"]["seconds"].as_u64().unwrap() > 1_600_000_000);
        assert!(heard[0]["timestamp"]["microseconds"].as_u64().unwrap() < 1_000_000);
        assert_eq!(heard[1]["data"]["reason"], "guest-reset");
    }

    #[test]
    fn floods_are_limited_but_the_last_word_comes() {
        let (events, ear) = rig();
        for actual in 0..1000 {
            events.emit("BALLOON_CHANGE", json!({ "actual": actual }));
        }
        events.emit("VSERPORT_CHANGE", json!({"id": "a", "open": true}));
        events.emit("VSERPORT_CHANGE", json!({"id": "b", "open": true}));
        assert_eq!(ear.0.lock().unwrap().len(), 3, "one of each source at once");
        let start = Instant::now();
        while ear.0.lock().unwrap().len() < 4 {
            assert!(start.elapsed() < Duration::from_secs(30), "the last one never came");
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(ear.0.lock().unwrap()[3]["data"]["actual"], 999);
    }

    #[test]
    fn who_has_gone_is_forgotten() {
        let (events, ear) = rig();
        drop(ear);
        events.emit("STOP", Value::Null);
        let (_, other) = rig();
        let listener: Arc<dyn EventListener> = other.clone();
        events.listen(Arc::downgrade(&listener));
        assert_eq!(events.listeners.lock().unwrap().len(), 1);
    }
}
