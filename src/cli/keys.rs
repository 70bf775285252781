//! Which keys options have. Only the code that reads an option knows: it is run on something of each kind, and what it asks for
//! is listened to.

use super::config::Identity;
use brolga::words::keyval::{Heard, listen};

/// Something of each kind that has keys of its own. Whether it can be carried out does not matter.
const KINDS: &[&str] = &[
    "-machine pc -m 16 -smp 1 -rtc base=utc -boot order=c -name x",
    "-accel jit",
    "-action reboot=reset",
    "-msg timestamp=on",
    "-overcommit mem-lock=off",
    "-add-fd fd=0",
    "-chardev null,id=a",
    "-chardev stdio,id=a",
    "-chardev file,id=a,path=x",
    "-chardev pipe,id=a,path=x",
    "-chardev serial,id=a,path=x",
    "-chardev ringbuf,id=a",
    "-chardev udp,id=a,port=1",
    "-chardev socket,id=a,path=x",
    "-chardev null,id=a -mon a",
    "-netdev user,id=a",
    "-netdev tap,id=a",
    "-netdev socket,id=a",
    "-netdev stream,id=a",
    "-netdev dgram,id=a",
    "-netdev hubport,id=a",
    "-netdev bridge,id=a",
    "-net nic",
    "-nic user",
    "-drive if=none,id=a,media=cdrom",
    "-drive if=virtio,id=a",
    "-blockdev file,node-name=a",
    "-fsdev local,id=a,path=/,security_model=none",
    "-virtfs local,path=/,mount_tag=a,security_model=none",
    "-audiodev none,id=a",
    "-fw_cfg opt/a,string=b",
    "-acpitable sig=ABCD",
    "-smbios type=0",
    "-smbios type=1",
    "-smbios type=2",
    "-smbios type=3",
    "-smbios type=11",
];

/// All of them, by option.
pub fn all() -> Heard {
    listen(|| {
        for kind in KINDS {
            let words: Vec<String> = kind.split_whitespace().map(str::to_owned).collect();
            // That it cannot be carried out is as good.
            let _ = super::parse(Identity { program: String::new(), qemu: false }, &words);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_tell_their_keys() {
        let all = all();
        let has = |option: &str, key: &str| all.get(option).and_then(|keys| keys.get(key)).copied();
        for (option, key) in [
            ("chardev", "path"),
            ("chardev", "size"),
            ("chardev", "localport"),
            ("machine", "memory-backend"),
            ("m", "size"),
            ("smp", "dies"),
            ("boot", "splash-time"),
            ("rtc", "base"),
            ("drive", "werror"),
            ("netdev", "hostfwd"),
            ("netdev", "ifname"),
            ("mon", "mode"),
            ("fw_cfg", "file"),
            ("smbios", "serial"),
            ("add-fd", "opaque"),
            ("fsdev", "security_model"),
        ] {
            assert_eq!(has(option, key), Some(false), "{option} {key}: {:?}", all.get(option));
        }
        for (option, key) in [("chardev", "server"), ("machine", "hpet"), ("boot", "strict"), ("mon", "pretty")] {
            assert_eq!(has(option, key), Some(true), "{option} {key}: {:?}", all.get(option));
        }
    }
}
