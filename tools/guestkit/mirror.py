"""The packages of the installer's disc as an apt mirror: plain HTTP on the host's loopback, where a guest finds 10.0.2.2."""

import functools
import http.server
import pathlib
import shutil
import subprocess
import threading

from . import console

ADDRESS = "10.0.2.2"
SOURCE = "/etc/apt/sources.list.d/loopback.list"


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        self.server.requests += 1


class Mirror:
    """A server of the disc's `dists` and `pool`, unpacked into a folder. A context manager."""

    def __init__(self, disc, folder):
        self.folder = pathlib.Path(folder) / "mirror"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        command = ["xorriso", "-osirrox", "on", "-indev", disc, "-extract", "/dists", self.folder / "dists",
                   "-extract", "/pool", self.folder / "pool"]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode:
            raise console.GuestFailed(f"cannot unpack {disc}: {done.stderr.strip()[-500:]}")
        # xorriso takes the folders' modes over, which nobody may write to.
        subprocess.run(["chmod", "-R", "u+w", self.folder], check=True)
        self.suite = next(path.name for path in (self.folder / "dists").iterdir() if not path.is_symlink())

    def __enter__(self):
        handler = functools.partial(_Handler, directory=self.folder)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.requests = 0
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def packages(self):
        """The names of all packages there."""
        index = self.folder / "dists" / self.suite / "main/binary-amd64/Packages"
        return [line[9:] for line in index.read_text().splitlines() if line.startswith("Package: ")]

    def use(self, shell):
        """Make a guest's apt use it, and nothing else."""
        port = self.server.server_address[1]
        line = f"deb [trusted=yes] http://{ADDRESS}:{port}/ {self.suite} main\n"
        shell.run("if [ -s /etc/apt/sources.list ]; then mv /etc/apt/sources.list /etc/apt/sources.list.disc; fi")
        shell.put(line.encode(), SOURCE)
        shell.run("apt-get -q update")
        if not self.server.requests:
            raise console.GuestFailed("apt in the guest asked the mirror for nothing")

    def install(self, shell, names):
        """Install packages in the guest; they must have come from here."""
        before = self.server.requests
        shell.run(f"DEBIAN_FRONTEND=noninteractive apt-get -q -y install {' '.join(names)}", 1800)
        if self.server.requests == before:
            raise console.GuestFailed(f"apt in the guest installed {' '.join(names)} without asking the mirror")
        for name in names:
            state = shell.run(f"dpkg-query -W -f '${{db:Status-Status}}' {name}; dpkg --verify {name}")
            if state != "installed":
                raise console.GuestFailed(f"package {name} is not whole in the guest: {state}")

    def missing_in(self, shell):
        """What the guest has not installed, of what is here."""
        have = set(shell.run("dpkg-query -W -f '${Package}\\n'").split())
        return [name for name in self.packages() if name not in have]
