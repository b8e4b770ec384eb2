"""On the null device host code fetches zeros: tell transformers what it would have read there.

Loaded through PYTHONPATH. NULLCUDA_BOOL=1 (default) answers every boolean with true, as a mask without padding does;
0 is for padded batches. Whether generation has reached its length is answered from the length.
"""

import ctypes
import importlib.abc
import importlib.machinery
import os
import sys

_NAME = "transformers.generation.utils"


def _answer() -> ctypes.c_int | None:
    try:
        return ctypes.c_int.in_dll(ctypes.CDLL(None), "nullcuda_bool")
    except ValueError:
        return None


def _patch(module: object) -> None:
    answer = _answer()
    if answer is None:
        return
    answer.value = int(os.environ.get("NULLCUDA_BOOL", "1"))
    from transformers.generation.stopping_criteria import MaxLengthCriteria

    reached = False
    told, decide = MaxLengthCriteria.__call__, module.StopCheck.__call__

    def call(self, input_ids, scores, **kwargs):
        nonlocal reached
        reached = input_ids.shape[1] >= self.max_length
        return told(self, input_ids, scores, **kwargs)

    def stop(self, *args, **kwargs):
        before, answer.value = answer.value, int(reached)
        try:
            return decide(self, *args, **kwargs)
        finally:
            answer.value = before

    MaxLengthCriteria.__call__ = call
    module.StopCheck.__call__ = stop


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != _NAME:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            _patch(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())
