"""The unattended install from the disc onto a qcow2, and boots of the installed disk, timed by phase."""

import contextlib
import pathlib

from . import console, secure_shell

INSTALL_MARKS = [
    # what ends where this shows on the serial line
    ("firmware, to the boot loader", r"ISOLINUX \d"),
    ("boot loader, to the kernel's first line", r"Linux version \d"),
    ("kernel and initrd, to the installer's init", r"MARK: d-i started"),
    ("to the first screen", r"Detecting hardware to find"),
    ("disc scan and extra components", r"Detecting network hardware"),
    ("network", r"MARK: partman"),
    ("partitions and mkfs", r"Installing the base system"),
    ("base system (debootstrap)", r"MARK: base system unpacked"),
    ("apt set up in the target", r"MARK: kernel install"),
    ("kernel package and initramfs", r"Configuring apt\b"),
    ("extra packages", r"Installing GRUB boot loader"),
    ("boot loader onto the disk", r"Finishing the installation|MARK: late_command"),
    ("finish, to power down", r"reboot: Power down"),
]
BOOT_MARKS = [
    ("firmware, to GRUB", r"Welcome to GRUB|GNU GRUB|GRUB loading"),
    ("GRUB with its menu's 5 s", r"Loading initial ramdisk"),
    ("initrd, kernel, to the root file system", r"/dev/\w+: (clean|recovering)"),
    ("systemd, to the login prompt", r"login: "),
]
SILENCE = 3600
"""Seconds without a word on the serial line after which a guest has failed: a loaded machine may take long."""
INSTALL_LIMIT = 4 * 3600
BOOT_LIMIT = 1200
END_LIMIT = 600


class Installation:
    """A disc, a disk, the machine for both, and the folder of its serial logs."""

    def __init__(self, disc, disk, tell=lambda text: None):
        self.disc, self.disk = pathlib.Path(disc), pathlib.Path(disk)
        self.key = self.disc.with_name(self.disc.name + ".key")
        self.tell = tell
        for path in (self.disc, self.key):
            if not path.exists():
                raise console.GuestFailed(f"{path} is missing: tools/guest.py installer makes it")

    def log(self, name):
        """Where a boot's serial log goes: beside the disk."""
        return self.disk.with_name(f"{self.disk.name}.{name}.log")

    def install(self, emulator, tools, size="8G"):
        """Install onto a fresh qcow2; the phases."""
        self.disk.unlink(missing_ok=True)
        tools.img("create", "-q", "-f", "qcow2", self.disk, size)
        command = emulator.command(self.disk, secure_shell.free_port(), "-cdrom", self.disc, "-boot", "d")
        with console.Console(command, self.log("install"), INSTALL_MARKS, self.tell) as guest:
            status = guest.wait(INSTALL_LIMIT, SILENCE)
            rows = guest.phases()
        if status or not rows or rows[-1]["phase"] != INSTALL_MARKS[-1][0]:
            raise console.GuestFailed(f"the install did not end in a power down (exit status {status}); "
                                      f"{guest.last_words()}")
        return rows

    @contextlib.contextmanager
    def booted(self, emulator, name, *more, disk=None, marks=BOOT_MARKS, **options):
        """A guest that answers ssh: (its console, its shell). Killed at the end if it still runs."""
        port = secure_shell.free_port()
        command = emulator.command(disk or self.disk, port, *more, **options)
        with console.Console(command, self.log(name), marks, self.tell) as guest:
            shell = secure_shell.Shell(port, self.key)
            wall = shell.wait(guest, BOOT_LIMIT)
            guest.reached.append(("ssh", *guest.clocks()))
            self.tell(f"{wall:8.1f} s  ssh answers")
            yield guest, shell

    def power_off(self, guest, button=True, shell=None):
        """Shut down by the ACPI power button (or by systemctl); seconds until the process has ended."""
        began = guest.clocks()[0]
        if button:
            guest.monitor("system_powerdown")
        else:
            shell.run("systemctl poweroff", status=(0, 255))
        status = guest.wait(END_LIMIT)
        if status:
            raise console.GuestFailed(f"the emulator ended with status {status} at power off; {guest.last_words()}")
        if "reboot: Power down" not in guest.text:
            raise console.GuestFailed(f"the guest did not shut down in order; {guest.last_words()}")
        return guest.clocks()[0] - began
