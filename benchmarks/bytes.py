"""Checks whether a change of the code changes the bytes of distilled sets.

The command line makes small sets with both starters, in processes of their own, and trains networks on one set for a
few epochs. The sha256 of every image and the accuracies of these trainings are compared with a record:

    python benchmarks/bytes.py --write benchmarks/bytes.json     # before a change: keep a record
    python benchmarks/bytes.py --check benchmarks/bytes.json     # after it: exit status 1 names every run that differs

The last bits of an image depend on the processor and on the version of torch. So a record is valid only on the machine
that wrote the record, and no test reads a record.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

COMMON = "--classes Dress Bag --seed 3"
SAMPLED = f"{COMMON} --steps 6 --ipc 2"
IGD = "--option images=20 --option epochs=1 --option width=8"
AUTO = f"--method auto {COMMON} --ipc 12 --refine-steps 6 --option reals=100"  # more than one chunk of a refinement
SHORT = f"{COMMON} --option iterations=3 --option width=8 --ipc 2"

RUNS = {
    "vanilla": f"--method vanilla {SAMPLED}",
    "dap": f"--method dap {SAMPLED} --reals 8",
    "dap-cache": f"--method dap {SAMPLED} --reals 8 --block 1 --cache CACHE",
    "dap-kernel": f"--method dap {SAMPLED} --reals 8 --kernel linear+0.5*rbf --pool mean --solver dpm++2m",
    "dap-slots": f"--method dap-slots {SAMPLED} --reals 8",
    "dap-killed": f"--method dap {SAMPLED} --reals 8 --block 1",
    "igd": f"--method igd {SAMPLED} {IGD}",
    "auto": AUTO,
    "unet-auto": f"{AUTO} --backbone starter-unet",
    "mgd3": f"--method mgd3 {SAMPLED}",
    "d4m": f"--method d4m {SAMPLED}",
    "unet-vanilla": f"--method vanilla {SAMPLED} --backbone starter-unet",
    "unet-dap": f"--method dap {SAMPLED} --reals 8 --backbone starter-unet",
    "unet-dap-slots": f"--method dap-slots {SAMPLED} --reals 8 --backbone starter-unet",
    "unet-igd": f"--method igd {SAMPLED} {IGD} --backbone starter-unet",
    "random": f"--method random {COMMON} --ipc 3",
    "herding": f"--method herding {COMMON} --ipc 3",
    "dm": f"--method dm {SHORT}",
    "dc": f"--method dc {SHORT}",
    "rded": f"--method rded {COMMON} --ipc 2",
}
"""Arguments of `dap distill`, by the name of the run; CACHE stands for a folder. A run whose name ends in "-killed" is
killed after its first image and then continued."""

JUDGED = "dap"
"""The name of the run whose set the networks are trained on."""

TRAININGS = {
    "quick-hard": "--protocol quick-hard --epochs 3 --set width=16",
    "quick-hard bfloat16": "--protocol quick-hard --epochs 2 --set width=16 --set precision=bfloat16",
    "minimax-hard": "--protocol minimax-hard --set size=32 --epochs 2 --networks convnet4",
}
"""Arguments of `dap evaluate`, by the name of the training."""


def main() -> int:
    """Write or check a record; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write a record")
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare with a record")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the code to try")
    args = parser.parse_args()
    if not (args.write or args.check):
        parser.error("give --write FILE or --check FILE")
    found = measure(args.python)
    if args.write:
        record = {"machine": platform.platform(), "processor": _processor(), **found}
        args.write.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"{len(found['images'])} runs recorded in {args.write}")
    if not args.check:
        return 0
    before = json.loads(args.check.read_text(encoding="utf-8"))
    if before["processor"] != _processor():
        print(
            f"{args.check} was written on another processor ({before['processor']}), so images may differ in their last bits"
        )
    wrong = [(part, name) for part in found for name in before[part] if found[part].get(name) != before[part][name]]
    for part, name in wrong:
        print(f"{part} of {name} differ: {before[part][name]} before, {found[part].get(name)} now")
    print(f"{len(wrong)} of {sum(len(before[part]) for part in found)} differ")
    return int(bool(wrong))


def measure(python: str) -> dict[str, Any]:
    """The hashes of all runs and the accuracies of all trainings."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        work = Path(folder)
        images = dict(zip(RUNS, pool.map(lambda name: _distil(python, name, work), RUNS), strict=True))
        accuracies = {name: _judge(python, text, work / JUDGED) for name, text in TRAININGS.items()}
    return {"images": images, "accuracies": accuracies}


def _distil(python: str, name: str, work: Path) -> dict[str, str]:
    words = [str(work / "cache") if word == "CACHE" else word for word in RUNS[name].split()]
    command = [python, "-m", "dap", "distill", *words, "--out", str(work / name)]
    if name.endswith("-killed"):
        process = subprocess.Popen(command, env=_environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while not list((work / name).glob("images/*/*.png")):
            if process.poll() is not None:
                raise SystemExit(f"{name} ended before it could be killed")
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    _run(command)
    lines = (work / name / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return {line["path"]: line["sha256"] for line in sorted(map(json.loads, lines), key=lambda line: line["path"])}


def _judge(python: str, text: str, made: Path) -> list[Any]:
    _run([python, "-m", "dap", "evaluate", str(made), *text.split()])
    trial = json.loads((made / "trials.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return [trial["curve"], trial["train_last"]]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    sys.exit(main())
