"""What else an installed disk must do: start without boot loader, keep still under -snapshot, and take a NoCloud seed."""

import hashlib
import pathlib
import subprocess

from . import console, mirror, secure_shell

ROOTS = {"virtio": "/dev/vda1", "ide": "/dev/sda1"}
USER = "visitor"
USER_DATA = """#cloud-config
hostname: seeded
ssh_pwauth: false
users:
  - name: {user}
    shell: /bin/bash
    lock_passwd: true
    ssh_authorized_keys: ["{key}"]
write_files:
  - path: /etc/seed-was-here
    content: "written by cloud-init\\n"
runcmd:
  - [sh, -c, "echo SEED $(hostname) $(cloud-id) $(cat /etc/seed-was-here) >/dev/ttyS0"]
"""
META_DATA = "instance-id: brolga-seed-1\nlocal-hostname: seeded\n"
NETWORK_CONFIG = "config: disabled\n"
"""The network stays as the installer has set it up. What cloud-init makes of none asks for DHCPv6 too, for which a Debian
with dhcpcd alone has no client: ifup then takes the IPv4 address away again, and ssh does not get in."""


def digest(path):
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_kernel(shell, folder):
    """The installed kernel and its initramfs as files of the host's."""
    folder = pathlib.Path(folder)
    version = shell.run("uname -r")
    return (shell.get(f"/boot/vmlinuz-{version}", folder / "vmlinuz"),
            shell.get(f"/boot/initrd.img-{version}", folder / "initrd.img"))


def direct_boots(installation, emulator, kernel, initrd):
    """`-kernel` with the root on each bus, under `-snapshot`; the image is the same to the last bit afterwards."""
    before, walls = digest(installation.disk), {}
    for bus, root in ROOTS.items():
        append = f"root={root} rw console=ttyS0 net.ifnames=0"
        more = ("-kernel", kernel, "-initrd", initrd, "-append", append, "-snapshot")
        with installation.booted(emulator, f"direct-{bus}", *more, marks=(), bus=bus) as (guest, shell):
            walls[bus] = guest.clocks()[0]
            if shell.run("findmnt -n -o SOURCE /") != root or f"root={root} " not in shell.run("cat /proc/cmdline"):
                raise console.GuestFailed(f"the root file system is not {root}: {shell.run('findmnt -n /')}")
            shell.run("dd if=/dev/urandom of=/var/tmp/gone bs=1M count=64 conv=fsync status=none; rm -rf /usr/share/doc; sync")
            installation.power_off(guest)
        if digest(installation.disk) != before:
            raise console.GuestFailed(f"-snapshot with if={bus} has changed {installation.disk}")
    return {"ssh": walls, "sha256": before}


def make_seed(folder, key):
    """A NoCloud seed on a CD, with a user who has `key`."""
    folder = pathlib.Path(folder)
    public = subprocess.run(["ssh-keygen", "-y", "-f", str(key)], capture_output=True, text=True, check=True).stdout.strip()
    texts = {"user-data": USER_DATA.format(user=USER, key=public), "meta-data": META_DATA, "network-config": NETWORK_CONFIG}
    for name, text in texts.items():
        (folder / name).write_text(text)
    seed = folder / "seed.iso"
    command = ["xorriso", "-as", "mkisofs", "-quiet", "-r", "-J", "-V", "CIDATA", "-o", seed,
               *(folder / name for name in texts)]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise console.GuestFailed(f"cannot make the seed: {done.stderr.strip()[-500:]}")
    return seed


def seeded_boot(installation, emulator, tools, work):
    """cloud-init, installed into an overlay from the mirror, finds the seed on `-cdrom` and does what it says: on the
    serial line, and by ssh as root and as the user that the seed has made."""
    overlay = pathlib.Path(work) / "cloud.qcow2"
    tools.img("create", "-q", "-f", "qcow2", "-b", installation.disk.resolve(), "-F", "qcow2", overlay)
    with mirror.Mirror(installation.disc, work) as packages:
        if "cloud-init" not in packages.packages():
            raise console.GuestFailed(f"the disc {installation.disc} has no cloud-init: tools/guest.py installer makes one")
        with installation.booted(emulator, "cloud-install", disk=overlay) as (guest, shell):
            packages.use(shell)
            packages.install(shell, ["cloud-init"])
            shell.run("cloud-init clean --logs")
            installation.power_off(guest)
    seed, port = make_seed(work, installation.key), secure_shell.free_port()
    command = emulator.command(overlay, port, "-cdrom", seed)
    with console.Console(command, installation.log("cloud"), tell=installation.tell) as guest:
        guest.expect(r"SEED seeded nocloud written by cloud-init", 1800)
        status = guest.expect(r"Cloud-init v\. .* finished at .*Datasource DataSourceNoCloud", 600).group()
        wall = guest.clocks()[0]
        for user in ("root", USER):
            shell = secure_shell.Shell(port, installation.key, user)
            shell.wait(guest, 300)
            found = shell.run("hostname; whoami; cat /etc/seed-was-here").split("\n")
            if found != ["seeded", user, "written by cloud-init"]:
                raise console.GuestFailed(f"by ssh as {user} the guest shows {found}")
        installation.power_off(guest)
    wrong = tools.check_image(overlay)
    if wrong:
        raise console.GuestFailed(wrong)
    return {"seconds": wall, "status": status}
