"""What the server answers, to whom, and in which words."""

import asyncio
import contextlib
import hashlib
import json
import re

import gradio as gr
import httpx
import pytest
from starlette.middleware import Middleware

from mediffuse.ui import server
from mediffuse.ui.page import command_line, launch_options
from tests.serving import in_a_loop
from tools.load import SCAN, Busy, Failed, slice_values, volume_values

ACTIONS = ("queue/join", "run/ct_to_mri", "api/ct_to_mri", "call/ct_to_mri")


@pytest.fixture(scope="module")
def http(served):
    with httpx.Client(base_url=served.local_url, timeout=30) as client:
        yield client


def number_of(served, name: str) -> int:
    return next(number for number, fn in served.fns.items() if fn.api_name == name)


def private(served) -> gr.blocks.BlockFunction:
    return next(fn for fn in served.fns.values() if fn.api_visibility == "private" and fn.queue and fn.fn)


@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info", "/gradio_api/nothing"])
def test_every_answer_has_the_headers(http, path):
    headers = http.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'self'"
    assert "'unsafe-inline'" not in policy["script-src"]
    assert policy["frame-ancestors"].split() == ["'self'", "https://huggingface.co", "https://*.hf.space"]
    assert not any(re.search(r"https?:|\*", value) for name, value in policy.items() if name != "frame-ancestors")


def test_the_scripts_of_the_page_have_its_nonce(http):
    page = http.get("/")
    nonce = re.search(r"'nonce-([\w-]+)'", page.headers["content-security-policy"]).group(1)
    assert page.text.count("<script") == page.text.count(f'<script nonce="{nonce}"') > 2
    assert nonce not in http.get("/").text
    assert int(page.headers.get("content-length", len(page.content))) == len(page.content)


@pytest.mark.parametrize(
    "path",
    [
        "deep_link?session_hash=a",
        "proxy=https://example.org/",
        "file=https://example.org/",
        "file=http%3A%2F%2Fexample.org",
        "file=/etc/passwd",
        "file=..%2f..%2fetc/passwd",
        "file=app.py",
        "file=assets/checkpoints/ip2p/model_index.json",
        "file/etc/passwd",
        "stream/a/b/1/playlist.m3u8",
        "custom_component/a/client/b/c",
        "dev/reload",
        "runs",
        "token",
    ],
)
def test_what_the_page_does_not_need_is_not_there(http, path):
    for address in (f"/gradio_api/{path}", f"/{path}"):
        reply = http.get(address)
        assert reply.status_code in (403, 404)
        assert "root:" not in reply.text


@pytest.mark.parametrize("path", ["component_server", "process_recording", "stream/a", "vibe-edit/"])
def test_what_the_page_does_not_need_takes_nothing(http, path):
    assert http.post(f"/gradio_api/{path}", json={"data": []}).status_code == 404


def test_only_the_page_reaches_its_private_actions(served, http):
    fn = private(served)
    for asked in ("run", "api", "call", "call/v2"):
        assert http.post(f"/gradio_api/{asked}/{fn.api_name}", json={"data": []}).status_code == 404
    body = {"data": [None] * len(fn.inputs), "fn_index": fn._id, "session_hash": "a-script"}
    for asked in ("queue/join", "run/predict", "run/ct_to_mri_stop", "api/predict"):
        assert http.post(f"/gradio_api/{asked}", json=body).status_code == 404
    elsewhere = {"origin": "https://example.org"}
    assert http.post("/gradio_api/queue/join", json=body, headers=elsewhere).status_code == 404
    own = {"origin": served.local_url.rstrip("/")}
    assert http.post("/gradio_api/queue/join", json=body, headers=own).status_code == 200


def test_nothing_skips_the_queue(served, http):
    body = {"data": slice_values(None), "session_hash": "hasty"}
    number = number_of(served, "ct_to_mri")
    own = {"origin": served.local_url.rstrip("/")}
    for way in ("run", "api"):
        for name, more in (("ct_to_mri", {}), ("predict", {"fn_index": number}), ("x", {"fn_index": number})):
            for headers in ({}, own):
                reply = http.post(f"/gradio_api/{way}/{name}", json={**body, **more}, headers=headers)
                assert reply.status_code == 404


def test_long_and_wild_values_are_refused_without_an_echo(served, http):
    number = number_of(served, "ct_to_mri")
    long = "A" * (10 << 20)
    for path in ACTIONS:
        reply = http.post(f"/gradio_api/{path}", json={"data": [long], "fn_index": number, "session_hash": "s"})
        assert reply.status_code == 413
        assert "MiB" in reply.json()["detail"]
        assert len(reply.content) < 1000
    wild = [
        {"data": ["A" * 10_000], "fn_index": number, "session_hash": "s"},
        {"data": [{"A" * 10_000: 1}], "fn_index": number, "session_hash": "s"},
        {"data": "AAAA", "fn_index": number, "session_hash": "s"},
        {"data": [], "fn_index": "AAAA", "session_hash": "s"},
        {"data": [], "fn_index": number, "session_hash": "A" * 100},
        {"data": [], "fn_index": number, "session_hash": {"A": 1}},
        ["AAAA"],
    ]
    texts = ["{", '{"data": [NaN], "fn_index": 0, "session_hash": "s"}', '{"data": [1e999]}', "[" * 100_000]
    for text in [*map(json.dumps, wild), *texts, '{"data": [' + "9" * 5000 + "]}"]:
        reply = http.post("/gradio_api/queue/join", content=text, headers={"content-type": "application/json"})
        assert reply.status_code == 400, text[:50]
        assert "AAAA" not in reply.text


@pytest.mark.parametrize(
    "changed",
    [
        {"steps": 10**6},
        {"steps": "<img src=x>"},
        {"samples": -1},
        {"seed": 1e300},
        {"guidance": None},
        {"speed": "<img src=x>"},
        {"contrast": ["<img src=x>"]},
        {"view": "<img src=x>"},
        {"start": {"<img src=x>": 1}},
    ],
)
def test_values_out_of_range_get_a_sentence(visitor, changed):
    async def run():
        async with visitor() as one:
            scan = await one.upload(SCAN)
            with pytest.raises(Failed) as refused:
                await one.run("ct_to_mri", slice_values(scan, **changed))
            assert "values do not fit" in str(refused.value)
            assert "<img" not in str(refused.value)

    in_a_loop(run())


def test_files_come_by_upload_only(visitor):
    async def run():
        async with visitor() as one:
            for path, said in (
                ("https://example.org/scan.nii.gz", "not fetched"),
                ("http://127.0.0.1:80/", "not fetched"),
                ("file:///etc/passwd", "not fetched"),
                ("/etc/passwd", "do not fit"),
                (str(SCAN.parents[2] / "app.py"), "do not fit"),
                ("../app.py", "do not fit"),
            ):
                with pytest.raises(Failed) as refused:
                    await one.run("ct_to_mri", slice_values({"path": path, "meta": {"_type": "gradio.FileData"}}))
                assert said in str(refused.value)
                assert "passwd" not in str(refused.value)

    in_a_loop(run())


def test_a_file_that_is_gone_is_said(visitor):
    from pathlib import Path

    async def run():
        async with visitor() as one:
            scan = await one.upload(SCAN, "going.nii.gz")
            Path(scan["path"]).unlink()
            with pytest.raises(Failed, match="not on the server any more"):
                await one.run("ct_to_mri", slice_values(scan))

    in_a_loop(run())


def test_too_much_work_is_refused_with_what_to_lower(visitor):
    async def run():
        async with visitor() as one:
            scan = await one.upload(SCAN)
            with pytest.raises(Failed, match=r"800 steps .* at most 400\. Lower the steps or the samples"):
                await one.run("ct_to_mri", slice_values(scan, speed="diffusion", steps=100, samples=8))
            with pytest.raises(Failed, match=r"Each slice would be 800 steps .* at most 100"):
                await one.run("volume", volume_values(scan, speed="diffusion", steps=100, samples=8))
            many = {"speed": "diffusion", "steps": 12, "samples": 8, "mirror": True}
            with pytest.raises(Failed, match=r"at most 8,000\. Lower the steps, the samples or the planes"):
                await one.run("volume", volume_values(scan, planes=["axial", "coronal", "sagittal"], **many))

    in_a_loop(run())


def test_another_visitor_sees_stops_and_fetches_nothing(served, visitor, tmp_path):
    content = b"nobody else's scan"
    (tmp_path / "own.nii.gz").write_bytes(content)

    async def run():
        async with visitor() as owner, visitor() as other:
            mine = await owner.upload(tmp_path / "own.nii.gz")
            theirs = await other.upload(SCAN, "own.nii.gz")
            # Whoever knows a file's name and content still does not know its address.
            assert hashlib.sha256(content).hexdigest() not in mine["path"]
            for path in (theirs["path"].rpartition("/")[0], mine["path"].rpartition("/")[0]):
                assert (await other.http.get(f"/gradio_api/file={path}")).status_code == 403
            guess = mine["path"].replace(mine["path"].split("/")[-2], hashlib.sha256(content).hexdigest())
            assert (await other.http.get(f"/gradio_api/file={guess}")).status_code == 403
            # A run: the other's Stop, with its own session and with an event it must guess, changes nothing.
            scan = await owner.upload(SCAN)
            event = await owner.join("ct_to_mri", slice_values(scan, speed="diffusion", steps=40, start="noise"))
            stopped = False
            async for message in owner.messages():
                if message["msg"] == "process_generating" and not stopped:
                    await other.cancel("ct_to_mri", "0" * 32)
                    seen = []
                    with contextlib.suppress(httpx.RemoteProtocolError):  # it has no stream
                        seen += [each["msg"] async for each in other.messages()]
                    assert set(seen) <= {"unexpected_error"}
                    stopped = True
                if message["msg"] == "process_completed":
                    assert message["event_id"] == event
                    assert "Done" in str(message["output"])
            assert stopped
            status = await other.http.get("/gradio_api/queue/status")
            assert event not in status.text
            assert owner.session not in status.text

    in_a_loop(run())


def test_many_runs_of_one_visitor_are_refused(visitor):
    async def run():
        async with visitor() as one:
            scan = await one.upload(SCAN)
            events = [
                await one.join("ct_to_mri", slice_values(scan, speed="diffusion", steps=100))
                for _ in range(server.MAX_OF_SESSION)
            ]
            with pytest.raises(Busy, match="runs waiting already"):
                await one.join("ct_to_mri", slice_values(scan))
            for event in events:
                await one.cancel("ct_to_mri", event)

    in_a_loop(run())


@pytest.fixture(scope="module")
def faulty():
    """A page of ours with faults, behind the same middleware."""

    def fail(kind):
        if kind == "unknown":
            raise RuntimeError("/secret/place/Doe^Jane.nii")
        if kind == "full":
            raise OSError(28, "No space left on device", "/secret/place")
        raise gr.Error("Doe<img src=x onerror=alert(1)>.nii is no scan & cannot be read.", print_exception=False)

    with server.Page(analytics_enabled=False) as demo:
        kind, out = gr.Textbox(), gr.Textbox()
        kind.submit(fail, kind, out, api_name="fail")
    options = {**launch_options(), "app_kwargs": {"middleware": [Middleware(server.Guard, reserve=1 << 60)]}}
    demo.queue(max_size=1).launch(prevent_thread_lock=True, quiet=True, **options)
    yield httpx.Client(base_url=demo.local_url, timeout=30)
    demo.close()


@pytest.mark.parametrize(
    ("kind", "said"),
    [("unknown", server.FAULT), ("full", server.FULL), ("ours", "Doe&lt;img src=x onerror=alert(1)&gt;.nii is no")],
)
def test_errors_say_what_they_may(faulty, capfd, kind, said):
    event = faulty.post("/gradio_api/call/fail", json={"data": [kind]}).json()["event_id"]
    answer = faulty.get(f"/gradio_api/call/fail/{event}").text
    assert said in answer
    logged = "".join(capfd.readouterr())
    for text in (answer, logged):
        assert "secret" not in text
        assert "onerror" not in text or "&lt;img" in text


def test_a_full_disk_is_said(faulty):
    reply = faulty.post("/gradio_api/upload", files={"files": ("scan.nii", b"voxels")})
    assert reply.status_code == 507
    assert reply.text == server.FULL


class Slow:
    """Middleware that lets Gradio wait for its own question whether the page answers."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["method"] == "HEAD":
            await asyncio.sleep(4)
        await self.app(scope, receive, send)


def test_a_page_that_takes_long_to_answer_is_served():
    with server.Page(analytics_enabled=False) as demo:
        gr.Textbox()
    options = {**launch_options(), "app_kwargs": {"middleware": [Middleware(Slow)]}}
    demo.launch(prevent_thread_lock=True, quiet=True, **options)
    try:
        assert httpx.get(demo.local_url, timeout=30).status_code == 200
    finally:
        demo.close()


def test_a_login_guards_everything_private(checkpoints):
    with server.Page(analytics_enabled=False) as demo:
        box = gr.Textbox()
        box.submit(lambda text: text, box, box, api_name="say")
    options = command_line(["--auth", "reader:secret"])
    options.pop("server_port")
    demo.launch(prevent_thread_lock=True, quiet=True, **launch_options(), **options)
    try:
        with httpx.Client(base_url=demo.local_url, timeout=30) as client:
            closed = (
                lambda: client.get("/config"),
                lambda: client.get("/gradio_api/info"),
                lambda: client.get("/gradio_api/file=/tmp/x"),
                lambda: client.post("/gradio_api/upload", files={"files": ("scan.nii", b"voxels")}),
                lambda: client.post("/gradio_api/call/say", json={"data": ["hello"]}),
            )
            assert [ask().status_code for ask in closed] == [401] * 5
            assert client.post("/login", data={"username": "reader", "password": "wrong"}).status_code == 400
            assert client.post("/login", data={"username": "reader", "password": "secret"}).status_code == 200
            assert client.get("/config").status_code == 200
            assert client.get("/config", headers={"origin": "https://example.org"}).status_code == 403
    finally:
        demo.close()


def test_the_command_line_and_the_environment_say_how_to_serve(monkeypatch, tmp_path, capsys):
    logins = tmp_path / "logins"
    logins.write_text("reader:secret\n\nwriter:a:colon\n")
    given = command_line(["--host", "0.0.0.0", "--port", "8000", "--share", "--auth", str(logins)])
    pairs = [("reader", "secret"), ("writer", "a:colon")]
    assert given == {"server_name": "0.0.0.0", "server_port": 8000, "share": True, "auth": pairs}
    for name in ("GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "GRADIO_SHARE", "MEDIFFUSE_AUTH"):
        monkeypatch.delenv(name, raising=False)
    assert command_line([]) == {"server_name": "127.0.0.1", "server_port": None, "share": False, "auth": None}
    monkeypatch.setenv("GRADIO_SERVER_PORT", "8001")
    monkeypatch.setenv("MEDIFFUSE_AUTH", "reader:secret")
    assert command_line([])["server_port"] == 8001
    assert command_line([])["auth"] == [("reader", "secret")]
    with pytest.raises(SystemExit):
        command_line(["--auth", "nobody"])
    assert "give user:password" in capsys.readouterr().err
