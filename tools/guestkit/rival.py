"""QEMU from Debian's backports, which the benchmark measures beside Brolga. Tests never need it."""

import re
import shutil
import subprocess

from . import apt

PROGRAM = "qemu-system-x86_64"
OLDEST = 10


def version():
    """QEMU's version as text, or None where it is not installed."""
    path = shutil.which(PROGRAM)
    if not path:
        return None
    said = subprocess.run([path, "-version"], capture_output=True, text=True).stdout
    found = re.search(r"version (\S+)", said)
    return found.group(1) if found else None


def install(cache):
    """Install QEMU (and the firmware a boot needs) if this machine has none of version 10 or later."""
    have = version()
    if not have or int(have.split(".")[0]) < OLDEST:
        cache.progress("QEMU: installing qemu-system-x86 from backports")
        suite = f"{apt.CODENAME}-backports"
        names = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")
        cache.apt.install_on_host([f"{name}/{suite}" for name in names])
    return f"{shutil.which(PROGRAM)} {version()}"
