"""What the network's tests need: GRUB for boot ROMs, and a Debian system on a disk with apt and an ssh server, with a
package mirror for it."""

import hashlib
import pathlib
import shutil
import subprocess
import tempfile

from . import apt, disks, userland

SYSTEM = "apt dropbear-bin base-files bash coreutils dash diffutils findutils grep gzip libc-bin perl-base sed tar xz-utils".split()
"""On the disk, with all that they depend on."""
MIRROR = "hello tree".split()
"""In the mirror; what they depend on is on the disk."""
SIZE = 512 << 20
PXE_MODULES = "pxe tftp net normal linux serial terminal echo".split()
IPXE = pathlib.Path("/usr/lib/ipxe/qemu/efi-e1000.rom")
TOOLS = {"grub-mkimage": "grub-common", "mkfs.ext4": "e2fsprogs", "ssh-keygen": "openssh-client"}
FORMAT = 1

PASSWD = """root:x:0:0:root:/root:/bin/bash
_apt:x:42:65534::/nonexistent:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
APT_CONFIG = """APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Retries "0";
"""


class Network:
    """The files in `.cache/network`."""

    def __init__(self, cache):
        self.cache = cache
        self.folder = cache.folder / "network"

    def make(self):
        """Make what is missing; the folder."""
        stamp = self.folder / "recipe"
        wanted = repr((FORMAT, SYSTEM, MIRROR, SIZE, PXE_MODULES, PASSWD, APT_CONFIG))
        if stamp.exists() and stamp.read_text() == wanted:
            return self.folder
        self._install_tools()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        with tempfile.TemporaryDirectory(dir=self.cache.folder) as work:
            work = pathlib.Path(work)
            disks.run("grub-mkimage", "-O", "i386-pc-pxe", "-d", disks.GRUB, "-p", "(pxe)/grub",
                      "-o", self.folder / "grub.pxe", *PXE_MODULES)
            disks.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "guest", "-f", self.folder / "key")
            self._system(work)
            self._mirror(work)
        stamp.write_text(wanted)
        return self.folder

    def _install_tools(self):
        missing = {package for tool, package in TOOLS.items() if not shutil.which(tool)}
        missing |= {package for path, package in [(disks.GRUB / "boot.img", "grub-pc-bin"), (IPXE, "ipxe-qemu")]
                    if not path.exists()}
        if missing:
            self.cache.progress(f"network: installing {' '.join(sorted(missing))}")
            self.cache.apt.install_on_host(sorted(missing))

    def _system(self, work):
        """`system.img`: a file system with the packages unpacked and registered, as if they had been installed."""
        self.cache.progress("network: a Debian system with apt and an ssh server")
        root, debs = work / "root", work / "debs"
        root.mkdir()
        status = []
        for deb in self.cache.apt.closure(SYSTEM, debs):
            apt.extract(deb, root)
            fields = subprocess.run(["dpkg-deb", "-f", deb], check=True, text=True, stdout=subprocess.PIPE).stdout
            name, *rest = fields.splitlines()
            status.append("\n".join([name, "Status: install ok installed", *rest]) + "\n")
            self._register(deb, fields, root)
        for name in ("status", "available", "diversions", "statoverride"):
            (root / "var/lib/dpkg" / name).write_text("\n".join(status) if name == "status" else "")
        for path in userland.DROP[:8]:
            shutil.rmtree(root / path, ignore_errors=True)
        for folder in ("proc", "sys", "dev", "tmp", "run", "root/.ssh", "etc/apt/apt.conf.d", "etc/dropbear",
                       "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "var/cache/apt/archives/partial",
                       "var/lib/apt/lists/partial", "var/log/apt"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        (root / "root").chmod(0o700)
        (root / "root/.ssh").chmod(0o700)
        (root / "root/.ssh/authorized_keys").write_text((self.folder / "key.pub").read_text())
        (root / "etc/passwd").write_text(PASSWD)
        (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
        (root / "etc/shells").write_text("/bin/bash\n/bin/sh\n")
        (root / "etc/apt/apt.conf.d/guest").write_text(APT_CONFIG)
        if not (root / "bin/sh").exists():
            (root / "bin/sh").symlink_to("dash")
        image = self.folder / "system.img"
        with open(image, "wb") as file:
            file.truncate(SIZE)
        disks.run("mkfs.ext4", "-q", "-F", "-L", "system", "-d", root, image)

    @staticmethod
    def _register(deb, fields, root):
        """The list of a package's files, as dpkg keeps it."""
        info = root / "var/lib/dpkg/info"
        info.mkdir(parents=True, exist_ok=True)
        value = dict(line.split(": ", 1) for line in fields.splitlines() if ": " in line and line[0] != " ")
        suffix = f":{value['Architecture']}" if value.get("Multi-Arch") == "same" else ""
        tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], check=True, stdout=subprocess.PIPE).stdout
        names = subprocess.run(["tar", "-t"], input=tar, check=True, stdout=subprocess.PIPE).stdout.decode()
        paths = ["/" + line.removeprefix("./").rstrip("/") for line in names.splitlines()]
        paths[0] = "/."
        (info / f"{value['Package']}{suffix}.list").write_text("".join(f"{path}\n" for path in paths))
        (info / "format").write_text("1\n")

    def _mirror(self, work):
        """`mirror/`: a flat repository."""
        self.cache.progress("network: a package mirror")
        mirror = self.folder / "mirror"
        stanzas = []
        for name in MIRROR:
            deb = self.cache.apt.download(name, mirror)
            fields = subprocess.run(["dpkg-deb", "-f", deb], check=True, text=True, stdout=subprocess.PIPE).stdout
            data = deb.read_bytes()
            # A colon in a version would be quoted in the address.
            plain = deb.rename(deb.with_name(f"{name}.deb"))
            stanzas.append(f"{fields.rstrip()}\nFilename: ./{plain.name}\nSize: {len(data)}\n"
                           f"SHA256: {hashlib.sha256(data).hexdigest()}\n")
        packages = "\n".join(stanzas).encode()
        (mirror / "Packages").write_bytes(packages)
        (mirror / "Release").write_text(f"Origin: guest\nSuite: guest\nArchitectures: amd64\nSHA256:\n"
                                        f" {hashlib.sha256(packages).hexdigest()} {len(packages)} Packages\n")
