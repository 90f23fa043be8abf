"""The README's Python runs as it stands, but for the port."""

import ast
import re
from pathlib import Path

import pytest
from tests.support.processes import Process
from tests.support.served import Served

ROOT = Path(__file__).parent.parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
AGENTS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "agents.md").read_text(), re.DOTALL)


def written(folder: Path, name: str, block: str, target: str) -> str:
    assert "localhost:7780" in block
    path = folder / name
    path.write_text(block.replace("localhost:7780", target))
    return str(path)


@pytest.mark.timeout(90)
@pytest.mark.asyncio
async def test_the_agent_answers_the_question(tmp_path: Path) -> None:
    agent, question = BLOCKS
    async with Served(tmp_path) as server:
        serving = Process([written(tmp_path, "agent.py", agent, server.target)], {}, tmp_path / "agent.log")
        asking = Process([written(tmp_path, "ask.py", question, server.target)], {}, tmp_path / "ask.log")
        try:
            assert await asking.ended() == 0, asking.output()
            assert ast.literal_eval(asking.output()) == {"words": 5, "attempt": 1}
            again = Process([str(tmp_path / "ask.py")], {}, tmp_path / "again.log")
            assert await again.ended() == 0, again.output()
        finally:
            asking.kill()
            serving.kill()


@pytest.mark.parametrize("block", AGENTS)
def test_what_the_page_for_authors_shows_compiles(block: str) -> None:
    ast.parse(block)
