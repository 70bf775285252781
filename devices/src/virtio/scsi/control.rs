//! Task management on the control queue (5.6.6.2), and events (5.6.6.3).

use super::super::queue::Chain;
use super::command::{self, response};
use super::{EVENT_QUEUE, Pending, Place, VirtioScsi, feature};
use crate::ranges;
use crate::scsi::Sense;
use crate::wire::locked;
use serde::{Deserialize, Serialize};

/// Requests by type, and their length.
const MANAGEMENT: u32 = 0;
const QUERY: u32 = 1;
const SUBSCRIBE: u32 = 2;
const MANAGEMENT_LEN: usize = 24;
const NOTIFICATION_LEN: usize = 16;
/// Management functions.
const ABORT_TASK: u32 = 0;
const ABORT_TASK_SET: u32 = 1;
const CLEAR_ACA: u32 = 2;
const CLEAR_TASK_SET: u32 = 3;
const NEXUS_RESET: u32 = 4;
const UNIT_RESET: u32 = 5;
const QUERY_TASK: u32 = 6;
const QUERY_TASK_SET: u32 = 7;
/// Events.
const MISSED: u32 = 1 << 31;
const NO_EVENT: u32 = 0;
const TRANSPORT_RESET: u32 = 1;
const PARAMETERS_CHANGED: u32 = 3;
/// Reasons of a transport reset.
const RESCAN: u32 = 1;
const REMOVED: u32 = 2;

/// A management function that waits for the commands that it ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Management {
    pub chain: Chain,
    /// Disk requests of these commands.
    waits_for: Vec<u64>,
    /// The answer then.
    response: u8,
}

/// What a driver is told without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A unit was added.
    Added(Place),
    /// A unit was taken away.
    Removed(Place),
    /// What the driver knows of a unit changed; with the code and qualifier that a sense would have.
    Changed(Place, (u8, u8)),
}

impl Event {
    fn fields(self) -> (u32, Place, u32) {
        match self {
            Event::Added(place) => (TRANSPORT_RESET, place, RESCAN),
            Event::Removed(place) => (TRANSPORT_RESET, place, REMOVED),
            Event::Changed(place, (code, qualifier)) => {
                (PARAMETERS_CHANGED, place, u32::from(code) | u32::from(qualifier) << 8)
            }
        }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes)
}

impl VirtioScsi {
    /// Carries a request of the control queue out.
    pub(super) fn manage(&self, chain: Chain) {
        let request = ranges::load(&**self.queues.dma(), &chain.readable, MANAGEMENT_LEN as u64);
        match (word(&request, 0), request.len()) {
            (MANAGEMENT, MANAGEMENT_LEN..) => {}
            (QUERY | SUBSCRIBE, NOTIFICATION_LEN..) => {
                // No unit has events of this kind: none are possible, none are on.
                ranges::store(&**self.queues.dma(), &chain.writable, &[0, 0, 0, 0, response::OK]);
                return self.queues.push(super::CONTROL_QUEUE, chain.head, 5);
            }
            _ => return self.queues.stop(),
        }
        let function = word(&request, 4);
        let tag = u64::from(word(&request, 16)) | u64::from(word(&request, 20)) << 32;
        let place = request.get(8..16).and_then(command::place);
        let (response, waits_for) = self.function(function, place, tag);
        let management = Management { chain, waits_for, response };
        if management.waits_for.is_empty() {
            return self.managed(&management);
        }
        locked(&self.state).management.push(management);
    }

    /// The answer to a management function, and the requests that it waits for.
    fn function(&self, function: u32, place: Option<Place>, tag: u64) -> (u8, Vec<u64>) {
        let mut state = locked(&self.state);
        let Some((target, lun)) = place else { return (response::BAD_TARGET, Vec::new()) };
        let mut units = state.units.range((target, 0)..=(target, u16::MAX));
        if units.next().is_none() {
            return (response::BAD_TARGET, Vec::new());
        }
        let whole_target = function == NEXUS_RESET;
        if !whole_target && !state.units.contains_key(&(target, lun)) {
            return (response::INCORRECT_LUN, Vec::new());
        }
        let concerned = |p: &Pending| {
            let one = !matches!(function, ABORT_TASK | QUERY_TASK) || p.job.tag == tag;
            p.job.place.0 == target && (whole_target || p.job.place.1 == lun) && one
        };
        let found: Vec<u64> = state.pending.iter().filter(|(_, p)| concerned(p)).map(|(token, _)| *token).collect();
        let answer = match function {
            QUERY_TASK | QUERY_TASK_SET => {
                let answer = if found.is_empty() { response::OK } else { response::FUNCTION_SUCCEEDED };
                return (answer, Vec::new());
            }
            CLEAR_ACA => return (response::FUNCTION_REJECTED, Vec::new()),
            ABORT_TASK | ABORT_TASK_SET | CLEAR_TASK_SET => response::ABORTED,
            NEXUS_RESET | UNIT_RESET => response::RESET,
            _ => return (response::FUNCTION_REJECTED, Vec::new()),
        };
        for token in &found {
            if let Some(pending) = state.pending.get_mut(token) {
                pending.job.aborted = Some(answer);
            }
        }
        if answer == response::RESET {
            let all = state.units.range_mut((target, 0)..=(target, u16::MAX));
            all.filter(|((_, l), _)| whole_target || *l == lun).for_each(|(_, unit)| {
                unit.reset();
                unit.attend(Sense::POWERED_ON);
            });
        }
        (response::OK, found)
    }

    /// A disk request has ended: management functions that waited for nothing else are done.
    pub(super) fn over(&self, token: u64) {
        let done: Vec<Management> = {
            let mut state = locked(&self.state);
            state.management.iter_mut().for_each(|m| m.waits_for.retain(|other| *other != token));
            let (done, waiting) =
                std::mem::take(&mut state.management).into_iter().partition(|m| m.waits_for.is_empty());
            state.management = waiting;
            done
        };
        done.iter().for_each(|management| self.managed(management));
    }

    fn managed(&self, management: &Management) {
        ranges::store(&**self.queues.dma(), &management.chain.writable, &[management.response]);
        self.queues.push(super::CONTROL_QUEUE, management.chain.head, 1);
    }

    /// Tells the driver of an event, if it wants to know and has room for it.
    pub fn report(&self, event: Event) {
        let wanted = match event {
            Event::Added(_) | Event::Removed(_) => feature::HOTPLUG,
            Event::Changed(..) => feature::CHANGE,
        };
        if locked(&self.state).features & wanted == 0 {
            return;
        }
        let (kind, place, reason) = event.fields();
        self.send_event(kind, Some(place), reason);
    }

    /// The driver has made room for events.
    pub(super) fn room_for_events(&self) {
        if locked(&self.state).missed {
            self.send_event(NO_EVENT, None, 0);
        }
    }

    fn send_event(&self, kind: u32, place: Option<Place>, reason: u32) {
        let Some(chain) = self.queues.pop(EVENT_QUEUE) else {
            locked(&self.state).missed = true;
            return;
        };
        let missed = std::mem::take(&mut locked(&self.state).missed);
        let kind = kind | if missed { MISSED } else { 0 };
        let bytes = [&kind.to_le_bytes()[..], &place.map_or([0; 8], command::name), &reason.to_le_bytes()].concat();
        let len = ranges::store(&**self.queues.dma(), &chain.writable, &bytes);
        self.queues.push(EVENT_QUEUE, chain.head, len as u32);
    }
}
