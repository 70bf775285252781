//! What the monitor needs from the machine to have devices and host ends come and go.

use super::fault::{Class, Fault};
use serde_json::Value;

/// A device that a user gave.
#[derive(Clone, Debug, Default)]
pub struct DeviceInfo {
    /// Its place in the tree of objects.
    pub path: String,
    /// Its model.
    pub model: &'static str,
    /// All keys but `id` and the model, as they were written.
    pub keys: Vec<(String, String)>,
    /// It came while the machine was there.
    pub late: bool,
    /// It can be taken away.
    pub movable: bool,
}

/// A property that lives with its device.
#[derive(Clone, Debug)]
pub struct LiveProperty {
    /// Its name.
    pub name: &'static str,
    /// What it is now.
    pub value: Value,
    /// It can be set.
    pub writable: bool,
}

/// An object: its name, its kind, and its properties.
pub type ObjectInfo = (String, &'static str, Vec<(&'static str, String)>);

/// A machine that nothing can be added to.
fn fixed() -> Fault {
    Fault::new("this machine has no devices")
}

/// The machine as those see it who change what it consists of. Texts are in the grammar of the option of that name. A machine
/// that says nothing else has nothing that comes or goes.
pub trait Plugging: Send + Sync {
    /// Adds a device; the guest is told.
    fn device_add(&self, _value: &str) -> Result<(), Fault> {
        Err(fixed())
    }

    /// Asks the guest for a device, or takes it if it needs not be asked. `DEVICE_DELETED` tells of the end.
    fn device_del(&self, name: &str) -> Result<(), Fault> {
        Err(Fault::of(Class::DeviceNotFound, format!("Device '{name}' not found")))
    }

    /// Opens a host end for network cards.
    fn netdev_add(&self, _value: &str) -> Result<(), Fault> {
        Err(fixed())
    }

    /// Closes one; a card that has it is left without.
    fn netdev_del(&self, id: &str) -> Result<(), Fault> {
        self.device_del(id)
    }

    /// Opens a host end for character devices, in the grammar of `-chardev`; the name of the pseudo-terminal, if it is one.
    fn chardev_add(&self, _value: &str) -> Result<Option<String>, Fault> {
        Err(fixed())
    }

    /// Opens another one in the place of the one called `id`.
    fn chardev_change(&self, id: &str, _value: &str) -> Result<Option<String>, Fault> {
        Err(Fault::new(format!("Chardev '{id}' does not exist")))
    }

    /// Closes one that nobody uses.
    fn chardev_remove(&self, id: &str) -> Result<(), Fault> {
        Err(Fault::new(format!("Chardev '{id}' not found")))
    }

    /// Sends a break to the device that has one.
    fn chardev_break(&self, id: &str) -> Result<(), Fault> {
        Err(Fault::new(format!("Chardev '{id}' not found")))
    }

    /// Makes an object that devices may name.
    fn object_add(&self, _value: &str) -> Result<(), Fault> {
        Err(fixed())
    }

    /// Takes one away; what devices have of it stays.
    fn object_del(&self, id: &str) -> Result<(), Fault> {
        Err(Fault::new(format!("object '{id}' not found")))
    }

    /// The objects.
    fn object_list(&self) -> Vec<ObjectInfo> {
        Vec::new()
    }

    /// Opens an image for a device to come, in the grammar of `-drive`.
    fn drive_add(&self, _value: &str) -> Result<(), Fault> {
        Err(fixed())
    }

    /// Closes an image that no device has.
    fn drive_del(&self, id: &str) -> Result<(), Fault> {
        self.device_del(id)
    }

    /// Opens an image, in the grammar of `-blockdev`.
    fn node_add(&self, _value: &str) -> Result<(), Fault> {
        Err(fixed())
    }

    /// Closes it.
    fn node_del(&self, name: &str) -> Result<(), Fault> {
        Err(Fault::new(format!("Failed to find node with node-name='{name}'")))
    }

    /// Gives an image another size; its drive's, device's or node's name. `None`: there is none.
    fn resize(&self, _name: &str, _bytes: u64) -> Option<Result<(), String>> {
        None
    }

    /// What lives of the device at a place in the tree of objects.
    fn live_properties(&self, _path: &str) -> Vec<LiveProperty> {
        Vec::new()
    }

    /// Sets one of those.
    fn set_property(&self, _path: &str, name: &str, _value: &Value) -> Result<(), Fault> {
        Err(Fault::new(format!("Property '{name}' not found")))
    }

    /// The place in the tree of objects of a processor that a user added.
    fn processor_path(&self, _number: u32) -> Option<String> {
        None
    }

    /// The devices that users gave.
    fn device_list(&self) -> Vec<DeviceInfo> {
        Vec::new()
    }
}
