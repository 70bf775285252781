"""What the guest tests boot: kernels and initramfs images in the cache, made once and found by name."""

import pathlib
import re
import shutil
import subprocess
import tempfile

from . import apt, cpio

FILES = pathlib.Path(__file__).resolve().parent / "files"

KERNELS = {
    # name: (meta package, the dependency that is the kernel itself)
    "debian": ("linux-image-amd64", r"linux-image-\d"),
    "backports": (f"linux-image-amd64/{apt.CODENAME}-backports", r"linux-image-\d"),
    "cloud": ("linux-image-cloud-amd64", r"linux-image-\d"),
    "rt": ("linux-image-rt-amd64", r"linux-image-\d"),
    "686": ("linux-image-686:i386", r"linux-image-\d"),
    "686-pae": ("linux-image-686-pae:i386", r"linux-image-\d"),
}

INITRAMFS = {
    # name: the Debian architecture of its BusyBox
    "busybox-amd64": "amd64",
    "busybox-i386": "i386",
}

MODE_FORMAT = 3
"""Raised when the content of the images changes, so that a cache made before is renewed."""


class Cache:
    """The folder of downloaded and generated guest files, `.cache/` of the project."""

    def __init__(self, folder, progress=print):
        self.folder = pathlib.Path(folder)
        self.apt = apt.Apt(self.folder / "apt")
        self.progress = progress

    def kernel(self, name):
        """The path of kernel `name`'s bzImage, downloaded if it is not there."""
        image = self.folder / "kernels" / name / "vmlinuz"
        if not image.exists():
            self._fetch_kernel(name, image)
        return image

    def _fetch_kernel(self, name, image):
        meta, pattern = KERNELS[name]
        self.progress(f"kernel {name}: looking up {meta}")
        package = self.apt.dependency(meta, pattern)
        architecture = meta.partition(":")[2].partition("/")[0]
        if architecture:
            package = f"{package.partition(':')[0]}:{architecture}"
        self.progress(f"kernel {name}: downloading {package}")
        deb = self.apt.download(package, self.folder / "debs")
        with tempfile.TemporaryDirectory(dir=self.folder) as unpacked:
            _extract_boot(deb, unpacked)
            found = sorted(pathlib.Path(unpacked, "boot").glob("vmlinuz-*"))
            if not found:
                raise apt.AptError(f"package {deb.name} has no /boot/vmlinuz-*")
            image.parent.mkdir(parents=True, exist_ok=True)
            (image.parent / "version").write_text(found[0].name.removeprefix("vmlinuz-") + "\n")
            shutil.move(found[0], image)
        deb.unlink()

    def busybox(self, architecture):
        """The path of a static BusyBox for a Debian architecture."""
        program = self.folder / "busybox" / architecture
        if not program.exists():
            self.progress(f"busybox {architecture}: downloading busybox-static:{architecture}")
            deb = self.apt.download(f"busybox-static:{architecture}", self.folder / "debs")
            with tempfile.TemporaryDirectory(dir=self.folder) as unpacked:
                apt.extract(deb, unpacked)
                program.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(pathlib.Path(unpacked, "bin/busybox"), program)
            deb.unlink()
        return program

    def initramfs(self, name):
        """The path of the initramfs `name`, built if it is missing or of an older format."""
        image = self.folder / "initramfs" / f"{name}.cpio.gz"
        stamp = image.with_suffix(".format")
        if image.exists() and stamp.exists() and stamp.read_text() == format_stamp():
            return image
        self.progress(f"initramfs {name}: building")
        archive = cpio.Archive()
        add_base(archive, self.busybox(INITRAMFS[name]))
        image.parent.mkdir(parents=True, exist_ok=True)
        archive.write(image)
        stamp.write_text(format_stamp())
        return image


def format_stamp():
    """Changes when the base of every image does."""
    texts = [(FILES / name).read_text() for name in ("init", "inittab")]
    return f"{MODE_FORMAT}\n" + "".join(texts)


def _extract_boot(deb, into):
    """Unpack only ./boot of a kernel package: its modules are a hundred times larger."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as tar:
        subprocess.run(["tar", "-x", "-C", into, "--wildcards", "./boot/vmlinuz-*"], stdin=tar.stdout, check=True)


def applets(busybox):
    """The names of the programs that a BusyBox holds (a 32-bit one runs on an amd64 host too)."""
    try:
        return subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        # A host kernel without 32-bit support cannot ask it; the applet table is plain text in the file.
        table = max(re.findall(rb"(?:[a-z0-9_\[.-]+\0){100,}", pathlib.Path(busybox).read_bytes()), key=len)
        return [name.decode() for name in table.split(b"\0") if name]


def add_base(archive, busybox):
    """Add BusyBox, its links, /init and the nodes needed before /dev is mounted."""
    for folder in ("proc", "sys", "dev", "tmp", "root", "etc", "run", "var/tmp", "mnt"):
        archive.directory(folder)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)
    archive.file("bin/busybox", pathlib.Path(busybox).read_bytes(), 0o755)
    for name in applets(busybox):
        if name != "busybox":
            archive.symlink(f"bin/{name}", "busybox")
    archive.file("init", (FILES / "init").read_bytes(), 0o755)
    archive.symlink("sbin", "bin")
    archive.file("etc/inittab", (FILES / "inittab").read_bytes())
    archive.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
    archive.file("etc/group", "root:x:0:\n")
