"""The command line: presets under flags, and every failure as two lines and exit code 2."""

import dataclasses
import subprocess
import sys
from dataclasses import dataclass

import pytest

from lepton_jax import cli
from lepton_jax.errors import DamagedError, InputError, PreemptedError


@dataclass(frozen=True)
class Config(cli.Config):
    """Do nothing."""

    depth: int = 8
    """Layers."""


PRESETS = {"small": Config(), "large": Config(depth=50, epochs=90, batch_size=256)}


def parse(*arguments):
    return cli.parse(Config, PRESETS, list(arguments), "program")


def outcome(main, *arguments):
    return cli.outcome(main, Config, PRESETS, list(arguments))


def test_the_first_preset_is_the_default_and_its_name_is_recorded():
    assert parse() == dataclasses.replace(PRESETS["small"], preset="small")


@pytest.mark.parametrize("arguments", [["--preset", "large"], ["--preset=large"]])
def test_flags_override_the_preset_in_either_order(arguments):
    expected = dataclasses.replace(PRESETS["large"], preset="large", epochs=2.5)
    assert parse(*arguments, "--epochs", "2.5") == parse("--epochs", "2.5", *arguments) == expected


def test_every_field_is_a_flag_with_help(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help")
    assert not end.value.code
    shown = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert cli.flag(field.name) in shown
    assert "Layers." in shown
    assert "presets: small, large" in " ".join(shown.split())


REJECTED = {
    "--epoch 3": ("'--epoch'", "--epochs?"),
    "--epoch=3": ("'--epoch=3'", "--epochs?"),
    "--zzz": ("'--zzz'", "program --help"),
    "stray": ("'stray'", "program --help"),
    "--epochs three": ("parsing --epochs: could not convert string to float: 'three'", "program --help"),
    "--batch-size 1.5": ("parsing --batch-size", "program --help"),
    "--epochs": ("'--epochs'", "program --help"),
    "--preset smalll": ("unknown preset 'smalll'", "'small'"),
}


@pytest.mark.parametrize("line", REJECTED)
def test_what_the_parser_rejects_is_two_lines(line, capfd):
    with pytest.raises(InputError) as error:
        parse(*line.split())
    problem, remedy = REJECTED[line]
    assert problem in error.value.problem
    assert remedy in error.value.remedy
    assert len(str(error.value).splitlines()) == 2
    assert capfd.readouterr() == ("", "")


def test_a_message_that_the_box_wraps_is_one_line():
    box = ("╭─ Value error ─╮", "│ Error parsing │", "│ --x: no       │", "│ ───────────── │", "│ help text     │")
    assert cli.unboxed("\n".join(box)) == "error parsing --x: no"
    assert cli.unboxed("no box\nat all") == "no box at all"


VALUES = {
    "epochs": (0, -1, float("nan"), float("inf")),
    "batch_size": (0, -8),
    "eval_batch_size": (0,),
    "microbatches": (0, 3),
    "log_every": (0,),
    "eval_every": (0, float("nan")),
    "checkpoint_every": (-1,),
    "keep": (0,),
    "learning_rate": (-0.1, float("nan"), float("inf")),
    "warmup_epochs": (-1, float("nan"), float("inf")),
    "momentum": (1, -0.1, float("nan")),
    "label_smoothing": (1, -0.1),
    "ema": (1, float("nan")),
    "precision": ("float8",),
    "on_bad_image": ("ignore",),
    "seeds": (0,),
    "monitor": ("acuracy", "test/accuracy"),
    "patience": (0, -1, float("nan"), float("inf")),
    "restore": ("first",),
    "layer_decay": (0, 1.5, float("nan")),
    "sharpness": (-1, float("nan"), float("inf")),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in VALUES.items() for value in values])
def test_values_that_cannot_work_are_named_with_their_flag(name, value):
    with pytest.raises(InputError) as error:
        dataclasses.replace(Config(), **{name: value}).check()
    assert str(value) in error.value.problem
    assert cli.flag(name) in error.value.problem or name == "precision"


def test_presets_and_edges_pass_the_check():
    for preset in (*PRESETS.values(), Config(eval_every=float("inf"), learning_rate=0.0, microbatches=128)):
        preset.check()


def test_success_is_0_and_gets_the_settings():
    seen = []
    assert outcome(lambda config: seen.append(config), "--depth", "20") == 0
    assert seen[0].depth == 20


def test_an_input_error_is_two_lines_and_2(capsys):
    def fails(config):
        raise InputError("the value\nis 3", "use 4")

    assert outcome(fails) == 2
    assert capsys.readouterr().err == "error: the value is 3\nuse 4\n"
    with pytest.raises(InputError):
        outcome(fails, "--debug")


def test_an_interrupt_is_130_without_words(capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    assert outcome(interrupted) == 130
    assert capsys.readouterr().err == ""


def test_damage_is_two_lines_and_65(capsys):
    def fails(config):
        raise DamagedError("no checkpoint is whole", "start anew")

    assert outcome(fails) == 65
    assert capsys.readouterr().err == "error: no checkpoint is whole\nstart anew\n"


def test_a_run_that_was_asked_to_stop_and_has_saved_is_75(capsys):
    def stopped(config):
        raise PreemptedError("saved at step 12; the same command goes on")

    assert outcome(stopped) == 75
    assert capsys.readouterr().out.splitlines()[-1] == "preempted  saved at step 12; the same command goes on"


def test_an_error_of_our_own_ends_a_process_with_70_and_its_traceback():
    program = (
        "import lepton_jax as lp\n"
        "def main(config): raise ZeroDivisionError('ours')\n"
        "lp.cli.run(main, lp.cli.Config, {'digits': lp.cli.Config()})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 70
    assert done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: ours"


def test_an_error_of_our_own_keeps_its_traceback():
    def broken(config):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        outcome(broken)


def test_a_wrong_flag_ends_a_real_process_with_2_before_jax_starts():
    command = [sys.executable, "-X", "importtime", "-m", "experiments.resnet", "--epoch", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert (done.returncode, done.stdout) == (2, "")
    assert said == [
        "error: unknown argument '--epoch'",
        "did you mean --epochs? python -m experiments.resnet --help lists every flag and its values",
    ]
    assert "| jax\n" not in done.stderr
