"""Compiles nothing."""

from typing import Any

from triton.backends.compiler import BaseBackend


class InterpretedBackend(BaseBackend):
    @staticmethod
    def supports_target(target: Any) -> bool:
        return bool(target.backend == "cpu")

    def hash(self) -> str:
        return "interpreted"

    def parse_options(self, options: Any) -> Any:
        raise AssertionError("interpreted kernels are not compiled")

    def add_stages(self, stages: Any, options: Any, language: Any = None) -> None:
        raise AssertionError("interpreted kernels are not compiled")

    def load_dialects(self, context: Any) -> None:
        raise AssertionError("interpreted kernels are not compiled")

    def get_module_map(self) -> dict[str, Any]:
        return {}
