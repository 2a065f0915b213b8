"""Averages of a model sharded by FSDP2 have the same bits as of the whole model, also after saving and loading.

Checkpoints are those of ``torch.distributed.checkpoint``, and files of gathered averages.
"""

import pytest
import torch

from halfulp.averaging import EMA
from halfulp.checkpoint.files import read_file
from support.distributed import averages
from support.optimizers import assert_same
from support.processes import torchrun

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # dcp warns of this in one process


def launch(ranks, out, *arguments, worker="averages"):
    torchrun(worker, ranks, out, *arguments)
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two ranks have saved, and what they ended with."""
    return tmp_path_factory.mktemp("averages")


@pytest.fixture(scope="module")
def found(folder):
    return launch(2, folder / "found.pt", "run", folder)


@pytest.fixture(scope="module")
def expected():
    """One process, uninterrupted."""
    model = averages.build()
    made = averages.averages_of(model)
    averages.train(model, made, range(averages.STEPS))
    return averages.collect(model, made)


def test_averages_of_shards_are_those_of_the_whole(found, expected):
    assert_same(found, expected)


def test_three_ranks_resume_what_two_have_saved(folder, found, expected):
    resumed = launch(3, folder / "resumed.pt", "resume", folder)
    ways = {f"dcp/{n}": t for n, t in expected.items() if not n.startswith("lawa")}
    assert_same(resumed, ways | {f"file/{n}": t for n, t in expected.items()})


@pytest.mark.parametrize("way", ["dcp", "file"])
def test_one_process_resumes_what_two_ranks_have_saved(way, folder, found, expected):
    model = averages.build()
    made = averages.resume(model, folder, way)
    averages.train(model, made, range(averages.SAVED, averages.STEPS))
    assert_same(averages.collect(model, made), {n: t for n, t in expected.items() if n.split("/")[0] in made})


def test_two_ranks_resume_what_one_process_has_saved(tmp_path, expected):
    model = averages.build()
    made = averages.averages_of(model)
    averages.train(model, made, range(averages.SAVED))
    averages.save(model, made, tmp_path, writes=True)
    resumed = launch(2, tmp_path / "resumed.pt", "resume", tmp_path)
    ways = {f"dcp/{n}": t for n, t in expected.items() if not n.startswith("lawa")}
    assert_same(resumed, ways | {f"file/{n}": t for n, t in expected.items()})


def test_trainer_under_fsdp2(tmp_path):
    """The average of a sharded model, and what the Trainer's checkpoint has of it, are those of one process."""
    from support.distributed import average_trainer as trainer

    model = trainer.build()
    model.save_pretrained(tmp_path / "model")
    start = {n: t.clone() for n, t in model.state_dict().items()}
    found = launch(2, tmp_path / "found.pt", tmp_path, worker="average_trainer")

    def follow(ema, steps):
        for step in steps:
            model.load_state_dict(found["after"][str(step)])
            ema.update()
        return ema.state_dict()

    def assert_equal(a, b):
        assert set(a) == set(b)
        for name, entries in a.items():
            for key, value in entries.items():
                same = torch.equal(value, b[name][key]) if isinstance(value, torch.Tensor) else value == b[name][key]
                assert same, (name, key)

    ema = EMA(model, **trainer.OPTIONS)
    assert_equal(found["average"]["averages"], follow(ema, range(1, trainer.STEPS + 1))["averages"])
    batch = {key: torch.stack([x[key] for x in trainer.examples()[:2]]) for key in ("input_ids", "labels")}
    with ema.swap(), torch.no_grad():
        assert found["loss"] == pytest.approx(model(**batch).loss.item(), rel=1e-5)
    model.load_state_dict(start)
    resumed = EMA(model, **trainer.OPTIONS)
    resumed.load_state_dict(read_file(tmp_path / f"checkpoint-{trainer.SAVED}" / "weight_average.safetensors"))
    steps = range(trainer.SAVED + 1, trainer.STEPS + 1)
    assert_equal(found["average"]["averages"], follow(resumed, steps)["averages"])
