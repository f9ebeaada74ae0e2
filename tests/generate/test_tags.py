"""What headers say becomes words, each with a row of its own."""

import re

import pytest

from generate.prompt import parse
from generate.tags import Rule, Tags
from xtrimo.errors import ConfigError, DataError
from xtrimo.fasta import Record
from xtrimo.tokens import CONTROL_WORDS, PUBLISHED_WORDS, Tokenizer

KINASE = Record("A0ALU7", "M" * 215, "family=adenylate_kinase split=train go=GO:0004017;GO:0005524 tm=60")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("family", ["<family=adenylate_kinase>"]),
        ("go", ["<go=GO:0004017>", "<go=GO:0005524>"]),
        ("taxon", []),
        ("length=100,200,400", ["<length=200..400>"]),
        ("length=215", ["<length=215..>"]),
        ("length=216,300", ["<length=..216>"]),
        ("tm=45,60", ["<tm=60..>"]),
        ("tm=45,60.5", ["<tm=45..60.5>"]),
    ],
)
def test_rules_read_headers(rule: str, words: list[str]) -> None:
    found = Rule.parse(rule).words(KINASE)
    assert list(found) == words
    prompt = parse("".join(found) + "MK[3]")  # what a header becomes can be asked for
    assert list(prompt.tag_words) == words and parse(str(prompt)) == prompt


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("length", "say where its bins meet"), ("tm=60,45", "must be finite and rise"), ("tm=nan", "finite"),
        ("tm=warm", "are no numbers"), ("9=3", "expected a name"), ("", "expected a name"),
    ],
)  # fmt: skip
def test_impossible_rules_are_refused(rule: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Rule.parse(rule)


def test_values_that_cannot_be_tags_are_refused() -> None:
    with pytest.raises(DataError, match="X: tm=warm is no number"):
        Rule.parse("tm=1").words(Record("X", "M", "tm=warm"))
    with pytest.raises(DataError, match=re.escape("X: family has the value 'a=b'")):
        Rule.parse("family").words(Record("X", "M", "family=a=b"))


def records(**families: int) -> list[Record]:
    return [Record(f"{name}{i}", "MK", f"family={name}") for name, num in families.items() for i in range(num)]


def test_frequent_tags_get_rows_and_rare_ones_are_counted() -> None:
    tags, rare = Tags.found([Rule("family")], CONTROL_WORDS, records(a=3, b=5, c=1), least=2)
    assert tags.control_words == ("<rev>", "<family=b>", "<family=a>")
    assert dict(rare) == {"<family=c>": 1}
    known = Tokenizer(tags.control_words)
    for name in "ab":
        ids = tags.ids(Record("x", "M", f"family={name}"))
        assert known.decode(ids) == f"<family={name}>"
    assert tags.new_rows.tolist() == [len(PUBLISHED_WORDS) + 1, len(PUBLISHED_WORDS) + 2]
    assert not len(tags.ids(Record("x", "M", "family=c"))) and not len(tags.ids(Record("x", "M")))


def test_known_tags_keep_their_rows() -> None:
    known = ("<rev>", "<family=a>")
    tags, _ = Tags.found([Rule("family"), Rule("length", (5.0,))], known, records(a=3, b=5), least=1)
    assert tags.control_words[:2] == known and set(tags.added) == {"<family=b>", "<length=..5>"}
    assert tags.ids(Record("x", "MK", "family=b;a")).tolist() == sorted(
        len(PUBLISHED_WORDS) + tags.control_words.index(word) for word in ("<family=a>", "<family=b>", "<length=..5>")
    )


def test_more_tags_than_rows_and_none_are_refused() -> None:
    many = records(**{f"f{i:03}": 2 + (i < 50) for i in range(100)})
    with pytest.raises(ConfigError, match="100 new tags, and the vocabulary has 91 free rows; raise --least above 2"):
        Tags.found([Rule("family")], CONTROL_WORDS, many, least=1)
    assert len(Tags.found([Rule("family")], CONTROL_WORDS, many, least=3)[0].added) == 50
    with pytest.raises(ConfigError, match="no tag of family is had by 4 proteins"):
        Tags.found([Rule("family")], CONTROL_WORDS, many, least=4)
