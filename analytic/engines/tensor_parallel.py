"""What one rank holds when transformers divides a model's tensors: ``from_pretrained(…, tp_plan="auto")``.

After transformers 5.23 (``distributed/tensor_parallel.py``) and held to it by ``tests/test_tensor_parallel.py``, in
which real ranks load and run. The plan of each class is a row of ``tp_plans.json`` (``tests/record_distribution.py``):
the module or parameter, with ``*`` for indices, and the style that it is divided in.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from math import prod
from typing import Any

from analytic.errors import UllageError, UsageError
from analytic.formats.fp8 import BLOCK
from analytic.formats.table import itemsize
from analytic.models.geometry import Attention, FeedForward, Geometry, LatentAttention, Layer, MixtureOfExperts
from analytic.models.inventory import TensorGroup
from analytic.models.model import Model
from analytic.weights import DTYPES, ServedGroup, weigh
