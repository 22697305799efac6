"""Runs the cells of an experiment in parallel processes; what is done already is not done again."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pdss_fl.reproduce.cells import Cell, run_cell
from pdss_fl.reproduce.estimate import Costs, duration

RESULTS = "cells.jsonl"
Ended = tuple[Cell, dict[str, Any]]


def run_cells(cells: Sequence[Cell], folder: Path, workers: int | None = None) -> list[Ended]:
    """Return the outcome of every cell, running those that ``folder`` does not hold yet.

    Parameters
    ----------
    cells : Sequence[Cell]
        In the order in which they are started; a killed experiment keeps those that ended.
    folder : Path
        Made if missing; its file ``cells.jsonl`` gets one line for each cell that ends.
    workers : int | None (default: None)
        Processes at a time, each with its own LLM; by default one a core, since small models gain nothing
        from more threads.

    Returns
    -------
    list[tuple[Cell, dict[str, Any]]]
        In the order of ``cells``; see ``run_cell``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    workers = workers or os.cpu_count() or 1
    ended = done_cells(cells, folder)
    print(what_is_left(cells, ended, workers), flush=True)
    found = {cell.key: outcome for cell, outcome in ended}
    waiting = [cell for cell in cells if cell.key not in found]
    if waiting:
        found |= _run(waiting, Costs(ended), folder / RESULTS, workers)
    return [(cell, found[cell.key]) for cell in cells]


def done_cells(cells: Sequence[Cell], folder: Path) -> list[Ended]:
    """Return the outcome of every cell that ``folder`` holds already."""
    done = _read(folder / RESULTS)
    return [(cell, done[cell.key]) for cell in cells if cell.key in done]


def what_is_left(cells: Sequence[Cell], ended: Sequence[Ended], workers: int | None = None) -> str:
    """Return how many cells are left and how long they will take, as a line for a person."""
    done, costs, workers = {cell.key for cell, _ in ended}, Costs(ended), workers or os.cpu_count() or 1
    waiting = [cell for cell in cells if cell.key not in done]
    left = max([sum(map(costs.seconds, waiting)) / workers, *map(costs.seconds, waiting)], default=0.0)
    about = f", about {duration(left)} with {workers} processes on idle cores" if waiting else ""
    return f"{len(cells) - len(waiting)} of {len(cells)} cells are done, {len(waiting)} left{about}"


def _run(cells: Sequence[Cell], costs: Costs, path: Path, workers: int) -> dict[str, dict[str, Any]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[cells]}"))
    clock = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    done: dict[str, dict[str, Any]] = {}
    pace = _Pace(sum(map(costs.seconds, cells)))
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    with Progress(*columns, *clock, speed_estimate_period=3600) as progress, pool, open(path, "a") as file:
        if _cut_off(path):
            file.write("\n")
        bar = progress.add_task("cells", total=pace.total, cells=f"0/{len(cells)}")
        futures = {pool.submit(run_cell, cell): cell for cell in cells}
        try:
            for future in as_completed(futures):
                cell = futures[future]
                outcome = {"group": cell.group, "seed": cell.seed, "partition": cell.partition} | future.result()
                done[cell.key] = outcome
                file.write(json.dumps({"key": cell.key, **outcome}) + "\n")
                file.flush()
                pace.done += costs.seconds(cell)
                progress.update(bar, completed=pace.done, cells=f"{len(done)}/{len(cells)}")
                if not progress.console.is_terminal:
                    told = f"{cell.group}, seed {cell.seed}: {_share(outcome)}"
                    left = f"; {pace.left} left" if len(done) < len(cells) else ""
                    print(f"{len(done)}/{len(cells)} {told}{left}", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return done


class _Pace:
    """How long the rest takes, at the speed so far: idle or not, this is the machine's."""

    def __init__(self, total: float) -> None:
        self.total, self.done, self._started = total, 0.0, time.monotonic()

    @property
    def left(self) -> str:
        return duration((self.total - self.done) * (time.monotonic() - self._started) / self.done)


def _cut_off(path: Path) -> bool:
    """Tell whether the last line lacks its end, because the experiment was killed while writing it."""
    return path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")


def _share(outcome: dict[str, Any]) -> str:
    answers = f"{outcome['correct']}/{outcome['total']} right, " if "total" in outcome else ""
    return f"{answers}{outcome['seconds']:.0f} s"


def _start_worker() -> None:
    import torch

    from pdss_fl.logs import configure_logging

    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)
    configure_logging()
    logging.getLogger("pdss_fl").setLevel(logging.WARNING)


def _end_with(parent: int) -> None:
    """End this worker once its experiment was killed; the pool would let it finish all that is queued."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    return dict(_records(path.read_text(encoding="utf-8").splitlines()))


def _records(lines: Iterable[str]) -> Iterable[tuple[str, dict[str, Any]]]:
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # cut off while it was written: the cell is run again
            continue
        yield record.pop("key"), record
