"""Types the README's blocks of code in, one after the other, in the folder that it is given.

    python tests/e2e/readme_reader.py FOLDER

Only ports change, since another process may hold the README's. `make` lines and pictures are not code blocks
of a language, so they are left out.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from free_ports import free_port

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(bash|python|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WAIT_S = 60


def words_of(line: str) -> list[str]:
    """A line as a shell takes it; `python` is this one, as in an activated environment."""
    program, *words = shlex.split(line, comments=True)
    return [sys.executable if program == "python" else program, *words]


class Reader:
    """Someone at a terminal, with servers in the background."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: list[subprocess.Popen[str]] = []
        self.ports: dict[str, str] = {}
        scripts = Path(sys.executable).parent
        self.environment = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"}

    def with_free_ports(self, text: str) -> str:
        return re.sub(r"(?<=127\.0\.0\.1:)\d+", lambda match: self.free_port(match[0]), text)

    def free_port(self, port: str) -> str:
        if port not in self.ports:
            self.ports[port] = str(free_port())
        return self.ports[port]

    def type_in(self, line: str) -> str:
        done = subprocess.run(
            words_of(line), cwd=self.folder, env=self.environment,
            capture_output=True, text=True, timeout=WAIT_S,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def serve(self, line: str) -> None:
        address = re.search(r"--address (\S+)", line)
        assert address
        taken = [server for server in self.servers if address[1] in server.args]
        for server in taken:  # the README starts the reward service twice, in two chapters
            server.send_signal(signal.SIGTERM)
            assert server.wait(WAIT_S) == 0
        server = subprocess.Popen(
            words_of(line), cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, text=True
        )
        self.servers.append(server)
        assert server.stdout
        said = [server.stdout.readline()]
        while said[-1].startswith(("listening on ", "metrics on ")):  # then what was chosen: it is loaded
            said.append(server.stdout.readline())
        assert said[0] == f"listening on {address[1]}\n"
        assert said[-1]

    def read(self, language: str, text: str) -> str:
        text = self.with_free_ports(text)
        if language == "python":
            (self.folder / "block.py").write_text(text)
            return self.type_in("python block.py")
        if language == "toml":
            (self.folder / "my-run.toml").write_text(text)
            return ""
        output = ""
        for line in text.splitlines():
            if line.startswith("python -m services."):
                self.serve(line)
            elif line:
                output += self.type_in(line)
        return output


def main(folder: Path) -> None:
    reader = Reader(folder)
    try:
        blocks = BLOCK.findall((ROOT / "README.md").read_text())
        outputs = [(language, reader.read(language, text)) for language, text in blocks]
        scores = next(output for language, output in outputs if language == "python")
        assert re.fullmatch(r"\[\s*-?\d\S* +-?\d\S*\s*\]\n", scores), scores
        for server in reader.servers:
            server.terminate()
            assert server.wait(WAIT_S) == 0
    finally:
        for server in reader.servers:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
