// The order in which the tiles of a GEMM's output are computed.
#pragma once
#include "ptx/ptx.cuh"

// Which tile: `down` rows of tiles from the top, `across` columns from the left.
struct TileIndex {
    uint32_t down;
    uint32_t across;
};

// Tile number `tile` of `down` rows and `across` columns of tiles. Groups of `group` rows of tiles come one after another;
// inside a group the order is column by column, so that the blocks that run at one time read few rows of weights and few of
// activations, and find them in L2.
DEVICE TileIndex tile_index(uint32_t tile, uint32_t down, uint32_t across, uint32_t group) {
    const uint32_t first_down = tile / (group * across) * group, in_group = tile % (group * across);
    const uint32_t group_rows = min(group, down - first_down);
    return TileIndex{first_down + in_group % group_rows, in_group / group_rows};
}
