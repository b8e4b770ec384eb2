#!/bin/sh
# run.sh COMMAND...: run a command on the null CUDA device (see README.md for its environment variables).
here=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$here/site${PYTHONPATH:+:$PYTHONPATH}" \
LD_PRELOAD="$here/lib/libnullcuda.so${LD_PRELOAD:+:$LD_PRELOAD}" \
LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec "$@"
