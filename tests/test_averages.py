"""Flower's own strategies as the average: each is Flower's function, bears what it promises, and can be resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
    MultiKrum,
)
from numpy.typing import NDArray

from pdss_fl.aggregation import Average
from pdss_fl.averages import Averages
from pdss_fl.averaging import average_weights
from pdss_fl.client_app import create_client_app
from pdss_fl.config import RunSettings
from pdss_fl.errors import SettingError
from pdss_fl.journal import Journal
from pdss_fl.sharing_settings import MODES, OFF, ROBUST, SERVER_STEP, SharingSettings
from pdss_fl.strategy import StepByStepDistillation
from tests.harness import LoopbackGrid
from tests.test_sharing import grid_of, replies, trained, weights

CLIENTS = 7
FLOWERS: dict[str, Any] = {
    "fedavg": FedAvg,
    "fedmedian": FedMedian,
    "fedtrimmedavg": lambda: FedTrimmedAvg(beta=0.15),  # one of seven at either end
    "multikrum": lambda: MultiKrum(num_malicious_nodes=1, num_nodes_to_select=6),
    "bulyan": lambda: Bulyan(num_malicious_nodes=1),
    "fedavgm": lambda: FedAvgM(server_learning_rate=0.5, server_momentum=0.9),
    "fedadam": lambda: FedAdam(eta=0.5),
    "fedyogi": lambda: FedYogi(eta=0.5),
    "fedadagrad": lambda: FedAdagrad(eta=0.5),
}
BEARS_ONE = ("fedmedian", *ROBUST)

Weights = dict[str, NDArray[Any]]


def way(mode: str, **more: Any) -> SharingSettings:
    return SharingSettings(mode, server_learning_rate=0.5 if mode in SERVER_STEP else 0.0, **more)


def drawn(server_round: int, client: int) -> Weights:
    """A client's weights: round a common point, with a scalar and an empty one, named in another order by each."""
    rng = np.random.default_rng([server_round, client])
    made: Weights = {
        "a": rng.normal(1.0, 0.01, (4, 3)).astype(np.float32),
        "b": np.asarray(rng.normal(-2.0, 0.01), np.float32),
        "c/d": np.zeros((0, 2), np.float32),
        "e": np.asfortranarray(rng.normal(0.5, 0.01, (3, 5)).astype(np.float32)),
    }
    return made if client % 2 else dict(reversed(made.items()))


def record(arrays: Weights) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(values, np.float32)) for name, values in arrays.items()})


def content(arrays: Weights, examples: int = 10) -> dict[str, Any]:
    return {"arrays": record(arrays), "metrics": MetricRecord({"num-examples": examples})}


def round_of(server_round: int, clients: int = CLIENTS) -> list[dict[str, Any]]:
    return [content(drawn(server_round, i), 10 + i) for i in range(clients)]


def values(average: Average | None) -> Weights:
    assert average is not None
    return {name: array.numpy() for name, array in average.arrays.items()}


def far(found: Weights, clients: Iterable[int]) -> float:
    """How far a model is from the mean of some clients' first weights, at its farthest number."""
    honest = [drawn(1, i) for i in clients]
    return max(
        float(np.abs(found[name] - np.mean([h[name] for h in honest], axis=0)).max()) for name in found if name != "c/d"
    )


class Nodes(LoopbackGrid):
    """Seven nodes for Flower's ``configure_train`` to choose from."""

    def __init__(self) -> None:
        super().__init__(create_client_app(), dict.fromkeys(range(1, CLIENTS + 1)))  # type: ignore[arg-type]


def flowers_own(mode: str, rounds: int) -> Iterator[Weights]:
    """What Flower's class alone makes of the same weights in each round, in the same object over all of them."""
    strategy, grid, arrays = FLOWERS[mode](), Nodes(), ArrayRecord()
    for server_round in range(1, rounds + 1):
        one = FedAvg() if mode in SERVER_STEP and server_round == 1 else strategy
        list(one.configure_train(server_round, arrays, ConfigRecord(), grid))
        sent = [content(dict(sorted(drawn(server_round, i).items())), 10 + i) for i in range(CLIENTS)]
        sent.sort(key=lambda one: hashlib.sha256(b"".join(a.data for a in one["arrays"].values())).digest())
        made, _ = one.aggregate_train(server_round, [Message(RecordDict(each), 1, "train") for each in sent])
        arrays = record({name: array.numpy() for name, array in made.items()})  # as weights travel, in float32
        yield {name: array.numpy() for name, array in arrays.items()}


@pytest.mark.parametrize("mode", FLOWERS)
def test_each_average_is_that_of_flowers_own_class(mode: str) -> None:
    assert set(FLOWERS) == set(MODES) - {OFF}
    average: Average | None = None
    for server_round, expected in enumerate(flowers_own(mode, 3), start=1):
        average, unshared = average_weights(replies(*round_of(server_round)), way(mode), server_round, average)
        assert not unshared
        found = values(average)
        assert list(found) == ["a", "b", "c/d", "e"]
        for name, value in found.items():
            assert (value.dtype, value.shape) == (np.float32, drawn(1, 0)[name].shape)
            np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize("clients", [4, 5, 6, 9, 30])
def test_trimming_leaves_out_as_many_as_are_asked_for_at_either_end(clients: int) -> None:
    for bad in range(1, (clients - 2) // 2 + 1):
        column = np.arange(clients, dtype=np.float32) ** 2
        sent = [content({"w": np.full(2, value, np.float32)}) for value in column]
        average, _ = average_weights(replies(*sent), way("fedtrimmedavg", malicious=bad))
        np.testing.assert_allclose(values(average)["w"], column[bad:-bad].mean())


@pytest.mark.parametrize("factor", [1000.0, -1.0, 1e30, 3e38], ids=["thousandfold", "sign", "huge", "greatest"])
@pytest.mark.parametrize("mode", ["fedavg", *BEARS_ONE])
@pytest.mark.parametrize("bad", [0, 3])
def test_one_bad_client_moves_fedavg_far_and_those_that_bear_one_hardly(mode: str, factor: float, bad: int) -> None:
    poison = {name: np.clip(v * np.float64(factor), -3e38, 3e38) for name, v in drawn(1, bad).items()}
    sent = [content(poison if i == bad else drawn(1, i)) for i in range(CLIENTS)]
    average, unshared = average_weights(replies(*sent), way(mode))
    honest = [i for i in range(CLIENTS) if i != bad]
    assert not unshared
    moved = far(values(average), honest)
    assert moved < 0.03 if mode in BEARS_ONE else moved > 0.5


def test_two_bad_clients_of_seven_are_borne_by_who_is_told_of_two() -> None:
    sent = [content(drawn(1, i) if i > 1 else {n: v * 50 for n, v in drawn(1, i).items()}) for i in range(CLIENTS)]
    for mode in ("fedtrimmedavg", "multikrum"):
        average, _ = average_weights(replies(*sent), way(mode, malicious=2))
        assert far(values(average), range(2, CLIENTS)) < 0.03
    average, _ = average_weights(replies(*sent), way("fedmedian"))
    assert far(values(average), range(2, CLIENTS)) < 0.03


@pytest.mark.parametrize("mode", sorted(set(MODES) - {OFF}))
def test_too_few_clients_are_no_average_and_the_reason_names_how_many_it_needs(mode: str) -> None:
    sharing = way(mode)
    needed = sharing.fewest_clients
    assert needed >= (3 if mode in BEARS_ONE else 2)
    none, unshared = average_weights(replies(*round_of(1, needed - 1)), sharing)
    assert none is None
    assert len(unshared) == needed - 1
    assert all(f"{needed} clients" in why or needed == 2 for why in unshared.values())
    assert average_weights(replies(*round_of(1, needed)), sharing)[0] is not None


def test_what_a_strategy_chose_is_never_one_clients_weights() -> None:
    """Two send what lies on either side of a third's weights: their median is those weights, number by number."""
    low, own, high = ({"w": np.arange(4, dtype=np.float32) + shift} for shift in (-1e6, 0.0, 1e6))
    none, unshared = average_weights(replies(content(low), content(own), content(high)), way("fedmedian"))
    assert none is None
    assert set(unshared) == {0, 1, 2}
    assert all("one client's" in why for why in unshared.values())
    none, _ = average_weights(replies(content(own, 10**15), content(low), content(high)))
    assert none is None, "who claims so many examples that the others vanish"
    both, _ = average_weights(replies(content(low), content(own), content(own)), way("fedmedian"))
    np.testing.assert_array_equal(values(both)["w"], own["w"])


def test_krum_is_refused_with_its_reason_and_a_remedy() -> None:
    with pytest.raises(SettingError, match=r"sharing\.mode = 'krum'.*one client's weights.*multikrum"):
        RunSettings.from_run_config({"sharing.mode": "krum"})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"sharing.mode": "fedmedian", "sharing.malicious": 2}, r"sharing\.malicious = 2.*'fedmedian'.*multikrum"),
        ({"sharing.mode": "multikrum", "sharing.malicious": 0}, r"sharing\.malicious = 0.*expected 1 to"),
        ({"sharing.mode": "fedavg", "sharing.server-learning-rate": 0.1}, r"server-learning-rate = 0\.1.*fedadam"),
        ({"sharing.mode": "fedadam", "sharing.server-learning-rate": -1.0}, r"server-learning-rate = -1\.0"),
        ({"sharing.mode": "fedadam"}, r"'fedadam'.*num-server-rounds = 1.*2 or more"),
    ],
)
def test_numbers_that_have_no_effect_or_are_none_are_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        RunSettings.from_run_config(config)


@pytest.mark.parametrize("mode", sorted(set(MODES) - {OFF}))
@pytest.mark.parametrize("order", [[6, 5, 4, 3, 2, 1, 0], [2, 1, 3, 0, 6, 4, 5]])
def test_no_average_depends_on_who_has_which_node_id(mode: str, order: list[int]) -> None:
    sent, before = round_of(2), average_weights(replies(*round_of(1)), way(mode))[0]
    sent[1]["arrays"] = sent[2]["arrays"]  # equal weights, other numbers of examples
    first = values(average_weights(replies(*sent), way(mode), 2, before)[0])
    other = values(average_weights(replies(*(sent[i] for i in order)), way(mode), 2, before)[0])
    for name, value in first.items():
        np.testing.assert_array_equal(value, other[name])


@pytest.mark.parametrize("mode", SERVER_STEP)
def test_a_step_that_is_no_number_is_not_taken_and_nothing_of_it_is_remembered(mode: str, tmp_path: Path) -> None:
    sharing = SharingSettings(mode, server_learning_rate=3.0)
    averages, clean = Averages(tmp_path, sharing, 0), Averages(None, sharing, 0)
    for each in (averages, clean):
        each.add(1, replies(*round_of(1)))
    poison = content({name: np.full_like(v, 3e38) for name, v in drawn(1, 0).items()})
    none, unshared = averages.add(2, replies(poison, poison))
    assert none is None
    assert all("number that is none" in why for why in unshared.values())
    assert [path.stem for path in tmp_path.iterdir()] == ["1"]
    (found, _), (expected, _) = (each.add(3, replies(*round_of(3))) for each in (averages, clean))
    assert found is not None
    assert expected is not None
    assert bits(found) == bits(expected)


def test_weights_of_another_model_than_the_last_averages_are_left_out_even_if_they_are_most() -> None:
    before, _ = average_weights(replies(*round_of(1, 2)))
    other = content({"a": np.zeros(2, np.float32)})
    found, unshared = average_weights(replies(*round_of(2, 2), other, other, other), way("fedadam"), 2, before)
    assert set(values(found)) == {"a", "b", "c/d", "e"}
    assert set(unshared) == {2, 3, 4}


class Killed(BaseException):
    """The server's machine went off."""


class Federation(LoopbackGrid):
    """Clients whose weights follow from what they are sent; the server dies before the n-th message."""

    def __init__(self, last: int = -1, ids: int = 1) -> None:
        super().__init__(create_client_app(), dict.fromkeys(range(ids, ids + CLIENTS)))  # type: ignore[arg-type]
        self.first, self.left, self.away = ids, last, set[int]()
        self.fail = self.answer

    def answer(self, message: Message) -> Message | None:
        if self.left == 0:
            raise Killed
        self.left -= 1
        client, server_round = message.metadata.dst_node_id - self.first, int(message.metadata.group_id)
        if client in self.away:
            return None
        told = MetricRecord({"num-examples": 10 + client, "correct": 3})
        if message.metadata.message_type == "evaluate":
            return Message(RecordDict({"metrics": told}), reply_to=message)
        sent = message.content.array_records.get("arrays", ArrayRecord())
        step = drawn(server_round, client)
        own = {name: values + (sent[name].numpy() if name in sent else 0) for name, values in step.items()}
        return Message(RecordDict({"arrays": record(own), "metrics": told}), reply_to=message)


ROUNDS = 4


def run(mode: str, folder: Path | None, grid: Federation) -> Any:
    if folder:
        folder.mkdir(exist_ok=True)
    journal = Journal(folder / "journal.jsonl") if folder else None
    sharing = {"sharing": True, "average": way(mode), "journal": journal}
    strategy = StepByStepDistillation(None, method="standalone", quorum=1, **sharing)  # type: ignore[arg-type]
    return strategy.start(grid, ArrayRecord(), num_rounds=ROUNDS).arrays


def bits(arrays: ArrayRecord) -> dict[str, bytes]:
    return {name: array.numpy().tobytes() for name, array in arrays.items()}


@pytest.mark.parametrize("mode", ["fedavg", "multikrum", *SERVER_STEP])
def test_a_run_that_dies_before_any_message_ends_with_the_same_bits(mode: str, tmp_path: Path) -> None:
    """Also before the first question of an evaluation, when the round's average is on the disk and the round not."""
    whole = bits(run(mode, None, Federation()))
    assert len(whole) == 4
    for last in range(0, 2 * ROUNDS * CLIENTS, 5):  # by seven clients, that is every place in a step
        folder = tmp_path / str(last)
        with pytest.raises(Killed):
            run(mode, folder, Federation(last))
        assert bits(run(mode, folder, Federation())) == whole, f"dead before message {last}"


@pytest.mark.parametrize("mode", SERVER_STEP)
def test_a_run_that_dies_in_every_round_ends_with_the_same_bits(mode: str, tmp_path: Path) -> None:
    whole = bits(run(mode, None, Federation()))
    for _ in range(2 * ROUNDS):
        with pytest.raises(Killed):
            run(mode, tmp_path, Federation(CLIENTS))  # one half of a round further than before
    assert bits(run(mode, tmp_path, Federation())) == whole
    kept = sorted((tmp_path / "averages" / "standalone").iterdir())
    assert [path.name for path in kept] == ["3.safetensors", "4.safetensors"]


def test_the_average_of_a_round_that_is_done_again_without_one_is_forgotten(tmp_path: Path) -> None:
    """Of a start that died in round 2; when that is done again, too few are there, and round 3 goes on from round 1."""
    with pytest.raises(Killed):
        run("fedadam", tmp_path, Federation(3 * CLIENTS))
    files = tmp_path / "averages" / "standalone"
    assert {path.stem for path in files.iterdir()} == {"1", "2"}
    few = Federation(2 + 2 * CLIENTS)
    few.away = set(range(1, CLIENTS))
    with pytest.raises(Killed):
        run("fedadam", tmp_path, few)
    assert {path.stem for path in files.iterdir()} == {"1"}


@pytest.mark.parametrize("mode", ["fedmedian", "fedyogi"])
def test_real_clients_go_on_from_what_the_strategy_made(mode: str, tmp_path: Path, tiny: Path) -> None:
    grid = grid_of(tmp_path, tiny, [{"allow-sharing": "any"}] * 3, **{"sharing.mode": mode})
    strategy = StepByStepDistillation(None, method="standalone", quorum=3, sharing=True, average=SharingSettings(mode))
    result = strategy.start(grid, ArrayRecord(), num_rounds=2)
    sent = trained(grid)
    assert len(sent) == 6
    assert not strategy.unshared
    models = [weights(tmp_path, i, "standalone") for i in (1, 2, 3)]
    for name, value in result.arrays.items():
        if mode == "fedmedian":
            np.testing.assert_array_equal(value.numpy(), np.median([one[name] for one in sent[3:]], axis=0))
        assert all(np.array_equal(model[name].numpy(), value.numpy()) for model in models)


@pytest.mark.parametrize(("allowed", "code"), [("none", 102), ("dp-sgd", 102), ("any", None)])
def test_a_node_that_allows_sharing_allows_it_whatever_the_average(
    allowed: str, code: int | None, tmp_path: Path, tiny: Path
) -> None:
    for mode in sorted(set(MODES) - {OFF}):
        (tmp_path / mode).mkdir()
        grid = grid_of(tmp_path / mode, tiny, [{"allow-sharing": allowed}], **{"sharing.mode": mode})
        config = ConfigRecord({"method": "standalone", "server-round": 1})
        reply = grid.app(Message(RecordDict({"config": config}), 1, "train.distill"), grid.contexts[1])
        assert (reply.error.code if reply.has_error() else None) == code
        assert ("arrays" in reply.content) if code is None else not reply.has_content()
