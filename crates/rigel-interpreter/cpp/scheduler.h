// Runs grids: starts blocks, switches between threads, notices when nothing can go on.
//
// One operating-system thread runs everything, so nothing here needs locks. A thread runs until it blocks (a barrier, a
// collective, a wait) or yields (a load in a spin loop); then any other ready thread may run, of any resident block of
// any grid that may run now. The order is drawn from the seed.
#pragma once
#include <vector>

#include "grid.h"

namespace interpreter {

extern Thread* current;  // the running thread; nullptr outside of kernels

// Thrown by a failed check outside of kernels: in a copy or a fill.
struct CheckFailed {};

class Scheduler {
  public:
    // Runs grids to their end. Each but the first was launched to start early: once every block of the grid before it
    // has called griddepcontrol.launch_dependents or ended. False: a check failed, and a report was made.
    bool run(const std::vector<Grid*>& chain);

    // The running thread stops until someone wakes it.
    void block(const char* waits_for, Site site);
    void wake(Thread& thread);
    void wake(Warp& warp, uint32_t lanes);
    // The running thread is in a spin loop: others run first.
    void yield(const char* waits_for, Site site);
    // Something happened that a spinning thread may have waited for.
    void note_progress() { idle_yields_ = 0; }
    // The running thread ends the whole run.
    [[noreturn]] void abandon();
    // The running thread's kernel has returned.
    [[noreturn]] void exit_thread();
    // A grid's last block has called launch_dependents.
    void note_triggered() { starts_due_ = true; }
    // The block whose agents begin with this serial; nullptr: it has ended.
    const Block* find_block(Serial first) const;

  private:
    void start_blocks();
    void start_cluster(Grid& grid);
    void start_block(Grid& grid, uint64_t index, const std::shared_ptr<Cluster>& cluster);
    void finish_block(Block& block);
    void finish_grid(Grid& grid);
    bool may_start(size_t position) const;
    bool finish_a_bulk_copy();
    Thread* pick();
    void add_ready(Warp& warp);
    void switch_from(Thread& thread);
    void report_stuck(const char* kind);
    bool wake_one_that_gives_up();
    void release(Block* block);
    void release_everything();

    std::vector<Grid*> chain_;
    std::vector<Block*> resident_;
    std::vector<Warp*> ready_;
    std::vector<uint32_t> free_arenas_;
    Warp* running_warp_ = nullptr;
    size_t cursor_ = 0;
    bool leave_warp_ = false;  // the next pick is of another warp
    bool starts_due_ = false;  // the main loop must look for blocks to start
    bool failed_ = false;
    uint64_t idle_yields_ = 0;
    void* main_stack_ = nullptr;
};
extern Scheduler scheduler;

}  // namespace interpreter
