//! Statistics by provider. QEMU's providers are KVM and encryption devices, none of which there is; what the engine counts is
//! in `info jit`.

use crate::monitor::call::Call;
use crate::monitor::table::{Command, Outcome, Place, arg, opt};
use crate::monitor::types::{Enum, Object, Ty, member, optional};
use serde_json::json;

static PROVIDERS: Enum = Enum { name: "StatsProvider", values: &["kvm", "cryptodev"] };
static TARGETS: Enum = Enum { name: "StatsTarget", values: &["vm", "vcpu", "cryptodev"] };
static REQUEST: Object =
    Object::new("StatsRequest", &[member("provider", Ty::Enum(&PROVIDERS)), optional("names", Ty::Array(&Ty::Str))]);
static VALUE: Object = Object::new("Stats", &[member("name", Ty::Str), member("value", Ty::Any)]);
static RESULT: Object = Object::new(
    "StatsResult",
    &[
        member("provider", Ty::Enum(&PROVIDERS)),
        optional("qom-path", Ty::Str),
        member("stats", Ty::Array(&Ty::Object(&VALUE))),
    ],
);
static SCHEMA_VALUE: Object = Object::new(
    "StatsSchemaValue",
    &[
        member("name", Ty::Str),
        member("type", Ty::Str),
        optional("unit", Ty::Str),
        optional("base", Ty::Int),
        member("exponent", Ty::Int),
        optional("bucket-size", Ty::Int),
    ],
);
static SCHEMA: Object = Object::new(
    "StatsSchema",
    &[
        member("provider", Ty::Enum(&PROVIDERS)),
        member("target", Ty::Enum(&TARGETS)),
        member("stats", Ty::Array(&Ty::Object(&SCHEMA_VALUE))),
    ],
);

pub static TABLE: &[Command] = &[
    Command::qmp("query-stats", "statistics of providers: there are none", none)
        .args(&[
            arg("target", Ty::Enum(&TARGETS), Place::Absent),
            opt("vcpus", Ty::Array(&Ty::Str), Place::Absent),
            opt("providers", Ty::Array(&Ty::Object(&REQUEST)), Place::Absent),
        ])
        .returns(Ty::Array(&Ty::Object(&RESULT))),
    Command::qmp("query-stats-schemas", "which statistics providers have: none", none)
        .args(&[opt("provider", Ty::Enum(&PROVIDERS), Place::Absent)])
        .returns(Ty::Array(&Ty::Object(&SCHEMA))),
    Command::hmp(&["info stats"], "show statistics for the given target (vm or vcpu)", |call| {
        match call.text("target") {
            // Nobody provides any.
            Some("vm" | "vcpu" | "cryptodev") => Ok("".into()),
            other => Err(format!("invalid stats target {}", other.unwrap_or_default()).into()),
        }
    })
    .args(&[
        arg("target", Ty::Str, Place::Word),
        opt("names", Ty::Str, Place::Word),
        opt("provider", Ty::Str, Place::Word),
    ]),
];

fn none(_: &mut Call<'_>) -> Outcome {
    Ok(json!([]))
}
