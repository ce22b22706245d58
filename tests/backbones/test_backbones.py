"""Stable Diffusion, Stable Diffusion 3 and a video transformer through the interface that DiT has, and the same loop."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import tiny
from dap import backbones, imagenet
from dap.backbones import Card, ClassifierFree, Flow, ModuleBackbone, from_pipeline
from dap.backbones.base import Backbone
from dap.backbones.prompts import KEPT, TOGETHER, Prompts
from dap.base.errors import DapError
from dap.data.bank import BankOptions, FeatureBank
from dap.guidance import Descend, MeanMatching, Representative
from dap.refining import Descent, refine
from dap.sampling import Batch, latents

NAMES = ("red", "green")


class Video(ModuleBackbone):
    """A random Wan transformer: velocity on a flow over (frames, height, width); what a user would write."""

    def __init__(self):
        from diffusers import WanTransformer3DModel

        model = tiny.seeded(
            lambda: WanTransformer3DModel(
                patch_size=(1, 2, 2),
                num_attention_heads=2,
                attention_head_dim=12,
                in_channels=4,
                out_channels=4,
                text_dim=8,
                freq_dim=16,
                ffn_dim=32,
                num_layers=2,
                rope_max_seq_len=32,
            )
        )
        super().__init__(
            model,
            card=Card("video", "CC0-1.0", 4, 2.0, "all", "blocks.1", 0.1, "step"),
            schedule=Flow(shift=3.0),
            latent_shape=(4, 3, 4, 4),
            layers=("blocks.0", "blocks.1"),
            class_names=NAMES,
            predicts="velocity",
        )
        self.words = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))

    def run(self, x, t, condition):
        time = torch.full((len(x),), float(t))
        return self.denoiser(hidden_states=x, timestep=time, encoder_hidden_states=self.words[condition]).sample

    def encode(self, images):
        return images

    def decode(self, latents):
        return latents[:, :3].clamp(0, 1)


class Clips:
    """Twelve real clips of each class, in latents."""

    class_names = NAMES

    def __init__(self, shape):
        self.clips = torch.randn(2, 12, *shape, generator=torch.Generator().manual_seed(1))

    def good(self, label, n, seed, least=None):
        return list(range(n))

    def images(self, label, indices):
        return self.clips[label, list(indices)]

    def count(self, label):
        return 12

    def fingerprint(self):
        return "clips"


@pytest.fixture(scope="module")
def made():
    """A backbone of each kind."""
    return {
        "sd": from_pipeline(tiny.stable_diffusion(), name="sd"),
        "sd v": from_pipeline(tiny.stable_diffusion("v_prediction"), name="sd v"),
        "sd3": from_pipeline(tiny.stable_diffusion_3(), name="sd3"),
        "video": Video(),
    }


def source_of(backbone):
    """Real data of the shape a backbone encodes."""
    return Clips(backbone.latent_shape if isinstance(backbone, Video) else (3, backbone.card.size, backbone.card.size))


KINDS = ["sd", "sd v", "sd3", "video"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_gives_the_prediction_and_the_gradient_of_every_layer(made, kind):
    """The graph ends at the layer: the features' gradient is the full graph's, and the prediction carries none."""
    backbone = made[kind]
    x = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(2))
    condition, t = backbone.condition(NAMES), 600 if kind.startswith("sd") and kind != "sd3" else 600.0
    plain = backbone.predict(x, t, condition)
    for layer in backbone.layers:
        leaf = x.clone().requires_grad_()
        cut = backbone.predict(leaf, t, condition, layer=layer, grad_through="features")
        assert torch.is_grad_enabled() and not cut.eps.requires_grad
        assert cut.features.ndim == 3 and len(cut.features) == 2
        torch.testing.assert_close(cut.eps, plain.eps)
        torch.testing.assert_close(cut.features.detach(), backbone.tap(x, t, condition, layer))
        full = backbone.predict(leaf, t, condition, layer=layer, grad_through="denoiser")
        assert full.eps.requires_grad
        gradients = [torch.autograd.grad(p.features.square().sum(), leaf, retain_graph=True)[0] for p in (cut, full)]
        assert gradients[0].abs().sum() > 0
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_several_layers_come_out_of_one_pass(made, kind):
    """Each as if it were asked for alone, with its gradient; `Backbone`'s own way, a pass for each layer, gives the same."""
    backbone = made[kind]
    x = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(2)).requires_grad_()
    condition, t = backbone.condition(NAMES), 600 if kind.startswith("sd") and kind != "sd3" else 600.0
    together = backbone.features(x, t, condition, backbone.layers[::-1])
    apart = Backbone.features(backbone, x, t, condition, backbone.layers)
    assert together.keys() == apart.keys() == set(backbone.layers)
    for layer in backbone.layers:
        torch.testing.assert_close(together[layer], apart[layer])
        found = [torch.autograd.grad(of[layer].square().sum(), x, retain_graph=True)[0] for of in (together, apart)]
        torch.testing.assert_close(*found)
    with pytest.raises(DapError, match="no layer 'nowhere' to tap"):
        backbone.features(x, t, condition, ["nowhere"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_of_every_kind_is_refined(made, kind):
    """By an energy in pooled features under channel spreads; a flow takes its noise levels as fractions too."""
    backbone = made[kind]
    pool = "mean" if kind == "video" else "2x2"
    options = BankOptions(reals=4, pool=pool, normalise="channel", layer=backbone.layers[0])
    bank = FeatureBank(source_of(backbone), backbone, options, ipc=2)
    z = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(2))
    batch = Batch.of(NAMES, [0, 0], [0, 1], 0)
    after = refine(backbone, [MeanMatching(bank)], batch, z, Descent(3, 0.1, prior=1.0), usual=lambda label, t: 0.0)
    assert after.shape == z.shape and torch.isfinite(after).all() and not torch.allclose(after, z)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_loop_guides_every_kind(made, kind):
    backbone = made[kind]
    bank = FeatureBank(source_of(backbone), backbone, BankOptions(reals=4), ipc=2)
    batch, model = Batch.of(NAMES, [0, 0, 1], [0, 1, 0], 0), ClassifierFree(backbone, 2.0)
    vanilla = latents(model, None, batch, steps=4)
    assert vanilla.shape == (3, *backbone.latent_shape) and torch.isfinite(vanilla).all()
    assert torch.equal(latents(model, Descend(Representative(bank), 0.0), batch, steps=4), vanilla)
    guided = latents(model, Descend(Representative(bank), 0.1, "step"), batch, steps=4)
    assert torch.isfinite(guided).all() and not torch.allclose(guided, vanilla)
    alone = latents(model, Descend(Representative(bank), 0.1, "step"), Batch.of(NAMES, [1], [0], 0), steps=4)
    torch.testing.assert_close(alone, guided[2:], rtol=1e-3, atol=1e-3)
    decoded = backbone.decode(guided)
    assert decoded.shape[:2] == (3, 3) and decoded.min() >= 0 and decoded.max() <= 1


@pytest.mark.parametrize("kind", ["sd", "sd v"])
def test_stable_diffusion_equals_its_own_pipeline(made, kind):
    """Ten DDIM steps with guidance against diffusers' `StableDiffusionPipeline` from the same noise."""
    from diffusers import DDIMScheduler

    pipe = tiny.stable_diffusion("epsilon" if kind == "sd" else "v_prediction")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing", clip_sample=False)
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(Batch.of(("dress",), [0], [0], 0).seeds[0]))
    theirs = pipe("a photo of a dress", latents=noise, num_inference_steps=10, guidance_scale=3.0, output_type="latent")
    mine = latents(ClassifierFree(made[kind], 3.0), None, Batch.of(("dress",), [0], [0], 0), steps=10, solver="ddim")
    torch.testing.assert_close(mine, theirs.images, rtol=2e-3, atol=2e-3)


def test_stable_diffusion_3_equals_its_own_pipeline(made):
    pipe = tiny.stable_diffusion_3()
    pipe.set_progress_bar_config(disable=True)
    batch = Batch.of(("dress",), [0], [0], 0)
    noise = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(batch.seeds[0]))
    theirs = pipe(
        "a photo of a dress", latents=noise, num_inference_steps=6, guidance_scale=3.0, height=8, width=8,
        output_type="latent",
    ).images  # fmt: skip
    mine = latents(ClassifierFree(made["sd3"], 3.0), None, batch, steps=6)
    torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-3)


def test_latents_of_sd3_carry_the_shift(made):
    backbone = made["sd3"]
    images = torch.rand(2, 3, 8, 8)
    z = backbone.vae.encode(images * 2 - 1).latent_dist.mean
    torch.testing.assert_close(backbone.encode(images), (z - 0.06) * 1.5)
    torch.testing.assert_close(
        backbone.decode(backbone.encode(images)), (backbone.vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predicts_in_float32(dtype):
    pipe = tiny.stable_diffusion().to(dtype=dtype)
    backbone = from_pipeline(pipe, name="half")
    bank = FeatureBank(Clips((3, 8, 8)), backbone, BankOptions(reals=4), ipc=1)
    model = ClassifierFree(backbone, 2.0)
    x = latents(model, Descend(Representative(bank), 0.05, "step"), Batch.of(NAMES, [0, 1], [0, 0], 0), steps=3)
    assert x.dtype == torch.float32 and torch.isfinite(x).all()


def test_prompts_come_from_class_names(made):
    backbone = made["sd"]
    assert backbone._prompts.prompt("n01440764") == "a photo of a tench"
    assert backbone._prompts.prompt("garden_spider, Aranea diademata") == "a photo of a garden spider"
    rows = backbone.condition(["a", "b", "a"])
    assert rows[0] == rows[2] != rows[1] and backbone.null(3).shape == (3,)
    mine = from_pipeline(tiny.stable_diffusion(), name="sd", template="{} on white", negative_prompt="blurry")
    assert mine._prompts.prompt("Bag") == "Bag on white" and mine.card.negative_prompt == "blurry"
    x = torch.randn(1, 4, 4, 4)
    assert not torch.equal(mine.predict(x, 500, mine.null(1)).eps, backbone.predict(x, 500, backbone.null(1)).eps)
    with pytest.raises(DapError, match="has no {} for the class name"):
        from_pipeline(tiny.stable_diffusion(), name="sd", template="a photo")


def test_what_cannot_be_a_backbone_says_why():
    with pytest.raises(DapError, match="inpainting"):
        from_pipeline(tiny.stable_diffusion(in_channels=9), name="inpaint")
    with pytest.raises(DapError, match="prediction_type is 'sample'"):
        from_pipeline(tiny.stable_diffusion("sample"), name="odd")
    with pytest.raises(DapError, match="no layer 'middle'.*mid"):
        from_pipeline(tiny.stable_diffusion(), name="sd").check_layer("middle")


def test_a_graph_is_built_only_where_it_is_asked_for(made):
    backbone = made["sd"]
    x = torch.randn(1, 4, 4, 4).requires_grad_()
    condition = backbone.condition(["red"])
    assert not backbone.predict(x, 500, condition).eps.requires_grad
    assert not backbone.predict(x, 500, condition, layer="mid").features.requires_grad
    assert not backbone.predict(x, 500, condition, grad_through="features").eps.requires_grad
    assert backbone.predict(x, 500, condition, grad_through="denoiser").eps.requires_grad


def test_classes_without_a_prompt_of_their_own_are_refused(made):
    prompt = made["sd"]._prompts.prompt
    assert prompt("n02012849") == "a photo of a crane" != prompt("n03126707")
    assert prompt("n03710637") == "a photo of a maillot" and prompt("n03710721") == "a photo of a tank suit"
    assert len({prompt(wnid) for wnid in imagenet.names()}) == 1000
    with pytest.raises(DapError, match="'crane' and 'crane, machine' have the same prompt"):
        made["sd"].condition(["crane", "crane, machine"])
    with pytest.raises(DapError, match="n09999999 is none of ImageNet's thousand"):
        made["sd"].condition(["n09999999"])


def test_the_hash_of_weights_knows_what_else_decides_a_prediction(backbone):
    """Schedule, kind of prediction, latent scale and time embedding: the same weights under another one are another model."""
    from dap.backbones import VariancePreserving
    from dap.backbones.kinds.dit import DiT

    given = {"schedule": backbone.schedule, "class_names": backbone.class_names, "card": backbone.card}
    others = [
        {},
        {"schedule": VariancePreserving.from_betas(1e-4, 0.03, 1000)},
        {"card": replace(backbone.card, frequency_shift=0)},
    ]
    hashes = [DiT(backbone.transformer, backbone.vae, **given | other).weights_hash() for other in others]
    assert hashes[0] == backbone.weights_hash() and len(set(hashes)) == 3
    sd = [from_pipeline(tiny.stable_diffusion(kind), name="sd").weights_hash() for kind in ("epsilon", "v_prediction")]
    assert sd[0] != sd[1]


def test_the_card_s_time_embedding_leaves_the_shared_modules_as_they_were(backbone):
    from dap.backbones.kinds.dit import DiT

    clock = backbone.transformer.transformer_blocks[0].norm1.emb.time_proj
    card = replace(backbone.card, frequency_shift=0)
    mine = DiT(backbone.transformer, backbone.vae, class_names=backbone.class_names, card=card)
    x, condition = torch.randn(1, 4, 4, 4), backbone.condition(["red"])
    assert not torch.equal(mine.predict(x, 700, condition).eps, backbone.predict(x, 700, condition).eps)
    assert clock.downscale_freq_shift == 1


def test_the_autoencoder_takes_large_images_in_parts(made, monkeypatch):
    backbone, images = made["sd"], torch.rand(5, 3, 8, 8)
    whole = backbone.encode(images)
    monkeypatch.setattr("dap.backbones.modules.PIXELS", 2 * 8**2)
    torch.testing.assert_close(backbone.encode(images), whole)
    assert backbone.decode(whole).shape == images.shape


def test_a_bank_keeps_half_precision_where_that_loses_nothing():
    backbone = from_pipeline(tiny.stable_diffusion().to(dtype=torch.bfloat16), name="half")
    for options, dtype in ((BankOptions(reals=4), torch.bfloat16), (BankOptions(reals=4, pool="mean"), torch.float32)):
        bank = FeatureBank(Clips((3, 8, 8)), backbone, options, ipc=1)
        bank.begin([0])
        assert bank.at(0, 500).dtype == torch.float32
        assert bank._features[0, 500].dtype == dtype
        assert torch.equal(bank.at(0, 500), bank._features[0, 500].float())


def encoder(seen):
    """Encodes a text as its own numbers, and notes what it was asked for."""

    def encode(texts):
        seen.append(list(texts))
        numbers = torch.tensor([[float(sum(map(ord, text))), len(text)] for text in texts])
        return numbers, numbers[:, :1] * 2

    return encode


CARD = Card("words", "CC0-1.0", 8, 1.0, "all", "0", 0.1, "step", template="a {}", negative_prompt="no")


def test_texts_are_kept_encoded_within_bounds():
    """Of a million captions `KEPT` are held; classes stay; the longest unasked is given up; rows mean what they meant."""
    seen = []
    prompts = Prompts(encoder(seen), CARD)

    def means(rows, texts):
        expected = encoder([])(list(texts))
        return all(torch.equal(a, b) for a, b in zip(prompts.rows(rows), expected, strict=True))

    classes, null = prompts.condition(["dog", "cat"]), prompts.null(3)
    favourite = prompts.texts(["favourite"])
    for start in range(0, 3 * KEPT, 50):
        texts = [f"caption {i}" for i in range(start, start + 50)] + [f"caption {start}"]
        assert means(prompts.texts(texts), texts)
        assert torch.equal(prompts.texts(["favourite"]), favourite), "who is asked for again stays"
    assert means(classes, ["a dog", "a cat"]) and means(null, ["no"] * 3) and means(favourite, ["favourite"])
    assert len(prompts._table[0]) <= KEPT + 3 and len(prompts._passing) <= KEPT
    assert max(map(len, seen)) <= TOGETHER
    asked = [text for texts in seen for text in texts]
    assert len(asked) == len(set(asked)), "nothing is encoded twice while it is kept"
    prompts.texts(["caption 0"])
    assert seen[-1] == ["caption 0"], "what was given up is encoded anew"


def test_more_texts_at_once_than_are_kept_and_a_text_that_becomes_a_class():
    seen = []
    prompts = Prompts(encoder(seen), CARD)
    texts = [f"caption {i}" for i in range(KEPT + 40)]
    rows = prompts.texts(texts)
    assert len(set(rows.tolist())) == len(texts)
    size = len(prompts._table[0])
    for i in range(60):
        assert len(prompts.texts([f"other {i}", f"another {i}"])) == 2
    assert len(prompts._table[0]) == size, "the table does not grow beyond its largest batch"
    (before,) = prompts.texts(["a dog"]).tolist()
    assert prompts.condition(["dog"]).tolist() == [before]
    prompts.texts(texts)
    assert prompts.condition(["dog"]).tolist() == [before] and prompts.texts(["a dog"]).tolist() == [before]
    assert sum(asked.count("a dog") for asked in seen) == 1


def test_the_interface_is_imported_without_its_loaders():
    """`import dap.backbones.base` reads no YAML and no diffusers; the names of `dap.backbones` come when they are asked for."""
    code = (
        "import sys, dap.backbones.base; heavy = {'yaml', 'diffusers', 'transformers', 'scipy', 'sklearn', 'pandas'}; "
        "print(sorted(heavy & set(sys.modules)), 'dap.backbones.opening' in sys.modules); "
        "import dap.backbones as b; print(b.load.__module__, 'Mixture' in dir(b), sorted(set(b.__all__) - set(dir(b)))); "
        "import dap; print(dap.load_backbone is b.load, 'diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[] False", "dap.backbones.opening True []", "True False"]
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        getattr(backbones, "laod")  # noqa: B009
