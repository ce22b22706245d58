#!/usr/bin/env bash
# The GPU day: what only a GPU can tell, most valuable first, in at most nine minutes. Each part has a time limit of its own, and
# its result is in $OUT/gpu.md as soon as the part has ended.
#
#   bash benchmarks/gpu.sh prepare     here, with a network: fetches wheels into .whl, and moves large weights aside
#   bash benchmarks/gpu.sh             on the GPU machine, in the root of the repository
#   bash benchmarks/gpu.sh --cpu       here: tries the script itself on the CPU, with small shapes and short limits
#   bash benchmarks/gpu.sh restore     here, afterwards: puts the weights back
#
# The GPU machine has Python 3.12 with torch 2.11 and torchvision 0.26, no diffusers, no pydantic and no network. A tree of at most
# 64 MiB travels there, wheels included, so `prepare` moves the U-Net of the second starter aside; the parts that need it then say
# that they were left out. After the run, put the lines of gpu.md into docs/performance.md and mend what failed.
set -uo pipefail
cd "$(dirname "$0")/.."
ASIDE=.gpu-aside
WEIGHTS=starters/dap_starters/unet-pipeline/unet/diffusion_pytorch_model.safetensors
# What a plain machine with torch lacks: diffusers, pydantic and cyclopts with what they need.
WHEELS="diffusers pydantic pydantic-core annotated-types typing-inspection cyclopts docstring-parser rich-rst importlib-metadata"

case "${1:-run}" in
prepare)
  for name in .whl $ASIDE; do
    grep -qxF "/$name/" .git/info/exclude 2>/dev/null || { mkdir -p .git/info; echo "/$name/" >> .git/info/exclude; }
  done
  mkdir -p .whl "$ASIDE"
  rm -f .whl/*.whl
  pinned=()
  for name in $WHEELS; do pinned+=("$(grep -iE "^${name}==" constraints.txt)"); done
  "${PYTHON:-.venv/bin/python}" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d .whl "${pinned[@]}" || exit 1
  if [ -f "$WEIGHTS" ]; then mv "$WEIGHTS" "$ASIDE/"; fi
  echo "$(ls .whl | wc -l) wheels in .whl, and the U-Net is in $ASIDE. Name .whl in carry, and run: bash benchmarks/gpu.sh"
  exit 0
  ;;
restore)
  if [ -f "$ASIDE/$(basename "$WEIGHTS")" ]; then mv "$ASIDE/$(basename "$WEIGHTS")" "$WEIGHTS"; fi
  git status --short "$WEIGHTS"
  exit 0
  ;;
esac

cpu=""
if [ "${1:-}" = "--cpu" ]; then cpu=1; fi
OUT=${OUT:-runs/gpu}
PYTHON=${PYTHON:-$([ -n "$cpu" ] && echo .venv/bin/python || echo python3)}
mkdir -p "$OUT"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if compgen -G ".whl/*.whl" > /dev/null && [ -z "$cpu" ]; then
  $PYTHON -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$work/site" .whl/*.whl || exit 1
fi
export PYTHONPATH="$PWD/src:$PWD/starters:$PWD/benchmarks:$work/site" PYTHONUNBUFFERED=1 DAP_CACHE="$work/cache" HF_HUB_OFFLINE=1
began=$SECONDS
: > "$OUT/gpu.md"
: > "$OUT/gpu.log"
failed=0

say() { echo "$*" | tee -a "$OUT/gpu.md"; }

# part NAME SECONDS COMMAND …: runs a part within its limit; its lines are in gpu.md, and its errors in gpu.log.
part() {
  local name=$1 limit=$2
  shift 2
  say ""
  say "## $name"
  say ""
  say "\`${*/$work/WORK}\`"
  say ""
  local at=$SECONDS
  timeout --signal=INT --kill-after=5 "$limit" "$@" 2>> "$OUT/gpu.log" | tee -a "$OUT/gpu.md"
  local status=${PIPESTATUS[0]}
  say ""
  if [ "$status" = 0 ]; then say "Ended after $((SECONDS - at)) s."
  elif [ "$status" = 124 ] || [ "$status" = 137 ]; then say "Stopped at its limit of $limit s; the lines above stand."
  else say "FAILED with $status after $((SECONDS - at)) s; gpu.log says why."; failed=1; fi
}

say "# $(date -u +%F) $(git rev-parse --short HEAD 2>/dev/null)"
say ""
$PYTHON - <<'P' | tee -a "$OUT/gpu.md"
import platform, torch, torchvision
on = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
print(f"{on}, Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}")
P
B="$PYTHON benchmarks"
if [ -n "$cpu" ]; then
  part "Smoke test of every verb" 900 $B/cuda.py smoke --out "$work" --device cpu
  part "Equality with the CPU" 120 $B/cuda.py equal --out "$work" --device cpu
  part "Sampling, a small DiT" 120 $B/sampling.py --shape dit-small --device cpu --layer 4 --batch 1 2 --reals 4 --steps 2 --rounds 1
  part "Judging" 240 $B/evaluation.py --size 64 --epochs 4 --looks 1 --rounds 1 --ipc 2 --test-per-class 4 --workers 1
  part "The size of the push" 60 $B/cuda.py push --shape starter --device cpu
else
  part "Smoke test of every verb" 150 $B/cuda.py smoke --out "$work"
  part "Equality with the CPU" 45 $B/cuda.py equal --out "$work"
  part "Sampling, DiT-XL/2" 100 $B/sampling.py --shape dit-xl-2 --dtype bfloat16 --layer 8 12 --batch 1 8 64 --reals 64 --steps 5 --rounds 2
  part "Sampling, DiT-XL/2, compiled" 70 $B/sampling.py --shape dit-xl-2 --dtype bfloat16 --layer 8 --batch 8 64 --reals 64 --steps 5 --rounds 2 --no-plain --compile
  part "Judging at 224 px" 90 $B/evaluation.py --size 224 --epochs 6 --rounds 2 --workers 8
  part "Sampling, Stable Diffusion 1.5" 55 $B/sampling.py --shape sd-1.5 --dtype bfloat16 --batch 1 8 --reals 64 --steps 4 --rounds 2
  part "The size of the push" 20 $B/cuda.py push --shape dit-xl-2
fi
say ""
say "All parts: $((SECONDS - began)) s."
exit $failed
