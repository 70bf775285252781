"""Commands in a guest by ssh, through a port of the host's loopback."""

import os
import pathlib
import socket
import subprocess
import time

from . import console

BANNER_PATIENCE = (2, 15)
"""Seconds that the first try and a late one wait for sshd's first line. Tries that were given up still cost a slow guest
their share, and sshd turns others away while ten of them are unfinished (MaxStartups)."""


def free_port():
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Shell:
    """An account in a guest: root's, unless told otherwise."""

    def __init__(self, port, key, user="root"):
        self.port = port
        os.chmod(key, 0o600)
        options = {"StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "BatchMode": "yes",
                   "ConnectTimeout": "60", "ServerAliveInterval": "30", "ServerAliveCountMax": "10", "LogLevel": "ERROR"}
        words = [word for pair in options.items() for word in ("-o", "=".join(pair))]
        self._command = ["ssh", "-i", os.fspath(key), "-p", str(port), *words, f"{user}@127.0.0.1"]

    def _banner(self, patience):
        """Whether sshd speaks."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=patience) as stream:
                return stream.recv(4) == b"SSH-"
        except OSError:
            return False

    def wait(self, guest, seconds):
        """Wait until a login succeeds; seconds since the guest's start."""
        deadline = time.monotonic() + seconds
        patience, longest = BANNER_PATIENCE
        while guest.runs():
            begin = time.monotonic()
            if self._banner(patience) and self._try():
                return guest.clocks()[0]
            if time.monotonic() - begin >= patience:
                patience = min(2 * patience, longest)
            if time.monotonic() > deadline:
                raise console.GuestFailed(f"no login by ssh within {seconds:.0f} s; {guest.last_words()}")
            time.sleep(0.25)
        raise console.GuestFailed(f"the emulator ended before a login by ssh; {guest.last_words()}")

    def _try(self):
        done = subprocess.run([*self._command, "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
        return done.returncode == 0

    def run(self, command, seconds=600, status=(0,)):
        """What a command printed; it must end with one of these statuses."""
        try:
            done = subprocess.run([*self._command, command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True, errors="replace", timeout=seconds)
        except subprocess.TimeoutExpired:
            raise console.GuestFailed(f"`{command}` did not end in the guest within {seconds} s") from None
        if done.returncode not in status:
            raise console.GuestFailed(f"`{command}` ended with {done.returncode} in the guest: {done.stdout.strip()}")
        return done.stdout.strip()

    def put(self, data, path, mode="644"):
        """Write a file in the guest."""
        command = [*self._command, f"cat >{path} && chmod {mode} {path}"]
        done = subprocess.run(command, input=data, capture_output=True, timeout=600)
        if done.returncode:
            raise console.GuestFailed(f"cannot write {path} in the guest: {done.stderr.decode(errors='replace')}")

    def get(self, path, into):
        """Fetch a file from the guest."""
        with open(into, "wb") as file:
            done = subprocess.run([*self._command, f"cat {path}"], stdin=subprocess.DEVNULL, stdout=file,
                                  stderr=subprocess.PIPE, timeout=600)
        if done.returncode:
            raise console.GuestFailed(f"cannot read {path} in the guest: {done.stderr.decode(errors='replace')}")
        return pathlib.Path(into)
