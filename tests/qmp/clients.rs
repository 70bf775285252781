//! Clients of others, unchanged.

use super::harness::Machine;
use std::path::Path;
use std::process::Command;

/// The project's own Python, with what `tools/setup` put into it.
fn python() -> std::path::PathBuf {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/python/bin/python3");
    assert!(python.exists(), "{} is missing: run tools/setup", python.display());
    python
}

/// QEMU's own client library: it negotiates, asks, hears events, and refuses what is no QMP.
#[test]
fn qemus_python_library() {
    let machine = Machine::start("library", &[]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/qmp/client.py");
    let socket = machine.scratch.path("qmp");
    drop(machine.new_client());
    let output = Command::new("timeout").arg("60").arg(python()).arg(script).arg(socket).output().expect("timeout(1)");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "running paused STOP RESUME CommandNotFound setup active device completed STOP postmigrate SHUTDOWN\n"
    );
    assert!(machine.ends().success());
}
