//! Guest memory and registers in files that crash and gdb read.

use crate::monitor::call::Call;
use crate::monitor::core_file::{self, DumpForm};
use crate::monitor::events::DUMP;
use crate::monitor::fault::Fault;
use crate::monitor::table::{Command, Outcome, Place, arg, opt};
use crate::monitor::types::{Enum, Object, Ty, member};
use serde_json::{Value, json};

/// Forms that QMP knows.
static FORMATS: Enum = Enum {
    name: "DumpGuestMemoryFormat",
    values: &[
        "elf",
        "kdump-zlib",
        "kdump-lzo",
        "kdump-snappy",
        "kdump-raw-zlib",
        "kdump-raw-lzo",
        "kdump-raw-snappy",
        "win-dmp",
    ],
};
/// Those that are written here.
const WRITTEN: [(&str, DumpForm); 3] =
    [("elf", DumpForm::Elf), ("kdump-zlib", DumpForm::Zlib), ("kdump-raw-zlib", DumpForm::RawZlib)];
static CAPABILITY: Object =
    Object::new("DumpGuestMemoryCapability", &[member("formats", Ty::Array(&Ty::Enum(&FORMATS)))]);

pub static TABLE: &[Command] = &[
    Command::qmp("dump-guest-memory", "write all guest memory and registers into a file for crash or gdb", for_programs)
        .args(&[
            arg("paging", Ty::Bool, Place::Absent),
            arg("protocol", Ty::Str, Place::Absent),
            opt("detach", Ty::Bool, Place::Absent),
            opt("begin", Ty::Uint, Place::Absent),
            opt("length", Ty::Uint, Place::Absent),
            opt("format", Ty::Enum(&FORMATS), Place::Absent),
        ]),
    Command::hmp(
        &["dump-guest-memory"],
        "dump guest memory into file 'filename': as an ELF core file, with -z in kdump-compressed format, flattened unless \
         -R is there too; -d: return immediately",
        for_people,
    )
    .args(&[
        opt("paging", Ty::Bool, Place::Flag('p')),
        opt("detach", Ty::Bool, Place::Flag('d')),
        opt("windmp", Ty::Bool, Place::Flag('w')),
        opt("zlib", Ty::Bool, Place::Flag('z')),
        opt("lzo", Ty::Bool, Place::Flag('l')),
        opt("snappy", Ty::Bool, Place::Flag('s')),
        opt("raw", Ty::Bool, Place::Flag('R')),
        arg("filename", Ty::Str, Place::Word),
        opt("begin", Ty::Uint, Place::Number),
        opt("length", Ty::Uint, Place::Number),
    ]),
    Command::qmp("query-dump-guest-memory-capability", "formats of dumps", |_| {
        Ok(json!({ "formats": WRITTEN.map(|(name, _)| name) }))
    })
    .returns(Ty::Object(&CAPABILITY)),
    Command::both("query-dump", &["info dump"], "Display the latest dump status", |call| {
        let (status, done) = call.host.last_dump();
        Ok(json!({ "status": status, "completed": done, "total": done }))
    })
    .returns(Ty::Object(&DUMP))
    .show(|dump| format!("Status: {}\n", dump["status"].as_str().unwrap_or_default())),
];

fn for_programs(call: &mut Call<'_>) -> Outcome {
    let protocol = call.word("protocol")?.to_owned();
    if !["file:", "fd:"].iter().any(|kind| protocol.starts_with(kind)) {
        return Err(Fault::new("parameter 'protocol' must be file:PATH or fd:NAME"));
    }
    let format = call.text("format").unwrap_or("elf").to_owned();
    dump(call, &protocol, &format)
}

fn for_people(call: &mut Call<'_>) -> Outcome {
    let file = format!("file:{}", call.word("filename")?);
    let given: Vec<_> = ["windmp", "zlib", "lzo", "snappy"].into_iter().filter(|name| call.switch(name)).collect();
    let format = match (given.as_slice(), call.switch("raw")) {
        ([], _) => "elf".to_owned(),
        (["windmp"], _) => "win-dmp".to_owned(),
        ([one], true) => format!("kdump-raw-{one}"),
        ([one], false) => format!("kdump-{one}"),
        _ => return Err("only one of '-z|-l|-s|-w' can be set".into()),
    };
    dump(call, &file, &format)
}

/// The form called so.
fn form(name: &str) -> Result<DumpForm, Fault> {
    match WRITTEN.iter().find(|(known, _)| *known == name) {
        Some((_, form)) => Ok(*form),
        None if name == "win-dmp" => {
            Err("win-dmp is not available: it needs a device vmcoreinfo, which there is not; use elf".into())
        }
        None => Err(Fault::new(format!("{name} is not available now"))),
    }
}

fn dump(call: &mut Call<'_>, file: &str, format: &str) -> Outcome {
    let form = form(format)?;
    let range = match (call.number("begin"), call.number("length")) {
        (None, None) => None,
        (Some(begin), Some(length)) => {
            let end = begin.checked_add(length).filter(|end| *end > begin);
            Some(begin..end.ok_or("begin and length name no memory")?)
        }
        _ => return Err("begin and length go together".into()),
    };
    if form != DumpForm::Elf && (call.switch("paging") || range.is_some()) {
        return Err("kdump-compressed format doesn't support paging or filter".into());
    }
    if call.switch("paging") {
        return Err("paging is not supported: the dump holds physical memory, as crash reads it".into());
    }
    let written = core_file::write(call.host, file, range, form);
    let (status, bytes) = call.host.last_dump();
    let mut told = json!({ "result": { "status": status, "completed": bytes, "total": bytes } });
    if let Err(why) = &written {
        told["error"] = why.as_str().into();
    }
    // Who does not want to wait is told of the end, which comes first here.
    call.host.events().emit("DUMP_COMPLETED", told);
    written?;
    Ok(Value::Null)
}
