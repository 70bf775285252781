#!/usr/bin/env python3
"""The benchmark of disk images: brolga-img and qemu-img do the same work by turns.

usage: benches/image.py [options]
Prepare with `cargo build --profile dist` and qemu-img 10. Requests are timed by the programs themselves
("Run completed in"), other commands by the wall from start to end; memory is the peak resident size. The order of
the two changes from round to round, each case runs once unmeasured before, and results of conversions are compared.
Ratios are QEMU's median time over Brolga's, of the clock and of CPU time: above 1 Brolga needs less.
"""

import argparse
import json
import math
import os
import pathlib
import platform
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MIB = 1 << 20
GIB = 1 << 30
DISK = GIB
"""Bytes of the images that requests go to."""
COMPLETED = re.compile(r"Run completed in ([0-9.]+) seconds")


class Failed(Exception):
    """A program ended with an error, or made something wrong."""


class Peak(threading.Thread):
    """Follows the peak resident size of a process. wait4() would tell this program's own as well."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.path, self.kib = f"/proc/{pid}/status", 0

    def run(self):
        while True:
            try:
                with open(self.path) as status:
                    found = re.search(r"VmHWM:\s+(\d+)", status.read())
            except OSError:
                return
            if not found:
                return
            self.kib = max(self.kib, int(found.group(1)))
            time.sleep(0.003)


def run(command, directory):
    """Seconds of the wall, seconds the program itself tells, CPU seconds, peak MiB."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = Peak(process.pid)
    peak.start()
    out, errors = process.communicate()
    wall = time.monotonic() - began
    if process.returncode:
        raise Failed(f"{' '.join(map(str, command))}: status {process.returncode}: {out}{errors}")
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime
    told = COMPLETED.search(out)
    return {"wall": wall, "time": float(told.group(1)) if told else wall, "cpu": cpu, "rss": peak.kib / 1024}


class Case:
    """One kind of work: words for both programs, and what is made before each run and checked after it."""

    def __init__(self, group, name, words, before=None, after=None):
        self.group, self.name, self.words, self.before, self.after = group, name, words, before, after


def requests():
    """Reads and writes of images that are there, and of new ones."""
    sizes = [("4k", 4096, 120_000), ("64k", 65536, 24_000), ("1M", MIB, 2_000)]
    for kind, switch in (("read", []), ("write", ["-w"])):
        for size, length, count in sizes:
            for depth in (1, 16):
                # Steps that meet every place before one comes again, in no order that a host reads ahead.
                for order, step in (("sequential", length), ("random", (37 * MIB // length + 1) * length)):
                    words = ["bench", *switch, "-f", "qcow2", "-t", "writeback", "-s", size, "-S", str(step), "-c",
                             str(count), "-d", str(depth), "full.qcow2"]
                    yield Case(f"{kind}s", f"{order} {kind}s {size}, {depth} at a time", words)
    fresh = ["create", "-q", "-f", "qcow2", "new.qcow2", "2G"]
    for size, step, count in (("4k", "64k", 12_000), ("64k", "64k", 12_000), ("1M", "1M", 1_000), ("4k", "4k", 100_000)):
        for depth in (1, 16):
            words = ["bench", "-w", "-f", "qcow2", "-t", "writeback", "-s", size, "-S", step, "-c", str(count), "-d",
                     str(depth), "new.qcow2"]
            yield Case("allocating writes", f"new {size} every {step}, {depth} at a time", words, before=fresh)
    for image, before in (("full.qcow2", None), ("new.qcow2", fresh)):
        for depth, interval in ((1, 1), (16, 16)):
            words = ["bench", "-w", "-f", "qcow2", "-t", "writeback", "-s", "4k", "-S", "68k", "-c", "1500", "-d",
                     str(depth), "--flush-interval", str(interval), image]
            state = "new" if before else "there"
            yield Case("flushes", f"4k {state}, flush every {interval}, {depth} at a time", words, before=before)


def rings():
    """Requests that both give the kernel by io_uring; past the host's cache they go to the disk."""
    for cache, divisor in (("writeback", 1), ("none", 10)):
        for kind, switch in (("reads", []), ("writes", ["-w"])):
            for size, length, count in (("4k", 4096, 60_000), ("64k", 65536, 12_000)):
                for depth in (1, 16):
                    step = (37 * MIB // length + 1) * length
                    words = ["bench", *switch, "-i", "io_uring", "-f", "qcow2", "-t", cache, "-s", size, "-S", str(step),
                             "-c", str(count // divisor), "-d", str(depth), "full.qcow2"]
                    yield Case("io_uring", f"cache={cache}: random {kind} {size}, {depth} at a time", words)


def conversions():
    """A disk of 4 GiB, about a quarter of it data, from and to each format."""
    def case(name, words, source="disk.raw"):
        remove = ["rm", "-f", "target"]
        return Case("convert", name, ["convert", *words, source, "target"], before=remove, after="target")
    yield case("raw to qcow2", ["-f", "raw", "-O", "qcow2"])
    yield case("raw to qcow2, any order", ["-f", "raw", "-O", "qcow2", "-W"])
    yield case("qcow2 to raw", ["-f", "qcow2", "-O", "raw"], "disk.qcow2")
    yield case("qcow2 to qcow2", ["-f", "qcow2", "-O", "qcow2"], "disk.qcow2")
    yield case("raw to raw", ["-f", "raw", "-O", "raw"])
    yield case("raw to qcow2 -c (zlib)", ["-c", "-f", "raw", "-O", "qcow2"])
    yield case("raw to qcow2 -c (zstd)", ["-c", "-o", "compression_type=zstd", "-f", "raw", "-O", "qcow2"])
    yield case("compressed qcow2 to raw", ["-f", "qcow2", "-O", "raw"], "packed.qcow2")


def others():
    """Commands that read all tables or all data."""
    yield Case("other commands", "compare raw with qcow2", ["compare", "-f", "raw", "-F", "qcow2", "disk.raw", "disk.qcow2"])
    yield Case("other commands", "check 64 GiB of tables", ["check", "-f", "qcow2", "tables.qcow2"])
    yield Case("other commands", "map 64 GiB of tables", ["map", "-f", "qcow2", "--output=json", "tables.qcow2"])
    yield Case("other commands", "measure a raw disk", ["measure", "-f", "raw", "-O", "qcow2", "disk.raw"])


def make_disk(path, size):
    """A raw disk: pieces of 1 MiB, text and noise, on about a quarter of it; some stored zeroes."""
    chance = random.Random(1)
    words = [bytes(chance.choices(b"abcdefghijklmnopqrstuvwxyz", k=chance.randint(3, 9))) + b" " for _ in range(2000)]
    with open(path, "wb") as disk:
        disk.truncate(size)
        for _ in range(size * 3 // 10 // MIB):
            disk.seek(chance.randrange(size // MIB) * MIB)
            kind = chance.random()
            text = b"".join(chance.choices(words, k=40_000)) * 6
            disk.write(chance.randbytes(MIB) if kind < 0.3 else text[:MIB] if kind < 0.9 else bytes(MIB))


def prepare(directory, qemu, size):
    """All images that cases read; made by QEMU's tool, whose images are read by both."""
    tool = lambda *words: run([qemu, *words], directory)  # noqa: E731 (one line says it)
    tool("create", "-q", "-f", "qcow2", "full.qcow2", str(DISK))
    tool("bench", "-w", "-f", "qcow2", "-s", "1M", "-c", str(DISK // MIB), "--pattern", "77", "full.qcow2")
    tool("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "tables.qcow2", "64G")
    make_disk(directory / "disk.raw", size)
    tool("convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2")
    tool("convert", "-c", "-f", "raw", "-O", "qcow2", "disk.raw", "packed.qcow2")


def measure(case, program, options, directory):
    """One run; the result of a conversion must be the disk."""
    if case.before:
        run([options.qemu_img, *case.before] if case.before[0] == "create" else case.before, directory)
    os.sync()
    first = ["nice", "-n", "-19"] if options.first else []
    sample = run([*first, program, *case.words], directory)
    if case.after and options.check:
        run([options.qemu_img, "compare", "-f", "raw", "disk.raw", case.after], directory)
    return sample


def geometric(values):
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def print_table(rows, rounds):
    print(f"{'':44}{'ours s':>9}{'QEMU s':>9}{'ratio':>7}{'CPU':>7}{'ours MiB':>10}{'QEMU MiB':>10}{'spread':>8}   ({rounds} rounds)")
    for group in dict.fromkeys(row["group"] for row in rows):
        members = [row for row in rows if row["group"] == group]
        mean, cpu = (geometric([row[key] for row in members]) for key in ("ratio", "cpu"))
        print(f"{group + ', means':44}{mean:25.2f}{cpu:7.2f}")
        for row in members:
            print(f"  {row['name']:42}{row['brolga']:9.3f}{row['qemu']:9.3f}{row['ratio']:7.2f}{row['cpu']:7.2f}"
                  f"{row['brolga_rss']:10.1f}{row['qemu_rss']:10.1f}{row['spread']:8.2f}")


def summarise(case, samples):
    times = {who: [sample["time"] for sample in samples[who]] for who in samples}
    row = {"group": case.group, "name": case.name, "samples": samples}
    for who, all_times in times.items():
        row[who] = statistics.median(all_times)
        row[f"{who}_rss"] = max(sample["rss"] for sample in samples[who])
    row["ratio"] = row["qemu"] / row["brolga"]
    # A tick of the clock that counts CPU time is 10 ms.
    cpu = {who: max(statistics.median(sample["cpu"] for sample in samples[who]), 0.001) for who in samples}
    row["cpu"] = cpu["qemu"] / cpu["brolga"]
    # The larger part of its own median by which runs of one program differ.
    row["spread"] = max((max(all_times) - min(all_times)) / row[who] for who, all_times in times.items())
    return row


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n", 1)[1],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--rounds", type=int, default=5, help="measured runs of each program; medians count")
    parser.add_argument("--only", default="", help="cases whose group or name holds one of these, by commas")
    parser.add_argument("--brolga-img", default=ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "dist/brolga-img")
    parser.add_argument("--qemu-img", default=shutil.which("qemu-img"))
    parser.add_argument("--directory", type=pathlib.Path, help="where images are made (a new one beside the program)")
    parser.add_argument("--size", type=int, default=4, help="GiB of the disk that is converted")
    parser.add_argument("--no-check", dest="check", action="store_false", help="do not compare what was converted")
    parser.add_argument("--first", action="store_true", help="run both before all else on a busy machine (as root)")
    parser.add_argument("--json", type=pathlib.Path, help="write everything measured to this file")
    return parser.parse_args()


def main():
    options = parse()
    if not options.qemu_img:
        sys.exit("benches/image.py: there is no qemu-img; install qemu-utils, or give --qemu-img")
    programs = {"brolga": pathlib.Path(options.brolga_img).resolve(), "qemu": options.qemu_img}
    if not programs["brolga"].exists():
        sys.exit("benches/image.py: there is no brolga-img; cargo build --profile dist")
    version = subprocess.run([options.qemu_img, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    wanted = [word for word in options.only.split(",") if word]
    cases = [case for case in (*requests(), *rings(), *conversions(), *others())
             if not wanted or any(word in f"{case.group} {case.name}" for word in wanted)]
    if not cases:
        sys.exit(f"benches/image.py: no case is called {options.only}")
    tell = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731 (one line says it)
    with tempfile.TemporaryDirectory(dir=options.directory or programs["brolga"].parent) as name:
        directory = pathlib.Path(name)
        tell("preparing images")
        prepare(directory, options.qemu_img, options.size * GIB)
        rows = []
        for case in cases:
            samples = {"brolga": [], "qemu": []}
            for number in range(-1, options.rounds):
                for who in ("brolga", "qemu") if number % 2 == 0 else ("qemu", "brolga"):
                    sample = measure(case, programs[who], options, directory)
                    if number >= 0:
                        samples[who].append(sample)
            rows.append(summarise(case, samples))
            tell(f"{case.group}: {case.name}: {rows[-1]['ratio']:.2f}")
    print(version)
    print_table(rows, options.rounds)
    if options.json:
        report = {"machine": platform.platform(), "cpus": os.cpu_count(), "qemu": version, "rows": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except Failed as error:
        sys.exit(f"benches/image.py: {error}")
