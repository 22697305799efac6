"""``pdss doctor``: what a run will need of this machine, looked at before it is needed.

Every check returns findings; it changes nothing but for a file that it writes and removes to see that it can, and
what `pdss prepare` and every run put into the cache.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from pdss_fl.bundled import BUNDLED_MODEL, bundled_model_path, cache_directory
from pdss_fl.choices import own_settings
from pdss_fl.client_data import node_format
from pdss_fl.config import SCRATCH, RunSettings
from pdss_fl.data.sources import whole_data
from pdss_fl.doctor_checks import (
    FAIL,
    NOTE,
    OK,
    Finding,
    client_needs,
    enough_clients,
    node_socket,
    openai_endpoint,
    reachable,
    root_certificates,
)
from pdss_fl.errors import PdssError
from pdss_fl.policy import NodePolicy
from pdss_fl.privacy.ledger_file import read_ledger
from pdss_fl.vocabularies import load_perturber

_FREE_GB = 2  # a converted LLM, vocabularies and a run's small models
_MEMORY_GB = 4
_SUPERLINK_PORT = 39091


def examine(settings: RunSettings, policy: Path | None = None, listener: Path | None = None) -> Iterator[Finding]:
    """Yield findings about this machine for a run with these settings.

    Parameters
    ----------
    settings : RunSettings
        Of the run; their defaults are those of ``flwr run .``.
    policy : Path | None (default: None)
        A node's policy file: then this is the node's machine. What the node would refuse, its data and its ledger
        are looked at, and not what only the ServerApp's machine needs: the LLM, ``output-dir``, the local SuperLink.
    listener : Path | None (default: None)
        A SuperNode's ``node-socket``, at which `pdss node` should answer. Without a policy nothing else is looked at
        but packages: a SuperNode's user only relays, and needs no model and no place for one.
    """
    yield from _packages()
    if listener is not None and policy is None:
        yield node_socket(listener)
        return
    yield from _machine()
    yield from _disk({"cache": cache_directory()})
    if policy is None:
        yield from _server(settings)
        yield from client_needs(settings)
    else:
        yield from _models({"slm.model": settings.slm.model, "privacy.embeddings": settings.privacy.embeddings})
        if settings.llm.channel == "direct":
            yield reachable(settings.llm.address)
        yield from _node(settings, policy)
    if listener is not None:
        yield node_socket(listener)


def _server(settings: RunSettings) -> Iterator[Finding]:
    """Look at what the ServerApp's machine needs, and a simulation's clients on it."""
    yield from _ports()
    yield from _disk({"output-dir": settings.run_directory(0).parent})
    llm = {"llm.model": settings.llm.model} if settings.llm.backend == "local" else {}
    clients = {"slm.model": settings.slm.model, "privacy.embeddings": settings.privacy.embeddings}
    yield from _models(llm | clients)
    if settings.llm.backend == "grpc":
        yield _llm_server(settings)
        if settings.llm.root_certificates:
            yield root_certificates("llm.root-certificates", Path(settings.llm.root_certificates))
    if settings.llm.backend == "openai":
        yield openai_endpoint(settings.llm)
    if few := enough_clients(settings):
        yield few


def _packages() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    enough = sys.version_info >= (3, 11)
    yield Finding("python", OK if enough else FAIL, python, "" if enough else "install Python 3.11 or newer")
    for line in requires("pdss-fl") or ():
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(needed.name)
        except PackageNotFoundError:
            yield Finding(needed.name, FAIL, "not installed", f"pip install '{needed.name}{needed.specifier}'")
            continue
        if not needed.specifier.contains(found, prereleases=True):
            yield Finding(needed.name, FAIL, f"{found}, needed {needed.specifier}", f"pip install '{line}'")
    main = ("flwr", "torch", "transformers", "grpcio")
    yield Finding("packages", OK, ", ".join(f"{name} {version(name)}" for name in main))


def _machine() -> Iterator[Finding]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("devices", OK, ", ".join(gpus) or f"no GPU; {os.cpu_count()} processor cores")
    free = psutil.virtual_memory().available / 1e9
    few = free < _MEMORY_GB
    remedy = f"the bundled LLM and two clients need some {_MEMORY_GB} GB: end other programs" if few else ""
    yield Finding("memory", NOTE if few else OK, f"{free:.1f} GB available", remedy)


def _ports() -> Iterator[Finding]:
    port = int(os.environ.get("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT") or _SUPERLINK_PORT)
    with socket.socket() as probe:
        probe.settimeout(1.0)
        taken = probe.connect_ex(("127.0.0.1", port)) == 0
    yield Finding(
        "local SuperLink",
        NOTE if taken else OK,
        f"port {port} is {'in use' if taken else 'free'}",
        "one that `flwr run` started earlier keeps the environment variables and the folder of that time: end it by "
        "its process id where these should be others; `pdss run` uses a SuperLink of its own"
        if taken
        else "",
    )


def _disk(places: Mapping[str, Path]) -> Iterator[Finding]:
    for what, folder in places.items():
        there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
        if not _writable(there):
            remedy = "correct its permissions, or name another one (PDSS_CACHE_DIR, output-dir)"
            yield Finding(what, FAIL, f"{folder}: {there} cannot be written", remedy)
            continue
        free = shutil.disk_usage(there).free / 1e9
        yield Finding(
            what,
            OK if free >= _FREE_GB else NOTE,
            f"{folder}: {free:.0f} GB free",
            "" if free >= _FREE_GB else f"free {_FREE_GB} GB, or name another one (PDSS_CACHE_DIR, output-dir)",
        )


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _models(asked: Mapping[str, str]) -> Iterator[Finding]:
    for setting, model in asked.items():
        if setting == "slm.model" and model == SCRATCH:
            continue
        yield _model(setting, model)


def _model(setting: str, model: str) -> Finding:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if model == BUNDLED_MODEL:
        try:
            return Finding(setting, OK, f"{model} in {bundled_model_path()}")
        except PdssError as err:
            return Finding(setting, FAIL, model, err.public)
    if Path(model).is_absolute():
        there = (Path(model) / "config.json").is_file()
        return Finding(setting, OK if there else FAIL, model, "" if there else "no model lies there: correct the path")
    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return Finding(setting, OK, f"{model} in the Hugging Face cache")
    if HF_HUB_OFFLINE:
        return Finding(setting, FAIL, f"{model} is not in the cache", f"run `HF_HUB_OFFLINE=0 hf download {model}`")
    return Finding(setting, NOTE, f"{model} is not in the cache", "it will be downloaded when the run starts")


def _llm_server(settings: RunSettings) -> Finding:
    from pdss_fl.llm.access import client_tls, token_maker
    from pdss_fl.llm.remote import RemoteGenerator

    llm = settings.llm
    try:
        make = token_maker(0, 60.0)
        token = (lambda: make(0)) if make else None
        tls = client_tls(llm.root_certificates)
        remote = RemoteGenerator(llm.address, 10.0, tls=tls, insecure=llm.insecure, token=token, retries=1)
        try:
            return Finding("llm.address", OK, f"{llm.address} serves {remote.info.model}")
        finally:
            remote.close()
    except PdssError as err:
        return Finding("llm.address", FAIL, llm.address, err.public)


def _node(settings: RunSettings, path: Path) -> Iterator[Finding]:
    try:
        policy = NodePolicy.from_node_config({"policy": str(path)})
    except PdssError as err:
        yield Finding("policy", FAIL, str(path), err.public)
        return
    yield Finding(
        "policy",
        OK,
        f"at most epsilon {policy.max_epsilon_per_token:g} a token, {policy.max_epsilon_per_example:g} an example; "
        f"metrics: {policy.metrics}",
    )
    own = settings
    try:
        own = own_settings(settings, policy.choices, simulated=False)
        policy.check_run(own)
        if "pdss" in own.method_names:
            yield _cost(own, policy)
    except PdssError as err:
        yield Finding("run", FAIL, "this node would refuse it", err.public)
    yield from client_needs(own)
    if policy.choices.get("slm.model", SCRATCH) != SCRATCH:
        yield _model("slm-model", own.slm.model)
    if policy.llm_root_certificates is not None:
        yield root_certificates("llm-root-certificates", policy.llm_root_certificates)
    yield _data(policy)
    yield _ledger(policy)


def _cost(own: RunSettings, policy: NodePolicy) -> Finding:
    """Hold what a prompt costs against the node's limits, with the mechanism that the run would make."""
    perturber = load_perturber(own, own.privacy.mechanism)
    guarantee, limit = perturber.mechanism.guarantee, policy.max_epsilon_per_example
    policy.check_mechanism(own.privacy.mechanism, guarantee.kind, guarantee.epsilon)
    charged = perturber.mechanism.compose(perturber.shape.tokens, 0.0).epsilon
    found = f"a prompt of {perturber.shape.tokens} words costs epsilon {charged:g}"
    if charged > limit:
        remedy = "the run sends fewer words or asks for a smaller privacy.epsilon, or this node raises its limit"
        return Finding("budget", FAIL, f"{found}, more than max-epsilon-per-example = {limit:g}", remedy)
    return Finding("budget", OK, f"{found} of {limit:g} an example")


def _data(policy: NodePolicy) -> Finding:
    path = policy.data_path
    try:
        found = {} if path is None else whole_data(path, node_format(policy))
        counts = [f"{name}: {len(examples)} examples" for name, examples in found.items()]
    except PdssError as err:
        return Finding("data-path", FAIL, err.local, "correct the file, or data-path")
    return Finding("data-path", OK if counts else FAIL, ", ".join(counts) or f"no file of data in {path}")


def _ledger(policy: NodePolicy) -> Finding:
    ledger = policy.state_dir / "ledger.jsonl"
    there = next(folder for folder in (policy.state_dir, *policy.state_dir.parents) if folder.is_dir())
    if not _writable(there):
        return Finding("state-dir", FAIL, f"{there} cannot be written", "correct its permissions, or name another one")
    if not ledger.exists():
        return Finding("ledger", OK, "none yet: nothing was released")
    try:
        found = read_ledger(ledger)
    except OSError as err:
        return Finding("ledger", FAIL, f"{ledger} cannot be read", str(err.strerror))
    if found.trouble:
        return Finding("ledger", FAIL, found.trouble, "restore the ledger and its witness from one backup")
    return Finding("ledger", OK, f"{len(found.lines)} releases, all there; `pdss ledger show` lists them")
