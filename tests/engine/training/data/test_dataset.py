"""What was written is what is read; a folder is whole or absent."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiflora.engine.training.data.config import DataConfig
from multiflora.engine.training.data.dataset import (
    DatasetDamaged,
    DatasetWriter,
    PreparedDataset,
)
from multiflora.engine.training.data.finding import Finding
from multiflora.engine.training.data.problem import Problem
from multiflora.engine.training.data.report import Bucket, Report
from multiflora.engine.training.data.row_key import RowKey
from multiflora.engine.training.example import Example, Item, Preference, Rating

REPORT = Report(
    format="text",
    num_rows=1,
    histogram=(Bucket(8, 1),),
    problems=(Problem(3, "x", "y"),),
    findings=(Finding("info", "x", "y", (1, 2)),),
)
IDS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=12).map(tuple)
WEIGHTS = st.sampled_from([0.0, 0.1, 1.0])
LINES = st.integers(1, 2**40)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    ids = draw(IDS)
    weights = [draw(WEIGHTS) for _ in ids]
    return Example(ids, (0.0, *weights[1:]), draw(LINES))


PAIRS = st.builds(Preference, IDS, IDS, IDS, LINES)
RATINGS = st.builds(Rating, IDS, IDS, st.booleans(), LINES)


def write(folder: Path, items: Sequence[Item], config: DataConfig) -> None:
    with DatasetWriter(folder, config) as writer:
        for item in items:
            writer.add(item)
            writer.add_key(RowKey(2**64 - 1, item.line, 0), item.line)
        writer.finish(REPORT, fingerprint="f")


@given(items=st.lists(examples(), min_size=1, max_size=5))
def test_examples_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, items: list[Example]
) -> None:
    folder = tmp_path_factory.mktemp("data") / "set"
    config = DataConfig(prompt_loss_weight=0.1)
    write(folder, items, config)
    with PreparedDataset.open(folder) as dataset:
        assert list(dataset) == items
        assert [dataset.num_tokens(i) for i in range(len(dataset))] == [len(e.ids) for e in items]
        assert (dataset.info.report, dataset.info.config) == (REPORT, config)
        assert [(key.exact, key.near, line) for key, line in dataset.row_keys()] == [
            (2**64 - 1, item.line, item.line) for item in items
        ]


@given(items=st.lists(RATINGS, min_size=1, max_size=5))
def test_ratings_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, items: list[Rating]
) -> None:
    folder = tmp_path_factory.mktemp("data") / "set"
    write(folder, items, DataConfig(method="kto"))
    with PreparedDataset.open(folder) as dataset:
        assert list(dataset) == items


@given(items=st.lists(PAIRS, min_size=1, max_size=5))
def test_preferences_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, items: list[Preference]
) -> None:
    folder = tmp_path_factory.mktemp("data") / "set"
    write(folder, items, DataConfig(method="dpo"))
    with PreparedDataset.open(folder) as dataset:
        assert list(dataset) == items
        for place, item in enumerate(items):
            length = len(item.prompt) + len(item.chosen) + len(item.rejected)
            assert dataset.num_tokens(place) == length


ONE = Example((1, 2), (0.0, 1.0), 1)


def test_equal_data_has_an_equal_digest(tmp_path: Path) -> None:
    unlearnt = Example((1, 2), (0.0, 0.0), 1)
    contents = {"a": [ONE, ONE], "b": [ONE, ONE], "c": [ONE, unlearnt], "d": [ONE]}
    for name, items in contents.items():
        write(tmp_path / name, items, DataConfig())
    digests = {name: PreparedDataset.open(tmp_path / name).info.digest for name in contents}
    assert digests["a"] == digests["b"]
    assert len(set(digests.values())) == 3


def test_places_beyond_the_end_are_no_items(tmp_path: Path) -> None:
    write(tmp_path / "set", [ONE], DataConfig())
    dataset = PreparedDataset.open(tmp_path / "set")
    for place in (-1, 1):
        with pytest.raises(IndexError, match="of 1"):
            dataset[place]


def test_an_end_without_finish_leaves_nothing(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "set", DataConfig()) as writer:
        writer.add(ONE)
    assert list(tmp_path.iterdir()) == []


def test_what_a_crash_left_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".set.partial").mkdir()
    (tmp_path / ".set.partial" / "tokens.bin").write_bytes(b"half")
    write(tmp_path / "set", [ONE], DataConfig())
    assert list(PreparedDataset.open(tmp_path / "set")) == [ONE]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_whole_set_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "set", [ONE], DataConfig())
    with pytest.raises(FileExistsError, match="open it, or remove it"):
        write(tmp_path / "set", [ONE], DataConfig())


@pytest.mark.parametrize("name", ["tokens.bin", "marks.bin", "index.bin", "dataset.json"])
@pytest.mark.parametrize("damage", ["short", "absent"])
def test_damage_is_noticed(tmp_path: Path, name: str, damage: str) -> None:
    write(tmp_path / "set", [ONE], DataConfig())
    path = tmp_path / "set" / name
    if damage == "short":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with pytest.raises(DatasetDamaged, match="prepare the file again"):
        PreparedDataset.open(tmp_path / "set")
