/* The rest of libcuda.so.1: functions that do nothing, apart from headers that would want their arguments. */
#include "pretend.h"

#define SUCCEEDS(name) EXPORT int name() { return 0; }
SUCCEEDS(cuCtxSetCurrent) SUCCEEDS(cuCtxSetLimit) SUCCEEDS(cuCtxPopCurrent_v2) SUCCEEDS(cuCtxPushCurrent_v2)
SUCCEEDS(cuCtxSynchronize) SUCCEEDS(cuDevicePrimaryCtxRelease_v2) SUCCEEDS(cuModuleUnload) SUCCEEDS(cuFuncSetAttribute)
SUCCEEDS(cuFuncSetCacheConfig) SUCCEEDS(cuLaunchCooperativeKernel) SUCCEEDS(cuLinkCreate_v2) SUCCEEDS(cuLinkAddData_v2)
SUCCEEDS(cuLinkComplete) SUCCEEDS(cuLinkDestroy) SUCCEEDS(cuLibraryLoadData) SUCCEEDS(cuLibraryLoadFromFile)
SUCCEEDS(cuLibraryGetKernel) SUCCEEDS(cuLibraryUnload) SUCCEEDS(cuKernelSetAttribute) SUCCEEDS(cuKernelGetAttribute)
SUCCEEDS(cuKernelGetFunction) SUCCEEDS(cuOccupancyMaxPotentialClusterSize) SUCCEEDS(cuTensorMapEncodeTiled)
SUCCEEDS(cuTensorMapEncodeIm2col) SUCCEEDS(cuStreamWriteValue32_v2) SUCCEEDS(cuStreamSynchronize) SUCCEEDS(cuMemAlloc_v2)
SUCCEEDS(cuMemFree_v2) SUCCEEDS(cuMemcpyDtoH_v2) SUCCEEDS(cuMemcpyHtoD_v2)

