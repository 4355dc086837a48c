"""The README's notebook example, as it stands there."""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def test_the_notebook_example_trains(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (example,) = (block for block in blocks if "load_digits" in block)
    program = example.rstrip() + "\nprint('accuracy', trainer.results['accuracy'])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    name, accuracy = done.stdout.splitlines()[-1].split()
    assert name == "accuracy"
    assert float(accuracy) > 0.9
    assert not list(tmp_path.iterdir())
