"""The examples of docs/extending.md, put into a copy of the tree as the page says, and run together."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deploy.environment import process_environment
from steelyard import bundle

ROOT = Path(__file__).parents[2]
PACKAGES = ("client", "deploy", "protos", "scripts", "server", "steelyard")
FIRST_UPDATE = "recordings/round-0001/client-00.safetensors"
EXPERIMENT = """
name = "extended"
rounds = 2
data = { dataset = "stripes", partition = "in_turn", samples_per_client = 40, validation = 100, test = 100 }
model = { name = "perceptron" }
clients = { count = 2 }
attack = { name = "louder", factor = 4 }
defence = { name = "longest_out", f = 1 }
evaluators = [
    { name = "alone", kind = "alone", utility = "loss", unit = 0.5 },
    { name = "loo", kind = "loo", utility = "loss" },
    { name = "fedsv", kind = "fedsv", utility = "loss" },
]
transport = { tensors = "memory" }
"""


def install(tree: Path, place: str, code: str) -> None:
    """Write a new file; into one that is there bring the imports, the dict's line, or the new form of a field."""
    path = tree / place
    if not path.exists():
        path.write_text(code, encoding="utf-8")
        return
    text, name = path.read_text(encoding="utf-8"), ""
    for line in filter(None, code.splitlines()):
        if line.endswith(" = {"):
            name = line.removesuffix(" = {")
        elif line.startswith("from "):
            text = put(text, "from __future__ import annotations", line)
        elif line.startswith('    "'):
            text = put(text, rf"{name}: dict[^}}]*(?=\n}})", line)  # at the dict's end
        elif line != "}":
            text = put(text, rf"{line.partition(':')[0]}: .*", line, keep=False)
    path.write_text(text, encoding="utf-8")


def put(text: str, where: str, line: str, *, keep: bool = True) -> str:
    """The text with a line behind, or in place of, the lines that a pattern matches."""
    text, found = re.subn(f"^{where}$", lambda lines: f"{lines[0]}\n{line}" if keep else line, text, flags=re.M)
    assert found == 1, (where, line)
    return text


def run(tree: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The experiment, by the tree's own command."""
    command = [sys.executable, "-m", "scripts.main", "run", "extended.toml", "--launcher", "inline", *words]
    return subprocess.run(
        command, cwd=tree, env=process_environment(), capture_output=True, text=True, timeout=100, check=False
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with everything of the page in it."""
    folder = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", page, re.S)
    assert len(blocks) == page.count("```python") == 13
    for place, code in blocks:
        install(folder, place, code)
    (folder / "extended.toml").write_text(EXPERIMENT, encoding="utf-8")
    return folder


def test_the_examples_of_the_page_run_together(tree: Path) -> None:
    done = run(tree)
    assert (done.returncode, done.stderr) == (0, "")
    folder = next((tree / "runs").glob("extended-*"))
    shards = [bundle.read_arrays(folder / "roles" / f"client-{k}" / "data.safetensors")["labels"] for k in (0, 1)]
    assert sorted(labels.tolist() for labels in shards) == [[0] * 40, [1] * 40]

    sent, honest = (
        np.concatenate([array.ravel() for array in bundle.read_arrays(path / FIRST_UPDATE).values()])
        for path in (folder, folder / "honest")
    )
    assert len(sent) == (12 * 12 + 1) * 32 + (32 + 1) * 2
    assert np.array_equal(sent, 4 * honest)

    rounds = rows(folder / "metrics.csv")
    assert [row["weights"] for row in rounds] == ["0:0.0:0.5 1:1.0:0.5"] * 2
    for number in ("1", "2"):
        for client in ("0", "1"):
            value = {
                row["evaluator"]: float(row["value"])
                for row in rows(folder / "scores.csv")
                if (row["round"], row["client"]) == (number, client)
            }
            assert value["fedsv"] == pytest.approx((value["alone"] / 2 + value["loo"]) / 2)  # true of any two players

    with (tree / "client" / "attacks" / "louder.py").open("a", encoding="utf-8") as file:
        file.write("# edited\n")
    again = run(tree)
    assert (again.returncode, again.stderr) == (0, "")
    assert "is DONE already, but of other source code" in again.stdout

    text = (tree / "client" / "attacks" / "louder.py").read_text(encoding="utf-8")
    (tree / "client" / "attacks" / "louder.py").write_text(text.replace("*= self", "*= self.none"), encoding="utf-8")
    broken = run(tree, "--out", "broken")
    (trace,) = (tree / "broken").glob("extended-*/inline.txt")
    assert (broken.returncode, broken.stderr.count("\n")) == (1, 1)
    assert broken.stderr.startswith("steelyard: a bug: AttributeError: 'Louder' object has no attribute 'none' (")
    assert broken.stderr.endswith(f"; the trace is in {trace.relative_to(tree)}\n")
    assert "in update\n" in trace.read_text(encoding="utf-8")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
