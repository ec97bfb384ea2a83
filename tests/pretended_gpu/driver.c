/* A stand-in for libcuda.so.1: what torch's allocator and Triton's launcher ask of the driver. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cuda.h>
#include "pretend.h"

static int launched(const char *what, CUstream stream) {  /* the counts are the runtime's, which is loaded first */
    static int (*launch)(const char *, void *);
    if (!launch) launch = dlsym(RTLD_DEFAULT, "pretend_launch");
    return launch && launch(what, stream) ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

static int cards(void) {
    int (*count)(void) = dlsym(RTLD_DEFAULT, "pretend_visible_cards");
    return count ? count() : 1;
}

static CUcontext context = (CUcontext)1;

#define DRIVER(name, ...) EXPORT CUresult CUDAAPI name(__VA_ARGS__)

DRIVER(cuInit, unsigned flags) { return 0; }
DRIVER(cuDriverGetVersion, int *version) { *version = 13020; return 0; }
DRIVER(cuDeviceGetCount, int *count) { *count = cards(); return 0; }
DRIVER(cuDeviceGet, CUdevice *device, int number) { *device = number; return 0; }
DRIVER(cuDeviceGetName, char *name, int size, CUdevice device) { strncpy(name, "NVIDIA H200 (pretended)", size); return 0; }
DRIVER(cuDeviceTotalMem_v2, size_t *size, CUdevice device) { *size = CARD_MEMORY; return 0; }
DRIVER(cuDeviceGetAttribute, int *value, CUdevice_attribute attribute, CUdevice device) {
    int (*of_runtime)(int *, int, int) = dlsym(RTLD_DEFAULT, "cudaDeviceGetAttribute");
    switch ((int)attribute) {
        case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1980000; return 0;
        case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = 3201000; return 0;
        case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = 6144; return 0;
        case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: *value = 65536; return 0;
        default: return of_runtime ? of_runtime(value, attribute, device) : 1;
    }
}
DRIVER(cuGetErrorString, CUresult error, const char **text) { *text = "pretended"; return 0; }
DRIVER(cuGetErrorName, CUresult error, const char **text) { *text = "pretended"; return 0; }

DRIVER(cuCtxGetCurrent, CUcontext *current) { *current = context; return 0; }
DRIVER(cuCtxGetDevice, CUdevice *device) {
    int (*of_runtime)(int *) = dlsym(RTLD_DEFAULT, "cudaGetDevice");
    *device = 0;
    return of_runtime ? of_runtime(device) : 0;
}
DRIVER(cuCtxGetLimit, size_t *value, CUlimit limit) { *value = 1 << 20; return 0; }
DRIVER(cuStreamGetCtx, CUstream stream, CUcontext *of) { *of = context; return 0; }
DRIVER(cuDevicePrimaryCtxRetain, CUcontext *retained, CUdevice device) { *retained = context; return 0; }
DRIVER(cuDevicePrimaryCtxGetState, CUdevice device, unsigned *flags, int *active) {
    if (flags) *flags = 0;
    if (active) *active = 1;
    return 0;
}

DRIVER(cuModuleLoad, CUmodule *module, const char *file) { *module = (CUmodule)1; return 0; }
DRIVER(cuModuleLoadData, CUmodule *module, const void *image) { *module = (CUmodule)1; return 0; }
DRIVER(cuModuleLoadDataEx, CUmodule *module, const void *image, unsigned n, CUjit_option *o, void **v) { *module = (CUmodule)1; return 0; }
DRIVER(cuModuleGetFunction, CUfunction *function, CUmodule module, const char *name) { *function = (CUfunction)1; return 0; }
DRIVER(cuFuncGetAttribute, int *value, CUfunction_attribute attribute, CUfunction function) {
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS ? 40 : 0;
    return 0;
}
DRIVER(cuOccupancyMaxActiveBlocksPerMultiprocessor, int *blocks, CUfunction f, int size, size_t shared) { *blocks = 2; return 0; }
DRIVER(cuOccupancyMaxActiveClusters, int *clusters, CUfunction f, const CUlaunchConfig *config) { *clusters = 2; return 0; }

DRIVER(cuLaunchKernel, CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
       unsigned shared, CUstream stream, void **arguments, void **extra) { return launched("cuLaunchKernel", stream); }
DRIVER(cuLaunchKernelEx, const CUlaunchConfig *config, CUfunction f, void **arguments, void **extra) { return launched("cuLaunchKernelEx", config->hStream); }

/* Triton asks where a tensor's memory lies: where it says. */
DRIVER(cuPointerGetAttribute, void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
    if (attribute == CU_POINTER_ATTRIBUTE_MEMORY_TYPE) *(unsigned *)value = CU_MEMORYTYPE_DEVICE;
    else *(CUdeviceptr *)value = pointer;
    return 0;
}
DRIVER(cuPointerGetAttributes, unsigned count, CUpointer_attribute *attributes, void **values, CUdeviceptr pointer) {
    for (unsigned i = 0; i < count; i++) cuPointerGetAttribute(values[i], attributes[i], pointer);
    return 0;
}
DRIVER(cuStreamIsCapturing, CUstream stream, CUstreamCaptureStatus *status) {
    int (*of_runtime)(CUstream, int *) = dlsym(RTLD_DEFAULT, "cudaStreamIsCapturing");
    *status = 0;
    return of_runtime ? of_runtime(stream, (int *)status) : 0;
}

/* Functions by name, as the runtime and Triton look them up. */
DRIVER(cuGetProcAddress_v2, const char *name, void **function, int version, cuuint64_t flags, CUdriverProcAddressQueryResult *result) {
    char second[256];
    void *self = dlopen("libcuda.so.1", RTLD_NOW);
    snprintf(second, sizeof second, "%s_v2", name);
    *function = dlsym(self, name);
    if (!*function) *function = dlsym(self, second);
    if (result) *result = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
