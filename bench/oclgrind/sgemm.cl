// out[m, n] = a[m, k] b[k, n], for bench_simulator.py: what matmul_tile does at 64x64x16, with 128 work-items of 8x4 sums
// each.
#define TILE 64
#define DEPTH 16
#define ITEMS 128

kernel __attribute__((reqd_work_group_size(ITEMS, 1, 1))) void sgemm(global const float* a, global const float* b,
                                                                     global float* out, int n, int k_count) {
  local float a_tile[TILE][DEPTH + 4];
  local float b_tile[DEPTH][TILE + 4];
  const int item = get_local_id(0);
  const int first_row = get_group_id(1) * TILE, first_column = get_group_id(0) * TILE;
  const int row = item / 16 * 8, column = item % 16 * 4;  // of this work-item's sums in the tile
  float4 sums[8];
  for (int i = 0; i < 8; ++i) sums[i] = 0.0f;
  for (int k = 0; k < k_count; k += DEPTH) {
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int v = item; v < TILE * DEPTH / 4; v += ITEMS) {
      const int r = v / (DEPTH / 4), c = v % (DEPTH / 4) * 4;
      vstore4(vload4(0, a + (first_row + r) * k_count + k + c), 0, &a_tile[r][c]);
    }
    for (int v = item; v < DEPTH * TILE / 4; v += ITEMS) {
      const int r = v / (TILE / 4), c = v % (TILE / 4) * 4;
      vstore4(vload4(0, b + (k + r) * n + first_column + c), 0, &b_tile[r][c]);
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int s = 0; s < DEPTH; ++s) {
      const float4 right = vload4(0, &b_tile[s][column]);
      for (int i = 0; i < 8; ++i) sums[i] += a_tile[row + i][s] * right;
    }
  }
  for (int i = 0; i < 8; ++i) vstore4(sums[i], 0, out + (first_row + row + i) * n + first_column + column);
}
