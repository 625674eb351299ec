"""Data sets that the `datasets` library holds: a stand-in for the Hub, no Hub at all, and `save_to_disk`."""

import os
import shutil
from pathlib import Path

import datasets.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.texts.hub_copy import write_repository
from traceformer.errors import NotFound, Unreadable, UsageError
from traceformer.network import hub_answers
from traceformer.texts.load import load_texts

ROWS = {"text": ["first", " ", "third"], "label": [1, 0, 1], "id": ["same", "same", "same"]}
FEATURES = datasets.Features(
    text=datasets.Value("string"), label=datasets.ClassLabel(names=["bad", "good"]), id=datasets.Value("string")
)


@pytest.fixture
def dataset() -> datasets.Dataset:
    return datasets.Dataset.from_dict(ROWS, features=FEATURES)


@pytest.fixture
def reviews(hub: Path, dataset: datasets.Dataset) -> str:
    """A data set of two configurations, `small` with the splits train and test, `large` with train only."""
    schema = dataset.data.table.schema.remove_metadata()
    rows = dataset.to_list()
    write_repository(
        hub / "someone/reviews",
        "configs:\n"
        "- config_name: small\n  data_files:\n  - split: train\n    path: small/train.parquet\n"
        "  - split: test\n    path: small/test.parquet\n"
        "- config_name: large\n  data_files: large/*.parquet",
        dict.fromkeys(("small/train.parquet", "small/test.parquet", "large/a.parquet"), (rows, schema)),
    )
    return "hf:someone/reviews"


def test_a_hub_data_set_is_read_with_its_configuration_and_split(reviews: str) -> None:
    source = load_texts(f"{reviews}:small", split="test")
    assert [(example.index, example.text) for example in source.examples] == [(0, "first"), (2, "third")]
    assert (source.name, source.split, source.skipped) == ("reviews-small", "test", 1)
    assert source.examples[1].extra == {"label": 1, "id": "same"}


def test_the_only_split_is_taken_where_none_is_asked_for(reviews: str) -> None:
    assert load_texts(f"{reviews}:large").split == "train"


def test_what_a_hub_data_set_does_not_have_is_refused_with_what_it_has(reviews: str) -> None:
    with pytest.raises(NotFound, match="no split 'validation'; it has: train, test"):
        load_texts(f"{reviews}:small")
    with pytest.raises(NotFound, match="no configuration 'tiny'; it has: small, large"):
        load_texts(f"{reviews}:tiny")
    with pytest.raises(NotFound, match="has several configurations, and none was named; it has: small, large"):
        load_texts(reviews)
    with pytest.raises(NotFound, match="no column 'body'; it has: text, label, id"):
        load_texts(f"{reviews}:large", text_column="body")
    for name in ("hf:", "hf:..", "hf:../reviews", "hf:a/b/c"):
        with pytest.raises(UsageError, match="hf:OWNER/NAME"):
            load_texts(name)


def test_without_the_hub_it_says_how_to_bring_the_data_here(own_cache: None) -> None:
    with pytest.raises(NotFound, match=r"hf download tau/commonsense_qa .*TRACEFORMER_DATASETS=DIR"):
        load_texts("csqa")


def test_where_the_hub_cannot_be_reached_it_is_not_asked(own_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to the Hub")

    asked: list[object] = []
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.create_connection", unreachable)
    monkeypatch.setattr("traceformer.network.getproxies", dict)
    for call in ("hf_hub_download", "dataset_info", "list_repo_tree"):
        monkeypatch.setattr(f"huggingface_hub.HfApi.{call}", lambda *call, **_: asked.append(call))
    with pytest.raises(NotFound, match="the Hub cannot be reached"):
        load_texts("hf:someone/reviews")
    assert not asked
    assert datasets.config.HF_HUB_OFFLINE is False


def test_a_proxy_is_not_asked_whether_the_hub_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.create_connection", lambda *_: pytest.fail("connected past the proxy"))
    monkeypatch.setattr("traceformer.network.getproxies", lambda: {"https": "http://proxy:3128"})
    assert hub_answers()


def test_what_is_read_is_what_lies_there_whatever_the_cache_holds(
    hub: Path, reviews: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read() -> tuple[list[str], str]:
        source = load_texts(f"{reviews}:large")
        return [example.text for example in source.examples], source.digest

    file = hub / "someone/reviews/large/a.parquet"
    first = read()
    content, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    changed = pq.read_table(file).set_column(0, "text", pa.array(["FIRST", " ", "third"]))
    pq.write_table(changed, file)
    os.utime(file, ns=times)  # the time of change tells nothing
    assert read()[0] == ["FIRST", "third"]
    shutil.copytree(hub, tmp_path / "elsewhere")
    pq.write_table(changed.slice(2), tmp_path / "elsewhere/someone/reviews/large/a.parquet")
    monkeypatch.setenv("TRACEFORMER_DATASETS", str(tmp_path / "elsewhere"))
    assert read()[0] == ["third"]
    monkeypatch.setenv("TRACEFORMER_DATASETS", str(hub))
    file.write_bytes(content)
    assert read() == first


def test_a_data_set_that_is_a_script_is_refused_and_not_run(hub: Path) -> None:
    folder = hub / "someone/old"
    folder.mkdir(parents=True)
    (folder / "old.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(Unreadable, match="script"):
        load_texts("hf:someone/old")


def test_a_repository_without_data_is_refused(hub: Path) -> None:
    (hub / "someone/empty").mkdir(parents=True)
    with pytest.raises(Unreadable, match="data files"):
        load_texts("hf:someone/empty")


def test_damaged_files_of_a_repository_are_refused(hub: Path, reviews: str) -> None:
    (hub / "someone/reviews/large/a.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(Unreadable, match="could not be loaded"):
        load_texts(f"{reviews}:large")


def test_saved_splits_are_read(tmp_path: Path, dataset: datasets.Dataset, own_cache: None) -> None:
    unique = dataset.remove_columns("id").add_column("id", ["a", "b", "c"])
    datasets.DatasetDict({"train": unique, "valid": unique.select([2])}).save_to_disk(str(tmp_path / "saved"))
    source = load_texts(str(tmp_path / "saved"), split="train")
    assert [(example.example_id, example.text) for example in source.examples] == [("a", "first"), ("c", "third")]
    assert load_texts(str(tmp_path / "saved")).split == "validation"


def test_a_lone_saved_data_set_is_all_or_what_the_user_calls_it(
    tmp_path: Path, dataset: datasets.Dataset, own_cache: None
) -> None:
    folder = str(tmp_path / "saved")
    dataset.remove_columns("id").with_format("numpy").save_to_disk(folder)
    assert load_texts(folder).split == "all"
    example = load_texts(folder, split="test").examples[0]
    assert (example.extra, type(example.extra["label"])) == ({"label": 1}, int)


def test_repeated_ids_of_the_users_own_are_refused(tmp_path: Path, dataset: datasets.Dataset, own_cache: None) -> None:
    dataset.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(Unreadable, match=r"id 'same' occurs twice: .*row 0 and .*row 2"):
        load_texts(str(tmp_path / "saved"))


def test_a_damaged_saved_data_set_is_refused(tmp_path: Path, dataset: datasets.Dataset, own_cache: None) -> None:
    for name, damage in (("data-00000-of-00001.arrow", b""), ("data-00000-of-00001.arrow", None), ("state.json", b"{")):
        folder = tmp_path / f"saved-{name}-{damage}"
        dataset.save_to_disk(str(folder))
        (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage)
        with pytest.raises(Unreadable, match="not a data set that save_to_disk wrote"):
            load_texts(str(folder))


def test_rows_that_arrow_would_read_elsewhere_are_refused(
    tmp_path: Path, dataset: datasets.Dataset, own_cache: None
) -> None:
    rows = dataset.select(range(2)).map(lambda _: {"text": "\N{SNOWMAN} river"})
    rows.save_to_disk(str(tmp_path / "saved"))
    path = tmp_path / "saved" / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes().replace("\N{SNOWMAN}".encode(), b"\xff\xff\xff"))
    with pytest.raises(Unreadable, match=r"saved, split all is damaged(.|\n)*UTF8"):
        list(load_texts(str(tmp_path / "saved")).examples)


def test_columns_of_pictures_are_left_out(tmp_path: Path, own_cache: None) -> None:
    features = datasets.Features(text=datasets.Value("string"), picture=datasets.Image())
    rows = {"text": ["a"], "picture": [{"bytes": b"no picture", "path": None}]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    assert load_texts(str(tmp_path / "saved")).examples[0].extra == {}


def test_many_rows_are_read_as_they_are_asked_for(tmp_path: Path, own_cache: None) -> None:
    datasets.Dataset.from_dict({"text": [f"text {n}" for n in range(3000)]}).save_to_disk(str(tmp_path / "saved"))
    examples = load_texts(str(tmp_path / "saved")).examples
    assert [examples[n].text for n in (2999, 0, 1024)] == ["text 2999", "text 0", "text 1024"]
