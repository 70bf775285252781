"""The image of the guest benchmark: the userland, the benchmark's own programs, and a script that runs them."""

import hashlib
import pathlib
import shutil
import subprocess

from . import cpio, userland

SOURCES = pathlib.Path(__file__).resolve().parent.parent.parent / "benches" / "guest"
FLAGS = ["-O2", "-static", "-march=x86-64", "-std=gnu11"]
APPLICATIONS = "gzip xz zstd python perl lua sqlite cc1 openssl luajit".split()
COMPILED_BY_CC1 = ("integer.c", "floating.c")


class Benchmark:
    """The tree in `.cache/bench/root` (for native runs by chroot) and the image of it."""

    def __init__(self, cache):
        self.cache = cache
        self.userland = userland.Userland(cache)
        self.root = cache.folder / "bench" / "root"
        self.image = cache.folder / "bench" / "image.cpio"

    def make(self):
        """The path of the image; made again when the userland or one of the sources has changed."""
        self.userland.make()
        recipe = self.userland.image.with_suffix(".recipe").read_bytes()
        for source in sorted(SOURCES.iterdir()):
            recipe += source.read_bytes()
        wanted = hashlib.sha256(recipe).hexdigest()
        stamp = self.image.with_suffix(".recipe")
        if not self.image.exists() or not stamp.exists() or stamp.read_text() != wanted:
            self._build()
            stamp.write_text(wanted)
        return self.image

    def _build(self):
        self.cache.progress("benchmark: compiling and packing the image")
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-al", self.userland.root, self.root], check=True)
        place = self.root / "bench"
        (place / "src").mkdir(parents=True)
        sources = sorted(map(str, SOURCES.glob("*.c")))
        subprocess.run(["gcc", *FLAGS, "-o", place / "bench", *sources], check=True)
        for name in COMPILED_BY_CC1:
            done = subprocess.run(["gcc", "-E", "-P", "-O2", SOURCES / name], check=True, stdout=subprocess.PIPE)
            (place / "src" / name).with_suffix(".i").write_bytes(done.stdout)
        for name in ("apps", "run"):
            shutil.copy(SOURCES / f"{name}.sh", place / name)
            (place / name).chmod(0o755)
        archive = cpio.Archive()
        userland.add_tree(archive, self.root, self.cache.busybox("amd64"))
        archive.write(self.image, compress=False)

    def workloads(self):
        """All workloads, as (name, group), in the order in which they run."""
        self.make()
        listed = subprocess.run([self.root / "bench/bench", "list"], check=True, capture_output=True, text=True).stdout
        own = [tuple(line.split()) for line in listed.splitlines()]
        return own + [(f"app-{name}", "applications") for name in APPLICATIONS]
