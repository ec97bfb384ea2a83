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

/* torch looks these up together when its allocator runs out of memory for the first time; it calls none of them here. */
#define UNSUPPORTED(name) EXPORT int name() { return 801; }
UNSUPPORTED(cuMemAddressFree) UNSUPPORTED(cuMemAddressReserve) UNSUPPORTED(cuMemCreate)
UNSUPPORTED(cuMemExportToShareableHandle) UNSUPPORTED(cuMemGetAddressRange_v2)
UNSUPPORTED(cuMemGetAllocationGranularity) UNSUPPORTED(cuMemGetAllocationPropertiesFromHandle)
UNSUPPORTED(cuMemImportFromShareableHandle) UNSUPPORTED(cuMemMap) UNSUPPORTED(cuMemRelease)
UNSUPPORTED(cuMemRetainAllocationHandle) UNSUPPORTED(cuMemSetAccess) UNSUPPORTED(cuMemUnmap)
UNSUPPORTED(cuMemsetD32Async) UNSUPPORTED(cuMulticastAddDevice) UNSUPPORTED(cuMulticastBindMem)
UNSUPPORTED(cuMulticastCreate) UNSUPPORTED(cuMulticastUnbind)
