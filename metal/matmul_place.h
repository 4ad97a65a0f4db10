// Which part of a product a threadgroup makes, for the kernels that make tiles of out.
//
// Grid: x: tiles of out, in bands of several rows of tiles, down each column of a band, so that threadgroups that run
// at the same time share tiles of both operands in cache; z: batch, by packs. First the columns of tiles whose k is
// whole, then, once for each split of k, the others: those that cores would otherwise wait for, or all of them. Where
// offsets divide the rows, there are enough rows of tiles for any division.
#pragma once

#include <metal_stdlib>

#include "common/tile.h"
#include "matmul_constants.h"
#include "matmul_params.h"

namespace mpsk {
namespace {  // what uses function constants belongs to its file, as they do

using namespace metal;

// The rows of out that a tile makes, and the group that they belong to.
struct row_range {
  uint group;  // == groups: rows that no group has, which become zero; > groups: no such tile
  ulong row;
  ulong row_end;
};

// Row tile `tile` of the tiles of bm rows that the groups are cut into, each group by itself. All lanes of a simdgroup
// look for it together, 32 groups at a time.
template <int bm>
row_range find_tile(uint tile, const device int* offsets, constant matmul_params& p, uint lane) {
  const int rows = int(p.m);
  uint before = 0;  // tiles of the groups so far
  for (uint base = 0; base <= p.groups; base += 32) {
    const uint group = base + lane;
    const int begin = group == 0 ? 0 : group <= p.groups ? clamp(offsets[group - 1], 0, rows) : rows;
    const int end = group < p.groups ? clamp(offsets[group], 0, rows) : rows;
    const uint tiles = (uint(max(end - begin, 0)) + bm - 1) / bm;
    const uint after = before + simd_prefix_inclusive_sum(tiles);
    const bool here = tile < after && tile >= after - tiles;
    if (simd_any(here)) {
      const uint first = here ? uint(begin) + (tile - (after - tiles)) * bm : 0;
      return {simd_max(here ? group : 0), simd_max(first), simd_max(here ? uint(end) : 0)};
    }
    before = simd_broadcast(after, 31);
  }
  return {p.groups + 1, 0, 0};
}

// A tile of out, and what of the operands it is made of.
struct tile_place {
  bool exists;
  bool partial;  // of a split of k
  uint split;
  ulong first_row, first_column;
  int row_count, column_count;  // of the tile that lie in out
  ulong k, k_end;
  uint term, term_end;      // products that are added up: of two pairs of operands, or of `terms`
  long a_offset, b_offset;  // of the product of the batch, or of the group, in elements
};

// All lanes of a simdgroup look together.
template <int bm, int bn>
tile_place find_place(uint tile, uint z, const device int* offsets, constant matmul_params& p, uint lane) {
  const bool is_grouped = has_offsets && !is_grouped_k;
  uint columns = p.whole_tiles_n, first_tile_n = 0;  // of the part of the grid that this tile is in
  tile_place place;
  place.exists = true;
  place.partial = is_partial && tile >= p.tiles_m * p.whole_tiles_n;
  place.split = 0;
  if (place.partial) {
    columns = p.tiles_n - p.whole_tiles_n;
    first_tile_n = p.whole_tiles_n;
    tile -= p.tiles_m * p.whole_tiles_n;
    place.split = tile / (p.tiles_m * columns);
    tile -= place.split * p.tiles_m * columns;
  }
  const uint band = tile / (p.band * columns) * p.band;  // its first row of tiles
  const uint band_rows = min(p.band, p.tiles_m - band);  // the last band may have fewer
  const uint in_band = tile - band * columns;
  const uint row_tile = band + in_band % band_rows;
  const ulong split_begin = place.split * p.k_per_split, split_end = split_begin + p.k_per_split;
  place.k = is_summed ? 0 : split_begin;
  place.k_end = place.partial && !is_summed ? min(p.k, split_end) : p.k;
  place.term = is_summed ? uint(split_begin) : 0;
  place.term_end = !is_summed ? (has_second_a ? 2 : 1) : place.partial ? uint(min(ulong(p.terms), split_end)) : p.terms;
  row_range rows = {z, ulong(row_tile) * bm, p.m};
  if (is_grouped) {
    rows = find_tile<bm>(row_tile, offsets, p, lane);
    place.exists = rows.group <= p.groups;
    if (rows.group == p.groups) {
      place.k_end = place.k;
    }
  } else if (is_grouped_k) {
    place.k = z == 0 ? 0 : ulong(clamp(offsets[z - 1], 0, int(p.k)));
    place.k_end = max(place.k, ulong(clamp(offsets[z], 0, int(p.k))));
  }
  place.first_row = rows.row;
  place.first_column = ulong(first_tile_n + in_band / band_rows) * bn;
  place.row_count = count_in_tile(rows.row_end - rows.row, bm);
  place.column_count = count_in_tile(p.n - place.first_column, bn);
  place.a_offset = batch_offset(z, p.a_batch_strides, p);
  // Group `groups` has no b, and a step along no k.
  place.b_offset =
      is_grouped ? long(min(rows.group, p.groups - 1)) * p.b_batch_strides[0] : batch_offset(z, p.b_batch_strides, p);
  return place;
}

}  // namespace
}  // namespace mpsk
