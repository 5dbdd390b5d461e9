"""The lines on which keys of a TOML file stand, and how what is wrong with a file is told."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedscope.engine.studies.studyfile.toml import MOST_PROBLEMS, Lines, Unfit, reading

# Texts that look like what they are not: comments, headers, keys, ends of other texts.
PIECES = ["x", " ", "# no comment", "[table]", "[[array]]", "key = 1", "]", "}", "=", ".", "'", "é", "\\\\", "\t"]
BREAKS = ["\n", '\n[study]\nname = "x"\n', "\n# [a]\n"]


@st.composite
def texts(draw) -> str:
    """A text value in any of the four notations."""
    kind = draw(st.sampled_from(["basic", "literal", "long basic", "long literal"]))
    pieces = draw(st.lists(st.sampled_from(PIECES + (BREAKS if kind.startswith("long") else [])), max_size=6))
    inside = "".join(pieces)
    if kind == "basic":
        return '"' + inside.replace("'", '\\"') + '"'
    if kind == "literal":
        return "'" + inside.replace("'", '"') + "'"
    if kind == "long basic":
        quotes = draw(st.sampled_from(["", '"', '""', '\\"', '"" x', "\\\n   "]))
        return f'"""{inside}{quotes}"""'
    inside = inside.replace("'", '"')
    return f"'''{inside}{draw(st.sampled_from(['', chr(39), 2 * chr(39), chr(39) + ' x']))}'''"


def comments() -> st.SearchStrategy[str]:
    return st.sampled_from(["", "", " # plain", ' # "open', " # [[ensemble]]", " # ''' \"\"\" {[", "\t"])


def scalars() -> st.SearchStrategy[str]:
    return texts() | st.sampled_from(["1", "-0.5", "2e6", "inf", "true", "1979-05-27T07:32:00Z", "1_000", "0xff"])


@st.composite
def values(draw, depth: int = 2) -> str:
    """A value; arrays may go over lines with comments between."""
    kind = draw(st.sampled_from(["scalar"] * 3 + ["array", "inline"])) if depth else "scalar"
    if kind == "scalar":
        return draw(scalars())
    parts = draw(st.lists(values(depth=depth - 1), max_size=3))
    if kind == "inline":
        return "{ " + ", ".join(f"k{i} = {part}" for i, part in enumerate(parts)) + " }"
    gaps = [draw(comments()) + "\n" if draw(st.booleans()) else " " for _ in range(len(parts) + 1)]
    return "[" + gaps[0] + "".join(f"{part},{gap}" for part, gap in zip(parts, gaps[1:], strict=True)) + "]"


NAMES = ["key", "a-b", "1", '"quo.ted"', "'# li = t'", '"\\u0041 \\" b"', "'[x]'", '"é"']


@st.composite
def documents(draw) -> tuple[str, dict]:
    """A valid TOML text, and {place: line} of all its tables and keys outside inline tables."""
    text, places, n = "", {}, 0

    def fresh() -> tuple[str, str]:
        """A name as written and as it is read; no two are equal."""
        nonlocal n
        n += 1
        name = draw(st.sampled_from(NAMES))
        written = f"{name[:-1]}{n}{name[-1]}" if name[0] in "\"'" else f"{name}{n}"
        return written, tomllib.loads(f"k = {written}")["k"] if written[0] in "\"'" else written

    def put(line: str, *found: tuple) -> None:
        nonlocal text
        for place in found:
            places.setdefault(place, text.count("\n") + 1)
        text += line

    def filler() -> None:
        put(draw(st.sampled_from(["", "", "\n", "   \n", "# [x]\n", '  # "\n', "#\n\n"])))

    def keys(table: tuple) -> None:
        for _ in range(draw(st.integers(0, 3))):
            filler()
            names = [fresh() for _ in range(draw(st.integers(1, 3)))]
            dot = draw(st.sampled_from([".", " . ", "\t."]))
            found = [(*table, *(read for _, read in names[: i + 1])) for i in range(len(names))]
            indent, around = draw(st.sampled_from(["", "  ", "\t"])), draw(st.sampled_from([" = ", "=", "  =\t"]))
            written = indent + dot.join(name for name, _ in names) + around
            put(f"{written}{draw(values())}{draw(comments())}\n", *found)

    keys(())
    arrays: dict[tuple, tuple[str, int]] = {}
    for _ in range(draw(st.integers(0, 6))):
        filler()
        kind = draw(st.sampled_from(["table", "deep", "array", "again", "inside"]))
        space, comment = draw(st.sampled_from(["", " "])), draw(comments())
        if kind in ("again", "inside") and not arrays:
            kind = "array"
        (written, name), (below, under) = fresh(), fresh()
        if kind == "table":
            place, line, found = (name,), f"[{space}{written}{space}]", [(name,)]
        elif kind == "deep":
            place, line, found = (name, under), f"[{written}{space}.{space}{below}]", [(name,), (name, under)]
        elif kind == "array":
            arrays[name,] = (written, 1)
            place, line, found = (name, 0), f"[[{space}{written}{space}]]", [(name,), (name, 0)]
        else:
            array = draw(st.sampled_from(sorted(arrays)))
            header, count = arrays[array]
            if kind == "again":
                arrays[array] = (header, count + 1)
                place, line, found = (*array, count), f"[[{header}]]", [(*array, count)]
            else:
                nested = draw(st.booleans())
                place = (*array, count - 1, under, *([0] if nested else []))
                line, found = (f"[[{header}.{below}]]" if nested else f"[{header}.{below}]"), [place[:3], place]
        put(f"{line}{comment}\n", *found)
        keys(place)
    return text.rstrip("\n") if draw(st.booleans()) else text, places


@settings(max_examples=300, deadline=None)
@given(documents())
def test_every_key_is_found_on_its_line(document: tuple[str, dict]):
    text, places = document
    content, lines = tomllib.loads(text), Lines(text)
    for place, line in places.items():
        value = content
        for part in place:  # the document is as its maker thinks
            value = value[part]
        assert lines.of(place) == line, place
        assert lines.of((*place, "no such key")) == line


def test_what_stands_inside_a_value_has_the_line_of_its_key():
    lines = Lines('a = 1\nlist = [\n  { x = 1 }, # one\n  { y = """\nz = 3\n""" },\n]\nb = { c = { d = 1 } }\n')
    assert [lines.of(p) for p in (("list", 1, "y"), ("b", "c", "d"), ("b",), ("a",), ("none",))] == [2, 8, 8, 1, 1]


def test_a_missing_key_of_an_array_table_has_the_line_of_its_header():
    lines = Lines("[[e]]\nname = 1\n\n[[e]] # second\n[e.train]\nk = 1\n[[e]]\n")
    assert [lines.of(("e", i, "name")) for i in range(3)] == [2, 4, 7]
    assert lines.of(("e", 1, "train", "k")) == 6


# -- problems --------------------------------------------------------------------------------------------------------


def number(value: object) -> float:
    if not isinstance(value, float):
        raise Unfit("expected a number")
    return value


def read(path: Path) -> list:
    """The numbers of a file whose known keys are alpha, beta and table.gamma."""
    homes = {"gamma": "[table]"}
    with reading(path, example="alpha = 1.0") as top, top.alone(homes):
        found = [top.take("alpha", number, required="a number"), top.take("beta", number, 0.5)]
        if table := top.table("table"):
            with table.alone(homes):
                found.append(table.take("gamma", number))
    return found


def refused(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match="expected") as caught:
        read(path)
    return str(caught.value)


def test_values_are_taken_and_defaults_stand(tmp_path: Path):
    file = tmp_path / "a.toml"
    file.write_bytes(b"\xef\xbb\xbfalpha = 1.5\r\n[table]\r\ngamma = 2.5\r\n")
    assert read(file) == [1.5, 0.5, 2.5]


def test_all_problems_are_told_in_the_order_of_their_lines(tmp_path: Path):
    file = tmp_path / "a.toml"
    told = refused(file, 'bta = 1\n\ngamma = 2\nbeta = "x"\n[table]\n"other key" = 1\n').splitlines()
    assert told[0] == f"{file} has 5 problems:"
    assert [line.removeprefix(f"{file}:").split(" ", 1) for line in told[1:]] == [
        ["1:", "alpha is missing, expected a number"],
        ["1:", "bta is not known here, expected alpha, beta or table; did you mean beta?"],
        ["3:", "gamma is not known here, expected alpha, beta or table; it belongs to [table]"],
        ["4:", 'beta = "x", expected a number'],
        ["6:", 'table."other key" is not known here, expected gamma; leave it out'],
    ]


def test_one_problem_is_one(tmp_path: Path):
    assert refused(tmp_path / "a.toml", "alpha = 1.0\ntable = 3\n").splitlines()[0].endswith("has 1 problem:")


def test_more_problems_than_a_screen_holds_are_counted(tmp_path: Path):
    told = refused(tmp_path / "a.toml", "alpha = 1.0\n" + "".join(f"q{i} = 1\n" for i in range(50))).splitlines()
    assert len(told) == MOST_PROBLEMS + 2
    assert told[-1] == f".. and {50 - MOST_PROBLEMS} more"


def test_long_values_are_shortened(tmp_path: Path):
    assert max(map(len, refused(tmp_path / "a.toml", f'alpha = "{"x" * 5000}"\n').splitlines())) < 300


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        ("alpha = 1.0\nbeta 2\n", 2, "Expected '='"),
        ("alpha = gpt2\n", 1, "Invalid value"),
        ("alpha = 1.0\n[table]\ngamma = 1\ngamma = 2\n", 4, "Cannot overwrite"),
        ("alpha = 1.0\n\n[table\n\n", 3, "Expected ']'"),
        ('alpha = """x\ny\n', 2, "Unterminated string"),
        ("alpha = " + "[" * 100_000, 1, "nested too deeply"),
        ("alpha = " + "9" * 5000, 1, "limit"),
        (b"alpha = 1.0\nbeta = '\xff'\n", 2, "0xff, expected UTF-8"),
        ("alpha = 1.0\x00", 1, "column 12"),
    ],
)
def test_what_is_no_toml_is_told_with_its_line(tmp_path: Path, content: str | bytes, line: int, says: str):
    file = tmp_path / "a.toml"
    told = refused(file, content)
    assert told.startswith(f"{file}:{line}: found ")
    assert says in told
    assert len(told.splitlines()) == 1


def test_what_is_no_file_is_told(tmp_path: Path):
    with pytest.raises(ValueError, match=r"found no file .*none\.toml, expected a TOML file such as:\nalpha = 1"):
        read(tmp_path / "none.toml")
    with pytest.raises(ValueError, match="is a folder, expected a TOML file; name the file; this folder has none"):
        read(tmp_path)
    (tmp_path / "study.toml").touch()
    with pytest.raises(ValueError, match=r"is a folder, .* such as .*study\.toml"):
        read(tmp_path)
