#!/usr/bin/env python3
"""The install benchmark: Brolga and QEMU by turns install Debian, boot it to ssh, and work on its disk.

usage: benches/install.py [options]
Prepare with `cargo build --profile dist`, `tools/guest.py installer` and `tools/guest.py qemu`. A round is, for each emulator,
an unattended install onto a fresh qcow2, a boot of that disk by its own GRUB until a login by ssh succeeds, and the
work of benches/install/run.sh in it; the order of the two changes from round to round. Times are taken outside the
guest, at marks on the serial line: wall seconds, and CPU seconds of the whole process. Ratios are QEMU's over Brolga's.
"""

import argparse
import json
import math
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from guestkit import apt, console, emulator, images, installation, installer, rival  # noqa: E402 (the path comes first)

SOURCES = ROOT / "benches/install"
FLAGS = ["-O2", "-static", "-Wall", "-std=gnu11"]
PARTS = ("install", "boot", "disk")
WORKS = ("seq-write seq-read direct-write direct-read rand-write rand-read fsync untar read-files remove-files").split()
WORK_LIMIT = 3600


def tell(text):
    print(f"  {text}", file=sys.stderr, flush=True)


def work_marks():
    """A begin and an end for each piece of work."""
    return [(f"{edge} {name}", rf"@{edge} {name}\n") for name in WORKS for edge in ("begin", "end")]


def disk_rows(guest):
    """What each piece of work took, from the marks that the console saw."""
    seen = {name: (wall, cpu) for name, wall, cpu in guest.reached}
    rows = []
    for name in WORKS:
        (begin, cpu_begin), (end, cpu_end) = seen[f"begin {name}"], seen[f"end {name}"]
        rows.append({"phase": name, "wall": end - begin, "cpu": cpu_end - cpu_begin, "at": end, "cpu_at": cpu_end})
    return rows


def total(name, rows):
    """The last row, which sums up."""
    return {"phase": name, "wall": rows[-1]["at"], "cpu": rows[-1]["cpu_at"], "at": rows[-1]["at"],
            "cpu_at": rows[-1]["cpu_at"]}


class Bench:
    """The disc, the program that works on disks, and the folder of the images."""

    def __init__(self, options, disc, work):
        self.options, self.disc, self.work = options, disc, work
        self.tools = emulator.Tools(options.image_tool)
        self.program = work / "disk"
        subprocess.run(["gcc", *FLAGS, "-o", self.program, SOURCES / "disk.c"], check=True)

    def run(self, name, machine):
        """One emulator's share of a round: rows by part."""
        disk, rows = self.work / f"{name}.qcow2", {}
        place = installation.Installation(self.disc, disk, tell)
        if self.options.disk:
            disk.unlink(missing_ok=True)
            self.tools.img("create", "-q", "-f", "qcow2", "-b", self.options.disk.resolve(), "-F", "qcow2", disk)
        else:
            rows["install"] = place.install(machine, self.tools)
            rows["install"].append(total("whole install", rows["install"]))
        if {"boot", "disk"} & set(self.options.only):
            with place.booted(machine, "boot", marks=[*installation.BOOT_MARKS, *work_marks()]) as (guest, shell):
                rows["boot"] = guest.phases()
                rows["boot"].append(total("boot to ssh", rows["boot"]))
                if "disk" in self.options.only:
                    rows["disk"] = self.work_on_disk(guest, shell)
                place.power_off(guest)
        wrong = self.tools.check_image(disk) or self.tools.check_files(disk, self.work)
        if wrong:
            raise console.GuestFailed(wrong)
        return {part: rows[part] for part in rows if part in self.options.only}

    def work_on_disk(self, guest, shell):
        """Run the script with its output on the serial line."""
        shell.put(self.program.read_bytes(), "/root/disk", "755")
        shell.put((SOURCES / "run.sh").read_bytes(), "/root/run.sh", "755")
        shell.run("systemctl stop serial-getty@ttyS0; setsid /root/run.sh </dev/null >/dev/ttyS0 2>&1 &")
        guest.expect(r"@done\n", WORK_LIMIT)
        failed = re.findall(r"^@failed .*|^disk: .*", guest.text, re.M)
        if failed:
            raise console.GuestFailed("; ".join(failed))
        return disk_rows(guest)


def medians(runs, name, part):
    """Median wall and CPU of each row that all runs have, in order."""
    table = {}
    for run in runs:
        for row in run.get(name, {}).get(part, []):
            table.setdefault(row["phase"], []).append((row["wall"], row["cpu"]))
    return {phase: tuple(map(statistics.median, zip(*samples))) for phase, samples in table.items()}


def report_part(runs, who, part):
    """Print one part's table; its rows."""
    columns = {name: medians(runs, name, part) for name in who}
    phases = list(dict.fromkeys(phase for column in columns.values() for phase in column))
    if not phases:
        return []
    heads = [f"{name} {kind}" for name in who for kind in ("wall", "cpu")] + ["x wall", "x cpu"][:2 * (len(who) - 1)]
    print(f"\n{part:46}" + "".join(f"{head:>12}" for head in heads))
    rows = []
    for phase in phases:
        times = [columns[name].get(phase, (math.nan, math.nan)) for name in who]
        numbers = [number for pair in times for number in pair]
        if len(who) == 2:
            ours, theirs = times[who.index("brolga")], times[who.index("qemu")]
            numbers += [their / our if our > 0 else math.nan for their, our in zip(theirs, ours)]
        print(f"  {phase:44}" + "".join(f"{number:12.2f}" for number in numbers))
        rows.append({"phase": phase, **dict(zip(heads, numbers))})
    return rows


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n", 1)[1],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--rounds", type=int, default=1, help="rounds of each emulator; the median counts")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to measure: install,boot,disk")
    parser.add_argument("--emulators", default="brolga,qemu", help="brolga, qemu, or both")
    parser.add_argument("--brolga", default=emulator.shipped("brolga"))
    parser.add_argument("--brolga-args", default="", help="more options for Brolga")
    parser.add_argument("--qemu", default=rival.PROGRAM)
    parser.add_argument("--image-tool", default=emulator.shipped("brolga-img"))
    parser.add_argument("--bus", choices=emulator.BUSES, default="virtio")
    parser.add_argument("--nic", choices=emulator.CARDS, default="e1000")
    parser.add_argument("-m", "--memory", default="1G")
    parser.add_argument("--smp", type=int, default=1)
    parser.add_argument("--disc", type=pathlib.Path, help="a disc of tools/guest.py installer's, if not the cache's")
    parser.add_argument("--disk", type=pathlib.Path,
                        help="a disk that is installed already: nothing is installed, overlays of it are used")
    parser.add_argument("--folder", type=pathlib.Path, help="where the images lie meanwhile (default: the cache)")
    parser.add_argument("--json", type=pathlib.Path, help="write everything measured to this file")
    options = parser.parse_args()
    options.only = [part for part in options.only.split(",") if part]
    options.emulators = [name for name in options.emulators.split(",") if name]
    if not options.emulators or set(options.emulators) - {"brolga", "qemu"}:
        parser.error("--emulators takes brolga, qemu, or both")
    if not options.only or set(options.only) - set(PARTS):
        parser.error("--only takes install, boot and disk")
    if options.disk and "install" in options.only:
        options.only.remove("install")
    return options


def main():
    options = parse()
    cache = images.Cache(ROOT / ".cache", progress=tell)
    disc = options.disc or installer.Installer(cache).make()
    shape = (options.bus, options.nic, options.memory, options.smp)
    programs = {"brolga": (options.brolga, options.brolga_args.split()), "qemu": (options.qemu, ["-accel", "tcg"])}
    machines = {name: emulator.Emulator(*programs[name], *shape) for name in options.emulators}
    runs = []
    with tempfile.TemporaryDirectory(dir=options.folder or cache.folder) as work:
        bench = Bench(options, disc, pathlib.Path(work))
        for number in range(options.rounds):
            run = {}
            for name in options.emulators if number % 2 == 0 else reversed(options.emulators):
                print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr, flush=True)
                run[name] = bench.run(name, machines[name])
            runs.append(run)
    print("seconds; x: QEMU's over Brolga's, above 1 Brolga needs less")
    tables = {part: report_part(runs, options.emulators, part) for part in options.only}
    if options.json:
        versions = {name: machine.name() for name, machine in machines.items()}
        report = {"machine": platform.platform(), "cpus": os.cpu_count(), "versions": versions, "shape": shape,
                  "tables": tables, "runs": runs}
        options.json.write_text(json.dumps(report, indent=1, default=os.fspath) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (console.GuestFailed, apt.AptError, subprocess.CalledProcessError) as error:
        sys.exit(f"benches/install.py: {error}")
