"""An initramfs of real Debian programs with their libraries, and the same tree to run on the host by chroot."""

import hashlib
import os
import pathlib
import shutil
import tempfile

from . import apt, cpio, images

PACKAGES = (
    "bash bc binutils bzip2 coreutils cpp-12 diffutils findutils gawk grep gzip lua5.4 luajit nodejs openssl "
    "perl-base python3-minimal sed sqlite3 tar xz-utils zstd"
).split()

DROP = (
    "usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "usr/share/bug",
    "usr/share/zoneinfo", "usr/lib/x86_64-linux-gnu/gconv", "usr/share/i18n",
    "etc/apt", "etc/dpkg", "var/lib/dpkg", "usr/share/keyrings", "usr/lib/x86_64-linux-gnu/ldscripts",
    "usr/lib/x86_64-linux-gnu/gprofng", "usr/bin/x86_64-linux-gnu-ld.gold", "usr/bin/x86_64-linux-gnu-dwp",
)
"""What no command needs: it would only make the image larger."""

LINKS = {
    # What the packages' installation scripts would have linked.
    "usr/bin/awk": "gawk",
    "usr/bin/lua": "lua5.4",
    "bin/sh": "bash",
}


class Userland:
    """The tree in `.cache/userland/root` and the image beside it."""

    def __init__(self, cache):
        self.cache = cache
        self.root = cache.folder / "userland" / "root"
        self.image = cache.folder / "userland" / "image.cpio"

    def _wanted(self):
        text = repr((PACKAGES, DROP, LINKS)) + images.format_stamp()
        text += (images.FILES / "userland.sh").read_text()
        return hashlib.sha256(text.encode()).hexdigest()

    def make(self):
        """The path of the image; tree and image are made if they are missing or of another recipe."""
        stamp = self.image.with_suffix(".recipe")
        if not stamp.exists() or stamp.read_text() != self._wanted() or not self.image.exists():
            self._unpack()
            self._pack()
            stamp.write_text(self._wanted())
        return self.image

    def _unpack(self):
        self.cache.progress("userland: downloading Debian programs and their libraries")
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        with tempfile.TemporaryDirectory(dir=self.cache.folder) as folder:
            debs = self.cache.apt.closure(PACKAGES, folder)
            self.cache.progress(f"userland: unpacking {len(debs)} packages")
            for deb in debs:
                apt.extract(deb, self.root)
        for path in DROP:
            if (self.root / path).is_dir():
                shutil.rmtree(self.root / path)
            else:
                (self.root / path).unlink(missing_ok=True)
        for name, target in LINKS.items():
            link = self.root / name
            if not link.is_symlink() and not link.exists():
                link.symlink_to(target)
        for folder in ("proc", "sys", "dev", "tmp", "root", "run", "userland"):
            (self.root / folder).mkdir(exist_ok=True)
        _device(self.root / "dev/null", 3)
        _device(self.root / "dev/zero", 5)
        _device(self.root / "dev/urandom", 9)
        script = self.root / "userland/run"
        shutil.copy(images.FILES / "userland.sh", script)
        script.chmod(0o755)

    def _pack(self):
        self.cache.progress("userland: packing the image")
        archive = cpio.Archive()
        add_tree(archive, self.root, self.cache.busybox("amd64"))
        archive.write(self.image, compress=False)


def add_tree(archive, root, busybox):
    """Add a tree of Debian programs, and below it what makes an image boot."""
    archive.tree(root)
    images.add_base(archive, busybox)


def _device(path, minor):
    """A memory device for the chroot on the host; without the right to make one, a link to nothing will do."""
    try:
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, minor))
        os.chmod(path, 0o666)
    except PermissionError:
        pathlib.Path(path).touch()
