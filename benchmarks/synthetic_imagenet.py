"""Makes a synthetic ImageNet of tiny images and measures what the verbs take for it: peak memory and seconds of each process.

    python benchmarks/synthetic_imagenet.py --classes 1000 --train 20 --test 20 --side 16
    python benchmarks/synthetic_imagenet.py --train 1280 --test 50 --memory 2 --folder /big/disk --keep    # 1.28 million files
    python benchmarks/synthetic_imagenet.py --layout parquet --train 200
    python benchmarks/synthetic_imagenet.py --layout parquet --train 1280 --test 50 --side 8 --memory 2 --only random,teacher

Every image is a PNG of one colour and one more pixel, so that no two files hold the same bytes. Class folders lie in `train`
and `val`, or a parquet file for every 20 classes. A process makes a set of random real images, judges the set, looks at it once
more, trains a teacher for one epoch and writes the report; another makes a set with the starter backbone on two classes. The
first `distill` hashes all files, and the second finds the hashes in the index, which lies in the folder too.

Peak memory is that of the largest process, as the kernel counts it (ru_maxrss). Processor seconds are those of the process and
of its children; on a busy machine they say more than seconds. Start-up is what passes before the first image is read for the
work: imports, the list of the images and their fingerprint, the recipe and the protocol.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLASSES_A_FILE = 20
"""How many classes a parquet file holds."""

KNOWN = ["Dress", "Bag"]
"""The names of the first classes, which the starter backbone knows."""

STAMPED = "--stamped"
"""The first word of the processes that `run` starts."""

VERBS = ("random", "again", "few", "evaluate", "teacher", "report")
"""What is measured; see `rows`."""

JUDGED = ["--protocol", "small-hard", "--networks", "convnet1", "--set", "width=8"]


@dataclass(frozen=True)
class Row:
    """What one process took."""

    name: str
    seconds: float
    cpu_seconds: float
    peak_mb: float
    start: tuple[float, float] | None = None
    """Seconds, and processor seconds, before the first image was read; None where none was."""

    def cells(self) -> str:
        """The row of the table."""
        start = "– | –" if self.start is None else f"{self.start[0]:.1f} | {self.start[1]:.1f}"
        return f"| {self.name} | {start} | {self.seconds:.1f} | {self.cpu_seconds:.1f} | {self.peak_mb:.0f} |"


def class_name(label: int) -> str:
    """The name of a class."""
    return KNOWN[label] if label < len(KNOWN) else f"n{label:08d}"


def picture(number: int, side: int) -> bytes:
    """A PNG (side, side) of one colour with one other pixel. Each number below 2^24 gives another file."""
    colour = bytes((number & 255, number >> 8 & 255, number >> 16 & 255))
    plain = b"\0" + colour * side
    first = b"\0" + bytes(255 - value for value in colour) + colour * (side - 1)
    data = zlib.compress(first + plain * (side - 1), 1)
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def make(folder: Path, *, classes: int, train: int, test: int, side: int, layout: str = "folders") -> Path:
    """Write the images, `train` and `test` of each class. Classes whose images are there already stay. Gives the folder."""
    start = 0
    for split, count in (("train", train), ("val", test)):
        jobs = [(split, label, start + label * count, count) for label in range(classes)]
        start += classes * count
        if layout == "parquet":
            for first in range(0, classes, CLASSES_A_FILE):
                _write_parquet(folder, jobs[first : first + CLASSES_A_FILE], side, first // CLASSES_A_FILE)
        else:
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda job: _write_class(folder, job, side), jobs))
    return folder


def _write_class(folder: Path, job: tuple[str, int, int, int], side: int) -> None:
    split, label, start, count = job
    place = folder / split / class_name(label)
    if place.is_dir() and len(os.listdir(place)) == count:
        return
    place.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        with open(place / f"{index:05d}.png", "wb", buffering=0) as file:
            file.write(picture(start + index, side))


def _write_parquet(folder: Path, jobs: Sequence[tuple[str, int, int, int]], side: int, number: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    split = {"train": "train", "val": "validation"}[jobs[0][0]]
    file = folder / f"{split}-{number:05d}.parquet"
    if file.is_file() and pq.read_metadata(file).num_rows == sum(count for *_, count in jobs):
        return
    rows = [(class_name(label), picture(start + i, side)) for _, label, start, count in jobs for i in range(count)]
    table = pa.table(
        {"image": [{"bytes": data, "path": None} for _, data in rows], "label": [name for name, _ in rows]}
    )
    folder.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".partial")
    pq.write_table(table, aside, row_group_size=100)
    aside.replace(file)


def run(arguments: Sequence[Any], name: str = "", cache: Path | None = None) -> Row:
    """Run a verb of the command in a process of its own.

    Raises:
        SystemExit: it failed.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"} | ({"DAP_CACHE": str(cache)} if cache else {})
    with tempfile.TemporaryFile() as said, tempfile.NamedTemporaryFile("r") as stamp:
        words = [sys.executable, "-P", __file__, STAMPED, stamp.name, *map(str, arguments), "--quiet"]
        began, clock = time.perf_counter(), time.time()
        process = subprocess.Popen(words, env=environment, stdout=said, stderr=said)
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:  # this process is to end, and then the other must not go on
            process.kill()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(words)}\n{said.read().decode(errors='replace')}")
        first = [float(word) for word in stamp.read().split()]
    unit = 1 if sys.platform == "darwin" else 1024
    cpu = used.ru_utime + used.ru_stime
    start = (first[0] - clock, first[1]) if first else None
    return Row(name or str(arguments[0]), time.perf_counter() - began, cpu, used.ru_maxrss * unit / 1e6, start)


def stamped(stamp: Path, words: Sequence[str]) -> int:
    """Run the command `dap` in this process. The time of the day and the processor seconds at which the first real image is read
    are written to a file."""
    from dap.cli.main import main as command
    from dap.data.real.base import Source
    from dap.data.real.stored import gathering

    def timed(function: Any) -> Any:
        def inside(*args: Any, **kwargs: Any) -> Any:
            if not stamp.stat().st_size:
                stamp.write_text(f"{time.time()} {time.process_time()}")
            return function(*args, **kwargs)

        return inside

    gathering.gathered = timed(gathering.gathered)
    for name in ("images", "readable", "decoded"):
        setattr(Source, name, timed(getattr(Source, name)))
    return command(words)


def rows(data: Path, work: Path, memory: float | None, ipc: int, only: Sequence[str] = VERBS) -> Iterator[Row]:
    """What each verb took, one after the other. A verb that is left out leaves what an earlier call has made."""
    cache = work / "index"
    budget = [] if memory is None else ["--memory", memory]
    made = work / "random"
    distill = ["distill", "--method", "random", "--data", data, "--ipc", ipc]
    if "random" in only:
        shutil.rmtree(made, ignore_errors=True)
        yield run([*distill, "--out", made], "distill random, every file hashed", cache)
    if "again" in only:
        shutil.rmtree(work / "again", ignore_errors=True)
        yield run([*distill, "--out", work / "again"], "distill random, hashes in the index", cache)
    if "few" in only:
        few = [*distill[:1], "--method", "dap", *distill[3:], "--steps", "4", "--reals", "8", "--classes", *KNOWN]
        yield run([*few, "--out", work / "few"], "distill dap with the starter, two classes", cache)
    if "evaluate" in only:
        evaluate = ["evaluate", made, "--epochs", "1", *JUDGED, *budget]
        yield run(evaluate, "evaluate, one epoch", cache)
        yield run(evaluate, "evaluate again, nothing to do", cache)
    if "teacher" in only:
        teacher = work / "teacher.safetensors"
        teacher.unlink(missing_ok=True)
        small = ["--network", "convnet1", "--set", "width=8", "--epochs", "1", *budget]
        yield run(["train-teacher", "--data", data, "--out", teacher, *small], "train-teacher, one epoch", cache)
    if "report" in only:
        yield run(["report", made, "--out", work / "report"], "report", cache)


def sizes(work: Path) -> dict[str, float]:
    """MB of the largest files that the verbs wrote."""
    files = [file for file in work.rglob("*") if file.is_file() and not file.is_relative_to(work / "index")]
    wanted = {"manifest.jsonl", "measures.json", "images.json", "map.npz", "report.html", "trials.jsonl"}
    return {
        str(file.relative_to(work)): round(file.stat().st_size / 1e6, 2)
        for file in sorted(files)
        if file.name in wanted or file.suffix in (".html", ".csv")
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--train", type=int, default=20, help="training images of a class (%(default)s)")
    parser.add_argument("--test", type=int, default=20, help="test images of a class (%(default)s)")
    parser.add_argument("--side", type=int, default=16, help="px (%(default)s)")
    parser.add_argument("--ipc", type=int, default=1)
    parser.add_argument("--layout", choices=("folders", "parquet"), default="folders")
    parser.add_argument("--memory", type=float, help="GiB, handed to the verbs")
    parser.add_argument("--folder", type=Path, help="where everything lies; by default a temporary folder")
    parser.add_argument("--keep", action="store_true", help="leave the folder there")
    parser.add_argument("--only", default=",".join(VERBS), help="the verbs to measure (%(default)s)")
    args = parser.parse_args()
    if unknown := set(args.only.split(",")) - set(VERBS):
        parser.error(f"--only takes {', '.join(VERBS)}, not {', '.join(sorted(unknown))}")
    folder = args.folder or Path(tempfile.mkdtemp(prefix="synthetic-imagenet-"))
    try:
        began = time.perf_counter()
        shape = {"classes": args.classes, "train": args.train, "test": args.test, "side": args.side}
        data = make(folder / "data", **shape, layout=args.layout)
        made = time.perf_counter() - began
        print(
            f"{args.classes:,} classes, {args.classes * args.train:,} training and {args.classes * args.test:,} test images of "
            f"{args.side} px as {args.layout}, made in {made:.0f} s; {os.cpu_count()} cores\n\n"
            "| process | start-up, seconds | of the processor | seconds | of the processor | peak MB |\n"
            + 6 * "|---"
            + "|",
            flush=True,
        )
        for row in rows(data, folder / "work", args.memory, args.ipc, args.only.split(",")):
            print(row.cells(), flush=True)
        print("\n| file | MB |\n|---|---|")
        for name, size in sizes(folder / "work").items():
            print(f"| {name} | {size} |")
    finally:
        if not args.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.argv[1:2] == [STAMPED]:
        sys.exit(stamped(Path(sys.argv[2]), sys.argv[3:]))
    sys.exit(main())
