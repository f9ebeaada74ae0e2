"""Shares of work: all of it, none twice."""

import json
import os
from pathlib import Path

import pytest

from xtrimo.durable import create_json
from xtrimo.errors import ConfigError
from xtrimo.shards import WHOLE, Shard, parse_shard


@pytest.mark.parametrize("num", [1, 2, 3, 8])
def test_shares_make_up_the_whole(num: int) -> None:
    shares = [parse_shard(f"{number}/{num}") for number in range(1, num + 1)]
    assert all(share.siblings == shares for share in shares)
    assert sorted(item for share in shares for item in share.of(range(7))) == list(range(7))
    assert len({share.name_in("x") for share in shares}) == num


def test_as_written() -> None:
    assert parse_shard("1/1") == WHOLE and parse_shard("3/8") == Shard(2, 8)
    for wrong in ("0/2", "3/2", "2", "/2", "1/", "-1/2", "1/2/3", "a/b", ""):
        with pytest.raises(ConfigError, match="expected I/N"):
            parse_shard(wrong)


def test_a_file_is_created_once(tmp_path: Path) -> None:
    """Of processes that begin together one writes it, and none sees half of it."""
    path = tmp_path / "settings.json"
    children = []
    for number in range(8):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                create_json(path, [number] * 10_000)
                status = 0
            except FileExistsError:
                status = 3 if len(json.loads(path.read_text())) == 10_000 else 1
            finally:
                os._exit(status)
        children.append(child)
    ends = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert ends == [0] + [3] * 7 and [file.name for file in tmp_path.iterdir()] == ["settings.json"]
