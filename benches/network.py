#!/usr/bin/env python3
"""The network benchmark: a guest behind the user-mode network of Brolga and of QEMU in turn.

usage: benches/network.py [options]
Prepare with `tools/setup --bench` and `cargo build --profile dist`. For each card: TCP streams out of and into the guest,
compared byte by byte at both ends; round trips of one byte; connections opened and closed one after the other; and
what a register's read and a virtio notification cost on the processor's thread, in nanoseconds. Times are wall seconds
between two marks on the serial console, and CPU seconds of the whole process; ratios above 1 say that Brolga is faster.
"""

import argparse
import json
import pathlib
import socket
import statistics
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benches"), str(ROOT / "tools")]

import guest  # noqa: E402 (the path comes first)
from guestkit import apt, cpio, emulator, images, rival  # noqa: E402

SOURCES = ROOT / "benches" / "network"
BLOCK = 1 << 20
CARDS = {"e1000": ["register"], "virtio-net-pci": ["kick", "kick-rarely"]}
COUNTS = {"send": 64 << 20, "receive": 64 << 20, "round-trip": 5000, "connections": 1000, "register": 2_000_000,
          "kick": 500_000, "kick-rarely": 1000}
UNITS = {"send": ("MiB/s", 1 << 20), "receive": ("MiB/s", 1 << 20), "round-trip": ("per s", 1), "connections": ("per s", 1)}


def make_pattern():
    """The bytes of the streams, as the guest makes them."""
    x, words = 0x9E3779B97F4A7C15, []
    for _ in range(BLOCK // 8):
        x ^= x << 13 & (1 << 64) - 1
        x ^= x >> 7
        x ^= x << 17 & (1 << 64) - 1
        words.append(x.to_bytes(8, "little"))
    return b"".join(words) * 2


PATTERN = make_pattern()


def take(caller):
    """Take a stream and say whether it was right."""
    at, right, view = 0, True, memoryview(PATTERN)
    buffer = bytearray(BLOCK)
    while count := caller.recv_into(buffer):
        start = at % BLOCK
        right = right and memoryview(buffer)[:count] == view[start:start + count]
        at += count
    caller.sendall(b"y" if right else b"n")


def give(caller):
    """Give a stream."""
    for _ in range(COUNTS["receive"] // BLOCK):
        caller.sendall(memoryview(PATTERN)[:BLOCK])


def echo(caller):
    """Send back what comes."""
    caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := caller.recv(64):
        caller.sendall(data)


def end(caller):
    """Wait for the other end's end."""
    caller.recv(1)


SERVERS = {"send": take, "receive": give, "round-trip": echo, "connections": end}


def serve(answer):
    """A server on the loopback, for as long as this process lives; its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def forever():
        while True:
            caller, _ = listener.accept()
            with caller:
                try:
                    answer(caller)
                except OSError:
                    # The guest has been ended.
                    pass

    threading.Thread(target=forever, daemon=True).start()
    return listener.getsockname()[1]


def make_image(cache):
    """An initramfs: that of the drivers, and behind it the benchmark's program and script."""
    folder = cache.folder / "network-bench"
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "net"
    subprocess.run(["gcc", "-O2", "-static", "-std=gnu11", "-Wall", "-o", program, SOURCES / "net.c"], check=True)
    archive = cpio.Archive()
    archive.file("bench/net", program.read_bytes(), 0o755)
    archive.file("bench/run", (SOURCES / "run.sh").read_bytes(), 0o755)
    added = folder / "added.cpio"
    archive.write(added, compress=False)
    base = cache.initramfs("drivers-amd64").read_bytes()
    image = folder / "image.cpio.gz"
    image.write_bytes(base + bytes(-len(base) % 4) + added.read_bytes())
    return image


def run_guest(program, extra, cache, image, card, names, ports, options):
    """All measurements in one guest: {name: {"cpu": ..., "wall": ...} or {"value": ...}}."""
    words = ",".join(f"{name}:{ports.get(name, 0)}:{COUNTS[name]}" for name in names)
    extra = [*extra, "-netdev", "user,id=n", "-device", f"{card},netdev=n"]
    command = guest.command_line(program, extra, cache.kernel("debian"), image, "256M",
                                 f"quiet loglevel=0 iomem=relaxed brolga.run=/bench/run brolga.args={words}")
    machine = guest.Machine(command, options.timeout)
    samples, begun, value = {}, None, None
    try:
        for line in machine.lines():
            word, _, rest = line.partition(" ")
            if word == "@begin":
                begun, value = machine.clocks(), None
            elif word == "@value":
                value = float(rest)
            elif word == "@end":
                cpu, wall = (after - before for after, before in zip(machine.clocks(), begun))
                samples[rest] = {"cpu": cpu, "wall": wall} if value is None else {"cpu": cpu, "value": value}
            elif word == "@failed":
                raise guest.GuestFailed("\n".join(machine.said[-15:]))
            elif word == "@done":
                samples["memory"] = {"value": machine.memory()[1]}
                return samples
    finally:
        machine.end()
    return samples


def spread(values):
    """How far apart the rounds are, in per cent of the median."""
    return 100 * (max(values) - min(values)) / statistics.median(values)


def print_table(runs, who):
    """One row for each card and measurement; the rows."""
    rows = []
    print(f"{'card':16}{'measurement':14}" + "".join(f"{name:>14}" for name in who) + "  unit      x wall   x cpu   spread %")
    for card, names in runs[0][who[0]].items():
        for name in names:
            row = {"card": card, "name": name}
            for emulator in who:
                samples = [run[emulator][card][name] for run in runs]
                for key in samples[0]:
                    row[f"{emulator}_{key}"] = statistics.median(sample[key] for sample in samples)
                    row[f"{emulator}_{key}_spread"] = spread([sample[key] for sample in samples])
            timed = name in UNITS
            unit, scale = UNITS.get(name, ("MiB" if name == "memory" else "ns", 1))
            value = lambda e: COUNTS[name] / scale / row[f"{e}_wall"] if timed else row[f"{e}_value"]  # noqa: E731
            text = f"{card:16}{name:14}" + "".join(f"{value(emulator):14.1f}" for emulator in who) + f"  {unit:8}"
            if len(who) == 2:
                keys = [key for key in ("wall", "value", "cpu") if f"brolga_{key}" in row]
                for key in keys:
                    ours = max(row[f"brolga_{key}"], 1e-9)
                    row[f"ratio_{key}"] = row[f"qemu_{key}"] / ours
                text += "".join(f"{row[f'ratio_{key}']:8.2f}" for key in keys) + " " * 8 * (2 - len(keys))
            key = "wall" if timed else "value"
            text += "  " + "/".join(f"{row[f'{emulator}_{key}_spread']:.0f}" for emulator in who)
            print(text)
            rows.append(row)
    return rows


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n", 1)[1],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--rounds", type=int, default=3, help="rounds of each emulator; the median counts")
    parser.add_argument("--only", default="", help="measurements or cards, separated by commas")
    parser.add_argument("--emulators", default="brolga,qemu", help="brolga, qemu, or both")
    parser.add_argument("--brolga", default=emulator.shipped("brolga"))
    parser.add_argument("--brolga-args", default="", help="more options for Brolga")
    parser.add_argument("--qemu", default=rival.PROGRAM)
    parser.add_argument("--timeout", type=float, default=180, help="seconds of silence after which a guest has failed")
    parser.add_argument("--json", type=pathlib.Path, help="write everything measured to this file")
    return parser.parse_args()


def main():
    options = parse()
    who = [name for name in options.emulators.split(",") if name]
    if not who or set(who) - {"brolga", "qemu"}:
        sys.exit("benches/network.py: --emulators takes brolga, qemu, or both")
    wanted = set(filter(None, options.only.split(",")))
    common = list(SERVERS)
    unknown = wanted - set(CARDS) - set(COUNTS)
    if unknown:
        sys.exit(f"benches/network.py: no card or measurement is called {', '.join(sorted(unknown))}")
    chosen = lambda name: not wanted & set(COUNTS) or name in wanted  # noqa: E731
    cards = {card: [name for name in common + own if chosen(name)] for card, own in CARDS.items()
             if not wanted & set(CARDS) or card in wanted}
    cache = images.Cache(ROOT / ".cache", progress=lambda text: print(f"  {text}", file=sys.stderr))
    image = make_image(cache)
    ports = {name: serve(answer) for name, answer in SERVERS.items()}
    programs = {"brolga": (options.brolga, options.brolga_args.split()), "qemu": (options.qemu, ["-accel", "tcg"])}
    runs = []
    for number in range(options.rounds):
        run = {emulator: {} for emulator in who}
        for card, names in cards.items():
            for emulator in who if number % 2 == 0 else reversed(who):
                print(f"round {number + 1} of {options.rounds}: {emulator}, {card}", file=sys.stderr, flush=True)
                run[emulator][card] = run_guest(*programs[emulator], cache, image, card, names, ports, options)
        runs.append(run)
    rows = print_table(runs, who)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "runs": runs}, indent=1, default=str) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (guest.GuestFailed, apt.AptError) as error:
        sys.exit(f"benches/network.py: {error}")
