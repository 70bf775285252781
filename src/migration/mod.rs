//! Moving a machine to another process: where to, how it goes, and what users have settled about it. The moving itself is the
//! machine's, see `machine/migrating.rs` and `machine/arriving.rs`.

mod address;
mod channel;
mod settings;

pub use address::Address;
pub use channel::{Channel, Door, Sender};
pub use settings::{Capability, Parameter, Settings};

use crate::cli::config::SocketAddress;
use crate::monitor::Events;
use crate::snapshot::Pass;
use serde_json::{Map, Value, json};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of a page, as numbers tell of them.
const PAGE: u64 = 4096;

/// How far a migration has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    /// There never was one.
    #[default]
    None,
    /// The way is being opened, or the other side is waited for.
    Setup,
    /// Memory is moving.
    Active,
    /// The machine stands, and goes when `migrate-continue` says so.
    PreSwitchover,
    /// What is not memory is moving.
    Device,
    /// It is over.
    Completed,
    /// It failed.
    Failed,
    /// It is being called off.
    Cancelling,
    /// It was called off.
    Cancelled,
}

impl Status {
    /// As QMP has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Setup => "setup",
            Self::Active => "active",
            Self::PreSwitchover => "pre-switchover",
            Self::Device => "device",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether it is under way.
    pub fn under_way(self) -> bool {
        matches!(self, Self::Setup | Self::Active | Self::PreSwitchover | Self::Device | Self::Cancelling)
    }
}

/// What those who ask and those who send share while a machine leaves.
#[derive(Default)]
pub struct Control {
    cancelled: AtomicBool,
    go_on: AtomicBool,
    sent: AtomicU64,
    limit: AtomicU64,
    /// How memory goes.
    pub pass: Pass,
    /// Passes over memory so far.
    pub passes: AtomicU64,
}

impl Control {
    /// It is to end.
    pub fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// `migrate-continue` was given.
    pub fn may_go_on(&self) -> bool {
        self.go_on.load(Ordering::SeqCst)
    }

    /// So many bytes more were sent.
    pub fn note_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Most bytes to be sent in a second; 0: as many as can be.
    pub fn bytes_per_second(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }
}

/// A migration that is, or was the last.
#[derive(Default)]
struct Course {
    status: Status,
    leaving: bool,
    control: Arc<Control>,
    started: Option<Instant>,
    setup: Duration,
    /// When the machine stopped, and for how long.
    stopped: Option<Instant>,
    downtime: Duration,
    total: Duration,
    /// Bytes of memory.
    memory: u64,
    error: Option<String>,
    /// Where a machine is waited for.
    at: Option<SocketAddress>,
}

/// All about migration in this process. Nothing but settings and listeners' queues is locked under `course`.
pub struct Migration {
    events: Arc<Events>,
    settings: Mutex<Settings>,
    course: Mutex<Course>,
}

impl Migration {
    /// Nothing moves yet; `events` hears of what does.
    pub fn new(events: Arc<Events>) -> Arc<Self> {
        Arc::new(Self { events, settings: Mutex::default(), course: Mutex::default() })
    }

    fn course(&self) -> MutexGuard<'_, Course> {
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is settled.
    pub fn settings(&self) -> Settings {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Settles something. Rates count at once, also for a machine that is leaving.
    pub fn settle(&self, change: impl FnOnce(&mut Settings)) {
        let limit = {
            let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut settings);
            settings.number(Parameter::MaxBandwidth)
        };
        self.course().control.limit.store(limit, Ordering::Relaxed);
    }

    /// How far the last one has come.
    pub fn status(&self) -> Status {
        self.course().status
    }

    /// One begins: of a machine with so much memory that leaves, or of one that arrives. `None`: another is under way.
    pub fn begin(&self, leaving: bool, memory: u64) -> Option<Arc<Control>> {
        let control = Arc::new(Control::default());
        control.limit.store(self.settings().number(Parameter::MaxBandwidth), Ordering::Relaxed);
        let mut course = self.course();
        if course.status.under_way() {
            return None;
        }
        let started = Some(Instant::now());
        *course = Course { leaving, memory, started, control: control.clone(), ..Course::default() };
        self.come_to(&mut course, Status::Setup);
        Some(control)
    }

    /// It has come to `status`. Of one that was called off only the end counts.
    pub fn set(&self, status: Status) {
        let mut course = self.course();
        if !course.control.cancelled() || !status.under_way() {
            self.come_to(&mut course, status);
        }
    }

    /// The event is told before the lock goes: who hears of two hears of them in their order.
    fn come_to(&self, course: &mut Course, status: Status) {
        let since = course.started.map_or(Duration::ZERO, |at| at.elapsed());
        match status {
            Status::Active => course.setup = since,
            _ if !status.under_way() => {
                course.total = since;
                course.downtime = course.stopped.map_or(Duration::ZERO, |at| at.elapsed());
            }
            _ => {}
        }
        course.status = status;
        if self.settings().has(Capability::Events) {
            self.events.emit("MIGRATION", json!({ "status": status.name() }));
        }
    }

    /// The machine has been stopped to leave.
    pub fn note_stop(&self) {
        self.course().stopped = Some(Instant::now());
    }

    /// The next pass over memory begins.
    pub fn note_pass(&self) {
        let passes = self.course().control.passes.fetch_add(1, Ordering::Relaxed) + 1;
        if self.settings().has(Capability::Events) {
            self.events.emit("MIGRATION_PASS", json!({ "pass": passes }));
        }
    }

    /// A machine can come to `at`.
    pub fn note_door(&self, at: Option<SocketAddress>) {
        self.course().at = at;
    }

    /// It failed, or ends as it was called off; the machine goes on meanwhile.
    pub fn fail(&self, why: &str) {
        let mut course = self.course();
        let cancelled = course.control.cancelled();
        course.error = (!cancelled).then(|| why.to_owned());
        course.stopped = None;
        self.come_to(&mut course, if cancelled { Status::Cancelled } else { Status::Failed });
    }

    /// Calls off the one that leaves, if there is one.
    pub fn cancel(&self) {
        let mut course = self.course();
        if course.leaving && course.status.under_way() && !course.control.cancelled() {
            self.come_to(&mut course, Status::Cancelling);
            course.control.cancelled.store(true, Ordering::SeqCst);
        }
    }

    /// A machine that stands for it may go.
    pub fn go_on(&self, state: &str) -> Result<(), String> {
        let course = self.course();
        if state != course.status.name() {
            return Err(format!("Migration not in expected state: {}", course.status.name()));
        }
        course.control.go_on.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Why the last one failed.
    pub fn error(&self) -> Option<String> {
        self.course().error.clone()
    }

    /// As `query-migrate` tells it.
    pub fn describe(&self) -> Value {
        let course = self.course();
        let mut map = Map::new();
        if course.status == Status::None {
            return Value::Object(map);
        }
        map.insert("status".into(), course.status.name().into());
        if let Some(at) = &course.at {
            map.insert("socket-address".into(), json!([address(at)]));
        }
        if let Some(why) = &course.error {
            map.insert("error-desc".into(), why.as_str().into());
        }
        if course.leaving && course.status != Status::Setup {
            course.add_numbers(&mut map);
        }
        Value::Object(map)
    }
}

fn address(at: &SocketAddress) -> Value {
    match at {
        SocketAddress::Tcp { host, port } => json!({ "type": "inet", "host": host, "port": port.to_string() }),
        SocketAddress::Unix(path) => json!({ "type": "unix", "path": path }),
        SocketAddress::Inherited(number) => json!({ "type": "fd", "str": number.to_string() }),
    }
}

impl Course {
    /// Times, and what became of memory.
    fn add_numbers(&self, map: &mut Map<String, Value>) {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let passed = self.started.map_or(Duration::ZERO, |at| at.elapsed());
        let (over, completed) = (!self.status.under_way(), self.status == Status::Completed);
        let total = if over { self.total } else { passed };
        map.insert("total-time".into(), millis(total).into());
        map.insert("setup-time".into(), millis(self.setup).into());
        if completed {
            map.insert("downtime".into(), millis(self.downtime).into());
        }
        if over && !completed {
            return;
        }
        let (sent, pass) = (self.control.sent(), &self.control.pass);
        let pages = pass.sent.load(Ordering::Relaxed);
        let moving = total.saturating_sub(self.setup).as_secs_f64();
        let mbps = if moving > 0.0 { sent as f64 * 8.0 / moving / 1e6 } else { 0.0 };
        let per_second = if moving > 0.0 { (pages as f64 / moving) as u64 } else { 0 };
        map.insert(
            "ram".into(),
            json!({
                "transferred": sent,
                "remaining": pass.remaining.load(Ordering::Relaxed),
                "total": self.memory,
                "duplicate": pass.zero.load(Ordering::Relaxed),
                "normal": pages,
                "normal-bytes": pages * PAGE,
                "dirty-pages-rate": 0,
                "mbps": mbps,
                "dirty-sync-count": self.control.passes.load(Ordering::Relaxed),
                "page-size": PAGE,
                "multifd-bytes": 0,
                "pages-per-second": per_second,
                "precopy-bytes": sent,
                "downtime-bytes": 0,
                "postcopy-bytes": 0,
                "postcopy-requests": 0,
                "dirty-sync-missed-zero-copy": 0,
            }),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::events::{Event, EventListener};

    #[test]
    fn one_at_a_time_and_its_end_is_told() {
        let migration = Migration::new(Arc::default());
        assert_eq!(migration.describe(), json!({}));
        assert!(migration.go_on("pre-switchover").unwrap_err().contains("none"));
        let control = migration.begin(true, 1 << 20).expect("the first one");
        assert!(migration.begin(true, 1 << 20).is_none());
        migration.set(Status::Active);
        control.note_sent(5);
        assert_eq!(migration.describe()["ram"]["transferred"], 5);
        migration.cancel();
        assert!(control.cancelled());
        assert_eq!(migration.status(), Status::Cancelling);
        migration.fail("a write failed");
        assert_eq!((migration.status(), migration.error()), (Status::Cancelled, None));
        migration.cancel();
        assert_eq!(migration.status(), Status::Cancelled);
        assert!(migration.begin(true, 1 << 20).is_some());
        migration.fail("no route");
        assert_eq!(migration.describe()["error-desc"], "no route");
    }

    /// The statuses that were told.
    #[derive(Default)]
    struct Ear(Mutex<Vec<String>>);

    impl EventListener for Ear {
        fn event(&self, event: &Event) {
            self.0.lock().unwrap().push(event.data["status"].as_str().unwrap().to_owned());
        }
    }

    /// Who calls it off and what goes on or fails meanwhile meet in any order; what is told is one of two stories.
    #[test]
    fn calling_off_and_failing_at_once() {
        let (events, ear) = (Arc::<Events>::default(), Arc::new(Ear::default()));
        let listener: Arc<dyn EventListener> = ear.clone();
        events.listen(Arc::downgrade(&listener));
        let migration = Migration::new(events);
        migration.settle(|settings| settings.switch(Capability::Events, true));
        for _ in 0..2000 {
            migration.begin(true, 0).expect("the last one is over");
            std::thread::scope(|scope| {
                scope.spawn(|| migration.cancel());
                migration.set(Status::Active);
                migration.set(Status::Device);
                migration.fail("broken pipe");
            });
            let told = std::mem::take(&mut *ear.0.lock().unwrap());
            let told: Vec<&str> = told.iter().map(String::as_str).collect();
            let good = match told.split_last().unwrap() {
                (&"failed", way) => way == ["setup", "active", "device"],
                (&"cancelled", way) => way
                    .split_last()
                    .is_some_and(|(last, way)| *last == "cancelling" && ["setup", "active", "device"].starts_with(way)),
                _ => false,
            };
            assert!(good, "{told:?}");
        }
    }
}
