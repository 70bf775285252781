//! What management programs say of the host's side: `-msg`, `-overcommit`, `-audiodev`.

use super::config::Messages;
use super::keyval::KeyValues;
use super::options::Arguments;
use super::suggest;
use anyhow::{Result, bail};

/// Sound systems that QEMU has and Brolga has not.
const SOUND: &[&str] = &["alsa", "dbus", "jack", "oss", "pa", "pipewire", "sdl", "sndio", "spice", "wav"];

/// Checks what can only be said to be as it is.
pub fn check(arguments: &Arguments) -> Result<()> {
    for value in arguments.all("overcommit") {
        let mut keys = KeyValues::parse("-overcommit", value, None)?;
        keys.take_fixed("mem-lock", false, "guest memory is not locked: the host may swap it")?;
        keys.take_fixed("cpu-pm", false, "the guest does not run the host's power management")?;
        keys.finish()?;
    }
    for value in arguments.all("audiodev") {
        let mut keys = KeyValues::parse("-audiodev", value, Some("driver"))?;
        let driver = keys.take("driver")?.unwrap_or_default();
        if SOUND.contains(&driver.as_str()) {
            bail!("-audiodev {driver}: there is no sound yet; use -audiodev none,id=NAME");
        }
        if driver != "none" {
            bail!("-audiodev {driver}: unknown kind{}; use none", suggest::hint(&driver, ["none"]));
        }
        if keys.take("id")?.is_none() {
            bail!("-audiodev {value}: id= is missing; use -audiodev none,id=NAME");
        }
        keys.finish()?;
    }
    Ok(())
}

/// `-msg`: what messages begin with.
pub fn messages(arguments: &Arguments) -> Result<Messages> {
    let mut messages = Messages::default();
    for value in arguments.all("msg") {
        let mut keys = KeyValues::parse("-msg", value, None)?;
        messages.timestamp = keys.take_switch("timestamp")?.unwrap_or(messages.timestamp);
        messages.guest_name = keys.take_switch("guest-name")?.unwrap_or(messages.guest_name);
        keys.finish()?;
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;
    use super::*;

    #[test]
    fn what_libvirt_says() {
        let line = ["-overcommit", "mem-lock=off", "-msg", "timestamp=on", "-audiodev"];
        let c = with(&[&line[..], &["{\"id\":\"audio1\",\"driver\":\"none\"}"]].concat()).unwrap();
        assert_eq!(c.messages, Messages { timestamp: true, guest_name: false });
        let err = |line: &[&str]| with(line).unwrap_err();
        assert!(err(&["-overcommit", "mem-lock=on"]).contains("guest memory is not locked"));
        assert!(err(&["-audiodev", "pa,id=a"]).contains("there is no sound yet"));
        assert!(err(&["-audiodev", "none"]).contains("id= is missing"));
        assert!(err(&["-msg", "timestamps=on"]).contains("did you mean timestamp?"));
    }
}
