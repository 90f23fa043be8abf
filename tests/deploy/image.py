"""Does what a builder of images does with a Dockerfile, in a directory that stands for the root of the image.

Each instruction is carried out as it is written, and one that is not known here is an error: nothing stands in the
Dockerfile that no test has run. The base image is a fresh environment of a Python of this machine. The paths of the
image are put under the directory, in commands as in settings; the last stage is made at the same place as those before
it, because an environment knows where it is.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, Final

from msgspec import Struct, field
from tests.support.processes import ROOT

# What an image has of its own; all else that a command names is the system's.
_OWN: Final = re.compile(r"(?<![\w.@/-])/(?=(?:opt|src|dist|volume|usr/local|var|run|tmp)(?:[/:\s\"']|$))")
_ABSOLUTE: Final = re.compile(r"(?<![\w.@/:-])/[\w./-]+|(?<=:)/(?!/)[\w./-]+")
_SYSTEM: Final = ("/usr/bin", "/bin", "/dev/null")
_FLAG: Final = re.compile(r"--(\w[\w-]*)=(\S+)\s+")
_VARIABLE: Final = re.compile(r"\$\{(\w+)\}")
BUILD_S: Final = 300
CALL_S: Final = 60


class Instruction(Struct, frozen=True):
    """One instruction: `COPY --from=build /a /b` has a name, flags and text."""

    name: str
    flags: dict[str, str]
    text: str

    def words(self) -> list[str]:
        """The text as a list: of its JSON, or of its words."""
        return list(json.loads(self.text)) if self.text.startswith("[") else shlex.split(self.text)

    def exec_form(self) -> list[str]:
        """The command of CMD, ENTRYPOINT or HEALTHCHECK; the shell form would keep signals from it."""
        assert self.text.startswith("["), f"{self.name} {self.text} is not in exec form"
        return self.words()


class Stage(Struct):
    """What follows one FROM."""

    base: str
    name: str
    instructions: list[Instruction]


class Image(Struct):
    """What an image says of how it is run."""

    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = ""
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    # As the flags of HEALTHCHECK give them: interval, timeout, start-period, retries.
    health_terms: dict[str, str] = field(default_factory=dict)
    stop_signal: str = "SIGTERM"
    ports: list[int] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)


def parse(text: str) -> list[Stage]:
    """Return the stages of a Dockerfile, with the defaults of the ARGs before the first in place."""
    stages: list[Stage] = []
    arguments: dict[str, str] = {}
    for one in _instructions(text):
        if one.name == "ARG":
            assert not stages, "an ARG within a stage is not known here"
            name, _, default = one.text.partition("=")
            arguments[name] = default
        elif one.name == "FROM":
            base, _, name = one.text.partition(" AS ")
            stages.append(Stage(_VARIABLE.sub(lambda found: arguments[found[1]], base), name, []))
        else:
            stages[-1].instructions.append(one)
    return stages


def _instructions(text: str) -> Iterator[Instruction]:
    # Comments may stand between the lines of one instruction.
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in filter(None, (line.strip() for line in lines.replace("\\\n", " ").splitlines())):
        name, _, rest = line.partition(" ")
        flags: dict[str, str] = {}
        rest = rest.strip()
        while found := _FLAG.match(rest):
            flags[found[1]] = found[2]
            rest = rest[found.end() :]
        yield Instruction(name, flags, rest)


@cache
def python() -> str:
    """Return a Python of this machine that the user of the image may run: this one, or that of the system."""
    candidates = [str(Path(sys.base_prefix) / "bin" / "python3"), "/usr/bin/python3"]
    for candidate in candidates:
        try:
            subprocess.run([candidate, "-c", "import ensurepip"], check=True, capture_output=True, **as_user("10001"))
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    raise AssertionError(f"none of {candidates} can be run by another user")


def as_user(user: str) -> dict[str, Any]:
    """Return the arguments of Popen that make a process that of a user `uid:gid`, if we may do that."""
    if os.geteuid() != 0:
        return {}
    uid, _, gid = user.partition(":")
    return {"user": int(uid), "group": int(gid or uid), "extra_groups": []}


class Builder:
    """Builds in `folder`; afterwards the files of the image are in `root`, and `image` says how it is run."""

    def __init__(self, folder: Path, context: Path = ROOT) -> None:
        self.root = folder / "root"
        self.image = Image()
        self._folder = folder
        self._context = folder / "context"
        self._stages: dict[str, Path] = {}
        send_context(context, self._context)

    def build(self) -> None:
        """Carry out every stage of the Dockerfile."""
        stages = parse((ROOT / "Dockerfile").read_text())
        for number, stage in enumerate(stages):
            self._begin()
            for instruction in stage.instructions:
                getattr(self, f"_{instruction.name.lower()}")(instruction)
            if number + 1 < len(stages):
                self._stages[stage.name] = self.root.rename(self._folder / f"stage-{number}")

    def inside(self, text: str) -> str:
        """Return a text with the paths of the image put under its root."""
        return _OWN.sub(f"{self.root}/", text)

    def path(self, path: str) -> Path:
        """Return where a path of the image is, one that is relative to its working directory too."""
        return self.root / str(Path(self.image.workdir) / path).lstrip("/")

    def settings(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of a process in the image, and nothing of this machine's."""
        return {name: self.inside(value) for name, value in {**self.image.environment, **(more or {})}.items()}

    def call(self, argv: Sequence[str], settings: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command in the image, as its user, and return what became of it."""
        return subprocess.run(
            argv,
            cwd=self.path("."),
            env=self.settings() if settings is None else settings,
            check=False,
            capture_output=True,
            text=True,
            timeout=CALL_S,
            **as_user(self.image.user),
        )

    def _begin(self) -> None:
        """Begin with a base image: Python with pip in /usr/local, and nothing else."""
        self.image = Image(environment={"PATH": "/usr/local/bin:/usr/bin:/bin"})
        base = self._folder / "base"
        if not base.exists():
            subprocess.run([python(), "-m", "venv", self.root / "usr" / "local"], check=True, timeout=BUILD_S)
            (self.root / "tmp").mkdir()
            self.root.rename(base)
        shutil.copytree(base, self.root, symlinks=True)

    def _run(self, one: Instruction) -> None:
        for found in _ABSOLUTE.findall(one.text):
            known = _OWN.match(found) or found.startswith(_SYSTEM)
            assert known, f"{found} would be a path of this machine: it is not known to be one of the image"
        # How pip reaches its index is this machine's business, and so is whether it keeps what it has loaded.
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("MOBD_", "PYTHON", "VIRTUAL"))
        }
        settings = {**kept, **self.settings(), "TMPDIR": str(self.root / "tmp")}
        settings.pop("PIP_NO_CACHE_DIR", None)
        done = subprocess.run(
            ["/bin/sh", "-c", self.inside(one.text)],
            cwd=self.path("."),
            env=settings,
            check=False,
            capture_output=True,
            text=True,
            timeout=BUILD_S,
        )
        assert done.returncode == 0, f"RUN {one.text}\n{done.stdout}{done.stderr}"

    def _copy(self, one: Instruction) -> None:
        *sources, target = one.words()
        into = self.path(target)
        for source in sources:
            stage = one.flags.get("from")
            origin = (self._stages[stage] if stage else self._context) / source.lstrip("/")
            assert origin.exists(), f"COPY {one.text}: there is no {source}"
            if origin.is_dir():
                # Files of a stage change no more: a second name is enough, and does not take a second.
                copy = os.link if stage and "chown" not in one.flags else shutil.copy2
                shutil.copytree(origin, into, symlinks=True, dirs_exist_ok=True, copy_function=copy)
                copied = into
            else:
                copied = into / origin.name if target.endswith("/") else into
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(origin, copied)
            if "chown" in one.flags and os.geteuid() == 0:
                uid, _, gid = one.flags["chown"].partition(":")
                for path in (copied, *copied.rglob("*")):
                    os.chown(path, int(uid), int(gid))

    def _env(self, one: Instruction) -> None:
        self.image.environment |= dict(word.split("=", 1) for word in one.words())

    def _label(self, one: Instruction) -> None:
        self.image.labels |= dict(word.split("=", 1) for word in one.words())

    def _workdir(self, one: Instruction) -> None:
        self.image.workdir = one.text
        self.path(".").mkdir(parents=True, exist_ok=True)

    def _user(self, one: Instruction) -> None:
        self.image.user = one.text

    def _volume(self, one: Instruction) -> None:
        self.image.volumes += one.words()

    def _expose(self, one: Instruction) -> None:
        self.image.ports += [int(port) for port in one.words()]

    def _stopsignal(self, one: Instruction) -> None:
        self.image.stop_signal = one.text

    def _entrypoint(self, one: Instruction) -> None:
        self.image.entrypoint = one.exec_form()

    def _cmd(self, one: Instruction) -> None:
        self.image.command = one.exec_form()

    def _healthcheck(self, one: Instruction) -> None:
        self.image.health_terms = one.flags
        self.image.healthcheck = Instruction("CMD", {}, one.text.removeprefix("CMD ")).exec_form()


def send_context(source: Path, target: Path) -> None:
    """Copy to `target` what .dockerignore lets through: first all is left out, then `!path` brings paths back."""
    lines = [line for line in (source / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*", "what is not named must not be sent"
    let_through = [line.removeprefix("!") for line in lines if line.startswith("!")]
    left_out = [line.removeprefix("**/") for line in lines[1:] if not line.startswith("!")]
    for path in let_through:
        origin, copy = source / path, target / path
        assert origin.exists(), f".dockerignore: there is no {path}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_dir():
            shutil.copytree(origin, copy, ignore=lambda _, names: {n for n in names for p in left_out if fnmatch(n, p)})
        else:
            shutil.copy2(origin, copy)
