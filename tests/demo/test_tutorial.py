"""The tutorial as a newcomer takes it: every block is run in its order, and says what the page says that it says."""

import asyncio
import os
import re
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.processes import ROOT, environment, free_port

PAGE = (ROOT / "docs" / "tutorial.md").read_text()
# A block, with the line before it: the name of a file stands at the end of that.
BLOCK = re.compile(r"([^\n]*)\n\n```(\w+)\n(.*?)```", re.DOTALL)
END = "@@@ end of block"
PATIENCE_S = 120.0


@dataclass
class Step:
    """One block of commands, and the output that the page shows below it."""

    commands: str
    shown: str | None = None


def read(page: str) -> tuple[dict[str, str], list[Step]]:
    """Return the files of the page by name, and its commands in their order."""
    files: dict[str, str] = {}
    steps: list[Step] = []
    for before, language, text in BLOCK.findall(page):
        if language == "python":
            named = re.search(r"`(\w+\.py)`", before)
            assert named, f"which file is this?\n{text}"
            files[named[1]] = text
        elif language == "sh":
            steps.append(Step(text))
        else:
            assert language == "text", language
            assert steps[-1].shown is None
            steps[-1].shown = text
    return files, steps


def agrees(shown: str, said: str) -> bool:
    """Tell whether an output is the one that is shown; `…` stands for anything within a line, spaces for spaces."""
    lines = [" ".join(line.split()) for line in shown.strip().splitlines()]
    pattern = "\n".join(re.escape(line).replace("…", ".*") for line in lines)
    return re.fullmatch(pattern, "\n".join(" ".join(line.split()) for line in said.strip().splitlines())) is not None


async def run(script: str, home: Path, port: int) -> tuple[int, str, str]:
    """Run the commands as one session of a shell, which is ended with everything that it started."""
    settings = {"HOME": str(home), "MOBD_LISTEN": f"127.0.0.1:{port}", "MOBD_TARGET": f"127.0.0.1:{port}"}
    inherited = {name: value for name, value in environment(settings).items() if not name.startswith("MAKE")}
    process = await asyncio.create_subprocess_exec(
        *("bash", "--noprofile", "--norc", "-e", "-c", script),
        cwd=ROOT,
        env=inherited,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            out, err = await process.communicate()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    return process.returncode or 0, out.decode(), err.decode()


@pytest.mark.timeout(150)
@pytest.mark.asyncio
async def test_every_block_of_the_tutorial_does_what_the_page_says(tmp_path: Path) -> None:
    files, steps = read(PAGE)
    assert len(files) > 6
    folder = tmp_path / "mobd-tutorial"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)

    script = "".join(f"{step.commands}\necho '{END}'\n" for step in steps)
    code, out, err = await run(script, tmp_path, free_port())
    logs = "\n".join(f"{log.name}:\n{log.read_text()[-2_000:]}" for log in sorted(folder.glob("*.log")))
    said = out.split(f"{END}\n")
    assert code == 0, f"stopped in\n{steps[len(said) - 1].commands}\n{out}\n{err}\n{logs}"

    for step, output in zip(steps, said[:-1], strict=True):
        if step.shown is not None:
            assert agrees(step.shown, output), f"{step.commands}\nsaid\n{output}\n{err}\n{logs}"
    used = [name for name in files if any(f"python {name}" in step.commands for step in steps)]
    assert used == list(files)


def test_an_output_that_differs_is_noticed() -> None:
    assert agrees("… is SERVING\n", "localhost:7780 is SERVING\n")
    assert agrees("a  b\n", "a      b\n")
    assert not agrees("a b\n", "a c\n")
    assert not agrees("a\n", "a\nb\n")
