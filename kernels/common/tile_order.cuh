// Order of a GEMM's output tiles.
#pragma once
#include "ptx/ptx.cuh"

// A tile: row `down` and column `across` of the grid of tiles.
struct TileIndex {
    uint32_t down;
    uint32_t across;
};

// Maps a tile number to its place in `down` x `across` tiles. Groups of `group` rows of tiles follow each other, each
// in column-major order, so that concurrently running blocks share few rows of weights and activations and find them in
// L2.
DEVICE TileIndex tile_index(uint32_t tile, uint32_t down, uint32_t across, uint32_t group) {
    const uint32_t first_down = tile / (group * across) * group, in_group = tile % (group * across);
    const uint32_t group_rows = min(group, down - first_down);
    return TileIndex{first_down + in_group % group_rows, in_group / group_rows};
}
