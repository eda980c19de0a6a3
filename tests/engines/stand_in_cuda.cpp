// A stand-in for the CUDA driver: one device, host memory, streams that run at once, real capture and replay.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

using Work = std::function<void()>;
using Graph = std::vector<Work>;

struct Stream {
  Graph* recording = nullptr;
};

static long g_live = 0;
static int g_context = 1;
static void* g_current = nullptr;
static constexpr int kOutOfMemory = 2, kInvalid = 1;
static constexpr size_t kMemory = size_t(1) << 30;

static void* take(size_t n) {
  ++g_live;
  return aligned_alloc(256, (n + 255) / 256 * 256 + 256);
}
static void give(void* p) {
  --g_live;
  free(p);
}
static int put(Stream* s, Work work) {
  if (s->recording) s->recording->push_back(std::move(work));
  else work();
  return 0;
}

extern "C" {
long stub_live() { return g_live; }
int stub_put(Stream* s, void (*call)()) { return put(s, call); }

int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* v) { *v = 13000; return 0; }
int cuDeviceGetCount(int* n) { *n = 1; return 0; }
int cuDeviceGet(int* d, int i) { *d = i; return i ? 101 : 0; }
int cuDeviceGetName(char* name, int n, int) { snprintf(name, n, "stand-in"); return 0; }
int cuDeviceGetAttribute(int* v, int a, int) {
  *v = a == 75 ? 8 : a == 76 ? 9 : a == 115 ? 1 : 0;  // compute capability 8.9, memory pools
  return 0;
}
int cuDeviceGetUuid_v2(void* u, int) { memset(u, 7, 16); return 0; }
int cuDevicePrimaryCtxRetain(void** c, int) { *c = &g_context; return 0; }
int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
int cuCtxSetCurrent(void* c) { g_current = c; return 0; }
int cuCtxGetCurrent(void** c) { *c = g_current; return 0; }
int cuCtxGetDevice(int* d) { *d = 0; return g_current ? 0 : 201; }
int cuCtxPushCurrent_v2(void* c) { g_current = c; return 0; }
int cuCtxPopCurrent_v2(void** c) { *c = g_current; return 0; }
int cuCtxGetStreamPriorityRange(int* lo, int* hi) { *lo = 0; *hi = -5; return 0; }
int cuCtxSynchronize() { return 0; }
int cuGetErrorName(int, const char** s) { *s = "CUDA_ERROR"; return 0; }
int cuGetErrorString(int, const char** s) { *s = "an error of the stand-in"; return 0; }

int cuMemAlloc_v2(uint64_t* p, size_t n) {
  if (n > kMemory) return kOutOfMemory;
  *p = uint64_t(take(n));
  return 0;
}
int cuMemFree_v2(uint64_t p) { give((void*)p); return 0; }
int cuDeviceGetDefaultMemPool(void** pool, int) { *pool = &g_context; return 0; }
int cuDeviceGetMemPool(void** pool, int) { *pool = &g_context; return 0; }
int cuMemPoolGetAttribute(void*, int, void* v) { *(uint64_t*)v = 0; return 0; }
int cuMemPoolSetAttribute(void*, int, void*) { return 0; }
int cuMemPoolDestroy(void*) { return 0; }
int cuMemAllocAsync(uint64_t* p, size_t n, void*) { return cuMemAlloc_v2(p, n); }
int cuMemAllocFromPoolAsync(uint64_t* p, size_t n, void*, void*) { return cuMemAlloc_v2(p, n); }
int cuMemFreeAsync(uint64_t p, void*) { return cuMemFree_v2(p); }
int cuMemHostAlloc(void** p, size_t n, unsigned) { *p = take(n); return 0; }
int cuMemFreeHost(void* p) { give(p); return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t d, const void* s, size_t n, Stream* st) {
  return put(st, [=] { memcpy((void*)d, s, n); });
}
int cuMemcpyDtoHAsync_v2(void* d, uint64_t s, size_t n, Stream* st) {
  return put(st, [=] { memcpy(d, (void*)s, n); });
}
int cuMemcpyDtoDAsync_v2(uint64_t d, uint64_t s, size_t n, Stream* st) {
  return put(st, [=] { memcpy((void*)d, (void*)s, n); });
}
int cuMemsetD8Async(uint64_t d, unsigned char v, size_t n, Stream* st) {
  return put(st, [=] { memset((void*)d, v, n); });
}

int cuMemsetD8_v2(uint64_t d, unsigned char v, size_t n) { memset((void*)d, v, n); return 0; }
// CUDA_MEMCPY2D: a place (x, y, kind, host, device, array, pitch) of the source, one of the target, width and height.
struct Place { size_t x, y; unsigned kind; void* host; uint64_t device; void* array; size_t pitch; };
struct Copy2D { Place from, to; size_t width, height; };
static long g_copies[5][5];
long stub_copies(int from, int to) { return g_copies[from][to]; }
int cuMemcpy2D_v2(const Copy2D* c) {
  auto base = [](const Place& p) { return p.kind == 1 ? (char*)p.host : p.kind == 2 ? (char*)p.device : nullptr; };
  char *from = base(c->from), *to = base(c->to);
  if (!from || !to || c->width > c->from.pitch || c->width > c->to.pitch || !g_current) return kInvalid;
  ++g_copies[c->from.kind][c->to.kind];
  for (size_t i = 0; i < c->height; ++i)
    memcpy(to + (c->to.y + i) * c->to.pitch + c->to.x, from + (c->from.y + i) * c->from.pitch + c->from.x, c->width);
  return 0;
}

int cuStreamCreate(Stream** s, unsigned) { *s = new Stream; return 0; }
int cuStreamCreateWithPriority(Stream** s, unsigned, int) { *s = new Stream; return 0; }
int cuStreamDestroy_v2(Stream* s) { delete s; return 0; }
int cuStreamSynchronize(Stream* s) { return s->recording ? 900 : 0; }
int cuStreamGetCtx(Stream*, void** c) { *c = &g_context; return 0; }
int cuStreamGetCtx_v2(Stream*, void** c, void** g) { *c = &g_context; if (g) *g = nullptr; return 0; }
int cuStreamWaitEvent(Stream*, void*, unsigned) { return 0; }
int cuStreamBeginCapture_v2(Stream* s, int mode) {
  if (mode != 1 || s->recording) return kInvalid;  // thread-local
  s->recording = new Graph;
  return 0;
}
int cuStreamEndCapture(Stream* s, Graph** g) {
  if (!s->recording) return 901;
  *g = s->recording;
  s->recording = nullptr;
  return 0;
}
int cuStreamIsCapturing(Stream* s, int* status) { *status = s && s->recording ? 1 : 0; return 0; }
int cuEventCreate(void** e, unsigned) { *e = take(8); return 0; }
int cuEventDestroy_v2(void* e) { give(e); return 0; }
int cuEventRecord(void*, void*) { return 0; }
int cuGraphInstantiateWithFlags(Graph** exec, Graph* graph, unsigned long long) { *exec = new Graph(*graph); return 0; }
int cuGraphLaunch(Graph* exec, Stream* s) {
  return put(s, [=] { for (auto& work : *exec) work(); });
}
int cuGraphExecDestroy(Graph* exec) { delete exec; return 0; }
int cuGraphDestroy(Graph* graph) { delete graph; return 0; }

int cuGetProcAddress_v2(const char* name, void** function, int, uint64_t, int* status) {
  static void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  char versioned[256];
  snprintf(versioned, sizeof versioned, "%s_v2", name);
  void* found = dlsym(self, versioned);
  if (!found) found = dlsym(self, name);
  *function = found;
  if (status) *status = found ? 0 : 1;
  return 0;
}
int cuGetProcAddress(const char* name, void** f, int v, uint64_t flags) { return cuGetProcAddress_v2(name, f, v, flags, nullptr); }
}
