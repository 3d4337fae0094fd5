"""Tests of what runs inside vLLM; where that is not installed, those that need it are left out."""

from importlib.util import find_spec

_NEED_VLLM = [
    *("test_exact.py", "test_serve.py", "test_commands.py", "test_measuring.py"),
    *("test_faults.py", "test_replicas.py"),
]
collect_ignore = [] if find_spec("vllm") else _NEED_VLLM
