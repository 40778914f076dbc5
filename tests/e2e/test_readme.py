"""Every code block of the README runs as it stands, on tiny models under the names it uses."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WARM, READER = ROOT / "tests/e2e/warm_start.py", ROOT / "tests/e2e/readme_reader.py"


@pytest.fixture
def folder(tmp_path: Path, tiny_policy: Path, tiny_reward: Path) -> Path:
    quickstart = tmp_path / "runs/quickstart"
    quickstart.mkdir(parents=True)
    (quickstart / "sft").symlink_to(tiny_policy)
    (quickstart / "reward").symlink_to(tiny_reward)
    prompts = [f'{{"prompt": "the film number {n} is"}}\n' for n in range(40)]
    (tmp_path / "prompts.jsonl").write_text("".join(prompts))
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_readme_does_what_it_says(folder: Path):
    done = subprocess.run(
        # an end by SIGINT takes the servers along
        ["timeout", "--signal=INT", "--kill-after=10", "260", sys.executable, WARM, READER, folder],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "runs/my-run/policy/model.safetensors").is_file()
    assert (folder / "runs/my-run/report.html").is_file()


def test_every_path_it_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
