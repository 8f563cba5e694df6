"""What pytest loads before the first test: every worker waits for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.lazy import lazy

LARGE = ("apache_beam", "keras_tuner", "tensorflow_model_analysis", "tf_agents", "tfx")
_COLLECT = f"""
import sys, pytest
assert pytest.main(["--collect-only", "-qq"]) == 0
print("loaded:", *[name for name in {LARGE} if name in sys.modules])
"""


@pytest.mark.slow
def test_collecting_loads_no_large_library():
    done = subprocess.run([sys.executable, "-c", _COLLECT], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert done.stdout.splitlines()[-1].strip() == "loaded:"


def test_a_lazy_module_loads_at_its_first_use(tmp_path, monkeypatch):
    (tmp_path / "loaded_late.py").write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = lazy("loaded_late")
    for name in ("__wrapped__", "_mock_name", "_pytestfixturefunction", "pytest_mock"):
        assert not hasattr(module, name)
    assert "loaded_late" not in sys.modules
    assert module.VALUE == 1
    with pytest.raises(TypeError, match=r"setattr\('loaded_late\.VALUE', value\)"):
        module.VALUE = 2
    monkeypatch.setattr("loaded_late.VALUE", 2)
    assert module.VALUE == 2
