/* A CUDA device without hardware: enough of the CUDA runtime, driver, NVML and cuBLAS for PyTorch to run on.
 *
 * Preloaded, it answers in their place. Memory is addresses that grow and are never reused, backed by nothing; the
 * device refuses more than its capacity. Kernels are launched and do nothing. Copies to the host write zeros (one byte
 * copies write nullcuda_bool), copies to the device write nothing. See README.md for the environment variables.
 *
 * Everything else that the libraries import is in the generated stubs.c and returns 0.
 */
#define _GNU_SOURCE
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define MIB (1ull << 20)
#define PAGE (2 * MIB)
#define FIRST_ADDRESS 0x100000000000ull /* 16 TiB: below where Linux maps anything of its own */
#define LAST_ADDRESS 0x500000000000ull

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ------------------------------------------------------------------ the device */

static struct {
    int ready, awake, major, minor, sms, shared_optin, shared_per_sm, l2_bytes, log;
    uint64_t capacity, context, used, next, peak;
    const char *name;
} device;

API int nullcuda_bool = 0;          /* what a copy of one byte to the host writes */
API unsigned long long nullcuda_launches = 0;
API unsigned long long nullcuda_mallocs = 0;
API unsigned long long nullcuda_fetched_bytes = 0; /* copied to the host: what host code asks the device for */
API unsigned long long nullcuda_fetches = 0;

static FILE *log_file;

static uint64_t number(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

__attribute__((constructor)) static void make_ready(void) {
    if (device.ready) return;
    int sm = (int)number("NULLCUDA_SM", 80);
    device.major = sm / 10, device.minor = sm % 10;
    device.sms = (int)number("NULLCUDA_SMS", sm == 90 ? 132 : 108);
    device.capacity = number("NULLCUDA_CAPACITY_BYTES", sm == 90 ? 141ull << 30 : 80ull << 30);
    device.context = number("NULLCUDA_CONTEXT_BYTES", 0);
    device.shared_optin = sm >= 90 ? 232448 : sm == 80 ? 166912 : sm == 75 ? 65536 : 101376;
    device.shared_per_sm = sm >= 90 ? 233472 : sm == 80 ? 167936 : sm == 75 ? 65536 : 102400;
    device.l2_bytes = sm >= 90 ? 50 * MIB : 40 * MIB;
    device.name = getenv("NULLCUDA_NAME") ? getenv("NULLCUDA_NAME") : "Null CUDA device";
    device.next = FIRST_ADDRESS;
    device.ready = 1;
    if (getenv("NULLCUDA_LOG")) log_file = fopen(getenv("NULLCUDA_LOG"), "a");
}

#define LOG(...) do { if (log_file) { fprintf(log_file, __VA_ARGS__); fflush(log_file); } } while (0)

static int is_device(const void *p) { return (uint64_t)p >= FIRST_ADDRESS && (uint64_t)p < LAST_ADDRESS; }

static uint64_t rounded(uint64_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

/* Sizes by address: open addressing, keys are never reused. */
#define SLOTS (1u << 20)
static struct slot { uint64_t key, size, extra; } blocks[SLOTS], handles[1u << 18];

static struct slot *find(struct slot *table, uint64_t slots, uint64_t key) {
    uint64_t i = key / PAGE * 0x9E3779B97F4A7C15ull;
    for (i %= slots; table[i].key && table[i].key != key; i = (i + 1) % slots) {}
    return &table[i];
}
#define BLOCK(p) find(blocks, SLOTS, (uint64_t)(p))
#define HANDLE(h) find(handles, 1u << 18, (uint64_t)(h))

static int take(uint64_t bytes) {
    if (device.used + device.context + bytes > device.capacity) return 0;
    device.used += bytes;
    if (device.used > device.peak) device.peak = device.used;
    return 1;
}

static uint64_t address(uint64_t bytes) {
    uint64_t at = device.next;
    device.next += rounded(bytes ? bytes : 1);
    if (device.next > LAST_ADDRESS) fprintf(stderr, "nullcuda: out of addresses\n"), abort();
    return at;
}

static __thread cudaError_t last_error = cudaSuccess;
static cudaError_t failed(cudaError_t e) { return last_error = e; }

API cudaError_t cudaMalloc(void **p, size_t bytes) {
    pthread_mutex_lock(&lock);
    int fits = take(rounded(bytes));
    if (fits) {
        uint64_t at = address(bytes);
        struct slot *s = BLOCK(at);
        s->key = at, s->size = rounded(bytes);
        *p = (void *)at;
        nullcuda_mallocs++;
    }
    pthread_mutex_unlock(&lock);
    LOG("cudaMalloc %zu %s\n", bytes, fits ? "" : "fails");
    return fits ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}

API cudaError_t cudaFree(void *p) {
    if (!p) return cudaSuccess;
    pthread_mutex_lock(&lock);
    struct slot *s = BLOCK(p);
    int known = s->key != 0 && s->size != 0;
    LOG("cudaFree %lu\n", (unsigned long)s->size);
    device.used -= s->size;
    s->size = 0;
    pthread_mutex_unlock(&lock);
    return known ? cudaSuccess : failed(cudaErrorInvalidValue);
}

API cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s) { (void)s; return cudaMalloc(p, n); }
API cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { (void)s; return cudaFree(p); }
API cudaError_t cudaMallocManaged(void **p, size_t n, unsigned f) { (void)f; return posix_memalign(p, 4096, n ? n : 1) ? failed(cudaErrorMemoryAllocation) : cudaSuccess; }

API cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
    *free_bytes = device.capacity - device.used - device.context, *total = device.capacity;
    return cudaSuccess;
}

API cudaError_t cudaHostAlloc(void **p, size_t n, unsigned f) { (void)f; return posix_memalign(p, 4096, n ? n : 1) ? failed(cudaErrorMemoryAllocation) : cudaSuccess; }
API cudaError_t cudaMallocHost(void **p, size_t n) { return cudaHostAlloc(p, n, 0); }
API cudaError_t cudaFreeHost(void *p) { free(p); return cudaSuccess; }

static cudaError_t copy(void *to, const void *from, size_t bytes) {
    if (!is_device(to) && is_device(from)) {
        memset(to, bytes == 1 ? nullcuda_bool : 0, bytes);
        nullcuda_fetched_bytes += bytes, nullcuda_fetches++;
        LOG("fetch %zu\n", bytes);
    } else if (!is_device(to)) {
        memmove(to, from, bytes);
    }
    return cudaSuccess;
}
API cudaError_t cudaMemcpy(void *d, const void *s, size_t n, enum cudaMemcpyKind k) { (void)k; return copy(d, s, n); }
API cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, enum cudaMemcpyKind k, cudaStream_t t) { (void)k, (void)t; return copy(d, s, n); }
API cudaError_t cudaMemcpy2DAsync(void *d, size_t dp, const void *s, size_t sp, size_t w, size_t h, enum cudaMemcpyKind k, cudaStream_t t) {
    (void)k, (void)t;
    for (size_t i = 0; i < h; i++) copy((char *)d + i * dp, (const char *)s + i * sp, w);
    return cudaSuccess;
}
API cudaError_t cudaMemset(void *p, int v, size_t n) { if (!is_device(p)) memset(p, v, n); return cudaSuccess; }
API cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t t) { (void)t; return cudaMemset(p, v, n); }

API cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
    memset(a, 0, sizeof *a);
    a->type = is_device(p) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    a->devicePointer = is_device(p) ? (void *)p : NULL;
    a->hostPointer = is_device(p) ? NULL : (void *)p;
    return cudaSuccess;
}

API cudaError_t cudaGetDeviceCount(int *n) { *n = 1; return cudaSuccess; }
API cudaError_t cudaGetDevice(int *n) { *n = 0; return cudaSuccess; }
API cudaError_t cudaSetDevice(int n) { return n == 0 ? cudaSuccess : failed(cudaErrorInvalidDevice); }
API cudaError_t cudaDeviceSynchronize(void) { device.awake = 1; return cudaSuccess; } /* the first makes the context */
API cudaError_t cudaRuntimeGetVersion(int *v) { *v = CUDART_VERSION; return cudaSuccess; }
API cudaError_t cudaDriverGetVersion(int *v) { *v = CUDART_VERSION; return cudaSuccess; }
API cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) { (void)a, (void)b; *can = 0; return cudaSuccess; }
API cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0, *greatest = -5; return cudaSuccess; }
API cudaError_t cudaDeviceGetPCIBusId(char *text, int n, int d) { (void)d; snprintf(text, n, "0000:01:00.0"); return cudaSuccess; }

static int threads_per_sm(void) {
    if (device.major == 7 && device.minor == 5) return 1024;
    return device.major == 8 && device.minor ? 1536 : 2048;
}

API cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int n) {
    if (n) return failed(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "%s", device.name);
    memcpy(p->uuid.bytes, "\x4e\x55\x4c\x4c\x43\x55\x44\x41\0\0\0\0\0\0\0\1", 16);
    p->totalGlobalMem = device.capacity;
    p->sharedMemPerBlock = 49152, p->sharedMemPerBlockOptin = device.shared_optin;
    p->sharedMemPerMultiprocessor = device.shared_per_sm, p->reservedSharedMemPerBlock = 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32, p->memPitch = 2147483647, p->totalConstMem = 65536;
    p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = threads_per_sm();
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->maxBlocksPerMultiProcessor = 32;
    p->major = device.major, p->minor = device.minor, p->multiProcessorCount = device.sms;
    p->textureAlignment = 512, p->texturePitchAlignment = 32, p->surfaceAlignment = 512;
    p->l2CacheSize = device.l2_bytes, p->memoryBusWidth = 5120;
    p->concurrentKernels = p->ECCEnabled = p->unifiedAddressing = p->canMapHostMemory = p->managedMemory = 1;
    p->cooperativeLaunch = p->streamPrioritiesSupported = p->memoryPoolsSupported = p->hostRegisterSupported = 1;
    p->clusterLaunch = device.major >= 9;
    p->asyncEngineCount = 3, p->pciBusID = 1;
    p->maxTexture1D = p->maxTexture2D[0] = p->maxTexture2D[1] = 131072;
    return cudaSuccess;
}

static int attribute(int a) {
    switch (a) {
    case cudaDevAttrMaxThreadsPerBlock: return 1024;
    case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: return 1024;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX: return 2147483647;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 49152;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return device.shared_optin;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return device.shared_per_sm;
    case cudaDevAttrReservedSharedMemoryPerBlock: return 1024;
    case cudaDevAttrTotalConstantMemory: return 65536;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrMaxRegistersPerBlock: case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
    case cudaDevAttrMultiProcessorCount: return device.sms;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return threads_per_sm();
    case cudaDevAttrMaxBlocksPerMultiprocessor: return 32;
    case cudaDevAttrComputeCapabilityMajor: return device.major;
    case cudaDevAttrComputeCapabilityMinor: return device.minor;
    case cudaDevAttrL2CacheSize: return device.l2_bytes;
    case cudaDevAttrClockRate: case cudaDevAttrMemoryClockRate: return 1410000;
    case cudaDevAttrTextureAlignment: return 512;
    case cudaDevAttrCooperativeLaunch: case cudaDevAttrUnifiedAddressing: case cudaDevAttrManagedMemory:
    case cudaDevAttrConcurrentKernels: case cudaDevAttrMemoryPoolsSupported: case cudaDevAttrHostRegisterSupported:
    case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED: return 1;
    default: return 0;
    }
}
API cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) { (void)d; *v = attribute(a); return cudaSuccess; }

API cudaError_t cudaGetLastError(void) { cudaError_t e = last_error; last_error = cudaSuccess; return e; }
API cudaError_t cudaPeekAtLastError(void) { return last_error; }
API const char *cudaGetErrorName(cudaError_t e) { return e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : e ? "cudaErrorUnknown" : "cudaSuccess"; }
API const char *cudaGetErrorString(cudaError_t e) { return e == cudaErrorMemoryAllocation ? "out of memory" : e ? "unknown error" : "no error"; }

/* Streams and events: nothing is ever pending. */
static void *token(void) { static uint64_t next = 0x1000; return (void *)__sync_add_and_fetch(&next, 16); }
API cudaError_t cudaStreamCreate(cudaStream_t *s) { *s = token(); return cudaSuccess; }
API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { (void)f; *s = token(); return cudaSuccess; }
API cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) { (void)f, (void)p; *s = token(); return cudaSuccess; }
API cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p) { (void)s; *p = 0; return cudaSuccess; }
API cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *c) { (void)s; *c = cudaStreamCaptureStatusNone; return cudaSuccess; }
API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *c, unsigned long long *id, cudaGraph_t *g, const cudaGraphNode_t **d, const cudaGraphEdgeData **e, size_t *n) {
    (void)s, (void)g, (void)d, (void)e;
    if (c) *c = cudaStreamCaptureStatusNone;
    if (id) *id = 0;
    if (n) *n = 0;
    return cudaSuccess;
}
API cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *m) { (void)m; return cudaSuccess; }
API cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = token(); return cudaSuccess; }
API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { (void)f; *e = token(); return cudaSuccess; }
API cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { (void)a, (void)b; *ms = 0; return cudaSuccess; }
API cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *data) { (void)s; f(data); return cudaSuccess; }
API cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t f, void *data, unsigned x) { (void)x; f(s, cudaSuccess, data); return cudaSuccess; }

/* ------------------------------------------------------------------ kernels */

static struct { const void *host; const char *name; } kernels[1u << 18];

API void **__cudaRegisterFatBinary(void *image) { (void)image; static void *none; return &none; }
API void __cudaRegisterFatBinaryEnd(void **h) { (void)h; }
API void __cudaUnregisterFatBinary(void **h) { (void)h; }
API void __cudaRegisterVar(void **h, char *host, char *dev, const char *name, int ext, size_t size, int constant, int global) {
    (void)h, (void)host, (void)dev, (void)name, (void)ext, (void)size, (void)constant, (void)global;
}
API char __cudaInitModule(void **h) { (void)h; return 0; }
API void __cudaRegisterFunction(void **h, const char *host, char *dev, const char *name, int limit, uint3 *tid, uint3 *bid, dim3 *bdim, dim3 *gdim, int *wsize) {
    (void)h, (void)dev, (void)limit, (void)tid, (void)bid, (void)bdim, (void)gdim, (void)wsize;
    if (!getenv("NULLCUDA_LOG")) return;
    uint64_t i = ((uint64_t)host * 0x9E3779B97F4A7C15ull) >> 46;
    for (; kernels[i].host; i = (i + 1) % (1u << 18)) {}
    kernels[i].host = host, kernels[i].name = name;
}
static const char *kernel_name(const void *host) {
    uint64_t i = ((uint64_t)host * 0x9E3779B97F4A7C15ull) >> 46;
    for (; kernels[i].host; i = (i + 1) % (1u << 18)) if (kernels[i].host == host) return kernels[i].name;
    return "?";
}
static __thread struct { dim3 grid, block; size_t shared; void *stream; } pushed[16];
static __thread int depth;
API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
    pushed[depth].grid = grid, pushed[depth].block = block, pushed[depth].shared = shared, pushed[depth].stream = stream;
    depth++;
    return 0;
}
API cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void **stream) {
    depth--;
    *grid = pushed[depth].grid, *block = pushed[depth].block, *shared = pushed[depth].shared, *stream = pushed[depth].stream;
    return cudaSuccess;
}
static cudaError_t launched(const void *f, dim3 grid, dim3 block) {
    nullcuda_launches++;
    LOG("launch %s [%u,%u,%u] [%u,%u,%u]\n", kernel_name(f), grid.x, grid.y, grid.z, block.x, block.y, block.z);
    return cudaSuccess;
}
API cudaError_t __cudaGetKernel(cudaKernel_t *k, const void *host) { *k = (cudaKernel_t)host; return cudaSuccess; }
API cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t s) { (void)args, (void)shared, (void)s; return launched(k, grid, block); }
API cudaError_t cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t s) { (void)args, (void)shared, (void)s; return launched(f, grid, block); }
API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **args) { (void)args; return launched(f, c->gridDim, c->blockDim); }

API cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
    (void)f;
    memset(a, 0, sizeof *a);
    a->ptxVersion = a->binaryVersion = device.major * 10 + device.minor;
    a->maxThreadsPerBlock = 1024, a->numRegs = 32, a->maxDynamicSharedSizeBytes = device.shared_optin;
    return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int block, size_t shared, unsigned flags) {
    (void)f, (void)flags;
    int by_threads = 2048 / (block > 0 ? block : 1);
    int by_shared = shared ? (int)(device.shared_per_sm / (shared + 1024)) : 32;
    *n = by_threads < by_shared ? by_threads : by_shared;
    if (*n > 32) *n = 32;
    if (*n < 1) *n = 1;
    return cudaSuccess;
}
API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int block, size_t shared) { return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n, f, block, shared, 0); }
API cudaError_t cudaGetSymbolAddress(void **p, const void *symbol) { (void)symbol; return cudaMalloc(p, 4096); }

/* ------------------------------------------------------------------ the driver: virtual memory */

API CUresult cuMemGetAllocationGranularity(size_t *n, const CUmemAllocationProp *p, CUmemAllocationGranularity_flags o) { (void)p, (void)o; *n = PAGE; return CUDA_SUCCESS; }
API CUresult cuMemAddressReserve(CUdeviceptr *p, size_t n, size_t align, CUdeviceptr hint, unsigned long long f) {
    (void)align, (void)hint, (void)f;
    pthread_mutex_lock(&lock);
    *p = address(n);
    pthread_mutex_unlock(&lock);
    LOG("cuMemAddressReserve %zu\n", n);
    return CUDA_SUCCESS;
}
API CUresult cuMemAddressFree(CUdeviceptr p, size_t n) { (void)p, (void)n; return CUDA_SUCCESS; }
API CUresult cuMemCreate(CUmemGenericAllocationHandle *h, size_t n, const CUmemAllocationProp *p, unsigned long long f) {
    static uint64_t next = PAGE;
    (void)p, (void)f;
    pthread_mutex_lock(&lock);
    int fits = take(n);
    if (fits) {
        struct slot *s = HANDLE(next);
        s->key = next, s->size = n, s->extra = 1; /* references: the handle's own, and its mappings */
        *h = next, next += PAGE;
        nullcuda_mallocs++;
    }
    pthread_mutex_unlock(&lock);
    LOG("cuMemCreate %zu %s\n", n, fits ? "" : "fails");
    return fits ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
static void drop(uint64_t h) {
    struct slot *s = HANDLE(h);
    if (s->key && s->extra && --s->extra == 0) device.used -= s->size;
}
API CUresult cuMemMap(CUdeviceptr p, size_t n, size_t offset, CUmemGenericAllocationHandle h, unsigned long long f) {
    (void)offset, (void)f;
    pthread_mutex_lock(&lock);
    struct slot *s = BLOCK(p);
    s->key = p, s->size = n, s->extra = h;
    HANDLE(h)->extra++;
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}
API CUresult cuMemUnmap(CUdeviceptr p, size_t n) {
    pthread_mutex_lock(&lock);
    for (CUdeviceptr at = p; at < p + n;) {
        struct slot *s = BLOCK(at);
        uint64_t size = s->key && s->size ? s->size : PAGE;
        if (s->key && s->extra) drop(s->extra), s->extra = 0, s->size = 0;
        at += size;
    }
    pthread_mutex_unlock(&lock);
    return CUDA_SUCCESS;
}
API CUresult cuMemRelease(CUmemGenericAllocationHandle h) { pthread_mutex_lock(&lock); drop(h); pthread_mutex_unlock(&lock); return CUDA_SUCCESS; }
API CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *h, void *p) { *h = BLOCK(p)->extra; if (*h) HANDLE(*h)->extra++; return *h ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; }
API CUresult cuInit(unsigned f) { (void)f; return CUDA_SUCCESS; }
API CUresult cuDriverGetVersion(int *v) { *v = CUDA_VERSION; return CUDA_SUCCESS; }
API CUresult cuDeviceGet(CUdevice *d, int n) { *d = n; return CUDA_SUCCESS; }
API CUresult cuDeviceGetCount(int *n) { *n = 1; return CUDA_SUCCESS; }
API CUresult cuDeviceGetAttribute(int *v, CUdevice_attribute a, CUdevice d) { (void)d; *v = attribute(a); return CUDA_SUCCESS; }
API CUresult cuDeviceGetName(char *s, int n, CUdevice d) { (void)d; snprintf(s, n, "%s", device.name); return CUDA_SUCCESS; }
API CUresult cuDeviceTotalMem_v2(size_t *n, CUdevice d) { (void)d; *n = device.capacity; return CUDA_SUCCESS; }
API CUresult cuCtxGetCurrent(CUcontext *c) { *c = (CUcontext)0x10; return CUDA_SUCCESS; }
API CUresult cuCtxGetDevice(CUdevice *d) { *d = 0; return CUDA_SUCCESS; }
API CUresult cuCtxSetCurrent(CUcontext c) { (void)c; return CUDA_SUCCESS; }
API CUresult cuCtxPushCurrent_v2(CUcontext c) { (void)c; return CUDA_SUCCESS; }
API CUresult cuCtxPopCurrent_v2(CUcontext *c) { *c = (CUcontext)0x10; return CUDA_SUCCESS; }
API CUresult cuDevicePrimaryCtxGetState(CUdevice d, unsigned *f, int *active) { (void)d; *f = 0, *active = 1; return CUDA_SUCCESS; }
API CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) { (void)d; *c = (CUcontext)0x10; return CUDA_SUCCESS; }
API CUresult cuGetErrorString(CUresult e, const char **s) { *s = e == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : e ? "error" : "no error"; return CUDA_SUCCESS; }
API CUresult cuGetErrorName(CUresult e, const char **s) { *s = e ? "CUDA_ERROR" : "CUDA_SUCCESS"; return CUDA_SUCCESS; }

static void *entry(const char *symbol) {
    Dl_info self;
    char versioned[128];
    if (!dladdr((void *)&make_ready, &self)) return NULL;
    void *library = dlopen(self.dli_fname, RTLD_NOLOAD | RTLD_NOW);
    if (!library) return NULL;
    void *found = dlsym(library, symbol);
    snprintf(versioned, sizeof versioned, "%s_v2", symbol);
    return found ? found : dlsym(library, versioned);
}
static int unknown(void) { return CUDA_ERROR_NOT_SUPPORTED; }
API cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **f, unsigned version, unsigned long long flags, enum cudaDriverEntryPointQueryResult *status) {
    (void)version, (void)flags;
    *f = entry(symbol);
    LOG("entry %s %s\n", symbol, *f ? "" : "unknown");
    if (!*f) *f = (void *)&unknown; /* torch asks for some that it never calls */
    if (status) *status = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
API cudaError_t cudaGetDriverEntryPoint(const char *symbol, void **f, unsigned long long flags, enum cudaDriverEntryPointQueryResult *status) { return cudaGetDriverEntryPointByVersion(symbol, f, 0, flags, status); }

/* ------------------------------------------------------------------ cuBLAS: handles, and one algorithm of cuBLASLt */

static int made(void **handle) { *handle = calloc(1, 256); return 0; }
static int gone(void *handle) { free(handle); return 0; }
API int cublasCreate_v2(void **h) { return made(h); }
API int cublasDestroy_v2(void *h) { return gone(h); }
API int cublasGetMathMode(void *h, int *mode) { (void)h; *mode = 0; return 0; }
API int cublasGetPointerMode_v2(void *h, int *mode) { (void)h; *mode = 0; return 0; }
API int cublasLtCreate(void **h) { return made(h); }
API int cublasLtDestroy(void *h) { return gone(h); }
API size_t cublasLtGetVersion(void) { return 130100; }
API int cublasLtMatmulDescCreate(void **d, int c, int s) { (void)c, (void)s; return made(d); }
API int cublasLtMatmulDescDestroy(void *d) { return gone(d); }
API int cublasLtMatrixLayoutCreate(void **d, int t, uint64_t r, uint64_t c, int64_t ld) { (void)t, (void)r, (void)c, (void)ld; return made(d); }
API int cublasLtMatrixLayoutDestroy(void *d) { return gone(d); }
API int cublasLtMatmulPreferenceCreate(void **d) { return made(d); }
API int cublasLtMatmulPreferenceDestroy(void *d) { return gone(d); }
struct heuristic { uint64_t algorithm[8]; size_t workspace; int state; float waves; int reserved[4]; };
API int cublasLtMatmulAlgoGetHeuristic(void *h, void *op, void *a, void *b, void *c, void *d, void *preference, int wanted, struct heuristic *r, int *count) {
    (void)h, (void)op, (void)a, (void)b, (void)c, (void)d, (void)preference;
    *count = wanted > 0;
    if (wanted > 0) memset(r, 0, sizeof *r), r->waves = 1;
    return 0;
}
API int cublasLtMatmul(void) { nullcuda_launches++; LOG("launch cublasLtMatmul\n"); return 0; }
API int cublasGemmEx(void) { nullcuda_launches++; LOG("launch cublasGemmEx\n"); return 0; }
API int cublasGemmStridedBatchedEx(void) { nullcuda_launches++; LOG("launch cublasGemmStridedBatchedEx\n"); return 0; }
API int cublasSetWorkspace_v2(void *h, void *p, size_t n) { (void)h, (void)p; LOG("cublasSetWorkspace %zu\n", n); return 0; }

/* ------------------------------------------------------------------ NVML: one device, and this process on it */

#define UUID_TEXT "GPU-4e554c4c-4355-4441-0000-000000000001"
static uint64_t charged(void) { return device.used || device.awake ? device.used + device.context : 0; }
API int nvmlInit_v2(void) { return 0; }
API int nvmlInit(void) { return 0; }
API int nvmlInitWithFlags(unsigned f) { (void)f; return 0; }
API int nvmlShutdown(void) { return 0; }
API const char *nvmlErrorString(int e) { return e ? "NVML error" : "success"; }
API int nvmlSystemGetDriverVersion(char *s, unsigned n) { snprintf(s, n, "0.0-null"); return 0; }
API int nvmlSystemGetNVMLVersion(char *s, unsigned n) { snprintf(s, n, "0.0-null"); return 0; }
API int nvmlSystemGetCudaDriverVersion(int *v) { *v = CUDA_VERSION; return 0; }
API int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = CUDA_VERSION; return 0; }
API int nvmlSystemGetProcessName(unsigned pid, char *s, unsigned n) { snprintf(s, n, "process %u", pid); return 0; }
API int nvmlDeviceGetCount_v2(unsigned *n) { *n = 1; return 0; }
API int nvmlDeviceGetCount(unsigned *n) { *n = 1; return 0; }
API int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = &device; return i ? 2 : 0; }
API int nvmlDeviceGetHandleByUUID(const char *u, void **h) { *h = &device; return strcmp(u, UUID_TEXT) ? 6 : 0; }
API int nvmlDeviceGetHandleByPciBusId_v2(const char *u, void **h) { (void)u; *h = &device; return 0; }
API int nvmlDeviceGetUUID(void *h, char *s, unsigned n) { (void)h; snprintf(s, n, UUID_TEXT); return 0; }
API int nvmlDeviceGetName(void *h, char *s, unsigned n) { (void)h; snprintf(s, n, "%s", device.name); return 0; }
API int nvmlDeviceGetIndex(void *h, unsigned *i) { (void)h; *i = 0; return 0; }
API int nvmlDeviceGetCudaComputeCapability(void *h, int *a, int *b) { (void)h; *a = device.major, *b = device.minor; return 0; }
struct memory_v1 { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
API int nvmlDeviceGetMemoryInfo(void *h, struct memory_v1 *m) { (void)h; m->total = device.capacity, m->used = charged(), m->free = m->total - m->used; return 0; }
API int nvmlDeviceGetMemoryInfo_v2(void *h, struct memory_v2 *m) { (void)h; m->total = device.capacity, m->reserved = 0, m->used = charged(), m->free = m->total - m->used; return 0; }
struct process { unsigned pid; unsigned long long used; unsigned gpu, compute; };
API int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *n, struct process *p) {
    (void)h;
    unsigned room = *n, here = device.awake || device.used ? 1 : 0;
    *n = here;
    if (room < here) return 7;
    if (here) p->pid = (unsigned)getpid(), p->used = charged(), p->gpu = p->compute = 0xFFFFFFFF;
    return 0;
}
API int nvmlDeviceGetComputeRunningProcesses_v2(void *h, unsigned *n, struct process *p) { return nvmlDeviceGetComputeRunningProcesses_v3(h, n, p); }
API int nvmlDeviceGetComputeRunningProcesses(void *h, unsigned *n, struct process *p) { return nvmlDeviceGetComputeRunningProcesses_v3(h, n, p); }

API int nvmlDeviceGetNvLinkRemoteDeviceType(void *h, unsigned link, int *type) { (void)h, (void)link, (void)type; return 3; }
API int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *h, unsigned link, void *pci) { (void)h, (void)link, (void)pci; return 3; }
API int nvmlDeviceGetGpuFabricInfoV(void *h, void *info) { (void)h, (void)info; return 3; }

API unsigned long long nullcuda_used(void) { return device.used; }
API unsigned long long nullcuda_peak(void) { return device.peak; }
API void nullcuda_note(const char *text) { LOG("# %s\n", text); }
