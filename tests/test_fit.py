"""Training: who trains, and that nothing that is not finite is ever kept."""

import dataclasses

import numpy as np
import pytest
import small_world
import torch
from children import content
from small_world import SmallEncoder, SmallPairs

import features
import saelens
from plumbing import files
from plumbing.errors import UserError
from plumbing.processes import Team
from sae import TopKSAE
from training import checkpoint, fit, plan, record, resume, scales, trainer
from training.settings import Settings


def test_training_learns(train):
    (short,) = train(pairs=SmallPairs(300), runname="short", batch_size=128, layers=[0])
    (long,) = train(pairs=SmallPairs(300), runname="long", epochs=30, layers=[0])
    assert long.manifest["fvu"]["layer0"] < 0.5 * short.manifest["fvu"]["layer0"]
    decoder = saelens.load(long.path / "layer0").W_dec
    torch.testing.assert_close(decoder.norm(dim=1), torch.ones(24))


def test_a_random_dictionary_is_frozen_and_its_recording_resumes(train, monkeypatch):
    words = {"recipe": features.RANDOM_SAE, "seeds": (0, 1), "top_k": (2, 3), "layers": [0]}
    with monkeypatch.context() as patch:
        patch.setattr(record, "total_scores", lambda qualities: 1 / 0)  # after the last part file
        with pytest.raises(ZeroDivisionError):
            train(runname="random", **words)
    runs = train(runname="random", **words)
    assert [run.name for run in runs] == [f"random_k{k}_seed{seed}" for seed in (0, 1) for k in (2, 3)]
    assert [run.manifest["sae"]["layer0"]["k"] for run in runs] == [2, 3, 2, 3]
    for run, alone in zip(runs, train(runname="alone", **words), strict=True):
        training = run.manifest["training"]
        assert training["recipe"] == "random"
        drawn = TopKSAE(8, 24, training["top_k"], 1000 * training["seed"]).W_dec
        torch.testing.assert_close(saelens.load(run.path / "layer0").W_dec, drawn)
        np.testing.assert_array_equal(run.load("layer0").toarray(), alone.load("layer0").toarray())
        assert (np.diff(run.load("layer0").indptr) == training["top_k"]).all()


def test_held_out_samples_and_padding_never_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    step = trainer.LayerTrainer.step

    def spy(self, z):
        seen.append(len(z))
        return step(self, z)

    monkeypatch.setattr(trainer.LayerTrainer, "step", spy)
    rows = []
    pairs = SmallPairs(100, captions=lambda row: rows.append(row) or [str(row)])
    fit.fit(small_world.prepare(pairs=pairs, layers=[0]), checkpoint_every=60.0)
    assert set(rows) == set(np.flatnonzero(~plan.held_out_rows(100, 0)))
    assert sum(seen) == 95 * 3  # four tokens, one of them padding


@pytest.mark.parametrize("recipe", ["ours", "original"])
def test_the_scales_of_a_checkpoint_are_the_measured_ones_bit_by_bit(tmp_path, monkeypatch, recipe):
    monkeypatch.chdir(tmp_path)
    work = small_world.prepare(layers=[0, 2], recipe=recipe)
    measured = scales.measure_scales(work, plan.training_plan(work.held_out, work.jobs[0].settings))
    files.write_state(work.state().training_file, work.header(1), measured.state())
    saved = scales.saved_scales(work)
    assert (saved.batch_tokens, list(saved.standard)) == (16 * 3, [0, 2])
    for layer, (mean, scale, center) in measured.standard.items():
        assert torch.equal(saved.standard[layer].mean, mean)
        assert saved.standard[layer].scale == scale
        assert torch.equal(*(mean if one is None else one for one in (saved.standard[layer].center, center)))


def test_a_process_whose_part_of_the_checkpoint_is_missing_says_so(tmp_path, monkeypatch):
    """It is of another step, which the command was killed in before the first process had written its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "team", lambda: Team(1, 2))
    work, recipe = small_world.prepare(layers=[0]), trainer.RECIPES["ours"]
    own = trainer.LayerTrainer(TopKSAE(8, 24, 2), recipe, 10, 100.0, None, "float32")
    own.step(torch.randn(30, 8))
    part = checkpoint.Checkpoint(work, scales.Scales({}, 1.0), {(0, 0): own}, apart=True)
    part.write_file(2, {})
    assert part.restore() == 0  # the first process has written none
    files.write_state(work.state().training_file, work.header(1), {})
    with pytest.raises(UserError, match="unfinished-training-1-1 is missing.*add --overwrite"):
        part.restore()
    files.write_state(work.state().training_file, work.header(2), {})
    assert part.restore() == 2


def test_activations_that_are_not_finite_stop_the_run_and_name_the_layer(train):
    with pytest.raises(UserError, match="layer 0 .*NaN or infinite"):
        train(SmallEncoder(broken_row=3), pairs=SmallPairs(19))
    assert features.run_names() == []


@pytest.mark.parametrize("step", [26, 40, 54])
def test_a_checkpoint_is_never_written_with_nan_in_it(train, monkeypatch, step):
    """The bad row is met between two reports; once it is repaired, the command ends as if nothing had been."""
    settings, pairs = {"layers": [0], "checkpoint_every": 1e-9}, SmallPairs(900)
    (calm,) = train(pairs=pairs, runname="calm", **settings)
    held_out = plan.held_out_rows(900, 0)
    settled = {field.name: calm.manifest["training"][field.name] for field in dataclasses.fields(Settings)}
    row = plan.training_plan(held_out, Settings(**settled))[step - 1][0]
    written, write = [], files.write_state

    def finite(file, header, tensors):
        assert all(tensor.isfinite().all() for tensor in tensors.values())
        written.append(header["done"])
        write(file, header, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_state", finite)
        patch.setattr(resume.Clock, "is_due", lambda self: True)
        with pytest.raises(UserError, match=rf"layer 0 has NaN .* within batches \d+ to {step}:"):
            train(SmallEncoder(broken_row=row), pairs, **settings)
    assert written == list(range(1, step))
    (run,) = train(pairs=pairs, **settings)
    assert content(run.path) == content(calm.path)


def test_weights_that_are_not_finite_after_the_last_step_are_not_saved(train, monkeypatch):
    """The last loss is of the weights before the last step."""
    step = trainer.LayerTrainer.step

    def diverging(self, z):
        step(self, z)
        if self.steps_done == self.n_steps:
            self.sae.b_enc.data[3] = float("inf")

    monkeypatch.setattr(trainer.LayerTrainer, "step", diverging)
    with pytest.raises(UserError, match="its loss diverged"):
        train()
    assert not list(features.run_path("run").rglob("sae_weights.safetensors"))
