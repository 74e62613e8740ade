"""Build the images of docker/ without a Docker daemon or a registry, run and serve a bundle with them, and judge them.

    sudo python scripts/build_images.py --bundle bundles/smollm2

Needs root and Debian's buildah and debootstrap. The base is a fresh Debian with Python, made by debootstrap. The image
is run with what `docker run --read-only --network none --user` would give it: a read-only root, no network, its own
user, a memory limit. Exit status 1 where a check fails; --json prints all figures.
"""

import argparse
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]
MAX_SIZE, MAX_COMPRESSED = 240e6, 90e6  # bytes that the image may add to its base
MEMORY_LIMIT = 1_000_000_000  # bytes of the container that answers
TERMINATED = 128 + signal.SIGTERM
QUESTION = "What is the capital of France?"


@dataclass
class Buildah:
    """Images and containers in a directory of our own, without any daemon."""

    directory: Path
    options: list[str] = field(default_factory=list)  # of `build`: secrets, volumes, arguments

    def __call__(self, *words: object, **keywords: Any) -> str:
        """Run one buildah command and return its output."""
        storage = ["--root", self.directory / "storage", "--runroot", self.directory / "run", "--storage-driver", "vfs"]
        command = [str(word) for word in ("buildah", *storage, *words)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **keywords).stdout.strip()

    def build(self, image: str, dockerfile: Path, context: Path, *options: object) -> None:
        """Build one image; what the build says goes to IMAGE.log, and its end to stderr where it fails."""
        words = ["build", "--isolation", "chroot", "--format", "docker", "--tag", image, "--file", dockerfile]
        print(f"building {image}", file=sys.stderr)
        log = self.directory / f"{image}.log"
        try:
            with log.open("w") as file:
                file.write(self(*words, *self.options, *options, context, stderr=file))
        except subprocess.CalledProcessError:
            sys.exit(log.read_text()[-2000:] + f"error: {image} was not built; all that was said is in {log}")

    def has(self, image: str) -> bool:
        """Whether an image of that name was built before."""
        return f"localhost/{image}:latest" in self("images", "--format", "{{.Name}}:{{.Tag}}").splitlines()


def make_bases(buildah: Buildah, mirror: str | None) -> None:
    """piston-base: Debian with Python. piston-installer: the same with pip."""
    if buildah.has("piston-installer"):
        return
    tree, context = buildah.directory / "debian", buildah.directory / "base"
    shutil.rmtree(tree, ignore_errors=True)
    context.mkdir(exist_ok=True)
    words = ["debootstrap", "--variant=minbase", "--include=python3,ca-certificates", "bookworm", tree]
    print("bootstrapping Debian", file=sys.stderr)
    subprocess.run([*words, *([mirror] if mirror else [])], check=True, stdout=subprocess.DEVNULL)
    for waste in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(tree / waste)
        (tree / waste / "partial").mkdir(parents=True)
    with tarfile.open(context / "debian.tar", "w") as archive:
        archive.add(tree, ".")
    shutil.rmtree(tree)
    (context / "base").write_text("FROM scratch\nADD debian.tar /\n")
    pip = "apt-get update && apt-get install -y --no-install-recommends python3-pip"
    (context / "installer").write_text(f"FROM localhost/piston-base\nRUN {pip}\n")
    buildah.build("piston-base", context / "base", context)
    buildah.build("piston-installer", context / "installer", context)


def build_image(buildah: Buildah, name: str, *arguments: str) -> None:
    """One Dockerfile of docker/ on our base."""
    bases = ["BASE=localhost/piston-base", "INSTALLER=localhost/piston-installer", *arguments]
    options = [word for argument in bases for word in ("--build-arg", argument)]
    buildah.build(f"piston-{name}", ROOT / "docker" / f"{name}.Dockerfile", ROOT, *options)


@dataclass
class Container:
    """A container of an image, entered as a container runtime would: namespaces, read-only root, user, memory limit."""

    buildah: Buildah
    image: str
    bundle: Path

    def __enter__(self) -> Self:
        """Lay out the root file system."""
        self.name = self.buildah("from", "--pull-never", f"localhost/{self.image}")
        self.root = Path(self.buildah("mount", self.name))
        self.config = json.loads(self.buildah("inspect", "--type", "image", f"localhost/{self.image}"))["Docker"][
            "config"
        ]
        (self.root / "bundle").mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove it."""
        self.buildah("rm", self.name)

    def start(
        self, *words: str, memory: int = MEMORY_LIMIT, entrypoint: list[str] | None = None
    ) -> subprocess.Popen[str]:
        """Start the image's entry point with `words`."""
        root, user = self.root, self.config["User"]
        group = limited_group(memory)
        script = f"""set -e
            echo 0 > {group}/cgroup.procs
            ip link set lo up
            mount --bind {root} {root}
            mount --bind {self.bundle.resolve()} {root}/bundle; mount -o remount,bind,ro {root}/bundle
            mount -t proc proc {root}/proc; mount --rbind /sys {root}/sys; mount -t tmpfs tmpfs {root}/tmp
            mount --bind /dev/null {root}/dev/null
            mount -o remount,bind,ro {root}
            exec chroot --userspec={user} {root} "$@" """
        inside = ["env", "-i", *self.config["Env"], *(entrypoint or self.config["Entrypoint"]), *words]
        return subprocess.Popen(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "bash", "-c", script, "bash", *inside],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, **options: Any) -> tuple[int, str, str, float]:
        """Run to the end: exit status, stdout, stderr, seconds."""
        began = time.perf_counter()
        process = self.start(*words, **options)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err, time.perf_counter() - began

    def python(self, code: str) -> str:
        """What a line of Python prints in there."""
        return self.run("-c", code, entrypoint=["python3"])[1].strip()


def limited_group(memory: int) -> Path:
    """A control group whose processes may take so much memory, page cache included."""
    first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    group, limit = (first, "memory.limit_in_bytes") if first.is_dir() else (second, "memory.max")
    group /= "piston-images"
    group.mkdir(exist_ok=True)
    (group / limit).write_text(str(memory))
    return group


def judge(container: Container, checks: dict[str, tuple[bool, object]]) -> None:
    """Run the runtime image; each check is whether it holds, and what was seen."""
    opt = container.root / "opt/piston"
    size = sum(path.lstat().st_size for path in opt.rglob("*") if path.is_file())
    compressed = compressed_size(opt)
    checks["size over base, MB"] = (size <= MAX_SIZE, round(size / 1e6, 1))
    checks["compressed, MB"] = (compressed <= MAX_COMPRESSED, round(compressed / 1e6, 1))
    user = container.python("import os; print(os.getuid(), os.getgid())")
    checks["user and group"] = (user == "10001 10001", user)
    writable = container.python(
        "import os; print([top for top in ('/', '/opt/piston', '/bundle', '/etc', '/var') if os.access(top, os.W_OK)])"
    )
    checks["writable places"] = (writable == "[]", writable)
    torch = container.python(
        "import importlib.util as u; print([n for n in ('torch', 'onnx', 'pip') if u.find_spec(n)])"
    )
    checks["of torch, onnx, pip"] = (torch == "[]", torch)
    found = container.python("import shutil; print([n for n in ('g++', 'gcc', 'cc', 'ld') if shutil.which(n)])")
    checks["compilers"] = (found == "[]", found)
    level = container.python("from piston.runtime.kernels import level; print(level())")
    checks["own kernels, for this processor"] = (bool(level), level or "not compiled")
    answer(container, checks)
    status, _, err, _ = container.run("run", "/bundle", "--prompt", "x", memory=150_000_000)
    checks["150 MB are refused in words"] = (status == 1 and "container leaves" in err, err.strip()[-200:])
    serve(container, checks)
    terminate(container, checks)


def answer(container: Container, checks: dict[str, tuple[bool, object]]) -> None:
    """Check golden outputs, a question, the time of a new process to its first token, and memory."""
    status, out, err, _ = container.run("verify", "/bundle", "--target", "ort-cpu")
    checks["answers as built"] = (status == 0, (out or err).strip()[-200:])
    words = ("run", "/bundle", "--chat", "--prompt", QUESTION, "--max-tokens", "32", "--json")
    status, out, err, _ = container.run(*words)
    text = json.loads(out)["completions"][0]["text"] if status == 0 else err[-300:]
    checks["says"] = (status == 0 and bool(text), text)
    warm = [container.run(*words[:5], "--max-tokens", "1")[3] for _ in range(3)]
    checks["new process to first token and exit, warm disk, s"] = (True, round(sorted(warm)[1], 2))
    Path("/proc/sys/vm/drop_caches").write_text("3")
    checks["the same, cold disk, s"] = (True, round(container.run(*words[:5], "--max-tokens", "1")[3], 2))
    code = "import resource as r, subprocess as s, sys; s.run([sys.executable, '-m', 'piston.cli.main', *sys.argv[1:]])"
    peak = "; print(r.getrusage(r.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)"
    err = container.run("-c", code + peak, *words, entrypoint=["python3"])[2]
    checks["peak memory, MB"] = (True, round(int(err.split()[-1]) * 1024 / 1e6))


SERVED = """
import json, os, subprocess, sys, time, urllib.request
server = subprocess.Popen([sys.executable, "-m", "piston.cli.main", "serve", "/bundle", "--max-batch", "2"])
health = json.loads(os.environ.get("HEALTH", "null")) or [sys.executable, "-m", "piston.serving.health"]
while subprocess.run(health, stderr=subprocess.DEVNULL).returncode and server.poll() is None:
    time.sleep(0.1)
body = {"model": "bundle", "messages": [{"role": "user", "content": sys.argv[1]}], "temperature": 0, "max_tokens": 32}
request = urllib.request.Request("http://127.0.0.1:8000/v1/chat/completions", json.dumps(body).encode())
print(json.loads(urllib.request.urlopen(request, timeout=60).read())["choices"][0]["message"]["content"])
server.terminate()
sys.exit(server.wait(30))
"""


def serve(container: Container, checks: dict[str, tuple[bool, object]]) -> None:
    """The server, its health check, a real request through HTTP, and SIGTERM."""
    health = container.config["Healthcheck"]["Test"][1:]
    entrypoint = ["env", f"HEALTH={json.dumps(health)}", "python3", "-c", SERVED]
    status, out, err, _ = container.run(QUESTION, entrypoint=entrypoint)
    checks["serves, health check passes, ends with 0"] = (
        status == 0 and bool(out.strip()),
        (out or err).strip()[-200:],
    )


def terminate(container: Container, checks: dict[str, tuple[bool, object]]) -> None:
    """`docker stop` in the middle of an answer."""
    process = container.start("run", "/bundle", "--prompt", "Once upon a time", "--max-tokens", "500", "--ignore-eos")
    assert process.stdout is not None
    said = process.stdout.read(8)
    search = ["pgrep", "-f", "piston.cli.main run /bundle"]
    child = subprocess.run(search, stdout=subprocess.PIPE, text=True, check=False)
    pids = [int(pid) for pid in child.stdout.split() if Path(f"/proc/{pid}/root").resolve() == container.root]
    began = time.perf_counter()
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    seconds = time.perf_counter() - began
    good = process.returncode == TERMINATED and bool(said) and out.endswith("\n") and err.endswith("terminated\n")
    checks["SIGTERM in an answer"] = (good, f"exit status {process.returncode} after {seconds:.2f} s")
    checks["remarks of libraries"] = ("onnxruntime" not in err, err.strip()[-200:])


def compressed_size(directory: Path) -> int:
    """Bytes of the layer as registries keep it."""
    counter = Counter()
    with (
        gzip.GzipFile(fileobj=counter, mode="wb", compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w|") as tar,
    ):
        tar.add(directory, "opt/piston")
    return counter.count


class Counter:
    """A file that only counts."""

    count = 0

    def write(self, data: bytes) -> int:
        """Count."""
        self.count += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is kept."""


def main() -> int:
    """Build, run, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="of the demo model, for ort-cpu")
    parser.add_argument("--work-dir", type=Path, default=ROOT / ".cache" / "images", help="of bases and layers")
    parser.add_argument("--mirror", help="of Debian, for debootstrap")
    parser.add_argument("--pip-conf", type=Path, help="for pip while images are built; not kept in them")
    parser.add_argument("--volume", action="append", default=[], metavar="HOST:IMAGE:ro", help="while images are built")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME[:ARG=VALUE;...]",
        help="build this image too, such as build or 'runtime-tensorrt:EXTRAS=cuda,rtx'",
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if os.geteuid() != 0 or not all(map(shutil.which, ("buildah", "debootstrap", "unshare"))):
        sys.exit("error: this needs root, and apt-get install buildah debootstrap")
    options.work_dir.mkdir(parents=True, exist_ok=True)
    buildah = Buildah(options.work_dir.resolve(), [f"--volume={volume}" for volume in options.volume])
    if options.pip_conf:
        buildah.options.append(f"--secret=id=pip-conf,src={options.pip_conf}")
    began = time.perf_counter()
    make_bases(buildah, options.mirror)
    build_image(buildah, "runtime")
    build_image(buildah, "haproxy")
    for also in options.also:
        name, _, arguments = also.partition(":")
        build_image(buildah, name, *filter(None, arguments.split(";")))
    checks: dict[str, tuple[bool, object]] = {"built in, s": (True, round(time.perf_counter() - began))}
    with Container(buildah, "piston-runtime", options.bundle) as container:
        judge(container, checks)
    with Container(buildah, "piston-haproxy", options.bundle) as container:
        status, out, err, _ = container.run("-c")
        checks["HAProxy accepts its configuration"] = (status == 0, (out or err).strip()[-200:])
    return report(checks, as_json=options.json)


def report(checks: dict[str, tuple[bool, object]], *, as_json: bool) -> int:
    """Print every check; the exit status is 1 where one does not hold."""
    if as_json:
        print(json.dumps({name: {"holds": holds, "seen": seen} for name, (holds, seen) in checks.items()}, indent=1))
    else:
        for name, (holds, seen) in checks.items():
            print(f"{'ok  ' if holds else 'FAIL'} {name}: {seen}")
    return 0 if all(holds for holds, _ in checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
