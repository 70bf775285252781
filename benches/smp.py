#!/usr/bin/env python3
"""The benchmark of several processors: Brolga and QEMU with one, two and more of them, in turn, and the host beside.

usage: benches/smp.py [options]
Prepare with `tools/setup --bench` and `cargo build --profile dist`. Each workload does the same work whatever number of
threads shares it, and must print what it prints natively; two threads run on one and on two processors, and as many as
`--many` says on two and on that many. Wall and CPU seconds of the whole emulator process are taken from outside the
guest, between marks on the serial console; medians count. Rows take seconds, but for the matrix product, which QEMU does
a tenth as fast; before each a tenth of it is run and after it once more: by how much the first took longer is the row's
warm-up, which the row itself does not have. Only the parallel compile has its own inside. Latencies are measured in the
guest, by its own clock.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benches"), str(ROOT / "tools")]

import guest  # noqa: E402 (the path comes first)
from guestkit import apt, benchmark, cpio, emulator, images, rival  # noqa: E402

SOURCES = ROOT / "benches" / "smp"
PARTS = [ROOT / "benches" / "guest" / name for name in ("integer.c", "packed.c")]
UNITS = 12
"""What the parallel compile compiles."""
THREADS = 2
SHORT = 10
"""What part of a row is run before it and after it."""
FIRST, AGAIN = "first", "again"


class Guest:
    """The program, natively and in an image."""

    def __init__(self, cache):
        self.cache = cache
        self.folder = cache.folder / "smp-bench"
        self.program = self.folder / "smp"
        self.folder.mkdir(parents=True, exist_ok=True)
        sources = [*sorted(SOURCES.glob("*.c")), *PARTS]
        subprocess.run(["gcc", *benchmark.FLAGS, "-Wall", "-o", self.program, *sources], check=True)
        listed = subprocess.run([self.program, "list"], check=True, capture_output=True, text=True).stdout
        lines = [line.split() for line in listed.splitlines()]
        self.kinds = {name: kind for name, kind, _ in lines} | {"compile": "workload"}
        self.rounds = {name: int(rounds) for name, _, rounds in lines} | {"compile": UNITS}

    def image(self, compiles):
        """An initramfs with the program; only the parallel compile needs the large one, with a compiler."""
        archive = cpio.Archive()
        archive.file("smp/smp", self.program.read_bytes(), 0o755)
        archive.file("smp/run", (SOURCES / "run.sh").read_bytes(), 0o755)
        if compiles:
            archive.file("smp/compile", (SOURCES / "compile.sh").read_bytes(), 0o755)
            for number, text in enumerate(self.units()):
                archive.file(f"smp/src/{number}.i", text, 0o644)
        added = self.folder / "added.cpio"
        archive.write(added, compress=False)
        if compiles:
            base, image = benchmark.Benchmark(self.cache).make(), self.folder / "compile.cpio"
        else:
            base, image = self.cache.initramfs("busybox-amd64"), self.folder / "image.cpio.gz"
        shutil.copyfile(base, image)
        with image.open("ab") as file:
            file.write(bytes(-image.stat().st_size % 512))
            file.write(added.read_bytes())
        return image

    def units(self):
        """What is compiled: the benchmark's own sources, preprocessed."""
        preprocess = ["gcc", "-E", "-P", "-O2"]
        for source in PARTS + [SOURCES / "locks.c"]:
            yield subprocess.run([*preprocess, source], check=True, stdout=subprocess.PIPE).stdout

    def native(self, word, processors):
        """One workload or latency on so many of the host's processors."""
        name, threads, rounds = word.split(":")
        command = [self.program, name, threads, rounds]
        if name == "compile":
            root = benchmark.Benchmark(self.cache)
            root.make()
            command = ["chroot", root.root, "/smp/compile", threads, rounds]
            self.place(root.root / "smp")
        began = time.monotonic()
        allowed = sorted(os.sched_getaffinity(0))[:processors]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True,
                                   preexec_fn=lambda: os.sched_setaffinity(0, allowed))
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise guest.GuestFailed(f"{name} failed natively:\n{output}")
        sample = {"cpu": usage.ru_utime + usage.ru_stime, "wall": time.monotonic() - began}
        return sample | dict(read_result(line) for line in output.splitlines() if line.startswith("@"))

    def place(self, folder):
        """The compile in the tree where the host runs it."""
        (folder / "src").mkdir(parents=True, exist_ok=True)
        shutil.copy(SOURCES / "compile.sh", folder / "compile")
        (folder / "compile").chmod(0o755)
        for number, text in enumerate(self.units()):
            (folder / "src" / f"{number}.i").write_bytes(text)


def read_result(line):
    """("sum", TEXT) or ("value", NUMBER)."""
    word, _, rest = line.partition(" ")
    return word[1:], float(rest) if word == "@value" else rest


def run_guest(program, extra, processors, image, cache, words, options):
    """Runs `words` in one guest with so many processors; samples by word."""
    extra = [*extra, "-smp", str(processors)]
    command = guest.command_line(program, extra, cache.kernel("debian"), image, "1G",
                                 f"quiet loglevel=0 brolga.run=/smp/run brolga.args={','.join(words)}")
    machine = guest.Machine(command, options.timeout)
    samples, begun, result = {}, None, {}
    try:
        for line in machine.lines():
            mark, _, rest = line.partition(" ")
            if mark == "@begin":
                begun, result = machine.clocks(), {}
            elif mark in ("@sum", "@value"):
                result.update([read_result(line)])
            elif mark == "@end":
                word, status = rest.split()
                cpu, wall = (after - before for after, before in zip(machine.clocks(), begun))
                if status != "0":
                    raise guest.GuestFailed(f"{word} ended with status {status}:\n" + "\n".join(machine.said[-15:]))
                samples[word] = {"cpu": cpu, "wall": wall} | result
            elif mark == "@done":
                break
    finally:
        machine.end()
    return samples


def row(smp, name, threads):
    """The words of a row: its short run, itself, its short run again."""
    word, short = f"{name}:{threads}:{smp.rounds[name]}", f"{name}:{threads}:{smp.rounds[name] // SHORT}"
    return [word] if name == "compile" else [f"{short}:{FIRST}", word, f"{short}:{AGAIN}"]


def is_row(word):
    return word.count(":") == 2


def work_of(word):
    """The word without when it is run."""
    return ":".join(word.split(":")[:3])


def plan(smp, names, options):
    """What runs where: {processors: [words]}. A word is NAME:THREADS:ROUNDS, with :first or :again if it is a short run."""
    loads = [name for name in names if smp.kinds[name] == "workload"]
    few = [word for name in loads for word in row(smp, name, THREADS)]
    many = [word for name in loads for word in row(smp, name, options.many)] if options.many > THREADS else []
    latencies = [f"{name}:{THREADS}:{smp.rounds[name]}" for name in names if smp.kinds[name] == "latency"]
    return {1: few, THREADS: few + latencies + many, **({options.many: many} if many else {})}


def measure(number, results, who, programs, smp, planned, options):
    """One more round of each emulator with each number of processors; what it computes must be the host's result."""
    for processors, words in planned.items():
        for emulator in who if number % 2 else reversed(who):
            for compiles in (False, True):
                chosen = [word for word in words if word.startswith("compile:") == compiles]
                if not chosen:
                    continue
                tell(f"round {number} of {options.rounds}: {emulator}, -smp {processors}, {len(chosen)} measurements")
                image = smp.image(compiles)
                for word, sample in run_guest(*programs[emulator], processors, image, smp.cache, chosen, options).items():
                    right = results["host"][THREADS][work_of(word)][0].get("sum")
                    if sample.get("sum") != right:
                        raise guest.GuestFailed(f"{word}: {emulator} has {sample.get('sum')}, the host {right}")
                    results[emulator].setdefault(processors, {}).setdefault(word, []).append(sample)


def measure_host(results, smp, planned, options):
    """The same on the host, on one and on two of its processors."""
    for processors in (1, THREADS):
        for word in dict.fromkeys(work_of(word) for words in planned.values() for word in words):
            if processors > 1 or word in planned[1]:
                samples = results["host"].setdefault(processors, {}).setdefault(word, [])
                samples += [smp.native(word, processors) for _ in range(options.rounds)]


def tell(text):
    print(text, file=sys.stderr, flush=True)


def median(results, who, processors, word, key):
    """The median of what there is of it."""
    samples = results[who].get(processors, {}).get(word, [])
    values = [sample[key] for sample in samples if key in sample]
    return statistics.median(values) if values else None


def quotient(over, under):
    return over / under if over is not None and under else None


def print_pairs(results, words, small, large, key, who):
    """The table of `words` on `small` and on `large` processors; its rows."""
    heads = [f"{name} {text}" for name in who for text in (small, large, "x")]
    heads += [f"gain {n}" for n in (small, large)] if {"brolga", "qemu"} <= set(who) else []
    print(f"{'workload':16}" + "".join(f"{head:>10}" for head in heads))
    rows = []
    for word in words:
        pairs = {name: [median(results, name, n, word, key) for n in (small, large)] for name in who}
        values = [value for pair in pairs.values() for value in (*pair, quotient(*pair))]
        if len(heads) > 3 * len(who):
            values += [quotient(pairs["qemu"][n], pairs["brolga"][n]) for n in (0, 1)]
        print(f"{word.rpartition(':')[0]:16}" + "".join(guest.shown(value, "{:10.2f}") for value in values))
        rows.append({"word": word, "key": key, "processors": (small, large), "pairs": pairs})
    return rows


def print_warm_up(results, planned, who):
    """By how much the short run took longer before its row than after it; the rows of the table."""
    numbers = [n for n in planned if any(word.endswith(FIRST) for word in planned[n])]
    firsts = dict.fromkeys(word for n in numbers for word in planned[n] if word.endswith(FIRST))
    print(f"{'workload':16}" + "".join(f"{name + ' ' + str(n):>10}" for name in who for n in numbers))
    rows = []
    for first in firsts:
        taken = lambda name, n, word: median(results, name, n, word, "wall")  # noqa: E731 (one line says it)
        pairs = {name: [(taken(name, n, first), taken(name, n, f"{work_of(first)}:{AGAIN}")) for n in numbers]
                 for name in who}
        values = [None if None in pair else pair[0] - pair[1] for name in who for pair in pairs[name]]
        print(f"{':'.join(first.split(':')[:2]):16}" + "".join(guest.shown(value, "{:10.2f}") for value in values))
        rows.append({"word": work_of(first), "key": "warm-up", "processors": numbers, "pairs": pairs})
    return rows


def print_tables(results, planned, who, options):
    """All tables; their rows."""
    everybody, rows = ["host", *who], []
    few, many = ([word for word in planned.get(n, []) if is_row(word)] for n in (1, options.many))
    for key, what in (("wall", "seconds by the clock"), ("cpu", "CPU seconds of the process")):
        if few:
            print(f"\n{what}, NAME:THREADS, on 1 and {THREADS} processors; x: the one over the other; "
                  "gain: QEMU's over Brolga's")
            rows += print_pairs(results, few, 1, THREADS, key, everybody)
    if many and options.many > THREADS:
        print(f"\nseconds by the clock on {THREADS} and {options.many} processors")
        rows += print_pairs(results, many, THREADS, options.many, "wall", who)
    if few:
        print("\nseconds by which a tenth of the row took longer before it than after it, by number of processors")
        rows += print_warm_up(results, planned, who)
    latencies = [word for word in planned[THREADS] if median(results, "host", THREADS, word, "value") is not None]
    if latencies:
        print("\nnanoseconds, in the guest\n" + f"{'latency':16}" + "".join(f"{name:>12}" for name in everybody))
    for word in latencies:
        values = {name: median(results, name, THREADS, word, "value") for name in everybody}
        print(f"{word.partition(':')[0]:16}" + "".join(guest.shown(value, "{:12.0f}") for value in values.values()))
        rows.append({"word": word, "key": "value", "values": values})
    return rows


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n", 1)[1],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--rounds", type=int, default=3, help="rounds of each emulator; the median counts")
    parser.add_argument("--only", default="", help="workloads or latencies, separated by commas")
    parser.add_argument("--many", type=int, default=8, help="more processors than the host has; 0 for none")
    parser.add_argument("--emulators", default="brolga,qemu", help="brolga, qemu, or both")
    parser.add_argument("--brolga", default=emulator.shipped("brolga"))
    parser.add_argument("--brolga-args", default="", help="more options for Brolga")
    parser.add_argument("--qemu", default=rival.PROGRAM)
    parser.add_argument("--qemu-args", default="", help="more options for QEMU")
    parser.add_argument("--timeout", type=float, default=300, help="seconds of silence after which a guest has failed")
    parser.add_argument("--json", type=pathlib.Path, help="write everything measured to this file")
    return parser.parse_args()


def main():
    options = parse()
    who = [name for name in options.emulators.split(",") if name]
    if not who or set(who) - {"brolga", "qemu"}:
        sys.exit("benches/smp.py: --emulators takes brolga, qemu, or both")
    if (os.cpu_count() or 1) < THREADS:
        sys.exit(f"benches/smp.py: this machine has fewer than {THREADS} processors")
    smp = Guest(images.Cache(ROOT / ".cache", progress=lambda text: tell(f"  {text}")))
    names = list(filter(None, options.only.split(","))) or list(smp.kinds)
    unknown = set(names) - set(smp.kinds)
    if unknown:
        sys.exit(f"benches/smp.py: nothing is called {', '.join(sorted(unknown))}; there are: {' '.join(smp.kinds)}")
    programs = {"brolga": (options.brolga, options.brolga_args.split()),
                "qemu": (options.qemu, ["-accel", "tcg,thread=multi", *options.qemu_args.split()])}
    planned = plan(smp, names, options)
    results = {name: {} for name in ["host", *who]}
    tell("host")
    measure_host(results, smp, planned, options)
    for number in range(1, options.rounds + 1):
        measure(number, results, who, programs, smp, planned, options)
    rows = print_tables(results, planned, who, options)
    if options.json:
        report = {"machine": platform.platform(), "cpus": os.cpu_count(), "rows": rows, "results": results,
                  "versions": {"qemu": rival.version()} if "qemu" in who else {}}
        options.json.write_text(json.dumps(report, indent=1, default=str) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (guest.GuestFailed, apt.AptError) as error:
        sys.exit(f"benches/smp.py: {error}")
