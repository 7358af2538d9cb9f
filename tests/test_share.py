"""Sharing SAEs and fetching them by name: the real client of the hub against one on the loopback address."""

import contextlib
import io
import json
import re

import numpy as np
import pytest
import safetensors.numpy
import stand_in_hub
from huggingface_hub import ModelCard

import saelens
import share
import train_text
from plumbing.errors import UserError
from training import fetched


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with stand_in_hub.serve(monkeypatch, tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def run(train):
    (run,) = train(runname="small", layers=[0, 2])
    return run


@pytest.fixture
def uploaded(run, hub):
    share.main(["--run", "small", "--to", "me/saes", "--private"])
    return hub.repositories["me/saes"]


def test_the_folder_is_saelens_layout_with_log_frequencies_and_a_card(run, tmp_path, capsys):
    assert str(share.main(["--run", "small", "--out", "shared"])) == "shared"
    shared = tmp_path / "shared"
    assert sorted(str(path.relative_to(shared)) for path in shared.rglob("*") if path.is_file()) == [
        "README.md",
        *(f"layer{n}/{file}" for n in (0, 2) for file in sorted(share.FILES)),
    ]
    for layer in run.layers:
        active = (run.load(layer).toarray() > 0).mean(0)
        (found,) = safetensors.numpy.load_file(shared / layer / "sparsity.safetensors").values()
        np.testing.assert_allclose(found, np.log10(active + 1e-10), rtol=1e-6)
        weights = "sae_weights.safetensors"
        assert (shared / layer / weights).read_bytes() == (run.path / layer / weights).read_bytes()
        assert (
            json.loads((shared / layer / "cfg.json").read_text())["metadata"]["l0"]
            == run.manifest["l0"][layer]
        )
    text = (shared / "README.md").read_text()
    assert text in capsys.readouterr().out
    assert ModelCard(text).data.to_dict()["library_name"] == "saelens"
    scores = [run.manifest[name]["layer2"] for name in ("fvu", "fvu_recorded", "l0", "dead_fraction")]
    row = next(line for line in text.splitlines() if line.startswith("| `layer2` |"))
    assert row.split(" | ")[2:] == [
        "8",
        "24",
        "2",
        *(f"{one:.3f}" for one in scores[:3]),
        f"{scores[3]:.3f} |",
    ]
    assert "uv run train_text.py" in text


def test_no_folder_of_this_machine_is_told(run, tmp_path):
    manifest = json.loads((run.path / "run.json").read_text())
    manifest["command"] = [
        "train_text.py",
        "--data_root",
        "/home/me/secret/birds",
        "--checkpoint=/home/me/secret/net",
    ]
    manifest["encoder"]["checkpoint"] = "local-dir:/home/me/secret/net"
    (run.path / "run.json").write_text(json.dumps(manifest))
    share.main(["--run", "small", "--out", "shared"])
    told = "".join(
        path.read_text() for path in (tmp_path / "shared").rglob("*") if path.suffix in (".md", ".json")
    )
    assert "secret" not in told
    assert "uv run train_text.py --data_root birds --checkpoint=net" in told


@pytest.mark.parametrize(
    ("model", "checkpoint", "expected"),
    [
        ("ClipVision", "hf-hub:apple/DFN2B-CLIP-ViT-B-16", "apple/DFN2B-CLIP-ViT-B-16"),
        ("DinoV2", "dinov2_vitb14", "facebook/dinov2-base"),
        ("ClipVision", "ViT-B/32-quickgelu", "timm/vit_base_patch32_clip_224.openai"),
        ("TimmVision", "resnet50.a1_in1k", "timm/resnet50.a1_in1k"),
        ("Bert", "bert-base-uncased", "bert-base-uncased"),
        ("DemoBert", "toyworld/weights/bert", None),
        ("Bert", "/models/bert", None),
    ],
)
def test_the_base_model_is_the_encoders_repository(run, model, checkpoint, expected):
    from showing import card

    encoder = run.manifest["encoder"] | {"model": model, "checkpoint": checkpoint}
    assert card.base_model(run._replace(manifest=run.manifest | {"encoder": encoder})) == expected


def test_what_is_uploaded_comes_back_by_name_and_records_the_same_features(
    run, uploaded, hub, train, tmp_path
):
    assert set(uploaded) == {
        "README.md",
        *(f"{layer}/{file}" for layer in run.layers for file in share.FILES),
    }
    assert hub.private == {"me/saes"}
    (again,) = train(runname="again", sae="me/saes", layers=[2])
    assert hub.fetched.count("layer2/sae_weights.safetensors") == 1
    assert "layer0/sae_weights.safetensors" not in hub.fetched  # which nobody asked for
    np.testing.assert_array_equal(again.load("layer2").toarray(), run.load("layer2").toarray())
    commit = hub.commit("me/saes")
    assert again.manifest["training"]["sae"] == f"me/saes@{commit}"
    fetched.fetch.cache_clear()
    asked = len(hub.fetched)
    (one,) = train(runname="one", sae=f"me/saes/layer2@{commit}", layers=None)
    assert (one.layers, len(hub.fetched)) == (["layer2"], asked)  # all of it was in the cache
    folder = fetched.locate("me/saes") / "layer2"
    assert saelens.load(folder).k == 2
    (tmp_path / "me").mkdir()
    run.path.rename(tmp_path / "me" / "saes")  # a local folder of the name wins
    assert str(fetched.locate("me/saes")) == "me/saes"


def test_a_second_upload_replaces_the_same_layers_and_refuses_to_mix_with_others(
    run, uploaded, train, monkeypatch
):
    uploaded["layer2/cfg.json"] = b"old"
    share.main(["--run", "small", "--to", "me/saes"])
    assert json.loads(uploaded["layer2/cfg.json"])["d_sae"] == 24
    train(runname="other", layers=[1])
    complaint = complaint_of(share.main, ["--run", "other", "--to", "me/saes"])
    assert "holds layer0, layer2 already, which run 'other' has not" in complaint
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "the hub answers 401: " in complaint_of(share.main, ["--run", "small", "--to", "me/saes"])


def complaint_of(main, words):
    """The line that a script ends in."""
    with contextlib.redirect_stderr(io.StringIO()) as said, pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    (line,) = [one for one in said.getvalue().splitlines() if one.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "hf auth login"),
        (403, "your token may not do that"),
        (404, "see the spelling"),
        (500, "again later"),
    ],
)
def test_an_upload_or_a_fetch_that_the_hub_refuses_ends_in_one_line(run, hub, status, said):
    hub.status = status
    line = complaint_of(share.main, ["--run", "small", "--to", "me/saes"])
    assert re.search(rf"me/saes cannot be uploaded: the hub answers {status}: .*{said}", line)
    with pytest.raises(
        UserError, match=rf"--sae me/saes cannot be fetched: the hub answers {status}: .*{said}"
    ):
        fetched.locate("me/saes")


@pytest.mark.parametrize(("status", "said"), [(401, "hf auth login"), (403, "your token may not do that")])
def test_a_refusal_that_xet_tells_of_is_read_from_its_words(run, hub, monkeypatch, status, said):
    pytest.importorskip("hf_xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    hub.xet_status = status
    line = complaint_of(share.main, ["--run", "small", "--to", "me/saes"])
    assert re.search(rf"me/saes cannot be uploaded: the hub answers {status}: .*{said}", line)


def test_a_file_that_stops_in_the_middle_ends_in_one_line_and_comes_whole_the_next_time(uploaded, hub, train):
    hub.cuts = True
    with pytest.raises(
        UserError, match="--sae me/saes.* cannot be fetched: the hub does not answer, or the network"
    ):
        train(runname="again", sae="me/saes", layers=[2])
    hub.cuts = False
    (again,) = train(runname="again", sae="me/saes", layers=[2])
    weights = (again.path / "layer2" / "sae_weights.safetensors").read_bytes()
    assert weights == uploaded["layer2/sae_weights.safetensors"]


def test_without_a_network_a_token_or_such_a_repository_one_line_says_what_to_do(run, hub, monkeypatch):
    from huggingface_hub import constants

    with pytest.raises(UserError, match="the hub answers 404: .*see the spelling"):
        fetched.locate("me/nothing")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert "the hub does not answer" in complaint_of(share.main, ["--run", "small", "--to", "me/saes"])
    with pytest.raises(UserError, match="--sae me/saes cannot be fetched: the hub does not answer"):
        fetched.locate("me/saes")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "nowhere")
    assert "without a token: make one" in complaint_of(share.main, ["--run", "small", "--to", "me/saes"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in complaint_of(share.main, ["--run", "small", "--to", "me/saes"])
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        fetched.locate("me/saes")


def test_a_folder_of_the_repository_without_saes_is_named_with_those_that_have_some(uploaded):
    with pytest.raises(
        UserError, match="--sae me/saes/layer7: no SAE .* is there; me/saes has it in layer0, layer2"
    ):
        fetched.locate("me/saes/layer7")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to do: add --to OWNER/NAME, --out DIR, or both"),
        (["--to", "saes"], "--to 'saes' is no name of a repository: type OWNER/NAME"),
        (["--out", "new", "--private"], "--private is of a repository on the hub"),
        (["--out", "sae_features"], "--out sae_features is not empty: name a new folder"),
    ],
)
def test_a_mistyped_command_is_refused(run, words, said):
    assert said in complaint_of(share.main, ["--run", "small", *words])


def test_a_run_without_saes_of_its_own_is_refused(run, train):
    train(runname="given", sae=str(run.path), layers=[2])
    assert "recorded with the SAEs of" in complaint_of(share.main, ["--run", "given", "--out", "new"])
    (run.path / "layer0" / "cfg.json").unlink()
    assert "has no saved SAE of layer0" in complaint_of(share.main, ["--run", "small", "--out", "new"])


def test_a_name_that_cannot_be_one_is_refused_in_one_line():
    assert "--sae nothing is no folder" in complaint_of(
        train_text.main, ["--sae", "nothing", "--runname", "new"]
    )
