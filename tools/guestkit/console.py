"""An emulator with its serial console on pipes: everything it says is logged with times, and phases are timed by it."""

import os
import pathlib
import re
import shlex
import signal
import subprocess
import threading
import time

TICK = os.sysconf("SC_CLK_TCK")
OVERLAP = 4096
"""Characters before a new piece of output that are searched again: a mark may have come in two pieces."""
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SWITCH = b"\x01c"
"""Ctrl-A C: from the console to the monitor and back."""


class GuestFailed(Exception):
    """A guest said or did something wrong, or nothing for too long; the text says which."""


def cpu_seconds(pid):
    """User and system seconds of a process so far; None where it is gone."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK
    except (OSError, IndexError):
        return None


class Console:
    """A running emulator.

    `marks` are pairs of a phase's name and the pattern that ends it, in the order in which they are expected; one that
    never shows is passed over when a later one does. As a context manager it kills the process at the end.
    """

    def __init__(self, command, log, marks=(), tell=lambda text: None):
        self.command = [os.fspath(word) for word in command]
        self.log = pathlib.Path(log)
        self.reached = []
        self.text = ""
        self.status = None
        self._pending = [(name, re.compile(pattern)) for name, pattern in marks]
        self._scanned = 0
        self._tell = tell
        self._changed = threading.Condition()
        self._cpu = 0.0
        self._ended = None
        self._heard = self.began = time.monotonic()
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, start_new_session=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        self.process.stdin.close()

    def _sample(self):
        """A process that has ended tells its CPU time no more: remember it while it runs."""
        while self._ended is None:
            self._cpu = max(cpu_seconds(self.process.pid) or 0.0, self._cpu)
            time.sleep(0.1)

    def _read(self):
        fresh = True
        with open(self.log, "w", encoding="utf-8", errors="replace") as log:
            log.write(f"# {shlex.join(self.command)}\n")
            while data := os.read(self.process.stdout.fileno(), 1 << 16):
                self._heard = time.monotonic()
                piece = ESCAPES.sub("", data.decode("utf-8", "replace").replace("\r", ""))
                for line in piece.splitlines(keepends=True):
                    log.write((f"[{self._heard - self.began:8.2f}] " if fresh else "") + line)
                    fresh = line.endswith("\n")
                log.flush()
                with self._changed:
                    self.text += piece
                    self._note_marks(len(piece))
                    self._changed.notify_all()
        with self._changed:
            # A process that has ended and was not waited for still tells its CPU time.
            self._cpu = max(cpu_seconds(self.process.pid) or 0.0, self._cpu)
            self._ended = time.monotonic()
            self._changed.notify_all()

    def _note_marks(self, length):
        start = max(self._scanned, len(self.text) - length - OVERLAP)
        progress = True
        while progress:
            progress = False
            for at, (name, pattern) in enumerate(self._pending):
                found = pattern.search(self.text, start)
                if found:
                    wall, cpu = self.clocks()
                    self.reached.append((name, wall, cpu))
                    self._tell(f"{wall:8.1f} s  {name}")
                    self._pending = self._pending[at + 1:]
                    self._scanned = start = found.end()
                    progress = True
                    break

    def clocks(self):
        """(wall, CPU) seconds since the start, or at the end of a process that has ended."""
        self._cpu = max(cpu_seconds(self.process.pid) or 0.0, self._cpu)
        return (self._ended or time.monotonic()) - self.began, self._cpu

    def send(self, data):
        """Type on the console."""
        try:
            self.process.stdin.write(data)
            self.process.stdin.flush()
        except BrokenPipeError:
            raise GuestFailed(f"the emulator is gone; {self.last_words()}") from None

    def monitor(self, line, answer=r"\(\w+\) "):
        """Give the monitor on the same terminal a command."""
        before = len(self.text)
        self.send(SWITCH)
        self.expect(answer, 30, start=before)
        self.send(line.encode() + b"\r")
        self.expect(re.escape(line), 30, start=before)
        self.send(SWITCH)

    def expect(self, pattern, seconds, start=0):
        """Wait until the console has shown a pattern; returns the match."""
        pattern, deadline = re.compile(pattern), time.monotonic() + seconds
        with self._changed:
            while True:
                found = pattern.search(self.text, start)
                if found:
                    return found
                left = deadline - time.monotonic()
                if self._ended is not None or left <= 0:
                    why = "the emulator ended" if self._ended is not None else f"{seconds:.0f} s went by"
                    break
                self._changed.wait(left)
        raise GuestFailed(f"{why} without {pattern.pattern!r}; {self.last_words()}")

    def runs(self):
        """Whether the process has not ended yet."""
        return self._ended is None

    def wait(self, seconds, silence=None):
        """Wait for the process to end by itself; its exit status. `silence` limits the time without output."""
        deadline = time.monotonic() + seconds
        while self.runs():
            now = time.monotonic()
            if now > deadline:
                raise GuestFailed(f"still running after {seconds:.0f} s; {self.last_words()}")
            if silence and now - self._heard > silence:
                raise GuestFailed(f"nothing was printed for {silence:.0f} s; {self.last_words()}")
            with self._changed:
                self._changed.wait(0.5)
        self._cpu = max(cpu_seconds(self.process.pid) or 0.0, self._cpu)
        self.status = self.process.wait()
        return self.status

    def kill(self):
        """Kill it with everything it started, and read what it still had said."""
        if self.process.returncode is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()
        self._reader.join()

    def last_words(self):
        """The end of what was said, for a message."""
        return f"its last lines (all in {self.log}):\n" + "\n".join(self.text.rstrip().splitlines()[-15:])

    def phases(self):
        """Rows of the phases reached, each with its own seconds of wall and CPU, and those since the start."""
        rows, wall, cpu = [], 0.0, 0.0
        for name, at, spent in self.reached:
            rows.append({"phase": name, "wall": at - wall, "cpu": spent - cpu, "at": at, "cpu_at": spent})
            wall, cpu = at, spent
        return rows


def print_phases(title, rows):
    """A table of `Console.phases`."""
    print(f"{title:52}{'wall s':>9}{'cpu s':>9}{'at s':>9}{'cpu at':>9}")
    for row in rows:
        print(f"  {row['phase']:50}" + "".join(f"{row[key]:9.1f}" for key in ("wall", "cpu", "at", "cpu_at")))
