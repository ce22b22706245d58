"""Feeds the readers guided by coverage, with atheris. Only modules of `dap` are instrumented.

Atheris never returns from its loop, so each reader has its turn in a process that is forked for it. Its inputs are changed by
the rules of `mutate` or by those of libFuzzer, and those that reach new lines are changed further.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import io
import json
import os
import time
import traceback
from contextlib import redirect_stderr
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from fuzz.mutate import LARGEST, damaged
from fuzz.target import Count, Target, judge, put

SHORTEST = 0.5
"""Seconds that a turn takes at least. Where the time is too short for all readers, some of them get no turn."""


def installed() -> bool:
    """Whether atheris can be imported. It is not imported here: it would instrument this process."""
    return importlib.util.find_spec("atheris") is not None


def work_guided(seconds: float, seed: int, only: str) -> dict[str, dict[str, Any]]:
    """One process: instrument the package, and feed the readers whose names hold `only`."""
    import atheris

    from fuzz.run import all_targets, keep, plain, quiet, room
    from fuzz.shaped import smaller

    random, counts = Random(seed), dict[str, Count]()
    with room() as folder:
        with atheris.instrument_imports(include=["dap"]), redirect_stderr(io.StringIO()):
            targets = [target for target in all_targets(folder) if only in target.name]
            for target in targets:  # readers import more modules when they run
                if target.seeds:
                    judge(target, put(target, target.seeds[0]), Count())
        quiet()
        end, turn = time.monotonic() + seconds, max(SHORTEST, seconds / max(1, len(targets)))
        random.shuffle(targets)
        for number, target in enumerate(targets):
            if (left := end - time.monotonic()) < SHORTEST / 2:
                break
            place = folder / "guided" / str(number)
            counts[target.name], found = _turn(target, place, min(turn, left), random.getrandbits(31))
            for trace, data in found:
                keep(target, trace, smaller(target, data, trace.partition("\n")[0]))
    return plain({"atheris": counts})


def _turn(target: Target, place: Path, seconds: float, seed: int) -> tuple[Count, list[tuple[str, bytes]]]:
    """Feed one reader in a process of its own. Returns the counts, and the unclear inputs with their traces."""
    corpus, told = place / "corpus", place / "told.json"
    corpus.mkdir(parents=True)
    for number, data in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    child = os.fork()
    if child == 0:
        try:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(os.open(place / "said", os.O_WRONLY | os.O_CREAT), 2)  # what libFuzzer says of its progress
            _fuzz(target, corpus, told, seconds, seed)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    if not told.is_file():
        data = (target.folder / target.file).read_bytes() if target.file else b""  # what it was given last
        place_of = f"the process ended with status {status}"
        trace = f"{place_of}\n{(place / 'said').read_text(errors='replace')[-4000:]}"
        return Count(inputs=1, unclear=1, places={place_of: 1}), [(trace, data)]
    said = json.loads(told.read_text())
    found = [(trace, (place / file).read_bytes()) for trace, file in said["found"]]
    return Count(**said["count"]), found


def _fuzz(target: Target, corpus: Path, told: Path, seconds: float, seed: int) -> None:
    """The loop of the forked process. It writes what it counted and ends when its time is over."""
    import atheris

    count, found, began = Count(), list[tuple[str, str]](), time.monotonic()
    faulthandler.dump_traceback_later(seconds + 60, exit=True)

    def one(data: bytes) -> None:
        if time.monotonic() - began > seconds:
            count.seconds = time.monotonic() - began
            aside = told.with_suffix(".partial")
            aside.write_text(json.dumps({"count": asdict(count), "found": found}))
            os.replace(aside, told)
            os._exit(0)
        trace = judge(target, put(target, data), count)
        if trace is not None and count.places[trace.partition("\n")[0]] == 1:
            file = f"found-{len(found)}"
            (told.parent / file).write_bytes(data)
            found.append((trace, file))

    def changed(data: bytes, most: int, number: int) -> bytes:
        random = Random(number)
        if target.kind == "tree" or random.random() < 0.5:
            return damaged((data, *target.seeds), target.kind, random)[:most]
        return atheris.Mutate(data, most)

    # libFuzzer's own limits are off: `judge` and `quiet` hold those that count here.
    options = ["-timeout=0", "-rss_limit_mb=0", f"-max_len={LARGEST}", f"-seed={seed % 2**31 or 1}", "-len_control=0"]
    options += [
        "-handle_segv=0",
        "-handle_abrt=0",
        "-handle_bus=0",
        "-handle_fpe=0",
        "-handle_ill=0",
        f"-artifact_prefix={told.parent}/",
    ]
    atheris.Setup(["fuzz", *options, str(corpus)], one, custom_mutator=changed)
    atheris.Fuzz()
