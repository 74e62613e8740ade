"""A double of a column of a table, as pandas has them."""

from collections.abc import Iterator, Mapping


class Column:
    """Texts in an order; len and iteration go by it, [] by labels, and a slice is a column again."""

    def __init__(self, items: Mapping[int, str]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[str]:
        return iter(self.items.values())

    def __getitem__(self, key: int | slice) -> "str | Column":
        if isinstance(key, slice):
            return Column(dict(list(self.items.items())[key]))
        return self.items[key]
