"""Features on the disk survive kills; those of images that cannot be measured are left out."""

import numpy as np
import pytest

from drifting_jax.errors import UserError
from drifting_jax.evaluation.features.feature_store import FeatureStore

WIDTHS = {"a": 3, "b": 2}


def rows(start: int, stop: int) -> dict[str, np.ndarray]:
    every = np.arange(start, stop, dtype=np.float32)[:, None]
    return {"a": np.add(every, [0.1, 0.2, 0.3]), "b": np.subtract([0.0, 0.5], every)}


def test_rows_are_found_again_after_a_kill(tmp_path):
    store = FeatureStore(tmp_path / "s", rows=10, widths=WIDTHS)
    store.append(rows(0, 4), np.ones(4, bool))
    store.flush()
    store.append(rows(4, 7), np.ones(3, bool))  # and killed
    again = FeatureStore(tmp_path / "s", rows=10, widths=WIDTHS)
    assert again.done == 4
    again.append(rows(4, 10), np.arange(6) != 2)
    again.flush()
    found = FeatureStore(tmp_path / "s", rows=10, widths=WIDTHS)
    expected = np.float32(np.delete(rows(0, 10)["a"], 6, axis=0))
    np.testing.assert_array_equal(found.array("a"), expected)
    np.testing.assert_array_equal(np.concatenate(list(found.blocks("a"))), expected)
    assert list(found.unusable) == [6] and "a" in found and "c" not in found


def test_blocks_are_all_rows(tmp_path):
    store = FeatureStore(tmp_path / "s", rows=8, widths=WIDTHS)
    store.append(rows(0, 8), np.ones(8, bool))
    blocks = list(store.blocks("b", size=3))
    assert [len(block) for block in blocks] == [3, 3, 2]
    np.testing.assert_array_equal(np.concatenate(blocks), np.float32(rows(0, 8)["b"]))


def test_padding_of_a_batch_is_not_kept(tmp_path):
    store = FeatureStore(tmp_path / "s", rows=5, widths=WIDTHS)
    store.append(rows(0, 4), np.ones(4, bool))
    store.append(rows(4, 8), np.ones(1, bool))
    np.testing.assert_array_equal(store.array("b"), np.float32(rows(0, 5)["b"]))


def test_a_choice_of_rows_is_always_the_same_and_in_order(tmp_path):
    store = FeatureStore(tmp_path / "s", rows=50, widths={"a": 3})
    store.append(rows(0, 50), np.arange(50) % 5 != 0)
    chosen = store.take("a", 12)
    np.testing.assert_array_equal(chosen, store.take("a", 12))
    assert len(chosen) == 12 and (np.diff(chosen[:, 0]) > 0).all()
    assert not set(chosen[:, 0].astype(int)) & set(range(0, 50, 5))
    assert len(store.take("a", 1000)) == 40
    assert (store.take("a", 12, seed=1) != chosen).any()


def test_a_store_of_something_else_is_begun_anew(tmp_path):
    store = FeatureStore(tmp_path / "s", rows=5, widths=WIDTHS)
    store.append(rows(0, 5), np.ones(5, bool))
    store.flush()
    assert FeatureStore(tmp_path / "s", rows=5, widths=WIDTHS).done == 5
    assert FeatureStore(tmp_path / "s", rows=6, widths=WIDTHS).done == 0
    (tmp_path / "s" / "progress.json").write_text("{")
    assert FeatureStore(tmp_path / "s", rows=6, widths=WIDTHS).done == 0
    store.delete()
    assert not (tmp_path / "s").exists()


def test_too_little_room_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"need \d+\.\d GiB in .* make room"):
        FeatureStore(tmp_path / "s", rows=2**40, widths=WIDTHS)
