"""A real Flower run from the built FAB: SuperLink, Ray, two clients, an LLM, and what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from pdss_fl.cli import app as pdss
from pdss_fl.errors import SettingError
from pdss_fl.launcher import run_simulation
from pdss_fl.processes import end, free_port, program
from tests.test_imports import MODULES, PACKAGE, reached_from
from tests.test_run_report import assert_quiet

ROOT = Path(__file__).parent.parent
CANARY = "zanzibarqx4471993"
MARK = """
# Added by the test: the built app leaves a trace that the working tree's code does not.
from pathlib import Path as _Path
_Path({trace!r}).mkdir(exist_ok=True)
(_Path({trace!r}) / __name__).write_text(__file__)
"""


@pytest.fixture(scope="module")
def app_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the app whose server and client code are marked, with private files lying about."""
    copy = tmp_path_factory.mktemp("copy") / "app"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "pdss_fl", copy / "pdss_fl", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("server_app.py", "client_app.py"):
        with open(copy / "pdss_fl" / name, "a") as file:
            file.write(MARK.format(trace=str(copy.parent / "trace")))
    for private in (
        copy / "private.jsonl",
        copy / "pdss_fl" / "private.json",
        copy / "pdss_fl" / "data" / "notes.md",
    ):
        private.write_text(CANARY)
    return copy


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    records = [
        {"question": f"which {CANARY} is it {i}?", "choices": ["time", "people", CANARY], "answer": "people"}
        for i in range(24)
    ]
    path.write_text("\n".join(json.dumps(r) for r in records))
    return path


def small(tiny: Path, data: Path, output: Path) -> list[str]:
    texts = {
        "output-dir": output, "llm.model": tiny, "privacy.embeddings": tiny, "privacy.vocabulary": "english",
        "data.source": "jsonl", "data.path": data,
    }  # fmt: skip
    numbers = {
        "privacy.vocabulary-size": 200, "data.train-examples": 6, "data.test-examples": 4, "slm.hidden-size": 32,
        "slm.layers": 1, "distill.steps": 2, "llm.max-new-tokens": 4,
    }  # fmt: skip
    return [f'{k}="{v}"' for k, v in texts.items()] + [f"{k}={v}" for k, v in numbers.items()]


@pytest.fixture(scope="module")
def finished(app_copy: Path, data: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of one real run, and Flower's own files beside it."""
    work = tmp_path_factory.mktemp("work")
    return run_simulation(app_copy, small(tiny, data, work / "runs"), clients=2, home=work / "flwr")


def test_the_fab_carries_code_only(app_copy: Path, tmp_path: Path) -> None:
    build = subprocess.run(
        [Path(sys.executable).with_name("flwr"), "build", "--app", app_copy],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (fab,) = tmp_path.glob("*.fab")
    assert CANARY not in build.stdout + build.stderr
    with zipfile.ZipFile(fab) as archive:
        names = archive.namelist()
        content = b"".join(archive.read(name) for name in names)
    assert CANARY.encode() not in content
    needed = reached_from("pdss_fl.client_app") | reached_from("pdss_fl.server_app")
    assert {MODULES[m].relative_to(PACKAGE.parent).as_posix() for m in needed & set(MODULES)} <= set(names)
    assert {Path(name).suffix for name in names} <= {".py", ".md", ".toml", ""}
    assert fab.stat().st_size < 1_000_000


def test_the_app_runs_from_the_fab_and_not_from_the_working_tree(finished: Path, app_copy: Path) -> None:
    for module in ("server_app", "client_app"):
        (trace,) = (app_copy.parent / "trace").glob(f"*{module}")
        assert str(finished.parent.parent / "flwr" / "apps") in trace.read_text()


def test_the_runs_own_page_shows_both_clients_and_is_quiet_in_a_browser(finished: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = CliRunner().invoke(pdss, ["report", str(finished), "--output", str(page), "--examples", "1"])
    assert done.exit_code == 0, done.output
    text = page.read_text()
    for said in ("client-0", "client-1", f"which {CANARY} is it", "only for who may see its data"):
        assert said in text
    assert_quiet(page)


def test_the_run_leaves_every_file_that_it_promises(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert set(summary) == {
        "accuracy", "clients", "left-out", "unshared", "fairness", "privacy", "seconds", "llm", "versions"
    }  # fmt: skip
    assert {(row["method"], "code 102" in row["why"]) for row in summary["left-out"]} == {("dss", True)}
    assert set(summary["accuracy"]) == {"untrained", "standalone", "pdss", "dss"}
    for method in ("untrained", "standalone", "pdss"):
        assert set(summary["accuracy"][method]) == {"value", "low", "high", "n"}
        assert summary["accuracy"][method]["n"] == 6
    assert summary["accuracy"]["dss"] is None, "identity is allowed on the built-in data only"
    assert [entry["client"] for entry in summary["clients"]] == [0, 1]
    assert summary["fairness"]["pdss"]["reported"] == 2
    privacy = summary["privacy"]
    assert privacy["mechanism"] == "staircase"
    assert privacy["kind"] == "pure-ldp"
    assert 0 < privacy["kept_tokens"] < 1
    assert privacy["epsilon_per_token"] < privacy["epsilon_per_document"]
    assert summary["llm"]["prompts"] == 12
    assert set(summary["versions"]) >= {"pdss-fl", "flwr", "torch"}
    assert {"perturb", "llm", "distill", "evaluate"} <= set(summary["seconds"])
    assert json.loads((finished / "settings.json").read_text())["privacy.vocabulary-size"] == 200
    assert (finished / "metrics.jsonl").read_text().count("\n") >= 8
    assert json.loads((finished / "privacy.json").read_text())["statements"]["pdss"]
    for client in ("client-0", "client-1"):
        assert (finished / "clients" / client / "slm" / "pdss" / "model.safetensors").is_file()


def test_no_private_text_is_in_anything_that_the_servers_side_wrote(finished: Path) -> None:
    written = [p for p in finished.iterdir() if p.is_file()]
    written += [p for p in (finished.parent.parent / "flwr").rglob("*") if p.is_file()]
    assert any(p.name == "superlink.log" for p in written)
    for path in written:
        assert CANARY.encode() not in path.read_bytes(), path.name


def test_a_saved_small_model_answers_questions_from_the_command_line(finished: Path, data: Path) -> None:
    pdss = [sys.executable, "-m", "pdss_fl.cli", "predict"]
    slm = finished / "clients" / "client-0" / "slm" / "pdss"
    answers = subprocess.run([*pdss, slm, data], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    rows = [json.loads(line) for line in answers.splitlines()]
    assert len(rows) == 24
    assert all(row["prediction"] in ("time", "people", CANARY) for row in rows)


def test_an_unknown_mechanism_ends_the_run_with_one_clear_line(
    app_copy: Path, data: Path, tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides = [*small(tiny, data, tmp_path / "runs"), 'privacy.mechanism="magic"']
    with pytest.raises(SettingError, match="without a result"):
        run_simulation(app_copy, overrides, clients=1, home=tmp_path / "flwr")
    shown = capfd.readouterr().out
    assert "privacy.mechanism" in shown
    assert "magic" in shown
    assert "staircase" in shown


@pytest.fixture
def ray_cluster(tmp_path: Path) -> Iterator[tuple[str, set[int]]]:
    """A Ray cluster of two nodes with one processor each, as ``examples/scale`` starts it: address and raylets."""
    # Ray leaves a note of the last cluster there, which others would look for; paths of its sockets have to be short.
    own = tempfile.mkdtemp(prefix="ray")
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": own}
    port, started = free_port(), []
    for where in (["--head", "--port", str(port)], ["--address", f"127.0.0.1:{port}"]):
        command = [program("ray"), "start", *where, "--num-cpus", "1", "--block", "--disable-usage-stats"]
        log = tmp_path / f"ray{len(started)}.log"
        with open(log, "w") as out:
            started.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
        wait_until(lambda log=log: "--block" in log.read_text())  # type: ignore[misc]
    family = [child for node in started for child in psutil.Process(node.pid).children(recursive=True)]
    yield f"127.0.0.1:{port}", {child.pid for child in family if "raylet" in child.name()}
    for node in reversed(started):
        end(node)
    shutil.rmtree(own, ignore_errors=True)


def wait_until(said: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not said():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_a_simulation_runs_on_all_machines_of_the_ray_cluster_that_it_is_told_of(
    ray_cluster: tuple[str, set[int]], app_copy: Path, data: Path, tiny: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    address, raylets = ray_cluster
    assert len(raylets) == 2
    trace = tmp_path / "trace"
    trace.mkdir()
    app = Path(shutil.copytree(app_copy, tmp_path / "app"))
    with open(app / "pdss_fl" / "client_app.py", "a") as file:
        file.write(f"\nimport os\n(_Path({str(trace)!r}) / str(os.getppid())).touch()\n")
    monkeypatch.setenv("RAY_ADDRESS", address)
    overrides = [*small(tiny, data, tmp_path / "runs"), "methods='standalone'"]
    run = run_simulation(app, overrides, clients=2, home=tmp_path / "flwr")
    assert len(json.loads((run / "summary.json").read_text())["clients"]) == 2
    assert raylets <= {int(path.name) for path in trace.iterdir()}


def test_clients_of_a_real_run_share_the_median_of_their_models(tiny: Path, data: Path, tmp_path: Path) -> None:
    changes = ['methods="standalone"', "num-server-rounds=2", 'sharing.mode="fedmedian"', "min-available-nodes=3"]
    run = run_simulation(ROOT, [*small(tiny, data, tmp_path / "runs"), *changes], clients=3, home=tmp_path / "flwr")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["unshared"] == summary["left-out"] == []
    models = [run / "clients" / f"client-{i}" / "slm" / "standalone" / "model.safetensors" for i in range(3)]
    assert len({model.read_bytes() for model in models}) == 1, "all have the average"
    sent = [path.read_bytes() for path in (run / "clients").glob("*/sent/standalone/2.safetensors")]
    assert len(set(sent)) == 3, "each had trained one of its own"
    assert not (run / "averages").exists()


def test_no_process_is_left_behind(finished: Path) -> None:
    home = str(finished.parent.parent / "flwr")
    for process in psutil.process_iter(["cmdline", "cwd"]):
        assert process.info["cwd"] != home
