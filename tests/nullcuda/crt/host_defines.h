/* Only what driver_types.h and cuda_runtime_api.h need of it, without a compiler for devices. */
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __align__(n) __attribute__((aligned(n)))
#define CUDARTAPI
#define CUDAAPI
#define CUDART_CB
#define CUDARTAPI_CDECL
#define __host__
#define __device__
#define __noinline__
#define __forceinline__ inline
#define __specialization_static
#define __location__(x)
