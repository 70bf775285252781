//! Properties of devices that live: what they are now, and those that can be set.

use super::Machine;
use super::inventory::{Entry, Inventory};
use crate::cli::config::Made;
use crate::monitor::{Fault, LiveProperty};
use brolga_devices::virtio::balloon::VirtioBalloon;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// How often the balloon's guest is asked for statistics, in seconds.
const POLLING: &str = "guest-stats-polling-interval";
/// The place in the order in which firmware tries devices.
const BOOT: &str = "bootindex";

/// Names of statistics by their tags (virtio 1.2, 5.5.6.3).
const STATISTICS: [&str; 16] = [
    "stat-swap-in",
    "stat-swap-out",
    "stat-major-faults",
    "stat-minor-faults",
    "stat-free-memory",
    "stat-total-memory",
    "stat-available-memory",
    "stat-disk-caches",
    "stat-htlb-pgalloc",
    "stat-htlb-pgfail",
    "stat-oom-kills",
    "stat-alloc-stalls",
    "stat-async-scans",
    "stat-direct-scans",
    "stat-async-reclaims",
    "stat-direct-reclaims",
];

/// What the guest told; what it did not is all ones.
fn statistics(balloon: &VirtioBalloon) -> Value {
    let (told, at) = balloon.told();
    let value = |tag: usize| u16::try_from(tag).ok().and_then(|tag| told.get(&tag)).copied().unwrap_or(u64::MAX);
    let named = STATISTICS.iter().enumerate().map(|(tag, name)| ((*name).to_owned(), value(tag).into()));
    json!({ "stats": Map::from_iter(named), "last-update": at })
}

impl Inventory {
    fn at(&self, path: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.path() == path)
    }

    fn balloon_at(&self, path: &str) -> Option<&Arc<VirtioBalloon>> {
        self.at(path).filter(|entry| entry.spec.made == Made::Balloon).and(self.balloon.as_ref())
    }

    /// Where the device's place in the boot order is kept.
    fn boot_index(&mut self, path: &str) -> Option<&mut Option<u32>> {
        let made = self.at(path)?.spec.made;
        match made {
            Made::Nic(at) => self.collected.network.nics.get_mut(at).map(|nic| &mut nic.boot_index),
            Made::Disk(at) | Made::ScsiUnit(at) => {
                self.collected.drives.drives.get_mut(at).map(|drive| &mut drive.spec.boot_index)
            }
            _ => None,
        }
    }
}

impl Machine {
    /// What lives of the device at `path`.
    pub(super) fn live(&self, path: &str) -> Vec<LiveProperty> {
        let mut inventory = self.inventory();
        let mut all = Vec::new();
        if let Some(balloon) = inventory.balloon_at(path) {
            all.push(LiveProperty { name: POLLING, value: balloon.polling().into(), writable: true });
            all.push(LiveProperty { name: "guest-stats", value: statistics(balloon), writable: false });
        }
        let entry = inventory.at(path).filter(|entry| entry.spec.keys.iter().all(|(key, _)| key != "mac"));
        if let Some(Made::Nic(at)) = entry.map(|entry| entry.spec.made)
            && let Some(nic) = inventory.collected.network.nics.get(at)
        {
            let mac = nic.mac.map(|byte| format!("{byte:02x}")).join(":");
            all.push(LiveProperty { name: "mac", value: mac.into(), writable: false });
        }
        if let Some(index) = inventory.boot_index(path).and_then(|index| *index) {
            all.push(LiveProperty { name: BOOT, value: index.into(), writable: true });
        }
        all
    }

    /// Sets what lives.
    pub(super) fn set_live(&self, path: &str, name: &str, value: &Value) -> Result<(), Fault> {
        let expected = || Fault::new(format!("Invalid parameter type for '{name}', expected: integer"));
        let number = value.as_i64().ok_or_else(expected)?;
        let mut inventory = self.inventory();
        if let (POLLING, Some(balloon)) = (name, inventory.balloon_at(path)) {
            if number < 0 {
                return Err("timer value must be greater than zero".into());
            }
            let seconds = u32::try_from(number).map_err(|_| Fault::new("timer value is too big"))?;
            balloon.set_polling(seconds);
            return Ok(());
        }
        if name != BOOT {
            return Err(Fault::new(format!("Property '{name}' not found")));
        }
        self.move_in_boot_order(&mut inventory, path, number)
    }

    /// Gives a device another place in the boot order; -1: none.
    fn move_in_boot_order(&self, inventory: &mut Inventory, path: &str, number: i64) -> Result<(), Fault> {
        let range = || Fault::new(format!("Parameter '{BOOT}' expects int32"));
        let wanted = match number {
            -1 => None,
            _ => Some(u32::try_from(number).ok().filter(|n| i32::try_from(*n).is_ok()).ok_or_else(range)?),
        };
        let old = inventory.boot_index(path).and_then(|index| *index);
        let Some(old) = old else { return Err(Fault::new(format!("Property '{BOOT}' not found"))) };
        if wanted == Some(old) {
            return Ok(());
        }
        let mut taken = false;
        self.pc.change_boot_paths(|all| {
            taken = wanted.is_some_and(|wanted| all.iter().any(|(other, _)| *other == wanted));
            match wanted {
                _ if taken => {}
                Some(wanted) => {
                    all.iter_mut().filter(|(index, _)| *index == old).for_each(|(index, _)| *index = wanted)
                }
                None => all.retain(|(index, _)| *index != old),
            }
        });
        if taken {
            return Err(Fault::new(format!("The bootindex {number} has already been used")));
        }
        if let Some(index) = inventory.boot_index(path) {
            *index = wanted;
        }
        // Firmware reads it at the next reset.
        inventory.changed = true;
        Ok(())
    }
}
