"""Rows of published data sets. The only place that imports `datasets`."""

from __future__ import annotations

from latentmas.errors import ConfigError, DataError
from latentmas.protocols import Row, TaskCard


def hub_rows(card: TaskCard, split: str) -> list[Row]:
    """Return the rows of a split of a data set on the hub, or in the local cache of one.

    Raises:
        ConfigError: The data set cannot be had: no connection, no such name, no access.
        DataError: It has another number of rows.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the HTTP library it uses

    try:
        table = load_dataset(card.source, card.config, split=split, revision=card.revision)
    # RuntimeError is what the hub's download engine raises, and what a data set made by a script is refused with.
    except (OSError, ValueError, RuntimeError, HTTPError, DatasetsError) as error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        access = (
            f"accept the terms on https://huggingface.co/datasets/{card.source} and log in with `hf auth login` "
            "(or set HF_TOKEN), or "
        )
        raise ConfigError(
            f"the data set {card.source} could not be loaded from the hub ({reason}); {access if card.gated else ''}"
            "pass --dataset FILE with rows in the same columns"
        ) from error
    rows: list[Row] = [dict(row) for row in table]
    if len(rows) != card.rows[split]:
        raise DataError(f"{card.source}, split {split!r}, has {len(rows)} rows; expected {card.rows[split]}")
    return rows
