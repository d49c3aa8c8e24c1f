"""What scripts and agents are told of the endpoints, and what they get."""

import gradio as gr
import pytest
from gradio_client import Client, handle_file

from mediffuse.ui import controls
from tests import serving


@pytest.fixture
def endpoints(served) -> dict:
    return served.get_api_info()["named_endpoints"]


def test_every_endpoint_and_parameter_is_described(endpoints):
    assert {"/ct_to_mri", "/contours_to_mri", "/mri_to_ct", "/volume", "/contours_preview"} <= set(endpoints)
    assert len({each["description"] for name, each in endpoints.items() if not name.endswith("_stop")}) == sum(
        not name.endswith("_stop") for name in endpoints
    )
    for name, endpoint in endpoints.items():
        assert endpoint["description"], name
        assert not [output["label"] for output in endpoint["returns"] if output["label"].startswith("value_")], name
        for parameter in endpoint["parameters"]:
            assert parameter["type"]["description"], (name, parameter)


def test_all_but_the_scan_can_be_left_out(endpoints):
    for name, endpoint in endpoints.items():
        needed = [each["parameter_name"] for each in endpoint["parameters"] if not each["parameter_has_default"]]
        assert needed in ([], ["scan"], ["paths"], ["files"]), name


def test_a_script_gets_values_and_words(served, ct_path, mr_path):
    client = Client(served.local_url, verbose=False)
    said, layers, _, files, scores = client.predict(paths=[handle_file(ct_path)], api_name="/volume")
    assert said.startswith("Done: 20 slices")
    assert len(layers) == 2
    assert files[0].endswith("head_ct_synthetic_MRI.nii.gz")
    assert not scores["data"]
    picture, notes = client.predict(scan=handle_file(mr_path), api_name="/ct_to_mri_preview")
    assert picture.endswith(".png")
    assert "looks like an MRI" in notes
    assert "<" not in notes


def test_a_slice_may_lie_beyond_those_of_the_example():
    with gr.Blocks():
        slider = controls.slice_slider(minimum=0, maximum=19, value=10)
    assert [slider.preprocess(index) for index in (-1, 3, 250)] == [-1, 3, 250]


def test_mcp_serves_the_endpoints_as_tools(checkpoints, monkeypatch):
    mcp = pytest.importorskip("mcp", reason="gradio[mcp], of requirements-dev.txt, is not installed")
    from mcp.client.streamable_http import streamablehttp_client

    async def tools(address: str) -> dict:
        async with streamablehttp_client(address) as (read, write, _), mcp.ClientSession(read, write) as session:
            await session.initialize()
            return {tool.name: tool for tool in (await session.list_tools()).tools}

    monkeypatch.setenv("GRADIO_MCP_SERVER", "True")
    with serving.served(checkpoints) as demo:
        found = serving.in_a_loop(tools(f"{demo.local_url}gradio_api/mcp/"))
        named = {name.strip("/") for name in demo.get_api_info()["named_endpoints"]}
    assert set(found) == named
    scan = found["ct_to_mri"].inputSchema["properties"]["scan"]
    assert "NIfTI" in scan["description"]
    assert found["mri_to_ct"].description.startswith("Translate a slice of a head MRI to a synthetic CT")
