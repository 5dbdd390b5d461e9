"""Patterns below folders whose own names hold brackets, blanks and characters of any script."""

import pytest

from seedscope.engine.contract.patterns import matches

ODD = "läufe [v2] #1 100% 文字 🦊"


@pytest.fixture
def folder(tmp_path):
    for name in (f"{ODD}/texte [a]/ü 1.txt", f"{ODD}/texte [a]/[b].txt", f"{ODD}/b.txt", "v/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        (f"{ODD}/texte [a]/*.txt", ["texte [a]/[b].txt", "texte [a]/ü 1.txt"]),
        (f"{ODD}/texte [a]/ü ?.txt", ["texte [a]/ü 1.txt"]),
        (f"{ODD}/texte [a]/[b].txt", ["texte [a]/[b].txt"]),  # a name before a pattern
        (f"{ODD}/[ab].txt", ["b.txt"]),
        (f"{ODD}/**/*.txt", ["b.txt", "texte [a]/[b].txt", "texte [a]/ü 1.txt"]),
        ("*/texte [a]/ü*.txt", ["texte [a]/ü 1.txt"]),  # behind a wildcard, where brackets match nothing else
        (f"{ODD}/*.nothing", []),
    ],
)
def test_folders_that_exist_are_literal_and_what_follows_them_is_a_pattern(folder, pattern, names, monkeypatch):
    expected = [f"{folder}/{ODD}/{name}" for name in names]
    assert sorted(matches(folder / pattern)) == expected
    monkeypatch.chdir(folder)
    assert sorted(matches(pattern)) == [f"{ODD}/{name}" for name in names]
