/* A stand-in for libnvidia-ml.so.1, by which Ray counts a machine's GPUs: PRETEND_GPUS of them, all free. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "pretend.h"

static int cards(void) {
    const char *count = getenv("PRETEND_GPUS");
    return count ? atoi(count) : 1;
}

EXPORT int nvmlDeviceGetCount_v2(unsigned *count) { *count = cards(); return 0; }
EXPORT int nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }
EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned number, void **handle) {
    *handle = (void *)(size_t)(number + 1);
    return (int)number < cards() ? 0 : 2;
}
EXPORT int nvmlDeviceGetHandleByIndex(unsigned number, void **handle) { return nvmlDeviceGetHandleByIndex_v2(number, handle); }
EXPORT int nvmlDeviceGetIndex(void *handle, unsigned *number) { *number = (unsigned)(size_t)handle - 1; return 0; }
EXPORT int nvmlDeviceGetName(void *handle, char *name, unsigned size) { strncpy(name, "NVIDIA H200 (pretended)", size); return 0; }
EXPORT int nvmlDeviceGetUUID(void *handle, char *name, unsigned size) { snprintf(name, size, "GPU-00000000-0000-0000-0000-%012d", (int)(size_t)handle); return 0; }
EXPORT int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *memory) {
    memory[0] = memory[1] = CARD_MEMORY;
    memory[2] = 0;
    return 0;
}
EXPORT int nvmlDeviceGetUtilizationRates(void *handle, unsigned *rates) { rates[0] = rates[1] = 0; return 0; }
EXPORT int nvmlSystemGetDriverVersion(char *version, unsigned size) {
    const char *fault = getenv("PRETEND_FAULT");
    strncpy(version, fault && strstr(fault, "driver") ? "535.00" : "580.00", size);
    return 0;
}
EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    const char *fault = getenv("PRETEND_FAULT");
    *version = fault && strstr(fault, "driver") ? 12020 : 13020;
    return 0;
}
EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, void *processes) { *count = 0; return 0; }
EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, void *processes) { *count = 0; return 0; }
/* torch looks these up when its allocator runs out of memory for the first time. */
EXPORT int nvmlDeviceGetComputeRunningProcesses(void *handle, unsigned *count, void *processes) { *count = 0; return 0; }
EXPORT int nvmlDeviceGetGpuFabricInfoV(void *handle, void *info) { return 3; }
EXPORT int nvmlDeviceGetNvLinkRemoteDeviceType(void *handle, unsigned link, void *type) { return 3; }
EXPORT int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *handle, unsigned link, void *info) { return 3; }
EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **handle) { return nvmlDeviceGetHandleByIndex_v2(0, handle); }
EXPORT const char *nvmlErrorString(int error) { return "pretended"; }

#define SUCCEEDS(name) EXPORT int name() { return 0; }
SUCCEEDS(nvmlInit) SUCCEEDS(nvmlInit_v2) SUCCEEDS(nvmlInitWithFlags) SUCCEEDS(nvmlShutdown)
