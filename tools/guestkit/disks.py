"""Media that firmware starts: a disk whose boot record holds GRUB, and a CD with isolinux."""

import pathlib
import shutil
import struct
import subprocess
import tempfile

from . import images

SECTOR = 512
PARTITION_START = 2048
"""First sector of the only partition; GRUB lies before it."""
PARTITION_SIZE = 64 << 20
TOOLS = {"grub-mkimage": "grub-common", "xorriso": "xorriso", "mkfs.ext4": "e2fsprogs"}
GRUB = pathlib.Path("/usr/lib/grub/i386-pc")
ISOLINUX = pathlib.Path("/usr/lib/ISOLINUX/isolinux.bin")
SYSLINUX_LIBRARY = pathlib.Path("/usr/lib/syslinux/modules/bios/ldlinux.c32")
GRUB_MODULES = ("biosdisk part_msdos ext2 normal linux serial terminal echo test minicmd configfile").split()
APPEND = "console=ttyS0 panic=-1 quiet"
FORMAT = 2

GRUB_CONFIG = f"""serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
set timeout=0
menuentry "guest" {{
  echo "GRUB loads the kernel"
  linux /boot/vmlinuz {APPEND} booted=grub
  initrd /boot/initrd.gz
}}
"""

ISOLINUX_CONFIG = f"""serial 0 115200
default guest
prompt 0
timeout 0
say isolinux loads the kernel
label guest
  kernel /boot/vmlinuz
  append initrd=/boot/initrd.gz {APPEND} booted=isolinux
"""


class Disks:
    """The media in `.cache/disks`."""

    def __init__(self, cache):
        self.cache = cache
        self.folder = cache.folder / "disks"

    def make(self):
        """Make what is missing; the folder."""
        kernel, initrd = self.cache.kernel("debian"), self.cache.initramfs("drivers-amd64")
        stamp = self.folder / "format"
        wanted = f"{FORMAT}\n{(kernel.parent / 'version').read_text()}{initrd.with_suffix('.format').read_text()}"
        if stamp.exists() and stamp.read_text() == wanted:
            return self.folder
        self.install_tools()
        self.folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=self.cache.folder) as work:
            work = pathlib.Path(work)
            self.cache.progress("disks: GRUB")
            self._grub(work, kernel, initrd)
            self.cache.progress("disks: isolinux")
            self._isolinux(work, kernel, initrd)
        stamp.write_text(wanted)
        return self.folder

    def install_tools(self):
        """Install on this machine what makes media."""
        missing = {package for tool, package in TOOLS.items() if not shutil.which(tool)}
        missing |= {package for path, package in [(GRUB / "boot.img", "grub-pc-bin"), (ISOLINUX, "isolinux"),
                                                  (SYSLINUX_LIBRARY, "syslinux-common")] if not path.exists()}
        if missing:
            self.cache.progress(f"disks: installing {' '.join(sorted(missing))}")
            self.cache.apt.install_on_host(sorted(missing))

    def _grub(self, work, kernel, initrd):
        """`grub.img`: boot record, core image behind it, and a root file system with kernel and configuration."""
        root = work / "root"
        for folder in ("boot/grub", "bin", "dev", "proc", "sys", "etc", "tmp", "mnt"):
            (root / folder).mkdir(parents=True)
        shutil.copy(kernel, root / "boot/vmlinuz")
        shutil.copy(initrd, root / "boot/initrd.gz")
        (root / "boot/grub/grub.cfg").write_text(GRUB_CONFIG)
        (root / "etc/motd").write_text("the root file system of grub.img\n")
        busybox = self.cache.busybox("amd64")
        shutil.copy(busybox, root / "bin/busybox")
        for name in images.applets(busybox):
            if name != "busybox":
                (root / "bin" / name).symlink_to("busybox")
        partition = work / "partition"
        with open(partition, "wb") as file:
            file.truncate(PARTITION_SIZE)
        run("mkfs.ext4", "-q", "-F", "-L", "guest", "-d", root, partition)
        core = work / "core.img"
        run("grub-mkimage", "-O", "i386-pc", "-d", GRUB, "-p", "(hd0,msdos1)/boot/grub", "-o", core, *GRUB_MODULES)
        image = work / "grub.img"
        with open(image, "wb") as file:
            file.write(boot_record((GRUB / "boot.img").read_bytes()))
            file.write(core_image(core.read_bytes()))
            file.seek(PARTITION_START * SECTOR)
            with open(partition, "rb") as data:
                shutil.copyfileobj(data, file)
        shutil.move(image, self.folder / "grub.img")

    def _isolinux(self, work, kernel, initrd):
        """`isolinux.iso`: a CD by El Torito without emulation."""
        tree = work / "cd"
        (tree / "isolinux").mkdir(parents=True)
        (tree / "boot").mkdir()
        shutil.copy(ISOLINUX, tree / "isolinux")
        shutil.copy(SYSLINUX_LIBRARY, tree / "isolinux")
        (tree / "isolinux/isolinux.cfg").write_text(ISOLINUX_CONFIG)
        shutil.copy(kernel, tree / "boot/vmlinuz")
        shutil.copy(initrd, tree / "boot/initrd.gz")
        (tree / "motd").write_text("the file system of isolinux.iso\n")
        run("xorriso", "-as", "mkisofs", "-quiet", "-r", "-J", "-V", "GUEST", "-o", self.folder / "isolinux.iso",
            "-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat", "-no-emul-boot", "-boot-load-size", "4",
            "-boot-info-table", tree)


def boot_record(boot):
    """GRUB's first sector with the partition table; the core image follows it at once."""
    record = bytearray(boot[:SECTOR])
    struct.pack_into("<Q", record, 0x5c, 1)
    # A jump where the drive number that firmware gives is checked: two NOPs trust it, as grub-install has it.
    record[0x66:0x68] = b"\x90\x90"
    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", PARTITION_START,
                        PARTITION_SIZE // SECTOR)
    record[446:512] = entry + bytes(48) + b"\x55\xaa"
    return bytes(record)


def core_image(core):
    """The core image, whose first sector lists where the others are: behind it."""
    core = bytearray(core + bytes(-len(core) % SECTOR))
    sectors = len(core) // SECTOR
    if sectors >= PARTITION_START - 1:
        raise ValueError(f"GRUB's core image has {sectors} sectors, and there is room for {PARTITION_START - 2}")
    struct.pack_into("<QHH", core, SECTOR - 12, 2, sectors - 1, 0x820)
    return bytes(core)


def run(*command):
    """Run a command quietly; its words are shown if it fails."""
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout.strip()}")
