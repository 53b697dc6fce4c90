"""Of `kdrs sweep` and ``--jobs``: cases of test_remedies.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from commands import ok
from faulty_files import both, delete, write
from remedies import FILE, TRAIN, Case

SWEEP = ("sweep", "study.toml", "--out", "study", "--quiet")
SEARCH = "[sweep]\ntrials = 2\nsampler = 'random'\n"
SPACE = "[sweep.space]\n'train.lr' = [0.01, 0.02]\n"
HEAD = "device = 'cpu'\nthreads = 1\n"


def study(space: str = SPACE, *, search: str = SEARCH, run: str = FILE) -> Callable[[Path], object]:
    return write("study.toml", HEAD + run + search + space)


def begun(folder: Path) -> None:
    study()(folder)
    ok(*SWEEP)


def edited(name: str, old: str, new: str) -> Callable[[Path], object]:
    def do(folder: Path) -> object:
        text = (folder / name).read_text()
        assert old in text
        return (folder / name).write_text(text.replace(old, new))

    return do


def mended(wrong: str, error: str, *, search: str = SEARCH, run: str = FILE) -> Case:
    """A file that is wrong, and the same command once it is mended as the remedy says."""
    return Case(SWEEP, error, SWEEP, study(wrong, search=search, run=run), study())


RECIPE = ("reproduce", "r.toml", "--out", "made", "--quiet")
TITLE = "title = 'x'\n"
DATA = "[data]\npath = 'd'\n"
RUNS = "[runs.one]\n"
OTHER = "train = { epochs = 1, lr = 0.5 }\n"
STUDY = "[studies.two]\nsweep = { trials = 1, space = { model = { dim = [2, 3] } } }\n"


def recipe(
    head: str = TITLE, *, data: str = DATA, shared: str = "train = { epochs = 1 }\n", runs: str = RUNS
) -> Callable[[Path], object]:
    run = f"[run]\ndevice = 'cpu'\nthreads = 1\nmodel = {{ name = 'bpr', dim = 2 }}\n{shared}"
    return write("r.toml", head + data + run + runs)


def corrected(head: str, error: str, *, data: str = DATA, runs: str = RUNS) -> Case:
    """A recipe that is wrong, and the same command once it is mended as the remedy says."""
    return Case(
        RECIPE, error, (*RECIPE[:2], "--out", "new"), recipe(head, data=data, runs=runs), recipe(), names=(error,)
    )


CASES = {
    "jobs of one run": Case((*TRAIN, "--jobs", "2"), "leave it out", TRAIN),
    "jobs of a dry run": Case(
        (*TRAIN, "--seeds", "0,1", "--jobs", "2", "--dry-run"), "leave --jobs out", (*TRAIN, "--seeds", "0,1", "--dry-run")
    ),
    "no jobs": Case((*TRAIN, "--seeds", "0,1", "--jobs", "0"), "allowed: 1 to 256", (*TRAIN, "--seeds", "0,1", "--jobs", "1")),
    "a study that is resumed and dry": Case(
        (*SWEEP, "--resume", "--dry-run"), "leave --resume out", (*SWEEP, "--dry-run"), study()
    ),
    "a run file without a study": Case(SWEEP, "[sweep.space]", SWEEP, write("study.toml", HEAD + FILE), study()),
    "a study of nothing": mended("", "[sweep.space]"),
    "ranges that are no table": mended("space = 3\n", "write [sweep.space]"),
    "a range that is none": mended("[sweep.space]\n'train.lr' = 3\n", "a list of values"),
    "no values": mended("[sweep.space]\n'train.lr' = []\n", "one or more values"),
    "half a range": mended("[sweep.space]\n'train.lr' = { low = 1e-3 }\n", "low = 1e-4, high = 1e-2"),
    "a range with another key": mended("[sweep.space]\n'train.lr' = { low = 1e-3, height = 1.0 }\n", "did you mean 'high'"),
    "ends that are no numbers": mended("[sweep.space]\n'train.lr' = { low = 1e-3, high = 'x' }\n", "allowed: a number"),
    "a range the wrong way round": mended("[sweep.space]\n'train.lr' = { low = 1.0, high = 1e-3 }\n", "low must be below high"),
    "a logarithm that is none": mended("[sweep.space]\n'train.lr' = { low = 1e-3, high = 1.0, log = 3 }\n", "true, false"),
    "a logarithm of nothing": mended("[sweep.space]\n'train.lr' = { low = 0.0, high = 1.0, log = true }\n", "above 0"),
    "a step that is too long": mended("[sweep.space]\n'train.lr' = { low = 0.1, high = 1.0, step = 2.0 }\n", "at most high"),
    "a value that no run has": mended("[sweep.space]\n'train.lr' = [0.01, -1.0]\n", "greater than 0"),
    "an unknown key of a study": mended(SPACE, "did you mean 'trials'", search=SEARCH.replace("trials", "trails")),
    "a seed twice": mended(SPACE, "give each once", search=SEARCH + "seeds = [1, 1]\n"),
    "arms that are no tables": mended(SPACE, "[sweep.arms.NAME]", search=SEARCH + "arms = 3\n"),
    "an arm of another name": mended(SPACE + "[sweep.arms.'a b']\n", "letters, digits"),
    "arms that cannot be compared": mended(
        SPACE + "[sweep.arms.a]\n[sweep.arms.b.train]\nselect = ['hit@5']\n[sweep.arms.c.train]\nselect = ['ndcg@5']\n",
        "state one: train.select",
    ),
    "an arm's budget without a teacher": mended(SPACE + "[sweep.arms.a]\nbudget = '1/2'\n", "with a teacher"),
    "no validation to choose by": mended(SPACE, "kdrs data prepare", run=FILE.replace("'d'", "'no-valid'")),
    "a study that is there": Case(SWEEP, "by --resume", (*SWEEP, "--resume"), begun),
    "a study that is longer": Case(
        (*SWEEP, "--resume", "--trials", "1"), "--trials 2", (*SWEEP, "--resume", "--trials", "2"), begun
    ),
    "another study": Case(
        (*SWEEP, "--resume"), "name another folder", ("sweep", "study.toml", "--out", "new"),
        both(begun, study(run=FILE.replace("dim = 2", "dim = 3"))), names=("folder",),
    ),
    "a folder of something else": Case(("sweep", "study.toml", "--out", "d"), "with --out", SWEEP, study(), names=("--out",)),
    "a record of another point": Case(
        (*SWEEP, "--resume"), "take the record away", (*SWEEP, "--resume"),
        both(begun, edited("study/trials/run/0000.json", '"train.lr": 0.001', '"train.lr": 0.5')),
        delete("study/trials/run/0000.json"),
    ),
    "a damaged record": Case(
        (*SWEEP, "--resume"), "take the record away", (*SWEEP, "--resume"),
        both(begun, write("study/trials/run/0001.json", '{"arm": "run"}')), delete("study/trials/run/0001.json"),
    ),
    "a study in which nothing trains": Case(
        SWEEP, "trials.csv", ("sweep", "study.toml", "--out", "new"),
        study("[sweep.space]\n'train.epochs' = [1, 2]\n", run=FILE + "lr = 1e38\n"), study(), names=("trials.csv",),
    ),
    "a recipe that is not there": Case(
        ("reproduce", "none.toml", "--out", "new"), "examples/reproduce", RECIPE, recipe(), names=("check the path",)
    ),
    "an unknown key of a recipe": corrected("title = 'x'\nrun_s = 3\n", "did you mean 'runs'"),
    "a recipe of nothing": Case(RECIPE, "[runs.NAME]", RECIPE, write("r.toml", TITLE + DATA), recipe()),
    "a recipe without data": Case(RECIPE, "[data]", RECIPE, write("r.toml", TITLE + RUNS), recipe()),
    "a data set with a choice that is none": corrected(
        TITLE, "did you mean 'split'", data="[data]\nknown = 'ml-100k'\nchoices = { splits = 3 }\n"
    ),
    "a data set of no preset": corrected(TITLE, "hetcomp", data="[data]\nknown = 'ml-100k'\nchoices = { preset = 'x' }\n"),
    "one name for two": corrected(TITLE, "another name", runs=RUNS + "[studies.one]\n"),
    "a name of a recipe": corrected(TITLE, "letters, digits", runs=RUNS + "[runs.'a b']\n"),
    "a run that is no table": corrected(TITLE + "runs = { one = 3 }\n", "[runs.one]", runs=""),
    "a study that is no table": corrected(TITLE + "studies = { one = 3 }\n", "[studies.one]", runs=""),
    "runs that are no table": corrected(TITLE + "runs = 3\n", "[runs]", runs=""),
    "a run of a recipe that cannot be": corrected(TITLE, "did you mean 'bpr'", runs=RUNS + "model = { name = 'bqr' }\n"),
    "a study of a recipe that cannot be": corrected(TITLE, "[sweep.space]", runs=RUNS + "[studies.two.sweep]\n"),
    "a run of a recipe that fails": Case(
        RECIPE, "1 run failed", (*RECIPE[:2], "--out", "new"), recipe(runs=RUNS + "train = { lr = 1e38 }\n"), recipe(),
        names=("learning rate",),
    ),
    "a study of a recipe that fails": Case(
        RECIPE, "two, run", (*RECIPE[:2], "--out", "new"),
        recipe(runs=RUNS + "[studies.two]\ntrain.lr = 1e38\nsweep = { trials = 1, space = { model = { dim = [2, 3] } } }\n"),
        recipe(), names=("mend the arm run",),
    ),
    "a folder of another recipe": Case(
        RECIPE, "name another folder", (*RECIPE[:2], "--out", "new"),
        both(recipe(), lambda folder: ok(*RECIPE), recipe(shared="train = { epochs = 1, lr = 0.5 }\n")), names=("folder",),
    ),
    "a run of a recipe that was begun otherwise": Case(
        RECIPE, "runs.one, seed 0", RECIPE,
        both(recipe(), lambda folder: ok(*RECIPE), recipe(runs=f"{RUNS}{OTHER}")), recipe(runs=f"{RUNS}[runs.two]\n{OTHER}"),
        names=("leave the run as it was, and give the changed one another name",),
    ),
    "a study of a recipe that was begun otherwise": Case(
        RECIPE, "studies.two", (*RECIPE[:2], "--out", "new"),
        both(recipe(runs=STUDY), lambda folder: ok(*RECIPE), recipe(runs=f"{STUDY}{OTHER}")), names=("name another folder",),
    ),
    "a folder of no recipe": Case(
        (*RECIPE[:2], "--out", "d"), "name another folder with --out", RECIPE, recipe(), names=("--out",)
    ),
}  # fmt: skip
