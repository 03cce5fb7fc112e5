// The history of everything that streams ran: who a serial number belongs to.
#pragma once
#include <string>
#include <vector>

#include "cuda_language.h"
#include "order.h"

namespace interpreter {

// One grid, copy or fill.
struct Work {
    uint64_t identity;  // its index in the history
    uint32_t stream;
    uint64_t sequence;  // in its stream, from 1
    Serial first;       // no agent of it has a smaller serial
    std::string name;   // the kernel's, or the driver call's
    dim3 grid_size, block_size;
};
struct BlockOfWork {
    Serial first;
    uint64_t work;   // its identity
    uint64_t index;  // of the block in its grid, x fastest
    uint32_t agents;
};

class History {
  public:
    uint64_t begin_work(uint32_t stream, uint64_t sequence, std::string name, dim3 grid_size, dim3 block_size);
    Serial begin_block(uint64_t work, uint64_t index, uint32_t agents);
    const Work& work(uint64_t identity) const { return works_[identity]; }
    size_t works() const { return works_.size(); }
    Serial next_serial() const { return next_; }
    const BlockOfWork& block_of(Serial serial) const;
    std::string describe_agent(Serial serial) const;  // "thread (3,0,0) of block (1,0,0)", "... cp.async of thread ..."

  private:
    std::vector<Work> works_;
    std::vector<BlockOfWork> blocks_;
    Serial next_ = 2;  // stamp 0 means an empty slot
};
extern History history;

}  // namespace interpreter
