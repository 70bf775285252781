//! Guest memory and ports: looked at, summed up, saved to files; balloons.

use super::about::{processor, text};
use crate::cli::os_reason;
use crate::monitor::call::Call;
use crate::monitor::examine::{Format, Reader, show};
use crate::monitor::expression::evaluate;
use crate::monitor::fault::{Class, Fault};
use crate::monitor::host::Topic;
use crate::monitor::table::{Command, Outcome, Place, arg, opt};
use crate::monitor::types::{Enum, Object, Ty, member, optional};
use brolga::descriptors;
use serde_json::{Value, json};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;

/// Bytes read at a time.
const CHUNK: u64 = 64 << 10;

static SUMMARY: Object =
    Object::new("MemoryInfo", &[member("base-memory", Ty::Int), optional("plugged-memory", Ty::Int)]);
static BALLOON: Object = Object::new("BalloonInfo", &[member("actual", Ty::Int)]);
static POLICIES: Enum = Enum { name: "HostMemPolicy", values: &["default", "preferred", "bind", "interleave"] };
static BACKEND: Object = Object::new(
    "Memdev",
    &[
        optional("id", Ty::Str),
        member("size", Ty::Int),
        member("merge", Ty::Bool),
        member("dump", Ty::Bool),
        member("prealloc", Ty::Bool),
        member("share", Ty::Bool),
        optional("reserve", Ty::Bool),
        member("host-nodes", Ty::Array(&Ty::Int)),
        member("policy", Ty::Enum(&POLICIES)),
    ],
);

pub static TABLE: &[Command] = &[
    Command::hmp(&["x"], "virtual memory dump starting at 'addr'", |c| examine(c, false))
        .args(&[arg("fmt", Ty::Str, Place::Format), arg("addr", Ty::Int, Place::LastNumber)]),
    Command::hmp(&["xp"], "physical memory dump starting at 'addr'", |c| examine(c, true))
        .args(&[arg("fmt", Ty::Str, Place::Format), arg("addr", Ty::Int, Place::LastNumber)]),
    Command::hmp(&["print", "p"], "print expression value (use $reg for CPU register access)", print)
        .args(&[arg("fmt", Ty::Str, Place::Format), arg("expr", Ty::Str, Place::Rest)]),
    Command::hmp(&["i"], "I/O port read", read_port).args(&[
        arg("fmt", Ty::Str, Place::Format),
        arg("addr", Ty::Int, Place::Number),
        opt("index", Ty::Int, Place::Number),
    ]),
    Command::hmp(&["o"], "I/O port write", write_port).args(&[
        arg("fmt", Ty::Str, Place::Format),
        arg("addr", Ty::Int, Place::Number),
        arg("value", Ty::Int, Place::Number),
    ]),
    Command::hmp(&["sum"], "compute the checksum of a memory region", sum)
        .args(&[arg("addr", Ty::Int, Place::Number), arg("size", Ty::Int, Place::Number)]),
    Command::hmp(&["gpa2hva"], "print the host virtual address corresponding to a guest physical address", |call| {
        let (gpa, name, address) = in_process(call)?;
        Ok(format!("Host virtual address for {gpa:#x} ({name}) is {address:#x}\n").into())
    })
    .args(&[arg("addr", Ty::Int, Place::LastNumber)]),
    Command::hmp(&["gpa2hpa"], "print the host physical address corresponding to a guest physical address", |call| {
        let (gpa, name, address) = in_process(call)?;
        let physical = in_host(address).map_err(|why| Fault::new(format!("Virtual address translation: {why}")))?;
        Ok(format!("Host physical address for {gpa:#x} ({name}) is {physical:#x}\n").into())
    })
    .args(&[arg("addr", Ty::Int, Place::LastNumber)]),
    Command::both(
        "pmemsave",
        &["pmemsave"],
        "save to disk physical memory dump starting at 'val' of size 'size'",
        |c| save(c, true),
    )
    .args(&[
        arg("val", Ty::Uint, Place::Number),
        arg("size", Ty::Uint, Place::Number),
        arg("filename", Ty::Str, Place::Word),
    ]),
    Command::both("memsave", &["memsave"], "save to disk virtual memory dump starting at 'val' of size 'size'", |c| {
        save(c, false)
    })
    .args(&[
        arg("val", Ty::Uint, Place::Number),
        arg("size", Ty::Uint, Place::Number),
        arg("filename", Ty::Str, Place::Word),
        opt("cpu-index", Ty::Int, Place::Absent),
    ]),
    Command::both(
        "query-memory-size-summary",
        &["info memory_size_summary"],
        "show the amount of initially allocated and hotpluggable (if enabled) memory in bytes",
        |call| Ok(json!({ "base-memory": call.facts.config.ram, "plugged-memory": 0 })),
    )
    .returns(Ty::Object(&SUMMARY))
    .show(|answer| format!("base memory: {}\nplugged memory: {}\n", answer["base-memory"], answer["plugged-memory"])),
    Command::both("query-memdev", &["info memdev"], "show memory backends", |call| {
        let memory = call.facts.config.memory.as_ref();
        Ok(json!([{
            "id": memory.map_or("pc.ram", |(id, _)| id), "size": call.facts.config.ram, "merge": false, "dump": true,
            "prealloc": memory.is_some_and(|(_, memory)| memory.prealloc), "share": true,
            "reserve": false, "host-nodes": [], "policy": "default",
        }]))
    })
    .returns(Ty::Array(&Ty::Object(&BACKEND)))
    .show(show_backends),
    Command::both("balloon", &["balloon"], "request VM to change its memory allocation (in MB)", set_balloon)
        .args(&[arg("value", Ty::Int, Place::Mebibytes)]),
    Command::both("query-balloon", &["info balloon"], "show balloon information", balloon)
        .returns(Ty::Object(&BALLOON))
        .show(show_balloon),
    Command::hmp(&["info mtree"], "show memory tree (-f: show the flat view)", |call| {
        text(call, if call.switch("flat") { Topic::FlatMtree } else { Topic::Mtree })
    })
    .args(&[opt("flat", Ty::Bool, Place::Flag('f'))]),
    Command::hmp(&["info ramblock"], "Display system ramblock information", |call| text(call, Topic::RamBlocks)),
];

fn format<'a>(call: &'a Call<'_>) -> &'a str {
    call.text("fmt").unwrap_or_default()
}

fn examine(call: &mut Call<'_>, physical: bool) -> Outcome {
    let format = Format::parse(format(call), call.state.format)?;
    let registers = call.registers();
    let address = call.needed("addr")?;
    call.state.format = Format { count: 1, ..format };
    let reader = Reader { host: call.host, cpu: call.state.cpu, physical };
    Ok(reader.dump(address, format, registers.as_ref()).into())
}

fn print(call: &mut Call<'_>) -> Outcome {
    let value = evaluate(call.word("expr")?, call.registers().as_ref())?;
    let kind = match format(call) {
        "" => 'x',
        "x" | "d" | "u" | "o" | "c" => format(call).chars().next().unwrap_or('x'),
        other => return Err(format!("'{other}' is not a format; use x, d, u, o or c").into()),
    };
    Ok(match kind {
        'x' => format!("{value:#x}\n").into(),
        kind => format!("{}\n", show(value, kind, 8)).into(),
    })
}

/// Bytes of a port access and the letter that stands for them; one byte unless told. What else a format says does not matter.
fn port_size(call: &Call<'_>) -> Result<(u8, char), Fault> {
    let mut size = (1, 'b');
    for letter in format(call).chars() {
        match letter {
            'b' => size = (1, 'b'),
            'h' => size = (2, 'w'),
            'w' => size = (4, 'l'),
            '0'..='9' | 'x' | 'd' | 'u' | 'o' | 'c' | 'i' => {}
            other => return Err(Fault::new(format!("'{other}' is not a size of port accesses; use b, h or w"))),
        }
    }
    Ok(size)
}

fn read_port(call: &mut Call<'_>) -> Outcome {
    let (size, letter) = port_size(call)?;
    let port = call.needed("addr")? as u16;
    let index = call.number("index");
    let (at, shown) = match index {
        // A register behind an index: the index is written first.
        Some(index) => {
            call.host.port_write(port, 1, index as u32 & 0xff);
            (port.wrapping_add(1), format!("{:#06x}[{:#04x}]", port, index & 0xff))
        }
        None => (port, format!("{port:#06x}")),
    };
    let value = call.host.port_read(at, size);
    let mask = u32::MAX >> (32 - 8 * u32::from(size));
    Ok(format!("port{letter}[{shown}] = 0x{:0width$x}\n", value & mask, width = 2 * usize::from(size)).into())
}

fn write_port(call: &mut Call<'_>) -> Outcome {
    let (size, _) = port_size(call)?;
    let (port, value) = (call.needed("addr")? as u16, call.needed("value")? as u32);
    call.host.port_write(port, size, value);
    Ok(Value::Null)
}

/// The checksum of BSD's sum(1).
fn sum(call: &mut Call<'_>) -> Outcome {
    let (mut at, mut left) = (call.needed("addr")?, call.needed("size")?);
    limit(call, left)?;
    let mut sum = 0u16;
    while left > 0 {
        let mut bytes = vec![0; left.min(CHUNK) as usize];
        call.host.read_physical(at, &mut bytes);
        for byte in &bytes {
            sum = sum.rotate_right(1).wrapping_add(u16::from(*byte));
        }
        at = at.wrapping_add(bytes.len() as u64);
        left -= bytes.len() as u64;
    }
    Ok(format!("{sum:05}\n").into())
}

/// A guest-physical address, what is there, and where that is in this process.
fn in_process(call: &Call<'_>) -> Result<(u64, &'static str, u64), Fault> {
    let gpa = call.needed("addr")?;
    let found = call.host.host_address(gpa).map(|(name, address)| (gpa, name, address));
    found.ok_or_else(|| Fault::new(format!("No memory is mapped at address {gpa:#x}")))
}

/// Where that is in the host's memory (Linux's Documentation/admin-guide/mm/pagemap.rst).
fn in_host(address: u64) -> Result<u64, String> {
    const PAGE: u64 = 4096;
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let mut entry = [0; 8];
    let read = |file: std::fs::File| file.read_exact_at(&mut entry, address / PAGE * 8);
    std::fs::File::open("/proc/self/pagemap").and_then(read).map_err(|e| os_reason(&e))?;
    match u64::from_le_bytes(entry) {
        entry if entry & PRESENT == 0 => Err("the page is not in memory".to_owned()),
        entry if entry & FRAME == 0 => Err("the host tells it to root alone".to_owned()),
        entry => Ok((entry & FRAME) * PAGE + address % PAGE),
    }
}

/// Nobody means to save more than there is: all memory and the gap below 4 GiB.
fn limit(call: &Call<'_>, size: u64) -> Result<(), Fault> {
    let most = call.facts.config.ram.saturating_add(4 << 30);
    match size <= most {
        true => Ok(()),
        false => Err(Fault::new(format!("Parameter 'size' expects at most {most} bytes: there is no more memory"))),
    }
}

fn save(call: &mut Call<'_>, physical: bool) -> Outcome {
    let cpu = match call.get("cpu-index") {
        Some(_) => processor(call, "cpu-index")?,
        None => call.state.cpu,
    };
    let (start, size) = (call.needed("val")?, call.needed("size")?);
    limit(call, size)?;
    let name = call.word("filename")?;
    let failed = |e: std::io::Error| Fault::new(format!("Could not open '{name}': {}", os_reason(&e)));
    let mut file = BufWriter::new(descriptors::create(name).map_err(failed)?);
    let mut done = 0;
    while done < size {
        let at = start.wrapping_add(done);
        // Pages lie anywhere.
        let n = (size - done).min(if physical { CHUNK } else { 4096 - at % 4096 });
        let mut bytes = vec![0; n as usize];
        let found = match physical {
            // What is not memory reads as all ones.
            true => {
                call.host.read_physical(at, &mut bytes);
                true
            }
            false => call.host.translate(cpu, at).is_some_and(|gpa| call.host.read_physical(gpa, &mut bytes)),
        };
        if !found {
            return Err(Fault::new(format!("Invalid addr {at:#018x}/size {} specified", size - done)));
        }
        file.write_all(&bytes).map_err(failed)?;
        done += n;
    }
    file.flush().map_err(failed)?;
    Ok(Value::Null)
}

fn show_backends(list: &Value) -> String {
    let mut text = String::new();
    for backend in list.as_array().into_iter().flatten() {
        let word = |key: &str| backend[key].as_str().unwrap_or_default();
        text += &format!("memory backend: {}\n", word("id"));
        for key in ["size", "merge", "dump", "prealloc", "share", "reserve"] {
            let gap = if key == "size" { "  " } else { " " };
            text += &format!("  {key}:{gap}{}\n", backend[key]);
        }
        text += &format!("  policy: {}\n  host nodes: \n\n", word("policy"));
    }
    text
}

fn no_balloon() -> Fault {
    Fault::of(Class::DeviceNotActive, "No balloon device has been activated; add -device virtio-balloon-pci")
}

fn set_balloon(call: &mut Call<'_>) -> Outcome {
    let bytes = call.get("value").and_then(Value::as_i64).filter(|bytes| *bytes > 0);
    let bytes = bytes.ok_or_else(|| Fault::new("Parameter 'value' expects a size"))?;
    if call.host.set_balloon(bytes as u64) { Ok(Value::Null) } else { Err(no_balloon()) }
}

fn balloon(call: &mut Call<'_>) -> Outcome {
    let (actual, statistics) = call.host.balloon().ok_or_else(no_balloon)?;
    let mut info = json!({ "actual": actual });
    if call.people {
        info["statistics"] = statistics.into_iter().map(|(name, value)| json!([name, value])).collect();
    }
    Ok(info)
}

fn show_balloon(info: &Value) -> String {
    let mut text = format!("balloon: actual={}\n", info["actual"].as_u64().unwrap_or(0) >> 20);
    for entry in info["statistics"].as_array().into_iter().flatten() {
        text += &format!("  {}={}\n", entry[0].as_str().unwrap_or_default(), entry[1]);
    }
    text
}
