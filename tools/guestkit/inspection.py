"""What is looked at in an installed system that runs, each thing a way to find lost or damaged data or a lame device."""

import re
import time

from . import console

COMPLAINTS = re.compile(
    r"BUG:|WARNING:|Call Trace|Oops|general protection|soft lockup|blocked for more than|rcu: INFO|I/O error|"
    r"EXT4-fs (error|warning)|ata\d.*(exception|failed|timeout)|NETDEV WATCHDOG|Tx Unit Hang|as unstable|"
    r"nobody cared|segfault|invalid opcode|unchecked MSR", re.I)
"""Kernel messages that mean that something is wrong with the machine."""


def packages_whole(shell):
    """Every installed file has the checksum that its package gives; configuration may differ."""
    audit = shell.run("dpkg --audit")
    lines = shell.run("dpkg --verify", 1800, status=(0, 1)).splitlines()
    wrong = [line for line in lines if line.strip() and " c /" not in line]
    if audit or wrong:
        raise console.GuestFailed(f"damaged packages: {audit} {'; '.join(wrong[:10])}")
    return f"{shell.run('dpkg -l | grep -c ^ii')} packages, every file with its checksum"


def kernel_content(shell):
    """The kernel's log has no complaint."""
    log = shell.run("dmesg")
    found = [line for line in log.splitlines() if COMPLAINTS.search(line)]
    if found:
        raise console.GuestFailed("the kernel complains:\n" + "\n".join(found[:20]))
    return f"{len(log.splitlines())} lines, none a complaint"


def systemd_running(shell):
    """All units came up."""
    state = shell.run("systemctl is-system-running --wait", 900, status=(0, 1))
    if state != "running":
        failed = shell.run("systemctl --failed --no-legend --plain", status=(0, 1))
        raise console.GuestFailed(f"systemd is {state}: {failed}")
    return state


def file_survives(shell):
    """16 MiB of noise read back from the disk are what was written."""
    shell.run("dd if=/dev/urandom of=/var/tmp/noise bs=64k count=256 conv=fsync status=none")
    before = shell.run("md5sum /var/tmp/noise")
    shell.run("echo 3 >/proc/sys/vm/drop_caches")
    if shell.run("md5sum /var/tmp/noise; rm /var/tmp/noise") != before:
        raise console.GuestFailed("a file has changed between being written and read back")
    return before.split()[0]


CHECKS = {"systemd": systemd_running, "packages": packages_whole, "kernel log": kernel_content,
          "file": file_survives}


def inspect(shell, card, tell, names=tuple(CHECKS)):
    """Make all checks; {name: what it found}. Raises at the first failure."""
    driver = {"e1000": "e1000", "virtio-net-pci": "virtio_net"}[card]
    said = {"kernel": shell.run("uname -r"), "command line": shell.run("cat /proc/cmdline"),
            "disk": shell.run("df -h / | tail -1")}
    used = shell.run("basename $(readlink /sys/class/net/e*/device/driver)")
    if used != driver:
        raise console.GuestFailed(f"the network card is driven by {used} instead of {driver}")
    for name in names:
        began = time.monotonic()
        said[name] = CHECKS[name](shell)
        tell(f"{time.monotonic() - began:8.1f} s  {name}: {said[name]}")
    return said
