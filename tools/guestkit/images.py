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

DRIVERS = {
    # name: (the Debian architecture of its BusyBox, the kernel whose modules it holds, what modprobe finds besides
    # their dependencies)
    "drivers-amd64": ("amd64", "debian", ("e1000", "af_packet", "virtio_net", "virtio_pci", "virtio_blk", "ata_piix",
                                          "sd_mod", "sr_mod", "ext4", "crc32c_generic", "isofs", "virtio_scsi",
                                          "sym53c8xx", "floppy", "button", "evdev", "8139cp", "8139too")),
    "peripherals-amd64": ("amd64", "debian", ("virtio_pci", "virtio_rng", "virtio_balloon", "virtio_console", "i6300esb",
                                              "pvpanic_mmio", "pvpanic_pci", "9p", "9pnet_virtio", "bochs",
                                              "qemu_fw_cfg")),
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

    def modules(self, name):
        """The folder with all modules of kernel `name`, of the very build that `kernel` gives."""
        folder = self.folder / "modules" / name
        image = self.kernel(name)
        version = image.parent / "version"
        if not (folder / version.read_text().strip()).exists():
            deb = self._kernel_package(name)
            with tempfile.TemporaryDirectory(dir=self.folder) as unpacked:
                _extract_folder(deb, unpacked, "./lib/modules/*")
                found = pathlib.Path(unpacked, "lib/modules")
                shutil.rmtree(folder, ignore_errors=True)
                folder.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(found, folder)
            if not (folder / version.read_text().strip()).exists():
                # Debian has a newer kernel by now: modules and kernel go together.
                self._unpack_kernel(deb, image)
            deb.unlink()
        return folder / version.read_text().strip()

    def _kernel_package(self, name):
        meta, pattern = KERNELS[name]
        self.progress(f"kernel {name}: looking up {meta}")
        package = self.apt.dependency(meta, pattern)
        architecture = meta.partition(":")[2].partition("/")[0]
        if architecture:
            package = f"{package.partition(':')[0]}:{architecture}"
        self.progress(f"kernel {name}: downloading {package}")
        return self.apt.download(package, self.folder / "debs")

    def _fetch_kernel(self, name, image):
        deb = self._kernel_package(name)
        self._unpack_kernel(deb, image)
        deb.unlink()

    def _unpack_kernel(self, deb, image):
        with tempfile.TemporaryDirectory(dir=self.folder) as unpacked:
            # Modules are a hundred times larger than the kernel.
            _extract_folder(deb, unpacked, "./boot/vmlinuz-*")
            found = sorted(pathlib.Path(unpacked, "boot").glob("vmlinuz-*"))
            if not found:
                raise apt.AptError(f"package {deb.name} has no /boot/vmlinuz-*")
            image.parent.mkdir(parents=True, exist_ok=True)
            (image.parent / "version").write_text(found[0].name.removeprefix("vmlinuz-") + "\n")
            shutil.move(found[0], image)

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
        stamp, wanted = image.with_suffix(".format"), format_stamp()
        architecture, kernel, modules = DRIVERS.get(name) or (INITRAMFS[name], None, ())
        if kernel:
            wanted += f"{modules} {self.modules(kernel).name}"
            wanted += (FILES / "udhcpc").read_text()
        if image.exists() and stamp.exists() and stamp.read_text() == wanted:
            return image
        self.progress(f"initramfs {name}: building")
        archive = cpio.Archive()
        add_base(archive, self.busybox(architecture))
        if kernel:
            add_modules(archive, self.modules(kernel), modules)
            archive.file("usr/share/udhcpc/default.script", (FILES / "udhcpc").read_bytes(), 0o755)
            archive.file("etc/udhcpc/default.script", (FILES / "udhcpc").read_bytes(), 0o755)
        image.parent.mkdir(parents=True, exist_ok=True)
        archive.write(image)
        stamp.write_text(wanted)
        return image


def format_stamp():
    """Changes when the base of every image does."""
    texts = [(FILES / name).read_text() for name in ("init", "inittab")]
    return f"{MODE_FORMAT}\n" + "".join(texts)


def _extract_folder(deb, into, pattern):
    """Unpack only what matches `pattern` of a package."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as tar:
        subprocess.run(["tar", "-x", "-C", into, "--wildcards", pattern], stdin=tar.stdout, check=True)


def add_modules(archive, folder, names):
    """Add modules from the folder of a kernel's, with those they depend on, so that BusyBox's modprobe finds them."""
    files = {path.name.partition(".ko")[0].replace("-", "_"): path for path in sorted(folder.rglob("*.ko"))}
    built_in = {pathlib.Path(line).stem.replace("-", "_") for line in (folder / "modules.builtin").read_text().split()}
    needs = {}

    def take(name):
        """Note what a module depends on: the names stand in its .modinfo section."""
        if name in needs or name in built_in:
            return
        if name not in files:
            raise apt.AptError(f"kernel {folder.name} has no module {name}")
        found = re.search(rb"\0depends=([^\0]*)\0", files[name].read_bytes())
        words = found.group(1).decode().replace("-", "_").split(",") if found else []
        needs[name] = [word for word in words if word and word not in built_in]
        for word in needs[name]:
            take(word)

    def all_of(name):
        """What must be there before a module: each comes before what it needs itself, as modules.dep has it."""
        order = []

        def visit(word):
            if word not in order:
                for other in needs[word]:
                    visit(other)
                order.append(word)

        for word in needs[name]:
            visit(word)
        return order[::-1]

    for name in names:
        take(name)
    base = f"lib/modules/{folder.name}"
    for name in needs:
        archive.file(f"{base}/{name}.ko", files[name].read_bytes())
    lines = (f"{name}.ko:{''.join(f' {other}.ko' for other in all_of(name))}\n" for name in sorted(needs))
    archive.file(f"{base}/modules.dep", "".join(lines))


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
