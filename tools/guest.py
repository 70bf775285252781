#!/usr/bin/env python3
"""Makes the kernels and initramfs images that guests boot, under .cache/ of the project.

usage: tools/guest.py kernel NAME... | initramfs NAME... | userland | disks | network | rescue | installer | default | all | list | benchmark | qemu
Each word prints the path of what it made. What is there already is not made again.
`installer` makes the disc of an unattended Debian install, for tools/install; it is no part of `all`.
`benchmark` makes the image of benches/guest.py; `qemu` installs QEMU from backports on this machine: the rival that benches/guest.py measures.
"""

import pathlib
import sys

from guestkit import apt, benchmark, disks, images, installer, network, rescue, rival, userland

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main(words):
    cache = images.Cache(ROOT / ".cache", progress=lambda text: print(f"  {text}", file=sys.stderr, flush=True))
    cache.folder.mkdir(exist_ok=True)
    kinds = {"kernel": (images.KERNELS, cache.kernel), "initramfs": (images.INITRAMFS | images.DRIVERS, cache.initramfs)}
    match words:
        case ["list"]:
            for kind, (table, _) in kinds.items():
                print(f"{kind}: {' '.join(table)}")
            print("userland")
            print("disks")
            print("rescue")
            print("installer")
            print("network")
        case ["default"]:
            print(cache.kernel("debian"))
            print(cache.initramfs("busybox-amd64"))
        case ["all"]:
            for table, make in kinds.values():
                for name in table:
                    print(make(name))
            print(userland.Userland(cache).make())
            print(disks.Disks(cache).make())
            print(rescue.Rescue(cache).make())
            print(network.Network(cache).make())
        case ["userland"]:
            print(userland.Userland(cache).make())
        case ["disks"]:
            print(disks.Disks(cache).make())
        case ["rescue"]:
            print(rescue.Rescue(cache).make())
        case ["installer"]:
            print(installer.Installer(cache).make())
        case ["network"]:
            print(network.Network(cache).make())
        case ["benchmark"]:
            print(benchmark.Benchmark(cache).make())
        case ["qemu"]:
            print(rival.install(cache))
        case [kind, *names] if kind in kinds and names:
            table, make = kinds[kind]
            for name in names:
                if name not in table:
                    sys.exit(f"tools/guest.py: no {kind} is called {name}; there are: {' '.join(table)}")
                print(make(name))
        case _:
            sys.exit(__doc__.strip())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except apt.AptError as error:
        sys.exit(f"tools/guest.py: {error}")
