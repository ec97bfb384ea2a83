/* A stand-in for libcudart: memory is the host's, kernels do nothing, and the rules of graph capture are enforced.
 *
 * While a stream is captured CUDA forbids to synchronise, to allocate outside the pool, to copy from or to pageable
 * memory, and to wait for an event from outside. A launch on the legacy default stream is refused here as well: CUDA
 * would run it beside the graph, which would then lack it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cuda.h>
#include <cuda_runtime_api.h>
#include "pretend.h"

#define MOST_STREAMS 64
#define MOST_BLOCKS 65536

extern long pretend_launches, pretend_captured, pretend_graphs, pretend_synchronisations;

static __thread cudaError_t last_error;
static __thread int device;
static __thread enum cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

/* ---- errors */

static cudaError_t failed(cudaError_t error) { return last_error = error; }

static cudaError_t refused(const char *what) {
    fprintf(stderr, "[pretended GPU] %s while a stream is captured\n", what);
    return failed(cudaErrorStreamCaptureUnsupported);
}

EXPORT cudaError_t cudaGetLastError(void) { cudaError_t error = last_error; last_error = cudaSuccess; return error; }
EXPORT cudaError_t cudaPeekAtLastError(void) { return last_error; }
EXPORT const char *cudaGetErrorName(cudaError_t error) { return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "pretended"; }
EXPORT const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorNoDevice: return "no CUDA-capable device is detected";
        case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
        case cudaErrorDevicesUnavailable: return "CUDA-capable device(s) is/are busy or unavailable";
        case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
        case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
        default: return "a pretended error";
    }
}

/* ---- capture */

static cudaStream_t captured_streams[MOST_STREAMS];
static int capturing;  /* how many streams the capture spans */
static int capture_mode, invalidated;
static unsigned long long capture_id;

static int is_captured(cudaStream_t stream) {
    for (int i = 0; i < capturing; i++) if (captured_streams[i] == stream) return 1;
    return 0;
}

/* What is unsafe in any thread, unless the thread or the capture is relaxed. */
static int forbidden(void) {
    return capturing && capture_mode != cudaStreamCaptureModeRelaxed && thread_mode != cudaStreamCaptureModeRelaxed;
}

static cudaError_t breaks_capture(const char *what) { invalidated = 1; return refused(what); }

EXPORT int pretend_launch(const char *what, void *stream) {  /* exported: libcuda.so.1 looks it up */
    pretend_launches++;
    if (!capturing) return cudaSuccess;
    if (is_captured(stream)) { pretend_captured++; return cudaSuccess; }
    return stream ? cudaSuccess : breaks_capture(what);
}

EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    if (pretend_fault("capture")) return failed(cudaErrorStreamCaptureUnsupported);
    captured_streams[0] = stream;
    capturing = 1;
    capture_mode = mode;
    invalidated = 0;
    pretend_captured = 0;
    capture_id++;
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamBeginCaptureToGraph(
    cudaStream_t stream, cudaGraph_t graph, const cudaGraphNode_t *nodes, const cudaGraphEdgeData *edges, size_t count,
    enum cudaStreamCaptureMode mode) { return cudaStreamBeginCapture(stream, mode); }

EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    capturing = 0;
    *graph = invalidated ? NULL : (cudaGraph_t)1;
    return invalidated ? failed(cudaErrorStreamCaptureInvalidated) : cudaSuccess;
}

EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = is_captured(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamGetCaptureInfo(
    cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id, cudaGraph_t *graph,
    const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges, size_t *count) {
    static cudaGraphNode_t none[1];
    if (id) *id = capture_id;
    if (graph) *graph = (cudaGraph_t)1;
    if (nodes) *nodes = none;
    if (edges) *edges = NULL;
    if (count) *count = 0;
    return cudaStreamIsCapturing(stream, status);
}

EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) {
    enum cudaStreamCaptureMode before = thread_mode;
    thread_mode = *mode;
    *mode = before;
    return cudaSuccess;
}

EXPORT cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t s, cudaGraphNode_t *n, const cudaGraphEdgeData *e, size_t c, unsigned f) { return cudaSuccess; }

/* ---- graphs */

EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
    *count = pretend_captured ? pretend_captured : 1;
    return cudaSuccess;
}

EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags) {
    if (pretend_fault("instantiate-memory")) return failed(cudaErrorMemoryAllocation);
    pretend_graphs++;
    *exec = (cudaGraphExec_t)1;
    return cudaSuccess;
}

EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags) {
    return cudaGraphInstantiate(exec, graph, flags);
}

EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) { return pretend_launch("a graph's launch", stream); }
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return cudaSuccess; }
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return cudaSuccess; }
EXPORT cudaError_t cudaGraphRetainUserObject(cudaGraph_t g, cudaUserObject_t o, unsigned c, unsigned f) { return cudaSuccess; }
EXPORT cudaError_t cudaUserObjectCreate(cudaUserObject_t *object, void *p, cudaHostFn_t destroy, unsigned r, unsigned f) { *object = (cudaUserObject_t)1; return cudaSuccess; }
EXPORT cudaError_t cudaUserObjectRelease(cudaUserObject_t object, unsigned count) { return cudaSuccess; }

/* ---- kernels */

EXPORT cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) {
    int sized = grid.x && grid.y && grid.z && grid.y <= 65535 && grid.z <= 65535 && block.x * block.y * block.z <= 1024;
    return sized ? pretend_launch("a kernel's launch", stream) : failed(cudaErrorInvalidConfiguration);
}

EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel, void **arguments) { return pretend_launch("a kernel's launch", config->stream); }
EXPORT cudaError_t __cudaLaunchKernel(void *kernel, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t stream) { return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream); }
EXPORT cudaError_t __cudaGetKernel(void **kernel, const void *function) { *kernel = (void *)function; return cudaSuccess; }
EXPORT cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t k, enum cudaFuncAttribute a, int v, int d) { return cudaSuccess; }
EXPORT cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value) { return cudaSuccess; }
EXPORT cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *kernel) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->ptxVersion = attributes->binaryVersion = 90;
    attributes->numRegs = 32;
    return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel, int size, size_t shared) { *blocks = 2; return cudaSuccess; }
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *kernel, int size, size_t shared, unsigned flags) { *blocks = 2; return cudaSuccess; }
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t callback, void *data, unsigned flags) { return cudaSuccess; }

/* ---- memory */

typedef struct { char *start; size_t size; int device; } Block;  /* device -1: pinned memory of the host */
static Block blocks[MOST_BLOCKS];
static int block_count;
static size_t used[64];

static Block *block_of(const void *pointer) {
    for (int i = block_count - 1; i >= 0; i--)
        if ((char *)pointer >= blocks[i].start && (char *)pointer < blocks[i].start + blocks[i].size) return &blocks[i];
    return NULL;
}

static void *allocated(size_t size, int owner) {
    void *start = NULL;
    if (block_count == MOST_BLOCKS || posix_memalign(&start, 4096, size ? size : 1)) abort();
    if (size < ((size_t)1 << 28)) memset(start, 0, size);  /* what is larger comes from the system as zeros */
    blocks[block_count++] = (Block){start, size, owner};
    if (owner >= 0) used[owner] += size;
    return start;
}

static void freed(void *pointer) {
    Block *block = block_of(pointer);
    if (!block) return;
    if (block->device >= 0) used[block->device] -= block->size;
    free(block->start);
    *block = blocks[--block_count];
}

EXPORT cudaError_t cudaMalloc(void **pointer, size_t size) {
    if (capturing && pretend_fault("capture-memory")) return failed(cudaErrorMemoryAllocation);
    if (!used[device] && pretend_fault("busy")) return failed(cudaErrorDevicesUnavailable);
    if (!used[device] && pretend_fault("context-memory")) return failed(cudaErrorMemoryAllocation);
    if (pretend_fault("memory") || used[device] + size > CARD_MEMORY) return failed(cudaErrorMemoryAllocation);
    if (used[device] && pretend_fault("more-memory")) return failed(cudaErrorMemoryAllocation);
    if (forbidden()) return breaks_capture("cudaMalloc");
    *pointer = allocated(size, device);
    return cudaSuccess;
}

EXPORT cudaError_t cudaFree(void *pointer) {
    if (pointer && forbidden()) return breaks_capture("cudaFree");
    freed(pointer);
    return cudaSuccess;
}

EXPORT cudaError_t cudaFreeAsync(void *pointer, cudaStream_t stream) { return cudaFree(pointer); }
EXPORT cudaError_t cudaMemGetInfo(size_t *available, size_t *total) { *total = CARD_MEMORY; *available = CARD_MEMORY - used[device]; return cudaSuccess; }

EXPORT cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned flags) {
    if (forbidden()) return breaks_capture("cudaHostAlloc");
    *pointer = allocated(size, -1);
    return cudaSuccess;
}

EXPORT cudaError_t cudaMallocHost(void **pointer, size_t size) { return cudaHostAlloc(pointer, size, 0); }
EXPORT cudaError_t cudaFreeHost(void *pointer) { freed(pointer); return cudaSuccess; }
EXPORT cudaError_t cudaHostRegister(void *pointer, size_t size, unsigned flags) { return cudaSuccess; }
EXPORT cudaError_t cudaHostUnregister(void *pointer) { return cudaSuccess; }

EXPORT cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer) {
    Block *block = block_of(pointer);
    memset(attributes, 0, sizeof *attributes);
    attributes->type = !block ? cudaMemoryTypeUnregistered : block->device < 0 ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    attributes->device = block && block->device > 0 ? block->device : 0;
    return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    int pageable = (kind == cudaMemcpyHostToDevice && !block_of(from)) || (kind == cudaMemcpyDeviceToHost && !block_of(to));
    if (is_captured(stream) && pageable) return breaks_capture("a copy of pageable memory");
    int error = pretend_launch("a copy", stream);
    if (error) return error;
    memmove(to, from, size);
    /* Kernels do nothing, so that everything is 0. This makes an assertion's answer true. */
    const char *truths = getenv("PRETEND_TRUE");
    if (size == 1 && kind == cudaMemcpyDeviceToHost && truths && *truths == '1') *(char *)to = 1;
    return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    if (capturing) return breaks_capture("cudaMemcpy");
    pretend_synchronisations++;
    memcpy(to, from, size);
    return cudaSuccess;
}

EXPORT cudaError_t cudaMemset(void *to, int value, size_t size) { memset(to, value, size); return cudaSuccess; }
EXPORT cudaError_t cudaMemsetAsync(void *to, int value, size_t size, cudaStream_t stream) {
    int error = pretend_launch("cudaMemsetAsync", stream);
    if (!error) memset(to, value, size);
    return error;
}
EXPORT cudaError_t cudaMemcpyToSymbol(const void *symbol, const void *from, size_t size, size_t offset, enum cudaMemcpyKind kind) { return cudaSuccess; }
EXPORT cudaError_t cudaGetSymbolAddress(void **pointer, const void *symbol) { *pointer = allocated(1 << 20, device); return cudaSuccess; }
EXPORT cudaError_t cudaIpcCloseMemHandle(void *pointer) { return cudaSuccess; }

/* ---- streams and events */

typedef struct { int captured; } Event;
static size_t next_stream = 4096;

static cudaError_t new_stream(cudaStream_t *stream) { *stream = (cudaStream_t)(next_stream += 16); return cudaSuccess; }
EXPORT cudaError_t cudaStreamCreate(cudaStream_t *stream) { return new_stream(stream); }
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return new_stream(stream); }
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) { return new_stream(stream); }
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t stream) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) { *priority = 0; return cudaSuccess; }
EXPORT cudaError_t cudaStreamQuery(cudaStream_t stream) { return is_captured(stream) ? breaks_capture("cudaStreamQuery") : cudaSuccess; }

EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (is_captured(stream) || forbidden()) return breaks_capture("cudaStreamSynchronize");
    pretend_synchronisations++;
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceSynchronize(void) {
    if (capturing) return breaks_capture("cudaDeviceSynchronize");
    pretend_synchronisations++;
    return cudaSuccess;
}

EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { *event = (cudaEvent_t)calloc(1, sizeof(Event)); return cudaSuccess; }
EXPORT cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) { free(event); return cudaSuccess; }
EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { ((Event *)event)->captured = is_captured(stream); return cudaSuccess; }
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) { return cudaEventRecord(event, stream); }
EXPORT cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) { *milliseconds = 1; return cudaSuccess; }
EXPORT cudaError_t cudaEventQuery(cudaEvent_t event) { return forbidden() || (capturing && ((Event *)event)->captured) ? breaks_capture("cudaEventQuery") : cudaSuccess; }

EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (capturing) return breaks_capture("cudaEventSynchronize");
    pretend_synchronisations++;
    return cudaSuccess;
}

/* A stream that waits for an event of the capture joins it. */
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    if (!capturing) return cudaSuccess;
    if (!((Event *)event)->captured) return is_captured(stream) ? breaks_capture("a wait for an event from outside") : cudaSuccess;
    if (!is_captured(stream) && capturing < MOST_STREAMS) captured_streams[capturing++] = stream;
    return cudaSuccess;
}

/* ---- devices: H200s, all alike */

EXPORT cudaError_t cudaGetDeviceCount(int *count) {
    *count = 0;
    if (pretend_fault("driver")) return failed(cudaErrorInsufficientDriver);
    *count = pretend_visible_cards();
    return *count ? cudaSuccess : failed(cudaErrorNoDevice);
}

EXPORT cudaError_t cudaGetDevice(int *current) { *current = device; return cudaSuccess; }
EXPORT cudaError_t cudaSetDevice(int wanted) {
    if (wanted < 0 || wanted >= pretend_visible_cards()) return failed(cudaErrorInvalidDevice);
    device = wanted;
    return cudaSuccess;
}
EXPORT cudaError_t cudaDriverGetVersion(int *version) { *version = pretend_fault("driver") ? 12020 : 13020; return cudaSuccess; }
EXPORT cudaError_t cudaRuntimeGetVersion(int *version) { *version = 13020; return cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return cudaSuccess; }
EXPORT cudaError_t cudaDeviceCanAccessPeer(int *can, int from, int to) { *can = 0; return cudaSuccess; }
EXPORT cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) { return cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetPCIBusId(char *name, int size, int number) { snprintf(name, size, "0000:%02x:00.0", number); return cudaSuccess; }
EXPORT cudaError_t cudaProfilerStart(void) { return cudaSuccess; }
EXPORT cudaError_t cudaProfilerStop(void) { return cudaSuccess; }

EXPORT cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *card, int number) {
    memset(card, 0, sizeof *card);
    strcpy(card->name, "NVIDIA H200 (pretended)");
    card->major = 9;
    card->multiProcessorCount = 132;
    card->totalGlobalMem = CARD_MEMORY;
    card->warpSize = 32;
    card->maxThreadsPerBlock = 1024;
    card->maxThreadsPerMultiProcessor = 2048;
    card->maxBlocksPerMultiProcessor = 32;
    card->sharedMemPerBlock = 49152;
    card->sharedMemPerBlockOptin = 232448;
    card->sharedMemPerMultiprocessor = 233472;
    card->regsPerBlock = card->regsPerMultiprocessor = 65536;
    card->l2CacheSize = 62914560;
    card->maxThreadsDim[0] = card->maxThreadsDim[1] = 1024;
    card->maxThreadsDim[2] = 64;
    card->maxGridSize[0] = 2147483647;
    card->maxGridSize[1] = card->maxGridSize[2] = 65535;
    card->memoryBusWidth = 6144;
    card->textureAlignment = 512;
    card->asyncEngineCount = 3;
    card->concurrentKernels = card->unifiedAddressing = 1;
    return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int number) {
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        case cudaDevAttrMultiProcessorCount: *value = 132; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
        case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
        case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 233472; break;
        case cudaDevAttrMaxRegistersPerBlock: *value = 65536; break;
        default: *value = 1;
    }
    return cudaSuccess;
}

/* Torch asks for the driver's functions by name. */
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(
    const char *name, void **function, unsigned version, unsigned long long flags, enum cudaDriverEntryPointQueryResult *result) {
    char second[256];
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    snprintf(second, sizeof second, "%s_v2", name);
    *function = driver ? dlsym(driver, name) : NULL;
    if (!*function && driver) *function = dlsym(driver, second);
    if (result) *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
