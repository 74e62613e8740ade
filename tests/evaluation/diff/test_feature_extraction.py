import numpy as np
import pytest

from piston.core.console import Progress
from piston.core.errors import MisuseError
from piston.evaluation.diff import DiffOptions
from piston.evaluation.diff.feature_extraction import differences, nearest


class Table:
    """An Embedder that looks vectors up."""

    def __init__(self, angles):
        self.vectors = np.array([[np.cos(angle), np.sin(angle)] for angle in angles], np.float32)

    def embed(self, texts, *, truncate):
        assert truncate
        return self.vectors[: len(texts)]


def compared(path, before, after, **options):
    return differences(Table(before), Table(after), path, DiffOptions(**options), Progress(quiet=True))


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("a\nb\nc\nd\n")
    return path


def test_neighbours_are_the_other_rows_by_cosine():
    vectors = np.array([[2, 0], [1, 0.1], [0, 3], [0.1, 1]], np.float32)
    np.testing.assert_array_equal(nearest(vectors, 1), [[1], [0], [3], [2]])


def test_scaled_and_turned_vectors_have_the_same_neighbours(texts):
    found = compared(texts, [0, 0.1, 1, 1.15], [2, 2.1, 3, 3.15], top=2)
    assert (found.num_changed, [value for _, value, _ in found.figures]) == (0, [1, 1])


def test_a_text_whose_neighbour_changed_is_listed_with_what_was_lost_and_gained(texts):
    # a is nearest to b before and to d after; b and c keep their neighbour or change it likewise.
    found = compared(texts, [0, 0.1, 1, 1.5], [0, 0.3, 1, -0.1], top=1)
    change = next(change for change in found.changes if change.record == 1)
    assert (change.text, change.before, change.after) == ("a", "2: b", "4: d")
    figures = {name: value for name, value, _ in found.figures}
    assert figures["neighbours@1"] == pytest.approx(1 - found.num_changed / 4)


def test_one_text_has_no_neighbours(tmp_path):
    (tmp_path / "one.txt").write_text("alone\n")
    with pytest.raises(MisuseError, match="two or more"):
        compared(tmp_path / "one.txt", [0], [0])
