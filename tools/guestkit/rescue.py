"""CDs with programs that know no operating system: GRUB's rescue CD, memtest86+, and MEMDISK with a floppy image."""

import pathlib
import shutil
import tempfile

from . import apt, disks

FORMAT = 1
MEMTEST = "boot/memtest86+x64.bin"
MEMDISK = "usr/lib/syslinux/memdisk"
FLOPPY = 1440 << 10

RESCUE_CONFIG = """serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
"""
FLOPPY_CONFIG = RESCUE_CONFIG + "echo GRUB speaks from a floppy in memory\n"
FLOPPY_MODULES = ("biosdisk", "serial", "terminal", "echo", "ls", "minicmd", "fat")

TOOLS_CONFIG = """serial 0 115200
default nothing
prompt 1
timeout 0
label memtest
  kernel /memtest
  append console=ttyS0,115200
label floppy
  kernel /memdisk
  append initrd=/floppy.img floppy
"""


class Rescue:
    """The CDs in `.cache/rescue`."""

    def __init__(self, cache):
        self.cache = cache
        self.folder = cache.folder / "rescue"

    def make(self):
        """Make what is missing; the folder."""
        stamp, wanted = self.folder / "format", f"{FORMAT}\n{RESCUE_CONFIG}{FLOPPY_CONFIG}{TOOLS_CONFIG}"
        if stamp.exists() and stamp.read_text() == wanted:
            return self.folder
        disks.Disks(self.cache).install_tools()
        self.folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        self.cache.progress("rescue: GRUB's rescue CD, memtest86+, MEMDISK")
        with tempfile.TemporaryDirectory(dir=self.cache.folder) as work:
            self._grub(pathlib.Path(work))
            self._tools(pathlib.Path(work))
        stamp.write_text(wanted)
        return self.folder

    def _grub(self, work):
        """`grub.iso`, as grub-mkrescue makes it: GRUB finds its modules on the CD and, at the end, a prompt."""
        (work / "grub/boot/grub").mkdir(parents=True)
        (work / "grub/boot/grub/grub.cfg").write_text(RESCUE_CONFIG)
        (work / "grub/motd").write_text("the file system of grub.iso\n")
        disks.run("grub-mkrescue", "-d", disks.GRUB, "-o", work / "grub.iso", "--locales=", "--fonts=", "--themes=",
                  work / "grub")
        shutil.move(work / "grub.iso", self.folder / "grub.iso")

    def _package(self, name, work, inside):
        """A file of a package that is not installed on this machine."""
        apt.extract(self.cache.apt.download(name, work / "debs"), work / name)
        return work / name / inside

    def _tools(self, work):
        """`tools.iso`: isolinux with a prompt, from which memtest86+ or a floppy image in memory is started."""
        tree = work / "tools"
        (tree / "isolinux").mkdir(parents=True)
        shutil.copy(disks.ISOLINUX, tree / "isolinux")
        shutil.copy(disks.SYSLINUX_LIBRARY, tree / "isolinux")
        (tree / "isolinux/isolinux.cfg").write_text(TOOLS_CONFIG)
        shutil.copy(self._package("memtest86+", work, MEMTEST), tree / "memtest")
        shutil.copy(self._package("syslinux-common", work, MEMDISK), tree / "memdisk")
        (tree / "floppy.img").write_bytes(floppy(work))
        disks.run("xorriso", "-as", "mkisofs", "-quiet", "-r", "-J", "-V", "TOOLS", "-o", self.folder / "tools.iso",
                  "-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat", "-no-emul-boot", "-boot-load-size", "4",
                  "-boot-info-table", tree)


def floppy(work):
    """A floppy that GRUB starts from: all of it in the core image, no file system."""
    (work / "floppy.cfg").write_text(FLOPPY_CONFIG)
    disks.run("grub-mkimage", "-O", "i386-pc", "-d", disks.GRUB, "-p", "(fd0)/none", "-c", work / "floppy.cfg",
              "-o", work / "core.img", *FLOPPY_MODULES)
    boot = bytearray((disks.GRUB / "boot.img").read_bytes()[:disks.SECTOR])
    boot[510:512] = b"\x55\xaa"
    # The core image's first sector lies behind the boot record, at sector 1.
    boot[0x5c:0x64] = (1).to_bytes(8, "little")
    image = bytes(boot) + disks.core_image((work / "core.img").read_bytes())
    return image + bytes(FLOPPY - len(image))
