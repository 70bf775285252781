//! Processors that are added while the machine runs: `device_add MODEL-x86_64-cpu,socket-id=,...`.

use super::config::{Config, DeviceSpec, Made};
use super::keyval::KeyValues;
use super::{Devices, values};
use anyhow::{Result, bail};
use brolga_jit::cpuid::Topology;

/// What a processor's model ends in.
const SUFFIX: &str = "-x86_64-cpu";

/// Whether `driver` is a processor.
pub fn is_processor(driver: &str) -> bool {
    driver.ends_with(SUFFIX)
}

/// The processor that `value` asks for, of the machine of `config`, beside `devices`.
pub fn later(config: &Config, devices: &Devices, value: &str) -> Result<DeviceSpec> {
    let mut keys = KeyValues::parse("device_add", value, Some("driver"))?;
    let driver = keys.take("driver")?.unwrap_or_default();
    let own = format!("{}{SUFFIX}", config.cpu.name);
    if driver != own {
        bail!("Invalid CPU type, expected cpu type: '{own}'");
    }
    let id = keys.take("id")?;
    if let Some(id) = &id
        && devices.given.iter().any(|other| other.id.as_ref() == Some(id))
    {
        bail!("Duplicate device ID '{id}'");
    }
    let given = keys.pairs().into_iter().map(|(key, text)| (key.to_owned(), text.to_owned())).collect();
    let number = number(&mut keys, config.topology)?;
    keys.finish()?;
    Ok(DeviceSpec { id, model: "x86_64-cpu", keys: given, made: Made::Processor(number) })
}

/// The number of the processor at the place that `keys` name.
fn number(keys: &mut KeyValues, topology: Topology) -> Result<u32> {
    let Topology { sockets, dies, cores, threads } = topology;
    let number = |text: &str| values::number_in(text, 0, u32::MAX.into()).map(|n| n as u32);
    let apic_id = keys.take_as("apic-id", number)?;
    keys.take_as("node-id", |text| values::number_in(text, 0, 0))?;
    let mut place = |key: &'static str, count: u32| -> Result<Option<u32>> {
        let at = keys.take_as(key, number)?;
        match at {
            Some(at) if at >= count => bail!("Invalid CPU {key}: {at} must be in range 0:{}", count - 1),
            at => Ok(at),
        }
    };
    let (socket, die) = (place("socket-id", sockets)?, place("die-id", dies)?);
    let (core, thread) = (place("core-id", cores)?, place("thread-id", threads)?);
    let by_place = match (socket, die, core, thread) {
        (None, None, None, None) if apic_id.is_some() => None,
        (None, ..) => bail!("CPU socket-id is not set"),
        (_, None, ..) if dies > 1 => bail!("CPU die-id is not set"),
        (_, _, None, _) => bail!("CPU core-id is not set"),
        (_, _, _, None) => bail!("CPU thread-id is not set"),
        (Some(socket), die, Some(core), Some(thread)) => {
            Some(((socket * dies + die.unwrap_or(0)) * cores + core) * threads + thread)
        }
    };
    let by_id = match apic_id {
        Some(id) => match (0..topology.processors()).find(|n| topology.apic_id(*n) == id) {
            Some(number) => Some(number),
            None => bail!("Invalid CPU apic-id: {id} is no processor's; query-hotpluggable-cpus lists the places"),
        },
        None => None,
    };
    match (by_place, by_id) {
        (Some(place), Some(id)) if place != id => bail!("apic-id= and the other keys name different processors"),
        (Some(number), _) | (None, Some(number)) => Ok(number),
        (None, None) => bail!("CPU socket-id is not set"),
    }
}
