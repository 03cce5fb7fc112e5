// griddepcontrol: programmatic dependent launch.
#include "scheduler.h"
#include "thread_order.h"

namespace interpreter {

void grid_dependency_wait() {
    Thread& thread = *current;
    thread.waited_without_fence = true;
    Grid& grid = *thread.warp->block->grid;
    if (!grid.ahead) return;
    while (!grid.ahead->done()) {
        grid.waiting_for_grid_ahead.push_back(&thread);
        scheduler.block("the grid ahead (griddepcontrol.wait)", RIGEL_CALLER);
    }
    learn_finished(thread, grid.ahead->known_at_end);
}

// One thread's call speaks for its block.
void grid_dependency_launch() {
    Block& block = *current->warp->block;
    if (block.triggered) return;
    block.triggered = true;
    Grid& grid = *block.grid;
    if (++grid.triggered == grid.blocks) scheduler.note_triggered();
}

}  // namespace interpreter
