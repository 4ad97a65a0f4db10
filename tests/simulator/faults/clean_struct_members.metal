// Threads of two simdgroups store different members of one struct.
#include <metal_stdlib>
using namespace metal;

struct Row {
  float sum;
  uchar negative;
  uchar large;
};

kernel void clean(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup Row row;
  if (t == 0) row.sum = x[0] + x[1];
  if (t == 1) row.negative = x[0] < 0;
  if (t == 32) row.large = x[1] > 10;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[t] = row.sum + row.negative * 2 + row.large * 4;
}
