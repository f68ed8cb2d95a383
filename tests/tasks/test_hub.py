"""What the hub can answer becomes rows, or one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from latentmas.errors import ConfigError, DataError
from latentmas.protocols import Row, TaskCard
from latentmas.tasks import _hub, gpqa, gsm8k

datasets = pytest.importorskip("datasets")

ROWS: list[Row] = [{"question": "one?"}, {"question": "two?"}]
CARD = TaskCard(
    source="a/b", config="c", revision="abc", rows={"test": 2, "train": 3}, columns=("question",), licence="none"
)


def failures() -> list[Exception]:
    """What `load_dataset` was seen or is documented to raise."""
    from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError
    from huggingface_hub import errors

    response: Any = type("Response", (), {"headers": {}, "status_code": 403, "request": None})()
    return [
        DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub. You must be authenticated to access it."),
        DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."),
        DatasetNotFoundError("Revision 'abc' doesn't exist for dataset 'a/b' on the Hub."),
        DataFilesNotFoundError("No (supported) data files found in a/b"),
        DatasetGenerationError("An error occurred while generating the dataset"),
        errors.GatedRepoError("403 Client Error.", response=response),
        errors.RepositoryNotFoundError("401 Client Error.", response=response),
        errors.HfHubHTTPError("503 Server Error.", response=response),
        errors.LocalEntryNotFoundError("not in the cache"),
        errors.LocalTokenNotFoundError("no token"),
        errors.OfflineModeIsEnabled("HF_HUB_OFFLINE=1"),
        errors.HTTPError("the connection was lost"),  # type: ignore[attr-defined]
        ConnectionError("Couldn't reach 'a/b' on the Hub (LocalEntryNotFoundError)\nsecond line"),
        ValueError("BuilderConfig 'c' not found."),
        RuntimeError("Dataset scripts are no longer supported, but found b.py"),
    ]


def load(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., object]) -> None:
    monkeypatch.setattr(datasets, "load_dataset", answer)


@pytest.mark.parametrize("failure", failures(), ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("card", [gsm8k.CARD, gpqa.CARD], ids=["open", "gated"])
def test_every_failure_says_what_to_do(failure: Exception, card: TaskCard, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> object:
        raise failure

    load(monkeypatch, fail)
    with pytest.raises(ConfigError) as caught:
        _hub.hub_rows(card, next(iter(card.rows)))
    message = str(caught.value)
    assert f"the data set {card.source} could not be loaded from the hub ({type(failure).__name__}: " in message
    assert message.endswith("pass --dataset FILE with rows in the same columns")
    assert "\n" not in message
    assert caught.value.__cause__ is failure
    if card.gated:
        for step in ("https://huggingface.co/datasets/Idavidrein/gpqa", "hf auth login", "HF_TOKEN"):
            assert step in message
    else:
        assert "accept the terms" not in message


def test_a_bug_is_not_blamed_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    load(monkeypatch, lambda *_, **__: {}["missing"])
    with pytest.raises(KeyError):
        _hub.hub_rows(CARD, "test")


def test_the_card_says_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def answer(*arguments: object, **options: object) -> list[Row]:
        asked.extend([arguments, options])
        return ROWS

    load(monkeypatch, answer)
    assert _hub.hub_rows(CARD, "test") == ROWS
    assert asked == [("a/b", "c"), {"split": "test", "revision": "abc"}]


def test_the_row_count_of_the_hub_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    load(monkeypatch, lambda *_, **__: ROWS)
    with pytest.raises(DataError, match="a/b, split 'train', has 2 rows; expected 3"):
        _hub.hub_rows(CARD, "train")
