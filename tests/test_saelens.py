"""SAEs in SAELens' layout: ours, and published ones of each architecture, against the formulas in float64."""

import errno
import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from test_sae import random_sae, tokens

import saelens
from plumbing.errors import UserError
from sae import CONFIG_FILE, TENSORS, WEIGHTS_FILE


def test_the_saved_files_are_the_saelens_layout(tmp_path):
    sae = random_sae()
    sae.save(tmp_path / "run" / "layer1", {"encoder": {"model": "ViT"}})
    assert json.loads((tmp_path / "run/layer1/cfg.json").read_text()) == {
        "architecture": "topk",
        "d_in": 12,
        "d_sae": 40,
        "k": 4,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": {"encoder": {"model": "ViT"}, "sae_lens_version": "6.0.0"},
    }
    tensors = safetensors.torch.load_file(tmp_path / "run/layer1/sae_weights.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "W_enc": (12, 40),
        "b_enc": (40,),
        "W_dec": (40, 12),
        "b_dec": (12,),
    }
    assert sorted(path.name for path in (tmp_path / "run/layer1").iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_a_saved_sae_comes_back_bit_for_bit(tmp_path):
    sae, x = random_sae(), tokens(20, 12)
    sae.save(tmp_path)
    loaded = saelens.load(tmp_path)
    assert loaded.k == 4
    for (name, parameter), same in zip(sae.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(parameter, same), name
    assert torch.equal(sae.encode(x), loaded.encode(x))


def rewrite(folder, **changes):
    config = json.loads((folder / CONFIG_FILE).read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / CONFIG_FILE).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gated"}, "has architecture 'gated': only topk, standard, jumprelu can be read"),
        ({"architecture": None}, "has architecture None: only topk, standard, jumprelu can be read"),
        ({"architecture": "jumprelu"}, r"where its cfg.json asks for .*'threshold': \(40,\)"),
        (
            {"normalize_activations": "constant_norm_rescale"},
            "'constant_norm_rescale': only 'none' and 'expected_average_only_in' and 'layer_norm' can be read",
        ),
        (
            {"normalize_activations": "layer_norm", "architecture": "standard"},
            "'layer_norm': only 'none' and 'expected_average_only_in' can be read",
        ),
        ({"normalize_activations": True}, "give its input_scale"),
        ({"reshape_activations": "hook_z"}, "has reshape_activations 'hook_z': only 'none' can be read"),
        ({"activation_fn_str": "tanh-relu"}, "has activation_fn 'tanh-relu': only 'relu' and 'topk'"),
        (
            {"activation_fn_kwargs": {"k": 4, "exact": 1}},
            r"has activation_fn_kwargs {'exact': 1}: only {} can",
        ),
        ({"finetuning_scaling_factor": True}, "has finetuning_scaling_factor True: only False can be read"),
        ({"metadata": {"hook_head_index": 3}}, "has hook_head_index 3: only None can be read"),
        ({"k": None}, "k None, which is not a whole number"),
        ({"k": 16.5}, "k 16.5, which is not a whole number"),
        ({"d_in": True}, "d_in True, which is not a whole number"),
        ({"d_sae": float("nan")}, "d_sae nan, which is not a whole number"),
        ({"k": 0}, "k 0, which is not a whole number of at least 1"),
        ({"k": 41}, "k 41 above d_sae 40"),
        ({"d_sae": 50}, "where its cfg.json asks for"),
    ],
)
def test_an_sae_that_cannot_be_read_is_refused_in_one_line(tmp_path, changes, message):
    random_sae().save(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as refusal:
        saelens.load(tmp_path)
    assert "\n" not in str(refusal.value)


def test_sizes_that_another_program_wrote_as_floats_are_whole_numbers(tmp_path):
    random_sae().save(tmp_path)
    rewrite(tmp_path, k=4.0, d_in=12.0)
    assert (saelens.load(tmp_path).k, saelens.load(tmp_path).d_in) == (4, 12)


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("value", ["nan", "-inf"])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, name, value):
    sae = random_sae()
    with torch.no_grad():
        getattr(sae, name)[..., 3] = float(value)
    sae.save(tmp_path)
    with pytest.raises(UserError, match=rf"{WEIGHTS_FILE}: {name} holds NaN or infinite values"):
        saelens.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"[]", "is no JSON object"), (b"\xff\xfe{}", "is not JSON"), (None, "cannot be read")],
)
def test_a_config_that_is_none_is_refused_in_one_line(tmp_path, content, said):
    random_sae().save(tmp_path)
    (tmp_path / CONFIG_FILE).unlink()
    if content is None:
        (tmp_path / CONFIG_FILE).mkdir()
    else:
        (tmp_path / CONFIG_FILE).write_bytes(content)
    with pytest.raises(UserError, match=said):
        saelens.load(tmp_path)


@pytest.mark.parametrize("file", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_or_broken_file_is_named(tmp_path, file):
    random_sae().save(tmp_path)
    (tmp_path / file).write_bytes(b"half a fi")
    with pytest.raises(UserError, match=rf"{file} is not"):
        saelens.load(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match=rf"holds no {file}: give a folder in the SAELens layout"):
        saelens.load(tmp_path)


def test_an_interrupted_save_leaves_the_old_files(tmp_path, monkeypatch):
    sae = random_sae()
    sae.save(tmp_path)

    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        random_sae(seed=9).save(tmp_path)
    assert torch.equal(saelens.load(tmp_path).W_dec, sae.W_dec)


# ------------------------------------------------------------------------------------------ published SAEs

SCALE = 0.4  # sqrt(d_in) / the mean norm of the tokens, say

NEW = {"metadata": {"sae_lens_version": "6.0.0"}}

PUBLISHED = {  # cfg.json of each kind that is read, without the sizes
    "topk": {"architecture": "topk", "k": 5, **NEW},
    "topk by decoder norms": {"architecture": "topk", "k": 5, "rescale_acts_by_decoder_norm": True, **NEW},
    "topk of scaled input by decoder norms": {
        "architecture": "topk",
        "k": 5,
        "rescale_acts_by_decoder_norm": True,
        "normalize_activations": "expected_average_only_in",
        **NEW,
    },
    "topk of layer-normed tokens": {
        "architecture": "topk",
        "k": 5,
        "apply_b_dec_to_input": False,
        "normalize_activations": "layer_norm",
        **NEW,
    },
    "topk, old": {
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 5},
        "hook_point": "blocks.1.hook_resid_post",
        "apply_b_dec_to_input": False,
    },
    "standard": {"architecture": "standard", **NEW},
    "standard, old": {"activation_fn_str": "relu", "normalize_activations": True, "hook_point_layer": 3},
    "jumprelu": {"architecture": "jumprelu", **NEW},
    "jumprelu of scaled input": {
        "architecture": "jumprelu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "expected_average_only_in",
        **NEW,
    },
}


def publish(folder, config, d_in=12, d_sae=40, seed=0):
    """Write an SAE as others do, whose decoder rows are of any norm; returns its weights."""
    random = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    if config.get("architecture") == "jumprelu":
        shapes["threshold"] = (d_sae,)  # some are below zero
    weights = {name: 0.5 * torch.randn(shape, generator=random) for name, shape in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(weights, folder / WEIGHTS_FILE)
    own = {"d_in": d_in, "d_sae": d_sae, "dtype": "float32", "device": "cpu", **config}
    (folder / CONFIG_FILE).write_text(json.dumps(own))
    return {name: tensor.double() for name, tensor in weights.items()}


def is_scaled(config):
    return config.get("normalize_activations", "none") not in ("none", "layer_norm")


def code_of(config, weights, x):
    """The code and the reconstruction by the formulas of SAELens, in float64, nothing folded but the scale's part of
    the decoder's norms."""
    W_enc, b_enc, W_dec, b_dec = (weights[name] for name in TENSORS)
    x, mean, scale = x.double(), 0.0, SCALE if is_scaled(config) else 1.0
    normed = scale * x
    if config.get("normalize_activations") == "layer_norm":
        mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
        normed, scale = (x - mean) / (std + 1e-5), 1 / std
    pre = (normed - b_dec * config.get("apply_b_dec_to_input", True)) @ W_enc + b_enc
    rescales = config.get("rescale_acts_by_decoder_norm")
    norms = (W_dec / scale).norm(dim=1) if rescales else torch.ones(len(W_dec))
    pre, code = pre * norms, torch.zeros_like(pre)
    if "threshold" in weights:
        code = torch.where(pre > weights["threshold"], pre, 0).clamp_min(0)
    elif "topk" in (config.get("architecture"), config.get("activation_fn_str")):
        for row, values in enumerate(pre):
            for latent in sorted(range(len(values)), key=lambda one: -values[one])[:5]:
                code[row, latent] = max(values[latent], 0)
    else:
        code = pre.clamp_min(0)
    return code, (code / norms @ W_dec + b_dec) / scale + mean


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
def test_published_saes_have_the_codes_of_their_formulas(tmp_path, config):
    weights, x = publish(tmp_path / "theirs", config), tokens(20, 12)
    code, reconstruction = code_of(config, weights, x)
    sae = saelens.load(tmp_path / "theirs", SCALE)
    torch.testing.assert_close(sae.encode(x).double(), code, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(x).double(), reconstruction, rtol=1e-5, atol=1e-5)
    sae.save(tmp_path / "ours")  # all that was folded in
    again = saelens.load(tmp_path / "ours")
    assert again.architecture == sae.architecture
    assert torch.equal(again.encode(x), sae.encode(x))
    assert torch.equal(again(x), sae(x))


def test_what_an_old_version_added_is_left_out_where_it_does_nothing(tmp_path):
    weights = publish(tmp_path, {"architecture": "standard"})
    weights = {name: tensor.float() for name, tensor in weights.items()}
    ones = torch.ones(40)
    safetensors.torch.save_file({**weights, "scaling_factor": ones}, tmp_path / WEIGHTS_FILE)
    assert saelens.load(tmp_path).architecture == "standard"
    safetensors.torch.save_file({**weights, "scaling_factor": 2 * ones}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(UserError, match="scaling_factor of fine-tuning, which cannot be read"):
        saelens.load(tmp_path)


def test_thresholds_of_latents_whose_decoder_norms_would_scale_them_are_refused(tmp_path):
    publish(tmp_path, {"architecture": "jumprelu", "rescale_acts_by_decoder_norm": True})
    with pytest.raises(UserError, match="decoder rows that are not of unit norm: of architecture jumprelu"):
        saelens.load(tmp_path)


SAE_LENS = """
import sys
from pathlib import Path
import safetensors.torch as st
from sae_lens import SAE
for folder in sorted(Path(sys.argv[1]).iterdir()):
    sae, given = SAE.load_from_disk(str(folder)), st.load_file(folder / "x.st")
    if "scale" in given:
        sae.fold_activation_norm_scaling_factor(given["scale"].item())
    code = sae.encode(given["x"]).detach()
    st.save_file({"code": code.contiguous(), "xhat": sae.decode(code).detach().contiguous()}, folder / "out.st")
    print(folder.name, "|", type(sae).__name__, "|", sae.cfg.metadata.encoder)
"""


@pytest.mark.slow
def test_sae_lens_computes_the_same_codes_from_our_saes_and_from_published_ones(tmp_path):
    """In an environment of its own, which uv makes; skipped where that cannot be done."""
    own, x = random_sae(48, 192, 8), tokens(200, 48)
    own.save(tmp_path / "ours", {"encoder": "ViT"})
    safetensors.torch.save_file({"x": x}, tmp_path / "ours" / "x.st")
    for name, config in PUBLISHED.items():
        publish(tmp_path / name, config, 48, 192)
        scale = {"scale": torch.tensor(SCALE, dtype=torch.float64)} if is_scaled(config) else {}
        safetensors.torch.save_file({"x": x, **scale}, tmp_path / name / "x.st")
    printed = in_sae_lens(SAE_LENS, tmp_path)
    assert printed["ours"] == ["TopKSAE", "ViT"]
    assert {printed[name][0] for name in PUBLISHED} == {"TopKSAE", "StandardSAE", "JumpReLUSAE"}
    for name in printed:
        theirs = safetensors.torch.load_file(tmp_path / name / "out.st")
        sae = saelens.load(tmp_path / name, SCALE)
        torch.testing.assert_close(sae.encode(x).detach(), theirs["code"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sae(x).detach(), theirs["xhat"], rtol=1e-4, atol=1e-4)


def in_sae_lens(script, folder):
    """What a script prints that runs beside sae-lens: by the first word of a line, the others."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    uv = ["uv", "run", "--no-project", "--python", python, "--with", "sae-lens", "python", "-c"]
    options = {"capture_output": True, "text": True, "cwd": folder, "timeout": 270}
    try:
        subprocess.run([*uv, "import sae_lens"], check=True, **options)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip()
        pytest.skip(f"sae-lens cannot be had: {said[-300:]}")
    done = subprocess.run([*uv, script, str(folder)], **options)
    assert done.returncode == 0, done.stderr
    lines = [line.split(" | ") for line in done.stdout.splitlines()]
    return {name: rest for name, *rest in lines}
