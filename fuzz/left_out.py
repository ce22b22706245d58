"""Functions that read a file and are not fed, each with the reason. `tests/test_fuzz.py` keeps this list complete."""

SHIPPED = "a file of this package, which is not a stranger's"
_LIBRARY = (
    "transformers reads the folder; `honoured.check_text` and `hub.explained`, both fed, look at it and tell errors"
)
_CODE = "code that the user names or allows; it runs, whatever it holds"

LEFT_OUT: dict[str, str] = {
    "backbones/known.py:known_cards": SHIPPED,
    "backbones/converting/labelled.py:film_names": SHIPPED,
    "base/describing/helpers.py:_hash_of": _CODE,
    "base/describing/helpers.py:helpers_of": _CODE,
    "base/registry.py:_load_file": _CODE,
    "base/registry.py:_load_module": _CODE,
    "backbones/converting/with_encoder/opening.py:open_encoder": _LIBRARY,
    "backbones/converting/with_encoder/opening.py:open_t5_tokenizer": _LIBRARY,
    "cost.py:peak_memory_gb": "the kernel's file on this process",
    "data/real/stored/budget.py:_groups": "the kernel's file on this process",
    "data/real/stored/budget.py:_left": "the kernel's files on memory",
    "data/real/stored/budget.py:free_memory": "the kernel's file on memory",
    "data/sets/layouts/shards.py:write_webdataset": "it writes",
    "evaluation/apart.py:_copy": "it copies bytes, whatever they are",
    "imagenet.py:names": SHIPPED,
    "imagenet.py:subset": SHIPPED,
    "pretraining/networks.py:autoencoder": SHIPPED,
    "pretraining/training.py:Training._write": "it reads what it has just written",
    "backbones/fetching.py:number_format": "the head of weights that `hub.open_pipeline`, which is fed, has opened before",
    "starter/__init__.py:verify_data": SHIPPED,
    "starter/train.py:main": "what the script itself has just written",
    "starter/train.py:train": SHIPPED,
    "starter/unet.py:main": SHIPPED,
    "verbs/training/in_step.py:_said": "a file that our own process writes into a folder of its own and that goes with it",
    "verbs/training/in_step.py:run_in_step": "a file that our own process writes into a folder of its own and that goes with it",
    "verbs/planning/exchange.py:_written": "`decode.as_png` and the hash of the manifest, both fed, look at what it reads",
    "verbs/caption.py:Captioner.__init__": "transformers reads the folder, and `hub.explained`, which is fed, tells its errors",
    "verbs/drawing.py:_lines": "it copies lines, whatever they are",
}
