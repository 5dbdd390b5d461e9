"""The tools for agents, asked by the protocol's own client: they say what the pages say, refuse in one line, and write nothing."""

import json
import sys

import pytest
from mcp import Client, StdioServerParameters, stdio_client

from seedscope.app.agents import make_server
from seedscope.app.settings import Settings
from support.coroutines import run_apart
from support.studies import ENSEMBLE, STUDY

TOOLS = {"studies", "ensemble", "search", "feature", "counterparts", "compare", "project", "try_text", "spans"}
PLACE = {"study": STUDY, "ensemble": ENSEMBLE}


async def told(client: Client, tool: str, **arguments) -> dict:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content[0].text
    assert json.loads(result.content[0].text) == result.structured_content
    return result.structured_content


async def refused(client: Client, tool: str, **arguments) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    return result.content[0].text


@pytest.fixture(scope="module")
def answers(study_root, client):
    """What an agent hears in one session, and what the pages say."""
    page = client.get(f"/s/{STUDY}/{ENSEMBLE}/0/3.json").json()

    async def session() -> dict:
        async with Client(make_server(Settings(study_root))) as agent:
            listed = await agent.list_tools()
            return {
                "tools": listed.tools,
                "studies": await told(agent, "studies"),
                "ensemble": await told(agent, "ensemble", **PLACE),
                "search": await told(agent, "search", **PLACE, bucket="stable", sort="density", limit=3),
                "feature": await told(agent, "feature", **PLACE, seed=0, feature=3, contexts=2),
                "counterparts": await told(agent, "counterparts", **PLACE, seed=0, feature=3),
                "compare": await told(agent, "compare", a=f"{STUDY}/{ENSEMBLE}/0/3", b=f"{STUDY}/{ENSEMBLE}/1/4"),
                "project": await told(agent, "project", **PLACE, seed=0, feature=3),
                "try_text": await told(agent, "try_text", **PLACE, text="import os"),
                "no study": await refused(agent, "ensemble", study="none", ensemble=ENSEMBLE),
                "no feature": await refused(agent, "feature", **PLACE, seed=0, feature=99999),
                "slash": await refused(agent, "ensemble", study=f"{STUDY}/x", ensemble=ENSEMBLE),
            }

    return run_apart(session()), page


def test_every_tool_is_described_and_reads_alone(answers):
    tools = {tool.name: tool for tool in answers[0]["tools"]}
    assert set(tools) == TOOLS
    for tool in tools.values():
        assert tool.description
        assert tool.annotations.read_only_hint is True
        for name, given in tool.input_schema.get("properties", {}).items():
            assert name in ("study", "ensemble", "seed", "feature") or given.get("type") or given.get("anyOf")


def test_tools_say_what_the_pages_say(answers, client):
    heard, page = answers
    assert heard["feature"]["contexts"] == page["contexts"][:2]
    left_out = {"matches", "histogram", "histogram_edges", "contexts"}
    assert {name: heard["feature"][name] for name in set(page) - left_out} == {
        name: page[name] for name in set(page) - left_out
    }
    assert heard["counterparts"]["matches"] == page["matches"]
    pinned = client.get(heard["feature"]["permalink"])
    assert pinned.status_code == 200
    (study,) = heard["studies"]["studies"]
    assert study["study"] == STUDY
    listed = {each["ensemble"]: each for each in study["ensembles"]}[ENSEMBLE]
    rows = client.get(f"/s/{STUDY}/{ENSEMBLE}/features/page.json?bucket=stable&sort=density&dir=desc&limit=3").json()
    assert heard["search"] == rows
    living = sum(
        client.get(f"/s/{STUDY}/{ENSEMBLE}/features/page.json?bucket={bucket}&limit=1").json()["total"]
        for bucket in listed["shares_of_living"]
    )
    assert listed["shares_of_living"]["stable"] == pytest.approx(rows["total"] / living)
    assert heard["compare"]["pair"] is not None
    assert heard["try_text"]["tokens"] == ["import", " os"]
    assert len(heard["project"]["seeds"]) == listed["n_members"] - 1
    assert not [name for name in heard["ensemble"] if name.startswith(("figure", "nav_"))]


def test_what_is_not_there_is_refused_in_one_line(answers):
    heard, _ = answers
    assert "none" in heard["no study"]
    assert "99999" in heard["no feature"]
    assert "without a slash" in heard["slash"]
    assert all("\n" not in heard[name].strip() for name in ("no study", "no feature", "slash"))


def test_the_command_speaks_over_standard_input_and_output(study_root):
    command = ["-m", "seedscope.app.cli", "mcp", "--root", str(study_root)]

    async def session() -> dict:
        async with Client(stdio_client(StdioServerParameters(command=sys.executable, args=command))) as agent:
            return await told(agent, "studies")

    assert [each["study"] for each in run_apart(session())["studies"]] == [STUDY]
