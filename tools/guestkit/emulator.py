"""The command lines of Brolga and QEMU for an installed system: which are the same words."""

import os
import pathlib
import re
import shutil
import subprocess

from . import console

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUSES = ("virtio", "ide")
CARDS = ("e1000", "virtio-net-pci")


def built(name):
    """A program of this project, as `cargo build --release` leaves it."""
    return pathlib.Path(ROOT, os.environ.get("CARGO_TARGET_DIR", "target"), "release", name)


def shipped(name):
    """The same as `cargo build --profile dist` leaves it, which is what users have and benchmarks measure."""
    return built(name).parent.parent / "dist" / name


class Emulator:
    """A program and the machine it is to be."""

    def __init__(self, program, extra=(), bus="virtio", card="e1000", memory="1G", processors=1):
        self.program = os.fspath(program)
        self.extra = list(extra)
        self.bus, self.card, self.memory, self.processors = bus, card, memory, processors
        if not shutil.which(self.program):
            raise console.GuestFailed(f"there is no program {self.program}: cargo build --release makes Brolga, "
                                      "tools/guest.py qemu installs QEMU")

    def name(self):
        """Its name and version in a line."""
        said = subprocess.run([self.program, "-version"], capture_output=True, text=True).stdout.splitlines()
        return said[0] if said else self.program

    def command(self, disk, port, *more, drive="", bus=None):
        """The command line for a machine with a disk, whose sshd answers on a port of the loopback."""
        return [self.program, "-m", self.memory, "-smp", str(self.processors), "-nographic", "-no-reboot",
                "-drive", f"file={comma(disk)},format=qcow2,if={bus or self.bus}{drive}",
                "-netdev", f"user,id=net0,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", f"{self.card},netdev=net0",
                *self.extra, *more]


def comma(path):
    """A file name as it stands in a list of options."""
    return os.fspath(path).replace(",", ",,")


class Tools:
    """brolga-img, and qemu-img to judge what it made."""

    def __init__(self, image_program):
        self.program = os.fspath(image_program)

    def img(self, *words):
        """Run brolga-img; what it printed."""
        done = subprocess.run([self.program, *map(os.fspath, words)], capture_output=True, text=True)
        if done.returncode:
            raise console.GuestFailed(f"{pathlib.Path(self.program).name} {words[0]}: {done.stderr.strip()}")
        return done.stdout

    def check_image(self, disk, leaks=False):
        """What is wrong with an image by brolga-img and by qemu-img, both of them; '' is nothing."""
        wrong = []
        for program in filter(None, (self.program, shutil.which("qemu-img"))):
            done = subprocess.run([program, "check", disk], capture_output=True, text=True)
            if done.returncode not in ((0, 3) if leaks else (0,)):
                wrong.append(f"{pathlib.Path(program).name} check: {(done.stdout + done.stderr).strip()}")
        return "; ".join(wrong)

    def check_files(self, disk, work, replay=False):
        """What e2fsck finds wrong with the root file system in an image; with `replay` after playing its journal."""
        raw, partition = pathlib.Path(work) / "raw", pathlib.Path(work) / "partition"
        try:
            self.img("convert", "-O", "raw", disk, raw)
            copy_data(raw, root_offset(raw), partition)
            if replay:
                done = subprocess.run(["e2fsck", "-p", partition], capture_output=True, text=True)
                if done.returncode not in (0, 1):
                    return f"e2fsck -p: {(done.stdout + done.stderr).strip()}"
            done = subprocess.run(["e2fsck", "-fn", partition], capture_output=True, text=True)
            text = (done.stdout + done.stderr).strip()
            return f"e2fsck -fn: {text}" if done.returncode or re.search(r"WARNING|skipping journal", text) else ""
        finally:
            raw.unlink(missing_ok=True)
            partition.unlink(missing_ok=True)


def copy_data(source, start, target):
    """Copy a file from an offset on, its holes remaining holes."""
    with open(source, "rb") as reader, open(target, "wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        writer.truncate(size - start)
        at = start
        while at < size:
            try:
                at = os.lseek(reader.fileno(), at, os.SEEK_DATA)
            except OSError:
                # ENXIO: a hole up to the end.
                return
            end = os.lseek(reader.fileno(), at, os.SEEK_HOLE)
            while at < end:
                moved = os.copy_file_range(reader.fileno(), writer.fileno(), end - at, at, at - start)
                at += moved
                if not moved:
                    return


def root_offset(raw):
    """Where the ext4 file system begins in a raw image with a DOS partition table."""
    with open(raw, "rb") as file:
        record = file.read(512)
        for entry in range(446, 510, 16):
            start = int.from_bytes(record[entry + 8:entry + 12], "little") * 512
            file.seek(start + 1080)
            if record[entry + 4] and file.read(2) == b"\x53\xef":
                return start
    raise console.GuestFailed("the disk has no partition with an ext4 file system")
