//! The processors: those from the start, and those that come and go. They do so on the thread of the control loop only.

use super::inventory::Entry;
use super::{Machine, Request};
use crate::cli::config::{DeviceSpec, Made};
use crate::monitor::{Fault, RunState};
use crate::vcpu::VcpuThread;
use brolga_devices::cpu_hotplug::Word;
use crossbeam_channel::bounded;
use serde_json::json;
use std::sync::{Arc, PoisonError, RwLock};

/// What a guest reports that has done what it was asked for (ACPI 6.3.5.1).
const SUCCESS: u32 = 0;
/// From here to the second, it is still at it.
const UNDER_WAY: [u32; 2] = [0x80, 0x85];
/// The event that it was asked for a device, as it names it in reports, and the one that it gives one back.
const EJECT_EVENTS: [u32; 2] = [3, 0x103];

#[derive(Default)]
struct Place {
    /// Its thread, which stays when the processor has gone.
    thread: Option<Arc<VcpuThread>>,
    present: bool,
}

/// The processors by their numbers.
pub struct Processors(RwLock<Vec<Place>>);

impl Processors {
    /// Those that are there from the start, and room for `most`.
    pub fn new(threads: Vec<Arc<VcpuThread>>, most: usize) -> Self {
        let mut places: Vec<Place> =
            threads.into_iter().map(|thread| Place { thread: Some(thread), present: true }).collect();
        places.resize_with(most.max(places.len()), Place::default);
        Self(RwLock::new(places))
    }

    /// Those that are there, with their numbers.
    pub fn numbered(&self) -> Vec<(u32, Arc<VcpuThread>)> {
        let places = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let there = |(number, place): (u32, &Place)| Some((number, place.thread.clone().filter(|_| place.present)?));
        (0..).zip(places.iter()).filter_map(there).collect()
    }

    /// Those that are there.
    pub fn iter(&self) -> impl Iterator<Item = Arc<VcpuThread>> + use<> {
        self.numbered().into_iter().map(|(_, thread)| thread)
    }

    /// The one with this number.
    pub fn get(&self, number: usize) -> Option<Arc<VcpuThread>> {
        let places = self.0.read().unwrap_or_else(PoisonError::into_inner);
        places.get(number).filter(|place| place.present)?.thread.clone()
    }

    /// One more than the highest number of one that is there.
    pub fn len(&self) -> usize {
        self.numbered().last().map_or(0, |(number, _)| *number as usize + 1)
    }

    /// The thread of one that was there before.
    fn parked(&self, number: u32) -> Option<Arc<VcpuThread>> {
        let places = self.0.read().unwrap_or_else(PoisonError::into_inner);
        places.get(number as usize)?.thread.clone()
    }

    fn put(&self, number: u32, thread: Option<Arc<VcpuThread>>) {
        if let Some(place) = self.0.write().unwrap_or_else(PoisonError::into_inner).get_mut(number as usize) {
            place.present = thread.is_some();
            place.thread = thread.or(place.thread.take());
        }
    }

    /// Ends all threads.
    pub fn quit(&self) {
        let places = self.0.read().unwrap_or_else(PoisonError::into_inner);
        places.iter().filter_map(|place| place.thread.as_ref()).for_each(|thread| thread.quit());
    }
}

impl Machine {
    /// A user adds the processor that `spec` describes.
    pub(super) fn ask_for_processor(&self, spec: DeviceSpec) -> Result<(), Fault> {
        let (done, wait) = bounded(1);
        let ending = || Fault::new("the machine is ending");
        self.requests.send(Request::AddProcessor(spec, done)).map_err(|_| ending())?;
        wait.recv().map_err(|_| ending())?
    }

    /// Adds it; the guest is told.
    pub(super) fn add_processor(&self, spec: DeviceSpec) -> Result<(), Fault> {
        let Made::Processor(number) = spec.made else { return Err("it is no processor".into()) };
        let hotplug = self.pc.cpu_hotplug.as_ref();
        let hotplug = hotplug.ok_or_else(|| Fault::new("no processor can be added; give -smp N,maxcpus=M"))?;
        if self.vcpus.get(number as usize).is_some() {
            let apic_id = self.config.topology.apic_id(number);
            return Err(Fault::new(format!("CPU[{number}] with APIC ID {apic_id} exists")));
        }
        let thread = match self.vcpus.parked(number) {
            Some(thread) => thread,
            None => {
                let started =
                    super::spawn_vcpu(&self.config.cpu, &self.engine, number, &self.requests, self.turns.clone());
                let thread = started.map_err(|error| Fault::new(format!("{error:#}")))?;
                if let Some(link) = self.parts.links.get(number as usize) {
                    link.connect(thread.clone());
                }
                thread
            }
        };
        thread.restart(false, |vcpu| vcpu.reset());
        self.vcpus.put(number, Some(thread.clone()));
        {
            let mut inventory = self.inventory();
            inventory.collected.given.push(spec.clone());
            inventory.enter(spec, true);
        }
        if self.state() == RunState::Running {
            thread.release();
        }
        hotplug.added(number);
        Ok(())
    }

    /// What the guest said of a processor.
    pub(super) fn heard_of_processor(&self, word: Word) {
        match word {
            Word::Ejected(number) => self.remove_processor(number),
            Word::Report(number, event, status) => self.processor_report(number, event, status),
        }
    }

    /// The guest has let go of a processor.
    pub(super) fn remove_processor(&self, number: u32) {
        let Some(thread) = self.vcpus.get(number as usize) else { return };
        thread.hold();
        thread.wait_held();
        self.vcpus.put(number, None);
        self.pc.apics.reset_one(number);
        thread.restart(false, |vcpu| vcpu.reset());
        let mut inventory = self.inventory();
        let made = Made::Processor(number);
        let at = inventory.entries.iter().position(|entry| entry.spec.made == made);
        let gone = at.map_or_else(Vec::new, |at| inventory.forget(at));
        for entry in gone {
            self.tell_deleted(&entry);
        }
    }

    /// What became of an event that the guest was told of.
    fn processor_report(&self, number: u32, event: u32, status: u32) {
        let mut inventory = self.inventory();
        let made = Made::Processor(number);
        let entry = inventory.entries.iter_mut().find(|entry| entry.spec.made == made);
        let id = entry.as_ref().and_then(|entry| entry.spec.id.clone());
        let mut info = json!({ "slot": number.to_string(), "slot-type": "CPU", "source": event, "status": status });
        if let Some(id) = &id {
            info["device"] = id.as_str().into();
        }
        self.events.emit("ACPI_DEVICE_OST", json!({ "info": info }));
        let failed = status != SUCCESS && !(UNDER_WAY[0]..=UNDER_WAY[1]).contains(&status);
        if let Some(entry) = entry.filter(|_| failed && EJECT_EVENTS.contains(&event)) {
            entry.asked = None;
            self.events.emit("DEVICE_UNPLUG_GUEST_ERROR", self.named(entry));
        }
    }

    /// A device as events name it.
    pub(super) fn named(&self, entry: &Entry) -> serde_json::Value {
        let mut data = json!({ "path": entry.path() });
        if let Some(id) = &entry.spec.id {
            data["device"] = id.as_str().into();
        }
        data
    }
}
