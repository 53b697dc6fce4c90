"""``kdrs data``: results on stdout, one JSON document if asked, errors as KdrsError."""

from __future__ import annotations

import json

import pytest

from commands import runner
from kdrs.cli.data import app
from kdrs.data import Dataset
from kdrs.errors import ConfigError, DataError, MachineError

LINES = "".join(f"u{user},i{(user * 3 + n) % 20},{n % 5 + 1},{881250949 + n}\n" for user in range(30) for n in range(8))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "clicks.csv"
    path.write_text("user,item,rating,timestamp\n" + LINES)
    return path


def run(*arguments):
    result = runner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_prepare_then_describe(source, tmp_path):
    result = run(
        "prepare", source, "--out", tmp_path / "d", "--min-rating", 2, "--k-core", 3, "--candidates", 4, "--json"
    )
    document = json.loads(result.stdout)
    assert document["schema"] == 1
    assert document["name"] == "clicks"
    assert "rating >= 2" in result.stderr
    described = json.loads(run("describe", tmp_path / "d", "--json").stdout)
    assert {key: document[key] for key in described} == described
    assert Dataset.load(tmp_path / "d").fingerprint == document["fingerprint"]
    text, shares = run("describe", tmp_path / "d").stdout, described["popular_share"]
    assert "clicks: 30 users, 20 items" in text
    told = ", ".join(f"{part} {shares[part]:.1%}" for part in ("train", "valid", "test"))
    assert f"popular     {told} of the pairs ask for the 1 % most frequent items of train, 1 here" in text


def test_dry_run_writes_nothing(source, tmp_path):
    document = json.loads(run("prepare", source, "--out", tmp_path / "d", "--dry-run", "--json").stdout)
    assert document["path"] is None
    assert document["dry_run"] is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clicks.csv"]


@pytest.mark.parametrize(
    ("options", "spec"),
    [
        (
            ["--split", "ratio", "--fractions", "0.6,0.3,0.1"],
            {"kind": "ratio", "fractions": [0.6, 0.3, 0.1], "seed": 7},
        ),
        (["--split", "ordered"], {"kind": "ordered", "fractions": [0.8, 0.1, 0.1], "order": "time"}),
        (
            ["--split", "last-n", "--n-test", 2],
            {"kind": "last-n", "n_valid": 1, "n_test": 2, "last": "test", "order": "time"},
        ),
        (["--preset", "bd"], {"kind": "last-n", "n_valid": 1, "n_test": 1, "last": "valid", "order": "time"}),
        ([], {"kind": "leave-one-out", "seed": 7}),
    ],
)
def test_splits(source, options, spec):
    seed = ("--seed", 7) if "seed" in spec else ()  # the others draw nothing
    document = json.loads(run("prepare", source, *options, *seed, "--dry-run", "--json").stdout)
    assert document["split"] == spec


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fractions", "0.5,0.25,0.25"], "split 'leave-one-out' has no use for fractions"),
        (["--split", "last-n", "--fractions", "0.5,0.25,0.25"], "another split: ratio, ratio-users, ordered, time"),
        (["--preset", "hetcomp", "--n-test", 2], "split 'ratio' has no use for n-test"),
        (["--n-valid", 1], "has no use for n-valid"),
        (["--split", "time", "--short-users", "drop"], "has no use for short-users"),
        (["--test", "{source}", "--cold-items", "drop"], "split 'given' has no use for cold-items"),
        (["--test", "{source}", "--short-users", "drop"], "split 'given' has no use for short-users"),
        (["--test", "{source}", "--fractions", "0.5,0.25,0.25"], "split 'given' has no use for fractions"),
    ],
)
def test_options_that_the_split_does_not_read_are_refused(source, options, message):
    with pytest.raises(ConfigError, match=message):
        run("prepare", source, "--dry-run", *(str(option).format(source=source) for option in options))


def test_more_candidates_than_users_have_unseen_items_are_warned_of(source):
    # 20 items, 8 of them each user's own
    result = run("prepare", source, "--candidates", 13, "--dry-run", "--json")
    assert "\nwarning: 30 of 30 users have fewer than 13 unseen items" in result.stderr
    assert "(the fewest 12), and so fewer candidates\n" in result.stderr
    assert json.loads(result.stdout)["candidates"] == 13
    assert "unseen items" not in run("prepare", source, "--candidates", 12, "--dry-run").stderr


def test_time_split(source):
    document = json.loads(run("prepare", source, "--split", "time", "--dry-run", "--json").stdout)
    assert document["split"]["unit"] == "us"
    assert document["pairs"]["train"] == 180


def test_given_parts_by_option_and_by_folder(tmp_path):
    for part, rows in (("train", "a\tx\na\ty\n"), ("test", "a\tz\n")):
        (tmp_path / f"{part}.tsv").write_text("user\titem\n" + rows)
    by_option = run("prepare", tmp_path / "train.tsv", "--test", tmp_path / "test.tsv", "--dry-run", "--json")
    by_folder = run("prepare", tmp_path, "--dry-run", "--json")
    assert json.loads(by_option.stdout)["fingerprint"] == json.loads(by_folder.stdout)["fingerprint"]


def test_describe_a_file(source):
    facts = json.loads(run("describe", source, "--json").stdout)
    assert (facts["users"], facts["rows"], facts["format"]) == (30, 240, "csv")
    assert facts["times"]["first"] == "1997-12-04T15:55:49Z"
    assert "timestamp" not in run("describe", source).stdout


def test_lists_of_known_sets():
    names = [row["name"] for row in json.loads(run("fetch", "list", "--json").stdout)["sets"]]
    assert "ml-100k" in names


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["prepare", "{source}"], ConfigError, "prepare needs a folder"),
        (["prepare", "gowala", "--dry-run"], ConfigError, "did you mean 'gowalla'"),
        (["prepare", "no.csv", "--dry-run"], DataError, "cannot read no.csv"),
        (["prepare", "{source}", "--dry-run", "--split", "lou"], ConfigError, "unknown split lou"),
        (["prepare", "{source}", "--dry-run", "--preset", "fr811"], ConfigError, "did you mean 'fr-811'"),
        (["prepare", "{source}", "--dry-run", "--fractions", "a,b,c"], ConfigError, "fractions a,b,c are no numbers"),
        (["prepare", "{source}", "--dry-run", "--min-rating", "9"], DataError, "step 'rating >= 9' leaves nothing"),
        (["prepare", "{source}", "--dry-run", "--split", "given"], ConfigError, "needs the files of the parts"),
        (["prepare", "{folder}", "--dry-run"], DataError, "is a folder without one file each"),
        (["describe", "{folder}"], DataError, "is no prepared data set"),
        (["fetch", "foursquare"], MachineError, "KDRS_OFFLINE is set"),
    ],
)
def test_errors(source, tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.setenv("KDRS_OFFLINE", "1")
    monkeypatch.setenv("KDRS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KDRS_DATA", raising=False)
    with pytest.raises(error, match=message):
        run(*(argument.format(source=source, folder=tmp_path) for argument in arguments))
    assert not (tmp_path / "cache").exists()


def test_reader_options_with_a_prepared_data_set_are_refused(source, tmp_path):
    run("prepare", source, "--out", tmp_path / "d")
    with pytest.raises(ConfigError, match=r"separator with .*, which is prepared already"):
        run("describe", tmp_path / "d", "--separator", "tab")
