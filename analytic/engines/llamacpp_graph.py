"""`analytic.engines.ggml.graph` under its former name."""

from analytic.engines.ggml.graph import Buffer as Buffer
from analytic.engines.ggml.graph import compute_buffers as compute_buffers
