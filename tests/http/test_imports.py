"""What must not be loaded where memory counts."""

import subprocess
import sys

import pytest

HTTP = "serve.__main__, serve.launch, serve.litserve_shell, serve.service, serve.routes.openai, serve.routes.page"


@pytest.mark.parametrize("modules", [HTTP, "serve.worker, serve.metrics, serve.engine.loader"])
def test_neither_torch_nor_transformers_is_loaded_outside_a_torch_runner(modules: str) -> None:
    code = f"import sys, {modules}; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_modules_that_a_spawned_worker_imports_first_are_light() -> None:
    heavy = "('litserve', 'pydantic', 'zmq')"
    code = f"import sys, serve, serve.__main__; print([m for m in sys.modules if m.startswith({heavy})])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
