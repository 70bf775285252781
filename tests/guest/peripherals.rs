//! Entropy, balloon, crash reports and watchdog, as a Debian kernel's drivers use them.

use crate::harness::{Boot, COMMAND, END, Guest};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// A guest with the drivers, and these options.
fn boot(options: &[&str]) -> Guest {
    let options: Vec<&str> = ["-no-reboot"].iter().chain(options).copied().collect();
    Boot::new("debian").initramfs("peripherals-amd64").append("quiet").options(&options).to_shell()
}

/// What a monitor command answers.
fn monitor(guest: &mut Guest, command: &str) -> String {
    guest.send("\x01c");
    guest.expect("(brolga) ", COMMAND);
    guest.send(&format!("{command}\r"));
    guest.expect(command, COMMAND);
    let answer = guest.expect("(brolga) ", COMMAND);
    guest.send("\x01c");
    answer
}

/// Guest memory that the process has from the host, in MiB.
fn resident(guest: &Guest) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", guest.id())).expect("the process's status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssShmem:")).expect("a line for shared memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") >> 10
}

/// Waits until the process has at most `mib` of guest memory.
fn shrinks_to(guest: &Guest, mib: u64) {
    let deadline = Instant::now() + COMMAND;
    while resident(guest) > mib {
        assert!(Instant::now() < deadline, "{} MiB are still there, more than {mib}", resident(guest));
        thread::sleep(Duration::from_millis(100));
    }
}

/// Makes the guest touch `mib` of its memory, and free it again.
fn touch(guest: &mut Guest, mib: u64) {
    guest.run(&format!("dd if=/dev/urandom of=/tmp/fill bs=1M count={mib} 2>/dev/null; rm /tmp/fill"));
}

#[test]
fn the_guest_reads_random_numbers() {
    let mut guest = boot(&["-device", "virtio-rng-pci"]);
    guest.run("modprobe virtio_pci && modprobe virtio_rng");
    assert_eq!(guest.run("cat /sys/class/misc/hw_random/rng_current"), "virtio_rng.0");
    let sums =
        guest.run("for i in 1 2 3; do dd if=/dev/hwrng bs=4096 count=16 2>/dev/null | md5sum; done | sort -u | wc -l");
    assert_eq!(sums, "3", "three times different bytes");
    let bytes = guest.run("dd if=/dev/hwrng bs=1000 count=10 2>/dev/null | gzip | wc -c");
    assert!(bytes.parse::<u32>().unwrap() > 9900, "they do not compress: {bytes}");
    assert!(monitor(&mut guest, "info qtree").contains("virtio-rng-pci"));
}

#[test]
fn random_numbers_come_from_where_the_user_says_and_as_slowly() {
    let device = "virtio-rng-pci,rng=r,max-bytes=512,period=1000";
    let mut guest = boot(&["-object", "rng-random,id=r,filename=/dev/zero", "-device", device]);
    guest.run("modprobe virtio_pci && modprobe virtio_rng");
    assert_eq!(guest.run("dd if=/dev/hwrng bs=64 count=1 2>/dev/null | tr -d '\\000' | wc -c"), "0");
    let begin = Instant::now();
    guest.run(
        "dd if=/dev/hwrng bs=512 count=4 iflag=fullblock of=/tmp/bytes 2>/dev/null; test $(wc -c </tmp/bytes) = 2048",
    );
    assert!(begin.elapsed() > Duration::from_secs(2), "it took only {:?}", begin.elapsed());
}

#[test]
fn a_balloon_gives_memory_back_and_takes_it_again() {
    let mut guest = boot(&["-device", "virtio-balloon-pci,guest-stats-polling-interval=1"]);
    guest.run("modprobe virtio_pci && modprobe virtio_balloon");
    touch(&mut guest, 130);
    let full = resident(&guest);
    assert!(full > 130, "only {full} MiB were touched");
    monitor(&mut guest, "balloon 128");
    shrinks_to(&guest, 135);
    let deadline = Instant::now() + COMMAND;
    loop {
        let answer = monitor(&mut guest, "info balloon");
        if answer.contains("actual=128\n") && answer.contains("free_memory=") && answer.contains("total_memory=") {
            break;
        }
        assert!(Instant::now() < deadline, "{answer}");
    }
    let total = "awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo";
    let small: u64 = guest.run(total).parse().unwrap();
    assert!(small < 128, "{small} MiB");
    monitor(&mut guest, "balloon 256");
    let deadline = Instant::now() + COMMAND;
    while guest.run(total).parse::<u64>().unwrap() < small + 120 {
        assert!(Instant::now() < deadline, "the guest did not get its memory back");
    }
    // The pages that come back can be used: what is written there is read there.
    guest.run("dd if=/dev/urandom of=/tmp/fill bs=1M count=80 2>/dev/null");
    let sums = guest.run("md5sum </tmp/fill; sleep 1; md5sum </tmp/fill");
    let sums: Vec<&str> = sums.lines().collect();
    assert_eq!(sums[0].trim(), sums[1].trim());
    guest.send("poweroff -f\r");
    guest.ends_with(0);
}

#[test]
fn memory_that_the_guest_does_not_use_goes_back_by_itself() {
    let mut guest = boot(&["-device", "virtio-balloon-pci,free-page-reporting=on"]);
    guest.run("modprobe virtio_pci && modprobe virtio_balloon");
    touch(&mut guest, 130);
    assert!(resident(&guest) > 180, "{} MiB", resident(&guest));
    shrinks_to(&guest, 150);
    touch(&mut guest, 130);
    shrinks_to(&guest, 150);
    // Programs run on as before: nothing that was in use is gone.
    guest.run("for i in $(seq 50); do ls /bin | md5sum; done | sort -u | wc -l | grep -qx 1");
}

/// A guest whose kernel panics with this driver; the panic's report is awaited by `end`.
fn panics(options: &[&str], module: &str) -> Guest {
    let mut guest = boot(options);
    guest.run(&format!("modprobe {module}"));
    guest.send("echo c >/proc/sysrq-trigger\r");
    guest
}

#[test]
fn a_crash_is_reported_through_the_port_and_ends_the_process_as_asked() {
    let mut guest = panics(&["-device", "pvpanic", "-action", "panic=exit-failure"], "pvpanic_mmio");
    guest.ends_with(1);
    assert!(guest.error_line("brolga: the guest's kernel ", END).contains("panicked"));
}

#[test]
fn a_crash_is_reported_through_a_pci_function_and_pauses_the_machine() {
    let mut guest = panics(&["-device", "pvpanic-pci", "-action", "panic=pause"], "pvpanic_pci");
    guest.error_line("brolga: the guest's kernel panicked", END);
    assert!(monitor(&mut guest, "info status").contains("paused (guest-panicked)"));
}

#[test]
fn a_watchdog_that_is_not_fed_acts() {
    let mut guest = boot(&["-device", "i6300esb", "-action", "watchdog=pause"]);
    guest.run("modprobe i6300esb heartbeat=2");
    guest.run("grep -q i6300ESB /sys/class/watchdog/watchdog0/identity");
    // Fed, it leaves the guest alone; then nobody feeds it.
    guest.run("exec 3>/dev/watchdog; for i in 1 2 3 4 5 6; do echo >&3; sleep 1; done");
    let deadline = Instant::now() + END;
    while !monitor(&mut guest, "info status").contains("paused (watchdog)") {
        assert!(Instant::now() < deadline, "the guest lives");
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_watchdog_resets_the_machine() {
    let mut guest = boot(&["-device", "i6300esb"]);
    guest.run("modprobe i6300esb heartbeat=2 && exec 3>/dev/watchdog");
    // A reset, which -no-reboot makes an end.
    guest.ends_with(0);
}
