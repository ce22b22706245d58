"""Minimax: criteria by hand, which parameters move, the neutral setting, and a fine-tuning that is killed."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from PIL import Image

from dap.backbones.finetune import Denoising, Tuning, TuningBatch, drawn_latents, fine_tune, light, load_tuned, tuned
from dap.base.errors import DapError
from dap.base.store import Checkpoint
from dap.methods.diffusion.minimax import Criteria, MinimaxOptions
from dap.recipe import Recipe
from dap.verbs.distill import distill
from dap.workshop import Workshop


def recipe(colours, folder, method="minimax", seed=0, **options):
    chosen = {"data": {"path": str(colours)}, "backbone": {"path": str(folder)}, "sampling": {"steps": 3}}
    return Recipe.parse({"method": method, "ipc": 2, "seed": seed, "options": options, **chosen})


def test_the_criteria_by_hand():
    """Two classes in a batch, each against its own memories, and the smallest and the largest of all pairs."""
    options = MinimaxOptions(representative=2.0, diverse=3.0, memory=2)
    memory: dict = {}
    criteria = Criteria(options, memory)
    first = TuningBatch(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2), [0, 1])
    assert criteria(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), first) == 0, "nothing is remembered yet"
    second = TuningBatch(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.zeros(2), [0, 0])
    x0 = torch.tensor([[1.0, 1.0], [1.0, 0.0]], requires_grad=True)
    # To the real [1, 0]: cos 0.7071 and 1; to the made [0, 1]: 0.7071 and 0.
    loss = criteria(x0, second)
    assert loss.item() == pytest.approx(2 * (1 - 0.5**0.5) + 3 * 0.5**0.5)
    (gradient,) = torch.autograd.grad(loss, x0)
    assert gradient[0].abs().sum() > 0 and gradient[1].abs().sum() == 0
    assert memory["real"][0].tolist() == [[3, 0], [0, 1]], "the oldest is forgotten"
    assert memory["made"][0].tolist() == [[1, 1], [1, 0]] and not memory["made"][0].requires_grad
    both = TuningBatch(torch.ones(2, 2), torch.zeros(2), [0, 1])
    one = Criteria(options, {"real": dict(memory["real"]), "made": dict(memory["made"])})(torch.ones(2, 2), both)
    assert one.item() == pytest.approx((2 * (1 - 0.5**0.5) + 3 * 1) / 2 + (2 * (1 - 0.5**0.5) + 3 * 0.5**0.5) / 2)


def test_the_loss_of_denoising_against_a_plain_computation(backbone):
    x0 = torch.randn(4, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    condition = backbone.condition(["red", "green", "blue", "red"])
    loss, predicted = Denoising(backbone)(TuningBatch(x0, condition, [0, 1, 2, 0]), torch.Generator().manual_seed(3))
    draw = torch.Generator().manual_seed(3)
    t = torch.randint(1000, (4,), generator=draw)
    noise, dropped = torch.randn(x0.shape, generator=draw), torch.rand(4, generator=draw) < 0.1
    abar = backbone.schedule.alphas_cumprod.double()
    total = 0.0
    for i in range(4):
        at, before = abar[t[i]], abar[t[i] - 1] if t[i] else torch.tensor(1.0)
        x = at.sqrt() * x0[i] + (1 - at).sqrt() * noise[i]
        of = backbone.null(1) if dropped[i] else condition[i : i + 1]
        found = backbone.predict(x[None].float(), int(t[i]), of)
        total = total + (found.eps[0] - noise[i]).square().mean()
        beta = 1 - at / before
        low = (beta * (1 - before) / (1 - at)).log()
        log_var = (found.variance[0] + 1) / 2 * beta.log() + (1 - found.variance[0]) / 2 * low
        guess = (x - (1 - at).sqrt() * found.eps[0]) / at.sqrt()
        torch.testing.assert_close(predicted[i], guess.float(), atol=1e-3, rtol=1e-3)
        gap = before.sqrt() * beta / (1 - at) * (x0[i] - guess)
        kl = torch.distributions.kl_divergence(
            torch.distributions.Normal(gap, (low / 2).exp()), torch.distributions.Normal(0.0, (log_var / 2).exp())
        )
        total = total + kl.mean() / torch.tensor(2.0).log()
    assert loss.item() == pytest.approx(float(total.detach() / 4), rel=1e-3)


def test_only_light_parameters_move_and_the_original_stays(backbone):
    before = backbone.weights_hash()
    twin = tuned(backbone, 2)
    names = light(twin)
    assert sum(name.endswith("factor") for name in names) == 12 and any("class_embedder" in name for name in names)
    assert not any(name.endswith("weight") and "embedder" not in name for name in names)
    x = torch.randn(2, *backbone.latent_shape)
    condition = backbone.condition(["red", "blue"])
    assert torch.equal(twin.predict(x, 500, condition).eps, backbone.predict(x, 500, condition).eps), "factors are 1"

    def batch(step):
        generator = torch.Generator().manual_seed(step)
        return TuningBatch(torch.randn(2, *backbone.latent_shape, generator=generator), condition, [0, 2])

    start = {name: p.detach().clone() for name, p in twin.denoiser.named_parameters()}
    made = fine_tune(twin, names, batch, Tuning(3, 1e-2, 0, 0.5))
    after = dict(twin.denoiser.named_parameters())
    assert set(made) == set(names)
    assert all(torch.equal(after[name], value) for name, value in start.items() if name not in names)
    assert sum(not torch.equal(after[name], start[name]) for name in names) > len(names) / 2
    assert backbone.weights_hash() == before and not any(p.requires_grad for p in twin.denoiser.parameters())
    again = load_tuned(tuned(backbone, 2), made)
    assert not torch.equal(again.predict(x, 500, condition).eps, backbone.predict(x, 500, condition).eps)


def test_a_killed_fine_tuning_goes_on_with_the_same_bytes(backbone, tmp_path):
    condition = backbone.condition(["red", "blue"])

    def batch(step):
        generator = torch.Generator().manual_seed(step)
        return TuningBatch(torch.randn(2, *backbone.latent_shape, generator=generator), condition, [0, 2])

    def run(checkpoint=None, stop=None):
        def tell(done, total):
            if done == stop:
                raise KeyboardInterrupt

        twin = tuned(backbone, 1)
        criteria = {"extra": lambda memory: Criteria(MinimaxOptions(memory=3), memory)}
        return fine_tune(twin, light(twin), batch, Tuning(6, 1e-2, 0), checkpoint=checkpoint, tell=tell, **criteria)

    whole = run()
    file = Checkpoint(tmp_path / "c.pt", "key", every=0.0)
    with pytest.raises(KeyboardInterrupt):
        run(file, stop=4)
    assert file.read()["step"] == 3
    resumed = run(file)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_no_epoch_is_the_vanilla_sample_and_sets_share_the_tuning(colours, pipeline_folder, tmp_path):
    shop = Workshop("cpu", cache=tmp_path / "cache")
    free = distill(recipe(colours, pipeline_folder, epochs=0), tmp_path / "a", workshop=shop)
    vanilla = distill(recipe(colours, pipeline_folder, "vanilla"), tmp_path / "b", workshop=shop)
    hashes = [[r["sha256"] for r in made.records] for made in (free, vanilla)]
    assert hashes[0] == hashes[1]
    how = {"epochs": 1, "batch": 4, "lr": 0.05, "ema": 0.0}
    one = distill(recipe(colours, pipeline_folder, **how), tmp_path / "c", workshop=shop)
    two = distill(recipe(colours, pipeline_folder, seed=1, **how), tmp_path / "d", workshop=shop)
    assert (
        one.noted("cost.json")["prepared"]["minimax"]["made"]
        and not two.noted("cost.json")["prepared"]["minimax"]["made"]
    )
    assert [r["sha256"] for r in one.records] != hashes[0]
    assert one.noted("cost.json")["needs"] == ["backbone", "training"]


def test_many_classes_are_tuned_in_phases(colours, pipeline_folder, tmp_path):
    shop = Workshop("cpu", cache=tmp_path / "cache")
    made = distill(recipe(colours, pipeline_folder, epochs=1, batch=4, together=2), tmp_path / "a", workshop=shop)
    assert len(made.records) == 6 and len(list((tmp_path / "cache").glob("minimax-*.safetensors"))) == 2
    few = {**recipe(colours, pipeline_folder, epochs=1, batch=4).model_dump(), "data": {"path": str(colours)}}
    few["data"]["classes"] = ["red", "green"]
    alone = distill(Recipe.parse(few), tmp_path / "b", workshop=shop)
    assert {r["class_name"] for r in alone.records} == {"red", "green"}


def test_a_backbone_that_is_no_dit_is_refused_before_any_work(tmp_path):
    with pytest.raises(DapError, match="Minimax fine-tunes a diffusion transformer"):
        distill(Recipe.parse({"method": "minimax", "backbone": {"path": "starter-unet"}}), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_weights_that_predict_no_noise_or_take_few_steps_are_refused(colours, pipeline_folder, tmp_path):
    """The loss compares noise with what the weights predict; a perfect v-network would be trained to be a wrong one."""
    for name, file, values, says in (
        (
            "velocity",
            "scheduler/scheduler_config.json",
            {"prediction_type": "v_prediction"},
            "only backbones that predict noise",
        ),
        ("few", "card.yaml", {"steps": 4}, "was distilled to few steps, and Minimax would undo that"),
    ):
        folder = shutil.copytree(pipeline_folder, tmp_path / name)
        before = json.loads((folder / file).read_text()) if file.endswith("json") else {}
        (folder / file).write_text(json.dumps({**before, **values}))
        with pytest.raises(DapError, match=says + ".* or give --option epochs=0"):
            distill(recipe(colours, folder, epochs=1), tmp_path / "a")
        assert not (tmp_path / "a").exists()
        assert distill(recipe(colours, folder, epochs=0), tmp_path / f"{name}-untuned").missing() == []


def test_fewer_images_than_a_batch_or_than_slots_are_tuned_on_too(colours, pipeline_folder, tmp_path):
    shop = Workshop("cpu")
    how = {"lr": 0.05, "ema": 0.0, "reals": 1, "epochs": 2, "batch": 50}
    made = distill(recipe(colours, pipeline_folder, **how), tmp_path / "a", workshop=shop)
    vanilla = distill(recipe(colours, pipeline_folder, "vanilla"), tmp_path / "b", workshop=shop)
    assert made.noted("cost.json")["prepared"]["minimax"]["made"]
    assert {r["sha256"] for r in made.records}.isdisjoint(r["sha256"] for r in vanilla.records)


def test_half_precision_is_refused(colours, pipeline_folder, tmp_path):
    """In bfloat16 the averaged weights would never move: 1 + 1e-4 is 1."""
    values = recipe(colours, pipeline_folder, epochs=1).model_dump(exclude_unset=True)
    values["backbone"]["dtype"] = "bfloat16"
    with pytest.raises(DapError, match="Minimax fine-tunes in --dtype float32"):
        distill(Recipe.parse(values), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_every_phase_is_tuned_on_its_own_classes(colours, pipeline_folder, tmp_path):
    """The third class's images are those of a run on that class alone."""
    shop, how = Workshop("cpu"), {"epochs": 1, "batch": 4, "lr": 0.05, "ema": 0.0}
    both = distill(recipe(colours, pipeline_folder, together=2, **how), tmp_path / "a", workshop=shop)
    values = recipe(colours, pipeline_folder, **how).model_dump(exclude_unset=True)
    values["data"]["classes"] = [both.class_names[2]]
    alone = distill(Recipe.parse(values), tmp_path / "b", workshop=shop)
    assert [r["sha256"] for r in both.records if r["label"] == 2] == [r["sha256"] for r in alone.records]


def test_on_the_starter(tmp_path):
    values = {"method": "minimax", "ipc": 2, "data": {"classes": ["Trouser", "Bag"]}, "sampling": {"steps": 4}}
    options = {"epochs": 1, "max_steps": 3, "reals": 16, "flip": False}
    made = distill(Recipe.parse({**values, "options": options}), tmp_path / "a")
    assert len(made.records) == 4 and not (tmp_path / "a" / ".work").exists()


@pytest.mark.parametrize("ema", [0.9999, 0.15, 0.0])
def test_the_averaged_weights_are_kept(backbone, ema):
    """Against the average written out: at step n the decay is (1 + n) / (10 + n), and never above the option."""
    condition = backbone.condition(["red", "blue"])
    latents = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    twin = tuned(backbone, 1)
    names = light(twin)
    parameters = dict(twin.denoiser.named_parameters())
    seen = [{name: parameters[name].detach().double() for name in names}]

    def look(done, total):
        seen.append({name: parameters[name].detach().double() for name in names})

    made = fine_tune(
        twin, names, lambda step: TuningBatch(latents, condition, [0, 2]), Tuning(4, 1e-2, 0, ema), tell=look
    )
    for name in names:
        mean = seen[0][name]
        for step in range(4):
            decay = min(ema, (1 + step) / (10 + step)) if ema else 0.0
            mean = decay * mean + (1 - decay) * seen[step + 1][name]
        torch.testing.assert_close(made[name], mean.float())


def test_the_factors_scale_what_attention_and_feed_forward_add(backbone):
    """Both at 0, a block hands on what it gets; one alone does not do it, and blocks beyond have none."""
    twin = tuned(backbone, 2)
    x, condition = torch.randn(2, *backbone.latent_shape), backbone.condition(["red", "blue"])
    before, block = twin.tap(x, 500, condition, "0"), twin.transformer.transformer_blocks[1]
    for part, same in ((block.attn1, False), (block.ff, True)):
        torch.nn.init.zeros_(part.factor)
        assert torch.allclose(twin.tap(x, 500, condition, "1"), before) == same
    assert not hasattr(twin.transformer.transformer_blocks[2].ff, "factor")
    assert not hasattr(backbone.transformer.transformer_blocks[0].ff, "factor")


def test_a_block_with_factors_is_the_block_of_the_authors_code(backbone):
    """Against the block written out: factors on qkv (3 dim), on the projection, and on both gated branches."""
    twin = tuned(backbone, 1)
    block, draw = twin.transformer.transformer_blocks[0], torch.Generator().manual_seed(0)
    dim, heads = block.attn1.to_q.in_features, block.attn1.heads
    of_qkv = torch.rand(3 * dim, generator=draw) + 0.5
    of_proj, of_attention, of_mlp = (torch.rand(dim, generator=draw) + 0.5 for _ in range(3))
    parts = (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v, block.attn1.to_out[0], block.attn1, block.ff)
    with torch.no_grad():
        for part, value in zip(parts, (*of_qkv.chunk(3), of_proj, of_attention, of_mlp), strict=True):
            part.factor.copy_(value)
    x = torch.randn(2, 5, dim, generator=draw)
    t, y = torch.tensor([3, 700]), torch.tensor([0, 2])
    with torch.no_grad():
        found = block(x, timestep=t, class_labels=y)
        c = block.norm1.linear(torch.nn.functional.silu(block.norm1.emb(t, y, hidden_dtype=x.dtype)))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = c[:, None].chunk(6, dim=2)

        def norm(x):
            return (x - x.mean(-1, keepdim=True)) / (
                x.var(-1, unbiased=False, keepdim=True) + block.norm1.norm.eps
            ).sqrt()

        linears = parts[:3]
        weight = torch.cat([part.weight for part in linears])
        bias = torch.cat([part.bias if part.bias is not None else torch.zeros(dim) for part in linears])
        qkv = of_qkv * ((norm(x) * (1 + scale_a) + shift_a) @ weight.T + bias)
        q, k, v = qkv.reshape(2, 5, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(2, 3) / (dim // heads) ** 0.5).softmax(-1) @ v
        out = block.attn1.to_out[0]
        added = of_proj * (mixed.transpose(1, 2).reshape(2, 5, dim) @ out.weight.T + out.bias)
        x = x + of_attention * gate_a * added
        first, last = block.ff.net[0].proj, block.ff.net[2]
        seen = norm(x) * (1 + scale_m) + shift_m
        hidden = torch.nn.functional.gelu(seen @ first.weight.T + first.bias, approximate="tanh")
        wanted = x + of_mlp * gate_m * (hidden @ last.weight.T + last.bias)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def converted(backbone):
    """The backbone as a conversion of original weights makes it: the same embedders in every block."""
    twin = copy.deepcopy(backbone)
    first = twin.transformer.transformer_blocks[0].norm1.emb
    for block in twin.transformer.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(first.state_dict())
    return twin


def test_blocks_of_a_converted_dit_share_one_label_table_and_one_time_embedder(backbone):
    """The gradient is the sum over the blocks, as of the one parameter of the original, and the blocks stay equal."""
    original = converted(backbone)
    x, condition = torch.randn(2, *backbone.latent_shape), original.condition(["red", "blue"])
    twin = tuned(original, 1)
    names = light(twin)
    tables = [name for name in names if "class_embedder" in name]
    clocks = [name for name in names if "timestep_embedder" in name]
    assert len(tables) == 1 and len(clocks) == 2 and all(name.startswith("transformer_blocks.0.") for name in tables)
    assert torch.equal(twin.predict(x, 500, condition).eps, original.predict(x, 500, condition).eps)

    def gradients(of):
        chosen = {n: p.requires_grad_() for n, p in of.denoiser.named_parameters() if "norm1.emb." in n}
        of.read(x, 500, of.run(x, 500, condition)).eps.square().sum().backward()
        return {name: parameter.grad for name, parameter in chosen.items()}

    shared, apart = gradients(twin), gradients(converted(backbone))
    blocks = len(original.transformer.transformer_blocks)
    for name, gradient in shared.items():
        each = [apart[name.replace("blocks.0.", f"blocks.{i}.")] for i in range(blocks)]
        torch.testing.assert_close(gradient, torch.stack(each).sum(0), atol=1e-5, rtol=1e-3)

    twin = tuned(original, 1)
    data = TuningBatch(x, condition, [0, 2])
    made = fine_tune(twin, light(twin), lambda step: data, Tuning(2, 1e-2, 0, 0.0))
    for done in (twin, load_tuned(tuned(original, 1), made)):
        first, *others = (dict(block.norm1.emb.named_parameters()) for block in done.transformer.transformer_blocks)
        for name, value in first.items():
            assert all(torch.equal(value, other[name]) for other in others)
        assert not torch.equal(
            first["class_embedder.embedding_table.weight"],
            original.transformer.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight,
        )
    again = load_tuned(tuned(original, 1), made)
    assert torch.equal(again.predict(x, 500, condition).eps, twin.predict(x, 500, condition).eps)


def test_embedders_that_differ_between_blocks_stay_each_block_s_own(backbone):
    """A DiT that was trained in diffusers has them; sharing would change its prediction."""
    x, condition = torch.randn(2, *backbone.latent_shape), backbone.condition(["red", "blue"])
    twin = tuned(backbone)
    blocks = len(backbone.transformer.transformer_blocks)
    assert sum("class_embedder" in name for name in light(twin)) == blocks
    assert torch.equal(twin.predict(x, 500, condition).eps, backbone.predict(x, 500, condition).eps)


def test_latents_are_drawn_from_the_autoencoder_s_distribution(backbone):
    """z = scale (mean + std noise - shift), and the mean of many draws is what `encode` gives."""
    images = torch.rand(2, 3, backbone.card.size, backbone.card.size, generator=torch.Generator().manual_seed(0))
    found = backbone.vae.encode(images * 2 - 1).latent_dist
    drawn = drawn_latents(backbone, images, torch.Generator().manual_seed(5))
    noise = torch.randn(found.mean.shape, generator=torch.Generator().manual_seed(5))
    scale = backbone.vae.config.scaling_factor
    torch.testing.assert_close(drawn, (found.mean + found.std * noise) * scale - backbone._shift * scale)
    torch.testing.assert_close(drawn - found.std * noise * scale, backbone.encode(images), atol=1e-4, rtol=1e-4)


def test_every_epoch_mirrors_and_encodes_anew(colours, pipeline_folder, monkeypatch, tmp_path):
    """Each image is seen once an epoch; in some epochs mirrored, in others not, and never with the same latents."""
    seen, latents = [], []

    def look(backbone, images, generator):
        found = drawn_latents(backbone, images, generator)
        seen.extend(images)
        latents.extend(found)
        return found

    monkeypatch.setattr("dap.methods.diffusion.minimax.drawn_latents", look)
    mine = shutil.copytree(colours, tmp_path / "mine")
    for i, file in enumerate(sorted((mine / "train").rglob("*.png"))):
        Image.linear_gradient("L").rotate(90).resize((8, 8)).point(lambda v, i=i: min(255, v // 2 + 3 * i)).save(file)

    def epochs(**more):
        seen.clear(), latents.clear()
        shop = Workshop("cpu")
        distill(recipe(mine, pipeline_folder, epochs=4, batch=1, **more), tmp_path / f"a{more}", workshop=shop)
        n = len(seen) // 4
        assert len(seen) == 4 * n
        return [seen[n * e : n * e + n] for e in range(4)]

    def bright(image):
        return round(float(image.sum()), 2)

    flipped = epochs()
    assert len({tuple(sorted(map(bright, epoch))) for epoch in flipped}) == 1, "each image once an epoch"
    sides = {}
    for epoch in flipped:
        for image in epoch:
            sides.setdefault(bright(image), []).append(bool(image[..., 0].mean() > image[..., -1].mean()))
    assert any(len(set(found)) == 2 for found in sides.values()), "not the same side in all epochs"
    assert 0.25 < sum(map(sum, sides.values())) / len(seen) < 0.75
    assert len({tuple(x.flatten().tolist()) for x in latents}) == len(latents), "encoded anew"
    straight = epochs(flip=False)
    assert len({bool(image[..., 0].mean() > image[..., -1].mean()) for epoch in straight for image in epoch}) == 1
