"""Many visitors at once: start the real app, let them in, and print what became of them.

    python tools/load.py --clients 32 --requests 500
    python tools/load.py --checkpoints DIR --clients 8 --requests 50

Ends with exit code 1 where something is not as README.md, "Security and privacy", says. Needs Linux (/proc).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse.ui.asked import AskedSlice, AskedVolume

ROOT = Path(__file__).resolve().parents[1]
SCAN = ROOT / "assets" / "examples" / "head_ct.nii.gz"
API = "/gradio_api"
PATIENCE = 600
"""Seconds after which a request counts as hanging."""
MOST_STOP, MOST_BESIDE = 5.0, 30.0
"""Seconds that a cancelled run may go on, and that a slice may wait for a volume."""
MOST_GROWTH = 100
"""MiB that memory may grow by in the second half of the requests."""


class Busy(Exception):
    """The server said that too many wait."""


class Failed(Exception):
    """The server said what is wrong."""


@dataclass
class App:
    """The app in a process of its own. folder: where it keeps visitors' files."""

    process: subprocess.Popen
    address: str
    folder: Path
    functions: dict[str, int] = field(default_factory=dict)

    def memory(self) -> float:
        """MiB of the process, without those that read files."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024

    def cpu_seconds(self) -> float:
        """Processor time that the process took so far."""
        ticks = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def files(self) -> list[Path]:
        # Unlike `rglob`, this does not mind what is deleted meanwhile.
        return [Path(place) / name for place, _, names in os.walk(self.folder) for name in names]

    async def idle_after(self, limit: float = 60) -> float:
        """Seconds until it computes no more."""
        started = time.monotonic()
        while time.monotonic() - started < limit:
            before, at = self.cpu_seconds(), time.monotonic()
            await asyncio.sleep(0.25)
            if self.cpu_seconds() - before < 0.1:
                return at - started
        return limit


@asynccontextmanager
async def started(
    environment: dict[str, str], log: Path = Path(os.devnull), command: Sequence[str] = (sys.executable, "app.py")
) -> AsyncIterator[App]:
    """The app on a free port, ready; it is ended by SIGTERM.

    environment: with GRADIO_TEMP_DIR, where it keeps visitors' files. command: what starts it, at the root of the
    repository. Raises RuntimeError if it ends, or does not answer.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**environment, "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
        app = App(process, f"http://127.0.0.1:{port}", Path(environment["GRADIO_TEMP_DIR"]))
        try:
            app.functions = await _functions(app)
            yield app
        finally:
            process.terminate()
            process.wait(30)


async def _functions(app: App) -> dict[str, int]:
    """Numbers of the app's actions by name, once it answers."""
    async with httpx.AsyncClient() as http:
        for _ in range(1800):
            if app.process.poll() is not None:
                raise RuntimeError("The app ended at its start; its log says why.")
            try:
                config = (await http.get(f"{app.address}/config")).json()
            except httpx.TransportError:
                await asyncio.sleep(0.1)
                continue
            return {each["api_name"]: each["id"] for each in config["dependencies"] if each["api_name"]}
    raise RuntimeError("The app does not answer.")


class Visitor:
    """One session of the app, as an open page has it."""

    def __init__(self, address: str, functions: dict[str, int], session: str | None = None) -> None:
        self.functions, self.session = functions, session or secrets.token_hex(8)
        self.http = httpx.AsyncClient(base_url=address, timeout=httpx.Timeout(30, read=PATIENCE))

    async def __aenter__(self) -> Visitor:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.http.aclose()

    async def upload(self, path: Path, name: str | None = None) -> dict:
        """Upload a file; what stands for it among an action's values. Raises Failed."""
        reply = await self.http.post(f"{API}/upload", files={"files": (name or path.name, path.read_bytes())})
        if reply.status_code != 200:
            raise Failed(reply.text)
        return {"path": reply.json()[0], "orig_name": name or path.name, "meta": {"_type": "gradio.FileData"}}

    async def join(self, action: str, values: list) -> str:
        """Start an action; its event's id. Raises Busy or Failed."""
        asked = {"data": values, "fn_index": self.functions[action], "session_hash": self.session}
        reply = await self.http.post(f"{API}/queue/join", json=asked)
        if reply.status_code != 200:
            said = reply.json().get("detail")
            raise (Busy if reply.status_code == 503 else Failed)(said)
        return reply.json()["event_id"]

    async def messages(self) -> AsyncIterator[dict]:
        """What the server says of this session's events, until all are over."""
        async with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": self.session}) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    if message["msg"] == "close_stream":
                        return
                    yield message

    async def run(self, action: str, values: list) -> list:
        """The outputs of an action. Raises Busy or Failed."""
        event = await self.join(action, values)
        async for message in self.messages():
            if message["msg"] == "process_completed" and message["event_id"] == event:
                if not message["success"]:
                    raise Failed(message["output"].get("error"))
                return message["output"]["data"]
        raise Failed("The stream ended without a result.")

    async def cancel(self, action: str, event: str) -> None:
        """What the page's Stop does."""
        number = self.functions[action]
        await self.http.post(f"{API}/run/{action}_stop", json={"data": [], "session_hash": self.session})
        await self.http.post(
            f"{API}/cancel", json={"session_hash": self.session, "fn_index": number, "event_id": event}
        )


def slice_values(scan: dict, **changed) -> list:
    """The values of /ct_to_mri."""
    return list({**asdict(AskedSlice()), "scan": scan, **changed}.values())


def volume_values(scan: dict, **changed) -> list:
    """The values of /volume."""
    values = {**asdict(AskedVolume()), "paths": [scan], **changed}
    return list({**values, "planes": list(values["planes"])}.values())


HEAVY = {"speed": "diffusion", "start": "noise", "steps": 12, "samples": 8}
"""A volume of which one slice takes seconds."""


def kind_of(number: int) -> tuple[str, dict]:
    """What the request of a number asks for: mostly quick slices, some of the rest, and some nonsense."""
    if number % 25 == 12:
        return "volume", {}
    if number % 10 == 3:
        return "ct_to_mri", {"speed": "diffusion", "steps": 3, "index": number % 20}
    if number % 20 == 5:
        return "ct_to_mri", {"steps": 10**6}
    return "ct_to_mri", {"index": number % 20}


@dataclass
class Outcomes:
    """What became of requests. waits: seconds until each result."""

    counts: Counter = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    async def note(self, visitor: Visitor, action: str, values: list, *, nonsense: bool = False) -> None:
        begun = time.monotonic()
        try:
            outputs = await asyncio.wait_for(visitor.run(action, values), PATIENCE)
            if nonsense or "Done" not in str(outputs):
                self.unexpected.append(f"{action}: {str(outputs)[:80]}")
            self.counts["results"] += 1
            self.waits.append(time.monotonic() - begun)
        except Busy:
            self.counts["busy"] += 1
        except Failed as error:
            self.counts["refused" if nonsense else "errors"] += 1
            if not nonsense:
                self.unexpected.append(f"{action}: {error}")
        except TimeoutError:
            self.counts["hanging"] += 1


async def many(app: App, clients: int, requests: int, outcomes: Outcomes) -> list[float]:
    """All the requests, by so many visitors; memory in MiB at the start, in the middle and at the end."""
    numbers = iter(range(requests))
    memory = [app.memory()]

    async def visit() -> None:
        for number in numbers:
            if number == requests // 2:
                memory.append(app.memory())
            # A new session each time, as a visitor who reloads: memory must not grow with sessions either.
            async with Visitor(app.address, app.functions) as visitor:
                action, changed = kind_of(number)
                values = volume_values if action == "volume" else slice_values
                scan = await visitor.upload(SCAN)
                await outcomes.note(visitor, action, values(scan, **changed), nonsense=changed.get("steps", 0) > 100)

    await asyncio.gather(*(visit() for _ in range(clients)))
    return [*memory, app.memory()]


async def burst(app: App, count: int, outcomes: Outcomes) -> None:
    """More requests at the same moment than may wait."""

    async def one() -> None:
        async with Visitor(app.address, app.functions) as visitor:
            await outcomes.note(visitor, "ct_to_mri", slice_values(await visitor.upload(SCAN)))

    await asyncio.gather(*(one() for _ in range(count)))


async def _until_it_runs(visitor: Visitor) -> None:
    async for message in visitor.messages():
        if message["msg"] == "process_generating" and "slices" in json.dumps(message["output"]):
            return


async def stopping(app: App, leave: bool) -> float:
    """Seconds that a volume goes on to compute after Stop, or after its visitor has left."""
    async with Visitor(app.address, app.functions) as visitor:
        event = await visitor.join("volume", volume_values(await visitor.upload(SCAN), **HEAVY))
        await asyncio.wait_for(_until_it_runs(visitor), PATIENCE)  # and close the stream
        if not leave:
            await visitor.cancel("volume", event)
    return await app.idle_after()


async def beside(app: App, count: int) -> list[float]:
    """Seconds that quick slices wait while a volume of another visitor runs."""
    waits = []
    async with Visitor(app.address, app.functions) as heavy, Visitor(app.address, app.functions) as quick:
        event = await heavy.join("volume", volume_values(await heavy.upload(SCAN), **HEAVY))
        reading = asyncio.create_task(_read(heavy))
        await asyncio.sleep(1)
        scan = await quick.upload(SCAN)
        for _ in range(count):
            begun = time.monotonic()
            await quick.run("ct_to_mri", slice_values(scan))
            waits.append(time.monotonic() - begun)
        await heavy.cancel("volume", event)
        await reading
    return waits


async def _read(visitor: Visitor) -> None:
    async for _ in visitor.messages():
        pass


async def measure(app: App, clients: int, requests: int, keep: float) -> tuple[dict[str, str], list[str]]:
    """(rows of the table, violations). keep: minutes that the app keeps files."""
    async with Visitor(app.address, app.functions) as first:  # loads the checkpoints
        await first.run("ct_to_mri", slice_values(await first.upload(SCAN)))
    outcomes, crowd = Outcomes(), Outcomes()
    memory = await many(app, clients, requests, outcomes)
    await burst(app, 48, crowd)
    stops = {"Stop": await stopping(app, leave=False), "leaving": await stopping(app, leave=True)}
    waits = await beside(app, 3)
    await asyncio.sleep(keep * 60 * 1.2 + 5)
    left = app.files()
    app.process.terminate()
    app.process.wait(30)
    after = app.files()

    def told(counts: Counter) -> str:
        return ", ".join(f"{counts[name]} {name}" for name in ("results", "busy", "refused", "errors", "hanging"))

    rows = {
        f"{requests} requests by {clients} visitors": told(outcomes.counts),
        "median wait for a result": f"{statistics.median(outcomes.waits):.1f} s",
        "longest wait for a result": f"{max(outcomes.waits):.1f} s",
        "memory at the start, in the middle, at the end": ", ".join(f"{mib:.0f} MiB" for mib in memory),
        "48 requests at one moment": told(crowd.counts),
        **{f"a volume goes on after {how}": f"{seconds:.1f} s" for how, seconds in stops.items()},
        "a slice beside a volume waits at most": f"{max(waits):.1f} s",
        f"files {keep:g} min (and a fifth) after the last use": str(len(left)),
        "files after SIGTERM": str(len(after)),
    }
    checks = {
        "hanging requests": outcomes.counts["hanging"] + crowd.counts["hanging"],
        "unexpected answers": len(outcomes.unexpected + crowd.unexpected),
        "memory grows": memory[2] - memory[1] > MOST_GROWTH,
        "a cancelled volume goes on": max(stops.values()) > MOST_STOP,
        "a slice waits for a volume": max(waits) > MOST_BESIDE,
        "files are left": len(left) + len(after),
    }
    found = [name for name, bad in checks.items() if bad]
    return rows, found + (outcomes.unexpected + crowd.unexpected)[:10]


async def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python tools/load.py", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--clients", type=int, default=32, help="visitors at once")
    parser.add_argument("--requests", type=int, default=500, help="of all of them together")
    parser.add_argument("--checkpoints", help="as MEDIFFUSE_CHECKPOINTS; default: that, or the bundled ones")
    parser.add_argument("--keep", type=float, default=1, help="minutes that the app keeps files")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="file for what the app prints")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        environment = {**os.environ, "GRADIO_TEMP_DIR": folder, "MEDIFFUSE_KEEP_MINUTES": str(args.keep)}
        if args.checkpoints:
            environment["MEDIFFUSE_CHECKPOINTS"] = args.checkpoints
        async with started(environment, args.log) as app:
            rows, violations = await measure(app, args.clients, args.requests, args.keep)
    print("| | |\n| --- | --- |")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    for violation in violations:
        print(f"Not as it should be: {violation}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
