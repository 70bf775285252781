"""Debian packages without touching the host's own package state.

A private apt root under the cache holds its own sources (the host's, plus backports from the same
mirror; or another suite of that mirror's), indexes for amd64 and i386, and an empty dpkg status, so that a
dependency closure is complete and nothing is installed. Only `install_on_host` changes the machine.
"""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

CODENAME = "bookworm"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
INDEX_LIFETIME = 24 * 3600
"""Seconds after which package indexes are fetched again before a download."""


class AptError(Exception):
    """A package could not be found, downloaded or installed; the text says which and why."""


def host_mirror():
    """The archive address of the Debian mirror that this machine is configured with."""
    etc = pathlib.Path("/etc/apt")
    for source in sorted(etc.glob("sources.list.d/*.sources")):
        for stanza in re.split(r"\n\s*\n", source.read_text()):
            fields = dict(re.findall(r"^(\w[\w-]*):\s*(.+)$", stanza, re.M))
            if CODENAME in fields.get("Suites", "").split() and fields.get("URIs"):
                return fields["URIs"].split()[0]
    for source in [etc / "sources.list", *sorted(etc.glob("sources.list.d/*.list"))]:
        if source.exists():
            line = re.search(rf"^deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+{CODENAME}\s", source.read_text(), re.M)
            if line:
                return line.group(1)
    raise AptError(f"no apt source of this machine offers Debian {CODENAME}; add one under /etc/apt/sources.list.d")


def _host_security(mirror):
    """The address of the security archive in the host's sources, if there is one."""
    etc = pathlib.Path("/etc/apt")
    text = "\n".join(p.read_text() for p in [etc / "sources.list", *etc.glob("sources.list.d/*")] if p.is_file())
    found = re.search(r"^(?:URIs:|deb(?:\s+\[[^]]*\])?)\s*(\S*debian-security\S*)", text, re.M)
    return found.group(1) if found else None


class Apt:
    """The private apt root in `root`.

    With another suite than the host's it has that alone: no updates, security fixes and backports, so that all
    packages are of one point release.
    """

    def __init__(self, root, suite=CODENAME, components=("main",), architectures=("amd64", "i386")):
        self.root = pathlib.Path(root).resolve()
        self.config = self.root / "apt.conf"
        self.suite, self.components, self.architectures = suite, components, architectures

    def _stanzas(self):
        """Pairs of an archive's address and the suites taken from there."""
        mirror = host_mirror()
        if self.suite != CODENAME:
            return [(mirror, self.suite)]
        security = _host_security(mirror)
        stanzas = [(mirror, f"{CODENAME} {CODENAME}-updates {CODENAME}-backports")]
        return stanzas + ([(security, f"{CODENAME}-security")] if security else [])

    def _prepare(self):
        for folder in ("etc", "lists/partial"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        (self.root / "status").touch()
        architectures = " ".join(f'"{name}";' for name in self.architectures)
        (self.root / "etc/debian.sources").write_text("\n".join(
            f"Types: deb\nURIs: {uri}\nSuites: {suites}\n"
            f"Components: {' '.join(self.components)}\nSigned-By: {KEYRING}\n"
            for uri, suites in self._stanzas()))
        self.config.write_text(f'''Dir::State "{self.root}";
Dir::State::lists "{self.root}/lists";
Dir::State::status "{self.root}/status";
Dir::Cache "{self.root}";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{self.root}/etc";
Dir::Etc::preferencesparts "/dev/null";
APT::Architectures {{ {architectures} }};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
''')

    def _run(self, *command, cwd=None):
        env = dict(os.environ, APT_CONFIG=str(self.config), LC_ALL="C")
        return subprocess.run(command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def update(self, force=False):
        """Fetch the indexes if they are missing or old.

        An index that a mirror is just replacing is reported by apt as an error although all others
        arrived; what is then missing shows when a package is asked for.
        """
        stamp = self.root / "updated"
        if not force and stamp.exists() and time.time() - stamp.stat().st_mtime < INDEX_LIFETIME:
            return
        self._prepare()
        done = self._run("apt-get", "update")
        if not list((self.root / "lists").glob("*_Packages*")):
            raise AptError(f"apt-get update brought no package index:\n{done.stdout.strip()}")
        stamp.touch()

    def dependency(self, package, pattern):
        """The first package that `package` depends on and whose name matches `pattern`."""
        self.update()
        shown = self._run("apt-cache", "show", "--no-all-versions", package).stdout
        depends = re.search(r"^Depends: (.+)$", shown, re.M)
        for name in re.split(r"[,|]\s*", depends.group(1)) if depends else []:
            if re.match(pattern, name):
                return name.split()[0]
        raise AptError(f"package {package} does not depend on anything like {pattern}: {shown[:200]}")

    def download(self, package, into):
        """Download one package (`name`, `name:arch`, `name/suite`); returns the path of its file."""
        self.update()
        into = pathlib.Path(into)
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into) as folder:
            for attempt in range(3):
                done = self._run("apt-get", "download", package, cwd=folder)
                files = list(pathlib.Path(folder).glob("*.deb"))
                if done.returncode == 0 and files:
                    return files[0].replace(into / files[0].name)
                self.update(force=True)
        raise AptError(f"apt-get download {package} failed:\n{done.stdout.strip()}")

    def try_download(self, packages, into):
        """Download those of `packages` that the mirror holds (udebs too); the files by package name."""
        self.update()
        into = pathlib.Path(into)
        into.mkdir(parents=True, exist_ok=True)
        self._run("apt-get", "download", *packages, cwd=into)
        found = {}
        for path in sorted(into.iterdir()):
            name = path.name.partition("_")[0]
            if path.suffix in (".deb", ".udeb") and name in packages:
                found[name] = path
        return found

    def index(self, component="main"):
        """The text of a component's package index."""
        self.update()
        where = self._run("apt-get", "indextargets", "--format", "$(FILENAME)", f"Component: {component}",
                          "Created-By: Packages").stdout.split()
        if not where:
            raise AptError(f"the mirror has no {component} of {self.suite}")
        return self._run("/usr/lib/apt/apt-helper", "cat-file", where[0]).stdout

    def closure(self, packages, into):
        """Download `packages` with everything they need on an empty system; returns the files in the folder `into`."""
        self.update()
        into = pathlib.Path(into).resolve()
        (into / "partial").mkdir(parents=True, exist_ok=True)
        for attempt in range(3):
            done = self._run("apt-get", "install", "-y", "--download-only", "-o", f"Dir::Cache::archives={into}",
                             *packages)
            if done.returncode == 0:
                return sorted(into.glob("*.deb"))
            self.update(force=True)
        raise AptError(f"cannot download {' '.join(packages)} with dependencies:\n{done.stdout.strip()}")

    def install_on_host(self, packages):
        """Install `packages` on this machine, with this root's sources (so backports count)."""
        self.update()
        env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        command = ["apt-get", "install", "-y", "--no-install-recommends",
                   "-o", f"Dir::Etc::sourceparts={self.root}/etc", "-o", "Dir::Etc::sourcelist=/dev/null",
                   "-o", f"Dir::State::lists={self.root}/lists", *packages]
        done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            raise AptError(f"apt-get install {' '.join(packages)} failed:\n{done.stdout.strip()}")


def extract(package_file, into):
    """Unpack a package's files into the folder `into`."""
    into = pathlib.Path(into)
    into.mkdir(parents=True, exist_ok=True)
    if not shutil.which("dpkg-deb"):
        raise AptError("dpkg-deb is missing: guest images are built from Debian packages on Debian")
    subprocess.run(["dpkg-deb", "-x", str(package_file), str(into)], check=True)
