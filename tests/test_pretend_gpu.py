"""Whole commands on a GPU that is not there (pretend_gpu.py) against the same ones on the CPU."""

from pathlib import Path

import numpy as np
import pytest
import torch
from children import content
from pretend_gpu import pretended

import train_image
import train_text
from plumbing import files
from training import curve, resume
from training.trainer import LayerTrainer

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning")  # torch sees no GPU

DATA = ["--dataset", "demo", "--limit", "64", "--batch_size", "16"]

CAPTIONS = ["--model", "DemoClipText", "--layers", "0", "-1"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, capsys):
    """An empty folder; the training curve's picture would take longer than all else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(curve, "draw", lambda file, *rest: files.write_text(file, "a curve"))


def on_both(script, *words):
    """The run on the GPU and that on the CPU."""
    with pretended():
        (gpu,) = script.main([*words, *DATA, "--runname", "gpu", "--overwrite"])
    (cpu,) = script.main([*words, *DATA, "--runname", "cpu", "--overwrite"])
    assert (gpu.manifest["device"], gpu.manifest["hardware"]) == ("cuda:0", "pretended")
    assert (gpu.manifest["float32_products"], cpu.manifest["float32_products"]) == ("tf32", None)
    for field in ("fvu", "fvu_recorded", "l0", "dead_fraction"):
        assert gpu.manifest[field] == pytest.approx(cpu.manifest[field], rel=1e-3, abs=2e-3)
    return gpu, cpu


def test_topk_saes_trained_and_given_are_on_a_gpu_what_they_are_on_the_cpu():
    gpu, cpu = on_both(train_text, *CAPTIONS)
    for layer in cpu.layers:
        found, expected = (run.load(layer).toarray() for run in (gpu, cpu))
        alike = np.isclose(found, expected, rtol=1e-3, atol=1e-3).all(axis=1)
        assert alike.mean() > 0.95  # a tie may fall the other way
    Path("sae_features/cpu").rename("trained")
    gpu, cpu = on_both(train_text, "--model", "DemoClipText", "--sae", "trained")
    for layer in cpu.layers:
        np.testing.assert_allclose(gpu.load(layer).toarray(), cpu.load(layer).toarray(), atol=1e-4)


def test_relu_codes_of_patches_are_on_a_gpu_what_they_are_on_the_cpu():
    words = ["--model", "DemoViT", "--token", "mean", "--activation", "relu", "--recipe", "original"]
    gpu, cpu = on_both(train_image, *words)
    np.testing.assert_allclose(gpu.load("layer2").toarray(), cpu.load("layer2").toarray(), atol=1e-4)


def test_a_command_that_was_cut_short_goes_on_on_a_gpu_to_the_same_bits(monkeypatch, capsys):
    with pretended():
        (calm,) = train_text.main([*CAPTIONS, *DATA, "--runname", "calm"])
        monkeypatch.setattr(resume.Clock, "is_due", lambda clock: True)
        with pytest.MonkeyPatch.context() as patch:
            step, taken = LayerTrainer.step, []
            patch.setattr(LayerTrainer, "step", lambda *a: taken.append(step(*a)) or 1 / (len(taken) < 6))
            with pytest.raises(ZeroDivisionError):
                train_text.main([*CAPTIONS, *DATA, "--runname", "cut"])
        (cut,) = train_text.main([*CAPTIONS, *DATA, "--runname", "cut"])
    assert "going on after 2 steps" in capsys.readouterr().err
    assert content(cut.path) == content(calm.path)


def test_a_tensor_that_stays_on_the_cpu_is_found(monkeypatch):
    monkeypatch.setattr(LayerTrainer, "dead", lambda trainer: torch.zeros(trainer.sae.d_sae) > 1)
    with pretended(), pytest.raises(RuntimeError, match=r"a tensor \[256\] is on the CPU"):
        train_text.main([*CAPTIONS, *DATA, "--runname", "run"])
