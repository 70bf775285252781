#!/usr/bin/env python3
"""What a debugger costs a guest: compiled code of a counting loop with nobody, an idle gdb, one breakpoint in cold code, and a
watchpoint on another page. The guest's own work is counted, so that a slower host shows in all figures alike.

usage: benches/debugger.py [--program FILE] [--seconds N] [--rounds N]
"""

import argparse
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "tests" / "bare" / "programs"
CASES = {
    "nobody": None,
    "idle gdb": [],
    "breakpoint in cold code": ["break finish"],
    "watchpoint elsewhere": ["watch *(long*)0x300000"],
}
"""What gdb is told in each case, before it lets the guest run."""


def assemble(directory):
    """The counting program as a multiboot kernel, and its 64-bit file with symbols."""
    wide, narrow = directory / "debuggee.elf64", directory / "debuggee.elf"
    subprocess.run(
        ["gcc", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-T", PROGRAMS / "link.ld",
         "-o", wide, PROGRAMS / "start.S", PROGRAMS / "debuggee.S"],
        check=True,
    )
    subprocess.run(["objcopy", "-O", "elf32-i386", wide, narrow], check=True)
    return wide, narrow


def address(wide, name):
    """Where a symbol lies."""
    listed = subprocess.run(["nm", wide], check=True, capture_output=True, text=True).stdout
    return int(next(line.split()[0] for line in listed.splitlines() if line.endswith(f" {name}")), 16)


class Monitor:
    """The emulator's monitor on its standard input and output."""

    def __init__(self, process):
        self.process = process
        self.wait()

    def wait(self):
        text = ""
        while not text.endswith("(brolga) "):
            byte = self.process.stdout.read(1)
            if not byte:
                sys.exit("the emulator ended")
            text += byte
        return text

    def count(self, where):
        """The guest's counter, and when it was read."""
        self.process.stdin.write(f"xp /1xg {where:#x}\n")
        self.process.stdin.flush()
        value = int(re.search(r": 0x([0-9a-f]+)", self.wait()).group(1), 16)
        return value, time.monotonic()


def rate(program, directory, files, commands, seconds):
    """Rounds of the guest's loop a second."""
    wide, narrow = files
    socket = directory / "gdb"
    socket.unlink(missing_ok=True)
    process = subprocess.Popen(
        [program, "-m", "64", "-display", "none", "-serial", "none", "-monitor", "stdio", "-gdb", f"unix:{socket}", "-kernel", narrow],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )
    gdb = None
    try:
        monitor = Monitor(process)
        if commands is not None:
            words = [word for command in [f"target remote {socket}", *commands, "continue"] for word in ("-ex", command)]
            gdb = subprocess.Popen(["gdb", "-batch", "-nx", *words, wide], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        where = address(wide, "counter")
        # The debugger starts, and the loop is compiled.
        time.sleep(3)
        first, since = monitor.count(where)
        time.sleep(seconds)
        last, until = monitor.count(where)
        return (last - first) / (until - since)
    finally:
        process.kill()
        process.wait()
        if gdb:
            gdb.kill()
            gdb.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(ROOT / "target" / "dist" / "brolga"))
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not shutil.which("gdb"):
        sys.exit("gdb is missing: run tools/setup")
    figures = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        files = assemble(directory)
        for _ in range(options.rounds):
            for case, commands in CASES.items():
                figures[case].append(rate(options.program, directory, files, commands, options.seconds))
    plain = statistics.median(figures["nobody"])
    for case, rates in figures.items():
        middle = statistics.median(rates)
        print(f"{case:<26}{middle / 1e6:10.2f} M rounds/s  {100 * (plain - middle) / plain:+6.1f} % slower")


if __name__ == "__main__":
    main()
