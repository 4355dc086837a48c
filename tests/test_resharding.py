"""Checkpoints of two real processes onto other meshes, bit for bit; benchmarks.resharding has all of them."""

from benchmarks import resharding


def test_two_processes_and_one_take_up_what_the_other_saved(tmp_path):
    saved = resharding.saves(tmp_path, 2, ["4x2"])
    found = resharding.restores(saved, 1, 8, ["2x4", "1x1"])
    saved = resharding.saves(tmp_path, 1, ["8x1"])
    found += resharding.restores(saved, 2, 4, ["2x2"])
    assert found == [
        resharding.Restore("4x2", 2, "2x4", 1, True),
        resharding.Restore("4x2", 2, "1x1", 1, True),
        resharding.Restore("8x1", 1, "2x2", 2, True),
    ]
