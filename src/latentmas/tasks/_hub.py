"""Rows of published data sets. The only place that imports `datasets`."""

from __future__ import annotations

from latentmas.errors import ConfigError, DataError
from latentmas.protocols import Row


def hub_rows(
    repo: str, config: str | None, split: str, *, revision: str | None, expected_rows: int | None = None
) -> list[Row]:
    """Return the rows of a split of a data set on the hub, or in the local cache of one.

    Args:
        revision: Commit of the data set; None is its newest.
        expected_rows: How many rows the split has; None is not checked.

    Raises:
        ConfigError: The data set cannot be had: no connection, no such name, no access.
        DataError: It has another number of rows.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        table = load_dataset(repo, config, split=split, revision=revision)
    except (OSError, ValueError, DatasetsError) as error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise ConfigError(
            f"the data set {repo} could not be loaded from the hub ({reason}); "
            "pass --dataset FILE with rows in the same columns"
        ) from error
    rows: list[Row] = [dict(row) for row in table]
    if expected_rows is not None and len(rows) != expected_rows:
        raise DataError(f"{repo}, split {split!r}, has {len(rows)} rows; expected {expected_rows}")
    return rows
