#!/bin/sh
# stubs.sh SOURCE LIBRARY...: a C function returning 0 for each CUDA function that the libraries import and SOURCE lacks.
source=$1; shift
echo '/* Made by stubs.sh. */'
nm -D --undefined-only "$@" 2>/dev/null | awk '{print $2}' | sed 's/@.*//' |
    grep -E '^(__cuda|cuda[A-Z]|cublas|nvml)' | sort -u |
    while read -r name; do
        grep -q "[ *]$name(" "$source" || echo "int $name(void) { return 0; }"
    done
# Driver functions that torch asks for by name, beside those of the source.
for name in cuMemSetAccess cuMemsetD32Async cuStreamWriteValue32; do echo "int $name(void) { return 0; }"; done
