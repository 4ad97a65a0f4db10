// One work-group for each row, for bench_simulator.py: what rms_norm_row does, with a tree of sums in local memory, as
// OpenCL 1.2 has no sums across work-items.
#define ITEMS 256

kernel __attribute__((reqd_work_group_size(ITEMS, 1, 1))) void rms_norm(global const float* x,
                                                                        global const float* weight, global float* out,
                                                                        int columns, float eps) {
  local float partial[ITEMS];
  const int item = get_local_id(0);
  const int row = get_group_id(0);
  float sum = 0.0f;
  for (int c = item * 4; c < columns; c += ITEMS * 4) {
    const float4 values = vload4(0, x + row * columns + c);
    sum += dot(values, values);
  }
  partial[item] = sum;
  for (int half_way = ITEMS / 2; half_way > 0; half_way /= 2) {
    barrier(CLK_LOCAL_MEM_FENCE);
    if (item < half_way) partial[item] += partial[item + half_way];
  }
  barrier(CLK_LOCAL_MEM_FENCE);
  const float scale = rsqrt(partial[0] / columns + eps);
  for (int c = item * 4; c < columns; c += ITEMS * 4) {
    vstore4(vload4(0, x + row * columns + c) * scale * vload4(0, weight + c), 0, out + row * columns + c);
  }
}
