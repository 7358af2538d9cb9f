"""The stream of activations: rows and items keep together, and a bad row is named, in workers too."""

import errno
import os
import re
import signal

import numpy as np
import pytest
import torch
from small_world import SmallEncoder, SmallPairs

from plumbing.errors import UserError
from training import experiment
from training.activations import Stream
from training.token_cache import RecordedTokens


def stream(pairs, workers=0):
    return Stream(SmallEncoder(), pairs, [0, 2], workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_come_as_planned_with_their_items(workers):
    pairs = SmallPairs(captions=lambda row: [f"{row}", f"{row} again"] if row % 2 else [f"{row}"])
    plan = [[5, 1, 2], [0], [3, 4]]
    batches = list(stream(pairs, workers).batches(plan))
    assert [batch.rows for batch in batches] == [[5, 5, 1, 1, 2], [0], [3, 3, 4]]
    assert [len(batch.mask) for batch in batches] == [5, 1, 3]
    assert sorted(batches[0].layers) == [0, 2]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_item_is_the_users_mistake_and_one_line(workers):
    def captions(row):
        if row == 3:
            raise UserError("row 3 cannot be read")
        return [str(row)]

    with pytest.raises(UserError) as caught:
        list(stream(SmallPairs(captions=captions), workers).batches([[0, 1], [2, 3]]))
    assert str(caught.value) == "row 3 cannot be read"


def killed(row):
    os.kill(os.getpid(), signal.SIGKILL)


def out_of_room(row):
    raise RuntimeError(
        "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
    )


@pytest.mark.parametrize(
    ("fails", "why"), [(killed, r"DataLoader worker \(pid"), (out_of_room, r"on device \(28\)")]
)
def test_a_worker_that_is_lost_ends_in_one_line(fails, why):
    with pytest.raises(UserError) as caught, experiment.in_one_line(16, True):
        list(stream(SmallPairs(captions=fails), workers=1).batches([[0, 1]]))
    remedy = "give the same command again, without --overwrite, with --workers 0, or in a container"
    assert re.fullmatch(rf"a process of --workers was lost \(.*{why}.*\): {remedy} .*", str(caught.value))


def test_a_mistake_of_ours_in_a_worker_keeps_its_traceback():
    def mistaken(row):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="in DataLoader worker"), experiment.in_one_line(16, False):
        list(stream(SmallPairs(captions=mistaken), workers=1).batches([[0, 1]]))


def test_flat_takes_the_tokens_that_are_real():
    (batch,) = stream(SmallPairs()).batches([[0, 1]])
    assert batch.mask.tolist() == [[True, True, True, False]] * 2
    tokens = batch.flat(2, batch.real_tokens())
    torch.testing.assert_close(tokens, batch.layers[2][:, :3].reshape(6, -1))
    assert batch.real_tokens(np.array([False, True])).tolist() == [4, 5, 6]


def test_rows_with_one_recorded_token_are_kept_and_read_back(tmp_path):
    pairs = SmallPairs(captions=lambda row: [f"{row}", f"{row} again"] if row == 4 else [f"{row}"])
    kept = RecordedTokens(tmp_path / "tokens", 6, {0: 8, 2: 8})
    assert not kept.present().any()
    batches = list(stream(pairs).batches([[5, 1], [4, 2]]))
    for batch in batches:
        kept.write(batch)
    kept.sync()
    kept.close()
    again = RecordedTokens(tmp_path / "tokens", 6, {0: 8, 2: 8})
    np.testing.assert_array_equal(again.present(), [False, True, True, False, False, True])
    found = again.read([1, 2, 5])
    for layer in (0, 2):
        expected = [
            batches[0].layers[layer][1, 1],
            batches[1].layers[layer][2, 1],
            batches[0].layers[layer][0, 1],
        ]
        torch.testing.assert_close(found[layer], torch.stack(expected), rtol=0, atol=0)
    assert (tmp_path / "tokens").stat().st_size == RecordedTokens.nbytes(6, {0: 8, 2: 8}) == 390


def test_a_disk_that_one_process_finds_full_leaves_no_zeros_marked_present(tmp_path, monkeypatch):
    """The other is between a row's vector and its flag. What each opens later holds what is written later only."""
    mine, other = (RecordedTokens(tmp_path / "tokens", 6, {0: 8, 2: 8}) for _ in range(2))
    first, second, third = stream(SmallPairs()).batches([[1], [2], [3]])
    pwrite, calls = os.pwrite, []

    def racing(handle, content, where):
        calls.append(handle)
        if handle == other.open:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        done = pwrite(handle, content, where)
        if len(calls) == 1:
            other.write(second)
        return done

    monkeypatch.setattr(os, "pwrite", racing)
    mine.write(first)
    mine.write(third)
    assert not (tmp_path / "tokens").exists()
    assert os.fstat(mine.open).st_size <= RecordedTokens.nbytes(6, {0: 8, 2: 8})
    assert calls.count(mine.open) == 2  # nothing after it was told
    again = RecordedTokens(tmp_path / "tokens", 6, {0: 8, 2: 8})
    again.write(third)
    assert again.present().tolist() == [False, False, False, True, False, False]
