// A struct with padding is copied whole through threadgroup memory.
#include <metal_stdlib>
using namespace metal;

struct Entry {
  uchar kind;
  float value;
};

kernel void clean(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup Entry entries[64];
  entries[t].kind = t & 3;
  entries[t].value = x[t];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  threadgroup Entry copies[64];
  copies[t] = entries[t ^ 32];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const Entry entry = copies[t ^ 32];
  y[t] = entry.value * entry.kind;
}
