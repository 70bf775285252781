"""The disc of an unattended Debian install: the installer's own kernel and initrd, its parts, and a pool of packages.

Everything comes from the suite's archive. The initrd for network boots becomes one that finds its parts on the disc,
answers all questions itself (`files/installer/preseed.cfg`), and speaks on the serial line.
"""

import gzip
import hashlib
import os
import pathlib
import re
import shutil
import stat
import subprocess
import tempfile
import time

from . import apt, cpio, disks, images, udebs

SUITE = "trixie"
VOLUME = "DEBAUTO_AMD64"
SOURCES = images.FILES / "installer"
TOOLS = {"xorriso": "xorriso", "depmod": "kmod", "ssh-keygen": "openssh-client", "e2fsck": "e2fsprogs"}
NETBOOT = r"debian-installer-\d+-netboot-amd64"
FORMAT = 1
"""Raised when the disc is to be made anew although none of its files has changed."""

PACKAGES = ("linux-image-amd64 grub-pc openssh-server libpam-systemd dbus locales console-setup keyboard-configuration "
            "initramfs-tools busybox zstd laptop-detect installation-report eject pciutils usbutils").split()
"""What the installer installs besides the packages of the priorities `required` and `important`."""
FOR_APT = ("tree", "cloud-init")
"""What the installed system's apt finds on the disc besides."""
REMOVED = ("download-installer", "net-retriever", "choose-mirror")
"""Parts of the initrd that would fetch everything from the network."""
NET_RETRIEVER = "usr/lib/debian-installer/retriever/net-retriever"
SCRIPTS = ("postinst", "preinst", "prerm", "postrm", "config", "templates", "isinstallable", "menutest")

KEEP = "console=ttyS0,115200n8 net.ifnames=0"
APPEND = f"auto=true priority=critical DEBIAN_FRONTEND=text TERM=dumb {KEEP}"
"""A dumb terminal keeps screen and newt with their escapes away from the serial line."""


def isolinux_config():
    """One label that takes the first disk, and one for each name it may have."""
    text = "serial 0 115200\ndefault auto\nprompt 0\ntimeout 10\nsay Unattended install follows (labels: auto vda sda)\n"
    for label, words in (("auto", ""), ("vda", " partman-auto/disk=/dev/vda"), ("sda", " partman-auto/disk=/dev/sda")):
        text += (f"label {label}\n  kernel /install.amd/vmlinuz\n"
                 f"  append initrd=/install.amd/initrd.gz {APPEND}{words} --- {KEEP}\n")
    return text


class Installer:
    """The disc `.cache/installer/debian.iso` and, beside it, the ssh key of the installed root."""

    def __init__(self, cache):
        self.cache = cache
        self.folder = cache.folder / "installer"
        self.disc = self.folder / "debian.iso"
        self.apt = apt.Apt(self.folder / "apt", SUITE, ("main", "main/debian-installer"), ("amd64",))

    def make(self):
        """The disc's path; made if it is missing or of an older recipe."""
        stamp, wanted = self.folder / "recipe", recipe()
        if self.disc.exists() and stamp.exists() and stamp.read_text() == wanted:
            return self.disc
        self._install_tools()
        self.folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as work:
            self._build(pathlib.Path(work))
        stamp.write_text(wanted)
        return self.disc

    def _install_tools(self):
        missing = {package for tool, package in TOOLS.items() if not shutil.which(tool)}
        missing |= {package for path, package in [(disks.ISOLINUX, "isolinux"),
                                                  (disks.SYSLINUX_LIBRARY, "syslinux-common")] if not path.exists()}
        if missing:
            self.cache.progress(f"installer: installing {' '.join(sorted(missing))}")
            self.cache.apt.install_on_host(sorted(missing))

    def _build(self, work):
        tell = self.cache.progress
        tell(f"installer: package indexes of {SUITE}")
        listed = list(udebs.parse(self.apt.index()))
        vmlinuz, members = self._netboot(listed, work)
        kernel = next(found.group(1) for entry in members
                      if (found := re.match(r"usr/lib/modules/([^/]+)$", entry.name)))
        parts = udebs.Udebs(self.apt, kernel, work, tell)
        status = next(entry.data for entry in members if entry.name == "var/lib/dpkg/status").decode()
        wanted = parts.wanted(status)
        tell(f"installer: {len(wanted)} parts for kernel {kernel}")
        part_files = parts.fetch(wanted)
        tell("installer: packages for the pool")
        deb_files = self._packages(listed, work)
        tree = work / "disc"
        fill_pool(tree, deb_files, part_files.values(), listed, parts.everything.values())
        tell(f"installer: {len(deb_files)} packages and {len(part_files)} parts; initrd and disc")
        information = f"Debian GNU/Linux ({SUITE}) unattended test disc - amd64 {time.strftime('%Y%m%d', time.gmtime())}"
        key = key_pair(self.disc, work)
        initrd = Initrd(members, kernel, work)
        for name in parts.in_initrd():
            initrd.add_part(part_files[name], parts.everything[name])
        initrd.add_answers(key.with_suffix(".pub").read_bytes(), information)
        (tree / "install.amd").mkdir()
        shutil.copy(vmlinuz, tree / "install.amd/vmlinuz")
        initrd.write(tree / "install.amd/initrd.gz")
        self._disc(tree, information, work)
        place_key(key, self.disc)

    def _netboot(self, listed, work):
        """The installer's kernel, and the members of its initrd for network boots."""
        versions = [fields["Package"] for fields in listed if re.fullmatch(NETBOOT, fields["Package"])]
        if not versions:
            raise apt.AptError(f"{SUITE} has no package like {NETBOOT}")
        deb = self.apt.download(max(versions), work / "netboot-deb")
        apt.extract(deb, work / "netboot")
        found = next((work / "netboot").rglob("text/debian-installer/amd64/initrd.gz"))
        members = cpio.read(gzip.decompress(found.read_bytes()))
        return found.parent / "linux", [entry._replace(name=entry.name.removeprefix("./")) for entry in members]

    def _packages(self, listed, work):
        base = [fields["Package"] for fields in listed if fields.get("Priority") in ("required", "important")]
        return self.apt.closure([*dict.fromkeys(base), *PACKAGES, *FOR_APT], work / "debs")

    def _disc(self, tree, information, work):
        """Lay out the rest of the disc and make it, bootable by El Torito."""
        for folder in (".disk", "isolinux"):
            (tree / folder).mkdir()
        (tree / ".disk/info").write_text(information + "\n")
        (tree / ".disk/base_components").write_text("main\n")
        (tree / ".disk/cd_type").write_text("not_complete\n")
        for name in ("base_installable", "udeb_include"):
            (tree / ".disk" / name).touch()
        shutil.copy(disks.ISOLINUX, tree / "isolinux")
        shutil.copy(disks.SYSLINUX_LIBRARY, tree / "isolinux")
        (tree / "isolinux/isolinux.cfg").write_text(isolinux_config())
        sums = [f"{digest('md5', path)}  ./{path.relative_to(tree)}\n" for path in sorted(tree.rglob("*"))
                if path.is_file() and path.name != "isolinux.bin"]
        (tree / "md5sum.txt").write_text("".join(sums))
        disks.run("xorriso", "-as", "mkisofs", "-quiet", "-r", "-J", "-joliet-long", "-V", VOLUME,
                  "-o", work / "disc.iso", "-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat", "-no-emul-boot",
                  "-boot-load-size", "4", "-boot-info-table", tree)
        (work / "disc.iso").replace(self.disc)


class Initrd:
    """The installer's initrd on its way from network to disc."""

    def __init__(self, members, kernel, work):
        self.kernel, self.work = kernel, work
        self.links = {entry.name: entry.data.decode() for entry in members if stat.S_ISLNK(entry.mode)}
        gone = {NET_RETRIEVER} | {f"var/lib/dpkg/info/{name}" for name in REMOVED}
        self.members = [entry for entry in members if not any(entry.name == name or entry.name.startswith(f"{name}.")
                                                              for name in gone)]
        status = next(entry.data for entry in members if entry.name == "var/lib/dpkg/status").decode()
        self.status = [block.strip("\n") for block in status.split("\n\n") if block.strip()
                       and re.search(r"^Package: (.*)$", block, re.M).group(1) not in REMOVED]
        self.files = {}
        """What is laid over the members: (mode, content) by name."""

    def _put(self, name, data, mode):
        """`lib` and others are links into `usr`: a file goes where they point."""
        head, _, rest = name.partition("/")
        self.files[f"{self.links.get(head, head)}/{rest}" if rest else name] = (mode, data)

    def _put_tree(self, folder):
        for path in sorted(pathlib.Path(folder).rglob("*")):
            name = os.fspath(path.relative_to(folder))
            if path.is_symlink():
                self._put(name, os.fsencode(os.readlink(path)), stat.S_IFLNK | 0o777)
            elif path.is_file():
                self._put(name, path.read_bytes(), stat.S_IFREG | stat.S_IMODE(path.stat().st_mode))

    def add_part(self, file, fields):
        """Install a udeb as the installer's own dpkg would: files, scripts, and a stanza in the status."""
        name = fields["Package"]
        unpacked = self.work / "initrd-parts" / name
        apt.extract(file, unpacked / "files")
        subprocess.run(["dpkg-deb", "-e", file, unpacked / "control"], check=True)
        self._put_tree(unpacked / "files")
        for script in SCRIPTS:
            path = unpacked / "control" / script
            if path.exists():
                mode = stat.S_IMODE(path.stat().st_mode)
                self._put(f"var/lib/dpkg/info/{name}.{script}", path.read_bytes(), stat.S_IFREG | mode)
        stanza = [f"Package: {name}", "Status: install ok unpacked", f"Version: {fields['Version']}"]
        stanza += [f"{key}: {fields[key]}" for key in ("Depends", "Provides", "Installer-Menu-Item") if key in fields]
        stanza.append(f"Description: {fields.get('Description', name).splitlines()[0]}")
        self.status.append("\n".join(stanza))

    def add_answers(self, public_key, information):
        """The preseed, our scripts, and what the installed system gets from us."""
        for path in sorted(SOURCES.rglob("*")):
            if path.is_file():
                script = path.read_bytes().startswith(b"#!")
                self._put(os.fspath(path.relative_to(SOURCES)), path.read_bytes(),
                          stat.S_IFREG | (0o755 if script else 0o644))
        self._put("auto/authorized_keys", public_key, stat.S_IFREG | 0o644)
        self._put("auto/info", f"{information}\n".encode(), stat.S_IFREG | 0o644)

    def _module_tables(self):
        """depmod over all modules, old and new."""
        base = self.work / "depmod"
        place = f"usr/lib/modules/{self.kernel}/"
        every = {entry.name: entry.data for entry in self.members if stat.S_ISREG(entry.mode)}
        every |= {name: data for name, (_, data) in self.files.items()}
        for name, data in every.items():
            if name.startswith(place):
                path = base / name.removeprefix("usr/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        subprocess.run(["depmod", "-b", base, self.kernel], check=True, stderr=subprocess.DEVNULL)
        for path in (base / "lib/modules" / self.kernel).glob("modules.*"):
            self._put(place + path.name, path.read_bytes(), stat.S_IFREG | 0o644)

    def write(self, path):
        """Write the finished initrd."""
        self._module_tables()
        self._put("var/lib/dpkg/status", ("\n\n".join(self.status) + "\n").encode(), stat.S_IFREG | 0o644)
        archive = cpio.Archive()
        # A directory stands before what is in it; of a file of ours and an older one ours comes first and counts.
        archive.entries(entry for entry in self.members if stat.S_ISDIR(entry.mode))
        for name, (mode, data) in self.files.items():
            if stat.S_ISLNK(mode):
                archive.symlink(name, data)
            else:
                archive.file(name, data, stat.S_IMODE(mode))
        archive.entries(self.members)
        archive.write(path)


def recipe():
    """Changes when what is on the disc does."""
    text = repr((FORMAT, SUITE, PACKAGES, FOR_APT, REMOVED, APPEND, udebs.PARTS, udebs.CDROM_MODULES))
    hashed = hashlib.sha256(text.encode())
    for path in sorted(SOURCES.rglob("*")):
        if path.is_file():
            hashed.update(f"{path.relative_to(SOURCES)}\n".encode() + path.read_bytes())
    return hashed.hexdigest()


def digest(kind, path):
    """A file's checksum."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def control(path):
    """The control fields of a package file."""
    text = subprocess.run(["dpkg-deb", "-f", path], check=True, capture_output=True, text=True).stdout
    return next(udebs.parse(text))


def fill_pool(tree, debs, parts, deb_index, part_index):
    """Copy package files into `pool` and write the indexes over them.

    The archive's own stanza is kept: what the installer does goes by its Priority, which a file's control may not have.
    """
    known = {(f["Package"], f["Version"], f["Architecture"]): f for f in (*deb_index, *part_index)}
    for files, place in ((debs, "main/binary-amd64"), (parts, "main/debian-installer/binary-amd64")):
        stanzas = []
        for path in sorted(files):
            own = control(path)
            fields = dict(known[own["Package"], own["Version"], own["Architecture"]])
            if own["Description"].endswith("packed again"):
                fields.pop("Depends", None)
                fields |= {"Depends": own["Depends"]} if "Depends" in own else {}
            target = tree / fields["Filename"]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            fields.pop("SHA1", None)
            fields |= {"Size": path.stat().st_size, "MD5sum": digest("md5", path), "SHA256": digest("sha256", path)}
            stanzas.append("".join(f"{key}: {value}\n" for key, value in fields.items()))
        folder = tree / "dists" / SUITE / place
        folder.mkdir(parents=True)
        (folder / "Packages").write_text("\n".join(stanzas))
        (folder / "Packages.gz").write_bytes(gzip.compress("\n".join(stanzas).encode(), mtime=0))
    (tree / "dists/stable").symlink_to(SUITE)
    (tree / "dists" / SUITE / "Release").write_text(release(tree / "dists" / SUITE))


def release(folder):
    """The text of a Release file over the indexes in a folder."""
    head = {"Origin": "Debian", "Label": "Debian", "Suite": "stable", "Codename": SUITE,
            "Date": time.strftime("%a, %d %b %Y %H:%M:%S UTC", time.gmtime()), "Architectures": "amd64",
            "Components": "main", "Description": "the packages of an unattended test disc"}
    text = "".join(f"{key}: {value}\n" for key, value in head.items())
    indexes = sorted(path for path in folder.rglob("Packages*") if path.is_file())
    for title, kind in (("MD5Sum", "md5"), ("SHA256", "sha256")):
        lines = (f" {digest(kind, path)} {path.stat().st_size:8} {path.relative_to(folder)}\n" for path in indexes)
        text += f"{title}:\n" + "".join(lines)
    return text


def key_pair(disc, work):
    """An ssh key pair without a passphrase: that of the disc made before, so that what it installed stays open, or new."""
    key, before = work / "key", key_beside(disc)
    if before.exists():
        shutil.copy(before, key)
        public = subprocess.run(["ssh-keygen", "-y", "-f", key], check=True, capture_output=True).stdout
        key.with_suffix(".pub").write_bytes(public)
    else:
        disks.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "throw-away", "-f", key)
    return key


def key_beside(disc):
    return disc.with_name(disc.name + ".key")


def place_key(key, disc):
    """Put the private key beside the disc, for its owner alone."""
    target = key_beside(disc)
    target.unlink(missing_ok=True)
    shutil.copy(key, target)
    target.chmod(0o600)
