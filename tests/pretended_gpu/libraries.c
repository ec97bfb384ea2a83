/* Stand-ins for cuBLAS, cuBLASLt and cuDNN: what computes is a launch, what describes is a block of zeros. */
#include <stdint.h>
#include <stdlib.h>
#include "pretend.h"

typedef void *Handle;

/* Of cudnn_graph.h and cublas_api.h, which would not let functions be defined without their arguments. */
enum { ENGINE_HEURISTIC_RESULTS = 202, ENGINE_NUMERICAL_NOTE = 1303, TYPE_INT64 = 3, TYPE_INT32 = 23 };
enum { CUDNN_EXECUTION_FAILED = 5000, CUBLAS_ALLOCATION_FAILED = 3, CUBLAS_EXECUTION_FAILED = 13 };

static __thread Handle stream;  /* of the thread's handles; torch has one handle a thread */

#define CREATES(name) EXPORT int name(Handle *handle) { *handle = calloc(1, 1024); return 0; }
#define SUCCEEDS(name) EXPORT int name() { return 0; }
#define LAUNCHES(name) EXPORT int name() { return pretend_launch(#name, stream) ? CUDNN_EXECUTION_FAILED : 0; }
#define HAS_NO_WORKSPACE(name, ...) EXPORT int name(__VA_ARGS__, size_t *size) { *size = 0; return 0; }

EXPORT int cublasSetStream_v2(Handle handle, Handle used) { stream = used; return 0; }
EXPORT int cublasGetMathMode(Handle handle, int *mode) { *mode = 0; return 0; }
EXPORT int cublasGetPointerMode_v2(Handle handle, int *mode) { *mode = 0; return 0; }
EXPORT int cublasCreate_v2(Handle *handle) {
    if (pretend_fault("library-memory")) return CUBLAS_ALLOCATION_FAILED;
    *handle = calloc(1, 1024);
    return 0;
}
SUCCEEDS(cublasDestroy_v2) SUCCEEDS(cublasSetMathMode) SUCCEEDS(cublasSetPointerMode_v2) SUCCEEDS(cublasSetSmCountTarget)
SUCCEEDS(cublasSetWorkspace_v2)
LAUNCHES(cublasSgemm_v2) LAUNCHES(cublasDgemm_v2) LAUNCHES(cublasGemmEx) LAUNCHES(cublasSgemmEx)
LAUNCHES(cublasGemmStridedBatchedEx) LAUNCHES(cublasDgemmStridedBatched) LAUNCHES(cublasSgemv_v2) LAUNCHES(cublasDgemv_v2)
LAUNCHES(cublasSdot_v2) LAUNCHES(cublasDdot_v2) LAUNCHES(cublasDotEx)

CREATES(cublasLtMatmulDescCreate) CREATES(cublasLtMatmulPreferenceCreate) CREATES(cublasLtMatrixLayoutCreate)
SUCCEEDS(cublasLtMatmulDescDestroy) SUCCEEDS(cublasLtMatmulDescSetAttribute) SUCCEEDS(cublasLtMatmulPreferenceDestroy)
SUCCEEDS(cublasLtMatmulPreferenceSetAttribute) SUCCEEDS(cublasLtMatrixLayoutDestroy)
SUCCEEDS(cublasLtMatrixLayoutSetAttribute)
EXPORT int cublasLtMatmulAlgoGetHeuristic(
    Handle h, Handle d, Handle a, Handle b, Handle c, Handle out, Handle preference, int asked, void *results, int *count) {
    *count = 1;
    return 0;
}
EXPORT int cublasLtMatmul(
    Handle h, Handle d, Handle alpha, Handle a, Handle al, Handle b, Handle bl, Handle beta, Handle c, Handle cl, Handle out,
    Handle ol, Handle algorithm, Handle workspace, size_t size, Handle on) { return pretend_launch("cublasLtMatmul", on) ? CUBLAS_EXECUTION_FAILED : 0; }

CREATES(cudnnCreate)
EXPORT size_t cudnnGetVersion(void) { return 92600; }
EXPORT size_t cudnnGetCudartVersion(void) { return 13020; }
EXPORT const char *cudnnGetErrorString(int status) { return "pretended"; }
EXPORT int cudnnSetStream(Handle handle, Handle used) { stream = used; return 0; }
EXPORT int cudnnGetStream(Handle handle, Handle *used) { *used = stream; return 0; }

/* Convolutions: one engine is found, it says nothing of itself, and its plan wants no workspace. */
EXPORT int cudnnBackendCreateDescriptor(int type, Handle *descriptor) { *descriptor = calloc(1, 64); return 0; }
EXPORT int cudnnBackendDestroyDescriptor(Handle descriptor) { free(descriptor); return 0; }
SUCCEEDS(cudnnBackendFinalize) SUCCEEDS(cudnnBackendSetAttribute) LAUNCHES(cudnnBackendExecute)
EXPORT int cudnnBackendGetAttribute(Handle descriptor, int name, int type, int64_t asked, int64_t *count, void *value) {
    int found = name == ENGINE_HEURISTIC_RESULTS || (asked && name != ENGINE_NUMERICAL_NOTE);
    if (count) *count = found;
    if (!found || name == ENGINE_HEURISTIC_RESULTS || !value) return 0;
    if (type == TYPE_INT64) *(int64_t *)value = 0;
    if (type == TYPE_INT32) *(int32_t *)value = 0;
    return 0;
}

/* Batch norm and pooling by the older interface. */
CREATES(cudnnCreateTensorDescriptor) CREATES(cudnnCreateActivationDescriptor) CREATES(cudnnCreatePoolingDescriptor)
CREATES(cudnnCreateFilterDescriptor) CREATES(cudnnCreateConvolutionDescriptor)
SUCCEEDS(cudnnDestroyTensorDescriptor) SUCCEEDS(cudnnDestroyActivationDescriptor) SUCCEEDS(cudnnDestroyFilterDescriptor)
SUCCEEDS(cudnnDestroyConvolutionDescriptor) SUCCEEDS(cudnnSetTensorNdDescriptor) SUCCEEDS(cudnnSetFilterNdDescriptor)
SUCCEEDS(cudnnSetActivationDescriptor) SUCCEEDS(cudnnSetPooling2dDescriptor)
HAS_NO_WORKSPACE(cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize, void *a, int b, int c, void *d, void *e, void *f, void *g)
HAS_NO_WORKSPACE(cudnnGetBatchNormalizationTrainingExReserveSpaceSize, void *a, int b, int c, void *d, void *e)
HAS_NO_WORKSPACE(cudnnGetBatchNormalizationBackwardExWorkspaceSize, void *a, int b, int c, void *d, void *e, void *f, void *g, void *h)
LAUNCHES(cudnnBatchNormalizationForwardTrainingEx) LAUNCHES(cudnnBatchNormalizationForwardInference)
LAUNCHES(cudnnBatchNormalizationBackwardEx) LAUNCHES(cudnnPoolingForward)
