//! Jobs: long work that programs start and hear of by events, as QMP has it.

use super::events::Events;
use super::types::{Enum, Object, Ty, member, optional};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It was made.
    Created,
    /// It works.
    Running,
    /// It waits for `job-resume`.
    Paused,
    /// It could end now, and keeps up with what happens until it is told to.
    Ready,
    /// Its work is done, that of others of its kind may not be.
    Waiting,
    /// It waits for `job-finalize`.
    Pending,
    /// It failed, or was cancelled.
    Aborting,
    /// It is over, and its outcome can be asked for.
    Concluded,
    /// It is gone.
    Null,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Ready => "ready",
            Self::Waiting => "waiting",
            Self::Pending => "pending",
            Self::Aborting => "aborting",
            Self::Concluded => "concluded",
            Self::Null => "null",
        }
    }
}

/// States as QMP tells them.
pub static STATES: Enum = Enum {
    name: "JobStatus",
    values: &[
        "undefined",
        "created",
        "running",
        "paused",
        "ready",
        "standby",
        "waiting",
        "pending",
        "aborting",
        "concluded",
        "null",
    ],
};
/// Kinds of jobs.
pub static KINDS: Enum = Enum {
    name: "JobType",
    values: &[
        "commit",
        "stream",
        "mirror",
        "backup",
        "create",
        "amend",
        "snapshot-load",
        "snapshot-save",
        "snapshot-delete",
    ],
};
/// What `query-jobs` tells of one.
pub static INFO: Object = Object::new(
    "JobInfo",
    &[
        member("id", Ty::Str),
        member("type", Ty::Enum(&KINDS)),
        member("status", Ty::Enum(&STATES)),
        member("current-progress", Ty::Int),
        member("total-progress", Ty::Int),
        optional("error", Ty::Str),
    ],
);
/// What `query-block-jobs` tells of one.
pub static BLOCK_INFO: Object = Object::new(
    "BlockJobInfo",
    &[
        member("type", Ty::Enum(&KINDS)),
        member("device", Ty::Str),
        member("len", Ty::Int),
        member("offset", Ty::Int),
        member("busy", Ty::Bool),
        member("paused", Ty::Bool),
        member("speed", Ty::Int),
        member("io-status", Ty::Str),
        member("ready", Ty::Bool),
        member("status", Ty::Enum(&STATES)),
        member("auto-finalize", Ty::Bool),
        member("auto-dismiss", Ty::Bool),
        optional("error", Ty::Str),
    ],
);

/// What a user wants of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// It is to stop.
    Cancel,
    /// It is to stop, or to end without further consequences if it is ready.
    Leave,
    /// A ready one is to end.
    Complete,
    /// It is to wait.
    Pause,
    /// It is to go on.
    Resume,
    /// It may make its work permanent.
    Finalize,
    /// It is to be forgotten.
    Dismiss,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Self::Cancel | Self::Leave => "cancel",
            Self::Complete => "complete",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Finalize => "finalize",
            Self::Dismiss => "dismiss",
        }
    }

    /// Whether a job in that state can do it.
    fn fits(self, status: Status) -> bool {
        use Status::{Concluded, Created, Paused, Pending, Ready, Running, Waiting};
        match self {
            Self::Cancel | Self::Leave => matches!(status, Created | Running | Paused | Ready | Waiting | Pending),
            Self::Complete => status == Ready,
            Self::Pause => matches!(status, Created | Running | Ready),
            Self::Resume => status == Paused,
            Self::Finalize => status == Pending,
            Self::Dismiss => status == Concluded,
        }
    }
}

/// What a ready job is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// To end, and the copy takes the disk's place.
    Complete,
    /// To end, and the disk stays what it is.
    Leave,
    /// To stop.
    Stop,
}

/// What a job is.
#[derive(Clone, Debug)]
pub struct JobSpec {
    /// Its name.
    pub id: String,
    /// One of [`KINDS`].
    pub kind: &'static str,
    /// It is work on a drive: block jobs have events of their own.
    pub block: bool,
    /// It does not wait for `job-finalize`.
    pub auto_finalize: bool,
    /// It is forgotten when it is over.
    pub auto_dismiss: bool,
    /// Bytes a second at most; 0: no limit.
    pub speed: u64,
}

impl JobSpec {
    /// A job that is not about one drive.
    pub fn plain(id: &str, kind: &'static str) -> Self {
        Self { id: id.to_owned(), kind, block: false, auto_finalize: true, auto_dismiss: false, speed: 0 }
    }
}

struct State {
    status: Status,
    /// The state before a pause.
    resumes: Status,
    error: Option<String>,
    finalize: bool,
    word: Option<Word>,
}

/// A job. Locks: `order` is held while a change is made and told of; `state` is a leaf.
struct Job {
    spec: JobSpec,
    events: Arc<Events>,
    order: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
    cancelled: AtomicBool,
    speed: AtomicU64,
    current: AtomicU64,
    total: AtomicU64,
}

/// The jobs of a machine.
#[derive(Default)]
pub struct Jobs {
    events: Arc<Events>,
    jobs: Mutex<Vec<Arc<Job>>>,
    /// Disks that jobs work on.
    busy: Arc<Mutex<Vec<String>>>,
}

/// A disk that a job works on, as long as it lives.
pub struct Busy(Arc<Mutex<Vec<String>>>, String);

impl Drop for Busy {
    fn drop(&mut self) {
        let mut busy = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = busy.iter().position(|name| *name == self.1) {
            busy.swap_remove(at);
        }
    }
}

impl Job {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn become_(&self, status: Status) {
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        self.set(status);
    }

    /// Events come in the order of the changes: `order` is held.
    fn set(&self, status: Status) {
        self.state().status = status;
        self.changed.notify_all();
        self.events.emit("JOB_STATUS_CHANGE", json!({ "status": status.name(), "id": self.spec.id }));
    }

    /// Moves on from what it was, unless it is not that any more.
    fn move_on(&self, from: Status, to: Status) -> bool {
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let still = self.state().status == from;
        if still {
            self.set(to);
        }
        still
    }

    fn block_event(&self, name: &'static str, error: Option<&str>) {
        if !self.spec.block {
            return;
        }
        let mut data = json!({
            "type": self.spec.kind,
            "device": self.spec.id,
            "len": self.total.load(Ordering::SeqCst),
            "offset": self.current.load(Ordering::SeqCst),
            "speed": self.speed.load(Ordering::SeqCst),
        });
        if let Some(error) = error {
            data["error"] = error.into();
        }
        self.events.emit(name, data);
    }

    fn info(&self) -> Value {
        let (status, error) = {
            let state = self.state();
            (state.status, state.error.clone())
        };
        let mut info = json!({
            "id": self.spec.id,
            "type": self.spec.kind,
            "status": status.name(),
            "current-progress": self.current.load(Ordering::SeqCst),
            "total-progress": self.total.load(Ordering::SeqCst),
        });
        if let Some(error) = error {
            info["error"] = error.into();
        }
        info
    }

    fn block_info(&self) -> Value {
        let (status, error) = {
            let state = self.state();
            (state.status, state.error.clone())
        };
        let mut info = json!({
            "type": self.spec.kind,
            "device": self.spec.id,
            "len": self.total.load(Ordering::SeqCst),
            "offset": self.current.load(Ordering::SeqCst),
            "busy": status == Status::Running,
            "paused": status == Status::Paused,
            "speed": self.speed.load(Ordering::SeqCst),
            "io-status": "ok",
            "ready": status == Status::Ready,
            "status": status.name(),
            "auto-finalize": self.spec.auto_finalize,
            "auto-dismiss": self.spec.auto_dismiss,
        });
        if let Some(error) = error {
            info["error"] = error.into();
        }
        info
    }
}

/// A job's way to tell how far it is, and to hear what is wanted of it.
pub struct Progress {
    job: Arc<Job>,
    /// When the present second began, and the bytes done in it.
    pace: Mutex<(Instant, u64)>,
}

impl Progress {
    /// It has done `current` of `total`.
    pub fn set(&self, current: u64, total: u64) {
        self.job.current.store(current, Ordering::SeqCst);
        self.job.total.store(total, Ordering::SeqCst);
    }

    /// It is to stop.
    pub fn cancelled(&self) -> bool {
        self.job.cancelled.load(Ordering::SeqCst)
    }

    /// Did `bytes`; waits while it is paused or too fast. `false`: it is to stop.
    pub fn step(&self, bytes: u64) -> bool {
        self.job.current.fetch_add(bytes, Ordering::SeqCst);
        let mut state = self.job.state();
        while state.status == Status::Paused && !self.cancelled() {
            state = self.job.wait(state);
        }
        let speed = self.job.speed.load(Ordering::SeqCst);
        let pause = {
            let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
            let (since, done) = &mut *pace;
            *done += bytes;
            let due = Duration::from_secs_f64(if speed == 0 { 0.0 } else { (*done as f64 / speed as f64).min(60.0) });
            let pause = due.saturating_sub(since.elapsed());
            if since.elapsed() > Duration::from_secs(1) && pause.is_zero() {
                *pace = (Instant::now(), 0);
            }
            pause
        };
        let end = Instant::now() + pause;
        while !self.cancelled() && self.job.speed.load(Ordering::SeqCst) == speed {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.job.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        !self.cancelled()
    }

    /// It could end now: the user is told. Returns at once.
    pub fn ready(&self) {
        if self.job.move_on(Status::Running, Status::Ready) {
            self.job.block_event("BLOCK_JOB_READY", None);
        }
    }

    /// So many bytes are to be done yet.
    pub fn more(&self, left: u64) {
        self.job.total.store(self.job.current.load(Ordering::SeqCst).saturating_add(left), Ordering::SeqCst);
    }

    /// Waits up to `most` for a word of the user's.
    pub fn word(&self, most: Duration) -> Option<Word> {
        let state = self.job.state();
        let idle = |state: &mut State| state.word.is_none() && !self.cancelled();
        let (state, _) = self.job.changed.wait_timeout_while(state, most, idle).unwrap_or_else(PoisonError::into_inner);
        if self.cancelled() {
            return Some(Word::Stop);
        }
        state.word
    }
}

impl Jobs {
    /// No jobs; `events` hear of those to come.
    pub fn new(events: Arc<Events>) -> Arc<Self> {
        Arc::new(Self { events, ..Self::default() })
    }

    fn jobs(&self) -> MutexGuard<'_, Vec<Arc<Job>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a job: `work` runs on a thread of its own, then `finish`, if all went well so far, once it may become permanent.
    pub fn start(
        self: &Arc<Self>,
        spec: JobSpec,
        work: impl FnOnce(&Progress) -> Result<(), String> + Send + 'static,
        finish: impl FnOnce(bool) -> Result<(), String> + Send + 'static,
    ) -> Result<(), String> {
        let state =
            State { status: Status::Created, resumes: Status::Running, error: None, finalize: false, word: None };
        let job = Arc::new(Job {
            speed: spec.speed.into(),
            spec,
            events: self.events.clone(),
            order: Mutex::default(),
            state: Mutex::new(state),
            changed: Condvar::new(),
            cancelled: AtomicBool::new(false),
            current: 0.into(),
            total: 0.into(),
        });
        let id = job.spec.id.clone();
        if id.is_empty() || !id.starts_with(|c: char| c.is_ascii_alphabetic()) {
            return Err(format!("Invalid job ID '{id}'"));
        }
        {
            let mut jobs = self.jobs();
            if jobs.iter().any(|other| other.spec.id == id) {
                return Err(format!("Job ID '{id}' already in use"));
            }
            jobs.push(job.clone());
        }
        job.become_(Status::Created);
        let this = self.clone();
        let run = move || this.run(&job, work, finish);
        std::thread::Builder::new().name("job".into()).spawn(run).map(drop).map_err(|e| {
            self.jobs().retain(|other| other.spec.id != id);
            format!("no thread for the job: {e}")
        })
    }

    fn run(
        &self,
        job: &Arc<Job>,
        work: impl FnOnce(&Progress) -> Result<(), String>,
        finish: impl FnOnce(bool) -> Result<(), String>,
    ) {
        job.move_on(Status::Created, Status::Running);
        let progress = Progress { job: job.clone(), pace: Mutex::new((Instant::now(), 0)) };
        let mut outcome = work(&progress);
        if outcome.is_ok() {
            job.become_(Status::Waiting);
            job.become_(Status::Pending);
            if job.spec.block && !job.spec.auto_finalize {
                job.events.emit("BLOCK_JOB_PENDING", json!({ "type": job.spec.kind, "id": job.spec.id }));
            }
            let mut state = job.state();
            while !job.spec.auto_finalize && !state.finalize && !progress.cancelled() {
                state = job.wait(state);
            }
        }
        // What was ready may be cancelled too: what it has done so far stays, and nothing more is done with it.
        let cancelled = progress.cancelled();
        let finished = finish(outcome.is_ok() && !cancelled);
        outcome = outcome.and(finished);
        if let Err(why) = &outcome {
            job.state().error = Some(why.clone());
        }
        if outcome.is_err() || cancelled {
            job.become_(Status::Aborting);
        }
        match (&outcome, cancelled) {
            (_, true) => job.block_event("BLOCK_JOB_CANCELLED", None),
            (Ok(()), _) => job.block_event("BLOCK_JOB_COMPLETED", None),
            (Err(why), _) => job.block_event("BLOCK_JOB_COMPLETED", Some(why)),
        }
        job.become_(Status::Concluded);
        if job.spec.auto_dismiss {
            self.forget(job);
        }
    }

    fn forget(&self, job: &Arc<Job>) {
        self.jobs().retain(|other| !Arc::ptr_eq(other, job));
        job.become_(Status::Null);
    }

    /// A job works on the disk `name` until the result goes; none if one does already.
    pub fn occupy(&self, name: &str) -> Option<Busy> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if busy.iter().any(|other| other == name) {
            return None;
        }
        busy.push(name.to_owned());
        Some(Busy(self.busy.clone(), name.to_owned()))
    }

    /// A disk that a job works on: `name`, or any.
    pub fn busy(&self, name: Option<&str>) -> Option<String> {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.iter().find(|other| name.is_none_or(|name| *other == name)).cloned()
    }

    fn find(&self, id: &str) -> Option<Arc<Job>> {
        self.jobs().iter().find(|job| job.spec.id == id).cloned()
    }

    /// Jobs as `query-jobs` tells them, the newest first.
    pub fn list(&self) -> Vec<Value> {
        self.jobs().iter().rev().map(|job| job.info()).collect()
    }

    /// Block jobs as `query-block-jobs` tells them.
    pub fn list_block(&self) -> Vec<Value> {
        self.jobs().iter().rev().filter(|job| job.spec.block).map(|job| job.block_info()).collect()
    }

    /// Whether there is a block job of that name.
    pub fn has_block(&self, id: &str) -> bool {
        self.find(id).is_some_and(|job| job.spec.block)
    }

    /// Does what a user wants of a job, or says why not.
    pub fn tell(&self, id: &str, verb: Verb) -> Result<(), String> {
        let job = self.find(id).ok_or("Job not found")?;
        let status = {
            let mut state = job.state();
            let status = state.status;
            if !verb.fits(status) {
                let (status, verb) = (status.name(), verb.name());
                return Err(format!("Job '{id}' in state '{status}' cannot accept command verb '{verb}'"));
            }
            match verb {
                // A copy that is as the disk is stays so.
                Verb::Leave if status == Status::Ready => state.word = Some(Word::Leave),
                Verb::Cancel | Verb::Leave => job.cancelled.store(true, Ordering::SeqCst),
                Verb::Complete => state.word = Some(Word::Complete),
                Verb::Pause => state.resumes = status,
                Verb::Finalize => state.finalize = true,
                Verb::Resume | Verb::Dismiss => {}
            }
            state.resumes
        };
        match verb {
            Verb::Dismiss => self.forget(&job),
            Verb::Pause => job.become_(Status::Paused),
            Verb::Resume => job.become_(status),
            Verb::Cancel | Verb::Leave | Verb::Complete | Verb::Finalize => job.changed.notify_all(),
        }
        Ok(())
    }

    /// Sets how fast a block job may be, in bytes a second; 0: no limit.
    pub fn set_speed(&self, id: &str, speed: u64) -> Result<(), String> {
        let job = self.find(id).filter(|job| job.spec.block).ok_or("Job not found")?;
        job.speed.store(speed, Ordering::SeqCst);
        drop(job.state());
        job.changed.notify_all();
        Ok(())
    }

    /// Cancels all jobs and waits a while for their ends: the machine ends.
    pub fn close(&self) {
        const PATIENCE: Duration = Duration::from_secs(10);
        let over = |job: &Arc<Job>| matches!(job.state().status, Status::Concluded | Status::Null);
        let start = Instant::now();
        loop {
            let jobs = self.jobs().clone();
            for job in &jobs {
                job.cancelled.store(true, Ordering::SeqCst);
                drop(job.state());
                job.changed.notify_all();
            }
            if jobs.iter().all(over) || start.elapsed() > PATIENCE {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::events::{Event, EventListener};
    use std::sync::mpsc;

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>);

    impl EventListener for Heard {
        fn event(&self, event: &Event) {
            let word = event.data["status"].as_str().unwrap_or(event.name).to_owned();
            self.0.lock().unwrap().push(word);
        }
    }

    fn jobs() -> (Arc<Jobs>, Arc<Heard>) {
        let (events, heard) = (Arc::new(Events::default()), Arc::new(Heard::default()));
        events.listen(Arc::downgrade(&(heard.clone() as Arc<dyn EventListener>)));
        (Jobs::new(events), heard)
    }

    fn eventually(what: &str, f: impl Fn() -> bool) {
        let start = Instant::now();
        while !f() {
            assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
            std::thread::yield_now();
        }
    }

    fn heard(heard: &Heard, words: &[&str]) {
        eventually("events", || heard.0.lock().unwrap().len() >= words.len());
        assert_eq!(*heard.0.lock().unwrap(), words);
    }

    #[test]
    fn a_job_ends_and_stays_until_it_is_dismissed() {
        let (jobs, events) = jobs();
        let work = |progress: &Progress| {
            progress.set(0, 10);
            assert!(progress.step(10));
            Ok(())
        };
        jobs.start(JobSpec::plain("one", "snapshot-save"), work, |well| {
            assert!(well);
            Ok(())
        })
        .unwrap();
        heard(&events, &["created", "running", "waiting", "pending", "concluded"]);
        let info = json!({ "id": "one", "type": "snapshot-save", "status": "concluded", "current-progress": 10, "total-progress": 10 });
        assert_eq!(jobs.list(), [info]);
        assert_eq!(jobs.list_block(), [] as [Value; 0]);
        let again = jobs.start(JobSpec::plain("one", "stream"), |_| Ok(()), |_| Ok(()));
        assert_eq!(again.unwrap_err(), "Job ID 'one' already in use");
        let cancel = jobs.tell("one", Verb::Cancel).unwrap_err();
        assert_eq!(cancel, "Job 'one' in state 'concluded' cannot accept command verb 'cancel'");
        assert_eq!(jobs.tell("two", Verb::Dismiss).unwrap_err(), "Job not found");
        jobs.tell("one", Verb::Dismiss).unwrap();
        assert!(jobs.list().is_empty());
        assert!(jobs.start(JobSpec::plain("5", "stream"), |_| Ok(()), |_| Ok(())).is_err());
    }

    #[test]
    fn a_failed_job_says_why() {
        let (jobs, events) = jobs();
        jobs.start(
            JobSpec::plain("a", "snapshot-load"),
            |_| Err("no".into()),
            |well| {
                assert!(!well);
                Ok(())
            },
        )
        .unwrap();
        heard(&events, &["created", "running", "aborting", "concluded"]);
        assert_eq!(jobs.list()[0]["error"], "no");
    }

    #[test]
    fn block_jobs_wait_are_paused_and_cancelled() {
        let (jobs, events) = jobs();
        let spec = JobSpec { block: true, auto_dismiss: true, ..JobSpec::plain("m", "mirror") };
        let (tell, told) = mpsc::channel();
        let work = move |progress: &Progress| {
            told.recv().unwrap();
            progress.ready();
            assert_eq!(
                std::iter::repeat_with(|| progress.word(Duration::from_millis(1))).flatten().next(),
                Some(Word::Complete)
            );
            Ok(())
        };
        jobs.start(spec.clone(), work, |_| Ok(())).unwrap();
        eventually("running", || jobs.list()[0]["status"] == "running");
        assert!(jobs.tell("m", Verb::Complete).is_err());
        jobs.tell("m", Verb::Pause).unwrap();
        assert_eq!(jobs.list_block()[0]["paused"], true);
        jobs.tell("m", Verb::Resume).unwrap();
        tell.send(()).unwrap();
        eventually("ready", || jobs.list_block()[0]["ready"] == true);
        jobs.tell("m", Verb::Complete).unwrap();
        let first = ["created", "running", "paused", "running", "ready", "BLOCK_JOB_READY"];
        let rest = ["waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"];
        heard(&events, &[&first[..], &rest].concat());
        events.0.lock().unwrap().clear();
        // A slow one, cancelled in its sleep.
        let work = |progress: &Progress| if progress.step(1 << 40) { Ok(()) } else { Err("cancelled".into()) };
        jobs.start(JobSpec { speed: 1, ..spec }, work, |_| Ok(())).unwrap();
        eventually("running", || jobs.list()[0]["status"] == "running");
        jobs.tell("m", Verb::Cancel).unwrap();
        heard(&events, &["created", "running", "aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]);
        assert!(jobs.list().is_empty());
        jobs.close();
    }
}
