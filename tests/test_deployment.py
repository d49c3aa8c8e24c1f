"""Where the app is run: a Space, a container, another user, a machine with faults."""

import asyncio
import contextlib
import json
import os
import re
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
import yaml
from packaging.requirements import Requirement

from mediffuse.ui.store import KEEP
from tests import tiny
from tests.conftest import ROOT
from tests.serving import in_a_loop
from tools.load import SCAN, App, Failed, Outcomes, Visitor, many, slice_values, started


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tiny.save_all(tmp_path_factory.mktemp("deployed"))


def readme_commands() -> list[str]:
    """The first shell block of the README, command by command."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1].strip().split(" && ")


@pytest.fixture
def environment(checkpoints, tmp_path) -> dict[str, str]:
    """Of an app with tiny checkpoints, whose visitors' files lie in a folder of the test's."""
    own = {"MEDIFFUSE_CHECKPOINTS": str(checkpoints), "GRADIO_TEMP_DIR": str(tmp_path / "files")}
    return {**tiny.cpu_environment(), **own}


async def translated(app: App, headers: dict[str, str] | None = None) -> list:
    """A slice of the example, as a visitor of the app gets it."""
    async with Visitor(app.address, app.functions) as one:
        one.http.headers.update(headers or {})
        return await one.run("ct_to_mri", slice_values(await one.upload(SCAN)))


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


def test_without_the_spaces_package(environment):
    async def run():
        async with started(environment, command=(sys.executable, "-c", _NO_SPACES)) as app:
            assert "Done in" in str(await translated(app))

    in_a_loop(run())


class Lender(BaseHTTPRequestHandler):
    """The service from which ZeroGPU gets its GPUs. asked: what it was asked for so far; workers: the processes that
    have used one; has: its answer."""

    asked: ClassVar[list[str]] = []
    workers: ClassVar[list[int]] = []
    has = "a GPU"

    def do_POST(self) -> None:
        path, query = urlsplit(self.path)[2:4]
        self.asked.append(path)
        self.workers.extend(map(int, parse_qs(query).get("pid", [])))
        gpu = {"idle": False, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "token"}
        status, kind, body = 200, "application/json", json.dumps(gpu if path == "/schedule" else {})
        if path == "/schedule" and self.has == "none":
            status = 503
        if path == "/schedule" and self.has == "a queue":
            kind, body = "text/event-stream", "event: failed\n\n"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


def test_on_zero_gpu(environment):
    async def run():
        async with started({**environment, **zero}, command=(sys.executable, "tests/zero_gpu.py")) as app:
            assert Lender.asked == ["/startup-report"]
            assert "Done in" in str(await translated(app))
            assert Lender.asked[1:] == ["/schedule", "/allow", "/release"]
            del Lender.asked[:]
            async with Visitor(app.address, app.functions) as one:
                values = slice_values(await one.upload(SCAN), speed="diffusion", steps=100, start="noise")
                event = await one.join("ct_to_mri", values)
                async with contextlib.aclosing(one.messages()) as messages:
                    async for message in messages:
                        if message["msg"] == "process_generating" and " of 100" in json.dumps(message["output"]):
                            break
                await one.cancel("ct_to_mri", event)
                for _ in range(300):
                    await asyncio.sleep(0.1 if Lender.asked[-1] != "/release" else 0)
            assert Lender.asked == ["/schedule", "/allow", "/release"]
            assert set(Lender.workers) <= {child.pid for child in psutil.Process(app.process.pid).children()}
            Lender.has = "none"
            with pytest.raises(Failed, match="No GPU was available"):
                await translated(app)
            Lender.has = "a queue"
            with pytest.raises(Failed) as failed:
                await translated(app, {"x-ip-token": "a.e30.c"})  # of a visitor whom the hub knows
            assert str(failed.value) == (
                "No GPU was available after 60s Create a free account (https://huggingface.co/join) to get a higher "
                "priority in ZeroGPU queues."
            )

    with ThreadingHTTPServer(("127.0.0.1", 0), Lender) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        zero = {
            "SPACES_ZERO_GPU": "true",
            "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{service.server_port}",
            "PYTHONPATH": str(ROOT),
        }
        try:
            in_a_loop(run())
        finally:
            service.shutdown()
    assert len(Lender.workers) == 2
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in Lender.workers)


STRANGER = 12345
"""A user that the system does not know."""


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root may run it as another user")
@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv of util-linux is needed")
def test_for_a_user_without_a_home_whose_checkout_is_read_only(environment, tmp_path):
    environment.pop("HOME", None)
    (tmp_path / "files").mkdir()
    os.chown(tmp_path / "files", STRANGER, STRANGER)
    # It may read what is root's, as Python may be here, and write nothing of it.
    reads = "-all,+dac_read_search"
    as_user = ("setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups", "--no-new-privs")
    as_user += (f"--inh-caps={reads}", f"--ambient-caps={reads}")
    if subprocess.run([*as_user, "true"], check=False, capture_output=True).returncode:
        pytest.skip("root may not give the right to read here")
    assert subprocess.run([*as_user, "touch", "x"], cwd=ROOT, check=False, capture_output=True).returncode

    async def run():
        async with started(environment, command=(*as_user, sys.executable, "app.py")) as app:
            assert "Done in" in str(await translated(app))
            assert {path.stat().st_uid for path in app.files()} == {STRANGER}

    in_a_loop(run())


@pytest.fixture
def disk(environment, tmp_path):
    """Changes the room that the app has for files: to bytes, or None for what is taken; None where it may not."""
    folder = Path(environment["GRADIO_TEMP_DIR"])
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "none", folder]
    if subprocess.run(mount, check=False, capture_output=True).returncode:  # it is for root
        yield None
        return

    def resize(size: int | None) -> None:
        taken = os.statvfs(folder)
        taken = (taken.f_blocks - taken.f_bfree) * taken.f_frsize
        subprocess.run(["mount", "-o", f"remount,size={size or taken}", folder], check=True)

    yield resize
    subprocess.run(["umount", "--lazy", folder], check=True)


ROOM = 1 << 30


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a disk, and limits another process's files")
def test_a_full_disk_is_said_and_passes(environment, disk):
    def largest(size: int) -> None:
        resource.prlimit(process[0].pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    process = []
    ways = [(largest, 10_000, resource.RLIM_INFINITY), *([(disk, None, ROOM)] if disk else [])]

    async def run():
        async with started(environment) as app, Visitor(app.address, app.functions) as one:
            process.append(app.process)
            scan = await one.upload(SCAN)
            for way, little, much in ways:
                way(little)
                with pytest.raises(Failed, match="disk is full"):
                    await one.upload(SCAN, "other.nii.gz")
                with pytest.raises(Failed, match="disk is full"):
                    await one.run("ct_to_mri", slice_values(scan))
                way(much)
                assert not [path for path in app.files() if path.name.startswith("other")]
                assert "Done in" in str(await one.run("ct_to_mri", slice_values(scan)))

    in_a_loop(run())


def test_what_a_killed_app_had_is_not_served_by_the_next(environment):
    async def before() -> tuple[dict, str]:
        async with started(environment) as app, Visitor(app.address, app.functions) as one:
            scan = await one.upload(SCAN)
            made = json.dumps(await one.run("ct_to_mri", slice_values(scan)))
            result = re.search(r'"path": "([^"]+\.nii\.gz)"', made)[1]
            assert (await one.http.get(f"/gradio_api/file={result}")).status_code == 200
            app.process.kill()
            app.process.wait()
            assert {Path(scan["path"]), Path(result)} <= set(app.files())
            return scan, result

    async def after(scan: dict, result: str) -> None:
        async with started(environment) as app, Visitor(app.address, app.functions) as one:
            for path in (scan["path"], result):
                assert not Path(path).exists()
                assert (await one.http.get(f"/gradio_api/file={path}")).status_code in (403, 404)
            with pytest.raises(Failed):
                await one.run("ct_to_mri", slice_values(scan))
            processes = [path for path in app.folder.iterdir() if path.name.startswith("process-")]
            assert len(processes) == 1
            assert not any(path.suffix == ".gz" for path in app.files())

    in_a_loop(after(*in_a_loop(before())))


def test_of_many_visitors_each_gets_a_result_or_is_told_why(environment):
    async def run():
        outcomes = Outcomes()
        async with started({**environment, KEEP: "0.2"}) as app:
            await many(app, 6, 20, outcomes)
            assert not outcomes.unexpected
            assert outcomes.counts["refused"] == 1
            assert outcomes.counts["results"] + outcomes.counts["busy"] == 19
            assert app.files()
            end = time.monotonic() + 60
            while app.files() and time.monotonic() < end:
                await asyncio.sleep(0.2)
            assert not app.files()

    in_a_loop(run())


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
