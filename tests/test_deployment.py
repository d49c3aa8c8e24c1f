"""Where the app is run: a Space, a container, another user, a machine with faults."""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from gradio_client import Client, handle_file
from packaging.requirements import Requirement

from tests import tiny
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tiny.save_all(tmp_path_factory.mktemp("deployed"))


def readme_commands() -> list[str]:
    """The first shell block of the README, command by command."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1].strip().split(" && ")


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def serve(where: Path, code: list[str], environment: dict[str, str]):
    """Start an app and wait for it: (process, address)."""
    port = free_port()
    environment = {**environment, "GRADIO_SERVER_PORT": str(port), "GRADIO_NUM_PORTS": "1"}
    process = subprocess.Popen([sys.executable, *code], cwd=where, env=environment)
    address = f"http://127.0.0.1:{port}"
    for _ in range(600):
        assert process.poll() is None, "the app ended"
        try:
            with urllib.request.urlopen(f"{address}/config", timeout=5):
                return process, address
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the app did not start")


def end(process) -> None:
    process.terminate()
    process.wait(30)


def test_the_space_card_is_what_the_hub_takes():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    card = yaml.safe_load(text.split("---\n")[1])
    assert card["sdk"] == "gradio"
    assert (ROOT / card["app_file"]).is_file()
    assert len(card["short_description"]) <= 60
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {card["colorFrom"], card["colorTo"]} <= colours
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    needed = {r.name: r.specifier for r in map(Requirement, (x for x in lines if x and x[0] != "#"))}
    assert card["sdk_version"] in needed["gradio"]
    assert card["license"] == "mit"
    assert card["python_version"] == "3.11"


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-train.txt", "requirements-dev.txt"])
def test_every_package_is_bounded_on_both_sides(name):
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#-":
            signs = {s.operator for s in Requirement(line.partition(" #")[0]).specifier}
            assert signs in ({"=="}, {">=", "<"}), line


def test_the_dockerfile_runs_the_readmes_commands():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    steps = [line.partition(" ")[::2] for line in text.splitlines() if line and line[0] != "#"]
    install, start = readme_commands()
    runs = [re.sub(r"^([A-Z_]+=\S+ )+", "", words) for step, words in steps if step == "RUN"]
    assert install in runs
    assert [words for step, words in steps if step == "CMD"] == [str(shlex.split(start)).replace("'", '"')]
    names = [step for step, _ in steps]
    assert dict(steps)["USER"] not in ("root", "0")
    assert names.index("USER") < names.index("CMD")
    assert names[0] == "FROM"
    assert "python:3.11" in steps[0][1]
    checked = re.search(r"HEALTHCHECK.* CMD python (\S+)", text)[1]
    assert (ROOT / checked).is_file()
    assert not any(line.startswith("tools") for line in (ROOT / ".dockerignore").read_text().splitlines())


_NO_SPACES = """
import sys
sys.modules["spaces"] = None  # as where it is not installed
import runpy
runpy.run_path("app.py", run_name="__main__")
"""


def test_without_the_spaces_package(checkpoints, ct_path):
    environment = {**tiny.cpu_environment(), "MEDIFFUSE_CHECKPOINTS": str(checkpoints)}
    process, address = serve(ROOT, ["-c", _NO_SPACES], environment)
    try:
        out = Client(address, verbose=False).predict(scan=handle_file(ct_path), truth=None, api_name="/ct_to_mri")
        assert "Done in" in out[-1]
    finally:
        end(process)


def test_a_port_in_use_is_said():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        place.listen()
        environment = {**os.environ, "GRADIO_SERVER_PORT": str(place.getsockname()[1]), "GRADIO_NUM_PORTS": "1"}
        done = subprocess.run(
            [sys.executable, "app.py"],
            cwd=ROOT,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 1
    assert "The port is in use" in done.stderr
    assert "Traceback" not in done.stderr
