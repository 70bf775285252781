"""The parts of the Debian installer: which ones a disc must carry, and how those that the mirror lost are made again."""

import pathlib
import re
import shutil
import subprocess

from . import apt

CDROM = ("cdrom-detect", "cdrom-retriever", "load-cdrom")
CDROM_MODULES = ("isofs", "cdrom-core", "ata", "pata", "sata", "scsi")
"""Kernel modules that the initrd must hold so that the disc is found."""
PARTS = ("partman-base partman-auto partman-ext3 partman-partitioning partman-target partman-basicmethods "
         "partman-basicfilesystems partman-efi base-installer bootstrap-base apt-setup-udeb apt-cdrom-setup "
         "user-setup-udeb clock-setup tzsetup-udeb pkgsel grub-installer finish-install disk-detect").split()
E2FSPROGS = ("e2fsprogs", "libext2fs2t64", "libcom-err2", "libss2")
E2FSPROGS_PROGRAMS = ("mke2fs mkfs.ext* e2fsck fsck.ext* tune2fs e2label resize2fs badblocks dumpe2fs").split()
EMPTY = {"ntfs-3g-udeb"}
"""Parts that others depend on and that an install onto ext4 never runs: a stand-in may be empty."""


def parse(text):
    """The stanzas of a Packages or status file."""
    for block in text.split("\n\n"):
        fields, key = {}, None
        for line in block.split("\n"):
            if line[:1] in (" ", "\t") and key:
                fields[key] += "\n" + line
            elif ":" in line:
                key, value = line.split(":", 1)
                fields[key] = value.strip()
        if fields:
            yield fields


def names(field):
    """The package names of a Depends or Provides field, the first of each choice."""
    for part in re.split(r",\s*", field or ""):
        if part.strip():
            yield part.split("|")[0].split()[0].split(":")[0]


class Udebs:
    """The udebs of one kernel build in an index; `apt` and `work` are where they come from and go."""

    def __init__(self, source, kernel, work, progress):
        self.apt, self.kernel, self.progress = source, kernel, progress
        self.work = pathlib.Path(work)
        self.everything = {fields["Package"]: fields for fields in parse(source.index("main/debian-installer"))}
        self.suffix = f"modules-{kernel}-di"

    def in_initrd(self):
        """What the initrd gets on top of the one for network boots."""
        return [*CDROM, *(f"{name}-{self.suffix}" for name in CDROM_MODULES)]

    def wanted(self, status):
        """What the disc must carry, given what the initrd (its dpkg status) has already."""
        # Kernel modules of other builds provide the same names.
        usable = {name: fields for name, fields in self.everything.items()
                  if self.kernel in name or not re.search(r"-modules-.*-di$|^kernel-image-.*-di$", name)}
        providers, have = {}, set()
        for name, fields in usable.items():
            for virtual in names(fields.get("Provides")):
                providers.setdefault(virtual, []).append(name)
        for fields in parse(status):
            have |= {fields["Package"], *names(fields.get("Provides"))}
        need = []

        def add(name):
            if name in have or name in need:
                return
            if name not in usable:
                choice = providers.get(name)
                if not choice:
                    raise apt.AptError(f"the installer needs {name}, and {self.apt.suite} has nothing like it")
                if any(one in have or one in need for one in choice):
                    return
                name = choice[0]
            need.append(name)
            for other in names(usable[name].get("Depends")):
                add(other)

        for name in [*self.in_initrd(), f"ext4-{self.suffix}", *PARTS]:
            add(name)
        return need

    def fetch(self, wanted):
        """The files of these udebs, by name: downloaded, or packed again from packages of the same build."""
        files = self.apt.try_download(wanted, self.work / "udebs")
        for name in wanted:
            if name not in files:
                files[name] = self._repack(name)
                self.progress(f"installer: the mirror lacks {name}: packed again from its .deb")
        return files

    def _repack(self, name):
        tree = self.work / "repacked" / name
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir(parents=True)
        depends = self.everything[name].get("Depends", "")
        if name.endswith(self.suffix):
            self._kernel_modules(name, tree)
        elif name == "e2fsprogs-udeb":
            self._e2fsprogs(tree)
        elif name in EMPTY:
            depends = ""
        else:
            raise apt.AptError(f"the mirror lacks {name} of {self.apt.suite}, and it cannot be made from other packages")
        return self._pack(name, tree, depends)

    def _pack(self, name, tree, depends):
        """Build a udeb from a tree, under the archive's name and version."""
        fields = self.everything[name]
        (tree / "DEBIAN").mkdir()
        control = {"Package": name, "Version": fields["Version"], "Architecture": fields["Architecture"],
                   "Maintainer": "nobody <nobody@localhost>", "Depends": depends, "Section": "debian-installer",
                   "Priority": fields.get("Priority", "optional"), "Description": f"{name}, packed again"}
        text = "".join(f"{key}: {value}\n" for key, value in control.items() if value)
        (tree / "DEBIAN/control").write_text(text)
        target = self.work / "udebs" / f"{name}_{fields['Version'].partition(':')[2] or fields['Version']}_amd64.udeb"
        command = ["dpkg-deb", "-Zxz", "-z1", "--root-owner-group", "--nocheck", "--build", tree, target]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode:
            raise apt.AptError(f"cannot pack {name} again: {done.stderr.strip()}")
        return target

    def _kernel_modules(self, name, tree):
        """The modules that the same udeb of another build lists, taken from this build's linux-image."""
        image = self.work / "linux-image"
        if not image.exists():
            apt.extract(self.apt.download(f"linux-image-{self.kernel}", self.work / "debs-of-host"), image)
        base = name.removesuffix(self.suffix)
        others = [other for other in self.everything
                  if re.fullmatch(re.escape(base) + r"modules-\d.*-di", other) and self.kernel not in other]
        found = self.apt.try_download(others, self.work / "other-udebs")
        if not found:
            raise apt.AptError(f"the mirror lacks {name}, and that of every other kernel build too")
        listed = subprocess.run(["dpkg-deb", "-c", str(next(iter(found.values())))], check=True, capture_output=True,
                                text=True).stdout
        source = image / "usr/lib/modules" / self.kernel
        for inside in re.findall(r"/modules/[^/]+/(\S+\.ko\S*)$", listed, re.M):
            if (source / inside).exists():
                target = tree / "lib/modules" / self.kernel / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / inside, target)

    def _e2fsprogs(self, tree):
        """The programs for ext4 with their libraries, from the packages of an installed system."""
        unpacked = self.work / "e2fsprogs"
        for name in E2FSPROGS:
            apt.extract(self.apt.download(name, self.work / "debs-of-host"), unpacked)
        libraries = "usr/lib/x86_64-linux-gnu"
        chosen = [("usr/sbin", pattern) for pattern in E2FSPROGS_PROGRAMS]
        chosen += [(libraries, f"lib{name}.so.*") for name in ("ext2fs", "e2p", "com_err", "ss")]
        chosen.append(("etc", "mke2fs.conf"))
        for folder, pattern in chosen:
            (tree / folder).mkdir(parents=True, exist_ok=True)
            for path in (unpacked / folder).glob(pattern):
                shutil.copy(path, tree / folder, follow_symlinks=False)
