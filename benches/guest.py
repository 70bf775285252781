#!/usr/bin/env python3
"""The guest benchmark: Brolga and QEMU run the same guest in turn, measured from outside; native beside them.

usage: benches/guest.py [options]
Prepare with `tools/setup --bench` and `cargo build --profile dist`. Every workload checks its own results, and the
applications' output must equal the native run's. Times are CPU seconds of the whole emulator process (all threads)
and wall seconds, between two marks on the serial console; ratios above 1 say that Brolga is faster.
"""

import argparse
import json
import math
import os
import pathlib
import platform
import select
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from guestkit import apt, benchmark, emulator, images, rival  # noqa: E402 (the path comes first)

TICK = os.sysconf("SC_CLK_TCK")
BOOT = "boot"
AGAIN = "boot-again"
"""A boot of a kernel that was booted before: what was kept from then is there."""


class GuestFailed(Exception):
    """A guest printed something wrong, or nothing for too long."""


class Machine:
    """One emulator process and its console."""

    def __init__(self, command, timeout, environment=None):
        self.began = time.monotonic()
        self.timeout = timeout
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
                                        env={**os.environ, **(environment or {})})
        os.set_blocking(self.process.stdout.fileno(), False)
        self.pending = b""
        self.said = []

    def lines(self):
        """The console's lines as they come, without their ends."""
        last = time.monotonic()
        while True:
            while b"\n" in self.pending:
                line, self.pending = self.pending.split(b"\n", 1)
                text = line.strip(b"\r").decode(errors="replace")
                self.said = self.said[-30:] + [text]
                yield text
            ready, _, _ = select.select([self.process.stdout], [], [], 1)
            chunk = self.process.stdout.read() if ready else None
            if chunk:
                self.pending += chunk
                last = time.monotonic()
            elif chunk == b"" or time.monotonic() - last > self.timeout:
                why = "the process ended" if chunk == b"" else f"nothing was printed for {self.timeout} s"
                self.errors.seek(0)
                errors = self.errors.read()[-2000:].decode(errors="replace")
                raise GuestFailed(f"{why}; the console's end:\n" + "\n".join(self.said[-15:]) + f"\n{errors}")

    def clocks(self):
        """(CPU seconds, wall seconds) since the start."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK, time.monotonic() - self.began

    def threads(self):
        """CPU seconds by thread name, of the threads that live."""
        spent = {}
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
            fields = rest.split()
            spent[name] = spent.get(name, 0) + (int(fields[11]) + int(fields[12])) / TICK
        return spent

    def memory(self):
        """Resident MiB: (now, highest)."""
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        sizes = dict(line.split(":", 1) for line in text.splitlines() if line.startswith("Vm"))
        return tuple(int(sizes[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stdin.close()
        self.errors.close()


def command_line(program, extra, kernel, initrd, memory, append):
    return [program, "-m", memory, "-nographic", "-no-reboot", "-kernel", kernel, "-initrd", initrd,
            "-append", f"console=ttyS0 panic=-1 {append}", *extra]


def run_boot(program, extra, cache, options, environment):
    """Boot to /init: one sample and the memory then resident."""
    machine = Machine(command_line(program, extra, cache.kernel("debian"), cache.initramfs("busybox-amd64"), "256M",
                                   "brolga.run=/bin/sleep brolga.args=1000"), options.timeout, environment)
    try:
        for line in machine.lines():
            if "brolga: init reached" in line:
                cpu, wall = machine.clocks()
                return {"cpu": cpu, "wall": wall, "rss": machine.memory()[0], "threads": machine.threads()}
    finally:
        machine.end()


def run_boots(program, extra, cache, names, options):
    """Boots by name; the first one begins without anything kept."""
    with tempfile.TemporaryDirectory() as folder:
        boot = lambda: run_boot(program, extra, cache, options, {"XDG_CACHE_HOME": folder})  # noqa: E731
        first = boot() if names else None
        return {name: first if name == BOOT else boot() for name in names}


def run_guest(program, extra, image, cache, names, options):
    """All workloads in one guest; samples by name, and the process's memory at the end."""
    if not names:
        return {}
    machine = Machine(command_line(program, extra, cache.kernel("debian"), image, "1G",
                                   f"quiet loglevel=0 brolga.run=/bench/run brolga.args={','.join(names)}"),
                      options.timeout)
    samples, begun, output = {}, None, []
    try:
        for line in machine.lines():
            word, _, rest = line.partition(" ")
            if word == "@begin":
                begun, output, before = machine.clocks(), [], machine.threads()
            elif word == "@end":
                name, status = rest.split()
                (cpu, wall), after = machine.clocks(), machine.threads()
                spent = {thread: round(after[thread] - before.get(thread, 0), 2) for thread in after}
                samples[name] = {"cpu": cpu - begun[0], "wall": wall - begun[1], "output": output, "threads": spent}
                if status != "0":
                    raise GuestFailed(f"{name} ended with status {status}:\n" + "\n".join(output))
            elif word == "@done":
                now, highest = machine.memory()
                samples["memory"] = {"rss": now, "highest": highest}
                return samples
            else:
                output.append(line)
    finally:
        machine.end()


def run_native(root, name):
    """The same program on the host, in the same tree."""
    inside = ["/bench/apps", name[4:]] if name.startswith("app-") else ["/bench/bench", name]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    began = time.monotonic()
    process = subprocess.Popen(["chroot", root, *inside], env=environment, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise GuestFailed(f"{name} failed natively:\n{output}")
    return {"cpu": usage.ru_utime + usage.ru_stime, "wall": time.monotonic() - began, "output": output.splitlines()}


def check(name, samples, native):
    """A guest's output must be the native one."""
    if name in native and samples["output"] != native[name]["output"]:
        raise GuestFailed(f"{name} printed something else than natively:\n" + "\n".join(samples["output"]))


def median(runs, who, name, key):
    values = [run[who][name][key] for run in runs if name in run.get(who, {})]
    return statistics.median(values) if values else None


def geometric(values):
    values = [value for value in values if value]
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def shown(value, form="{:9.2f}"):
    return form.format(value) if value is not None else " " * (len(form.format(0)) - 1) + "-"


def summarise(runs, native, workloads, who):
    """The rows of the table: one per workload, with medians and ratios."""
    rows = []
    for name, group in workloads:
        row = {"name": name, "group": group, "native": native.get(name, {}).get("cpu")}
        for emulator in who:
            for key in ("cpu", "wall"):
                row[f"{emulator}_{key}"] = median(runs, emulator, name, key)
        if {"brolga", "qemu"} <= set(who):
            for key in ("cpu", "wall"):
                ours, theirs = row[f"brolga_{key}"], row[f"qemu_{key}"]
                row[f"ratio_{key}"] = theirs / ours if ours and theirs else None
        rows.append(row)
    return rows


def print_table(rows, who):
    heads = ["native"] + [f"{emulator} {key}" for emulator in who for key in ("cpu", "wall")]
    keys = ["native"] + [f"{emulator}_{key}" for emulator in who for key in ("cpu", "wall")]
    if len(who) == 2:
        heads, keys = heads + ["x cpu", "x wall"], keys + ["ratio_cpu", "ratio_wall"]
    print(f"{'workload':18}" + "".join(f"{head:>12}" for head in heads) + "   (seconds; x: QEMU's over Brolga's)")
    groups = list(dict.fromkeys(row["group"] for row in rows))
    for group in groups:
        for row in (row for row in rows if row["group"] == group):
            print(f"{row['name']:18}" + "".join(shown(row.get(key), "{:12.2f}") for key in keys))
    means = {}
    if len(who) == 2:
        print("\ngeometric means of the ratios")
        areas = {**{group: [group] for group in groups}, "integer and applications": ["integer", "applications"],
                 "scalar-fp and packed": ["scalar-fp", "packed"], "all but boot": [g for g in groups if g != BOOT]}
        for area, members in areas.items():
            chosen = [row for row in rows if row["group"] in members]
            means[area] = {key: geometric([row.get(f"ratio_{key}") for row in chosen]) for key in ("cpu", "wall")}
            print(f"  {area:26} cpu {shown(means[area]['cpu'], '{:6.2f}')}   wall {shown(means[area]['wall'], '{:6.2f}')}")
    return means


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n", 1)[1],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--rounds", type=int, default=3, help="rounds of each emulator; the median counts")
    parser.add_argument("--only", default="", help="workloads or groups, separated by commas (also: boot)")
    parser.add_argument("--emulators", default="brolga,qemu", help="brolga, qemu, or both")
    parser.add_argument("--brolga", default=emulator.shipped("brolga"))
    parser.add_argument("--brolga-args", default="", help="more options for Brolga, such as '-accel interp'")
    parser.add_argument("--qemu", default=rival.PROGRAM)
    parser.add_argument("--timeout", type=float, default=300, help="seconds of silence after which a guest has failed")
    parser.add_argument("--json", type=pathlib.Path, help="write everything measured to this file")
    return parser.parse_args()


def main():
    options = parse()
    who = [name for name in options.emulators.split(",") if name]
    if not who or set(who) - {"brolga", "qemu"}:
        sys.exit("benches/guest.py: --emulators takes brolga, qemu, or both")
    cache = images.Cache(ROOT / ".cache", progress=lambda text: print(f"  {text}", file=sys.stderr))
    bench = benchmark.Benchmark(cache)
    workloads = [(BOOT, BOOT), (AGAIN, BOOT), *bench.workloads()]
    wanted = set(filter(None, options.only.split(",")))
    unknown = wanted - {word for pair in workloads for word in pair}
    if unknown:
        sys.exit(f"benches/guest.py: no workload or group is called {', '.join(sorted(unknown))}")
    workloads = [pair for pair in workloads if not wanted or wanted & set(pair)]
    boots = [name for name, group in workloads if group == BOOT]
    names = [name for name, group in workloads if group != BOOT]
    programs = {"brolga": (options.brolga, options.brolga_args.split()), "qemu": (options.qemu, ["-accel", "tcg"])}
    versions = {"qemu": rival.version()} if "qemu" in who else {}

    tell = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731 (one line says it)
    tell("native")
    native = {name: run_native(bench.root, name) for name in names}
    runs = []
    for number in range(options.rounds):
        run = {}
        for emulator in who if number % 2 == 0 else reversed(who):
            tell(f"round {number + 1} of {options.rounds}: {emulator}")
            program, extra = programs[emulator]
            run[emulator] = run_boots(program, extra, cache, boots, options)
            run[emulator] |= run_guest(program, extra, bench.make(), cache, names, options)
            for name in names:
                check(name, run[emulator][name], native)
        runs.append(run)
    rows = summarise(runs, native, workloads, who)
    means = print_table(rows, who)
    for name, key, what in ((BOOT, "rss", "at /init, 256 MiB guest"), ("memory", "rss", "after all workloads, 1 GiB guest")):
        sizes = [f"{emulator} {shown(median(runs, emulator, name, key), '{:.0f}')} MiB" for emulator in who]
        if any(name in run[emulator] for run in runs for emulator in who):
            print(f"resident {what}: " + ", ".join(sizes))
    if options.json:
        report = {"machine": platform.platform(), "cpus": os.cpu_count(), "versions": versions, "rows": rows,
                  "means": means, "native": native, "runs": runs}
        options.json.write_text(json.dumps(report, indent=1, default=str) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (GuestFailed, apt.AptError) as error:
        sys.exit(f"benches/guest.py: {error}")
