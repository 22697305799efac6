"""Which examples one client holds, from its own settings and its node's policy."""

from __future__ import annotations

from pathlib import Path

from pdss_fl.choices import own_settings
from pdss_fl.config import RunSettings
from pdss_fl.data.division import Division
from pdss_fl.data.everyday import private_examples
from pdss_fl.data.example import Example
from pdss_fl.data.fields import parse_fields
from pdss_fl.data.sources import built_in, from_path, whole_data
from pdss_fl.data.tables import DataFormat
from pdss_fl.data_settings import DataSettings
from pdss_fl.errors import SettingError
from pdss_fl.policy import NodePolicy
from pdss_fl.store import private_seed


def load_data(
    settings: RunSettings, policy: NodePolicy, partition_id: int, num_partitions: int
) -> tuple[list[Example], list[Example]]:
    """Return a client's training and test examples.

    Parameters
    ----------
    settings : RunSettings
        Those that hold on this client, its own choices among them (``pdss_fl.choices``).
    policy : NodePolicy
        Says whether the client is simulated, and where a deployed node's data lies.
    partition_id, num_partitions : int
        Which part a simulated client holds.
    """
    data = settings.data
    counts = (data.train_examples, data.test_examples, settings.seed)
    if not policy.simulated and policy.data_path is not None:
        # Else a run that knows the order could ask line by line, or for two test sets that differ in one question.
        order = private_seed(policy.state_dir, f"{settings.seed} {data.test_examples}")
        examples = (data.train_examples, data.test_examples, order)
        return from_path(policy.data_path, Division("iid"), 0, 1, *examples, data_format(data))
    division = Division(data.partition, data.alpha)
    if policy.data_path is None:
        return built_in(partition_id, num_partitions, *counts, division)
    if policy.data_path == Path():
        raise SettingError(f"data.path is empty but data.source is {data.source!r}: name a file, a folder or an id")
    return from_path(policy.data_path, division, partition_id, num_partitions, *counts, data_format(data))


def whole_corpus(settings: RunSettings, policy: NodePolicy) -> dict[str, Example]:
    """Return by their keys all examples out of which ``load_data`` takes a client's."""
    if policy.data_path is None:
        return {example.key: example for example in private_examples()}
    files = whole_data(policy.data_path, data_format(settings.data))
    return {example.key: example for examples in files.values() for example in examples}


def node_format(policy: NodePolicy) -> DataFormat:
    """Return how a deployed node's own data is written; a run says nothing about that."""
    return data_format(own_settings(RunSettings(), policy.choices, simulated=False).data)


def data_format(data: DataSettings) -> DataFormat:
    """Return how the settings say that data is written; raises ``SettingError`` for ``data.fields``."""
    names = parse_fields(data.fields, data.answers)
    return DataFormat(data.source, names, data.subset, data.train_split, data.test_split)
