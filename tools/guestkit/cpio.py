"""Writes and reads initramfs archives: the "newc" format of the kernel's driver-api/early-userspace/buffer-format.rst."""

import gzip
import os
import stat
import typing

S_IFCHR, S_IFDIR, S_IFREG, S_IFLNK = stat.S_IFCHR, stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK


class Entry(typing.NamedTuple):
    """A member of an archive that was read."""

    name: str
    mode: int
    data: bytes
    device: tuple


def read(data):
    """The members of a plain archive. Of files with several names, each gets the content."""
    entries, at, linked = [], 0, {}
    while data[at:at + 6] in (b"070701", b"070702"):
        fields = [int(data[at + 6 + 8 * k:at + 14 + 8 * k], 16) for k in range(13)]
        inode, mode, size, device, length = fields[0], fields[1], fields[6], tuple(fields[9:11]), fields[11]
        name = data[at + 110:at + 109 + length].decode()
        start = at + 110 + length + (-(110 + length) % 4)
        content = data[start:start + size]
        at = start + size + (-size % 4)
        if name == "TRAILER!!!":
            break
        if stat.S_ISREG(mode) and fields[4] > 1:
            # Only one of the names, the last by custom, comes with the content.
            linked[inode] = content or linked.get(inode, b"")
        entries.append((inode if stat.S_ISREG(mode) and fields[4] > 1 else None, Entry(name, mode, content, device)))
    return [entry if inode is None else entry._replace(data=linked[inode]) for inode, entry in entries]


class Archive:
    """An archive in memory. Everything belongs to root and bears the time 0: equal input, equal bytes."""

    def __init__(self):
        self._parts = []
        self._inode = 0
        self._names = set()

    def _entry(self, name, mode, data=b"", device=(0, 0)):
        name = name.strip("/")
        if name in self._names:
            return
        self._names.add(name)
        self._append(name, mode, data, device)

    def _append(self, name, mode, data, device):
        self._inode += 1
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08x" % f for f in fields)
        self._parts += [header, encoded, b"\0" * (-(len(header) + len(encoded)) % 4), data, b"\0" * (-len(data) % 4)]

    def _parents(self, name):
        parts = name.strip("/").split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            self.directory("/".join(parts[:depth]), parents=False)

    def directory(self, name, mode=0o755, parents=True):
        """Add a directory, and those above it."""
        if parents:
            self._parents(name)
        self._entry(name, S_IFDIR | mode)

    def file(self, name, data, mode=0o644):
        """Add a regular file."""
        self._parents(name)
        self._entry(name, S_IFREG | mode, data if isinstance(data, bytes) else data.encode())

    def symlink(self, name, target):
        """Add a symbolic link."""
        self._parents(name)
        self._entry(name, S_IFLNK | 0o777, os.fsencode(target))

    def character_device(self, name, major, minor, mode=0o600):
        """Add a character device node."""
        self._parents(name)
        self._entry(name, S_IFCHR | mode, device=(major, minor))

    def entries(self, entries):
        """Add what was read from another archive, but for the names that are here already."""
        for entry in entries:
            self._entry(entry.name, entry.mode, entry.data, entry.device)

    def tree(self, folder, prefix=""):
        """Add the files, links and folders below a host folder."""
        folder = os.fspath(folder)
        for at, folders, files in os.walk(folder):
            relative = os.path.relpath(at, folder)
            base = prefix if relative == "." else os.path.join(prefix, relative)
            for name in sorted(folders + files):
                path, inside = os.path.join(at, name), os.path.join(base, name)
                status = os.lstat(path)
                if stat.S_ISLNK(status.st_mode):
                    self.symlink(inside, os.readlink(path))
                elif stat.S_ISDIR(status.st_mode):
                    self.directory(inside, stat.S_IMODE(status.st_mode))
                elif stat.S_ISREG(status.st_mode):
                    with open(path, "rb") as source:
                        self.file(inside, source.read(), stat.S_IMODE(status.st_mode))

    def bytes(self):
        """The finished archive, uncompressed."""
        tail = Archive()
        tail._append("TRAILER!!!", 0, b"", (0, 0))
        body = b"".join(self._parts + tail._parts)
        return body + b"\0" * (-len(body) % 512)

    def write(self, path, compress=True):
        """Write the archive, gzip-compressed or plain, in one step (a reader sees the old file or the new)."""
        temporary = f"{path}.new"
        with open(temporary, "wb") as out:
            if compress:
                with gzip.GzipFile("", "wb", 6, out, mtime=0) as packed:
                    packed.write(self.bytes())
            else:
                out.write(self.bytes())
        os.replace(temporary, path)
