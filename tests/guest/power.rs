//! The ACPI power button: the monitor presses it, and the guest's driver tells.

use crate::harness::{Boot, COMMAND};

#[test]
fn the_power_button_is_heard() {
    let options = ["-no-reboot", "-nic", "none"];
    let mut guest = Boot::new("debian").initramfs("drivers-amd64").append("quiet").options(&options).to_shell();
    guest.run("modprobe button && modprobe evdev");
    let event = guest.run("grep -A5 'Power Button' /proc/bus/input/devices | grep -o 'event[0-9]*' | head -n 1");
    assert!(event.starts_with("event"), "no power button: {event}");
    for _ in 0..2 {
        guest.run(&format!("dd if=/dev/input/{event} of=/tmp/keys bs=24 count=2 2>/dev/null & true"));
        // Only who has the device open is told.
        guest.run("until ls -l /proc/$!/fd | grep -q /dev/input; do sleep 1; done");
        guest.send("\x01c");
        guest.expect(") ", COMMAND);
        guest.send("system_powerdown\r");
        guest.expect(") ", COMMAND);
        guest.send("\x01c");
        let keys = guest.run("wait; hexdump -C /tmp/keys");
        // input-event-codes.h: EV_KEY, KEY_POWER, pressed.
        assert!(keys.contains("01 00 74 00 01 00 00 00"), "no key: {keys}");
    }
    guest.send("poweroff -f\r");
    guest.ends_with(0);
}
