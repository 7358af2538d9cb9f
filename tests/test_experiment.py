"""A whole command: the same folder every time, one stream for several runs, and what is refused before work begins."""

import json

import pytest
import small_world
import torch
from children import content
from small_world import SmallEncoder, SmallPairs

import features
from encoders import self_test
from plumbing import processes
from plumbing.errors import UserError
from plumbing.threads import float32_products
from training import experiment
from training.unfinished import release_locks


def test_the_same_command_gives_the_same_run_folder_and_another_seed_another(train):
    (one,) = train(runname="one")
    (two,) = train(runname="two")
    assert content(one.path) == content(two.path)
    drop = ("seconds", "samples_per_second", "peak_memory")
    assert {k: v for k, v in one.manifest.items() if k not in drop} == {
        k: v for k, v in two.manifest.items() if k not in drop
    }
    (other,) = train(runname="other", seeds=[1])
    assert (
        content(other.path)["layer0/sae_weights.safetensors"]
        != content(one.path)["layer0/sae_weights.safetensors"]
    )


def test_one_stream_trains_several_seeds_and_ks(train):
    runs = train(seeds=[0, 1], top_k=[1, 2], layers=[-1])
    assert [run.name for run in runs] == ["run_k1_seed0", "run_k2_seed0", "run_k1_seed1", "run_k2_seed1"]
    assert [run.manifest["sae"]["layer2"]["k"] for run in runs] == [1, 2, 1, 2]
    (alone,) = train(runname="alone", layers=[-1])
    for name in ("sae_weights.safetensors", "features-00000.npz"):
        together = (runs[1].path / "layer2" / name).read_bytes()
        assert together == (alone.path / "layer2" / name).read_bytes()


def test_a_second_seed_is_given_alone_by_its_seed_and_the_first_ones_data_seed(train):
    """The runs of one command share the order of the data and the held-out samples; `data_seed` says which."""
    _, second = train(seeds=[0, 1], runname="both", layers=[0])
    (alone,) = train(seeds=[1], data_seed=0, runname="alone", layers=[0])
    assert content(second.path) == content(alone.path)
    assert second.manifest["training"] == alone.manifest["training"]
    assert (alone.manifest["training"]["seed"], alone.manifest["training"]["data_seed"]) == (1, 0)
    (other,) = train(seeds=[1], runname="other", layers=[0])
    assert other.manifest["training"]["data_seed"] == 1
    assert content(other.path) != content(alone.path)


@pytest.mark.parametrize(
    ("typed", "resolved"), [(None, [2]), (["all"], [0, 1, 2]), ([-1], [2]), ([-3, 1], [0, 1])]
)
def test_the_last_layer_is_the_default_and_numbers_are_stored_resolved(train, typed, resolved):
    (run,) = train(pairs=SmallPairs(40), layers=typed)
    assert run.layers == [f"layer{layer}" for layer in resolved]
    assert run.manifest["training"]["layers"] == resolved
    for layer in resolved:
        config = json.loads((run.path / f"layer{layer}" / "cfg.json").read_text())
        assert config["metadata"]["hook_name"] == f"Small.layer{layer}"


def test_one_sample_is_enough(train):
    (run,) = train(pairs=SmallPairs(1), batch_size=64)
    assert run.load("layer0").shape == (1, 24)


def test_an_encoder_that_fails_its_self_test_leaves_no_folder(train):
    """Its tokens are the same whatever the caption."""
    alike = SmallEncoder()
    alike.activations = lambda batch, layers: SmallEncoder.activations(
        alike, {"parts": torch.ones_like(batch["parts"])}, layers
    )
    with pytest.raises(
        UserError, match="fails its self-test: two different items have the same recorded token"
    ):
        train(alike, pairs=SmallPairs(19))
    assert not features.ROOT.exists()


def test_k_above_d_sae_is_refused_in_one_line(train):
    with pytest.raises(UserError, match="25.*24"):
        train(top_k=[25])


def test_an_existing_run_is_refused_before_anything_is_computed(train):
    (run,) = train(pairs=SmallPairs(20))
    before = (run.path / "run.json").read_bytes()
    with pytest.raises(UserError, match="run 'run' exists"):
        train(pairs=SmallPairs(20))
    assert (run.path / "run.json").read_bytes() == before
    train(pairs=SmallPairs(20), overwrite=True)


def test_tf32_is_for_the_products_of_a_run_and_not_for_the_process(train):
    seen = []

    class Looking(SmallEncoder):
        def activations(self, *args):
            seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            return super().activations(*args)

    for before in ("highest", "high"):
        torch.set_float32_matmul_precision(before)
        try:
            work = small_world.prepare(Looking(), SmallPairs(30), runname=before)
            experiment.carry_out(work, checkpoint_every=60.0, command=None)
            assert torch.get_float32_matmul_precision() == before
        finally:
            torch.set_float32_matmul_precision("highest")
            release_locks()
    assert set(seen) == {("high", True)}


def test_an_encoder_is_tested_in_whole_float32(monkeypatch):
    """A GPU's kernels differ with the size of a batch, in TF32 by as much as the self-test allows an encoder."""
    encoder, seen, activations = SmallEncoder(), [], SmallEncoder.activations

    def looking(*arguments):
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return activations(encoder, *arguments)

    monkeypatch.setattr(encoder, "activations", looking)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with float32_products("high"):
        self_test.self_test(encoder, ["1", "2"], [0])
        assert torch.backends.cudnn.allow_tf32
    assert seen == [("highest", False)] * 2
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_fewer_samples_than_processes_are_refused(train, monkeypatch):
    monkeypatch.setattr(experiment, "team", lambda: processes.Team(0, 8))
    with pytest.raises(
        UserError, match="6 training samples cannot be shared by 8 processes: start at most 6"
    ):
        train(pairs=SmallPairs(6))
    assert not list(features.ROOT.glob("*"))


def test_a_gpu_out_of_memory_says_which_flag_to_lower():
    with pytest.raises(UserError, match=r"lower --batch_size \(now 16\)"), experiment.in_one_line(16, False):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
